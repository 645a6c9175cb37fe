//! A program for Azure Key Vault, with Azure's own SDK, that uses the customer's vault as it is.

use super::stage::Stage;
use crate::audit;
use anyhow::{Context as _, ensure};
use custody_proto::{identity, vault as kv};
use std::{
    fs,
    path::{Path, PathBuf},
};
use tokio::process::Command;

const PROGRAM: &str = include_str!("azure.py");
/// Python runs it before any program. It stands for a line in /etc/hosts, where the system does not resolve names below `localhost`.
const RESOLVING: &str = r#"import socket

resolve = socket.getaddrinfo
socket.getaddrinfo = lambda host, *rest, **named: resolve(
    "127.0.0.1" if isinstance(host, str) and host.endswith(".localhost") else host, *rest, **named
)
"#;
const KEY: &str = "vaults/contoso/keys/invoices";

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
        let role_assignment = Some(kv::RoleAssignment {
            principal: "principals/invoicing".to_owned(),
            role: "Key Vault Crypto User".to_owned(),
            scope: KEY.to_owned(),
            ..kv::RoleAssignment::default()
        });
        let parent = "vaults/contoso".to_owned();
        let request = kv::CreateRoleAssignmentRequest { parent, role_assignment };
        let assignment = self.session.access("officer")?.create_role_assignment(request).await?.into_inner();
        let said = program.run().await?;
        self.check(
            said.starts_with("opened with https://contoso."),
            &format!("the program wraps a data key and has it opened by the vault: {said}"),
        )?;
        let request = kv::DeleteRoleAssignmentRequest { name: assignment.name };
        self.session.access("officer")?.delete_role_assignment(request).await?;
        let said = program.run().await?;
        self.check(
            said == "refused: 403 Forbidden",
            &format!("its role is taken away, and the SDK is {said}"),
        )?;
        let records = audit::records(&self.session, "vault", &audit::Filter::of(KEY)).await?;
        let of_program = |operation: &str, result: &str| {
            let has = |text: &str, part: String| text.contains(&part);
            records.iter().any(|r| {
                r.json.contains("principals/invoicing")
                    && has(&r.json, format!("\"operationName\":\"{operation}\""))
                    && has(&r.json, format!("\"resultType\":\"{result}\""))
            })
        };
        self.check(
            of_program("KeyUnwrap", "Success") && of_program("KeyGet", "Denied"),
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
