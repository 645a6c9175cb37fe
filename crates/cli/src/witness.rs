//! A witness of a trail: it sees that the trail goes on from what it saw before, and cosigns that
//! (<https://c2sp.org/tlog-cosignature>). It trusts nobody's word for it, and keeps all it needs in a directory of its own.

use crate::{inclusion, output::line, pki, session::Session};
use anyhow::{Context as _, bail, ensure};
use custody_audit::{TreeHead, trail_key, tree::is_consistent};
use custody_note::{SigningKey, VerifyingKey};
use custody_proto::audit as wire;
use std::{
    fs,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Choices of a witness.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Where the witness keeps its key and what it last saw: not on a disk of the deployment.
    place: PathBuf,
    /// Whose trail: vault, control or identity.
    #[arg(default_value = "vault")]
    service: String,
    /// The trail's public key, a file: needed the first time, and kept.
    #[arg(long)]
    public_key: Option<PathBuf>,
    /// Look again and again, after so many seconds.
    #[arg(long)]
    every_s: Option<u64>,
}

struct Witness {
    dir: PathBuf,
    key: SigningKey,
    trail: VerifyingKey,
}

impl Witness {
    fn open(options: &Options) -> anyhow::Result<Self> {
        let dir = options.place.clone();
        fs::create_dir_all(&dir).with_context(|| format!("`{}` cannot be made", dir.display()))?;
        let (trail, key) = (dir.join("trail.pub"), dir.join("witness.key"));
        if let Some(given) = &options.public_key {
            let given =
                fs::read_to_string(given).with_context(|| format!("`{}` cannot be read", given.display()))?;
            ensure!(
                fs::read_to_string(&trail).map_or(true, |kept| kept.trim() == given.trim()),
                "this witness is of another trail: `{}` has its key",
                trail.display()
            );
            fs::write(&trail, given)?;
        }
        let public = fs::read_to_string(&trail).context("name the trail's public key with --public-key")?;
        let public = hex::decode(public.trim()).context("the trail's public key is not hexadecimal")?;
        if !key.exists() {
            let seed = SigningKey::new_seed().context("the random source failed")?;
            pki::write_secret(&key, &hex::encode(*seed))?;
        }
        let seed = hex::decode(fs::read_to_string(&key)?.trim()).context("witness.key")?;
        let key = SigningKey::from_seed("custody-witness", &seed).context("witness.key")?;
        fs::write(dir.join("witness.vkey"), format!("{}\n", key.verifying_key().witness()))?;
        Ok(Self { dir, key, trail: trail_key(&public)? })
    }

    /// What it saw last.
    fn seen(&self) -> anyhow::Result<Option<TreeHead>> {
        match fs::read_to_string(self.dir.join("checkpoint")) {
            Ok(note) => {
                self.key
                    .verifying_key()
                    .cosigned_at(&note)
                    .context("what was kept is not what was cosigned")?;
                Ok(Some(TreeHead::open(&note, &self.trail)?))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    async fn look(&self, session: &Session, service: &str) -> anyhow::Result<()> {
        let mut client = session.audit(service, "auditor")?;
        let note = client.get_checkpoint(wire::GetCheckpointRequest {}).await?.into_inner().note;
        let now = TreeHead::open(&note, &self.trail).context("the checkpoint is not the trail's")?;
        if let Some(seen) = self.seen()? {
            ensure!(
                now.size >= seen.size,
                "THE TRAIL WAS CUT: it had {} records and has {}",
                seen.size,
                now.size
            );
            if now == seen {
                line(format!("{} records, as before", now.size));
                return Ok(());
            }
            let request = wire::GetConsistencyProofRequest { first_size: seen.size, second_size: now.size };
            let proof = client.get_consistency_proof(request).await?.into_inner();
            let hashes = inclusion::hashes(proof.hashes)?;
            if !is_consistent((seen.size, &seen.root), (now.size, &now.root), &hashes) {
                bail!("THE TRAIL WAS REWRITTEN: it does not go on from its first {} records", seen.size);
            }
        }
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let cosigned = self.key.cosign(&note, time)?;
        custody_rpc::server::write_whole(&self.dir.join("checkpoint"), &cosigned)?;
        line(format!("{} records, seen to go on and cosigned", now.size));
        Ok(())
    }
}

pub(crate) async fn run(
    session: impl Fn() -> anyhow::Result<Session>,
    options: Options,
) -> anyhow::Result<()> {
    let witness = Witness::open(&options)?;
    loop {
        witness.look(&session()?, &options.service).await?;
        let Some(every) = options.every_s else { return Ok(()) };
        tokio::time::sleep(Duration::from_secs(every.max(1))).await;
    }
}
