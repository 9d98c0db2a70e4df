use std::{collections::BTreeMap, convert::Infallible, sync::Arc};

use servicekit_core::{
    Label, Result, ServiceId,
    lease::{Grant, Lease},
    registry::InstanceKey,
};
use tokio::sync::{Notify, watch};

use crate::{Report, node::Node};

/// The unattended grants of one service's own lease, between who probes and who talks to the store.
pub(crate) struct Grants {
    key: InstanceKey,
    look: Notify,
    seen: watch::Sender<Arc<[Grant]>>,
    due: watch::Sender<Arc<[Grant]>>,
}

impl Grants {
    pub(crate) fn new(key: InstanceKey) -> Self {
        Self {
            key,
            look: Notify::new(),
            seen: watch::Sender::default(),
            due: watch::Sender::default(),
        }
    }

    /// Asks for a look at the lease; several requests make one look.
    pub(crate) fn look(&self) {
        self.look.notify_one();
    }

    /// What the last look showed.
    pub(crate) fn news(&self) -> watch::Receiver<Arc<[Grant]>> {
        self.seen.subscribe()
    }

    /// Asks for these grants to be released, because a probe that began after they were seen has passed.
    pub(crate) fn release(&self, seen: Arc<[Grant]>) {
        self.due.send_replace(seen);
    }
}

/// Looks and releases on request, one after the other. What fails is tried again on the next request: for a look with the
/// next round, for a release with the next one that passes.
pub(crate) async fn follow(node: &Node, grants: &Grants) -> Infallible {
    let mut due = grants.due.subscribe();
    loop {
        tokio::select! {
            biased;
            Ok(()) = due.changed() => {
                let due = due.borrow_and_update().clone();
                for grant in due.iter() {
                    release(node, grants, grant).await;
                }
            }
            () = grants.look.notified() => look(node, grants).await,
        }
    }
}

/// Looks at the lease of every label once per beat, because services that are up do not ask for it themselves.
pub(crate) async fn survey(node: &Node, all: &[Arc<Grants>]) -> Infallible {
    let mut by_label = BTreeMap::<&Label, Vec<&Grants>>::new();
    for grants in all {
        by_label.entry(&grants.key.label).or_default().push(grants);
    }
    loop {
        node.env.clock.sleep(node.env.random.jitter(node.beat_interval(), 0.1)).await;
        if let Err(error) = survey_once(node, &by_label).await {
            tracing::debug!(?error, "the leases were not seen");
        }
    }
}

async fn survey_once(node: &Node, by_label: &BTreeMap<&Label, Vec<&Grants>>) -> Result<()> {
    for (label, services) in by_label {
        let lease = node.leases.inspect(label).await?;
        for grants in services {
            if own(lease.as_ref(), &grants.key.service_id).next().is_some() {
                grants.look();
            }
        }
    }
    Ok(())
}

async fn look(node: &Node, grants: &Grants) {
    let _permit = node.looks.acquire().await;
    let lease = match node.leases.inspect(&grants.key.label).await {
        Ok(lease) => lease,
        Err(error) => return tracing::debug!(?error, "the lease was not seen"),
    };
    let own: Arc<[Grant]> = own(lease.as_ref(), &grants.key.service_id).cloned().collect();
    grants.seen.send_if_modified(|seen| {
        let is_new = !own.iter().map(|grant| grant.token).eq(seen.iter().map(|grant| grant.token));
        if is_new {
            *seen = own;
        }
        is_new
    });
}

/// The grants that the service itself took before it started, and that no process keeps.
fn own<'a>(lease: Option<&'a Lease>, id: &'a ServiceId) -> impl Iterator<Item = &'a Grant> {
    let grants = lease.into_iter().flat_map(|lease| &lease.grants);
    grants.filter(move |grant| grant.holder == *id && !grant.attended && !grant.evicted)
}

async fn release(node: &Node, grants: &Grants, grant: &Grant) {
    let is_it = |other: &Grant| other.token == grant.token;
    if !grants.seen.borrow().iter().any(is_it) {
        // It was released already: another round had passed meanwhile.
        return;
    }
    let _permit = node.looks.acquire().await;
    if let Err(error) = node.leases.leave(&grant.ticket).await {
        return tracing::debug!(?error, "the lease was not released");
    }
    grants.seen.send_modify(|seen| {
        *seen = seen.iter().filter(|other| !is_it(other)).cloned().collect();
    });
    let InstanceKey { label, service_id } = grants.key.clone();
    node.report(Report::LeaseReleased { label, service_id, token: grant.token });
}
