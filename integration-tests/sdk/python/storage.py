"""azure-storage-blob's client-side encryption with its key in Custody, against Azurite (AZURITE: its program).

The environment says it as in keys.py.
"""

import os
import subprocess
import sys
import traceback

from azure.core.exceptions import HttpResponseError
from azure.identity import ClientSecretCredential
from azure.keyvault.keys import KeyClient
from azure.keyvault.keys.crypto import CryptographyClient, KeyWrapAlgorithm
from azure.storage.blob import BlobServiceClient

VAULT = os.environ["CUSTODY_VAULT_URL"]
AUTHORITY = os.environ["CUSTODY_AUTHORITY"]
# The account that every Azurite knows.
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class KeyEncryptionKey:
    """What the storage client asks of a key: four methods over the key's client."""

    def __init__(self, client):
        self.client = client

    def get_kid(self):
        return self.client.key_id

    def get_key_wrap_algorithm(self):
        return KeyWrapAlgorithm.rsa_oaep_256

    def wrap_key(self, key):
        return self.client.wrap_key(KeyWrapAlgorithm.rsa_oaep_256, key).encrypted_key

    def unwrap_key(self, key, algorithm):
        return self.client.unwrap_key(KeyWrapAlgorithm(algorithm), key).key


def azurite():
    command = ["node", os.environ["AZURITE"], "--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence"]
    command += ["--skipApiVersionCheck", "--disableTelemetry"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=os.environ["TEST_DIR"])
    for line in process.stdout:
        if "successfully listens on http" in line or "successfully listening at http" in line:
            return process, line.strip().rsplit(" ", 1)[1]
    sys.exit("Azurite did not start")


def credential(client, secret):
    return ClientSecretCredential("adfs", client, secret, authority=AUTHORITY)


keys = KeyClient(VAULT, credential("officer", os.environ["OFFICER_SECRET"]))
key = keys.create_rsa_key("blobs", size=2048)
kek = KeyEncryptionKey(CryptographyClient(key.id, credential(os.environ["APP_ID"], os.environ["APP_SECRET"])))
process, url = azurite()
try:
    service = BlobServiceClient(f"{url}/{ACCOUNT}", credential=ACCOUNT_KEY)
    service.create_container("container")
    plain = b"a planted string, many times; " * 100_000
    blob = service.get_blob_client("container", "blob")
    blob.require_encryption, blob.encryption_version, blob.key_encryption_key = True, "2.0", kek
    blob.upload_blob(plain)
    raw = service.get_blob_client("container", "blob").download_blob().readall()
    assert b"planted" not in raw and len(raw) > len(plain), "ciphertext at rest"
    assert blob.download_blob().readall() == plain, "the owner of the key reads it"
    keys.update_key_properties("blobs", enabled=False)
    try:
        blob.download_blob().readall()
        raise SystemExit("a disabled key opened a blob")
    except HttpResponseError:
        # The client says that it could not decrypt; what the vault said is the cause.
        assert "SUSPENDED" in traceback.format_exc()
finally:
    process.kill()
print("3 checks passed")
