//! Following a group by reading it again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::stream::BoxStream;
use servicekit_core::{
    Result,
    store::{Change, Group, Life, Record, Shows, follow},
};

use crate::store::Dynamo;

/// How often a group is read, unless its records end sooner.
const POLL: Duration = Duration::from_secs(2);
const SHORTEST: Duration = Duration::from_millis(500);

/// Follows one group; see [`Store::watch`](servicekit_core::store::Store::watch).
pub(crate) fn follow_group(dynamo: Dynamo, group: Group) -> BoxStream<'static, Result<Change>> {
    let env = dynamo.0.env.clone();
    let shortest_ttl = Arc::new(AtomicU64::new(u64::MAX));
    let read = {
        let shortest_ttl = shortest_ttl.clone();
        move || {
            let (dynamo, group, shortest_ttl) =
                (dynamo.clone(), group.clone(), shortest_ttl.clone());
            async move {
                let on =
                    |error: servicekit_core::Error| error.on("dynamodb").during("watch").at(&group);
                let records = dynamo.read_group(&group).await.map_err(on)?;
                let ttls = records.iter().filter_map(ttl);
                shortest_ttl.store(ttls.min().unwrap_or(u64::MAX), Ordering::Relaxed);
                Ok(records)
            }
        }
    };
    let wake = move |_| {
        let env = env.clone();
        // Who reads more rarely than records are touched takes them for dead.
        let ttl = Duration::from_millis(shortest_ttl.load(Ordering::Relaxed));
        let pause = (ttl / 6).clamp(SHORTEST, POLL);
        async move { env.clock.sleep(env.random.jitter(pause, 0.1)).await }
    };
    follow(Shows::Touches, read, wake)
}

fn ttl(record: &Record) -> Option<u64> {
    match record.life {
        Life::Ephemeral { ttl, .. } => u64::try_from(ttl.as_millis()).ok(),
        Life::Durable => None,
    }
}
