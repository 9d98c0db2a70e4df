//! `servicekit version`: which servicekit this is, and which stores it knows.

use serde::Serialize;
use servicekit::Connector;

use crate::{
    exit::Exit,
    output::{self, Output},
    report::Failure,
};

/// Print the version, and which stores this build knows
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  servicekit version
  servicekit version -o json")]
pub(crate) struct Version {
    /// How to print it
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Serialize)]
struct Facts<'a> {
    version: &'static str,
    backends: Vec<&'a str>,
}

impl Version {
    pub(crate) async fn run(self, connector: &Connector) -> Result<Exit, Failure> {
        let version = env!("CARGO_PKG_VERSION");
        let backends: Vec<_> = connector.schemes().collect();
        output::print(match self.output {
            Output::Text => format!("servicekit {version} ({})\n", backends.join(", ")),
            Output::Json => output::json(&Facts { version, backends })?,
        })
        .await?;
        Ok(Exit::DONE)
    }
}
