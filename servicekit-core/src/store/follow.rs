//! Following a group by reading it again and comparing: for stores whose own notice says only *when* to look.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use async_stream::stream;
use futures_util::stream::BoxStream;

use super::{Change, Life, Record};
use crate::{Name, Result};

/// Which writes show as a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there are two")]
pub enum Shows {
    /// Puts alone: for stores that end ephemeral records themselves.
    Puts,
    /// Puts and touches.
    Touches,
}

/// Makes the stream of [`Store::watch`](super::Store::watch) out of reading the whole group, again after each `wake`.
///
/// `wake` is told how soon the first record will have ended, and returns when it is time to look again.
pub fn follow<Read, Reading, Wake, Waking>(
    shows: Shows,
    mut read: Read,
    mut wake: Wake,
) -> BoxStream<'static, Result<Change>>
where
    Read: FnMut() -> Reading + Send + 'static,
    Reading: Future<Output = Result<Vec<Record>>> + Send,
    Wake: FnMut(Option<Duration>) -> Waking + Send + 'static,
    Waking: Future<Output = ()> + Send,
{
    Box::pin(stream! {
        let mut seen: Option<BTreeMap<Name, Arc<str>>> = None;
        loop {
            let mut soonest = None;
            match read().await {
                Ok(records) => {
                    soonest = records.iter().filter_map(left).min();
                    let now: BTreeMap<_, _> = records
                        .iter()
                        .map(|record| (record.key.name.clone(), mark(shows, record)))
                        .collect();
                    match seen.take() {
                        None => yield Ok(Change::Snapshot(records)),
                        Some(before) => {
                            for record in records {
                                if before.get(&record.key.name) != now.get(&record.key.name) {
                                    yield Ok(Change::Put(record));
                                }
                            }
                            for name in before.into_keys().filter(|name| !now.contains_key(name)) {
                                yield Ok(Change::Removed(name));
                            }
                        }
                    }
                    seen = Some(now);
                }
                Err(error) => {
                    seen = None;
                    yield Err(error);
                }
            }
            wake(soonest).await;
        }
    })
}

/// What is another one after a change that shows.
fn mark(shows: Shows, record: &Record) -> Arc<str> {
    match shows {
        Shows::Puts => record.write.0.clone(),
        Shows::Touches => record.version.0.clone(),
    }
}

fn left(record: &Record) -> Option<Duration> {
    match record.life {
        Life::Ephemeral { left, .. } => left,
        Life::Durable => None,
    }
}
