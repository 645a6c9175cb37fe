#!/usr/bin/env bash
# A transfer file as Azure's customers make one ("Bring your own key specification"), with OpenSSL, on standard output:
# PRIVATE.pem, wrapped for EXCHANGE.pem, the public half of the key exchange key that KID names.
set -euo pipefail
private=$1 exchange=$2 kid=$3
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
openssl rand -out "$dir/aes" 32
openssl pkcs8 -topk8 -nocrypt -outform DER -in "$private" -out "$dir/der"
openssl pkeyutl -encrypt -pubin -inkey "$exchange" -in "$dir/aes" -out "$dir/head" \
  -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha1
openssl enc -id-aes256-wrap-pad -iv A65959A6 -K "$(od -An -v -tx1 "$dir/aes" | tr -d ' \n')" -in "$dir/der" -out "$dir/tail"
printf '{"schema_version":"1.0.0","header":{"kid":"%s","alg":"dir","enc":"CKM_RSA_AES_KEY_WRAP"},"ciphertext":"%s","generator":"openssl"}' \
  "$kid" "$(cat "$dir/head" "$dir/tail" | base64 -w0 | tr '+/' '-_' | tr -d =)"
