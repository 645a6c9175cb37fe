//! Azure's own clients, unmodified, over the vault's REST API and the identity service's OAuth (`sdk/`).
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_testkit::Deployment;
use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
};

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// A deployment with the vault `sdk`, and the secret of a workload that may use its keys.
fn deployment() -> (Deployment, String) {
    let deployment = Deployment::start();
    let secret = with_vault(&deployment);
    (deployment, secret)
}

/// The vault `sdk`, in which one officer does everything, and a workload that may use its keys: its secret.
fn with_vault(deployment: &Deployment) -> String {
    let weak = ["--no-purge-protection", "--retention-days", "7", "--one-officer"];
    _ = deployment.run(&[&["vault", "create", "sdk"][..], &weak].concat());
    let app = deployment.principal("app", "workload");
    _ = deployment.run(&["access", "grant", "principals/app", "Key Vault Crypto User", "vaults/sdk"]);
    text(&app, "client_secret")
}

fn text(value: &serde_json::Value, field: &str) -> String {
    value.get(field).and_then(|v| v.as_str()).unwrap().to_owned()
}

fn vault_url(deployment: &Deployment) -> String {
    deployment.azure_vault_url("sdk").unwrap()
}

fn authority(deployment: &Deployment) -> String {
    deployment.url("identity-oauth").unwrap()
}

fn command(deployment: &Deployment, program: &Path, app_secret: &str) -> Command {
    let mut command = deployment.azure_program(program, "sdk").unwrap();
    command.env("APP_ID", "app").env("APP_SECRET", app_secret);
    command.env("PYTHONPATH", custody_integration_tests::NAMES);
    command
}

fn in_python(deployment: &Deployment, program: &str, app_secret: &str) -> Command {
    let mut command = command(deployment, &custody_integration_tests::python(), app_secret);
    command.arg(here().join("sdk/python").join(program));
    command
}

fn passes(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("checks passed"), "{said}");
    said
}

fn node() -> PathBuf {
    assert!(here().join("sdk/js/node_modules/@azure").exists(), "scripts/test installs the SDK");
    let known = ["/usr/bin/node", "/usr/local/bin/node"].map(PathBuf::from);
    known.into_iter().find(|n| n.exists()).expect("Node.js is missing; scripts/test installs it")
}

#[test]
fn python() {
    let (deployment, app) = deployment();
    let said = passes(&mut in_python(&deployment, "keys.py", &app));
    // What was refused is in the trail under the number that the refusal named.
    let number = said.lines().find_map(|line| line.strip_prefix("refused as record ")).unwrap();
    let proof = deployment.dir().join("refusal.proof").display().to_string();
    deployment.cli(&["audit", "prove", number, &proof]).unwrap();
    let proven = deployment.cli(&["audit", "check", &proof]).unwrap();
    assert_eq!((&proven["operationName"], &proven["resultType"]), (&"KeyDelete".into(), &"Denied".into()));
    // What the SDK did is in the trail, by Azure's names.
    let records = deployment.run(&["audit", "list", "vault", "--resource", "vaults/sdk/keys/user"]);
    let done =
        |operation: &str, principal: &str| {
            records.as_array().unwrap().iter().any(|r| {
                r["operation"] == operation && r["principal"] == principal && r["result"] == "Success"
            })
        };
    assert!(done("KeyCreate", "principals/officer") && done("KeyUnwrap", "principals/app"), "{records}");
    assert!(done("KeySign", "principals/app"), "{records}");
}

/// What the SDKs raise where the vault throttles, and what they make in an HSM and bring there.
#[test]
fn sdks_on_bad_days() {
    let (deployment, _hsm) = Deployment::start_with_hsm(&["--key-per-second", "3"]).unwrap();
    let app = with_vault(&deployment);
    _ = passes(&mut in_python(&deployment, "bad_days.py", &app));
    _ = passes(command(&deployment, &node(), "").arg(here().join("sdk/js/bad_days.js")));
}

/// `azure_security_keyvault_keys`, built apart from this workspace (`sdk/rust`).
#[test]
fn rust() {
    let (deployment, app) = deployment();
    let program = here().join("../target/sdk/rust/debug/custody-sdk-rust");
    let mut command = command(&deployment, &program, &app);
    _ = passes(command.env("AZURE_AUTHORITY_HOST", authority(&deployment)));
}

/// `az keyvault key`. In the slow suite, since azure-cli takes 700 MB.
#[cfg(feature = "slow")]
#[test]
fn az() {
    let (deployment, _hsm) = Deployment::start_with_hsm(&[]).unwrap();
    let app = with_vault(&deployment);
    let az = here().join("../target/sdk/az/bin/az");
    assert!(az.exists(), "`{}` is missing; scripts/test-slow installs it", az.display());
    let mut command = command(&deployment, Path::new("/bin/bash"), &app);
    command.env("AZ", az).env("TEST_DIR", deployment.dir());
    _ = passes(command.arg(here().join("sdk/az/keys.sh")));
}

/// MongoDB's client-side encryption: libmongocrypt as it is, which asks for a token before anything else.
#[test]
fn mongodb() {
    let (deployment, app) = deployment();
    _ = passes(&mut in_python(&deployment, "mongodb.py", &app));
}

/// Azure Storage's client-side encryption, over Azurite.
#[test]
fn storage() {
    let (deployment, app) = deployment();
    let azurite = here().join("sdk/js/node_modules/azurite/dist/src/blob/main.js");
    assert!(azurite.exists(), "`{}` is missing; scripts/test installs it", azurite.display());
    let mut command = in_python(&deployment, "storage.py", &app);
    _ = passes(command.env("AZURITE", azurite).env("TEST_DIR", deployment.dir()));
}

#[test]
fn javascript() {
    let (deployment, app) = deployment();
    _ = passes(command(&deployment, &node(), &app).arg(here().join("sdk/js/keys.js")));
}

/// One request as bytes over TLS, and the answer as text.
fn raw(deployment: &Deployment, request: &str) -> String {
    let url = vault_url(deployment);
    let port = url.rsplit(':').next().unwrap();
    let mut roots = rustls::RootCertStore::empty();
    let pem = std::fs::read(deployment.dir().join("pki/ca.pem")).unwrap();
    use rustls_pki_types::pem::PemObject as _;
    roots.add(rustls_pki_types::CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "sdk.vault.localhost".try_into().unwrap();
    let connection = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let socket = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    let mut stream = rustls::StreamOwned::new(connection, socket);
    let request = request.replace("HOST", &format!("sdk.vault.localhost:{port}"));
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_challenge_comes_before_the_body_and_errors_have_azures_form() {
    let (deployment, _) = deployment();
    let end = "Connection: close\r\n\r\n";
    let challenged = raw(
        &deployment,
        &format!(
            "POST /keys/k/create?api-version=7.4 HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0\r\nx-ms-client-request-id: abc-1\r\n{end}"
        ),
    );
    assert!(challenged.starts_with("HTTP/1.1 401"), "{challenged}");
    let authority = authority(&deployment);
    let port = deployment.url("vault-rest").unwrap().rsplit(':').next().unwrap().to_owned();
    for expected in [
        format!("Bearer authorization=\"{authority}/custody\", resource=\"https://vault.localhost:{port}\""),
        "x-ms-client-request-id: abc-1".to_owned(),
        "x-ms-request-id: ".to_owned(),
        "AKV10000".to_owned(),
        "cache-control: no-cache".to_owned(),
    ] {
        let found = challenged.to_lowercase().contains(&expected.to_lowercase());
        assert!(found, "{expected} is missing: {challenged}");
    }
    let token = deployment.tokens("officer", "custody-vault").unwrap().text().await.unwrap();
    let ask = |line: &str, token: &str, body: &str| {
        let length = body.len();
        raw(
            &deployment,
            &format!(
                "{line} HTTP/1.1\r\nHost: HOST\r\nAuthorization: Bearer {token}\r\nContent-Length: {length}\r\n{end}{body}"
            ),
        )
    };
    for (line, body, status, text) in [
        ("GET /keys/none?api-version=7.4", "", "404", "\"code\":\"KeyNotFound\""),
        ("GET /keys/none", "", "400", "api-version"),
        ("GET /keys/none?api%2Dversion=7.4", "", "404", "KeyNotFound"),
        ("GET /keys/none/?api-version=2099-01-01-preview", "", "404", "KeyNotFound"),
        ("PUT /keys?api-version=7.4", "", "405", "MethodNotAllowed"),
        ("GET /secrets/x?api-version=7.4", "", "404", "NotFound"),
        ("POST /keys/a_b/create?api-version=7.4", "{}", "400", "0-9a-zA-Z"),
        ("POST /keys/k/create?api-version=7.4", "", "400", "BadParameter"),
        (
            "POST /keys/k/create?api-version=7.4",
            "{\"kty\":\"RSA\",\"key_size\":123}",
            "400",
            "2048, 3072 or 4096",
        ),
        ("POST /keys/k/create?api-version=7.4", "[[[[[[", "400", "JSON"),
        (
            "POST /keys/k/create?api-version=7.4",
            "{\"kty\":\"RSA\",\"attributes\":{\"nbf\":20,\"exp\":10}}",
            "400",
            "expire_time",
        ),
        (
            "POST /keys/k/create?api-version=7.4",
            "{\"kty\":\"EC\",\"key_ops\":[\"wrapKey\"]}",
            "400",
            "wrapKey",
        ),
        (
            "POST /keys/none//wrapkey?api-version=7.4",
            "{\"alg\":\"RSA-OAEP-256\",\"value\":\"AAAA\"}",
            "403",
            "ForbiddenByRbac",
        ),
        ("GET /keys?api-version=7.4&maxresults=0", "", "400", "maxresults"),
        ("GET /keys?api-version=7.4&$skiptoken=%FF", "", "400", "skiptoken"),
    ] {
        let answer = ask(line, &token, body);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(text),
            "{line}: {answer}"
        );
    }
    let forged = ask("GET /keys/none?api-version=7.4", "a.b.c", "");
    assert!(forged.starts_with("HTTP/1.1 401") && forged.contains("error=\"invalid_token\""), "{forged}");
    let other = deployment.tokens("officer", "custody-control").unwrap().text().await.unwrap();
    let other = ask("GET /keys/none?api-version=7.4", &other, "");
    assert!(other.starts_with("HTTP/1.1 401") && other.contains("another audience"), "{other}");
    let huge = "x".repeat((1 << 20) + 1);
    let huge = ask("POST /keys/k/create?api-version=7.4", &token, &huge);
    assert!(huge.starts_with("HTTP/1.1 413"), "{}", huge.get(..100).unwrap_or_default());
    let rubbish = raw(&deployment, "\x00\x01\x02 nonsense\r\n\r\n");
    assert!(rubbish.is_empty() || rubbish.starts_with("HTTP/1.1 400"), "{rubbish}");
    let log = std::fs::read_to_string(deployment.dir().join("logs/vault.log")).unwrap();
    assert!(!log.contains("panicked"), "{log}");
}
