//! A program for Azure Key Vault, with Azure's own SDK, that uses the customer's vault as it is.

use super::stage::Stage;
use crate::audit;
use anyhow::{Context as _, ensure};
use custody_audit::{Outcome, Record};
use custody_proto::{identity, vault as kv};
use std::{
    fs,
    path::{Path, PathBuf},
};
use tokio::process::Command;

const PROGRAM: &str = include_str!("azure.py");
/// For systems that do not resolve names below `localhost`.
const RESOLVING: &str = include_str!("names/sitecustomize.py");
const KEY: &str = "vaults/contoso/keys/invoices";
const PRINCIPAL: &str = "principals/invoicing";

/// A Python with Azure's SDK.
pub(crate) struct Sdk(PathBuf);

impl Sdk {
    /// That of a Python, where it has it.
    pub(crate) async fn find(python: &Path) -> Option<Self> {
        let mut tried = Command::new(python);
        tried.args(["-c", "import azure.identity, azure.keyvault.keys"]);
        let found = tried.output().await.is_ok_and(|output| output.status.success());
        found.then(|| Self(python.to_owned()))
    }
}

impl Stage {
    /// A program uses a key of the customer's vault until its role is taken away.
    pub(crate) async fn azure_program(&self, sdk: &Sdk) -> anyhow::Result<()> {
        let program = self.prepare_azure_program(sdk).await?;
        let request = kv::CreateKeyRequest {
            parent: "vaults/contoso".to_owned(),
            key_id: "invoices".to_owned(),
            ..kv::CreateKeyRequest::default()
        };
        self.session.vault("officer")?.create_key(request).await?;
        let role = self.give_role(PRINCIPAL, "Key Vault Crypto User", KEY).await?;
        let said = program.run().await?;
        self.check(
            said.starts_with("opened with https://contoso."),
            &format!("the program wraps a data key and has it opened by the vault: {said}"),
        )?;
        self.take_role(role).await?;
        let said = program.run().await?;
        self.check(
            said == "refused: 403 Forbidden",
            &format!("its role is taken away, and the SDK is {said}"),
        )?;
        let records = audit::records(&self.session, "vault", &audit::Filter::of(KEY)).await?;
        let records: Vec<Record> =
            records.iter().map(|r| serde_json::from_str(&r.json)).collect::<Result<_, _>>()?;
        let of_program = |operation, result| {
            let mut own = records.iter().filter(|r| r.identity.principal == PRINCIPAL);
            own.any(|r| r.operation_name == operation && r.result_type == result)
        };
        self.check(
            of_program("KeyUnwrap", Outcome::Success) && of_program("KeyGet", Outcome::Denied),
            "both are in the trail, as whatever is done over gRPC is",
        )
    }

    /// Makes the program's identity, and what its environment says: nothing but where the vault is, whom to trust, and who it is.
    async fn prepare_azure_program(&self, sdk: &Sdk) -> anyhow::Result<Program> {
        let workload = identity::CreatePrincipalRequest {
            principal_id: "invoicing".to_owned(),
            duty: "workload".to_owned(),
        };
        let made = self.session.identity("officer")?.create_principal(workload).await?.into_inner();
        let dir = self.dir.join("azure-program");
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("program.py"), PROGRAM)?;
        let vault = self.session.url("vault-rest")?.replace("https://", "https://contoso.");
        let host = vault.trim_start_matches("https://").to_owned();
        if tokio::net::lookup_host(host).await.is_err() {
            fs::write(dir.join("sitecustomize.py"), RESOLVING)?;
        }
        let environment = [
            ("VAULT_URL", vault),
            ("AZURE_AUTHORITY_HOST", self.session.url("identity-oauth")?.to_owned()),
            ("AZURE_TENANT_ID", "adfs".to_owned()),
            ("AZURE_CLIENT_ID", "invoicing".to_owned()),
            ("AZURE_CLIENT_SECRET", made.client_secret),
            ("REQUESTS_CA_BUNDLE", self.dir.join("pki/ca.pem").display().to_string()),
            ("PYTHONPATH", dir.display().to_string()),
        ];
        Ok(Program { python: sdk.0.clone(), dir, environment: environment.into() })
    }
}

struct Program {
    python: PathBuf,
    dir: PathBuf,
    environment: Vec<(&'static str, String)>,
}

impl Program {
    async fn run(&self) -> anyhow::Result<String> {
        let mut command = Command::new(&self.python);
        command.arg(self.dir.join("program.py")).envs(self.environment.iter().cloned());
        let output = command.output().await.context("Python cannot be started")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "CHECK FAILED: the program ended with {}: {said}", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}
