//! Following a group by looking again: at its mark, where it has one, and otherwise at all of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::stream::BoxStream;
use servicekit_core::{
    Error, Instant, Result,
    store::{Change, Group, Life, Record, Shows, follow},
};

use crate::{records::is_marked, store::Dynamo};

/// How often to look, unless records end sooner.
const POLL: Duration = Duration::from_secs(2);
/// How often at the most.
const SHORTEST: Duration = Duration::from_millis(500);
/// How often a group with a mark is read although its mark is the same: a writer may have died between a change and its mark.
const ALL: Duration = Duration::from_secs(300);

/// Follows one group; see [`Store::watch`](servicekit_core::store::Store::watch).
pub(crate) fn follow_group(dynamo: Dynamo, group: Group) -> BoxStream<'static, Result<Change>> {
    let following = Arc::new(Following {
        dynamo,
        marked: is_marked(&group),
        group,
        mark: AtomicI64::new(i64::MIN),
        shortest_ttl: AtomicU64::new(u64::MAX),
    });
    let waking = following.clone();
    let read = move || {
        let following = following.clone();
        async move { following.read().await }
    };
    let wake = move |_| {
        let following = waking.clone();
        async move { following.pause().await }
    };
    follow(Shows::Touches, read, wake)
}

struct Following {
    dynamo: Dynamo,
    group: Group,
    marked: bool,
    /// The mark before the last read of all.
    mark: AtomicI64,
    /// In milliseconds, of the records that were read last.
    shortest_ttl: AtomicU64,
}

impl Following {
    async fn read(&self) -> Result<Vec<Record>> {
        let on = |error: Error| error.on("dynamodb").during("watch").at(&self.group);
        if self.marked && self.mark.load(Ordering::Relaxed) == i64::MIN {
            let mark = self.dynamo.read_mark(&self.group).await.map_err(on)?;
            self.mark.store(mark, Ordering::Relaxed);
        }
        // What the mark announced must be seen. Without one, what is missed now is seen at the next look.
        let records = self.dynamo.read_group(&self.group, self.marked).await.map_err(|error| {
            self.mark.store(i64::MIN, Ordering::Relaxed);
            on(error)
        })?;
        let ttls = records.iter().filter_map(ttl);
        self.shortest_ttl.store(ttls.min().unwrap_or(u64::MAX), Ordering::Relaxed);
        Ok(records)
    }

    /// Waits until it is time to read.
    async fn pause(&self) {
        let env = &self.dynamo.0.env;
        let all: Instant = env.clock.now() + env.random.jitter(ALL, 0.1);
        loop {
            // Who looks more rarely than records are touched takes them for dead.
            let ttl = Duration::from_millis(self.shortest_ttl.load(Ordering::Relaxed));
            let pause = (ttl / 6).clamp(SHORTEST, POLL);
            env.clock.sleep(env.random.jitter(pause, 0.1)).await;
            let before = self.mark.load(Ordering::Relaxed);
            if !self.marked || before == i64::MIN {
                return;
            }
            match self.dynamo.read_mark(&self.group).await {
                Ok(mark) if mark == before && env.clock.now() < all => {}
                Ok(mark) => return self.mark.store(mark, Ordering::Relaxed),
                // The read will tell.
                Err(_) => return self.mark.store(i64::MIN, Ordering::Relaxed),
            }
        }
    }
}

fn ttl(record: &Record) -> Option<u64> {
    match record.life {
        Life::Ephemeral { ttl, .. } => u64::try_from(ttl.as_millis()).ok(),
        Life::Durable => None,
    }
}
