//! The store's contract over the file: each write one transaction, each read one snapshot, both off the async threads.

use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use rusqlite::{Connection, ErrorCode};
use servicekit_core::{
    Capabilities, Env, Error, Instant, Kind, Namespace, Result, Retry,
    clock::timeout,
    store::{Change, Group, Key, Put, Record, Store, Version, WriteId},
};
use tokio::{sync::Mutex as Turn, task::spawn_blocking};

use crate::{
    connect::{admit, connect},
    error::{Fault, Phase, busy},
    host::Host,
    place::Place,
    queue::Queue,
    records::{Edit, Prolonged, View, run},
    watch::{self, Hub},
};

/// How long a request waits for the locks; less than the wrapper gives an attempt, so that the answer tells why.
pub(crate) const PATIENCE: Duration = Duration::from_millis(2500);

/// The largest value. SQLite takes more; a record is not for files.
const MAX_VALUE_BYTES: usize = 1_000_000;

/// How many connections wait for the next request.
const MOST_IDLE: usize = 4;

/// One SQLite file, shared by all processes of this host. Clones share one handle.
///
/// It opens connections as it needs them. Dropping the last clone closes them, which may write to the file.
#[derive(Clone)]
pub struct Local(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) env: Env,
    pub(crate) host: Host,
    pub(crate) place: Place,
    pub(crate) hub: Hub,
    /// The boot that the file was last used in when it was opened; only that may be replaced by this one.
    replaceable: String,
    idle: Mutex<Vec<Connection>>,
    /// Writers of this handle, in the order in which they came.
    turn: Arc<Turn<()>>,
    /// Writers of all processes.
    queue: Queue,
}

impl Local {
    /// Opens the file, and makes it, and folders that are missing, where it is not there: 0600 and 0700, for the owner.
    ///
    /// # Errors
    ///
    /// `Unsupported` on a network file system, for a file of another machine, of a newer servicekit, and in a time
    /// namespace of its own; `Invalid` for what is no store of servicekit (it is left alone); `Denied` without permission;
    /// `Unexpected` for a damaged file; `Timeout` while somebody keeps it locked; `Unavailable` when it cannot be reached.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave an empty file, which the next opening makes a store.
    pub async fn open(path: &Path, env: Env) -> Result<Self> {
        Self::open_on(Host::this()?, path, env).await
    }

    /// Opens the file as if on another host, or after a reboot: for tests.
    ///
    /// # Errors
    ///
    /// As [`Local::open`].
    pub async fn open_on(host: Host, path: &Path, env: Env) -> Result<Self> {
        let path = path.to_owned();
        let open = off_thread(move || {
            let place = Place::prepare(&path)?;
            let queue = Queue::new(&place.path);
            let failed = |error| Fault::Sqlite(error).explain(Phase::Before, &place.path);
            let conn = connect(&place.path).map_err(failed)?;
            let replaceable = admit(&conn, &place, &queue, &host)?;
            let (idle, hub) = (Mutex::new(vec![conn]), Hub::default());
            let turn = Arc::default();
            Ok(Inner { env, host, place, hub, replaceable, idle, turn, queue })
        });
        let inner = open.await.map_err(|error| error.on("local").during("open"))?;
        Ok(Self(Arc::new(inner)))
    }

    /// The file, absolute and without links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.place.path
    }

    /// The namespaces that have a record, in order.
    ///
    /// # Errors
    ///
    /// Those of reaching the store.
    pub async fn namespaces(&self) -> Result<Vec<Namespace>> {
        let read = self.read(|view| view.namespaces()).await;
        read.map_err(|error| error.on("local").during("list namespaces"))
    }

    /// Reads one snapshot.
    pub(crate) async fn read<T, F>(&self, read: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&View<'_>) -> Result<T, Fault> + Send + 'static,
    {
        let inner = self.0.clone();
        off_thread(move || {
            inner.place.check()?;
            inner.with_connection(|conn| {
                let now = inner.env.clock.now();
                read(&View { conn, boot: &inner.host.boot, now })
            })
        })
        .await
    }

    /// Makes one transaction.
    pub(crate) async fn write<T, F>(&self, edit: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Edit<'_>) -> Result<T, Fault> + Send + 'static,
    {
        let clock = &*self.0.env.clock;
        let deadline = clock.now() + PATIENCE;
        let turn = timeout(clock, PATIENCE, self.0.turn.clone().lock_owned()).await;
        let turn = turn.map_err(|_| busy(&self.0.place.path))?;
        let inner = self.0.clone();
        // What was begun is finished, and the turn kept until then, also when nobody waits for the answer any longer.
        let written = off_thread(move || {
            let _turn = turn;
            let written = inner.transact(deadline, edit);
            inner.hub.look();
            written
        });
        written.await
    }
}

impl Inner {
    /// Lends a connection; one that may be in a bad state is closed.
    pub(crate) fn with_connection<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Fault>,
    ) -> Result<T> {
        let path = &self.place.path;
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let conn = match idle {
            Some(conn) => conn,
            None => {
                connect(path).map_err(|error| Fault::Sqlite(error).explain(Phase::Before, path))?
            }
        };
        let result = work(&conn);
        let is_fine = result.as_ref().err().is_none_or(Fault::spares_the_connection);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if is_fine && conn.is_autocommit() && idle.len() < MOST_IDLE {
            idle.push(conn);
        }
        drop(idle);
        result.map_err(|fault| fault.explain(Phase::Before, path))
    }

    /// Edits the file, and takes the edit back if it came too late.
    fn transact<T>(
        &self,
        deadline: Instant,
        edit: impl FnOnce(&mut Edit<'_>) -> Result<T, Fault>,
    ) -> Result<T> {
        self.with_connection(|conn| {
            let (answer, prolonged) = self.commit(conn, deadline, |work| {
                let answer = edit(work)?;
                Ok((answer, work.prolonged.take()))
            })?;
            match prolonged {
                Some(prolonged) if self.env.clock.now() >= prolonged.until => {
                    Err(self.withdraw(conn, &prolonged).into())
                }
                _ => Ok(answer),
            }
        })
    }

    /// Others saw the record end before the commit was there. It must not come back.
    fn withdraw(&self, conn: &Connection, prolonged: &Prolonged) -> Error {
        let deadline = self.env.clock.now() + PATIENCE;
        match self.commit(conn, deadline, |work| work.withdraw(prolonged)) {
            Ok(()) => {
                Error::new(prolonged.late, "the record ended while the disk was slow to take this")
            }
            Err(fault) => fault.explain(Phase::Before, &self.place.path).retry_as(Retry::Unknown),
        }
    }

    fn commit<T>(
        &self,
        conn: &Connection,
        deadline: Instant,
        edit: impl FnOnce(&mut Edit<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let clock = &*self.env.clock;
        let head = self.queue.enter(deadline.since(clock.now()))?;
        self.lock(conn, deadline)?;
        drop(head);
        let edited = self.place.check().map_err(Fault::from).and_then(|()| {
            // Only now: while it waited for the lock, time went by.
            let mut work =
                Edit::new(conn, &self.host, &self.replaceable, clock.now(), clock.wall())?;
            edit(&mut work)
        });
        let phase = if edited.is_ok() { Phase::Commit } else { Phase::Before };
        let ended = run(conn, if edited.is_ok() { "COMMIT" } else { "ROLLBACK" });
        match (edited, ended) {
            (Ok(answer), Ok(())) => Ok(answer),
            (Ok(_), Err(error)) => {
                if !conn.is_autocommit() {
                    let _ = run(conn, "ROLLBACK");
                }
                Err(Fault::Refused(Fault::Sqlite(error).explain(phase, &self.place.path)))
            }
            // A failed statement may have rolled back by itself, and then there is nothing left to end.
            (Err(fault), _) => Err(fault),
        }
    }

    /// Takes SQLite's write lock. Its holder is at work, for about as long as the disk takes.
    #[expect(
        clippy::disallowed_methods,
        reason = "a blocking thread, waiting for other processes in real time"
    )]
    fn lock(&self, conn: &Connection, deadline: Instant) -> Result<(), Fault> {
        let clock = &*self.env.clock;
        let patience = deadline.since(clock.now());
        let mut slept = Duration::ZERO;
        conn.busy_timeout(Duration::ZERO)?;
        let locked = loop {
            match run(conn, "BEGIN IMMEDIATE") {
                Err(error)
                    if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                        // Of a clock that a test holds, the pauses are all that passes.
                        && slept < patience
                        && clock.now() < deadline =>
                {
                    // Only one process at a time tries, so that it may try often.
                    let pause = Duration::from_micros(if slept < SOON { 200 } else { 2000 });
                    thread::sleep(pause);
                    slept += pause;
                }
                result => break result,
            }
        };
        conn.busy_timeout(PATIENCE)?;
        Ok(locked?)
    }
}

/// Within this time a writer that is well is through.
const SOON: Duration = Duration::from_millis(50);

/// Runs what blocks on a thread for that.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|error| {
        let error = Error::new(Kind::Unexpected, "the work on the file did not end").because(error);
        Err(error.retry_as(Retry::Unknown))
    })
}

#[async_trait]
impl Store for Local {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            linearizable: true,
            multi_host: false,
            server_expiry: true,
            push_watch: true,
            max_value_bytes: MAX_VALUE_BYTES,
            min_ttl: Duration::from_millis(100),
        }
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        let asked = key.clone();
        self.read(move |view| view.get(&asked)).await.map_err(on("get", key))
    }

    async fn put(&self, put: &Put) -> Result<Version> {
        if put.value.len() > MAX_VALUE_BYTES {
            let message = format!("{} bytes; at most {MAX_VALUE_BYTES} fit", put.value.len());
            return Err(on("put", &put.key)(Error::new(Kind::Invalid, message)));
        }
        let asked = put.clone();
        self.write(move |edit| edit.put(&asked)).await.map_err(on("put", &put.key))
    }

    async fn touch(&self, key: &Key, write: &WriteId) -> Result<Version> {
        let (asked, write) = (key.clone(), write.clone());
        self.write(move |edit| edit.touch(&asked, &write)).await.map_err(on("touch", key))
    }

    async fn delete(&self, key: &Key, version: &Version) -> Result<()> {
        let (asked, version) = (key.clone(), version.clone());
        self.write(move |edit| edit.delete(&asked, &version)).await.map_err(on("delete", key))
    }

    async fn list(&self, groups: &[Group]) -> Result<Vec<Record>> {
        let asked = groups.to_vec();
        let listed = self.read(move |view| view.list(&asked)).await;
        listed.map_err(|error| match groups.first() {
            Some(group) => on("list", group)(error),
            None => error.on("local").during("list"),
        })
    }

    fn watch(&self, group: &Group) -> BoxStream<'static, Result<Change>> {
        watch::follow_group(self, group)
    }
}

/// Names what was done, and to what.
pub(crate) fn on(operation: &'static str, what: &impl fmt::Display) -> impl FnOnce(Error) -> Error {
    move |error| error.on("local").during(operation).at(what)
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local").field("path", &self.path()).finish_non_exhaustive()
    }
}
