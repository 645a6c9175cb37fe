//! Keys in the token, each under an id that its maker chose.

use crate::{Token, TokenError, connection::Connection};
use cryptoki::{
    error::{Error, RvError},
    mechanism::{
        Mechanism, MechanismType,
        rsa::{PkcsMgfType, PkcsPssParams},
    },
    object::{Attribute, AttributeType, KeyType as CkKeyType, ObjectClass, ObjectHandle},
    session::Session,
};
use custody_types::{Curve, KeyFamily, KeyType, PublicKey, SignatureAlgorithm};
use std::fmt::Write as _;
use zeroize::Zeroizing;

/// DER of `DigestInfo` without the digest (RFC 8017 §9.2 note 1): SHA-256, SHA-384, SHA-512.
pub const DIGEST_INFO: [[u8; 19]; 3] = [
    [
        0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0,
        0x04, 0x20,
    ],
    [
        0x30, 0x41, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0,
        0x04, 0x30,
    ],
    [
        0x30, 0x51, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03, 0x05, 0,
        0x04, 0x40,
    ],
];

/// The curve's object identifier, DER (RFC 5480 §2.1.1.1; secp256k1: SEC 2).
fn oid(curve: Curve) -> &'static [u8] {
    match curve {
        Curve::P256 => &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
        Curve::P256K => &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x0a],
        Curve::P384 => &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22],
        Curve::P521 => &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23],
    }
}

fn hex(id: &[u8]) -> String {
    id.iter().fold(String::new(), |mut text, byte| {
        _ = write!(text, "{byte:02x}");
        text
    })
}

fn malformed() -> TokenError {
    TokenError::Refused("its answer is malformed".to_owned())
}

/// What every private key of ours is: never seen outside, not even wrapped.
fn private_half(id: &[u8], family: KeyFamily) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
        Attribute::Id(id.to_vec()),
        Attribute::Label(format!("custody {}", hex(id)).into_bytes()),
    ];
    if family == KeyFamily::Rsa {
        template.push(Attribute::Decrypt(true));
    }
    template
}

/// The content of a DER OCTET STRING, or the bytes themselves: tokens differ in how they give a point.
fn point(encoded: &[u8], curve: Curve) -> Option<PublicKey> {
    let len = 1 + 2 * curve.coordinate_len();
    let bare = encoded.get(encoded.len().checked_sub(len)?..)?;
    let (4, coordinates) = bare.split_first()? else { return None };
    let (x, y) = coordinates.split_at_checked(curve.coordinate_len())?;
    Some(PublicKey::Ec { crv: curve, x: x.to_vec(), y: y.to_vec() })
}

fn stripped(number: &[u8]) -> Vec<u8> {
    number.iter().copied().skip_while(|byte| *byte == 0).collect()
}

/// Modulus and exponent, which a token gives of either half of an RSA key.
fn rsa_public(session: &Session, key: ObjectHandle) -> Result<PublicKey, TokenError> {
    let wanted = [AttributeType::Modulus, AttributeType::PublicExponent];
    let (mut n, mut e) = (None, None);
    for attribute in session.get_attributes(key, &wanted).map_err(TokenError::of)? {
        match attribute {
            Attribute::Modulus(bytes) => n = Some(stripped(&bytes)),
            Attribute::PublicExponent(bytes) => e = Some(stripped(&bytes)),
            _ => {}
        }
    }
    let (n, e) = n.zip(e).ok_or_else(malformed)?;
    Ok(PublicKey::Rsa { n, e })
}

fn private_key(connection: &Connection, session: &Session, id: &[u8]) -> Result<ObjectHandle, TokenError> {
    connection.handle(id, || {
        let template = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Id(id.to_vec())];
        let found = session.find_objects(&template).map_err(TokenError::of)?;
        found.first().copied().ok_or_else(|| TokenError::NoKey(hex(id)))
    })
}

impl Token {
    /// Makes a key pair in the token; answers its public half. The private half never leaves.
    ///
    /// # Errors
    /// The token is lost, or does not make such keys.
    pub fn generate(&self, kind: KeyType, id: &[u8]) -> Result<PublicKey, TokenError> {
        self.run(|_, session| {
            // The public half is kept by the vault; the token needs it for this session only.
            let mut public =
                vec![Attribute::Token(false), Attribute::Verify(true), Attribute::Id(id.to_vec())];
            let mechanism = match kind {
                KeyType::Rsa(_) => {
                    public.push(Attribute::ModulusBits(u64::from(kind.bits()).into()));
                    public.push(Attribute::PublicExponent(vec![1, 0, 1]));
                    Mechanism::RsaPkcsKeyPairGen
                }
                KeyType::Ec(curve) => {
                    public.push(Attribute::EcParams(oid(curve).to_vec()));
                    Mechanism::EccKeyPairGen
                }
            };
            let (public, _) = session
                .generate_key_pair(&mechanism, &public, &private_half(id, kind.family()))
                .map_err(TokenError::of)?;
            let KeyType::Ec(curve) = kind else { return rsa_public(session, public) };
            let wanted = [AttributeType::EcPoint];
            let encoded = session.get_attributes(public, &wanted).map_err(TokenError::of)?;
            match encoded.as_slice() {
                [Attribute::EcPoint(encoded)] => point(encoded, curve).ok_or_else(malformed),
                _ => Err(malformed()),
            }
        })
    }

    /// Unwraps a private key (PKCS#8 under AES key wrap with padding, RFC 5649) inside the token.
    ///
    /// # Errors
    /// The token is lost, does not know the mechanism, or what is inside is no such key.
    pub fn unwrap_private(
        &self,
        aes_key: &[u8],
        wrapped: &[u8],
        family: KeyFamily,
        id: &[u8],
    ) -> Result<(), TokenError> {
        self.run(|_, session| {
            let transport = [
                Attribute::Class(ObjectClass::SECRET_KEY),
                Attribute::KeyType(CkKeyType::AES),
                Attribute::Token(false),
                Attribute::Private(true),
                Attribute::Sensitive(true),
                Attribute::Extractable(false),
                Attribute::Unwrap(true),
                Attribute::Value(aes_key.to_vec()),
            ];
            let transport = session.create_object(&transport).map_err(TokenError::of)?;
            let mut template = private_half(id, family);
            template.push(Attribute::Class(ObjectClass::PRIVATE_KEY));
            template.push(Attribute::KeyType(match family {
                KeyFamily::Ec => CkKeyType::EC,
                KeyFamily::Rsa => CkKeyType::RSA,
            }));
            let done = session.unwrap_key(&Mechanism::AesKeyWrapPad, transport, wrapped, &template);
            session.destroy_object(transport).map_err(TokenError::of)?;
            done.map(drop).map_err(|e| match &e {
                // SoftHSM's word for what does not open: the caller's failure and not the token's.
                Error::Pkcs11(RvError::GeneralError | RvError::FunctionFailed, _) => {
                    TokenError::Refused(e.to_string())
                }
                _ => TokenError::of(e),
            })
        })
    }

    /// The public half of an RSA key, of which a token knows it from the private one.
    ///
    /// # Errors
    /// The token is lost, or has no such key.
    pub fn rsa_public(&self, id: &[u8]) -> Result<PublicKey, TokenError> {
        self.run(|connection, session| rsa_public(session, private_key(connection, session, id)?))
    }

    /// The curve of an EC key; none where it is one that is not offered.
    ///
    /// # Errors
    /// The token is lost, or has no such key.
    pub fn curve(&self, id: &[u8]) -> Result<Option<Curve>, TokenError> {
        self.run(|connection, session| {
            let key = private_key(connection, session, id)?;
            let said = session.get_attributes(key, &[AttributeType::EcParams]).map_err(TokenError::of)?;
            let [Attribute::EcParams(named)] = said.as_slice() else { return Err(malformed()) };
            Ok(Curve::ALL.into_iter().find(|curve| oid(*curve) == named.as_slice()))
        })
    }

    /// The bare RSA private operation: as many bytes as the modulus has.
    ///
    /// # Errors
    /// The token is lost, or has no such key; or the number is not below the modulus.
    pub fn rsa_raw(&self, id: &[u8], number: &[u8]) -> Result<Zeroizing<Vec<u8>>, TokenError> {
        self.run(|connection, session| {
            let key = private_key(connection, session, id)?;
            let opened = session.decrypt(&Mechanism::RsaX509, key, number).map_err(TokenError::of)?;
            let opened = Zeroizing::new(opened);
            let mut padded = Zeroizing::new(vec![0; number.len().saturating_sub(opened.len())]);
            padded.extend_from_slice(&opened);
            Ok(padded)
        })
    }

    /// Signs a digest: of EC keys r and s, each of full length.
    ///
    /// # Errors
    /// The token is lost, has no such key, or does not sign so.
    pub fn sign(
        &self,
        id: &[u8],
        algorithm: SignatureAlgorithm,
        digest: &[u8],
    ) -> Result<Vec<u8>, TokenError> {
        use SignatureAlgorithm::*;
        let pss = |hash, mgf| {
            let s_len = u64::try_from(digest.len()).unwrap_or_default().into();
            Mechanism::RsaPkcsPss(PkcsPssParams { hash_alg: hash, mgf, s_len })
        };
        let [sha256, sha384, sha512] = DIGEST_INFO;
        let info = |prefix: [u8; 19]| [prefix.as_slice(), digest].concat();
        let (mechanism, data) = match algorithm {
            Es256 | Es256K | Es384 | Es512 => (Mechanism::Ecdsa, digest.to_vec()),
            Ps256 => (pss(MechanismType::SHA256, PkcsMgfType::MGF1_SHA256), digest.to_vec()),
            Ps384 => (pss(MechanismType::SHA384, PkcsMgfType::MGF1_SHA384), digest.to_vec()),
            Ps512 => (pss(MechanismType::SHA512, PkcsMgfType::MGF1_SHA512), digest.to_vec()),
            Rs256 => (Mechanism::RsaPkcs, info(sha256)),
            Rs384 => (Mechanism::RsaPkcs, info(sha384)),
            Rs512 => (Mechanism::RsaPkcs, info(sha512)),
        };
        self.run(|connection, session| {
            let key = private_key(connection, session, id)?;
            session.sign(&mechanism, key, &data).map_err(TokenError::of)
        })
    }

    /// Whether a key's private half could be read or wrapped out, as the token says.
    ///
    /// # Errors
    /// The token is lost, or has no such key.
    pub fn can_leave(&self, id: &[u8]) -> Result<bool, TokenError> {
        self.run(|connection, session| {
            let key = private_key(connection, session, id)?;
            let wanted = [AttributeType::Sensitive, AttributeType::Extractable];
            let said = session.get_attributes(key, &wanted).map_err(TokenError::of)?;
            let stays =
                |a: &Attribute| matches!(a, Attribute::Sensitive(true) | Attribute::Extractable(false));
            Ok(said.len() != wanted.len() || !said.iter().all(stays))
        })
    }

    /// Destroys a key. One that is not there is destroyed already.
    ///
    /// # Errors
    /// The token is lost, or keeps it.
    pub fn destroy(&self, id: &[u8]) -> Result<(), TokenError> {
        self.run(|connection, session| {
            connection.forget(id);
            let found = session.find_objects(&[Attribute::Id(id.to_vec())]).map_err(TokenError::of)?;
            found.into_iter().try_for_each(|object| session.destroy_object(object).map_err(TokenError::of))
        })
    }
}
