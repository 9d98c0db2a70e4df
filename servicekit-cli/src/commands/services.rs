//! `servicekit services`: every label, with its counts by state.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;
use servicekit::{Label, State, registry::Snapshot};

use crate::{
    context::Context,
    exit::Exit,
    format::Table,
    output::{self, Output},
    report::Failure,
};

/// List every service, with the number of its instances in each state
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  servicekit services
  servicekit services -o json")]
pub(crate) struct Services {
    /// How to print it
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Serialize)]
struct Service {
    label: Label,
    up: usize,
    starting: usize,
    draining: usize,
    down: usize,
    lost: usize,
}

/// How many labels are asked for at a time.
const AT_A_TIME: usize = 8;

impl Services {
    pub(crate) async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let registry = context.connect().await?.registry;
        let count = async |label: Label| {
            let snapshot = registry.list(&label).await?;
            Ok::<_, Failure>(Service::count(label, &snapshot))
        };
        let labels = registry.labels().await?;
        let services = stream::iter(labels).map(count).buffered(AT_A_TIME).try_collect().await?;
        output::print(match self.output {
            Output::Text => table(&services),
            Output::Json => output::json(&services)?,
        })
        .await?;
        Ok(Exit::DONE)
    }
}

impl Service {
    fn count(label: Label, snapshot: &Snapshot) -> Self {
        let of =
            |state| snapshot.instances.iter().filter(|instance| instance.state == state).count();
        Self {
            label,
            up: of(State::Up),
            starting: of(State::Starting),
            draining: of(State::Draining),
            down: of(State::Down),
            lost: of(State::Lost),
        }
    }
}

fn table(services: &Vec<Service>) -> String {
    let mut table = Table::new(["LABEL", "UP", "STARTING", "DRAINING", "DOWN", "LOST"]);
    for Service { label, up, starting, draining, down, lost } in services {
        let counts = [up, starting, draining, down, lost].map(ToString::to_string);
        let [up, starting, draining, down, lost] = counts;
        table.row([label.to_string(), up, starting, draining, down, lost]);
    }
    table.render()
}
