"""Transfer files as Azure's customers make them ("Bring your own key specification"). See keys.py and bad_days.py."""

import base64
import json
import os

from cryptography.hazmat.primitives import hashes, keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa


def wrap(exchange, target):
    """`target`, a private key, wrapped for `exchange`, a KeyVaultKey."""
    pkcs8 = target.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = rsa.RSAPublicNumbers(65537, int.from_bytes(exchange.key.n, "big")).public_key()
    aes = os.urandom(32)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)
    return public.encrypt(aes, oaep) + keywrap.aes_key_wrap_with_padding(aes, pkcs8)


def transfer_file(kid, ciphertext, enc="CKM_RSA_AES_KEY_WRAP"):
    """The file."""
    ciphertext = base64.urlsafe_b64encode(ciphertext).rstrip(b"=").decode()
    header = {"kid": kid, "alg": "dir", "enc": enc}
    content = {"schema_version": "1.0.0", "header": header, "ciphertext": ciphertext, "generator": "test"}
    return json.dumps(content).encode()
