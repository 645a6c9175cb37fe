//! Uses of a key: encrypt, decrypt, wrap, unwrap, sign, verify.

use crate::{
    bodies::{self, Verify},
    error::RestError,
    face::{Answer, Face, Taken},
    route::Use,
    views::b64,
};
use custody_types::{SignatureAlgorithm, WrapAlgorithm};
use custody_vault::{
    Admission, Batch, Place,
    gate::{Operation, Withheld, op},
};
use serde_json::json;

fn wrap_algorithm(name: &str) -> Result<WrapAlgorithm, RestError> {
    match name {
        "" => Err(RestError::bad_parameter("`alg` is required; use RSA-OAEP-256")),
        "RSA1_5" => Err(RestError::bad_parameter(
            "RSA1_5 is not offered: its padding tells too much when it fails (RFC 8017 §7.2); use RSA-OAEP-256",
        )),
        name => {
            name.parse().map_err(|e: custody_types::UnknownAlgorithm| RestError::bad_parameter(e.to_string()))
        }
    }
}

fn signature_algorithm(name: &str) -> Result<SignatureAlgorithm, RestError> {
    let parsed = name.parse();
    parsed.map_err(|e: custody_types::UnknownSignatureAlgorithm| RestError::bad_parameter(e.to_string()))
}

/// Admitted by the gate in this task, done where computing holds nobody up.
async fn compute<Op: Operation + 'static, T: Send + 'static>(
    face: &Face,
    taken: &Taken,
    name: &str,
    act: impl AsyncFnOnce(Admission<Op>, &Batch) -> Withheld<T> + Send + 'static,
) -> Result<T, RestError> {
    let admission = face.vault.admit::<Op>(taken.call.clone(), name).await?;
    // A refusal of the pool comes as a status, the vault's as an error of its own.
    let place = admission.place();
    let act = async move |batch: &Batch| Ok(act(admission, batch).await);
    let done = match place {
        Place::Here => Batch::alone(act),
        Place::Wait => face.workers.run(|| Batch::alone(act)).await,
        Place::Compute => face.compute.run(&taken.call.caller.principal, act).await,
    }?;
    Ok(done.release().await?)
}

pub(crate) async fn run(
    face: &Face,
    taken: Taken,
    key: &str,
    version: &str,
    operation: Use,
) -> Result<Answer, RestError> {
    let key = format!("{}/keys/{key}", taken.vault);
    let name = if version.is_empty() { key } else { format!("{key}/versions/{version}") };
    if operation == Use::Verify {
        let body: Verify = bodies::parse(&taken.body)?;
        let algorithm = signature_algorithm(&body.alg)?;
        let (digest, signature) =
            (bodies::bytes(&body.digest, "digest")?, bodies::bytes(&body.value, "value")?);
        let act = async move |a: Admission<op::Verify>, _: &Batch| a.verify(algorithm, &digest, &signature);
        let (_, valid) = compute(face, &taken, &name, act).await?;
        return Ok(Answer::Json(json!({ "value": valid })));
    }
    let body: bodies::Use = bodies::parse(&taken.body)?;
    let value = body.value()?;
    let result = |version: &str, value: &[u8]| {
        Answer::Json(json!({ "kid": taken.base.kid(version), "value": b64(value) }))
    };
    Ok(match operation {
        Use::Encrypt | Use::Wrap => {
            let algorithm = wrap_algorithm(&body.alg)?;
            let done = if operation == Use::Encrypt {
                compute::<op::Encrypt, _>(face, &taken, &name, async move |a, _| a.protect(algorithm, &value))
                    .await?
            } else {
                compute::<op::WrapKey, _>(face, &taken, &name, async move |a, _| a.protect(algorithm, &value))
                    .await?
            };
            result(done.key_version.as_str(), &done.ciphertext)
        }
        Use::Decrypt | Use::Unwrap => {
            let algorithm = wrap_algorithm(&body.alg)?;
            let done = if operation == Use::Decrypt {
                compute::<op::Decrypt, _>(face, &taken, &name, async move |a, batch| {
                    a.unprotect(batch, algorithm, &value).await
                })
                .await?
            } else {
                compute::<op::UnwrapKey, _>(face, &taken, &name, async move |a, batch| {
                    a.unprotect(batch, algorithm, &value).await
                })
                .await?
            };
            result(done.key_version.as_str(), &done.plain)
        }
        Use::Sign | Use::Verify => {
            let algorithm = signature_algorithm(&body.alg)?;
            let act =
                async move |a: Admission<op::Sign>, batch: &Batch| a.sign(batch, algorithm, &value).await;
            let (version, signature) = compute(face, &taken, &name, act).await?;
            result(version.as_str(), &signature)
        }
    })
}
