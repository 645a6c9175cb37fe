//! What a caller sends in parts.

use custody_rpc::status::status;
use std::time::Duration;
use tonic::{Status, Streaming};

/// The next part; none after the last. A caller that has stopped is not waited for.
pub(crate) async fn next<T>(parts: &mut Streaming<T>, timeout: Duration) -> Result<Option<T>, Status> {
    let late = |_| {
        let why = "the next part of the file did not come; send it again";
        status("DEADLINE_EXCEEDED", "UPLOAD_TIMEOUT", why, None)
    };
    tokio::time::timeout(timeout, parts.message()).await.map_err(late)?
}
