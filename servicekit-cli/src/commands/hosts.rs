//! `servicekit hosts`: who is up, and where.

mod follow;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use servicekit::{Instance, Label, ServiceId, State};

use self::follow::Following;
use crate::{
    args,
    context::{Context, unless_told},
    exit::Exit,
    format::{self, Format},
    output::{self, Output},
    progress::Progress,
    report::{Failure, say},
    signals::Signals,
};

/// Print the instances of a service that are up
///
/// Ends with 1 when there are none, and prints nothing then (as JSON: an empty array).
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  servicekit hosts --label web
  servicekit hosts --label web --format lines --no-port
  servicekit hosts --label web --all
  servicekit hosts --label web --wait 3 --timeout 2m
  servicekit hosts --label web --watch
  servicekit hosts --label web -o json")]
pub(crate) struct Hosts {
    /// The service
    #[arg(long)]
    label: Label,
    /// Print this port in place of the registered one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Print hosts without their ports
    #[arg(long, conflicts_with = "port")]
    no_port: bool,
    /// How to print the list; csv unless --all makes it a table
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// The same as --format json, or the default
    #[arg(long, short, value_enum, conflicts_with = "format")]
    output: Option<Output>,
    /// Also print those that are not up, with state and reason, as a table or as JSON
    #[arg(long)]
    all: bool,
    /// Wait until so many are up
    #[arg(
        long, value_name = "N", num_args = 0..=1, default_missing_value = "1", conflicts_with = "watch",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    wait: Option<u32>,
    /// How long to wait; ends with 1 then
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = args::duration, requires = "wait")]
    timeout: Duration,
    /// Print the list now and again on each change
    #[arg(long)]
    watch: bool,
}

impl Hosts {
    pub(crate) async fn run(
        self,
        context: &Context,
        signals: &mut Signals,
    ) -> Result<Exit, Failure> {
        let printer = Printer::new(&self)?;
        if self.watch {
            return watch(&self.label, printer, context, signals).await;
        }
        let answer = unless_told(signals, async {
            match self.wait {
                Some(number) => wait(&self.label, number, self.timeout, printer, context).await,
                None => context.ask(ask(&self.label, printer, context)).await,
            }
        });
        answer.await.unwrap_or_else(|signal| Err(Failure::Interrupted(signal)))
    }
}

async fn ask(label: &Label, mut printer: Printer, context: &Context) -> Result<Exit, Failure> {
    let snapshot = context.connect().await?.registry.list(label).await?;
    let instances = printer.pick(snapshot.instances);
    output::print(printer.render(&instances)?).await?;
    Ok(if instances.is_empty() { Exit::NO } else { Exit::DONE })
}

/// Waits until `number` are up. What is up by the time-out is still printed where the format says how many those are.
async fn wait(
    label: &Label,
    number: u32,
    time: Duration,
    mut printer: Printer,
    context: &Context,
) -> Result<Exit, Failure> {
    let deadline = context.env.clock.now() + time;
    let registry = context.connect_by(Some(deadline)).await?.registry;
    let mut following = Following::new(registry.watch(label));
    let mut progress = Progress::default();
    let mut last = Vec::new();
    while let Some(instances) = context.until(deadline, following.next()).await {
        let up = instances.iter().filter(|instance| instance.state == State::Up).count();
        last = printer.pick(instances);
        if up >= number as usize {
            drop(progress);
            output::print(printer.render(&last)?).await?;
            return Ok(Exit::DONE);
        }
        progress.show(&format!("waiting for {label}: {up} of {number} up"));
    }
    drop(progress);
    if let Some(error) = following.away() {
        return Err(error.into());
    }
    if printer.is_structured() {
        output::print(printer.render(&last)?).await?;
    }
    let up = last.iter().filter(|instance| instance.state == State::Up).count();
    Err(Failure::No(format!("{up} of {number} instances of {label} were up within {time:?}")))
}

async fn watch(
    label: &Label,
    mut printer: Printer,
    context: &Context,
    signals: &mut Signals,
) -> Result<Exit, Failure> {
    let mut printed: Option<String> = None;
    let told = unless_told(signals, async {
        let registry = context.connect_by(None).await?.registry;
        let mut following = Following::new(registry.watch(label));
        loop {
            let instances = printer.pick(following.next().await);
            let text = printer.render_item(&instances)?;
            if printed.as_ref() != Some(&text) {
                output::print(text.clone()).await?;
                printed = Some(text);
            }
        }
    });
    match told.await {
        Ok(ended) => ended,
        Err(_) if printed.is_some() => Ok(Exit::DONE),
        Err(signal) => Err(Failure::Interrupted(signal)),
    }
}

/// Picks what is asked for, and prints it as is asked for.
#[derive(Debug)]
struct Printer {
    /// `None` is the table.
    format: Option<Format>,
    all: bool,
    port: Port,
    /// Whose host was reported to be none.
    reported: BTreeSet<ServiceId>,
}

#[derive(Clone, Copy, Debug)]
enum Port {
    Registered,
    Fixed(u16),
    None,
}

impl Printer {
    fn new(hosts: &Hosts) -> Result<Self, Failure> {
        let named = match hosts.output {
            Some(Output::Json) => Some(Format::Json),
            Some(Output::Text) | None => hosts.format,
        };
        let format = match named {
            None if !hosts.all => Some(Format::Csv),
            Some(Format::Csv | Format::Lines | Format::Prometheus) if hosts.all => {
                let message = "--all shows states: it prints a table, or JSON with --format json";
                return Err(Failure::Usage(message.into()));
            }
            named => named,
        };
        let port = match hosts.port {
            _ if hosts.no_port => Port::None,
            Some(port) => Port::Fixed(port),
            None => Port::Registered,
        };
        Ok(Self { format, all: hosts.all, port, reported: BTreeSet::new() })
    }

    /// Those that are asked for, in natural order, with the ports that are asked for.
    fn pick(&mut self, instances: Vec<Arc<Instance>>) -> Vec<Instance> {
        let mut picked: Vec<_> = instances
            .into_iter()
            .filter(|instance| (self.all || instance.state == State::Up) && self.is_sane(instance))
            .map(Arc::unwrap_or_clone)
            .collect();
        for instance in &mut picked {
            instance.port = match self.port {
                Port::Registered => instance.port,
                Port::Fixed(port) => Some(port),
                Port::None => None,
            };
        }
        format::sort_naturally(&mut picked);
        picked
    }

    /// A host with a comma or a space in it would change the list for whoever reads it.
    fn is_sane(&mut self, instance: &Instance) -> bool {
        let Some(problem) = args::host_problem(&instance.host) else { return true };
        if self.reported.insert(instance.service_id.clone()) {
            say(format_args!("skipped {}: {problem}", instance.service_id));
        }
        false
    }

    fn is_structured(&self) -> bool {
        self.format.is_some_and(Format::is_structured)
    }

    fn render(&self, instances: &[Instance]) -> Result<String, Failure> {
        match self.format {
            Some(format) => format.render(instances),
            None if instances.is_empty() => Ok(String::new()),
            None => Ok(format::table(instances)),
        }
    }

    /// As one of many: a line, or lines with an empty one after them.
    fn render_item(&self, instances: &[Instance]) -> Result<String, Failure> {
        let text = self.render(instances)?;
        let lines = matches!(self.format, None | Some(Format::Lines));
        Ok(if lines || text.is_empty() { text + "\n" } else { text })
    }
}
