//! Proofs that a record is in a trail, as files: <https://c2sp.org/tlog-proof>.

use crate::session::Session;
use anyhow::{Context as _, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use custody_audit::{
    TreeHead, trail_key,
    tree::{Hash, leaf_hash, root_by_inclusion},
};
use custody_clients::Audit;
use custody_proto::audit as wire;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::time::Duration;

const FIRST_LINE: &str = "c2sp.org/tlog-proof@v1";
/// A checkpoint is signed within a second of a record.
const CHECKPOINT_WAIT: Duration = Duration::from_secs(10);

/// The record's bytes, of a line of a journal's file or of themselves.
fn bytes_of(text: &str) -> &str {
    #[derive(Deserialize)]
    struct Line<'a> {
        #[serde(borrow)]
        record: &'a RawValue,
    }
    serde_json::from_str(text).map_or_else(|_| text.trim_end(), |line: Line<'_>| line.record.get())
}

/// The hashes of a proof, as an answer has them.
pub(crate) fn hashes(given: Vec<Vec<u8>>) -> anyhow::Result<Vec<Hash>> {
    let hashes = given.into_iter().map(Hash::try_from).collect::<Result<Vec<_>, _>>();
    hashes.ok().context("a hash has not 32 bytes")
}

/// A record, as the trail has it.
async fn read(client: &mut Audit, sequence: u64) -> anyhow::Result<String> {
    let request = wire::TailRecordsRequest { after_sequence: sequence.saturating_sub(1) };
    let mut records = client.tail_records(request).await?.into_inner();
    // A record that is not there may yet be written; whoever asks for it has seen its number.
    let found = tokio::time::timeout(CHECKPOINT_WAIT, records.message()).await.ok().transpose()?;
    let record = found
        .flatten()
        .filter(|record| record.sequence == sequence)
        .with_context(|| format!("the trail has no record {sequence} that you may read; one that retention removed is named with --record"))?;
    Ok(record.json)
}

/// A proof for a record, in the tree of the last checkpoint; for these bytes of one, where they are given.
pub(crate) async fn fetch(
    session: &Session,
    service: &str,
    sequence: u64,
    given: Option<String>,
) -> anyhow::Result<String> {
    let mut client = session.audit(service, "auditor")?;
    let record = match given {
        Some(text) => bytes_of(&text).to_owned(),
        None => read(&mut client, sequence).await?,
    };
    let signed = async {
        loop {
            let note = client.get_checkpoint(wire::GetCheckpointRequest {}).await?.into_inner().note;
            if let Some(tree) = TreeHead::stated(&note).filter(|tree| tree.size >= sequence) {
                return anyhow::Ok((note, tree));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let (note, tree) = tokio::time::timeout(CHECKPOINT_WAIT, signed)
        .await
        .context("no checkpoint has the record yet; its journal's disk may be full")??;
    let request = wire::GetInclusionProofRequest { sequence, tree_size: tree.size };
    let proof = client.get_inclusion_proof(request).await?.into_inner();
    let path = hashes(proof.hashes)?;
    let root = root_by_inclusion(&leaf_hash(record.as_bytes()), sequence - 1, tree.size, &path);
    ensure!(
        root == Some(tree.root),
        "what is given is not record {sequence}, byte for byte as the trail had it"
    );
    let hashes: String = path.iter().map(|hash| STANDARD.encode(hash) + "\n").collect();
    let extra = STANDARD.encode(&record);
    Ok(format!("{FIRST_LINE}\nextra {extra}\nindex {}\n{hashes}\n{note}", sequence - 1))
}

/// The record of a proof, if it is in the tree that the trail's key has signed.
pub(crate) fn check(proof: &str, public: &[u8]) -> anyhow::Result<String> {
    let (head, note) = proof.split_once("\n\n").context("it is not a proof")?;
    let mut lines = head.lines();
    ensure!(lines.next() == Some(FIRST_LINE), "it is not a proof of inclusion (c2sp.org/tlog-proof)");
    let extra = lines.next().and_then(|l| l.strip_prefix("extra ")).context("it has no record")?;
    let record = STANDARD.decode(extra).context("its record is not base64")?;
    let index = lines.next().and_then(|l| l.strip_prefix("index ")).context("it names no index")?;
    let index = index.parse().context("its index is no number")?;
    let hash = |line: &str| -> anyhow::Result<Hash> {
        let bytes = STANDARD.decode(line).context("a hash is not base64")?;
        bytes.try_into().ok().context("a hash has not 32 bytes")
    };
    let path = lines.map(hash).collect::<anyhow::Result<Vec<_>>>()?;
    let key = trail_key(public).context("the public key")?;
    let tree = TreeHead::open(note, &key).context("its checkpoint")?;
    let root = root_by_inclusion(&leaf_hash(&record), index, tree.size, &path);
    ensure!(root == Some(tree.root), "the record is not in the tree that was signed");
    String::from_utf8(record).context("its record is no text")
}
