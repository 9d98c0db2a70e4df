//! A store of one's own, and the proof that servicekit can rely on it: `main` is all that the proof takes.
//!
//! The store keeps its records in a map. It leaves the end of ephemeral records to observers, so it needs no timer, and its
//! followers look again whenever something changed.
//!
//! ```sh
//! cargo test -p servicekit-examples --test custom_store
//! ```

use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use servicekit::{
    Capabilities, Env, Error, Instant, Kind, Result,
    store::{
        Change, Expect, Group, Keep, Key, Life, Put, Record, Shows, Store, Version, WriteId, follow,
    },
};
use servicekit_testkit::suite::{self, Fresh, Subject, Time};
use tokio::sync::watch;

fn main() -> ExitCode {
    suite::main(Subject::new("map", Time::Simulated, |env| async { Ok(Fresh::new(Map::new(env))) }))
}

/// Records in a map.
#[derive(Clone, Debug)]
struct Map {
    env: Env,
    rows: Arc<Mutex<BTreeMap<Key, Row>>>,
    /// The last version; drawn from one counter, so that none comes back.
    last: Arc<watch::Sender<u64>>,
}

/// A record, and until when it stays.
#[derive(Clone, Debug)]
struct Row {
    value: Arc<[u8]>,
    version: u64,
    write: WriteId,
    ends: Option<(Duration, Instant)>,
}

const MAX_VALUE_BYTES: usize = 1_000_000;

impl Map {
    fn new(env: Env) -> Self {
        Self { env, rows: Arc::default(), last: Arc::new(watch::Sender::new(0)) }
    }

    fn rows(&self) -> MutexGuard<'_, BTreeMap<Key, Row>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw_version(&self) -> u64 {
        self.last.send_modify(|last| *last += 1);
        *self.last.borrow()
    }

    fn record(&self, key: &Key, row: &Row) -> Record {
        let life = row.ends.map_or(Life::Durable, |(ttl, ends)| Life::Ephemeral {
            ttl,
            left: Some(ends.since(self.env.clock.now())),
        });
        let version = Version::new(row.version.to_string());
        Record {
            key: key.clone(),
            value: row.value.clone(),
            version,
            write: row.write.clone(),
            life,
        }
    }

    fn read(&self, groups: &[Group]) -> Vec<Record> {
        let rows = self.rows();
        let rows = rows.iter().filter(|(key, _)| groups.contains(&key.group));
        rows.map(|(key, row)| self.record(key, row)).collect()
    }
}

fn error(kind: Kind, message: &str) -> Error {
    Error::new(kind, message).on("map")
}

#[async_trait]
impl Store for Map {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            linearizable: true,
            multi_host: false,
            server_expiry: false,
            push_watch: true,
            max_value_bytes: MAX_VALUE_BYTES,
            min_ttl: Duration::from_millis(100),
        }
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        Ok(self.rows().get(key).map(|row| self.record(key, row)))
    }

    async fn put(&self, put: &Put) -> Result<Version> {
        if put.value.len() > MAX_VALUE_BYTES {
            return Err(error(Kind::Invalid, "the value is too large"));
        }
        let mut rows = self.rows();
        let before = rows.get(&put.key);
        let is_met = match (&put.expect, before) {
            (Expect::Absent, None) => true,
            (Expect::At(version), Some(row)) => version.as_str() == row.version.to_string(),
            _ => false,
        };
        if !is_met {
            return Err(error(Kind::Conflict, "the record is not as expected"));
        }
        let ends = match put.keep {
            Keep::Durable => None,
            Keep::Ephemeral(ttl) => Some((ttl, self.env.clock.now() + ttl)),
            Keep::Unchanged => before.and_then(|row| row.ends),
        };
        let version = self.draw_version();
        let row = Row { value: put.value.clone(), version, write: put.write.clone(), ends };
        rows.insert(put.key.clone(), row);
        Ok(Version::new(version.to_string()))
    }

    async fn touch(&self, key: &Key, write: &WriteId) -> Result<Version> {
        let mut rows = self.rows();
        let row = rows.get_mut(key).ok_or_else(|| error(Kind::Lost, "the record is gone"))?;
        if row.write != *write {
            return Err(error(Kind::Conflict, "the record has another value"));
        }
        if let Some((ttl, ends)) = &mut row.ends {
            *ends = self.env.clock.now() + *ttl;
        }
        row.version = self.draw_version();
        Ok(Version::new(row.version.to_string()))
    }

    async fn delete(&self, key: &Key, version: &Version) -> Result<()> {
        let mut rows = self.rows();
        let row = rows.get(key).ok_or_else(|| error(Kind::NotFound, "there is no such record"))?;
        if version.as_str() != row.version.to_string() {
            return Err(error(Kind::Conflict, "the record is not as expected"));
        }
        rows.remove(key);
        self.draw_version();
        Ok(())
    }

    async fn list(&self, groups: &[Group]) -> Result<Vec<Record>> {
        Ok(self.read(groups))
    }

    fn watch(&self, group: &Group) -> BoxStream<'static, Result<Change>> {
        let (map, group) = (self.clone(), group.clone());
        let read = move || std::future::ready(Ok(map.read(std::slice::from_ref(&group))));
        // What changes after a look has begun is not seen yet, and wakes the next one.
        let changes = Arc::new(tokio::sync::Mutex::new(self.last.subscribe()));
        let wake = move |_| {
            let changes = changes.clone();
            async move { drop(changes.lock().await.changed().await) }
        };
        follow(Shows::Touches, read, wake)
    }
}
