//! Acting as each principal, and checking what comes of it.

use super::{IDENTITY, KEY, ROLE, scan, sql::PASSWORD};
use crate::{
    audit, cluster, inclusion,
    output::{Format, line},
    session::Session,
};
use anyhow::{Context as _, ensure};
use custody_audit::Earlier;
use custody_proto::{control as ctl, vault as kv};
use custody_rpc::status::reason;
use prost_types::Timestamp;
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};
use tonic::{Code, Response, Status};

pub(crate) struct Stage {
    pub(crate) dir: PathBuf,
    pub(crate) session: Session,
    scene: usize,
    started: Instant,
    assignment: String,
    /// The officers' shares of the vault's own seal.
    pub(crate) shares: Vec<String>,
    refused: usize,
    /// A checkpoint of the vault's trail that the auditor keeps.
    noted: Option<String>,
}

/// A role in the customer's vault.
fn assignment(principal: &str, role: &str, scope: &str) -> kv::CreateRoleAssignmentRequest {
    let role_assignment = Some(kv::RoleAssignment {
        principal: principal.to_owned(),
        role: role.to_owned(),
        scope: scope.to_owned(),
        ..kv::RoleAssignment::default()
    });
    kv::CreateRoleAssignmentRequest { parent: "vaults/contoso".to_owned(), role_assignment }
}

impl Stage {
    pub(crate) fn open(dir: PathBuf) -> anyhow::Result<Self> {
        let session = Session::open(&dir, None, Format::Table)?;
        Ok(Self {
            dir,
            session,
            scene: 0,
            started: Instant::now(),
            assignment: String::new(),
            shares: Vec::new(),
            refused: 0,
            noted: None,
        })
    }

    pub(crate) fn scene(&mut self, title: &str) {
        self.scene += 1;
        line(format!("\n{:2} {title}   [{:.1} s]", self.scene, self.started.elapsed().as_secs_f32()));
    }

    pub(crate) fn check(&self, holds: bool, what: &str) -> anyhow::Result<()> {
        ensure!(holds, "CHECK FAILED: {what}");
        line(format!("   ok  {what}"));
        Ok(())
    }

    pub(crate) async fn make_key(&mut self) -> anyhow::Result<()> {
        let mut officer = self.session.vault("officer")?;
        let vault = kv::Vault { purge_protection: true, ..kv::Vault::default() };
        officer
            .create_vault(kv::CreateVaultRequest { vault_id: "contoso".to_owned(), vault: Some(vault) })
            .await?;
        let request = kv::CreateKeyRequest {
            parent: "vaults/contoso".to_owned(),
            key_id: "payroll".to_owned(),
            key_size_bits: 3072,
            ..kv::CreateKeyRequest::default()
        };
        let key = officer.create_key(request).await?.into_inner();
        let version = key.current_version.unwrap_or_default();
        self.check(
            version.key_size_bits == 3072,
            &format!(
                "{KEY}: RSA {} bits, {} for {} days",
                version.key_size_bits, key.recovery_level, key.recoverable_days
            ),
        )?;
        self.session
            .control("sysadmin")?
            .create_identity(ctl::CreateIdentityRequest { identity_id: "payroll".to_owned() })
            .await?;
        let early = self
            .create("too-early", None)
            .await
            .err()
            .context("CHECK FAILED: a cluster was made without rights on its key")?;
        let why =
            early.downcast_ref::<Status>().map_or_else(|| early.to_string(), |s| s.message().to_owned());
        let shown = why.split(" (").next().unwrap_or_default();
        self.check(
            why.contains("denied"),
            &format!("without rights, making a cluster fails and leaves nothing: {shown}"),
        )?;
        let clusters = self
            .session
            .control("sysadmin")?
            .list_clusters(ctl::ListClustersRequest::default())
            .await?
            .into_inner()
            .clusters;
        self.check(clusters.is_empty(), "nothing was left behind")?;
        self.grant().await?;
        self.check(true, &format!("{IDENTITY} may get, wrapKey and unwrapKey on {KEY}"))
    }

    pub(crate) async fn grant(&mut self) -> anyhow::Result<()> {
        self.assignment = self.grant_on(KEY).await?;
        Ok(())
    }

    /// Lets the cluster's identity use a key; answers the assignment's name.
    pub(crate) async fn grant_on(&self, key: &str) -> anyhow::Result<String> {
        self.give_role(IDENTITY, ROLE, key).await
    }

    /// The officer gives a role in the customer's vault; answers the assignment's name.
    pub(crate) async fn give_role(&self, principal: &str, role: &str, scope: &str) -> anyhow::Result<String> {
        let request = assignment(principal, role, scope);
        Ok(self.session.access("officer")?.create_role_assignment(request).await?.into_inner().name)
    }

    /// The officer takes a role away.
    pub(crate) async fn take_role(&self, assignment: String) -> anyhow::Result<()> {
        let request = kv::DeleteRoleAssignmentRequest { name: assignment };
        self.session.access("officer")?.delete_role_assignment(request).await?;
        Ok(())
    }

    /// The auditor notes what the vault's trail is now.
    pub(crate) async fn note_checkpoint(&mut self) -> anyhow::Result<()> {
        let mut auditor = self.session.audit("vault", "auditor")?;
        let request = custody_proto::audit::GetCheckpointRequest {};
        let note = auditor.get_checkpoint(request).await?.into_inner().note;
        self.check(!note.is_empty(), "the auditor keeps a checkpoint of the trail, in a place of his own")?;
        self.noted = Some(note);
        Ok(())
    }

    pub(crate) async fn revoke(&self) -> anyhow::Result<()> {
        self.take_role(self.assignment.clone()).await
    }

    async fn create(&self, id: &str, source: Option<(&str, Timestamp)>) -> anyhow::Result<ctl::Cluster> {
        let encryption = Some(ctl::Encryption { key: KEY.to_owned(), managed_identity: IDENTITY.to_owned() });
        let cluster = ctl::Cluster {
            worker_count: 2,
            volume_size_bytes: 1 << 30,
            encryption,
            wal_archiving: true,
            ..ctl::Cluster::default()
        };
        let request = ctl::CreateClusterRequest {
            cluster_id: id.to_owned(),
            cluster: Some(cluster),
            administrator_password: PASSWORD.to_owned(),
            source_backup: source.map(|(backup, _)| backup.to_owned()).unwrap_or_default(),
            restore_time: source.map(|(_, moment)| moment),
        };
        let operation = self.session.control("sysadmin")?.create_cluster(request).await?.into_inner();
        cluster::wait(&self.session, operation, true).await?;
        self.cluster(id).await
    }

    pub(crate) async fn make_cluster(
        &self,
        id: &str,
        source: Option<(&str, Timestamp)>,
    ) -> anyhow::Result<ctl::Cluster> {
        let started = Instant::now();
        let made = self.create(id, source).await?;
        let what = format!(
            "clusters/{id} is {} after {} ms, with {} PostgreSQL servers",
            cluster::state(&made),
            started.elapsed().as_millis(),
            made.nodes.len()
        );
        self.check(cluster::state(&made) == "READY" && made.nodes.len() == 3, &what)?;
        Ok(made)
    }

    pub(crate) async fn cluster(&self, id: &str) -> anyhow::Result<ctl::Cluster> {
        let request = ctl::GetClusterRequest { name: format!("clusters/{id}") };
        Ok(self.session.control("sysadmin")?.get_cluster(request).await?.into_inner())
    }

    pub(crate) async fn expect_state(&self, id: &str, state: &str, limit: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + limit;
        loop {
            let now = self.cluster(id).await?;
            if cluster::state(&now) == state {
                let reason = if now.state_reason.is_empty() {
                    String::new()
                } else {
                    format!(", because {}", now.state_reason)
                };
                return self.check(true, &format!("clusters/{id} is {state}{reason}"));
            }
            ensure!(
                Instant::now() < until,
                "CHECK FAILED: clusters/{id} is {} and not {state} after {limit:?}",
                cluster::state(&now)
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn back_up(&self, id: &str, backup: &str, base: &str) -> anyhow::Result<()> {
        let request = ctl::CreateBackupRequest {
            parent: format!("clusters/{id}"),
            backup_id: backup.to_owned(),
            base: base.to_owned(),
        };
        let operation = self.session.control("sysadmin")?.create_backup(request).await?.into_inner();
        cluster::wait(&self.session, operation, true).await?;
        let what = if base.is_empty() { String::new() } else { format!(", what has changed since {base}") };
        self.check(
            true,
            &format!("backups/{backup}: three volumes{what}, each under a key of its own, wrapped by {KEY}"),
        )
    }

    /// Changes a cluster to a key of the customer's, or to the service's.
    pub(crate) async fn change_key(&self, id: &str, customers: Option<&str>) -> anyhow::Result<()> {
        let name = format!("clusters/{id}");
        let started = Instant::now();
        let encryption = customers
            .map(|key| ctl::Encryption { key: key.to_owned(), managed_identity: IDENTITY.to_owned() });
        let request = ctl::ChangeEncryptionRequest { name: name.clone(), encryption };
        let before = self.cluster(id).await?.encryption.unwrap_or_default().key;
        if !before.is_empty() {
            let tried = self.session.control("sysadmin")?.change_encryption(request.clone()).await;
            self.check(tried.is_err(), "the sysadmin may not take it from the customer's key")?;
        }
        let who = if before.is_empty() { "sysadmin" } else { "officer" };
        let operation = self.session.control(who)?.change_encryption(request).await?.into_inner();
        cluster::wait(&self.session, operation, true).await?;
        let (ms, key) =
            (started.elapsed().as_millis(), self.cluster(id).await?.encryption.unwrap_or_default().key);
        let under = customers.unwrap_or("the service-managed key");
        self.check(
            key == customers.unwrap_or_default(),
            &format!("{name} is under {under} after {ms} ms: only wrapped keys changed"),
        )
    }

    /// Waits until everything committed before a moment is archived.
    pub(crate) async fn expect_archived(&self, id: &str, moment: &Timestamp) -> anyhow::Result<()> {
        let until = Instant::now() + Duration::from_secs(60);
        let reaches = |n: &ctl::ClusterNode| {
            n.wal_reaches.is_some_and(|t| (t.seconds, t.nanos) > (moment.seconds, moment.nanos))
        };
        while !self.cluster(id).await?.nodes.iter().all(reaches) {
            ensure!(Instant::now() < until, "CHECK FAILED: the log of clusters/{id} is not archived");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.check(
            true,
            "the log of all three nodes is archived beyond that moment, sealed, beside the backups",
        )
    }

    pub(crate) async fn verify_backup(&self, backup: &str) -> anyhow::Result<()> {
        let name = format!("backups/{backup}");
        let request = ctl::VerifyBackupRequest { name: name.clone() };
        let operation = self.session.control("sysadmin")?.verify_backup(request).await?.into_inner();
        cluster::wait(&self.session, operation, true).await?;
        self.check(true, &format!("{name} and what it adds to were read: every chunk authenticates"))
    }

    pub(crate) fn search(&self, planted: &str) -> anyhow::Result<()> {
        let control = self.dir.join("control-of-the-search");
        std::fs::write(&control, planted)?;
        let found = scan::search(&self.dir, planted.as_bytes())?;
        std::fs::remove_file(&control)?;
        self.check(
            found.files.contains(&control),
            "the search finds the secret where it was put in clear, as a control",
        )?;
        let others: Vec<_> = found.files.iter().filter(|f| **f != control).collect();
        self.check(
            others.is_empty(),
            &format!(
                "it is in none of the other {} files ({} MiB){}",
                found.searched - 1,
                found.bytes >> 20,
                if others.is_empty() { String::new() } else { format!(": {others:?}") }
            ),
        )
    }

    fn refusal<T>(
        &mut self,
        who: &str,
        what: &str,
        answer: Result<Response<T>, Status>,
    ) -> anyhow::Result<()> {
        let refused = answer.err().with_context(|| format!("CHECK FAILED: {who} may {what}"))?;
        self.refused += 1;
        self.check(
            refused.code() == Code::PermissionDenied,
            &format!("{who} may not {what}: {}", reason(&refused)),
        )
    }

    /// Each duty tries what it may not do, and each refusal must be in a trail.
    pub(crate) async fn forbidden(&mut self) -> anyhow::Result<()> {
        let before = self.denials().await?;
        self.refused = 0;
        let name = || KEY.to_owned();
        let cluster = ctl::CreateClusterRequest {
            cluster_id: "mine".to_owned(),
            administrator_password: PASSWORD.to_owned(),
            ..ctl::CreateClusterRequest::default()
        };
        let unwrap =
            kv::UnwrapKeyRequest { name: name(), algorithm: String::new(), ciphertext: vec![0; 384] };
        let answer = self.session.control("officer")?.create_cluster(cluster.clone()).await;
        self.refusal("the security officer", "make a cluster", answer)?;
        let answer = self.session.vault("officer")?.unwrap_key(unwrap.clone()).await;
        self.refusal("the security officer", "unwrap with the key", answer)?;
        let answer = self.session.vault("sysadmin")?.unwrap_key(unwrap.clone()).await;
        self.refusal("the sysadmin", "unwrap with the key", answer)?;
        let own = assignment("principals/sysadmin", ROLE, KEY);
        let answer = self.session.access("sysadmin")?.create_role_assignment(own).await;
        self.refusal("the sysadmin", "give itself access", answer)?;
        let answer = self.session.vault("dba")?.get_key(kv::GetKeyRequest { name: name() }).await;
        self.refusal("the DBA", "read the key", answer)?;
        let answer = self
            .session
            .control("dba")?
            .delete_cluster(ctl::DeleteClusterRequest { name: "clusters/payroll".to_owned() })
            .await;
        self.refusal("the DBA", "delete the cluster", answer)?;
        let answer = self.session.vault("auditor")?.delete_key(kv::DeleteKeyRequest { name: name() }).await;
        self.refusal("the auditor", "delete the key", answer)?;
        let answer = self.session.control("auditor")?.create_cluster(cluster).await;
        self.refusal("the auditor", "make a cluster", answer)?;
        let after = self.denials().await?;
        self.check(
            after - before == self.refused,
            &format!("all {} refusals are in the audit trails", self.refused),
        )
    }

    async fn denials(&self) -> anyhow::Result<usize> {
        let mut count = 0;
        for service in ["vault", "control"] {
            let mut page_token = String::new();
            loop {
                let request = custody_proto::audit::ListRecordsRequest {
                    page_size: 1000,
                    page_token,
                    ..Default::default()
                };
                let page = self.session.audit(service, "auditor")?.list_records(request).await?.into_inner();
                // Refusals of the cluster's own node while it has no access belong to the story, not to this count.
                count += page
                    .records
                    .iter()
                    .filter(|r| {
                        r.json.contains("\"resultType\":\"Denied\"") && !r.json.contains("managedIdentities")
                    })
                    .count();
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    break;
                }
            }
        }
        Ok(count)
    }

    pub(crate) async fn rotate(&self, id: &str) -> anyhow::Result<()> {
        let started = Instant::now();
        let key = self
            .session
            .vault("officer")?
            .rotate_key(kv::RotateKeyRequest { name: KEY.to_owned() })
            .await?
            .into_inner();
        let version = key.current_version.unwrap_or_default().name;
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let now = self
                .session
                .control("sysadmin")?
                .rewrap_cluster(ctl::RewrapClusterRequest { name: format!("clusters/{id}") })
                .await?
                .into_inner();
            if now.nodes.iter().all(|n| n.key_version == version) {
                break;
            }
            ensure!(Instant::now() < until, "CHECK FAILED: the volumes did not follow the key's new version");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.check(
            true,
            &format!(
                "the volumes of all {} servers were re-wrapped within {} ms; no data was touched",
                3,
                started.elapsed().as_millis()
            ),
        )
    }

    pub(crate) async fn verify_trails(&self) -> anyhow::Result<()> {
        // A checkpoint is signed after a second without records; the report counts what is not signed yet.
        for service in ["vault", "control", "identity"] {
            let noted = self.noted.as_deref().filter(|_| service == "vault");
            let known = Earlier { head: None, checkpoint: noted };
            let report = audit::verify(&self.dir.join(service).join("data/audit"), None, known)?;
            self.check(
                report.records > 0 && report.unfinished_bytes == 0,
                &format!(
                    "{service}: {} records in one tree, {} checkpoints signed, {} refusals",
                    report.records, report.checkpoints, report.denied
                ),
            )?;
        }
        let noted = self.noted.as_deref().and_then(|note| note.lines().nth(1)).unwrap_or_default();
        self.check(
            self.noted.is_some(),
            &format!("the vault's goes on from the checkpoint over {noted} records that the auditor kept from the beginning"),
        )?;
        let records = audit::records(&self.session, "vault", &audit::Filter::of(KEY)).await?;
        let last = records.last().context("nothing is recorded about the key")?;
        let proof = inclusion::fetch(&self.session, "vault", last.sequence, None).await?;
        let key = audit::read_key(&self.dir.join("vault/data/audit/checkpoint.pub"))?;
        self.check(
            inclusion::check(&proof, &key).is_ok_and(|record| record == last.json),
            &format!(
                "record {} is proven to be in it, by {} hashes",
                last.sequence,
                proof.lines().count() - 9
            ),
        )?;
        line(format!("   the last records about {KEY}:"));
        for record in records.iter().rev().take(4).rev() {
            line(format!("     {} {:.170}", record.sequence, record.json));
        }
        Ok(())
    }
}
