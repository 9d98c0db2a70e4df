//! `servicekit evict-lease`: ends somebody else's grant.

use servicekit::{Label, lease::Token};

use crate::{
    args,
    context::Context,
    exit::Exit,
    report::{Failure, say},
};

/// End a grant of a lease
///
/// The holder is told, stops its work, and gives the lease back; if it does not answer, the lease is free one ttl later.
/// An unattended lease is free at once. Ends with 1 when no grant has this token.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  servicekit evict-lease --label web --token 1763683200123
  servicekit evict-lease --label web --token 1763683200123 --force")]
pub(crate) struct EvictLease {
    /// The lease
    #[arg(long)]
    label: Label,
    /// The token of the grant; `servicekit leases` shows it
    #[arg(long, value_name = "N", value_parser = args::token)]
    token: Token,
    /// Free it at once: the next holder may begin before this one has stopped
    #[arg(long)]
    force: bool,
}

impl EvictLease {
    pub(crate) async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let Self { label, token, force } = self;
        let provider = context.connect().await?.leases;
        let grants = provider.inspect(&label).await?.map(|lease| lease.grants).unwrap_or_default();
        let is_unattended = grants.iter().any(|grant| grant.token == token && !grant.attended);
        provider.evict(&label, token, force).await?;
        if force {
            say(format_args!(
                "warning: {label} is free now; whoever held token {token} may still work, and overlap with the next"
            ));
        } else if is_unattended {
            say(format_args!("evicted token {token}, which no process keeps; {label} is free"));
        } else {
            say(format_args!(
                "evicted token {token}; {label} is free when its holder has stopped, or one ttl from now"
            ));
        }
        Ok(Exit::DONE)
    }
}
