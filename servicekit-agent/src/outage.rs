use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use servicekit_core::{Env, Error};
use tokio::sync::mpsc;

use crate::Report;

/// Tells once that the store is away, and once that it is back, however many parties find out.
pub(crate) struct Outage {
    state: Mutex<State>,
    reports: mpsc::UnboundedSender<Report>,
}

#[derive(Default)]
struct State {
    /// How many parties' last request has failed.
    failing: usize,
    /// Whether that was told.
    told: bool,
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
        Self { state: Mutex::default(), reports }
    }

    pub(crate) fn party(&self) -> Party<'_> {
        Party { outage: self, pause: None }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Party<'_> {
    /// A request has failed; returns how long to wait before the next.
    pub(crate) fn failed(&mut self, error: Error, env: &Env, longest: Duration) -> Duration {
        tracing::debug!(?error, "the store did not take it");
        let pause = self.pause.map_or(FIRST_PAUSE, |pause| pause * 2);
        let pause = pause.min(longest.max(FIRST_PAUSE));
        let first = self.pause.replace(pause).is_none();
        let mut state = self.outage.state();
        state.failing += usize::from(first);
        if !state.told {
            state.told = true;
            // Under the lock, so that reports of both kinds alternate.
            let _ = self.outage.reports.send(Report::StoreAway(error));
        }
        env.random.jitter(pause, 0.2)
    }

    /// A request has succeeded.
    pub(crate) fn succeeded(&mut self) {
        self.retire();
        let mut state = self.outage.state();
        if state.told && state.failing == 0 {
            state.told = false;
            let _ = self.outage.reports.send(Report::StoreBack);
        }
    }

    fn retire(&mut self) {
        if self.pause.take().is_some() {
            self.outage.state().failing -= 1;
        }
    }
}

impl Drop for Party<'_> {
    /// Whoever talks no more cannot find out that the store is back; others will.
    fn drop(&mut self) {
        self.retire();
    }
}
