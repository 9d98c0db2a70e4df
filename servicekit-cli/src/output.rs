//! Data, on stdout.

use std::io::{self, Write as _};

use serde::Serialize;

use crate::report::Failure;

/// What form data takes on stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Prints `text` as it is. It does so on another thread, so that a reader that is stuck keeps no signal from being heard.
pub(crate) async fn print(text: String) -> Result<(), Failure> {
    let write = move || {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    };
    match tokio::task::spawn_blocking(write).await {
        Ok(written) => written.map_err(Failure::Stdout),
        Err(error) => Err(Failure::Stdout(io::Error::other(error))),
    }
}

/// A JSON document on one line.
pub(crate) fn json(value: &impl Serialize) -> Result<String, Failure> {
    match serde_json::to_string(value) {
        Ok(text) => Ok(text + "\n"),
        Err(error) => Err(Failure::Stdout(error.into())),
    }
}
