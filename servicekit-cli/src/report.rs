//! Why a command did not do what it was asked, for people: one line on stderr that says what, where, and what to try.

use std::{
    error::Error as StdError,
    fmt,
    io::{self, Write as _},
};

use servicekit::{Error, Kind};

use crate::{exit::Exit, signals::Signal};

/// Why a command ends without an answer, or with no.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The answer is no; why.
    No(String),
    /// The command line makes no sense; what and where.
    Usage(String),
    /// The store could not be reached, or refused.
    Store(Error),
    /// A secret is missing, cannot be read, or opens nothing.
    Secret(String),
    /// Another process has taken over this service id.
    Superseded(String),
    /// A signal came before there was an answer.
    Interrupted(Signal),
    /// Nobody takes the answer.
    Stdout(io::Error),
    /// What the command needs of this host is not there.
    Host(String),
}

impl Failure {
    /// The status for this; a command that runs a child keeps the low ones for the child.
    pub(crate) fn exit(&self, with_child: bool) -> Exit {
        match self {
            Self::Usage(_) => Exit::USAGE,
            Self::Interrupted(signal) => Exit::signal(signal.number()),
            // Who has read enough is no failure.
            Self::Stdout(error) if is_closed(error) && !with_child => Exit::DONE,
            Self::No(_) if with_child => Exit::TIMED_OUT,
            _ if with_child => Exit::FAILED,
            Self::No(_) => Exit::NO,
            // No answer, and not to be taken for one.
            Self::Host(_) | Self::Stdout(_) => Exit::FAILED,
            Self::Store(_) => Exit::STORE,
            Self::Secret(_) => Exit::SECRET,
            Self::Superseded(_) => Exit::SUPERSEDED,
        }
    }

    /// What to tell people, if anything. `store` is the address that the command was given, without password.
    pub(crate) fn message(&self, store: &str) -> Option<String> {
        match self {
            Self::No(why)
            | Self::Usage(why)
            | Self::Secret(why)
            | Self::Superseded(why)
            | Self::Host(why) => Some(why.clone()),
            Self::Store(error) => {
                Some(format!("store {store}: {}; {}", chain(error), remedy(error)))
            }
            Self::Interrupted(_) => None,
            Self::Stdout(error) if is_closed(error) => None,
            Self::Stdout(error) => Some(format!("cannot write to stdout: {error}")),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error.kind() {
            Kind::Invalid => Self::Usage(chain(&error)),
            Kind::NotFound => Self::No(chain(&error)),
            Kind::Secret => Self::Secret(chain(&error)),
            Kind::Superseded => Self::Superseded(chain(&error)),
            _ => Self::Store(error),
        }
    }
}

fn is_closed(stdout: &io::Error) -> bool {
    stdout.kind() == io::ErrorKind::BrokenPipe
}

/// An error and its causes on one line, each once: many repeat their source.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut last = text.clone();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) && !said.contains(&last) {
            text = format!("{text}: {said}");
            last = said;
        }
        source = cause.source();
    }
    text
}

fn remedy(error: &Error) -> &'static str {
    match error.kind() {
        Kind::Denied => "check who may use it, then try `servicekit doctor`",
        Kind::Unsupported => "use another store, see `servicekit doctor`",
        Kind::Timeout | Kind::Throttled | Kind::Unavailable => {
            "check that it is there and try again, or `servicekit doctor`"
        }
        _ => "try `servicekit doctor`",
    }
}

/// Says something to people, on one line of stderr. If nobody listens, that is all right.
pub(crate) fn say(text: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "servicekit: {}", one_line(&text.to_string()));
}

/// Text from elsewhere, on one line and without what a terminal would act upon, or what would hide or reorder the rest.
pub(crate) fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => ' ',
            c if c.is_control() || is_unseen(c) => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect()
}

/// Whether a character has no width, changes the direction, or ends a line: Unicode's categories Cf, Zl and Zp.
fn is_unseen(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}'
        | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}'
        | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0001}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_told_once() {
        let io = io::Error::other("no such device");
        let error = Error::new(Kind::Unavailable, "cannot open: no such device").because(io);
        assert_eq!(chain(&error), "cannot open: no such device");
        let error = Error::new(Kind::Unavailable, "no store").because(error).on("local");
        assert_eq!(chain(&error), "local: no store: cannot open: no such device");
        let io = io::Error::other("Error code 26: no database");
        let error = Error::new(Kind::Unavailable, "no database").because(io);
        assert_eq!(chain(&error), "no database");
    }

    #[test]
    fn a_child_keeps_the_low_statuses_for_itself() {
        let away = || Failure::from(Error::new(Kind::Unavailable, "away"));
        assert_eq!((away().exit(false), away().exit(true)), (Exit::STORE, Exit::FAILED));
        let no = Failure::No("not granted".into());
        assert_eq!((no.exit(false), no.exit(true)), (Exit::NO, Exit::TIMED_OUT));
        let full = Failure::Host("the disk is full".into());
        assert_eq!((full.exit(false), full.exit(true)), (Exit::FAILED, Exit::FAILED));
        let wrong = Failure::from(Error::new(Kind::Invalid, "wrong"));
        assert_eq!((wrong.exit(false), wrong.exit(true)), (Exit::USAGE, Exit::USAGE));
    }

    #[test]
    fn what_others_wrote_cannot_steer_a_terminal() {
        assert_eq!(one_line("a\nb\x1b[31mc"), "a b\u{fffd}[31mc");
        // What is not seen, and what turns the text around.
        for c in ['\u{200b}', '\u{202e}', '\u{2066}', '\u{feff}', '\u{2028}', '\u{9b}'] {
            assert_eq!(one_line(&format!("up{c}down")), "up\u{fffd}down", "{c:?}");
        }
        assert_eq!(one_line("Zürich, 東京"), "Zürich, 東京");
    }
}
