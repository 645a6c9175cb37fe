#!/usr/bin/env bash
# `az keyvault key` against Custody, unmodified. The environment says it as for ../python/keys.py; AZ is the program, TEST_DIR
# a directory for its settings.
set -euo pipefail
export AZURE_CONFIG_DIR="$TEST_DIR/az" AZURE_CORE_COLLECT_TELEMETRY=no PYTHONWARNINGS=ignore
# libc does not resolve names below `localhost`; this stands for a line in /etc/hosts.
mkdir -p "$TEST_DIR/site"
cat >"$TEST_DIR/site/sitecustomize.py" <<'P'
import socket
resolve = socket.getaddrinfo
socket.getaddrinfo = lambda host, *rest, **named: resolve(
    "127.0.0.1" if isinstance(host, str) and host.endswith("localhost") else host, *rest, **named)
P
export PYTHONPATH="$TEST_DIR/site"
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
login "$APP_ID" "$APP_SECRET"
plain="$(printf 'a data key' | base64)"
sealed="$(key encrypt --id "$url" --algorithm RSA-OAEP-256 --value "$plain" --query result --output tsv)"
check decrypt "$(key decrypt --id "$url" --algorithm RSA-OAEP-256 --value "$sealed")" "$plain"
digest="$(printf message | openssl dgst -sha256 -binary | base64)"
signature="$(key sign --id "$url" --algorithm RS256 --digest "$digest" --query signature --output tsv)"
check verify "$(key verify --id "$url" --algorithm RS256 --digest "$digest" --signature "$signature")" true
check refused "$(key create --id "$CUSTODY_VAULT_URL/keys/mine" --kty RSA || true)" "not authorized"
echo "$checks checks passed"
