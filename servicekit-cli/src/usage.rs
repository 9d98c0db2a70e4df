//! Reading the command line, and saying on one line what is wrong with it.

use std::env;

use clap::{
    Arg, Command, CommandFactory as _, FromArgMatches as _,
    builder::Resettable,
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};
use servicekit::connect::Address;

use crate::{
    Cli,
    exit::Exit,
    report::{Failure, say},
};

/// The whole command line, for what is made of it.
pub(crate) fn definition() -> clap::Command {
    Cli::command()
}

/// Reads this process's arguments. Help and wrong usage have been printed when it returns an exit.
pub(crate) fn parse() -> Result<Cli, Exit> {
    let command = Cli::command().mut_args(without_empty_variable);
    let matches = command.clone().try_get_matches().and_then(|mut matches| {
        warn_of_password(&matches);
        Cli::from_arg_matches_mut(&mut matches)
    });
    matches.map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Who closes the pipe has read enough.
            let _ = error.print();
            Exit::DONE
        }
        _ => {
            say(one_line(&in_its_place(error, &command)));
            Exit::USAGE
        }
    })
}

/// A variable that is there and empty counts as not set.
fn without_empty_variable(arg: Arg) -> Arg {
    let is_empty = |name: &_| env::var_os(name).is_some_and(|value| value.is_empty());
    if arg.get_env().is_some_and(is_empty) { arg.env(Resettable::Reset) } else { arg }
}

/// Names the variable that a wrong value comes from, where no argument has it.
fn in_its_place(mut error: clap::Error, command: &Command) -> clap::Error {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let place = context(ContextKind::InvalidArg).zip(context(ContextKind::InvalidValue));
    if let Some(variable) = place.and_then(|(flag, value)| variable_behind(flag, value, command)) {
        error.insert(ContextKind::InvalidArg, ContextValue::String(variable));
    }
    error
}

fn variable_behind(flag: &str, value: &str, command: &Command) -> Option<String> {
    let long = flag.split(' ').next()?.strip_prefix("--")?;
    let arg = command.get_arguments().find(|arg| arg.get_long() == Some(long))?;
    let variable =
        arg.get_env().filter(|name| env::var_os(name).is_some_and(|set| set == value))?;
    let is_it = |given: &str| given == value || given == format!("--{long}={value}");
    let mut given = env::args_os().take_while(|given| given != "--");
    let is_given = given.any(|given| given.to_str().is_some_and(is_it));
    (!is_given).then(|| variable.to_string_lossy().into_owned())
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::{Command, Parser as _};

    use super::*;

    fn commands() -> Vec<Command> {
        let mut cli = definition();
        cli.build();
        below(&cli)
    }

    /// All commands below one, each before those below it.
    fn below(command: &Command) -> Vec<Command> {
        let children = command.get_subcommands().filter(|child| child.get_name() != "help");
        children.flat_map(|child| [vec![child.clone()], below(child)].concat()).collect()
    }

    /// What is typed for a command.
    fn typed(command: &Command) -> String {
        command.get_bin_name().unwrap_or_default().to_owned()
    }

    /// The lines of a help that can be pasted.
    fn examples(help: &str) -> Vec<&str> {
        help.lines().filter(|line| line.starts_with("  servicekit ")).collect()
    }

    /// Splits as a shell does, as far as the examples go.
    fn split(line: &str) -> Vec<String> {
        let line = line
            .split_once(" > ")
            .filter(|_| !line.contains('\''))
            .map_or(line, |(before, _)| before);
        let quoted = line.trim().split('\'').enumerate();
        let words = quoted.flat_map(|(i, part)| match i % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect(),
            _ => vec![part.to_owned()],
        });
        words.collect()
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples_that_parse_and_can_be_pasted() {
        for command in [vec![definition()], commands()].concat() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples = examples(&help);
            assert!(!examples.is_empty(), "{} has no examples", typed(&command));
            for line in examples {
                assert!(line.len() < 80, "wrapped on a narrow terminal: {line}");
                assert!(line.trim().starts_with(&typed(&command)), "{line}");
                Cli::try_parse_from(split(line)).unwrap();
            }
        }
    }

    #[test]
    fn every_command_has_a_test_file() {
        for command in definition().get_subcommands() {
            let name = command.get_name().replace('-', "_");
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(name + ".rs");
            assert!(file.exists(), "{} is missing", file.display());
        }
    }

    #[test]
    fn help_reads_well() {
        let mut all = definition().term_width(100);
        let mut text = all.render_long_help().to_string();
        for command in commands() {
            let name = typed(&command);
            let help = command.term_width(100).render_long_help();
            text += &format!("\n==== {name} ====\n\n{help}");
        }
        insta::assert_snapshot!("help", text);
    }

    #[test]
    fn what_is_wrong_fits_on_one_line() {
        for (line, said) in [
            (
                "servicekit hosts",
                "the following required arguments were not provided: --label <LABEL>",
            ),
            (
                "servicekit hosts --lable web",
                "unexpected argument '--lable' found; tip: a similar argument exists: '--label'",
            ),
            (
                "servicekit hosts --label web --timeout 1x --wait",
                "invalid value '1x' for '--timeout <DURATION>': \
                 expected a whole number and ms, s, m, h or d, such as 15s",
            ),
        ] {
            assert_eq!(one_line(&Cli::try_parse_from(split(line)).unwrap_err()), said);
        }
    }
}
