//! `servicekit doctor`: is the store there, and does it do all that servicekit needs?

use servicekit::{Finding, Severity};

use crate::{
    context::Context,
    exit::Exit,
    format::Table,
    output::{self, Output},
    report::Failure,
};

/// Examine the store: is it there, does it allow what is needed, what does it promise
///
/// Ends with 0 when all is well (warnings are no problem), and with 3 otherwise.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  servicekit doctor
  servicekit doctor --backend local:/var/lib/servicekit/servicekit.db
  servicekit doctor --setup --backend couchdb://admin@db1/servicekit
  servicekit doctor -o json")]
pub(crate) struct Doctor {
    /// First make what the store should have and an administrator has to make: CouchDB's databases, their design document and
    /// roles
    #[arg(long)]
    setup: bool,

    /// How to print it
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

impl Doctor {
    pub(crate) async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let doctor = context.connect().await?.doctor;
        let mut findings = if self.setup { doctor.set_up().await } else { Vec::new() };
        findings.extend(doctor.examine().await);
        output::print(match self.output {
            Output::Text => table(&findings),
            Output::Json => output::json(&findings)?,
        })
        .await?;
        let well = findings.iter().all(|finding| finding.severity < Severity::Problem);
        Ok(if well { Exit::DONE } else { Exit::STORE })
    }
}

fn table(findings: &[Finding]) -> String {
    let mut table = Table::new(["CHECK", "RESULT", "DETAIL"]);
    for Finding { check, severity, detail, remedy } in findings {
        let result = match severity {
            Severity::Fine => "fine",
            Severity::Warning => "warning",
            Severity::Problem => "PROBLEM",
        };
        let detail = match remedy {
            Some(remedy) => format!("{detail}; {remedy}"),
            None => detail.clone(),
        };
        table.row([check.clone(), result.to_owned(), detail]);
    }
    table.render()
}
