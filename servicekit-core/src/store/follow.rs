//! Following a group by reading it again and comparing: for stores whose own notice says only *when* to look.

use std::{collections::BTreeMap, future::Future, time::Duration};

use async_stream::stream;
use futures_util::stream::BoxStream;

use super::{Change, Life, Record, Version, WriteId};
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
        let mut seen: Option<BTreeMap<Name, (Version, WriteId)>> = None;
        loop {
            let mut soonest = None;
            match read().await {
                Ok(records) => {
                    soonest = records.iter().filter_map(left).min();
                    let now: BTreeMap<_, _> = records
                        .iter()
                        .map(|record| {
                            (record.key.name.clone(), (record.version.clone(), record.write.clone()))
                        })
                        .collect();
                    match seen.replace(now.clone()) {
                        None => yield Ok(Change::Snapshot(records)),
                        Some(before) => {
                            for record in records {
                                let is_new = before.get(&record.key.name).is_none_or(|(version, write)| {
                                    match shows {
                                        Shows::Puts => *write != record.write,
                                        Shows::Touches => *version != record.version,
                                    }
                                });
                                if is_new {
                                    yield Ok(Change::Put(record));
                                }
                            }
                            for name in before.into_keys().filter(|name| !now.contains_key(name)) {
                                yield Ok(Change::Removed(name));
                            }
                        }
                    }
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

fn left(record: &Record) -> Option<Duration> {
    match record.life {
        Life::Ephemeral { left, .. } => left,
        Life::Durable => None,
    }
}
