//! Verbs on seals: of the deployment, and of a vault.

use crate::{
    output::{line, one},
    session::{Session, time},
};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use custody_proto::vault::{self as wire, unseal_vault_request::Key};
use serde_json::{Value, json};
use std::io::{self, BufRead as _, IsTerminal as _};

/// Secrets are read from standard input: what stands on a command line is seen by everyone on the machine.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Seals the deployment, or a vault that has a seal of its own: its keys leave the memory.
    Seal {
        /// A vault; the whole deployment without it.
        vault: Option<String>,
    },
    /// Unseals with a passphrase or with one officer's share, read from standard input.
    Unseal {
        /// A vault; the whole deployment without it.
        vault: Option<String>,
    },
    /// Says how a seal is opened, and whether it is.
    SealStatus {
        /// A vault; the whole deployment without it.
        vault: Option<String>,
    },
    /// Changes what opens a seal. Shares are printed once and stored nowhere.
    ChangeSeal {
        /// A vault; the whole deployment without it.
        vault: Option<String>,
        #[command(flatten)]
        method: Method,
    },
    /// Makes a new root key, or a new key of a vault, and seals what lies below it anew.
    RotateRootKey {
        /// A vault; the whole deployment without it.
        vault: Option<String>,
    },
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Method {
    /// Shares for several officers, and how many of them are needed: as 2/3.
    #[arg(long)]
    shares: Option<String>,
    /// A passphrase, read from standard input.
    #[arg(long)]
    passphrase: bool,
    /// The HSM, for the deployment's.
    #[arg(long)]
    hsm: bool,
    /// For the deployment its key file, for a vault no seal of its own.
    #[arg(long)]
    default: bool,
}

fn name(vault: Option<String>) -> String {
    vault.map_or_else(|| "seal".to_owned(), |vault| format!("{vault}/seal"))
}

fn view(s: wire::Seal) -> Value {
    let kind = match s.r#type() {
        wire::SealType::Unspecified => "none of its own",
        wire::SealType::KeyFile => "key file",
        wire::SealType::Passphrase => "passphrase",
        wire::SealType::Shares => "shares",
        wire::SealType::Hsm => "HSM",
    };
    let mut out = json!({ "name": s.name, "type": kind, "sealed": s.sealed, "generation": s.generation, "since": time(s.create_time) });
    if let (true, Some(fields)) = (s.share_count > 0, out.as_object_mut()) {
        fields.insert("shares".to_owned(), json!(format!("{} of {}", s.share_threshold, s.share_count)));
        fields.insert("given".to_owned(), json!(s.shares_given));
    }
    out
}

/// One line of standard input.
fn secret(what: &str) -> anyhow::Result<String> {
    if io::stdin().is_terminal() {
        line(format!("{what}:"));
    }
    let mut text = String::new();
    io::stdin().lock().read_line(&mut text)?;
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    anyhow::ensure!(!text.is_empty(), "standard input is empty; give the {what} there");
    Ok(text)
}

impl Method {
    fn request(&self, name: String) -> anyhow::Result<wire::ChangeSealRequest> {
        let mut request = wire::ChangeSealRequest { name, ..wire::ChangeSealRequest::default() };
        let kind = if let Some(shares) = &self.shares {
            let numbers = shares.split_once('/').and_then(|(t, n)| Some((t.parse().ok()?, n.parse().ok()?)));
            (request.share_threshold, request.share_count) =
                numbers.context("--shares must be as 2/3: two of three are needed")?;
            wire::SealType::Shares
        } else if self.passphrase {
            request.passphrase = secret("new passphrase")?;
            wire::SealType::Passphrase
        } else if self.hsm {
            wire::SealType::Hsm
        } else if request.name == "seal" {
            wire::SealType::KeyFile
        } else {
            wire::SealType::Unspecified
        };
        request.r#type = kind.into();
        Ok(request)
    }
}

pub(crate) async fn run(session: &Session, verb: Verb) -> anyhow::Result<()> {
    let mut client = session.seals("officer")?;
    let seal = match verb {
        Verb::Seal { vault } => client.seal_vault(wire::SealVaultRequest { name: name(vault) }).await?,
        Verb::SealStatus { vault } => client.get_seal(wire::GetSealRequest { name: name(vault) }).await?,
        Verb::RotateRootKey { vault } => {
            client.rotate_root_key(wire::RotateRootKeyRequest { name: name(vault) }).await?
        }
        Verb::Unseal { vault } => {
            let text = secret("passphrase or share")?;
            let share = text.starts_with("custody-share-");
            let key = Some(if share { Key::Share(text) } else { Key::Passphrase(text) });
            client.unseal_vault(wire::UnsealVaultRequest { name: name(vault), key }).await?
        }
        Verb::ChangeSeal { vault, method } => {
            let done = client.change_seal(method.request(name(vault))?).await?.into_inner();
            let mut out = view(done.seal.unwrap_or_default());
            if let (false, Some(fields)) = (done.shares.is_empty(), out.as_object_mut()) {
                fields.insert("new_shares".to_owned(), json!(done.shares));
            }
            one(session.format, &out);
            return Ok(());
        }
    };
    one(session.format, &view(seal.into_inner()));
    Ok(())
}
