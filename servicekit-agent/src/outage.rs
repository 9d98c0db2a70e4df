use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use servicekit_core::{Env, Error};
use tokio::sync::mpsc;

use crate::Report;

/// Tells once that the store is away, and once that it is back, however many parties find out.
pub(crate) struct Outage {
    failing: Mutex<usize>,
    reports: mpsc::UnboundedSender<Report>,
}

/// One that talks to the store; while its last request has failed, the store counts as away.
pub(crate) struct Party<'a> {
    outage: &'a Outage,
    pause: Option<Duration>,
}

/// The pause after the first failure; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

impl Outage {
    pub(crate) fn new(reports: mpsc::UnboundedSender<Report>) -> Self {
        Self { failing: Mutex::new(0), reports }
    }

    pub(crate) fn party(&self) -> Party<'_> {
        Party { outage: self, pause: None }
    }

    /// Counts, and reports under the lock, so that reports of both kinds alternate.
    fn count(&self, change: isize, report: Report) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *failing;
        *failing = before.saturating_add_signed(change);
        if before == 0 || *failing == 0 {
            let _ = self.reports.send(report);
        }
    }
}

impl Party<'_> {
    /// A request has failed; returns how long to wait before the next.
    pub(crate) fn failed(&mut self, error: Error, env: &Env, longest: Duration) -> Duration {
        tracing::debug!(?error, "the store did not take it");
        let pause = match self.pause {
            None => {
                self.outage.count(1, Report::StoreAway(error));
                FIRST_PAUSE
            }
            Some(pause) => pause * 2,
        };
        let pause = pause.min(longest);
        self.pause = Some(pause);
        env.random.jitter(pause, 0.2).min(longest)
    }

    /// A request has succeeded.
    pub(crate) fn succeeded(&mut self) {
        if self.pause.take().is_some() {
            self.outage.count(-1, Report::StoreBack);
        }
    }
}

impl Drop for Party<'_> {
    /// Whoever talks no more cannot find out that the store is back.
    fn drop(&mut self) {
        self.succeeded();
    }
}
