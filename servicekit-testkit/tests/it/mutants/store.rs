//! Stores that break their contract.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use servicekit_core::{
    Capabilities, Env, Kind, Result, Timestamp,
    store::{Change, Expect, Group, Keep, Key, Life, Memory, Put, Record, Store, Version, WriteId},
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bug {
    PutsWithoutCondition,
    ChecksThenWrites,
    MakesVersionsOfContent,
    ForgetsTheWriteId,
    DeletesWithoutCondition,
    ReadsStale,
    ListsByPrefix,
    ListsOnePage,
    FoldsCase,
    TouchRevives,
    TouchIgnoresTheWriteId,
    EndsEarly,
    EndsByTheWallClock,
    MissesWhatHappenedWhileAway,
    MissesDeletes,
}

#[derive(Clone, Debug)]
pub(crate) struct Mutant {
    bug: Bug,
    store: Arc<Memory>,
    env: Env,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    groups: BTreeSet<Group>,
    puts: BTreeMap<Key, (Put, Timestamp)>,
    read: BTreeMap<Key, Option<Record>>,
    snapshots: BTreeMap<Group, Vec<Record>>,
}

impl Mutant {
    pub(crate) fn new(bug: Bug, store: Arc<Memory>, env: Env) -> Self {
        Self { bug, store, env, state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while it was held")
    }

    fn key(&self, key: &Key) -> Key {
        match self.bug {
            Bug::FoldsCase => key.group.key(
                key.name
                    .as_str()
                    .to_lowercase()
                    .parse::<servicekit_core::Name>()
                    .expect("a fine name"),
            ),
            _ => key.clone(),
        }
    }

    /// The version as the store behind knows it.
    async fn version(&self, key: &Key, version: &Version) -> Result<Version> {
        let current = self.store.get(key).await?;
        Ok(match self.bug {
            Bug::DeletesWithoutCondition => current.map(|record| record.version),
            Bug::MakesVersionsOfContent => {
                current.filter(|record| of_content(record) == *version).map(|record| record.version)
            }
            _ => None,
        }
        .unwrap_or_else(|| version.clone()))
    }

    /// A record as this mutant shows it.
    fn show(&self, mut record: Record) -> Option<Record> {
        match self.bug {
            Bug::MakesVersionsOfContent => record.version = of_content(&record),
            Bug::ForgetsTheWriteId => record.write = WriteId::new("forgotten"),
            Bug::EndsEarly => {
                if let Life::Ephemeral { ttl, .. } = &mut record.life {
                    *ttl = *ttl * 10 / 9;
                }
            }
            Bug::EndsByTheWallClock => {
                let written = self.state().puts.get(&record.key).map(|(_, at)| *at)?;
                if let Life::Ephemeral { ttl, .. } = record.life
                    && self.env.clock.wall() > written + ttl
                {
                    return None;
                }
            }
            _ => {}
        }
        Some(record)
    }
}

fn of_content(record: &Record) -> Version {
    Version::new(String::from_utf8_lossy(&record.value))
}

#[async_trait]
impl Store for Mutant {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        let key = self.key(key);
        let found = self.store.get(&key).await?.and_then(|record| self.show(record));
        if self.bug == Bug::ReadsStale {
            let before = self.state().read.insert(key, found.clone());
            return Ok(before.flatten().or(found));
        }
        Ok(found)
    }

    async fn put(&self, put: &Put) -> Result<Version> {
        let mut put = Put { key: self.key(&put.key), ..put.clone() };
        if let Expect::At(version) = &put.expect {
            put.expect = Expect::At(self.version(&put.key, version).await?);
        }
        let current = self.store.get(&put.key).await?;
        let is_met = match (&put.expect, &current) {
            (Expect::Absent, None) => true,
            (Expect::At(version), Some(record)) => *version == record.version,
            _ => false,
        };
        let unconditional =
            self.bug == Bug::PutsWithoutCondition || self.bug == Bug::ChecksThenWrites && is_met;
        if self.bug == Bug::ChecksThenWrites {
            self.env.clock.sleep(Duration::from_millis(1)).await;
        }
        if unconditional {
            let current = self.store.get(&put.key).await?;
            put.expect = current.map_or(Expect::Absent, |record| Expect::At(record.version));
        }
        if let (Bug::EndsEarly, Keep::Ephemeral(ttl)) = (self.bug, put.keep) {
            put.keep = Keep::Ephemeral(ttl * 9 / 10);
        }
        let version = self.store.put(&put).await?;
        let mut state = self.state();
        state.groups.insert(put.key.group.clone());
        state.puts.insert(put.key.clone(), (put.clone(), self.env.clock.wall()));
        Ok(match self.bug {
            Bug::MakesVersionsOfContent => Version::new(String::from_utf8_lossy(&put.value)),
            _ => version,
        })
    }

    async fn touch(&self, key: &Key, write: &WriteId) -> Result<Version> {
        let key = self.key(key);
        let touched = self.store.touch(&key, write).await;
        let Err(error) = touched else { return touched };
        match (self.bug, error.kind()) {
            (Bug::TouchRevives, Kind::Lost) => {
                let put = self.state().puts.get(&key).map(|(put, _)| put.clone());
                let Some(put) = put.filter(|put| put.write == *write) else { return Err(error) };
                self.store.put(&Put { expect: Expect::Absent, ..put }).await
            }
            (Bug::TouchIgnoresTheWriteId, Kind::Conflict) => match self.store.get(&key).await? {
                Some(record) => self.store.touch(&key, &record.write).await,
                None => Err(error),
            },
            _ => Err(error),
        }
    }

    async fn delete(&self, key: &Key, version: &Version) -> Result<()> {
        let key = self.key(key);
        let version = self.version(&key, version).await?;
        self.store.delete(&key, &version).await
    }

    async fn list(&self, groups: &[Group]) -> Result<Vec<Record>> {
        let mut asked = groups.to_vec();
        if self.bug == Bug::ListsByPrefix {
            let begins = |known: &Group| {
                groups.iter().any(|group| known.as_str().starts_with(group.as_str()))
            };
            asked.extend(self.state().groups.iter().filter(|known| begins(known)).cloned());
        }
        let mut records = self.store.list(&asked).await?;
        if self.bug == Bug::ListsOnePage {
            records.truncate(1000);
        }
        Ok(records.into_iter().filter_map(|record| self.show(record)).collect())
    }

    fn watch(&self, group: &Group) -> BoxStream<'static, Result<Change>> {
        let (mutant, group) = (self.clone(), group.clone());
        let changes = self.store.watch(&group).filter_map(move |change| {
            let change = change.map(|change| match (mutant.bug, change) {
                (Bug::MissesDeletes, Change::Removed(_)) => None,
                (Bug::MissesWhatHappenedWhileAway, Change::Snapshot(records)) => {
                    let mut state = mutant.state();
                    let first = state.snapshots.entry(group.clone()).or_insert(records);
                    Some(Change::Snapshot(first.clone()))
                }
                (_, Change::Snapshot(records)) => {
                    let records = records.into_iter().filter_map(|record| mutant.show(record));
                    Some(Change::Snapshot(records.collect()))
                }
                (_, Change::Put(record)) => mutant.show(record).map(Change::Put),
                (_, change) => Some(change),
            });
            std::future::ready(change.transpose())
        });
        changes.chain(stream::pending()).boxed()
    }
}
