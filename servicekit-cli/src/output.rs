//! Data, on stdout.

use std::{
    io::{self, Write as _},
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, Ordering},
};

use serde::Serialize;
use tokio::{io::Interest, net::unix::pipe};
use zeroize::Zeroizing;

use crate::report::Failure;

/// What form data takes on stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

/// This process has an answer, and tells it.
static BEGUN: AtomicBool = AtomicBool::new(false);

/// Whether anything was printed, or is being printed: how long that takes is up to the reader.
pub(crate) fn has_begun() -> bool {
    BEGUN.load(Ordering::Relaxed)
}

/// Prints `text` as it is. It does so on another thread, so that a reader that is stuck keeps no signal from being heard.
pub(crate) async fn print(text: impl AsRef<[u8]> + Send + 'static) -> Result<(), Failure> {
    BEGUN.store(true, Ordering::Relaxed);
    let write = move || {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_ref())?;
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

/// The same with a secret in it, so that its memory is wiped. Whole lines do not stay in the buffer of stdout either.
pub(crate) fn secret_json(value: &impl Serialize) -> Result<Zeroizing<Vec<u8>>, Failure> {
    // Sized for a certificate with all that it may have, or growing would leave copies behind.
    let mut json = Zeroizing::new(Vec::with_capacity(256 * 1024));
    serde_json::to_writer(&mut *json, value).map_err(|error| Failure::Stdout(error.into()))?;
    json.push(b'\n');
    Ok(json)
}
