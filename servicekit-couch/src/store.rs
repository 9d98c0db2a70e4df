//! The store's contract over documents: each write one request at a revision, each ephemeral record with the moment of its end
//! by the store's own clock.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{future::try_join_all, stream::BoxStream};
use reqwest::Method;
use serde::Deserialize;
use servicekit_core::{
    Capabilities, Effect, Env, Error, Kind, Result, Retry,
    store::{Change, Expect, Group, Keep, Key, Limits, Put, Record, Store, Version, WriteId},
};

use crate::{
    config::Config,
    database::Database,
    held::{AllHeld, Held},
    records::{Stored, Strangers, Written, id_of, is_of_a_lease, parts, version},
    watch,
};

/// A document may have 8 MB, as CouchDB comes, and grows by half in base64.
pub(crate) const MAX_VALUE_BYTES: usize = 1_000_000;
/// How often a touch is tried again at the revision that others made.
const TOUCHES: usize = 5;

/// One database, and another of beats. Clones share one handle.
///
/// It connects when it is first used. Dropping the last clone closes the connections.
#[derive(Clone)]
pub struct Couch(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) env: Env,
    pub(crate) database: Database,
    pub(crate) strangers: Strangers,
    held: AllHeld,
}

#[derive(Deserialize)]
struct Stands {
    rev: String,
}

impl Couch {
    /// Prepares to use a database; nothing is sent yet. An answer may take most of one attempt of `limits`.
    ///
    /// # Errors
    ///
    /// `Invalid` for a file of CAs that has none.
    pub fn new(config: Config, env: Env, limits: Limits) -> Result<Self> {
        let database = Database::new(config, &env, limits)?;
        let strangers = Strangers::default();
        Ok(Self(Arc::new(Inner { env, database, strangers, held: AllHeld::default() })))
    }

    /// Makes the databases where they are missing and the address says so.
    ///
    /// # Errors
    ///
    /// `Denied` and others of making them; `Unsupported` for a server that is not a CouchDB. That it cannot be reached is no
    /// error here: whoever uses it finds out.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave one of them made.
    pub async fn make_databases(&self) -> Result<()> {
        match self.0.database.open().await {
            Err(error) if error.is_transient() && error.retry() != Retry::Never => Ok(()),
            opened => opened.map(drop).map_err(|error| error.on("couchdb")),
        }
    }

    /// Looks at the databases, before a write to a record.
    async fn open_for(&self, key: &Key) -> Result<&Database> {
        let database = &self.0.database;
        match &database.open().await?.no_leases {
            Some(why) if is_of_a_lease(&key.group) => Err(Error::new(Kind::Unsupported, &**why)),
            _ => Ok(database),
        }
    }

    /// Writes a document at a revision, or where there is none, and returns the new revision.
    async fn write(&self, effect: Effect, key: &Key, written: &Written<'_>) -> Result<String> {
        let database = self.open_for(key).await?;
        let path = format!("{}/{}", database.of(&key.group), id_of(key)?);
        let body = serde_json::to_vec(written).map_err(|error| {
            Error::new(Kind::Unexpected, "the record cannot be written as JSON").because(error)
        })?;
        let answer = database.ask(effect, Method::PUT, &path, Some(body)).await?;
        let unclear = |error: Error| match effect {
            Effect::Write => error.retry_as(Retry::Unknown),
            Effect::Nothing => error,
        };
        Ok(answer.read::<Stands>().map_err(unclear)?.rev)
    }

    async fn put_record(&self, put: &Put) -> Result<Version> {
        let Put { key, value, expect, keep, write } = put;
        if value.len() > MAX_VALUE_BYTES {
            let message = format!("{} bytes; at most {MAX_VALUE_BYTES} fit", value.len());
            return Err(Error::new(Kind::Invalid, message));
        }
        self.open_for(key).await?;
        // A put without a revision succeeds where there is no document, and where it was deleted: both are absent, and of two
        // at the same time one meets the other's.
        let (rev, before) = match expect {
            Expect::Absent => (None, None),
            Expect::At(version) => {
                let (rev, life) = parts(version);
                (Some(rev), life)
            }
        };
        let life: Stored = match keep {
            Keep::Unchanged if rev.is_none() => {
                let message = "a record that is not there has no time to keep";
                return Err(Error::new(Kind::Invalid, message));
            }
            Keep::Unchanged => before,
            Keep::Durable => None,
            Keep::Ephemeral(ttl) => Some(self.counted_from_now(*ttl)),
        };
        let written = Written::new(rev, value, write, life);
        let rev = self.write(Effect::Write, key, &written).await?;
        let version = version(&rev, life);
        match life {
            Some((ttl, _)) => {
                let (write, value) = (write.clone(), value.clone());
                self.0.held.keep(key, Held { rev, write, value, ttl });
            }
            None => self.0.held.forget(key),
        }
        Ok(version)
    }

    async fn touch_record(&self, key: &Key, write: &WriteId) -> Result<Version> {
        let known = self.0.held.take(key).filter(|held| held.write == *write);
        let mut known = match known {
            Some(held) => held,
            None => self.held_by_store(key, write).await?,
        };
        for _ in 0..TOUCHES {
            let life = Some(self.counted_from_now(Duration::from_millis(known.ttl)));
            let written = Written::new(Some(&known.rev), &known.value, write, life);
            match self.write(Effect::Nothing, key, &written).await {
                Ok(rev) => {
                    let version = version(&rev, life);
                    self.0.held.keep(key, Held { rev, ..known });
                    return Ok(version);
                }
                // Somebody else's touch, or our own with an answer that was lost; or the end of it.
                Err(error) if error.kind() == Kind::Conflict => {
                    known = self.held_by_store(key, write).await?;
                }
                Err(error) => {
                    self.0.held.keep(key, known);
                    return Err(error);
                }
            }
        }
        let message = "too many touch the same record";
        Err(Error::new(Kind::Throttled, message).retry_as(Retry::Safe))
    }

    async fn held_by_store(&self, key: &Key, write: &WriteId) -> Result<Held> {
        let Some(document) = self.find(key).await? else {
            return Err(Error::new(Kind::Lost, "the record has ended"));
        };
        if document.write() != *write {
            return Err(Error::new(Kind::Conflict, "the record is another one by now"));
        }
        let Some((ttl, _)) = document.life() else {
            return Err(Error::new(Kind::Invalid, "a durable record needs no touch"));
        };
        let value = document.value().into();
        Ok(Held { rev: document.rev, write: write.clone(), value, ttl })
    }

    async fn delete_record(&self, key: &Key, version: &Version) -> Result<()> {
        let database = self.open_for(key).await?;
        let (rev, _) = parts(version);
        let path = format!("{}/{}?rev={rev}", database.of(&key.group), id_of(key)?);
        let deleted = database.ask(Effect::Write, Method::DELETE, &path, None).await;
        self.0.held.forget(key);
        match deleted {
            // A revision of what was deleted meets either answer.
            Err(error) if error.kind() == Kind::Conflict && self.find(key).await?.is_none() => {
                Err(Error::new(Kind::NotFound, "there is no such record"))
            }
            Err(error) if error.kind() == Kind::NotFound && self.find(key).await?.is_some() => {
                Err(Error::new(Kind::Conflict, "the record is another one by now"))
            }
            deleted => deleted.map(drop),
        }
    }

    /// What is stored for a ttl that begins now: it is never shorter than it should be.
    fn counted_from_now(&self, ttl: Duration) -> (u64, i64) {
        let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let now = self.0.database.http.clock.latest();
        (ttl, now.saturating_add_unsigned(ttl))
    }
}

#[async_trait]
impl Store for Couch {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            linearizable: true,
            multi_host: true,
            server_expiry: false,
            push_watch: true,
            max_value_bytes: MAX_VALUE_BYTES,
            // The store's clock is known to a second, and better after a few answers.
            min_ttl: Duration::from_secs(5),
        }
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        let found = self.find(key).await.map_err(on("get", key))?;
        let now = self.0.database.http.clock.earliest();
        Ok(found.map(|document| document.decode(key.clone(), now)))
    }

    async fn put(&self, put: &Put) -> Result<Version> {
        self.put_record(put).await.map_err(on("put", &put.key))
    }

    async fn touch(&self, key: &Key, write: &WriteId) -> Result<Version> {
        self.touch_record(key, write).await.map_err(on("touch", key))
    }

    async fn delete(&self, key: &Key, version: &Version) -> Result<()> {
        self.delete_record(key, version).await.map_err(on("delete", key))
    }

    async fn list(&self, groups: &[Group]) -> Result<Vec<Record>> {
        let read = groups
            .iter()
            .map(async |group| self.read_group(group).await.map_err(on("list", group)));
        let mut records = try_join_all(read).await?.concat();
        records.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(records)
    }

    fn watch(&self, group: &Group) -> BoxStream<'static, Result<Change>> {
        watch::follow_group(self.clone(), group.clone())
    }
}

/// Names what was done, and to what.
pub(crate) fn on(operation: &'static str, what: &impl fmt::Display) -> impl FnOnce(Error) -> Error {
    move |error| error.on("couchdb").during(operation).at(what)
}

impl fmt::Debug for Couch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Couch").field(&self.0.database).finish()
    }
}
