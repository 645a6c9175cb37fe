//! The development authority: made at the first start, with a certificate for each service.

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, string::Ia5String,
};
use std::{
    fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// Each vault has a host below it in Azure's REST API.
pub(crate) const VAULT_DOMAIN: &str = "vault.localhost";

/// Makes the authority and the certificates that are missing.
pub(crate) fn ensure(dir: &Path, services: &[&str]) -> anyhow::Result<()> {
    fs::create_dir_all(dir)?;
    let (ca_path, ca_key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
    if !ca_path.exists() {
        let key = KeyPair::generate()?;
        write_secret(&ca_key_path, &key.serialize_pem())?;
        fs::write(&ca_path, authority()?.self_signed(&key)?.pem())?;
    }
    let ca_key = KeyPair::from_pem(&fs::read_to_string(&ca_key_path)?).context("pki/ca.key")?;
    let issuer = Issuer::from_ca_cert_pem(&fs::read_to_string(&ca_path)?, ca_key).context("pki/ca.pem")?;
    for service in services {
        let path = dir.join(format!("{service}.pem"));
        if path.exists() {
            continue;
        }
        let key = KeyPair::generate()?;
        write_secret(&dir.join(format!("{service}.key")), &key.serialize_pem())?;
        fs::write(&path, certificate(service)?.signed_by(&key, &issuer)?.pem())?;
    }
    Ok(())
}

fn authority() -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name.push(DnType::CommonName, "Custody development authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn certificate(service: &str) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, format!("custody-{service}"));
    params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    params.subject_alt_names.push(SanType::IpAddress(IpAddr::V6(Ipv6Addr::LOCALHOST)));
    params
        .subject_alt_names
        .push(SanType::URI(Ia5String::try_from(format!("custody:principals/{service}"))?));
    if service == "vault" {
        // A wildcard directly below `localhost` is not accepted by OpenSSL's clients.
        for name in [VAULT_DOMAIN.to_owned(), format!("*.{VAULT_DOMAIN}")] {
            params.subject_alt_names.push(SanType::DnsName(Ia5String::try_from(name)?));
        }
    }
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

pub(crate) fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(file.sync_all()?)
}
