//! A public half as other programs read it: PEM of `SubjectPublicKeyInfo` (RFC 5280 §4.1.2.7, RFC 3279, RFC 5480).

use anyhow::Context as _;
use custody_proto::vault as wire;
use spki::{
    AlgorithmIdentifier, ObjectIdentifier, SubjectPublicKeyInfo,
    der::{
        Encode as _, EncodePem as _,
        asn1::{AnyRef, BitStringRef, UintRef},
        pem::LineEnding,
    },
};

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");

fn curve(name: &str) -> Option<ObjectIdentifier> {
    Some(ObjectIdentifier::new_unwrap(match name {
        "P-256" => "1.2.840.10045.3.1.7",
        "P-256K" => "1.3.132.0.10",
        "P-384" => "1.3.132.0.34",
        "P-521" => "1.3.132.0.35",
        _ => return None,
    }))
}

/// The public half of a version.
pub(crate) fn pem(version: &wire::KeyVersion) -> anyhow::Result<String> {
    let (curve_oid, bytes);
    let parameters = if version.curve.is_empty() {
        let modulus = UintRef::new(&version.n)?;
        bytes = pkcs1::RsaPublicKey { modulus, public_exponent: UintRef::new(&version.e)? }.to_der()?;
        AnyRef::NULL
    } else {
        curve_oid = curve(&version.curve).with_context(|| format!("the curve `{}` is new", version.curve))?;
        // SEC 1 §2.3.3, uncompressed.
        bytes = [&[4], version.x.as_slice(), version.y.as_slice()].concat();
        AnyRef::from(&curve_oid)
    };
    let oid = if version.curve.is_empty() { RSA } else { EC };
    let info = SubjectPublicKeyInfo {
        algorithm: AlgorithmIdentifier { oid, parameters: Some(parameters) },
        subject_public_key: BitStringRef::from_bytes(&bytes)?,
    };
    Ok(info.to_pem(LineEnding::LF)?)
}
