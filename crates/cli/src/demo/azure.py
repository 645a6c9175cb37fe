"""A program for Azure Key Vault, as any other: nothing in it knows of Custody."""

import os

from azure.core.exceptions import HttpResponseError
from azure.identity import EnvironmentCredential
from azure.keyvault.keys import KeyClient
from azure.keyvault.keys.crypto import KeyWrapAlgorithm

keys = KeyClient(os.environ["VAULT_URL"], EnvironmentCredential())
try:
    key = keys.get_key("invoices")
    client = keys.get_cryptography_client(key.name, key_version=key.properties.version)
    data_key = os.urandom(32)
    wrapped = client.wrap_key(KeyWrapAlgorithm.rsa_oaep_256, data_key)
    opened = client.unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, wrapped.encrypted_key)
    assert opened.key == data_key
    print("opened with", opened.key_id)
except HttpResponseError as refused:
    print("refused:", refused.status_code, refused.error.code)
