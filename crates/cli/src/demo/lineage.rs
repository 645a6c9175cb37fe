//! Whether an old version of the key can be retired, and what it takes.

use super::{KEY, stage::Stage};
use crate::lineage;
use anyhow::Context as _;
use custody_proto::vault::{GetLineageRequest, VersionLineage};

impl Stage {
    /// The first version of the key, once rotated away from: what needs it is wrapped anew, and then nothing does.
    pub(crate) async fn retire_first_version(&self) -> anyhow::Result<()> {
        let first = self.first_version().await?;
        self.check(
            !first.retirable,
            &format!("the first version cannot be retired yet: {}", first.obstacle),
        )?;
        let done = lineage::wrap_anew(&self.session, KEY, lineage::Rewrap::default()).await?;
        self.check(
            done.complete && done.failures.is_empty(),
            &format!(
                "{} volumes, backups and logs were wrapped anew; what is sealed in them was not touched",
                done.total
            ),
        )?;
        let first = self.first_version().await?;
        let what = match first.obstacle.as_str() {
            "" => "now nothing needs the first version: it can be retired".to_owned(),
            obstacle => format!("nothing needs the first version, but: {obstacle}"),
        };
        self.check(first.retirable, &what)
    }

    async fn first_version(&self) -> anyhow::Result<VersionLineage> {
        let request = GetLineageRequest { name: format!("{KEY}/lineage") };
        let mut versions = self.session.lineage("officer")?.get_lineage(request).await?.into_inner().versions;
        versions.pop().context("the key has no versions")
    }
}
