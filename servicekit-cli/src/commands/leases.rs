//! `servicekit leases`: who holds which lease, and who waits.

use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use servicekit::{
    Error, Kind, Label, ServiceId, Timestamp,
    lease::{Grant, Lease, Token, Waiter},
};

use crate::{
    context::Context,
    exit::Exit,
    format::Table,
    output::{self, Output},
    report::{Failure, say},
};

/// List leases: who holds them, since and until when, and who waits in which place
///
/// With --label it ends with 1 when there never was such a lease.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  servicekit leases
  servicekit leases --label web -o json")]
pub(crate) struct Leases {
    /// Only this lease
    #[arg(long)]
    label: Option<Label>,
    /// How to print it
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Serialize)]
struct Row {
    label: Label,
    slots: u32,
    grants: Vec<GrantRow>,
    waiting: Vec<WaiterRow>,
}

#[derive(Serialize)]
struct GrantRow {
    service_id: ServiceId,
    token: Token,
    slot: u32,
    since: Timestamp,
    expires_at: Option<Timestamp>,
    attended: bool,
    evicted: bool,
    note: String,
}

#[derive(Serialize)]
struct WaiterRow {
    service_id: ServiceId,
    place: usize,
    since: Timestamp,
    note: String,
}

/// How many leases are asked for at a time.
const AT_A_TIME: usize = 8;

impl Leases {
    pub(crate) async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let provider = context.connect().await?.leases;
        let names = match &self.label {
            Some(label) => vec![label.clone()],
            None => provider.names().await?,
        };
        let inspect = async |name: Label| provider.inspect(&name).await;
        let leases: Vec<_> = stream::iter(names).map(inspect).buffered(AT_A_TIME).collect().await;
        let mut damaged: Option<Error> = None;
        let is_one_there = leases.iter().any(Result::is_ok);
        let mut rows = Vec::new();
        for lease in leases {
            match lease {
                Ok(lease) => rows.extend(lease.map(Row::from)),
                // The others are shown all the same.
                Err(error)
                    if (is_one_there || error.kind() == Kind::Unexpected)
                        && self.label.is_none() =>
                {
                    if let Some(before) = damaged.replace(error) {
                        say(format_args!("{before}"));
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        let unknown = self.label.filter(|_| rows.is_empty());
        match self.output {
            Output::Text if unknown.is_some() => {}
            Output::Text => output::print(table(&rows)).await?,
            Output::Json => output::print(output::json(&rows)?).await?,
        }
        match unknown {
            Some(label) => Err(Failure::No(format!("no lease is called {label}"))),
            None => damaged.map_or(Ok(Exit::DONE), |error| Err(error.into())),
        }
    }
}

impl From<Lease> for Row {
    fn from(lease: Lease) -> Self {
        let waiting = lease.waiting.into_iter().enumerate();
        Self {
            label: lease.name,
            slots: lease.slots,
            grants: lease.grants.into_iter().map(GrantRow::from).collect(),
            waiting: waiting.map(|(before, waiter)| WaiterRow::new(before + 1, waiter)).collect(),
        }
    }
}

impl From<Grant> for GrantRow {
    fn from(grant: Grant) -> Self {
        Self {
            service_id: grant.holder,
            token: grant.token,
            slot: grant.slot,
            since: grant.since,
            expires_at: grant.expires_at,
            attended: grant.attended,
            evicted: grant.evicted,
            note: grant.note,
        }
    }
}

impl WaiterRow {
    fn new(place: usize, waiter: Waiter) -> Self {
        let Waiter { holder, since, note, .. } = waiter;
        Self { service_id: holder, place, since, note }
    }
}

fn table(rows: &[Row]) -> String {
    let head = ["LABEL", "SLOTS", "SERVICE ID", "STANDING", "TOKEN", "SINCE", "EXPIRES", "NOTE"];
    let mut table = Table::new(head);
    for Row { label, slots, grants, waiting } in rows {
        let lease = || [label.to_string(), slots.to_string()];
        let mut add = |cells: [String; 6]| {
            let [label, slots] = lease();
            let [id, standing, token, since, expires, note] = cells;
            table.row([label, slots, id, standing, token, since, expires, note]);
        };
        for grant in grants {
            let expires = grant.expires_at.as_ref().map_or_else(nothing, ToString::to_string);
            add([
                grant.service_id.to_string(),
                grant.standing(),
                grant.token.to_string(),
                grant.since.to_string(),
                expires,
                grant.note.clone(),
            ]);
        }
        for WaiterRow { service_id, place, since, note } in waiting {
            let standing = format!("waits in place {place}");
            let since = since.to_string();
            add([service_id.to_string(), standing, nothing(), since, nothing(), note.clone()]);
        }
        if grants.is_empty() && waiting.is_empty() {
            add([nothing(), "free".into(), nothing(), nothing(), nothing(), String::new()]);
        }
    }
    table.render()
}

impl GrantRow {
    fn standing(&self) -> String {
        let kind = match (self.evicted, self.attended) {
            (true, _) => "evicted",
            (false, true) => "attended",
            (false, false) => "unattended",
        };
        format!("slot {}, {kind}", self.slot)
    }
}

fn nothing() -> String {
    "-".into()
}
