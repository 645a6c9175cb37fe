"""Azure's own clients against Custody, unmodified: what they must be told is where it is, whom to trust, who one is.

The environment says it: CUSTODY_VAULT_URL, CUSTODY_AUTHORITY, REQUESTS_CA_BUNDLE, OFFICER_SECRET, APP_ID, APP_SECRET;
and PYTHONPATH names a directory that makes names below `localhost` known (`crates/cli/src/demo/names`).
"""

import hashlib
import inspect
import os

from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
    ServiceRequestError,
)
from azure.core.rest import HttpRequest
from azure.identity import ClientSecretCredential
from azure.keyvault.keys import (
    ApiVersion,
    JsonWebKey,
    KeyClient,
    KeyCurveName,
    KeyOperation,
    KeyRotationLifetimeAction,
    KeyRotationPolicy,
    KeyRotationPolicyAction,
    KeyType,
)
from azure.keyvault.keys.crypto import (
    CryptographyClient,
    EncryptionAlgorithm,
    KeyWrapAlgorithm,
    SignatureAlgorithm,
)
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from transfer import transfer_file, wrap

# Every method of both clients must be called: what a later SDK adds fails here until it has its check.
called = set()


def record(client):
    methods = {n for n, m in inspect.getmembers_static(client, inspect.isfunction) if not n.startswith("_")}
    for name in methods:
        def recorded(*rest, _name=name, _method=getattr(client, name), **named):
            called.add((client, _name))
            return _method(*rest, **named)
        setattr(client, name, recorded)
    return {(client, name) for name in methods}


METHODS = record(KeyClient) | record(CryptographyClient)
VAULT = os.environ["CUSTODY_VAULT_URL"]
AUTHORITY = os.environ["CUSTODY_AUTHORITY"]
CHECKS = 0


def check(holds, what):
    global CHECKS
    assert holds, what
    CHECKS += 1


def refused(kind, text, act):
    """`act` must raise exactly this kind of error, with this text in its message."""
    try:
        act()
    except kind as e:
        check(text in str(e), f"expected {text!r} in: {e}")
        return e
    raise AssertionError(f"{kind.__name__} with {text!r} was expected")


def credential(client, secret):
    # The tenant `adfs` makes MSAL ask no server of Microsoft's whether it knows the authority.
    return ClientSecretCredential("adfs", client, secret, authority=AUTHORITY)


officer = credential("officer", os.environ["OFFICER_SECRET"])
app = credential(os.environ["APP_ID"], os.environ["APP_SECRET"])
keys = KeyClient(VAULT, officer)


def crypto(key):
    return CryptographyClient(key, app)


def life_of_a_key():
    made = keys.create_rsa_key("Payroll-1", size=2048, tags={"team": "hr"}, enabled=True)
    check(made.name == "payroll-1" and made.key_type == KeyType.rsa, "names have no case")
    check(made.id.startswith(VAULT + "/keys/payroll-1/"), made.id)
    check(made.properties.tags == {"team": "hr"}, "tags")
    check(made.properties.recovery_level == "CustomizedRecoverable+Purgeable", made.properties.recovery_level)
    check(made.properties.recoverable_days == 7, "days")
    check(len(made.key.n) == 256 and made.key.e == b"\x01\x00\x01", "the public half")
    check(list(made.key_operations) == ["encrypt", "decrypt", "sign", "verify", "wrapKey", "unwrapKey"], "key_ops")
    again = keys.create_rsa_key("payroll-1", size=3072)
    check(again.properties.version != made.properties.version, "Azure's way: a new version")
    check(keys.get_key("payroll-1").id == again.id, "the current version")
    check(keys.get_key("payroll-1", made.properties.version).id == made.id, "a version by id")
    rotated = keys.rotate_key("payroll-1")
    check(len(rotated.key.n) == 384, "of the same size")
    versions = {v.version for v in keys.list_properties_of_key_versions("payroll-1")}
    check(versions == {made.properties.version, again.properties.version, rotated.properties.version}, versions)
    changed = keys.update_key_properties(
        "payroll-1", key_operations=[KeyOperation.wrap_key, KeyOperation.unwrap_key], tags={}, enabled=True
    )
    check(list(changed.key_operations) == ["wrapKey", "unwrapKey"] and not changed.properties.tags, "changed")
    refused(ResourceNotFoundError, "KeyNotFound", lambda: keys.get_key("nothing-here"))
    refused(HttpResponseError, "2048, 3072 or 4096", lambda: keys.create_rsa_key("small", size=1024))
    refused(HttpResponseError, "HSM", lambda: keys.create_rsa_key("hard", hardware_protected=True))
    refused(HttpResponseError, "HSM", lambda: keys.create_oct_key("oct"))


def deletion():
    keys.create_ec_key("short-lived", curve=KeyCurveName.p_256)
    backup = keys.backup_key("short-lived")
    refused(HttpResponseError, "Conflict", lambda: keys.restore_key_backup(backup))
    deleted = keys.begin_delete_key("short-lived").result()
    check(deleted.recovery_id == VAULT + "/deletedkeys/short-lived", deleted.recovery_id)
    check((deleted.scheduled_purge_date - deleted.deleted_date).days == 7, "purge date")
    refused(ResourceNotFoundError, "KeyNotFound", lambda: keys.get_key("short-lived"))
    check(keys.get_deleted_key("short-lived").name == "short-lived", "a deleted key is shown")
    check("short-lived" in {k.name for k in keys.list_deleted_keys()}, "and listed")
    refused(ResourceExistsError, "ObjectIsDeletedButRecoverable", lambda: keys.create_ec_key("short-lived"))
    recovered = keys.begin_recover_deleted_key("short-lived").result()
    check(recovered.name == "short-lived", "recovered")
    keys.begin_delete_key("short-lived").wait()
    keys.purge_deleted_key("short-lived")
    refused(ResourceNotFoundError, "Deleted Key not found", lambda: keys.get_deleted_key("short-lived"))
    restored = keys.restore_key_backup(backup)
    check(restored.id == recovered.id, "the very same version is back")
    refused(HttpResponseError, "not a backup", lambda: keys.restore_key_backup(b"rubbish"))
    altered = backup[:-1] + bytes([backup[-1] ^ 1])
    refused(HttpResponseError, "altered", lambda: keys.restore_key_backup(altered))


def pages():
    for n in range(30):
        keys.create_ec_key(f"page-{n:02}")
    listed = [k.name for k in keys.list_properties_of_keys() if k.name.startswith("page-")]
    check(listed == sorted(listed) and len(listed) == 30, listed)
    by_three = list(keys.list_properties_of_keys(max_page_size=3).by_page())
    check(len(list(next(iter(by_three)))) == 3 and len(by_three) > 10, "pages of three")


def policies():
    key = keys.create_key("aging", KeyType.rsa, size=2048)
    default = keys.get_key_rotation_policy("aging")
    check([a.action for a in default.lifetime_actions] == [KeyRotationPolicyAction.notify], default.lifetime_actions)
    check(default.lifetime_actions[0].time_before_expiry == "P30D" and default.expires_in is None, "the default")
    rotate = KeyRotationLifetimeAction(KeyRotationPolicyAction.rotate, time_after_create="P90D")
    notify = KeyRotationLifetimeAction(KeyRotationPolicyAction.notify, time_before_expiry="P40D")
    policy = KeyRotationPolicy(lifetime_actions=[rotate, notify], expires_in="P2Y")
    set_ = keys.update_key_rotation_policy("aging", policy)
    check(set_.expires_in == "P2Y" and set_.created_on and set_.updated_on, "as it was set")
    check(set_.id == VAULT + "/keys/aging/rotationpolicy", set_.id)
    got = {KeyRotationPolicyAction(a.action).value: a for a in keys.get_key_rotation_policy("aging").lifetime_actions}
    check(got[KeyRotationPolicyAction.rotate.value].time_after_create == "P90D" and got[KeyRotationPolicyAction.notify.value].time_before_expiry == "P40D", got)
    rotated = keys.rotate_key("aging")
    life = rotated.properties.expires_on - rotated.properties.created_on
    check(729 <= life.days <= 731, f"new versions expire by the policy: {life}")
    check(keys.get_key("aging", key.properties.version).properties.expires_on is None, "older ones do not change")
    for bad in ["P6D", "90 days", "PT1H"]:
        rotate.time_after_create = bad
        refused(HttpResponseError, "timeAfterCreate" if bad != "P6D" else "P7D",
                lambda: keys.update_key_rotation_policy("aging", KeyRotationPolicy(lifetime_actions=[rotate])))
    refused(HttpResponseError, "P28D",
            lambda: keys.update_key_rotation_policy("aging", KeyRotationPolicy(lifetime_actions=[], expires_in="P1D")))
    cleared = keys.update_key_rotation_policy("aging", KeyRotationPolicy(lifetime_actions=[]))
    check(cleared.expires_in is None and len(cleared.lifetime_actions) == 1, "cleared")
    refused(ResourceNotFoundError, "does not exist", lambda: keys.get_key_rotation_policy("nothing-here"))


def randomness():
    one, other = keys.get_random_bytes(32), keys.get_random_bytes(32)
    check(len(one) == 32 and one != other, "random")
    refused(HttpResponseError, "1 to 128", lambda: keys.get_random_bytes(129))


def transfer():
    """Bring your own key: the private half travels wrapped for a key exchange key of the vault."""
    exchange = keys.create_rsa_key("exchange", size=3072, key_operations=[KeyOperation.import_key])
    check(list(exchange.key_operations) == ["import"], exchange.key_operations)
    refused(HttpResponseError, "key_ops",
            lambda: crypto(exchange.id).unwrap_key(KeyWrapAlgorithm.rsa_oaep, b"x" * 384))
    target = rsa.generate_private_key(65537, 2048)
    wrapped = wrap(exchange, target)

    def file(kid=exchange.id, ciphertext=wrapped, enc="CKM_RSA_AES_KEY_WRAP"):
        content = transfer_file(kid, ciphertext, enc)
        return JsonWebKey(kty="RSA", t=content, key_ops=["sign", "verify"])

    brought = keys.import_key("transferred", file())
    check(brought.key.n == numbers(target.public_key().public_numbers().n), "the very key")
    digest = hashlib.sha256(b"message").digest()
    signed = crypto(brought.id).sign(SignatureAlgorithm.ps256, digest).signature
    target.public_key().verify(
        signed, b"message", padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
    check(True, "and it signs")
    altered = wrapped[:-1] + bytes([wrapped[-1] ^ 1])
    refused(HttpResponseError, "does not open", lambda: keys.import_key("t2", file(ciphertext=altered)))
    refused(HttpResponseError, "does not open", lambda: keys.import_key("t2", file(ciphertext=b"short")))
    refused(HttpResponseError, "CKM_RSA_AES_KEY_WRAP", lambda: keys.import_key("t2", file(enc="other")))
    elsewhere = exchange.id.replace("//sdk.", "//other.")
    mistaken = JsonWebKey(kty="EC", t=transfer_file(exchange.id, wrapped))
    refused(HttpResponseError, "another kind than was said: RSA", lambda: keys.import_key("t2", mistaken))
    refused(HttpResponseError, "same vault", lambda: keys.import_key("t2", file(kid=elsewhere)))
    refused(HttpResponseError, "key_ops", lambda: keys.import_key("t2", file(kid=brought.id)))
    refused(HttpResponseError, "stands alone", lambda: keys.create_rsa_key(
        "t3", size=2048, key_operations=[KeyOperation.import_key, KeyOperation.sign]))
    refused(ResourceNotFoundError, "KeyNotFound", lambda: keys.get_key("t2"))


def the_rest():
    """What the other stories had no use for."""
    client = keys.get_cryptography_client("user")
    check(client.key_id.endswith("/keys/user"), client.key_id)
    client = crypto(keys.get_key("user").id)
    private, public = client.create_rsa_private_key(), client.create_rsa_public_key()
    signed = private.sign(b"message", padding.PKCS1v15(), hashes.SHA256())
    public.verify(signed, b"message", padding.PKCS1v15(), hashes.SHA256())
    check(private.key_size == 2048, "as a private key of `cryptography`")
    local = CryptographyClient.from_jwk(keys.get_key("user").key)
    digest = hashlib.sha256(b"message").digest()
    check(local.verify(SignatureAlgorithm.rs256, digest, signed).is_valid, "without the vault")
    listed = keys.send_request(HttpRequest("GET", "keys"))
    check(listed.status_code == 200 and listed.json()["value"], "a request by hand")
    got = client.send_request(HttpRequest("GET", "keys/user"))
    check(got.status_code == 200, "and by the other client")
    client.verify(SignatureAlgorithm.rs256, digest, signed)
    refused(HttpResponseError, "not exportable", lambda: keys.release_key("user", "target"))
    refused(HttpResponseError, "HSM", lambda: keys.get_key_attestation("user"))
    refused(ServiceRequestError, "", lambda: KeyClient(
        "https://sdk.vault.localhost:1", officer, retry_total=0).get_key("user"))


def numbers(n, length=None):
    return n.to_bytes(length or (n.bit_length() + 7) // 8, "big")


def imports():
    private = rsa.generate_private_key(65537, 2048)
    p = private.private_numbers()
    jwk = JsonWebKey(
        kty="RSA", n=numbers(p.public_numbers.n), e=b"\x01\x00\x01", d=numbers(p.d), p=numbers(p.p), q=numbers(p.q),
        dp=numbers(p.dmp1), dq=numbers(p.dmq1), qi=numbers(p.iqmp), key_ops=["sign", "verify"],
    )
    brought = keys.import_key("brought", jwk)
    check(brought.key.n == numbers(p.public_numbers.n) and list(brought.key_operations) == ["sign", "verify"], "rsa")
    jwk.n = numbers(p.public_numbers.n + 2)
    refused(HttpResponseError, "inconsistent", lambda: keys.import_key("wrong", jwk))
    point = ec.generate_private_key(ec.SECP384R1()).private_numbers()
    jwk = JsonWebKey(
        kty="EC", crv="P-384", d=numbers(point.private_value, 48),
        x=numbers(point.public_numbers.x, 48), y=numbers(point.public_numbers.y, 48),
    )
    check(keys.import_key("brought-ec", jwk).key.x == numbers(point.public_numbers.x, 48), "ec")


def cryptography():
    key = keys.create_rsa_key("user", size=2048)
    client = crypto(key.id)
    for algorithm in [KeyWrapAlgorithm.rsa_oaep_256, KeyWrapAlgorithm.rsa_oaep]:
        wrapped = client.wrap_key(algorithm, b"k" * 32)
        check(client.unwrap_key(algorithm, wrapped.encrypted_key).key == b"k" * 32, algorithm)
        altered = wrapped.encrypted_key[:-1] + bytes([wrapped.encrypted_key[-1] ^ 1])
        refused(HttpResponseError, "does not open", lambda: client.unwrap_key(algorithm, altered))
    for algorithm in [EncryptionAlgorithm.rsa_oaep_256, EncryptionAlgorithm.rsa_oaep]:
        sealed = client.encrypt(algorithm, b"small")
        check(client.decrypt(algorithm, sealed.ciphertext).plaintext == b"small", algorithm)
    refused(HttpResponseError, "RSA1_5", lambda: client.decrypt(EncryptionAlgorithm.rsa1_5, b"x" * 256))
    digests = {"256": hashlib.sha256, "384": hashlib.sha384, "512": hashlib.sha512}
    for name in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]:
        algorithm, digest = SignatureAlgorithm(name), digests[name[2:]](b"message").digest()
        signed = client.sign(algorithm, digest)
        # The SDK verifies with the public half by itself; what the vault signed must hold there.
        check(client.verify(algorithm, digest, signed.signature).is_valid, name)
        check(not client.verify(algorithm, digest[::-1], signed.signature).is_valid, name)
    for curve, name, hashed in [
        (KeyCurveName.p_256, "ES256", hashlib.sha256),
        (KeyCurveName.p_384, "ES384", hashlib.sha384),
        (KeyCurveName.p_521, "ES512", hashlib.sha512),
        (KeyCurveName.p_256_k, "ES256K", hashlib.sha256),
    ]:
        client = crypto(keys.create_ec_key("ec-" + curve.value.lower(), curve=curve).id)
        algorithm, digest = SignatureAlgorithm(name), hashed(b"message").digest()
        signed = client.sign(algorithm, digest)
        check(client.verify(algorithm, digest, signed.signature).is_valid, name)
    # A client that was given no key asks the vault for everything, also what it could do by itself.
    named = CryptographyClient(VAULT + "/keys/user", app)
    check(named.unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, named.wrap_key(
        KeyWrapAlgorithm.rsa_oaep_256, b"k" * 16).encrypted_key).key == b"k" * 16, "without a version")


def states():
    key = keys.create_rsa_key("switched", size=2048)
    client = crypto(key.id)
    wrapped = client.wrap_key(KeyWrapAlgorithm.rsa_oaep_256, b"k" * 32).encrypted_key
    keys.update_key_properties("switched", enabled=False)
    e = refused(HttpResponseError, "SUSPENDED", lambda: client.unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, wrapped))
    check(e.status_code == 403 and "KeyDisabled" in str(e.model.as_dict() if e.model else e.response.text()), "403")
    check(keys.get_key("switched").properties.enabled is False, "a disabled key is shown")
    keys.update_key_properties("switched", enabled=True, key_operations=[KeyOperation.wrap_key])
    refused(HttpResponseError, "key_ops", lambda: crypto(key.id).unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, wrapped))


def strangers():
    as_app = KeyClient(VAULT, app)
    refused(HttpResponseError, "not authorized", lambda: as_app.create_rsa_key("mine"))
    as_officer = CryptographyClient(keys.get_key("user").id, officer)
    refused(HttpResponseError, "not authorized", lambda: as_officer.unwrap_key(KeyWrapAlgorithm.rsa_oaep, b"x" * 256))
    # Every answer says under which number the trail has it, a refusal too.
    e = refused(HttpResponseError, "not authorized", lambda: as_app.begin_delete_key("user"))
    print("refused as record", e.response.headers["custody-audit-sequence"])
    wrong = KeyClient(VAULT, credential("officer", "not-the-secret"))
    refused(ClientAuthenticationError, "AADSTS7000215", lambda: wrong.get_key("user"))
    elsewhere = KeyClient(VAULT.replace("//sdk.", "//elsewhere."), officer)
    refused(HttpResponseError, "not authorized", lambda: elsewhere.get_key("user"))


def versions_of_the_api():
    for version in [ApiVersion.V7_6, ApiVersion.V7_5, ApiVersion.V7_4, ApiVersion.V7_3, ApiVersion.V7_2, ApiVersion.V7_1]:
        check(KeyClient(VAULT, officer, api_version=version).get_key("user").name == "user", version)
    old = KeyClient(VAULT, officer, api_version=ApiVersion.V2016_10_01)
    refused(HttpResponseError, "api-version", lambda: old.get_key("user"))


for story in [
    life_of_a_key, deletion, imports, cryptography, states, policies, randomness, transfer, strangers,
    versions_of_the_api, pages, the_rest,
]:
    story()
keys.get_cryptography_client("user").close()
keys.close()
missed = METHODS - called
check(not missed, f"never called: {missed}")
print(f"{CHECKS} checks passed")
