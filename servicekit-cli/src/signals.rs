//! SIGTERM and SIGINT, the requests to end.

use std::io;

use tokio::signal::unix::{self, SignalKind};

/// A request to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Interrupt,
    Terminate,
}

/// Receives requests to end, from the moment that it was made.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
}

impl Signal {
    pub(crate) fn number(self) -> i32 {
        match self {
            Self::Interrupt => SignalKind::interrupt().as_raw_value(),
            Self::Terminate => SignalKind::terminate().as_raw_value(),
        }
    }
}

impl Signals {
    pub(crate) fn receive() -> io::Result<Self> {
        let interrupt = unix::signal(SignalKind::interrupt())?;
        Ok(Self { interrupt, terminate: unix::signal(SignalKind::terminate())? })
    }

    /// The next request. Dropping the future loses none.
    pub(crate) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
        }
    }
}
