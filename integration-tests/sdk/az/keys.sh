#!/usr/bin/env bash
# `az keyvault key` against Custody, unmodified. The environment says it as for ../python/keys.py; AZ is the program, TEST_DIR
# a directory for its settings.
set -euo pipefail
export AZURE_CONFIG_DIR="$TEST_DIR/az" AZURE_CORE_COLLECT_TELEMETRY=no PYTHONWARNINGS=ignore
suffix="${CUSTODY_VAULT_URL#https://sdk}"
"$AZ" config set core.instance_discovery=false core.no_color=true --only-show-errors
cloud="{\"endpoints\":{\"activeDirectory\":\"$CUSTODY_AUTHORITY\",\"activeDirectoryResourceId\":\"https://vault.azure.net\",
  \"resourceManager\":\"$CUSTODY_AUTHORITY/\",\"management\":\"$CUSTODY_AUTHORITY/\"},
  \"suffixes\":{\"keyvaultDns\":\"$suffix\"}}"
"$AZ" cloud register --name custody --skip-endpoint-discovery --cloud-config "$cloud" --only-show-errors
"$AZ" cloud set --name custody --only-show-errors
login() { "$AZ" login --service-principal --username "$1" --password "$2" --tenant adfs --allow-no-subscriptions --only-show-errors --output none; }
checks=0
check() {
  [[ "$2" == *"$3"* ]] || { echo "$1: expected '$3' in: $2"; exit 1; }
  checks=$((checks + 1))
}
key() { "$AZ" keyvault key "$@" --only-show-errors 2>&1; }
url="$CUSTODY_VAULT_URL/keys/az-key"

login officer "$OFFICER_SECRET"
check create "$(key create --id "$url" --kty RSA --size 2048)" '"kty": "RSA"'
check show "$(key show --id "$url")" "$url/"
check list "$(key list --id "$CUSTODY_VAULT_URL" 2>&1 || true)" "az-key"
check rotate "$(key rotate --id "$url")" "$url/"
check versions "$(key list-versions --id "$url" --query 'length(@)')" 2
check attributes "$(key set-attributes --id "$url" --tags team=hr)" '"team": "hr"'
check policy "$(key rotation-policy show --id "$url")" P30D
check missing "$(key show --id "$CUSTODY_VAULT_URL/keys/none" || true)" KeyNotFound
check backup "$(key backup --id "$url" --file "$TEST_DIR/az.backup" && ls "$TEST_DIR")" az.backup
check delete "$(key delete --id "$url")" recoveryId
check recover "$(key recover --id "$CUSTODY_VAULT_URL/deletedkeys/az-key")" "$url/"

# Keys of other machines, brought wrapped and unwrapped inside the HSM ("Bring your own key specification").
exchange="$CUSTODY_VAULT_URL/keys/exchange"
check exchange "$(key create --id "$exchange" --kty RSA-HSM --size 3072 --ops import)" '"kty": "RSA-HSM"'
key download --id "$exchange" --file "$TEST_DIR/exchange.pem" --encoding PEM
kid="$(key show --id "$exchange" --query key.kid --output tsv)"
openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$TEST_DIR/rsa.pem"
openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out "$TEST_DIR/ec.pem"
for kind in rsa ec; do
  "$(dirname "$0")/../transfer.sh" "$TEST_DIR/$kind.pem" "$TEST_DIR/exchange.pem" "$kid" >"$TEST_DIR/$kind.byok"
done
bring() { key import --id "$CUSTODY_VAULT_URL/keys/$1" --protection hsm --byok-file "$TEST_DIR/$2.byok" "${@:3}"; }
check bring-rsa "$(bring brought-rsa rsa --kty RSA)" '"kty": "RSA-HSM"'
check bring-ec "$(bring brought-ec ec --kty EC --curve P-384)" '"crv": "P-384"'
key download --id "$CUSTODY_VAULT_URL/keys/brought-ec" --file "$TEST_DIR/brought.pem" --encoding PEM
check very-key "$(cat "$TEST_DIR/brought.pem")" "$(openssl pkey -pubout -in "$TEST_DIR/ec.pem")"
check curve "$(bring mistaken ec --kty EC --curve P-256 || true)" "P-384"
check nothing "$(key show --id "$CUSTODY_VAULT_URL/keys/mistaken" || true)" KeyNotFound
login "$APP_ID" "$APP_SECRET"
plain="$(printf 'a data key' | base64)"
sealed="$(key encrypt --id "$url" --algorithm RSA-OAEP-256 --value "$plain" --query result --output tsv)"
check decrypt "$(key decrypt --id "$url" --algorithm RSA-OAEP-256 --value "$sealed")" "$plain"
digest="$(printf message | openssl dgst -sha256 -binary | base64)"
signature="$(key sign --id "$url" --algorithm RS256 --digest "$digest" --query signature --output tsv)"
check verify "$(key verify --id "$url" --algorithm RS256 --digest "$digest" --signature "$signature")" true
check refused "$(key create --id "$CUSTODY_VAULT_URL/keys/mine" --kty RSA || true)" "not authorized"
echo "$checks checks passed"
