use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use servicekit_core::{
    Env, LeaseProvider, Registry,
    registry::{InstanceKey, Session},
};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::{Options, Report, outage::Outage};

/// What the tasks of one agent share.
pub(crate) struct Node {
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) leases: Arc<dyn LeaseProvider>,
    pub(crate) env: Env,
    pub(crate) options: Options,
    pub(crate) outage: Outage,
    /// The way to the store, as the session's beats see it.
    pub(crate) link: watch::Sender<Link>,
    /// Limits how many instances are written at a time.
    pub(crate) writes: Semaphore,
    /// Limits how many leases are looked at at a time; not the same, so that neither holds the other up.
    pub(crate) looks: Semaphore,
    /// What may be in the store, because a put of it was begun.
    registered: Mutex<BTreeSet<InstanceKey>>,
    reports: mpsc::UnboundedSender<Report>,
    halted: watch::Sender<bool>,
}

/// The way to the store. Sessions are told apart by their address: their names are used again.
#[derive(Clone, Debug)]
pub(crate) enum Link {
    /// There is no session.
    Closed,
    /// The last beat was answered.
    Open(Arc<Session>),
    /// The last beat was not answered; others need not try.
    Away(Arc<Session>),
}

impl Link {
    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        match self {
            Self::Closed => None,
            Self::Open(session) | Self::Away(session) => Some(session.clone()),
        }
    }
}

const WRITES_AT_A_TIME: usize = 16;
const LOOKS_AT_A_TIME: usize = 8;

impl Node {
    pub(crate) fn new(
        registry: Arc<dyn Registry>,
        leases: Arc<dyn LeaseProvider>,
        env: Env,
        options: Options,
        reports: mpsc::UnboundedSender<Report>,
    ) -> Self {
        Self {
            registry,
            leases,
            env,
            options,
            outage: Outage::new(reports.clone()),
            link: watch::Sender::new(Link::Closed),
            writes: Semaphore::new(WRITES_AT_A_TIME),
            looks: Semaphore::new(LOOKS_AT_A_TIME),
            registered: Mutex::default(),
            reports,
            halted: watch::Sender::new(false),
        }
    }

    pub(crate) fn report(&self, report: Report) {
        // Nobody listens any more only when the agent was dropped.
        let _ = self.reports.send(report);
    }

    pub(crate) fn beat_interval(&self) -> Duration {
        self.options.ttl / 3
    }

    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        self.link.borrow().session()
    }

    /// Notes that a session has ended, unless it was replaced already, and reports it once.
    pub(crate) fn lost(&self, session: &Arc<Session>) {
        let lost = self.link.send_if_modified(|link| match link {
            Link::Open(current) | Link::Away(current) if Arc::ptr_eq(current, session) => {
                *link = Link::Closed;
                true
            }
            _ => false,
        });
        if lost {
            self.report(Report::SessionLost);
        }
    }

    pub(crate) fn registered(&self) -> MutexGuard<'_, BTreeSet<InstanceKey>> {
        self.registered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn halt(&self) {
        self.halted.send_replace(true);
    }

    /// Waits until the agent stops.
    pub(crate) async fn halted(&self) {
        // It cannot fail: the sender is borrowed.
        let _ = self.halted.subscribe().wait_for(|halted| *halted).await;
    }
}
