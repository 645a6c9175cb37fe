//! RSA key-encryption keys: the only user of rsa.
