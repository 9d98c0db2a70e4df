//! What a waiting command tells people: a spinner on a terminal, and elsewhere a line where that matters.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::report::{one_line, say};

/// Tells how the waiting goes. Dropping it clears the spinner.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    said: String,
    spinner: Option<ProgressBar>,
}

impl Progress {
    /// Shows what is waited for now, also where there is no terminal: on a line whenever that changes.
    pub(crate) fn tell(&mut self, text: String) {
        if !self.show(&text) && text != self.said {
            say(&text);
            self.said = text;
        }
    }

    /// Shows what is waited for now, and whether there is a terminal to show it on.
    pub(crate) fn show(&mut self, text: &str) -> bool {
        let is_terminal = is_terminal();
        if is_terminal {
            self.spinner.get_or_insert_with(spinner).set_message(one_line(text));
        }
        is_terminal
    }

    /// Says something that stays.
    pub(crate) fn say(&self, text: impl std::fmt::Display) {
        match &self.spinner {
            Some(spinner) => spinner.suspend(|| say(text)),
            None => say(text),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}

/// Whether people watch, at a terminal that can do more than print.
pub(crate) fn is_terminal() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_some_and(|term| term != "dumb")
}

fn spinner() -> ProgressBar {
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}
