use std::{collections::BTreeMap, convert::Infallible, sync::Arc};

use servicekit_core::{
    Kind,
    registry::{InstanceKey, Session},
};
use tokio::sync::Notify;

use crate::{
    node::{Link, Node},
    outage::Party,
};

/// Keeps a session open for as long as it is polled, and hands on which instances were taken over.
pub(crate) async fn hold(
    node: &Node,
    taken_over: &BTreeMap<InstanceKey, Arc<Notify>>,
) -> Infallible {
    let mut party = node.outage.party();
    let mut link = node.link.subscribe();
    loop {
        let session = open(node, &mut party).await;
        let opened = node.env.clock.now();
        node.link.send_replace(Link::Open(session.clone()));
        tokio::select! {
            () = beat(node, &session, &mut party, taken_over) => {}
            _ = link.wait_for(|link| matches!(link, Link::Closed)) => {}
        }
        // A store that loses sessions as fast as they are opened is not asked for more at that rate.
        let lived = node.env.clock.now().since(opened);
        node.env.clock.sleep(node.beat_interval().saturating_sub(lived)).await;
    }
}

async fn open(node: &Node, party: &mut Party<'_>) -> Arc<Session> {
    loop {
        match node.registry.open(&node.options.node, node.options.ttl).await {
            Ok(session) => {
                party.succeeded();
                return Arc::new(session);
            }
            Err(error) => {
                let pause = party.failed(error, &node.env, node.beat_interval());
                node.env.clock.sleep(pause).await;
            }
        }
    }
}

/// Beats until the session is lost.
async fn beat(
    node: &Node,
    session: &Arc<Session>,
    party: &mut Party<'_>,
    taken_over: &BTreeMap<InstanceKey, Arc<Notify>>,
) {
    let interval = node.beat_interval();
    // Sessions that began together, after an outage of the store, do not go on beating together.
    let mut pause = node.env.random.jitter(interval, 0.5).min(interval);
    loop {
        node.env.clock.sleep(pause).await;
        let began = node.env.clock.now();
        pause = match node.registry.beat(session).await {
            Ok(keys) => {
                party.succeeded();
                for notice in keys.iter().filter_map(|key| taken_over.get(key)) {
                    notice.notify_one();
                }
                node.link.send_if_modified(|link| set(link, Link::Open(session.clone())));
                interval.saturating_sub(node.env.clock.now().since(began))
            }
            Err(error) if error.kind() == Kind::Lost => {
                node.lost(session);
                return;
            }
            Err(error) => {
                node.link.send_if_modified(|link| set(link, Link::Away(session.clone())));
                party.failed(error, &node.env, interval)
            }
        };
    }
}

/// Changes the link, unless it is closed or as it should be.
fn set(link: &mut Link, to: Link) -> bool {
    let change =
        matches!((&*link, &to), (Link::Open(_), Link::Away(_)) | (Link::Away(_), Link::Open(_)));
    if change {
        *link = to;
    }
    change
}
