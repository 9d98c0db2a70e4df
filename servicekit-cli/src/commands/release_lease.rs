//! `servicekit release-lease`: gives back what a command that has ended took.

use servicekit::{
    Label, ServiceId,
    lease::{Grant, Token},
};

use crate::{
    args,
    context::Context,
    exit::Exit,
    report::{Failure, say},
};

/// Give an unattended lease back
///
/// Ends with 1 when there is none, or when a running process keeps it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  servicekit release-lease --label web --service-id web-1
  servicekit release-lease --label web --token 1763683200123")]
pub(crate) struct ReleaseLease {
    /// The lease
    #[arg(long)]
    label: Label,
    /// Whose grant [default: <label>-<hostname>]
    #[arg(long, value_name = "ID", conflicts_with = "token")]
    service_id: Option<ServiceId>,
    /// The token of the grant
    #[arg(long, value_name = "N", value_parser = args::token)]
    token: Option<Token>,
}

impl ReleaseLease {
    pub(crate) async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let Self { label, service_id, token } = self;
        let id = match service_id {
            Some(id) => id,
            None => args::default_service_id(&label).map_err(Failure::Usage)?,
        };
        let provider = context.connect().await?.leases;
        let grants = provider.inspect(&label).await?.map(|lease| lease.grants).unwrap_or_default();
        let wanted = |grant: &&Grant| match token {
            Some(token) => grant.token == token,
            None => grant.holder == id,
        };
        let (kept, free): (Vec<_>, Vec<_>) =
            grants.iter().filter(wanted).partition(|grant| grant.attended);
        match (free.as_slice(), kept.as_slice()) {
            ([grant], _) => {
                provider.leave(&grant.ticket).await?;
                say(format_args!("released {label}, token {}", grant.token));
                Ok(Exit::DONE)
            }
            ([], [grant, ..]) => Err(Failure::No(format!(
                "a running process keeps {label}: {}, token {}{}; end it, or see `servicekit evict-lease`",
                grant.holder,
                grant.token,
                in_brackets(&grant.note),
            ))),
            ([], []) => Err(Failure::No(match token {
                Some(token) => format!("no grant of {label} has the token {token}"),
                None => format!("{id} does not hold {label}"),
            })),
            (several, _) => {
                let tokens: Vec<_> = several.iter().map(|grant| grant.token.to_string()).collect();
                let tokens = tokens.join(", ");
                Err(Failure::Usage(format!(
                    "{id} holds {label} more than once; give one --token of {tokens}"
                )))
            }
        }
    }
}

fn in_brackets(note: &str) -> String {
    if note.is_empty() { String::new() } else { format!(" ({note})") }
}
