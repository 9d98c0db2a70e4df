use std::{sync::Arc, time::Duration};

use servicekit_core::{
    Error, Instance, Kind,
    registry::{Claim, InstanceKey, REFRESH, Session},
};
use tokio::sync::{Notify, SemaphorePermit, watch};

use crate::{
    Report,
    node::{Link, Node},
    outage::Party,
};

/// Why an instance is no longer kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The agent stops.
    Halted,
    /// Another process has taken it over.
    Superseded,
}

/// How long a put that is under way when the agent stops may take; what comes of it later cannot undo the removal.
const SETTLE_WITHIN: Duration = Duration::from_secs(2);

/// Keeps the latest state of one instance in the store until the node halts, then removes it.
pub(crate) async fn keep(
    node: &Node,
    key: InstanceKey,
    state: watch::Receiver<Instance>,
    taken_over: &Notify,
) -> Ended {
    let mut registration = Registration {
        node,
        key,
        state,
        link: node.link.subscribe(),
        claim: Claim::new(),
        party: node.outage.party(),
        last: Last::None,
    };
    let ended = registration.put_until_ended(taken_over).await;
    match ended {
        Ended::Halted => registration.remove().await,
        Ended::Superseded => {
            let key = registration.key;
            node.registered().remove(&key);
            let InstanceKey { label, service_id } = key;
            node.report(Report::Superseded { label, service_id });
        }
    }
    ended
}

struct Registration<'a> {
    node: &'a Node,
    key: InstanceKey,
    state: watch::Receiver<Instance>,
    link: watch::Receiver<Link>,
    /// Used by one request at a time, so that no put can overtake another, or the removal.
    claim: Claim,
    party: Party<'a>,
    last: Last,
}

/// What came of the last put.
enum Last {
    /// There was none under the present session.
    None,
    /// It was stored under this session.
    Stored(Arc<Session>),
    /// It may not have been stored; the next one comes after this pause.
    Failed(Duration),
}

impl<'a> Registration<'a> {
    async fn put_until_ended(&mut self, taken_over: &Notify) -> Ended {
        let node = self.node;
        loop {
            let (session, _permit) = tokio::select! {
                biased;
                () = node.halted() => return Ended::Halted,
                () = taken_over.notified() => return Ended::Superseded,
                due = self.due() => due,
            };
            let instance = self.state.borrow_and_update().clone();
            node.registered().insert(self.key.clone());
            let answer = tokio::select! {
                answer = node.registry.put(&session, &self.claim, &instance) => answer,
                () = async {
                    node.halted().await;
                    node.env.clock.sleep(SETTLE_WITHIN).await;
                } => return Ended::Halted,
            };
            match answer {
                Ok(()) => {
                    self.party.succeeded();
                    self.last = Last::Stored(session);
                }
                Err(error) if error.kind() == Kind::Superseded => return Ended::Superseded,
                Err(error) if error.kind() == Kind::Lost => {
                    node.lost(&session);
                    self.last = Last::None;
                }
                Err(error) => self.failed(error),
            }
        }
    }

    /// Waits until the instance has to be put, and until the store is there for it.
    async fn due(&mut self) -> (Arc<Session>, SemaphorePermit<'a>) {
        let Self { node, state, link, last, .. } = self;
        let clock = &node.env.clock;
        match last {
            Last::None => {}
            Last::Failed(pause) => clock.sleep(*pause).await,
            Last::Stored(under) => {
                let another =
                    |link: &Link| matches!(link, Link::Open(now) if !Arc::ptr_eq(now, under));
                tokio::select! {
                    // It fails only when the node halts, and that is seen elsewhere.
                    Ok(()) = state.changed() => {}
                    _ = link.wait_for(another) => {}
                    () = clock.sleep(node.env.random.jitter(REFRESH, 0.1)) => {}
                }
            }
        }
        loop {
            // Neither fails: the node holds both the sender and the semaphore.
            let open = link.wait_for(|link| matches!(link, Link::Open(_))).await;
            let session = open.ok().and_then(|link| link.session());
            if let (Some(session), Ok(permit)) = (session, node.writes.acquire().await) {
                return (session, permit);
            }
        }
    }

    async fn remove(&mut self) {
        let (node, key) = (self.node, &self.key);
        let Ok(_permit) = node.writes.acquire().await else {
            return;
        };
        match node.registry.remove(&self.claim, &key.label, &key.service_id).await {
            Ok(()) => self.party.succeeded(),
            Err(error) if error.kind() == Kind::Superseded => {}
            Err(error) => return self.failed(error),
        }
        node.registered().remove(&self.key);
    }

    fn failed(&mut self, error: Error) {
        let node = self.node;
        self.last = Last::Failed(self.party.failed(error, &node.env, node.beat_interval()));
    }
}
