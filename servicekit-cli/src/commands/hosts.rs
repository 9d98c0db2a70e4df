//! `servicekit hosts`: who is up, and where.

mod follow;
mod hook;
mod printer;

use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use servicekit::{Error, Kind, Label, State};

use self::{follow::Following, hook::Hook, printer::Printer};
use crate::{
    args,
    context::{Context, unless_told},
    exit::Exit,
    format::Format,
    output::{self, Output},
    progress::Progress,
    report::{Failure, say},
    signals::Signals,
};

/// Print the instances of a service that are up
///
/// Ends with 1 when there are none. It prints nothing then, or what stands for none in the format: an empty array, a backend
/// without servers, variables that are empty.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  servicekit hosts --label web
  servicekit hosts --label web --format lines --no-port
  servicekit hosts --label web --all
  servicekit hosts --label web --wait 3 --timeout 2m
  servicekit hosts --label web --watch
  servicekit hosts --label web -o json
  servicekit hosts --label web --format haproxy
  servicekit hosts --label web --exec 'cat > /tmp/web.hosts'

The command of --exec finds the list on its standard input, one host:port a line, or in the --format that is named. It runs \
for the list that is there first, also when that is empty, and again whenever the list has changed, one run at a time. One that \
fails is tried again, after 1s to 60s, or with the next list; one that hangs is told of after 30s. While the store is away the \
list stays as it was. The names of --format env and prometheus take letters, digits and '_': all else in a label or an info key \
becomes '_', so that a-b and a_b share a name there.")]
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
    /// Run this through sh, with the list on its standard input, now and again on each change
    #[arg(long, value_name = "CMD", conflicts_with = "wait", value_parser = NonEmptyStringValueParser::new())]
    exec: Option<String>,
}

impl Hosts {
    pub(crate) async fn run(
        self,
        context: &Context,
        signals: &mut Signals,
    ) -> Result<Exit, Failure> {
        let printer = Printer::new(&self)?;
        if self.watch || self.exec.is_some() {
            return watch(self, printer, context, signals).await;
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

/// How long nothing has to change before it is told who is lost.
const QUIET: Duration = Duration::from_secs(2);

async fn ask(label: &Label, mut printer: Printer, context: &Context) -> Result<Exit, Failure> {
    let snapshot = context.connect().await?.registry.list(label).await?;
    let list = printer.pick(&snapshot.instances, say);
    printer.tell_lost(&snapshot.instances, say);
    output::print(printer.render(&list)?).await?;
    Ok(if printer.finds_any(&list) { Exit::DONE } else { Exit::NO })
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
    let (mut last, mut up, mut is_heard) = (Vec::new(), 0, false);
    while let Some(instances) = context.until(deadline, following.next()).await {
        last = printer.pick(&instances?, |note| progress.say(note));
        is_heard = true;
        up = last.iter().filter(|instance| instance.state == State::Up).count();
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
    if !is_heard {
        // That is no answer to give.
        let message = "the store did not answer within the time to wait";
        return Err(Error::new(Kind::Timeout, message).during("list").at(label).into());
    }
    if printer.is_structured() {
        output::print(printer.render(&last)?).await?;
    }
    Err(Failure::No(format!("{up} of {number} instances of {label} were up within {time:?}")))
}

async fn watch(
    hosts: Hosts,
    mut printer: Printer,
    context: &Context,
    signals: &mut Signals,
) -> Result<Exit, Failure> {
    let hidden = context.secret_variables();
    let hook = hosts.exec.map(|command| Hook::new(command, hidden, context.env.clone()));
    let mut is_known = false;
    let follow = async {
        let registry = context.connect_by(None).await?.registry;
        let mut following = Following::new(registry.watch(&hosts.label));
        let mut printed = None;
        let mut instances = following.next().await?;
        is_known = true;
        loop {
            let list = printer.pick(&instances, say);
            if let Some(hook) = &hook {
                hook.take(printer.render_for_hook(&list)?);
            }
            let text = printer.render_item(&list)?;
            if hosts.watch && printed.as_ref() != Some(&text) {
                output::print(text.clone()).await?;
                printed = Some(text);
            }
            // Who takes their leave may seem to be lost for a moment.
            let soon = context.env.clock.now() + QUIET;
            instances = match context.until(soon, following.next()).await {
                Some(instances) => instances?,
                None => {
                    printer.tell_lost(&instances, say);
                    following.next().await?
                }
            };
        }
    };
    let told = unless_told(signals, async {
        tokio::select! {
            ended = follow => ended,
            failure = output::closed(), if hosts.watch => Err(failure),
        }
    })
    .await;
    if let Some(hook) = hook {
        hook.stop().await;
    }
    match told {
        Ok(ended) => ended,
        Err(_) if is_known => Ok(Exit::DONE),
        Err(signal) => Err(Failure::Interrupted(signal)),
    }
}
