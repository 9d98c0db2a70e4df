//! Reading the command line, and saying on one line what is wrong with it.

use clap::{CommandFactory as _, FromArgMatches as _, error::ErrorKind, parser::ValueSource};
use servicekit::connect::Address;

use crate::{
    Cli,
    exit::Exit,
    report::{Failure, say},
};

/// Reads this process's arguments. Help and wrong usage have been printed when it returns an exit.
pub(crate) fn parse() -> Result<Cli, Exit> {
    let matches = Cli::command().try_get_matches().and_then(|mut matches| {
        warn_of_password(&matches);
        Cli::from_arg_matches_mut(&mut matches)
    });
    matches.map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Who closes the pipe has read enough.
            let _ = error.print();
            Exit::DONE
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            say("a command is missing; see `servicekit --help`");
            Exit::USAGE
        }
        _ => {
            say(one_line(&error));
            Exit::USAGE
        }
    })
}

/// What a parser has to say, without its layout.
pub(crate) fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let said = text
        .split("\n\n")
        .filter(|part| !part.starts_with("Usage:") && !part.starts_with("For more information"))
        .map(|part| part.lines().map(str::trim).collect::<Vec<_>>().join(" "));
    let said = said.collect::<Vec<_>>().join("; ");
    said.strip_prefix("error: ").unwrap_or(&said).to_owned()
}

/// Arguments can be read by every user of the host.
fn warn_of_password(matches: &clap::ArgMatches) {
    let mut level = Some(matches);
    while let Some(matches) = level {
        let given = matches.value_source("backend") == Some(ValueSource::CommandLine);
        let url = matches.get_one::<String>("backend").filter(|_| given);
        if url.and_then(|url| url.parse::<Address>().ok()).is_some_and(|url| url.has_password()) {
            say(
                "warning: every user of this host can read a password in an argument; set SERVICEKIT_BACKEND instead",
            );
            return;
        }
        level = matches.subcommand().map(|(_, matches)| matches);
    }
}

impl From<clap::Error> for Failure {
    fn from(error: clap::Error) -> Self {
        Self::Usage(one_line(&error))
    }
}
