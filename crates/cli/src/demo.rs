//! The story.
use clap::Args;
#[derive(Args)] pub(crate) struct Options {}
pub(crate) async fn run(_o: Options) -> anyhow::Result<()> { Ok(()) }
