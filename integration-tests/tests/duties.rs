//! Every role against every RPC, on the wire, compared with a table that a person can read (`duties.txt`).
use custody_proto::Method;
use custody_rpc::status::reason;
use custody_testkit::Deployment;
use std::{collections::HashMap, fmt::Write as _, time::Duration};
use tonic::{Code, Request, Status, client::GrpcService, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

const ROLES: [(&str, &str); 8] = [
    ("anonymous", ""),
    ("officer", "officer"),
    ("sysadmin", "sysadmin"),
    ("dba", "dba"),
    ("auditor", "auditor"),
    ("storage", "workload:storage"),
    ("control", "workload:control"),
    ("database", "workload:database"),
];

fn service_of(method: Method) -> &'static [&'static str] {
    let path = method.path();
    if path.contains("AuditLog") {
        &["vault", "control", "identity"]
    } else if path.contains(".identity.") {
        &["identity"]
    } else if path.contains(".vault.") {
        &["vault"]
    } else if path.contains(".storage.") {
        &["storage"]
    } else if path.contains(".database.") {
        &["database"]
    } else {
        &["control"]
    }
}

/// Calls with an empty message, which no RPC does anything with but to answer.
async fn call<T>(channel: T, method: Method) -> Result<(), Status>
where
    T: GrpcService<tonic::body::Body>,
    T::ResponseBody: tonic::codegen::Body<Data = tonic::codegen::Bytes> + Send + 'static,
    <T::ResponseBody as tonic::codegen::Body>::Error: Into<tonic::codegen::StdError> + Send,
{
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|_| Status::unavailable("not ready"))?;
    let codec: ProstCodec<(), ()> = ProstCodec::default();
    let mut stream = client
        .server_streaming(Request::new(()), PathAndQuery::from_static(method.path()), codec)
        .await?
        .into_inner();
    // Only a stream that was let through stays silent.
    match tokio::time::timeout(Duration::from_secs(3), stream.message()).await {
        Ok(Err(status)) => Err(status),
        _ => Ok(()),
    }
}

/// What the table says: `yes` the policy lets it through, `role` the vault's role assignments refused it, `-` the
/// duty may not, `token` who calls is not known.
fn verdict(answer: &Result<(), Status>) -> &'static str {
    match answer {
        Err(e) if e.code() == Code::Unauthenticated => "token",
        Err(e) if e.code() == Code::PermissionDenied && reason(e) == "DUTY_NOT_ALLOWED" => "-",
        Err(e) if e.code() == Code::PermissionDenied => "role",
        Err(e) if e.code() == Code::Unavailable => "UNAVAILABLE",
        Err(e) if e.code() == Code::Unimplemented => "UNIMPLEMENTED",
        _ => "yes",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_against_every_rpc() {
    let deployment = Deployment::start();
    let mut channels = HashMap::new();
    let mut table = format!("{:64}", "RPC");
    for (name, _) in ROLES {
        write!(table, "{name:11}").unwrap();
    }
    table += "\n";
    for method in Method::ALL {
        for service in service_of(*method) {
            let shown = method.path().trim_start_matches('/').trim_start_matches("custody.");
            let shown =
                if service_of(*method).len() > 1 { format!("{shown} ({service})") } else { shown.to_owned() };
            write!(table, "{shown:64}").unwrap();
            for (_, who) in ROLES {
                let answer = if who.is_empty() {
                    call(deployment.endpoint(service).unwrap().channel(), *method).await
                } else {
                    let channel = channels.entry((*service, who));
                    let channel = channel.or_insert_with(|| deployment.channel(service, who).unwrap());
                    call(channel.clone(), *method).await
                };
                write!(table, "{:11}", verdict(&answer)).unwrap();
            }
            table = table.trim_end().to_owned() + "\n";
        }
    }
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/duties.txt");
    if std::env::var_os("CUSTODY_BLESS").is_some() {
        std::fs::write(golden, &table).unwrap();
    }
    let expected = std::fs::read_to_string(golden).unwrap_or_default();
    assert_eq!(
        table, expected,
        "who may call what has changed; if that is meant, run with CUSTODY_BLESS=1 and review the diff"
    );
}
