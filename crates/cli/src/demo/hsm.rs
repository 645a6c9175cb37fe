//! A key that is inside an HSM, and a moment without the HSM.

use super::{sql::Dba, stage::Stage};
use crate::softhsm::SoftHsm;
use anyhow::Context as _;
use custody_proto::vault as kv;
use custody_rpc::status::reason;
use std::time::{Duration, Instant};

const KEY: &str = "vaults/contoso/keys/payroll-hsm";

/// How long the vault may take to find an HSM that is back.
const LIMIT: Duration = Duration::from_secs(30);

fn request(id: &str) -> kv::CreateKeyRequest {
    kv::CreateKeyRequest {
        parent: "vaults/contoso".to_owned(),
        key_id: id.to_owned(),
        key_type: "RSA-HSM".to_owned(),
        ..kv::CreateKeyRequest::default()
    }
}

impl Stage {
    /// Makes the key, which the cluster's identity may use and nobody can take out.
    pub(crate) async fn make_hsm_key(&self) -> anyhow::Result<()> {
        let mut officer = self.session.vault("officer")?;
        let made = officer.create_key(request("payroll-hsm")).await?.into_inner();
        let made = made.current_version.unwrap_or_default();
        let what = format!("{KEY}: {} {} bits, made inside the HSM", made.key_type, made.key_size_bits);
        self.check(made.key_type == "RSA-HSM", &what)?;
        let backup = kv::BackupKeyRequest { name: KEY.to_owned() };
        let refused = officer.backup_key(backup).await.err().context("CHECK FAILED: it was taken out")?;
        let said = reason(&refused);
        let what = format!("it never leaves it, not even sealed: {said}");
        self.check(said == "INVALID_KEY_TRANSITION", &what)?;
        self.grant_on(KEY).await.map(drop)
    }

    /// Takes the HSM away and brings it back; a database that has its key goes on meanwhile, with all its accounts.
    pub(crate) async fn lose_hsm(&self, database: Option<(&Dba, u64)>) -> anyhow::Result<()> {
        let hsm = SoftHsm::of(&self.dir);
        hsm.take_away()?;
        let tried = self.session.vault("officer")?.create_key(request("another")).await;
        let lost = tried.err().context("CHECK FAILED: a key was made in an HSM that is not there")?;
        let said = reason(&lost);
        self.check(
            said == "HSM_UNAVAILABLE",
            &format!("the HSM's plug is pulled, and the vault says so: {said}"),
        )?;
        let other = kv::GetKeyRequest { name: super::KEY.to_owned() };
        let served = self.session.vault("officer")?.get_key(other).await.is_ok();
        self.check(served, "that is an outage and no revocation: other keys are served")?;
        if let Some((dba, accounts)) = database {
            self.check(dba.accounts()? == accounts, "and under its lease the database works on")?;
        }
        hsm.bring_back()?;
        let back = Instant::now();
        loop {
            match self.session.vault("officer")?.create_key(request("another")).await {
                Ok(_) => break,
                Err(e) if back.elapsed() > LIMIT => {
                    anyhow::bail!("CHECK FAILED: the HSM is not found again: {e}")
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        self.check(true, &format!("it is back, and found after {} ms", back.elapsed().as_millis()))
    }

    /// The cluster's data under a key that is inside an HSM.
    pub(crate) async fn move_into_hsm(&self, id: &str, dba: &Dba, accounts: u64) -> anyhow::Result<()> {
        self.make_hsm_key().await?;
        self.change_key(id, Some(KEY)).await?;
        self.lose_hsm(Some((dba, accounts))).await
    }
}
