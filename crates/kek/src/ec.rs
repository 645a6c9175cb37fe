//! EC private keys: parsing, checking, encoding. RustCrypto does it for both backends, as `rsa` does for RSA.

use crate::ImportError;
use custody_types::{Curve, PublicKey};
use k256::ecdsa::RecoveryId;
use rsa::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _};
use zeroize::Zeroizing;

/// Runs `$body` with `$krate` as the crate of `$curve`.
macro_rules! with_curve {
    ($curve:expr, $krate:ident => $body:expr) => {
        match $curve {
            Curve::P256 => {
                use p256 as $krate;
                $body
            }
            Curve::P256K => {
                use k256 as $krate;
                $body
            }
            Curve::P384 => {
                use p384 as $krate;
                $body
            }
            Curve::P521 => {
                use p521 as $krate;
                $body
            }
        }
    };
}

/// The curve of a PKCS#8 key, and the key encoded anew.
pub(crate) fn parse(der: &[u8]) -> Option<(Curve, Zeroizing<Vec<u8>>)> {
    Curve::ALL.into_iter().find_map(|curve| {
        let encoded = with_curve!(curve, krate => {
            krate::SecretKey::from_pkcs8_der(der).ok()?.to_pkcs8_der().ok()?
        });
        Some((curve, Zeroizing::new(encoded.as_bytes().to_vec())))
    })
}

/// The public half of a PKCS#8 key.
pub(crate) fn public(curve: Curve, pkcs8: &[u8]) -> Option<PublicKey> {
    let point: Vec<u8> = with_curve!(curve, krate => {
        use krate::elliptic_curve::sec1::ToSec1Point as _;
        krate::SecretKey::from_pkcs8_der(pkcs8).ok()?.public_key().to_sec1_point(false).as_bytes().to_vec()
    });
    of_point(curve, &point)
}

/// An uncompressed point (SEC 1 v2.0 §2.3.3) as a key.
fn of_point(curve: Curve, point: &[u8]) -> Option<PublicKey> {
    let (x, y) = point.get(1..)?.split_at_checked(curve.coordinate_len())?;
    Some(PublicKey::Ec { crv: curve, x: x.to_vec(), y: y.to_vec() })
}

/// The public halves under which a signature over a digest holds: two as a rule, four at most (SEC 1 v2.0 §4.1.6).
pub(crate) fn signers(curve: Curve, digest: &[u8], signature: &[u8]) -> Vec<PublicKey> {
    let points: Vec<Vec<u8>> = with_curve!(curve, krate => {
        use krate::ecdsa::{Signature, VerifyingKey};
        let Ok(signature) = Signature::from_slice(signature) else { return Vec::new() };
        let point = |id| {
            let key = VerifyingKey::recover_from_prehash(digest, &signature, id).ok()?;
            Some(key.to_sec1_point(false).as_bytes().to_vec())
        };
        (0..=3).filter_map(RecoveryId::from_byte).filter_map(point).collect()
    });
    points.iter().filter_map(|point| of_point(curve, point)).collect()
}

/// A key of its scalar, whose point must be the one given (RFC 7518 §6.2.2).
pub(crate) fn from_scalar(
    curve: Curve,
    d: &[u8],
    x: &[u8],
    y: &[u8],
) -> Result<Zeroizing<Vec<u8>>, ImportError> {
    if [d, x, y].iter().any(|n| n.len() != curve.coordinate_len()) {
        return Err(ImportError::Coordinate { len: curve.coordinate_len() });
    }
    let encoded = with_curve!(curve, krate => {
        krate::SecretKey::from_slice(d)
            .map_err(|_| ImportError::Inconsistent)?
            .to_pkcs8_der()
            .map_err(|_| ImportError::Unreadable)?
    });
    let pkcs8 = Zeroizing::new(encoded.as_bytes().to_vec());
    match public(curve, &pkcs8) {
        Some(PublicKey::Ec { x: own_x, y: own_y, .. }) if own_x == x && own_y == y => Ok(pkcs8),
        _ => Err(ImportError::Inconsistent),
    }
}
