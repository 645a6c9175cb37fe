"""What Azure's SDK raises on a bad day of the vault: throttled; and keys in an HSM. See keys.py."""

import os
import socket
import time

from azure.core.exceptions import HttpResponseError
from azure.identity import ClientSecretCredential
from azure.keyvault.keys import KeyClient, KeyType

resolve = socket.getaddrinfo
socket.getaddrinfo = lambda host, *rest, **named: resolve(
    "127.0.0.1" if isinstance(host, str) and host.endswith(".localhost") else host, *rest, **named
)
url, authority = os.environ["CUSTODY_VAULT_URL"], os.environ["CUSTODY_AUTHORITY"]


def client(**options):
    credential = ClientSecretCredential("adfs", "officer", os.environ["OFFICER_SECRET"], authority=authority)
    return KeyClient(url, credential, **options)


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
time.sleep(1)
refused(403, "OperationNotAllowed", lambda: alone.backup_key("inside"))
print(f"{checks} checks passed")
