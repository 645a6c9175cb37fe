"""What Azure's SDK raises on a bad day of the vault: throttled; and keys in an HSM. See keys.py."""

import hashlib
import os
import time

from azure.core.exceptions import HttpResponseError
from azure.identity import ClientSecretCredential
from azure.keyvault.keys import JsonWebKey, KeyClient, KeyOperation, KeyType
from azure.keyvault.keys.crypto import CryptographyClient, SignatureAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from transfer import transfer_file, wrap

url, authority = os.environ["CUSTODY_VAULT_URL"], os.environ["CUSTODY_AUTHORITY"]


def credential(who, secret):
    return ClientSecretCredential("adfs", who, os.environ[secret], authority=authority)


def client(**options):
    return KeyClient(url, credential("officer", "OFFICER_SECRET"), **options)


checks = 0


def check(holds, what):
    global checks
    assert holds, what
    checks += 1


def refused(status, code, act):
    try:
        act()
    except HttpResponseError as e:
        check(e.status_code == status and code in str(e.error), f"expected {status} {code}: {e.status_code} {e}")
        return e
    raise AssertionError(f"{status} {code} was expected")


# A key may be asked three times a second. Without retries of its own the SDK says so; with them it waits and succeeds.
alone = client(retry_total=0)
alone.create_rsa_key("busy")


def ask_too_often():
    for _ in range(20):
        alone.get_key("busy")


throttled = refused(429, "Throttled", ask_too_often)
check(int(throttled.response.headers["Retry-After"]) >= 1, "how long to wait is said in whole seconds")
patient = client()
began = time.monotonic()
for _ in range(6):
    check(patient.get_key("busy").name == "busy", "the SDK waits as it is told")
check(time.monotonic() - began >= 1, "it was made to wait")

# In an HSM: made by the SDK's own words.
inside = alone.create_rsa_key("inside", hardware_protected=True)
check(inside.key_type == KeyType.rsa_hsm, f"an RSA-HSM key: {inside.key_type}")
check(alone.create_ec_key("curve", hardware_protected=True).key_type == KeyType.ec_hsm, "an EC-HSM key")

# Brought from outside, and unwrapped inside: an RSA key and an EC key.
exchange = patient.create_rsa_key(
    "exchange", size=3072, hardware_protected=True, key_operations=[KeyOperation.import_key])
app = credential(os.environ["APP_ID"], "APP_SECRET")
digest = hashlib.sha256(b"message").digest()
for name, kty, target, algorithm in [
    ("rsa", "RSA-HSM", rsa.generate_private_key(65537, 2048), SignatureAlgorithm.rs256),
    ("ec", "EC-HSM", ec.generate_private_key(ec.SECP256R1()), SignatureAlgorithm.es256),
]:
    file = transfer_file(exchange.id, wrap(exchange, target))
    brought = patient.import_key(f"brought-{name}", JsonWebKey(kty=kty, t=file, key_ops=["sign", "verify"]))
    check(brought.key_type == kty, f"it is in the HSM: {brought.key_type}")
    signature = CryptographyClient(brought.id, app).sign(algorithm, digest).signature
    if name == "rsa":
        target.public_key().verify(signature, b"message", padding.PKCS1v15(), hashes.SHA256())
    else:
        r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
        target.public_key().verify(encode_dss_signature(r, s), b"message", ec.ECDSA(hashes.SHA256()))
    check(True, "it is the very key")
time.sleep(1)
refused(403, "OperationNotAllowed", lambda: alone.backup_key("inside"))
print(f"{checks} checks passed")
