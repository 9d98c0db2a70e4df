//! A strict store in memory: for tests, for examples, and for programs of one process.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{future::select, stream::BoxStream};
use tokio::sync::watch;

use super::{
    Change, Expect, Group, Keep, Key, Life, Put, Record, Shows, Store, Version, WriteId, follow,
};
use crate::{Capabilities, Clock, Env, Error, Instant, Kind, Name, Result};

/// Which kind of real store [`Memory`] is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Profile {
    /// Ends records itself and pushes changes, like etcd.
    Server,
    /// Pushes changes and leaves expiry to observers, like CouchDB.
    Feed,
    /// Is polled and leaves expiry to observers, like DynamoDB.
    Table,
}

/// A store in this process's memory, which clones share.
///
/// It is strict: it reports what a real store would let pass and a bug would hide in, such as a write id used twice.
#[derive(Clone)]
pub struct Memory {
    profile: Profile,
    clock: Arc<dyn Clock>,
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct State {
    groups: BTreeMap<Group, BTreeMap<Name, Row>>,
    /// Versions are drawn from one counter, so that none comes back.
    last_version: u64,
    /// What each write id was used for.
    writes: BTreeMap<WriteId, (Key, Arc<[u8]>)>,
}

struct Row {
    value: Arc<[u8]>,
    version: u64,
    write: WriteId,
    ends: Option<(Duration, Instant)>,
}

/// How often a polled profile looks.
const POLL: Duration = Duration::from_millis(500);
/// The largest value: that of a real store with a small limit.
const MAX_VALUE_BYTES: usize = 300_000;

impl Memory {
    /// An empty store.
    #[must_use]
    pub fn new(env: Env, profile: Profile) -> Self {
        let state = Arc::default();
        Self { profile, clock: env.clock, state, changed: Arc::new(watch::Sender::new(0)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the clock, and drops the record if it has ended by now.
    fn at(&self, state: &mut State, key: &Key) -> Instant {
        let now = self.clock.now();
        if state.row(key).is_some_and(|row| !self.stands(row, now)) {
            state.group(key).remove(&key.name);
        }
        now
    }

    fn stands(&self, row: &Row, now: Instant) -> bool {
        !self.capabilities().server_expiry || row.ends.is_none_or(|(_, ends)| ends > now)
    }

    fn read(&self, groups: &[Group]) -> Vec<Record> {
        let now = self.clock.now();
        let state = self.state();
        let wanted: BTreeSet<_> = groups.iter().collect();
        let rows = wanted.into_iter().filter_map(|group| Some((group, state.groups.get(group)?)));
        let rows =
            rows.flat_map(|(group, rows)| rows.iter().map(move |(name, row)| (group, name, row)));
        rows.filter(|(.., row)| self.stands(row, now))
            .map(|(group, name, row)| record(&group.key(name.clone()), row, now))
            .collect()
    }

    fn notify(&self) {
        self.changed.send_modify(|changes| *changes += 1);
    }
}

impl State {
    fn group(&mut self, key: &Key) -> &mut BTreeMap<Name, Row> {
        self.groups.entry(key.group.clone()).or_default()
    }

    fn row(&self, key: &Key) -> Option<&Row> {
        self.groups.get(&key.group)?.get(&key.name)
    }

    fn draw_version(&mut self) -> u64 {
        self.last_version += 1;
        self.last_version
    }
}

fn record(key: &Key, row: &Row, now: Instant) -> Record {
    let life = row
        .ends
        .map_or(Life::Durable, |(ttl, ends)| Life::Ephemeral { ttl, left: Some(ends.since(now)) });
    Record {
        key: key.clone(),
        value: row.value.clone(),
        version: version(row.version),
        write: row.write.clone(),
        life,
    }
}

fn version(number: u64) -> Version {
    Version::new(number.to_string())
}

fn error(kind: Kind, message: impl Into<String>, key: &Key) -> Error {
    Error::new(kind, message).on("memory").at(key)
}

#[async_trait]
impl Store for Memory {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            linearizable: true,
            multi_host: self.profile != Profile::Server,
            server_expiry: self.profile == Profile::Server,
            push_watch: self.profile != Profile::Table,
            max_value_bytes: MAX_VALUE_BYTES,
            min_ttl: Duration::from_millis(100),
        }
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        let mut state = self.state();
        let now = self.at(&mut state, key);
        Ok(state.row(key).map(|row| record(key, row, now)))
    }

    async fn put(&self, put: &Put) -> Result<Version> {
        let Put { key, value, expect, keep, write } = put;
        if value.len() > MAX_VALUE_BYTES {
            let message = format!("{} bytes; at most {MAX_VALUE_BYTES} fit", value.len());
            return Err(error(Kind::Invalid, message, key));
        }
        let mut state = self.state();
        let now = self.at(&mut state, key);
        let used =
            state.writes.entry(write.clone()).or_insert_with(|| (key.clone(), value.clone()));
        if *used != (key.clone(), value.clone()) {
            return Err(error(Kind::Unexpected, "a write id was used for two different puts", key));
        }
        let before = state.row(key);
        let met = match (expect, before) {
            (Expect::Absent, None) => true,
            (Expect::At(expected), Some(row)) => *expected == version(row.version),
            _ => false,
        };
        if !met {
            return Err(error(Kind::Conflict, "the record is not as expected", key));
        }
        let ends = match (keep, before) {
            (Keep::Durable, _) => None,
            (Keep::Ephemeral(ttl), _) => Some((*ttl, now + *ttl)),
            (Keep::Unchanged, Some(row)) => row.ends,
            (Keep::Unchanged, None) => {
                return Err(error(Kind::Invalid, "there is no life to leave unchanged", key));
            }
        };
        let number = state.draw_version();
        let row = Row { value: value.clone(), version: number, write: write.clone(), ends };
        state.group(key).insert(key.name.clone(), row);
        drop(state);
        self.notify();
        Ok(version(number))
    }

    async fn touch(&self, key: &Key, write: &WriteId) -> Result<Version> {
        let mut state = self.state();
        let now = self.at(&mut state, key);
        let number = state.draw_version();
        let Some(row) = state.group(key).get_mut(&key.name) else {
            return Err(error(Kind::Lost, "the record is gone", key));
        };
        if row.write != *write {
            return Err(error(Kind::Conflict, "the record has another value", key));
        }
        let Some((ttl, ends)) = &mut row.ends else {
            return Err(error(Kind::Invalid, "a durable record needs no touch", key));
        };
        *ends = now + *ttl;
        row.version = number;
        drop(state);
        self.notify();
        Ok(version(number))
    }

    async fn delete(&self, key: &Key, expected: &Version) -> Result<()> {
        let mut state = self.state();
        self.at(&mut state, key);
        let Some(row) = state.row(key) else {
            return Err(error(Kind::NotFound, "there is no such record", key));
        };
        if version(row.version) != *expected {
            return Err(error(Kind::Conflict, "the record is not as expected", key));
        }
        state.group(key).remove(&key.name);
        drop(state);
        self.notify();
        Ok(())
    }

    async fn list(&self, groups: &[Group]) -> Result<Vec<Record>> {
        Ok(self.read(groups))
    }

    fn watch(&self, group: &Group) -> BoxStream<'static, Result<Change>> {
        let Capabilities { server_expiry, push_watch, .. } = self.capabilities();
        let shows = if server_expiry { Shows::Puts } else { Shows::Touches };
        let (store, group) = (self.clone(), group.clone());
        let (clock, changes) = (self.clock.clone(), self.changed.subscribe());
        // What had changed before the last read began, so that no change after it is slept through.
        let seen = Arc::new(AtomicU64::new(0));
        let read = {
            let (changes, seen) = (changes.clone(), seen.clone());
            move || {
                seen.store(*changes.borrow(), Ordering::Relaxed);
                let records = store.read(std::slice::from_ref(&group));
                async move { Ok(records) }
            }
        };
        let wake = move |soonest: Option<Duration>| {
            let (clock, mut changes) = (clock.clone(), changes.clone());
            let seen = seen.load(Ordering::Relaxed);
            async move {
                if !push_watch {
                    return clock.sleep(POLL).await;
                }
                let changed = std::pin::pin!(changes.wait_for(|now| *now != seen));
                match soonest.filter(|_| server_expiry) {
                    Some(ends) => drop(select(changed, clock.sleep(ends)).await),
                    None => drop(changed.await),
                }
            }
        };
        follow(shows, read, wake)
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("profile", &self.profile).finish_non_exhaustive()
    }
}
