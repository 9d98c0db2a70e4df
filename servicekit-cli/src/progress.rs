//! What a waiting command tells people: a spinner on a terminal, else a line for each change.

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
    /// Shows what is waited for now.
    pub(crate) fn show(&mut self, text: String) {
        if text == self.said {
            return;
        }
        if io::stderr().is_terminal() {
            self.spinner.get_or_insert_with(spinner).set_message(one_line(&text));
        } else {
            say(&text);
        }
        self.said = text;
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

fn spinner() -> ProgressBar {
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}
