//! `servicekit why`: the last changes of an instance.

use std::sync::Arc;

use indicatif::HumanDuration;
use serde::Serialize;
use servicekit::{Instance, Label, Registry, ServiceId, State, Timestamp, instance::StateChange};

use crate::{
    context::Context,
    exit::Exit,
    format::{self, Summary, Table},
    output::{self, Output},
    report::{Failure, one_line},
};

/// Show the last changes of an instance: when, from what to what, by which rule, and what the probe said
///
/// The latest change comes first; the last ten are kept. An instance is lost when its node gives no sign of life: nobody saw
/// it change, so that this is no change of its own. Without --service-id all instances of the service are shown. Ends with 1
/// when there is none.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  servicekit why --label web
  servicekit why --label web --service-id web-1
  servicekit why --label web -o json")]
pub(crate) struct Why {
    /// The service
    #[arg(long)]
    label: Label,
    /// Only this one of its instances
    #[arg(long, value_name = "ID")]
    service_id: Option<ServiceId>,
    /// How to print it
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Serialize)]
struct History<'a> {
    #[serde(flatten)]
    summary: Summary<'a>,
    /// The latest first.
    changes: Vec<&'a StateChange>,
}

/// So many are named where the one that is asked for is not there.
const NAMED: usize = 10;

impl Why {
    pub(crate) async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let registry = context.connect().await?.registry;
        let all = registry.list(&self.label).await?.instances;
        let asked =
            |one: &&Arc<Instance>| self.service_id.as_ref().is_none_or(|id| one.service_id == *id);
        let mut found: Vec<_> = all.iter().filter(asked).map(|one| Instance::clone(one)).collect();
        format::sort_naturally(&mut found);
        let now = context.env.clock.wall();
        output::print(match self.output {
            Output::Text => found.iter().map(|one| text(one, now)).collect::<Vec<_>>().join("\n"),
            Output::Json => output::json(&found.iter().map(History::of).collect::<Vec<_>>())?,
        })
        .await?;
        if found.is_empty() { Err(self.none(&all, &*registry).await?) } else { Ok(Exit::DONE) }
    }

    /// Names what there is instead.
    async fn none(
        &self,
        instances: &[Arc<Instance>],
        registry: &dyn Registry,
    ) -> Result<Failure, Failure> {
        let label = &self.label;
        Ok(Failure::No(match &self.service_id {
            Some(id) if !instances.is_empty() => {
                let there = named(instances.iter().map(|instance| &instance.service_id));
                format!("no instance of {label} is called {id}; there are: {there}")
            }
            _ => {
                let labels = registry.labels().await?;
                match named(&labels) {
                    there if there.is_empty() => {
                        format!("no instance of {label} is registered, nor of any other service")
                    }
                    there => format!("no instance of {label} is registered; services: {there}"),
                }
            }
        }))
    }
}

impl<'a> History<'a> {
    fn of(instance: &'a Instance) -> Self {
        Self { summary: Summary::of(instance), changes: instance.changes.iter().rev().collect() }
    }
}

/// What is the matter on the first line, and what led to it below.
fn text(instance: &Instance, now: Timestamp) -> String {
    let Instance { label, service_id, state, since, reason, changes, .. } = instance;
    let last = changes.last();
    // A reader's judgement, and the state before the first change, are in no row of the table.
    let is_told = last.is_some_and(|last| last.to == *state);
    let why = if is_told { String::new() } else { format!(": {reason}") };
    let since = match state {
        State::Lost => String::new(),
        _ => format!(" since {since} ({})", HumanDuration(now.since(*since))),
    };
    let head = format!("{label} {service_id} at {} is {state}{since}{why}", instance.address());
    let mut table = Table::new(["WHEN", "FROM", "TO", "RULE", "OUTPUT"]);
    for StateChange { at, from, to, rule, output } in changes.iter().rev() {
        let (from, to) = (from.to_string(), to.to_string());
        table.row([at.to_string(), from, to, rule.clone(), output.clone()]);
    }
    let table = if changes.is_empty() { String::new() } else { table.render() };
    format!("{}\n{table}", one_line(&head))
}

fn named<T: ToString>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<_> = names.into_iter().map(|name| name.to_string()).collect();
    let more = if names.len() > NAMED { ", …" } else { "" };
    names[..names.len().min(NAMED)].join(", ") + more
}
