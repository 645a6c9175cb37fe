"""Azure's SDK against a vault that misbehaves by a profile, named in the first argument. See keys.py."""

import os
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from azure.core.exceptions import HttpResponseError, ServiceRequestError, ServiceResponseError
from azure.identity import ClientSecretCredential
from azure.keyvault.keys import KeyClient

url, authority = os.environ["CUSTODY_VAULT_URL"], os.environ["CUSTODY_AUTHORITY"]
profile = sys.argv[1]
checks = 0


def client(who="officer", **options):
    secret = os.environ[f"{who.upper()}_SECRET"]
    credential = ClientSecretCredential("adfs", who, secret, authority=authority)
    return KeyClient(url, credential, **options)


def check(holds, what):
    global checks
    assert holds, what
    checks += 1


def fails(status, code, act):
    """The answer of an act that fails so, or none."""
    try:
        act()
    except HttpResponseError as e:
        if e.status_code == status and code in str(e.error):
            return e
        raise
    return None


alone = client(retry_total=0)
patient = client(retry_total=12, retry_status=12, retry_backoff_factor=0.1)


def fill(limit, make):
    """Makes keys until the window is full; the first window may be half over."""
    for n in range(3 * limit):
        throttled = fails(429, "Throttled", lambda: make(n))
        if throttled:
            return n, throttled
    raise AssertionError(f"never throttled in {3 * limit} keys")


def throttles(limit, make):
    _, throttled = fill(limit, make)
    time.sleep(int(throttled.response.headers["Retry-After"]))
    # In a window that began less than a second ago.
    made, throttled = fill(limit, lambda n: make(100 + n))
    check(limit <= made < 2 * limit, f"{limit} keys a window: {made}")
    after = int(throttled.response.headers["Retry-After"])
    check(1 <= after <= 10, f"the end of the window: {after} s")
    began = time.monotonic()
    patient.create_ec_key("patient")
    check(time.monotonic() - began < 25, "the SDK waits as it is told, and is served")


def delays():
    """Deletion and recovery take their time, as the SDK's pollers expect."""
    began = time.monotonic()
    patient.create_ec_key("slow")
    poller = patient.begin_delete_key("slow")
    check(fails(404, "KeyNotFound", lambda: alone.get_deleted_key("slow")), "not deleted yet")
    check(fails(409, "ObjectIsBeingDeleted", lambda: alone.purge_deleted_key("slow")), "not purged meanwhile")
    poller.wait()
    check(alone.get_deleted_key("slow").name == "slow", "and it is seen then")
    recovery = patient.begin_recover_deleted_key("slow")
    check(fails(404, "KeyNotFound", lambda: alone.get_key("slow")), "not recovered yet")
    recovery.wait()
    check(alone.get_key("slow").name == "slow", "and is seen again")
    check(time.monotonic() - began >= 16, "each took eight seconds or more")


def azure_standard():
    # One's role was taken away before this program began, the other's was given; neither change has come through.
    check(client("app", retry_total=0).get_key("known").name == "known", "a role that is gone still counts")
    newcomer = client("newcomer", retry_total=0)
    check(fails(403, "ForbiddenByRbac", lambda: newcomer.get_key("known")), "a role that is new does not")
    throttles(20, lambda n: alone.create_ec_key(f"k{n}"))
    delays()
    # Calls take some time each: fifty of a median of 12 ms.
    began = time.monotonic()
    for _ in range(50):
        patient.get_key("slow")
    check(time.monotonic() - began > 0.3, "calls take their time")


def azure_premium():
    throttles(10, lambda n: alone.create_ec_key(f"h{n}", hardware_protected=True))


def bad_day():
    patient.create_rsa_key("busy", size=2048)
    before = patient.get_key("busy").properties.version
    rotated = patient.rotate_key("busy").properties.version
    until = time.monotonic() + 34

    def ask(_):
        short = client(retry_total=0, connection_timeout=2, read_timeout=2)
        seen, versions = Counter(), set()
        while time.monotonic() < until:
            try:
                versions.add(short.get_key("busy").properties.version)
                seen["answered"] += 1
            except (ServiceRequestError, ServiceResponseError):
                seen["no answer"] += 1
            except HttpResponseError as e:
                assert e.status_code in (404, 429, 503), f"no failure of the profile: {e}"
                seen[e.status_code] += 1
        return seen, versions

    seen, versions = Counter(), set()
    with ThreadPoolExecutor(8) as callers:
        for counted, found in callers.map(ask, range(8)):
            seen += counted
            versions |= found
    for what in ("answered", "no answer", 429, 503):
        check(seen.get(what, 0) > 0, f"{what} was never seen: {seen}")
    check(seen["answered"] > 300, f"many are answered: {seen}")
    check(versions == {before, rotated}, "for a time after a rotation some find the version before")
    # All the while, whoever tries again is served: through throttles, bursts, a lost region and tokens of 20 s.
    began = time.monotonic()
    while time.monotonic() - began < 25:
        check(patient.get_key("busy").properties.version == rotated, "and then all find the new one")
        time.sleep(0.2)


{"azure-standard": azure_standard, "azure-premium": azure_premium, "bad-day": bad_day}[profile]()
print(f"{checks} checks passed")
