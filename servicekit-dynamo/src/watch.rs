//! Following a group by looking again: at its mark, where it has one, and otherwise at all of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::stream::BoxStream;
use servicekit_core::{
    Env, Instant, Kind, Result,
    store::{Change, Group, Life, Record, Shows, follow},
};

use crate::{mark, records::is_marked, store::Dynamo};

/// How often to look, unless records end sooner.
const POLL: Duration = Duration::from_secs(2);
/// How often at the most.
const SHORTEST: Duration = Duration::from_millis(500);
/// How often a group with a mark is read although its mark is the same: a writer may have died between a change and its mark.
const ALL: Duration = Duration::from_secs(300);
/// No mark is known.
const NONE: i64 = i64::MIN;
/// How often at the least, on a table that asks to slow down.
const SLOWEST: Duration = Duration::from_secs(30);

/// Follows one group; see [`Store::watch`](servicekit_core::store::Store::watch).
pub(crate) fn follow_group(dynamo: Dynamo, group: Group) -> BoxStream<'static, Result<Change>> {
    let following = Arc::new(Following {
        dynamo,
        marked: is_marked(&group),
        group,
        mark: AtomicI64::new(NONE),
        shortest_ttl: AtomicU64::new(u64::MAX),
        throttled: AtomicU32::new(0),
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
    /// In milliseconds, of the records that were read last and lived.
    shortest_ttl: AtomicU64,
    /// How often in a row the table asked to slow down.
    throttled: AtomicU32,
}

impl Following {
    /// Reads all. A request that fails now and then is no outage: nobody hears of it.
    async fn read(&self) -> Result<Vec<Record>> {
        let mut failures = 0;
        let records = loop {
            match self.heed(self.try_read().await) {
                Err(error) if self.dynamo.may_pass(&error, &mut failures).await => {}
                Err(error) => {
                    self.mark.store(NONE, Ordering::Relaxed);
                    return Err(error.on("dynamodb").during("watch").at(&self.group));
                }
                Ok(records) => break records,
            }
        };
        // Those that are over stay for a day, and are touched no more.
        let ttls = records.iter().filter(|record| !record.is_over()).filter_map(ttl);
        self.shortest_ttl.store(ttls.min().unwrap_or(u64::MAX), Ordering::Relaxed);
        Ok(records)
    }

    async fn try_read(&self) -> Result<Vec<Record>> {
        if self.marked && self.mark.load(Ordering::Relaxed) == NONE {
            let mark = mark::read(&self.dynamo.0.table, &self.group).await?;
            self.mark.store(mark, Ordering::Relaxed);
        }
        // What the mark announced must be seen. Without one, what is missed now is seen at the next look.
        self.dynamo.read_group(&self.group, self.marked).await
    }

    /// Waits until it is time to read.
    async fn pause(&self) {
        let Env { clock, random } = &self.dynamo.0.env;
        let all: Instant = clock.now() + random.jitter(ALL, 0.1);
        let mut failures = 0;
        loop {
            clock.sleep(random.jitter(self.step(), 0.1)).await;
            let before = self.mark.load(Ordering::Relaxed);
            if !self.marked || before == NONE {
                return;
            }
            match self.heed(mark::read(&self.dynamo.0.table, &self.group).await) {
                Ok(mark) if mark == before && clock.now() < all => failures = 0,
                Ok(mark) => return self.mark.store(mark, Ordering::Relaxed),
                Err(error) if self.dynamo.may_pass(&error, &mut failures).await => {}
                // The read will tell, and begins with the mark.
                Err(_) => return self.mark.store(NONE, Ordering::Relaxed),
            }
        }
    }

    /// How long to wait before the next look. Who looks more rarely than records are touched takes them for dead; but on a
    /// table that cannot keep up, all who follow have to look more rarely.
    fn step(&self) -> Duration {
        let ttl = Duration::from_millis(self.shortest_ttl.load(Ordering::Relaxed));
        let doublings = self.throttled.load(Ordering::Relaxed).min(10);
        ((ttl / 6).clamp(SHORTEST, POLL) * (1 << doublings)).min(SLOWEST)
    }

    /// Notes whether the table asks to slow down.
    fn heed<T>(&self, answer: Result<T>) -> Result<T> {
        match &answer {
            Ok(_) => self.throttled.store(0, Ordering::Relaxed),
            Err(error) if error.kind() == Kind::Throttled => {
                self.throttled.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => {}
        }
        answer
    }
}

fn ttl(record: &Record) -> Option<u64> {
    match record.life {
        Life::Ephemeral { ttl, .. } => u64::try_from(ttl.as_millis()).ok(),
        Life::Durable => None,
    }
}
