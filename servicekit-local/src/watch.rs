//! Noticing what other processes write: one poller for all who watch through one handle, and none while nobody does.
//!
//! The system wakes the poller when the log is written, and `PRAGMA data_version` answers from shared memory whether
//! that was a commit. Only when it was, the last changes of the groups that are watched are looked up, and only whoever
//! watches a group that was changed reads it again. Beats and renewals change no group.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{future::select, stream::BoxStream};
use rusqlite::Connection;
use servicekit_core::{
    Instant, Result,
    store::{Change, Group, Record, Shows, follow},
};
use tokio::sync::{Notify, watch};

use crate::{
    alarm::Alarm,
    connect::connect,
    error::{Fault, Phase},
    place::beside,
    records,
    store::{Local, off_thread, on},
};

/// How often the poller asks where it cannot be woken: seldom enough for hundreds, and within the 50 ms that are promised.
const INTERVAL: Duration = Duration::from_millis(40);

/// The pauses after it was woken: the log is written some time before the commit shows, and how long depends on the disk.
const PAUSES: [Duration; 7] = {
    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }
    [ms(1), ms(2), ms(4), ms(8), ms(16), ms(32), ms(64)]
};

/// Where it goes on among the pauses when the log is written again and again.
const BUSY: usize = 4;

/// How often it asks in any case, and how long a file is left alone that cannot be read.
const RECOVERY: Duration = Duration::from_secs(1);

/// Follows one group; see [`Store::watch`](servicekit_core::store::Store::watch).
pub(crate) fn follow_group(local: &Local, group: &Group) -> BoxStream<'static, Result<Change>> {
    let watching = Arc::new(Watching::begin(local, group));
    let read = {
        let watching = watching.clone();
        move || {
            let watching = watching.clone();
            async move { watching.read().await }
        }
    };
    let wake = move |soonest| {
        let watching = watching.clone();
        async move { watching.changed(soonest).await }
    };
    follow(Shows::Puts, read, wake)
}

/// Who watches what through one handle.
#[derive(Default)]
pub(crate) struct Hub {
    state: Mutex<State>,
    kick: Notify,
}

#[derive(Default)]
struct State {
    /// Per group its last change, or `None` when that could not be told.
    groups: BTreeMap<Group, watch::Sender<Option<i64>>>,
    is_polled: bool,
}

impl Hub {
    /// Makes the poller ask now: this process has written, or watches no longer.
    pub(crate) fn look(&self) {
        self.kick.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The groups that somebody watches. When nobody does, the poller must end.
    fn watched(&self) -> Option<Vec<Group>> {
        let mut state = self.state();
        state.groups.retain(|_, news| news.receiver_count() > 0);
        state.is_polled = !state.groups.is_empty();
        state.is_polled.then(|| state.groups.keys().cloned().collect())
    }

    fn tell(&self, group: &Group, change: Option<i64>) {
        if let Some(news) = self.state().groups.get(group) {
            news.send_if_modified(|last| std::mem::replace(last, change) != change);
        }
    }
}

/// One who watches a group.
struct Watching {
    local: Local,
    group: Group,
    news: watch::Receiver<Option<i64>>,
    /// The group's last change when it was read, and the moment of that; `None` when that failed.
    seen: Mutex<Option<(i64, Instant)>>,
}

impl Watching {
    fn begin(local: &Local, group: &Group) -> Self {
        let mut state = local.0.hub.state();
        let news = state.groups.entry(group.clone()).or_insert_with(|| watch::Sender::new(Some(0)));
        let news = news.subscribe();
        drop(state);
        Self { local: local.clone(), group: group.clone(), news, seen: Mutex::default() }
    }

    async fn read(&self) -> Result<Vec<Record>> {
        self.keep_polled();
        *self.seen() = None;
        let group = self.group.clone();
        let read = self.local.read(move |view| view.group(&group)).await;
        let listing = read.map_err(on("watch", &self.group))?;
        *self.seen() = Some((listing.change, listing.at));
        Ok(listing.records)
    }

    /// Returns when the group has changed since it was read, or its first record has ended.
    async fn changed(&self, soonest: Option<Duration>) {
        let clock = &*self.local.0.env.clock;
        let Some((seen, at)) = *self.seen() else {
            return clock.sleep(RECOVERY).await;
        };
        let mut news = self.news.clone();
        let changed = async {
            let newer = news.wait_for(|change| change.is_none_or(|change| change > seen)).await;
            let is_told = newer.is_ok_and(|change| change.is_some());
            if !is_told {
                clock.sleep(RECOVERY).await;
            }
        };
        match soonest {
            Some(left) => {
                let ended = clock.sleep_until(at + left);
                drop(select(std::pin::pin!(changed), ended).await);
            }
            None => changed.await,
        }
    }

    fn keep_polled(&self) {
        let is_polled = std::mem::replace(&mut self.local.0.hub.state().is_polled, true);
        if !is_polled {
            // Made before the task is first run, which a runtime that is shut down may never do.
            let ending = Ending { local: self.local.clone(), is_regular: false };
            tokio::spawn(poll(self.local.clone(), ending));
        }
    }

    fn seen(&self) -> MutexGuard<'_, Option<(i64, Instant)>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.local.0.hub.look();
    }
}

/// Asks until nobody watches any longer.
async fn poll(local: Local, mut ending: Ending) {
    let (hub, clock) = (&local.0.hub, &*local.0.env.clock);
    let mut eye = None;
    let mut quiet = 0;
    while let Some(groups) = hub.watched() {
        match look(&local, &mut eye, &groups).await {
            Ok(changes) => {
                changes.iter().for_each(|(group, change)| hub.tell(group, Some(*change)))
            }
            Err(error) => {
                tracing::debug!(%error, "cannot see whether the file has changed");
                groups.iter().for_each(|group| hub.tell(group, None));
                eye = None;
            }
        }
        let alarm = eye.as_ref().and_then(|eye: &Eye| eye.alarm.as_ref());
        if alarm.is_some_and(Alarm::rang) {
            quiet = quiet.min(BUSY);
        }
        let pause = match (&eye, alarm) {
            (None, _) => RECOVERY,
            (_, None) => INTERVAL,
            (_, Some(_)) => PAUSES.get(quiet).copied().unwrap_or(RECOVERY),
        };
        quiet = (quiet + 1).min(PAUSES.len());
        tokio::select! {
            () = hub.kick.notified() => {}
            () = clock.sleep(pause) => {}
            true = ring(alarm.filter(|_| pause == RECOVERY)) => quiet = 0,
        }
    }
    ending.is_regular = true;
}

/// Waits for the alarm; for ever where there is none.
async fn ring(alarm: Option<&Alarm>) -> bool {
    match alarm {
        Some(alarm) => alarm.ring().await.is_ok(),
        None => std::future::pending().await,
    }
}

/// A runtime that is shut down ends its tasks anywhere.
struct Ending {
    local: Local,
    is_regular: bool,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if !self.is_regular {
            let mut state = self.local.0.hub.state();
            state.is_polled = false;
            // Who watches on another runtime looks for itself then, and begins to poll by that.
            for news in state.groups.values() {
                news.send_replace(None);
            }
        }
    }
}

/// The poller's own connection, and what it was told last.
struct Eye {
    conn: Connection,
    alarm: Option<Alarm>,
    version: Option<i64>,
    groups: Vec<Group>,
}

/// The last change of each group, if the file was written to since the last look.
async fn look(local: &Local, eye: &mut Option<Eye>, groups: &[Group]) -> Result<Vec<(Group, i64)>> {
    local.0.place.check()?;
    let path = &local.0.place.path;
    let explain = |fault: Fault| fault.explain(Phase::Before, path);
    let mut open = match eye.take() {
        Some(eye) => eye,
        None => {
            let path = path.clone();
            off_thread(move || {
                let open = || {
                    let conn = connect(&path)?;
                    // It asks on the async thread, and must not wait there.
                    conn.busy_timeout(Duration::ZERO)?;
                    Ok(conn)
                };
                let failed = |error| Fault::Sqlite(error).explain(Phase::Before, &path);
                let conn = open().map_err(failed)?;
                Ok(Eye { conn, alarm: None, version: None, groups: Vec::new() })
            })
            .await?
        }
    };
    // On this thread: it reads shared memory, in a few microseconds; handing it over would cost more than asking.
    let version = data_version(&open.conn).map_err(|error| explain(error.into()))?;
    if open.version == Some(version) && open.groups == groups {
        *eye = Some(open);
        return Ok(Vec::new());
    }
    if open.version.is_none() {
        // The log is there now; it stays as long as this connection.
        open.alarm = Alarm::set(&beside(path, "-wal")).ok();
    }
    open.groups = groups.to_vec();
    open.version = Some(version);
    let path = path.clone();
    let looked = off_thread(move || {
        let changes = open.groups.iter().map(|group| {
            let change = records::changed(&open.conn, group);
            Ok((group.clone(), change.map_err(|fault| fault.explain(Phase::Before, &path))?))
        });
        let changes = changes.collect::<Result<Vec<_>>>()?;
        Ok((open, changes))
    });
    let (looked, changes) = looked.await?;
    *eye = Some(looked);
    Ok(changes)
}

fn data_version(conn: &Connection) -> rusqlite::Result<i64> {
    conn.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").finish_non_exhaustive()
    }
}
