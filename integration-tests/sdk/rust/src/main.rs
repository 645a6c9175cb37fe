//! Azure's Rust client against Custody, unmodified: see ../python/keys.py for what the environment says.

use azure_core::{
    credentials::{Secret, TokenCredential},
    error::ErrorKind,
    http::{ClientOptions, StatusCode, Transport},
};
use azure_identity::{ClientSecretCredential, ClientSecretCredentialOptions};
use azure_security_keyvault_keys::{
    KeyClient, KeyClientOptions, ResourceExt as _,
    models::{
        CreateKeyParameters, CurveName, EncryptionAlgorithm, GetRandomBytesParameters, KeyAttributes,
        KeyClientCreateKeyOptions, KeyClientUpdateKeyPropertiesOptions, KeyOperationParameters, KeyType,
        SignParameters, SignatureAlgorithm, UpdateKeyPropertiesParameters, VerifyParameters,
    },
};
use futures::TryStreamExt as _;
use std::{env, error::Error, net::SocketAddr, sync::Arc};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What has to be told: where the vault is, and whom to trust.
fn client_options() -> Outcome<ClientOptions> {
    let ca = std::fs::read(env::var("REQUESTS_CA_BUNDLE")?)?;
    let here: SocketAddr = "127.0.0.1:0".parse()?;
    let client = reqwest::Client::builder()
        .tls_certs_only([reqwest::Certificate::from_pem(&ca)?])
        // libc does not resolve names below `localhost`; this stands for a line in /etc/hosts.
        .resolve("sdk.vault.localhost", here)
        .build()?;
    Ok(ClientOptions { transport: Some(Transport::new(Arc::new(client))), ..ClientOptions::default() })
}

fn credential(id: &str, secret: String) -> Outcome<Arc<dyn TokenCredential>> {
    let options = ClientSecretCredentialOptions { client_options: client_options()? };
    Ok(ClientSecretCredential::new("custody", id.to_owned(), Secret::new(secret), Some(options))?)
}

fn client(id: &str, secret: String) -> Outcome<KeyClient> {
    let options = KeyClientOptions { client_options: client_options()?, ..KeyClientOptions::default() };
    Ok(KeyClient::new(&env::var("CUSTODY_VAULT_URL")?, credential(id, secret)?, Some(options))?)
}

fn status<T>(answer: Result<T, azure_core::Error>) -> Option<StatusCode> {
    match answer.err()?.kind() {
        ErrorKind::HttpResponse { status, .. } => Some(*status),
        _ => None,
    }
}

#[tokio::main]
async fn main() -> Outcome<()> {
    rustls::crypto::ring::default_provider().install_default().map_err(|_| "a provider is installed")?;
    let officer = client("officer", env::var("OFFICER_SECRET")?)?;
    let app = client(&env::var("APP_ID")?, env::var("APP_SECRET")?)?;

    let rsa = CreateKeyParameters { kty: Some(KeyType::Rsa), key_size: Some(2048), ..Default::default() };
    let made = officer.create_key("rust-key", rsa.try_into()?, None).await?.into_model()?;
    let version = made.resource_id()?.version.ok_or("the key's id has a version")?;
    let wrap = KeyOperationParameters {
        algorithm: Some(EncryptionAlgorithm::RsaOaep256),
        value: Some(vec![7; 32]),
        ..Default::default()
    };
    let wrapped = app.wrap_key("rust-key", wrap.clone().try_into()?, None).await?.into_model()?;
    let unwrap = KeyOperationParameters { value: wrapped.result, ..wrap.clone() };
    let sealed = app.encrypt("rust-key", wrap.clone().try_into()?, None).await?.into_model()?;
    let decrypt = KeyOperationParameters { value: sealed.result, ..wrap };
    let plain = app.decrypt("rust-key", &version, decrypt.try_into()?, None).await?.into_model()?;
    assert_eq!(plain.result, Some(vec![7; 32]));

    officer.rotate_key("rust-key", None).await?;
    let opened =
        app.unwrap_key("rust-key", &version, unwrap.clone().try_into()?, None).await?.into_model()?;
    assert_eq!(opened.result, Some(vec![7; 32]), "also after a rotation");

    let ec =
        CreateKeyParameters { kty: Some(KeyType::Ec), curve: Some(CurveName::P256), ..Default::default() };
    let options = KeyClientCreateKeyOptions::default();
    let ec = officer.create_key("rust-ec", ec.try_into()?, Some(options)).await?.into_model()?;
    let ec_version = ec.resource_id()?.version.ok_or("the key's id has a version")?;
    let es256 = Some(SignatureAlgorithm::Es256);
    let sign = SignParameters { algorithm: es256.clone(), value: Some(vec![9; 32]) };
    let signed = app.sign("rust-ec", sign.try_into()?, None).await?.into_model()?;
    let verify = VerifyParameters { algorithm: es256, digest: Some(vec![9; 32]), signature: signed.result };
    let verified = app.verify("rust-ec", &ec_version, verify.try_into()?, None).await?.into_model()?;
    assert_eq!(verified.value, Some(true));

    let listed: Vec<_> = officer.list_key_properties(None)?.try_collect().await?;
    assert!(listed.len() >= 2, "both keys are listed");
    let versions: Vec<_> = officer.list_key_properties_versions("rust-key", None)?.try_collect().await?;
    assert_eq!(versions.len(), 2);
    let policy = officer.get_key_rotation_policy("rust-key", None).await?.into_model()?;
    assert_eq!(policy.lifetime_actions.map(|a| a.len()), Some(1), "the default policy");
    let count = GetRandomBytesParameters { count: Some(16) };
    let random = officer.get_random_bytes(count.try_into()?, None).await?.into_model()?;
    assert_eq!(random.value.map(|v| v.len()), Some(16));

    let off = UpdateKeyPropertiesParameters {
        key_attributes: Some(KeyAttributes { enabled: Some(false), ..Default::default() }),
        ..Default::default()
    };
    let of_version =
        KeyClientUpdateKeyPropertiesOptions { key_version: Some(version.clone()), ..Default::default() };
    officer.update_key_properties("rust-key", off.try_into()?, Some(of_version)).await?;
    let refused = app.unwrap_key("rust-key", &version, unwrap.try_into()?, None).await;
    assert_eq!(status(refused), Some(StatusCode::Forbidden), "a disabled version opens nothing");
    assert_eq!(status(officer.get_key("nothing-here", None).await), Some(StatusCode::NotFound));
    let stranger = app.create_key("mine", CreateKeyParameters::default().try_into()?, None).await;
    assert_eq!(status(stranger), Some(StatusCode::BadRequest), "a kind of key is required");

    let backup = officer.backup_key("rust-ec", None).await?.into_model()?;
    officer.delete_key("rust-ec", None).await?;
    let deleted: Vec<_> = officer.list_deleted_key_properties(None)?.try_collect().await?;
    assert!(!deleted.is_empty());
    officer.recover_deleted_key("rust-ec", None).await?;
    officer.delete_key("rust-ec", None).await?;
    officer.purge_deleted_key("rust-ec", None).await?;
    let restore = azure_security_keyvault_keys::models::RestoreKeyParameters { key_backup: backup.value };
    let restored = officer.restore_key(restore.try_into()?, None).await?.into_model()?;
    assert_eq!(restored.resource_id()?.version, Some(ec_version), "the very same version");

    let wrong = client("officer", "not-the-secret".to_owned())?.get_key("rust-key", None).await;
    assert!(wrong.is_err(), "a wrong secret gets no token");
    println!("15 checks passed");
    Ok(())
}
