//! `servicekit resize-lease`: changes how many may hold a lease.

use servicekit::Label;

use super::slots;
use crate::{context::Context, exit::Exit, report::Failure};

/// Change how many may hold a lease at a time
///
/// Growing lets waiters in at once; shrinking revokes nobody. Ends with 1 when there never was such a lease.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  servicekit resize-lease --label web --slots 3")]
pub(crate) struct ResizeLease {
    /// The lease
    #[arg(long)]
    label: Label,
    /// So many may hold it
    #[arg(long, value_name = "N", value_parser = slots())]
    slots: u32,
}

impl ResizeLease {
    pub(crate) async fn run(self, context: &Context) -> Result<Exit, Failure> {
        context.connect().await?.leases.resize(&self.label, self.slots).await?;
        Ok(Exit::DONE)
    }
}
