"""MongoDB's libmongocrypt with a customer master key in Custody: client-side field level encryption, without a server.

The environment says it as in keys.py. libmongocrypt asks for a token first and never waits for a challenge.
"""

import os
import socket
import ssl
from urllib.parse import urlsplit

import bson
from bson.binary import STANDARD
from bson.codec_options import CodecOptions
from azure.identity import ClientSecretCredential
from azure.keyvault.keys import KeyClient
from pymongocrypt.errors import MongoCryptError
from pymongocrypt.options import DataKeyOpts, MongoCryptOptions
from pymongocrypt.synchronous.explicit_encrypter import ExplicitEncrypter
from pymongocrypt.synchronous.state_machine import MongoCryptCallback

VAULT = os.environ["CUSTODY_VAULT_URL"]
AUTHORITY = os.environ["CUSTODY_AUTHORITY"]
TLS = ssl.create_default_context(cafile=os.environ["REQUESTS_CA_BUNDLE"])
CODEC = CodecOptions(uuid_representation=STANDARD)


class Callback(MongoCryptCallback):
    """The key vault collection is a dictionary; requests to the KMS go over TLS."""

    def __init__(self):
        self.data_keys = {}

    def kms_request(self, context):
        host, _, port = context.endpoint.partition(":")
        with TLS.wrap_socket(socket.create_connection((host, int(port or 443))), server_hostname=host) as stream:
            stream.sendall(context.message)
            while context.bytes_needed > 0:
                received = stream.recv(context.bytes_needed)
                assert received, "the connection ended"
                context.feed(received)

    def insert_data_key(self, data_key):
        document = bson.decode(data_key.raw if hasattr(data_key, "raw") else data_key, CODEC)
        self.data_keys[document["_id"]] = bson.encode(document, codec_options=CODEC)
        return bson.Binary.from_uuid(document["_id"])

    def fetch_keys(self, filter):
        yield from self.data_keys.values()

    def bson_encode(self, document):
        return bson.encode(document, codec_options=CODEC)

    def collection_info(self, database, filter):
        return None

    def mark_command(self, database, command):
        return command

    def close(self):
        pass


callback = Callback()


def encrypter(secret):
    providers = {
        "azure": {
            "tenantId": "custody",
            "clientId": os.environ["APP_ID"],
            "clientSecret": secret,
            # A host and a port; the host must have a dot.
            "identityPlatformEndpoint": "127.0.0.1:" + str(urlsplit(AUTHORITY).port),
        }
    }
    return ExplicitEncrypter(callback, MongoCryptOptions(providers, bypass_encryption=True))


officer = ClientSecretCredential("adfs", "officer", os.environ["OFFICER_SECRET"], authority=AUTHORITY)
key = KeyClient(VAULT, officer).create_rsa_key("mongodb", size=2048)
master = {
    "keyVaultEndpoint": urlsplit(VAULT).netloc,
    "keyName": "mongodb",
    # A rotated key still opens what its older version wrapped, if that is named.
    "keyVersion": key.properties.version,
}
client = encrypter(os.environ["APP_SECRET"])
data_key = client.create_data_key("azure", master)
field = bson.encode({"v": "4111-1111"})
sealed = client.encrypt(field, "AEAD_AES_256_CBC_HMAC_SHA_512-Random", key_id=data_key)
assert b"4111" not in bytes(sealed)
KeyClient(VAULT, officer).rotate_key("mongodb")
opened = encrypter(os.environ["APP_SECRET"]).decrypt(sealed)
assert bson.decode(opened)["v"] == "4111-1111"
KeyClient(VAULT, officer).update_key_properties("mongodb", key.properties.version, enabled=False)
for secret in [os.environ["APP_SECRET"], "not-the-secret"]:
    try:
        encrypter(secret).decrypt(sealed)
        raise SystemExit("what a disabled key protects was opened, or a wrong secret was taken")
    except MongoCryptError as e:
        print("refused:", str(e)[:120])
print("4 checks passed")
