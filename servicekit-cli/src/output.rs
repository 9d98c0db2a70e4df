//! Data, on stdout.

use std::{
    io::{self, Write as _},
    os::fd::AsFd as _,
};

use serde::Serialize;
use tokio::{io::Interest, net::unix::pipe};

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

/// Returns when nobody reads stdout any more, as far as it is a pipe. Who prints only now and then would not notice for long.
pub(crate) async fn closed() -> Failure {
    // Unchecked, as it is never written to this way: a pipe that does not block would be one for all who share it. A file is
    // refused, and has no reader that could go.
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    match stdout.and_then(pipe::Sender::from_owned_fd_unchecked) {
        Ok(stdout) if stdout.ready(Interest::ERROR).await.is_ok() => {
            Failure::Stdout(io::ErrorKind::BrokenPipe.into())
        }
        _ => std::future::pending().await,
    }
}

/// A JSON document on one line.
pub(crate) fn json(value: &impl Serialize) -> Result<String, Failure> {
    match serde_json::to_string(value) {
        Ok(text) => Ok(text + "\n"),
        Err(error) => Err(Failure::Stdout(error.into())),
    }
}
