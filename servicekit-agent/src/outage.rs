use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use servicekit_core::{Env, Error};
use tokio::sync::mpsc;

use crate::Report;

/// Tells once that the store is away, again when it begins to refuse, and once that it is back, however many parties find out.
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
    /// Whether it was told that the store refuses.
    told_refusal: bool,
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
        // Who waits for the end of an outage has to know that it has become one that does not end by itself.
        let is_refusal = error.is_refusal();
        if !state.told || is_refusal && !state.told_refusal {
            (state.told, state.told_refusal) = (true, is_refusal);
            // Under the lock, so that reports come in the order in which they are true.
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

#[cfg(test)]
mod tests {
    use servicekit_core::Kind;

    use super::*;

    #[test]
    fn an_outage_is_told_once_and_once_more_when_it_becomes_a_refusal() {
        let (reports, mut told) = mpsc::unbounded_channel();
        let outage = Outage::new(reports);
        let env = Env::system();
        let (mut one, mut two) = (outage.party(), outage.party());
        let mut told = || match told.try_recv().ok()? {
            Report::StoreAway(error) => Some(Some(error.kind())),
            Report::StoreBack => Some(None),
            other => panic!("{other:?}"),
        };
        let fail = |party: &mut Party<'_>, kind| {
            party.failed(Error::new(kind, "x"), &env, Duration::from_secs(1));
        };
        for _ in 0..2 {
            fail(&mut one, Kind::Unavailable);
            fail(&mut two, Kind::Timeout);
            assert_eq!((told(), told()), (Some(Some(Kind::Unavailable)), None));
            fail(&mut two, Kind::Denied);
            fail(&mut one, Kind::Denied);
            fail(&mut one, Kind::Unavailable);
            assert_eq!((told(), told()), (Some(Some(Kind::Denied)), None));
            one.succeeded();
            assert_eq!(told(), None, "not for all");
            two.succeeded();
            assert_eq!((told(), told()), (Some(None), None));
        }
    }
}
