//! The command `servicekit`, as a library: who has a backend of their own builds the command with it.
//!
//! ```no_run
//! use servicekit::Connector;
//! let connector = Connector::builtin(); // .with("mine", connect_to_mine)
//! let _exit = servicekit_cli::main(connector);
//! ```

mod args;
pub mod child;
mod commands;
mod context;
mod exit;
mod format;
mod output;
mod progress;
mod report;
mod signals;
mod usage;

use std::process::ExitCode;

use servicekit::Connector;
use tokio::runtime;

use crate::{
    commands::Command,
    context::{Context, Global},
    exit::Exit,
    report::{Failure, say},
    signals::Signals,
};

/// Discovery, leases and certificates for plain hosts, on the store that is already there
#[derive(Debug, clap::Parser)]
#[command(
    name = "servicekit",
    bin_name = "servicekit",
    version,
    max_term_width = 120,
    after_help = "Examples:
  servicekit watch --label web --monitor-url http://127.0.0.1:8080/health
  servicekit hosts --label web
  servicekit acquire-lease --label backup -- /usr/local/bin/backup

Exit status:
  0  done
  1  the answer is no: timed out, not granted, none found
  2  wrong usage
  3  the store could not be reached, or refused
  4  a secret is missing, cannot be read, or opens nothing
  5  superseded: another process has taken over this service id
  125  servicekit itself failed, such as on a disk that is full
  128 + N  ended by signal N

Environment:
  SERVICEKIT_LOG       what to log to stderr, such as debug; servicekit=warn unless it is set
  SERVICEKIT_PASSWORD  the password of the user that --backend names
  AWS_PROFILE, AWS_REGION and what else AWS's tools read, for dynamodb
  NO_COLOR             no colours, also on a terminal
  and one for each flag that says so"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

/// Runs the command that this process's arguments ask for, on the stores that `connector` knows.
#[must_use]
pub fn main(connector: Connector) -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|first| first == child::GUARD) {
        return child::guard_main();
    }
    let cli = match usage::parse() {
        Ok(cli) => cli,
        Err(exit) => return exit.into(),
    };
    let with_child = cli.command.has_child();
    let mut store = String::new();
    let exit = run(cli, connector, &mut store).unwrap_or_else(|failure| {
        if let Some(message) = failure.message(&store) {
            say(message);
        }
        failure.exit(with_child)
    });
    exit.into()
}

fn run(cli: Cli, connector: Connector, store: &mut String) -> Result<Exit, Failure> {
    start_logging()?;
    // One thread: what this process does is wait, and it should start fast.
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Host(format!("cannot start: {error}")))?;
    let exit = runtime.block_on(async {
        let signals = Signals::receive();
        let mut signals =
            signals.map_err(|error| Failure::Host(format!("cannot receive signals: {error}")))?;
        let context = Context::new(connector, cli.global)?;
        context.address().to_string().clone_into(store);
        cli.command.run(&context, &mut signals).await
    });
    // What still blocks a thread, such as a full pipe, must not keep the process alive.
    runtime.shutdown_background();
    exit
}

/// Logs to stderr what `SERVICEKIT_LOG` asks for, such as `debug`; otherwise what somebody has to look into.
fn start_logging() -> Result<(), Failure> {
    let asked = std::env::var("SERVICEKIT_LOG").ok().filter(|text| !text.is_empty());
    let directives = asked.unwrap_or_else(|| "servicekit=warn".into());
    let filter = tracing_subscriber::EnvFilter::try_new(&directives)
        .map_err(|error| Failure::Usage(format!("SERVICEKIT_LOG {directives:?}: {error}")))?;
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let ansi = progress::is_terminal() && !no_colour;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        // It would say so on stderr, too, and panic when that is what failed.
        .log_internal_errors(false)
        .init();
    Ok(())
}
