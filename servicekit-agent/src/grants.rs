use std::{convert::Infallible, sync::Arc};

use servicekit_core::lease::Grant;
use tokio::sync::{Notify, watch};

use crate::{Report, Service, node::Node};

/// The unattended grants of a service's own lease, between who probes and who talks to the store.
#[derive(Default)]
pub(crate) struct Grants {
    look: Notify,
    seen: watch::Sender<Arc<[Grant]>>,
    due: watch::Sender<Arc<[Grant]>>,
}

impl Grants {
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

/// Looks and releases on request. What fails is tried again on the next request: for a look with the next round, for a
/// release with the next one that passes.
pub(crate) async fn follow(node: &Node, service: &Service, grants: &Grants) -> Infallible {
    let mut due = grants.due.subscribe();
    loop {
        tokio::select! {
            biased;
            Ok(()) = due.changed() => {
                let due = due.borrow_and_update().clone();
                for grant in due.iter() {
                    release(node, service, grants, grant).await;
                }
            }
            () = grants.look.notified() => look(node, service, grants).await,
        }
    }
}

async fn look(node: &Node, service: &Service, grants: &Grants) {
    let _permit = node.looks.acquire().await;
    let lease = match node.leases.inspect(&service.label).await {
        Ok(lease) => lease,
        Err(error) => return tracing::debug!(?error, "the lease was not seen"),
    };
    let is_own =
        |grant: &Grant| grant.holder == service.service_id && !grant.attended && !grant.evicted;
    let own = lease
        .into_iter()
        .flat_map(|lease| lease.grants)
        .filter(is_own);
    let own: Arc<[Grant]> = own.collect();
    grants.seen.send_if_modified(|seen| {
        let is_new = !own
            .iter()
            .map(|grant| grant.token)
            .eq(seen.iter().map(|grant| grant.token));
        if is_new {
            *seen = own;
        }
        is_new
    });
}

async fn release(node: &Node, service: &Service, grants: &Grants, grant: &Grant) {
    let is_it = |other: &Grant| other.token == grant.token;
    if !grants.seen.borrow().iter().any(is_it) {
        // Another round has passed while it was being released.
        return;
    }
    let _permit = node.looks.acquire().await;
    if let Err(error) = node.leases.leave(&grant.ticket).await {
        return tracing::debug!(?error, "the lease was not released");
    }
    grants.seen.send_modify(|seen| {
        *seen = seen.iter().filter(|other| !is_it(other)).cloned().collect();
    });
    node.report(Report::LeaseReleased {
        label: service.label.clone(),
        service_id: service.service_id.clone(),
        token: grant.token,
    });
}
