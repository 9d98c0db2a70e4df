//! The two databases, one of records and one of beats, and the look at them before they are first used.

use std::{fmt, sync::Arc};

use futures_util::try_join;
use reqwest::{Method, Response};
use serde::Deserialize;
use serde_json::Value;
use servicekit_core::{
    Effect, Env, Error, Kind, Result,
    store::{Group, Limits},
};
use tokio::sync::Mutex;

use crate::{
    config::Config,
    error::NO_DATABASE,
    http::{Answer, Http},
    records::is_of_beats,
};

/// The connection to one server's databases; they are looked at when they are first used.
pub(crate) struct Database {
    pub(crate) http: Http,
    config: Config,
    pub(crate) beats: String,
    look: Mutex<Look>,
}

#[derive(Default)]
struct Look {
    /// What the last one told, until a database turns out to be gone.
    seen: Option<Arc<Seen>>,
    /// Whether there was one that found both databases.
    was_there: bool,
}

/// What a look told.
#[derive(Debug)]
pub(crate) struct Seen {
    /// When the database of records was made, where a server tells.
    made: Value,
    /// How many nodes and copies there are, in words.
    pub(crate) shape: String,
    /// Whether all is written in one place.
    pub(crate) is_one_place: bool,
    /// Whether the database of records has our design document.
    pub(crate) is_guarded: bool,
    /// Why leases must not be used.
    pub(crate) no_leases: Option<String>,
}

/// Seen on CouchDB 3.5.0: without a function that validates, a write at a revision of a document that is not there succeeds, and
/// makes the document, unless its shard is empty. So a holder would renew what was purged, or was in another database.
const NOT_GUARDED: &str = "the database has no design document servicekit, without which CouchDB takes the renewal of a lease that is not \
                           there any more; an administrator makes it: servicekit doctor --setup";

/// How many revisions of a beat are remembered: enough to tell a late one from the last.
pub(crate) const BEATS_KEPT: u32 = 5;

#[derive(Deserialize)]
struct Welcome {
    couchdb: Option<String>,
    #[serde(rename = "express-pouchdb")]
    pouchdb: Option<String>,
    #[serde(default)]
    version: String,
}

/// What CouchDB tells of a database.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Info {
    /// Missing where there is one node and no cluster can be.
    cluster: Option<Copies>,
    /// When it was made, where a server tells.
    instance_start_time: Value,
    /// How far its feed is: a number on some servers, and a string on others.
    pub(crate) update_seq: Value,
    pub(crate) doc_count: u64,
    pub(crate) doc_del_count: u64,
    pub(crate) sizes: Sizes,
}

/// The bytes of its files, and of what is in them.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Sizes {
    pub(crate) file: u64,
    pub(crate) active: u64,
}

#[derive(Deserialize)]
struct Copies {
    n: u32,
    q: Option<u32>,
}

#[derive(Deserialize)]
struct Membership {
    #[serde(default)]
    cluster_nodes: Vec<String>,
}

impl Database {
    pub(crate) fn new(config: Config, env: &Env, limits: Limits) -> Result<Self> {
        let http = Http::new(config.clone(), env, limits)?;
        let beats = format!("{}-sessions", config.database);
        Ok(Self { http, config, beats, look: Mutex::default() })
    }

    /// The database of a group.
    pub(crate) fn of(&self, group: &Group) -> &str {
        if is_of_beats(group) { &self.beats } else { &self.config.database }
    }

    /// What was seen of databases that were found to be fit for use, and are made where that is wanted.
    ///
    /// The look also tells the store's time, before anything is written in terms of it.
    pub(crate) async fn open(&self) -> Result<Arc<Seen>> {
        let mut look = self.look.lock().await;
        if let Some(seen) = &look.seen {
            return Ok(seen.clone());
        }
        let seen = Arc::new(self.look(look.was_there).await?);
        *look = Look { seen: Some(seen.clone()), was_there: true };
        Ok(seen)
    }

    /// What CouchDB tells of a group's database now. One that is in the place of another is looked at before it is used.
    pub(crate) async fn info_of(&self, group: &Group) -> Result<Info> {
        let name = self.of(group);
        let info: Info = self.ask(Effect::Nothing, Method::GET, name, None).await?.read()?;
        let mut look = self.look.lock().await;
        let is_another = |seen: &Arc<Seen>| seen.made != info.instance_start_time;
        if name != self.beats && look.seen.as_ref().is_some_and(is_another) {
            look.seen = None;
        }
        Ok(info)
    }

    /// Sends one request about a database that was looked at. Where that of records is gone by now, it is looked at again
    /// before the next; without that of beats, leases go on.
    pub(crate) async fn ask(
        &self,
        effect: Effect,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Answer> {
        let answer = self.http.ask(effect, method, path, body).await;
        self.look_again_after(answer, path).await
    }

    /// Begins to read an answer that does not end by itself.
    pub(crate) async fn stream(&self, path: &str, body: Vec<u8>) -> Result<Response> {
        let response = self.http.stream(path, body).await;
        self.look_again_after(response, path).await
    }

    async fn look_again_after<T>(&self, answer: Result<T>, path: &str) -> Result<T> {
        if answer.as_ref().is_err_and(is_database_missing) && !path.starts_with(&self.beats) {
            self.look.lock().await.seen = None;
        }
        answer
    }

    /// The server's version; `Unsupported` for what is not a CouchDB.
    pub(crate) async fn version(&self) -> Result<String> {
        let answer = self.http.ask(Effect::Nothing, Method::GET, "", None).await?;
        match answer.read::<Welcome>() {
            Ok(Welcome { couchdb: None, pouchdb: None, .. }) | Err(_) => {
                let message = format!("the server at {} is not a CouchDB", self.config.endpoint);
                Err(Error::new(Kind::Unsupported, message))
            }
            Ok(welcome) => Ok(welcome.version),
        }
    }

    /// The database of records, and that of beats.
    pub(crate) fn names(&self) -> [&str; 2] {
        [&self.config.database, &self.beats]
    }

    async fn look(&self, was_there: bool) -> Result<Seen> {
        self.version().await?;
        let (records, beats) = try_join!(
            self.find(&self.config.database, was_there),
            self.find(&self.beats, was_there)
        )?;
        // By a session that is fresh for sure: who is refused then is no administrator.
        let (nodes, is_guarded) = try_join!(self.nodes(), self.is_guarded(&self.config.database))?;
        let made = records.instance_start_time.clone();
        let all = [records, beats].into_iter().filter_map(|info| info.cluster);
        let (copies, shards) = all.fold((1, 1), |(copies, shards), found| {
            (found.n.max(copies), found.q.unwrap_or(1).max(shards))
        });
        let is_one_place = copies == 1 && nodes == 1;
        let why = if !is_one_place {
            Some(format!(
                "the database has {copies} copies on {nodes} nodes, which may each grant the same lease while they do not \
                 reach each other"
            ))
        } else if !is_guarded {
            Some(NOT_GUARDED.to_owned())
        } else {
            None
        };
        let no_leases = why
            .filter(|_| !self.config.unsafe_leases)
            .map(|why| format!("{why}; unsafe-leases=true takes that risk"));
        let shape = format!("nodes: {nodes}, copies: {copies}, shards: {shards}");
        Ok(Seen { made, shape, is_one_place, is_guarded, no_leases })
    }

    /// The nodes of the cluster; 1 where the server does not tell, because it has no cluster or this user may not know.
    async fn nodes(&self) -> Result<usize> {
        match self.http.ask(Effect::Nothing, Method::GET, "_membership", None).await {
            Ok(answer) => Ok(answer.read::<Membership>()?.cluster_nodes.len().max(1)),
            Err(error) if error.is_transient() && !is_database_missing(&error) => Err(error),
            Err(_) => Ok(1),
        }
    }

    /// Whether a database has our design document, which is made where the address says so and this user may.
    async fn is_guarded(&self, name: &str) -> Result<bool> {
        match self.design(name).await {
            Ok(Some(design)) if !design.validate_doc_update.is_empty() => return Ok(true),
            Err(error) if error.is_transient() => return Err(error),
            _ => {}
        }
        Ok(self.config.create && self.make_design(name, None).await.is_ok())
    }

    async fn find(&self, name: &str, was_there: bool) -> Result<Info> {
        let missing = match self.info(name).await {
            Err(error) if is_database_missing(&error) => error,
            found => return found.map_err(|error| error.at(name)),
        };
        // A running process does not make again what it relied on: a holder of a lease would go on beside one that the new
        // database lets in.
        let advice = if was_there {
            "it was there before; start servicekit again once nobody relies on what was in it"
        } else if self.config.create {
            self.create(name).await.map_err(|error| error.at(name))?;
            // Before anything else is in it: an empty database takes no write at a revision.
            self.make_first_design(name).await.map_err(|error| error.at(name))?;
            return self.info(name).await.map_err(|error| error.at(name));
        } else {
            "create=true makes it"
        };
        Err(Error::new(missing.kind(), format!("{NO_DATABASE}; {advice}")).at(name))
    }

    pub(crate) async fn info_if_there(&self, name: &str) -> Result<Option<Info>> {
        match self.info(name).await {
            Err(error) if is_database_missing(&error) => Ok(None),
            info => info.map(Some),
        }
    }

    async fn info(&self, name: &str) -> Result<Info> {
        self.http.ask(Effect::Nothing, Method::GET, name, None).await?.read()
    }

    pub(crate) async fn create(&self, name: &str) -> Result<()> {
        match self.http.ask(Effect::Nothing, Method::PUT, name, None).await {
            Ok(_) => tracing::info!(name, "made the database"),
            // By somebody else, at the same time.
            Err(error) if error.kind() == Kind::Conflict => return Ok(()),
            Err(error) if error.kind() == Kind::Denied => {
                let said = error.message();
                let message =
                    format!("making a database takes an administrator of the server: {said}");
                let error = Error::new(Kind::Denied, message).because(error);
                return Err(error.during("create the database"));
            }
            Err(error) => return Err(error.during("create the database")),
        }
        if name == self.beats {
            // It only saves room.
            if let Err(error) = self.limit_revisions().await {
                tracing::debug!(%error, name, "beats keep a long history");
            }
        }
        Ok(())
    }

    pub(crate) async fn limit_revisions(&self) -> Result<()> {
        let path = format!("{}/_revs_limit", self.beats);
        let limit = Some(BEATS_KEPT.to_string().into_bytes());
        self.http.ask(Effect::Nothing, Method::PUT, &path, limit).await.map(drop)
    }
}

fn is_database_missing(error: &Error) -> bool {
    error.message().starts_with(NO_DATABASE)
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("config", &self.config).finish_non_exhaustive()
    }
}
