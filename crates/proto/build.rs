//! Compiles the schemas with protox: no protoc is needed.

use prost::Message as _;
use std::{env, error::Error, fmt::Write as _, fs, path::PathBuf};

const FILES: [&str; 12] = [
    "custody/audit/v1/audit_log.proto",
    "custody/control/v1/cluster_manager.proto",
    "custody/database/v1/database_node.proto",
    "custody/identity/v1/identity.proto",
    "custody/storage/v1/storage_node.proto",
    "custody/vault/v1/access_control.proto",
    "custody/vault/v1/fault_injection.proto",
    "custody/vault/v1/key_vault.proto",
    "custody/vault/v1/lease_manager.proto",
    "custody/vault/v1/lineage.proto",
    "custody/vault/v1/seal.proto",
    "google/longrunning/operations.proto",
];

/// Messages that carry secrets: they get no `Debug` of their own, so that printing one shows nothing.
const SECRET: [&str; 17] = [
    "custody.control.v1.CreateClusterRequest",
    "custody.identity.v1.CreatePrincipalResponse",
    "custody.identity.v1.IssueTokenRequest",
    "custody.identity.v1.Token",
    "custody.storage.v1.ReadBlocksResponse",
    "custody.storage.v1.WriteBlocksRequest",
    "custody.vault.v1.ChangeSealRequest",
    "custody.vault.v1.ChangeSealResponse",
    "custody.vault.v1.DecryptResponse",
    "custody.vault.v1.EncryptRequest",
    "custody.vault.v1.GetRandomBytesResponse",
    "custody.vault.v1.Holding",
    "custody.vault.v1.ImportKeyRequest",
    "custody.vault.v1.RenewLeasesRequest",
    "custody.vault.v1.UnsealVaultRequest",
    "custody.vault.v1.UnwrapKeyResponse",
    "custody.vault.v1.WrapKeyRequest",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=../../proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let set = protox::compile(FILES, ["../../proto"])?;
    fs::write(out.join("descriptors.bin"), set.encode_to_vec())?;
    fs::write(out.join("methods.rs"), methods(&set)?)?;
    let configured = tonic_prost_build::configure().build_transport(false);
    configured.codec_path("crate::codec::MessageCodec").skip_debug(SECRET).compile_fds(set)?;
    Ok(())
}

/// An enum of every RPC of ours, so that a policy table is a `match` and an RPC without a row does not compile.
fn methods(set: &prost_types::FileDescriptorSet) -> Result<String, std::fmt::Error> {
    let mut variants = Vec::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let variant = format!("{}{}", service.name(), method.name());
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                variants.push((variant, path));
            }
        }
    }
    variants.sort();
    let mut text = String::from(
        "/// Every RPC of every service.\n#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]\npub enum Method {\n",
    );
    for (variant, path) in &variants {
        writeln!(text, "    /// `{path}`\n    {variant},")?;
    }
    text.push_str(
        "}\n\nimpl Method {\n    /// Every RPC, by name.\n    pub const ALL: &'static [Self] = &[\n",
    );
    for (variant, _) in &variants {
        writeln!(text, "        Self::{variant},")?;
    }
    text.push_str("    ];\n\n    /// The gRPC path.\n    #[must_use]\n    pub fn path(self) -> &'static str {\n        match self {\n");
    for (variant, path) in &variants {
        writeln!(text, "            Self::{variant} => \"{path}\",")?;
    }
    text.push_str("        }\n    }\n}\n");
    Ok(text)
}
