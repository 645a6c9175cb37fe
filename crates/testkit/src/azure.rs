//! Azure's own clients against a deployment: what they must be told.

use crate::Deployment;
use anyhow::Context as _;
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

impl Deployment {
    /// `https://VAULT.vault.localhost:port`.
    ///
    /// # Errors
    /// The deployment's file is malformed.
    pub fn azure_vault_url(&self, vault: &str) -> anyhow::Result<String> {
        Ok(self.url("vault-rest")?.replace("https://", &format!("https://{vault}.")))
    }

    /// A principal's secret.
    ///
    /// # Errors
    /// It is none that was made at the first start.
    pub fn secret_of(&self, principal: &str) -> anyhow::Result<String> {
        let path = self.dir().join(format!("credentials/{principal}.json"));
        let held: Value = serde_json::from_slice(&fs::read(path)?)?;
        Ok(held.get("client_secret").and_then(Value::as_str).context("client_secret")?.to_owned())
    }

    /// A program that uses a vault as Azure's clients do: where that is, whom to trust, and who the officer is are in its environment
    /// (CUSTODY_VAULT_URL, CUSTODY_AUTHORITY, REQUESTS_CA_BUNDLE, NODE_EXTRA_CA_CERTS, OFFICER_SECRET).
    ///
    /// # Errors
    /// The program is missing, or the deployment's files are malformed.
    pub fn azure_program(&self, program: &Path, vault: &str) -> anyhow::Result<Command> {
        anyhow::ensure!(program.exists(), "`{}` is missing; scripts/test installs it", program.display());
        let ca = self.dir().join("pki/ca.pem");
        let mut command = Command::new(program);
        command
            .stdin(Stdio::null())
            .env("CUSTODY_VAULT_URL", self.azure_vault_url(vault)?)
            .env("CUSTODY_AUTHORITY", self.url("identity-oauth")?)
            .env("REQUESTS_CA_BUNDLE", &ca)
            .env("NODE_EXTRA_CA_CERTS", &ca)
            .env("OFFICER_SECRET", self.secret_of("officer")?);
        Ok(command)
    }
}
