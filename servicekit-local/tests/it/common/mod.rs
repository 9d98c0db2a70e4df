//! What the tests of this crate share.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use servicekit_core::{
    Clock, Env, Error, Instant, Name, Namespace, Timestamp,
    clock::SystemClock,
    store::{Expect, Group, Keep, Key, Put, WriteId},
};
use servicekit_local::Host;

/// A folder with a path for a store in it.
pub(crate) fn place() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("servicekit.db");
    (folder, path)
}

pub(crate) fn group(scope: &str) -> Group {
    Group::scoped(&Namespace::default(), "test", &scope.parse::<Name>().unwrap())
}

pub(crate) fn key(name: &str) -> Key {
    group("group").key(name.parse::<Name>().unwrap())
}

/// A durable put that expects nothing to be there.
pub(crate) fn put(key: &Key, value: &str) -> Put {
    let write = WriteId::draw(&Env::system().random);
    let value = Arc::from(value.as_bytes());
    Put { key: key.clone(), value, expect: Expect::Absent, keep: Keep::Durable, write }
}

pub(crate) fn ephemeral(key: &Key, ttl: Duration) -> Put {
    Put { keep: Keep::Ephemeral(ttl), ..put(key, "ephemeral") }
}

pub(crate) fn host(machine: &str, boot: &str) -> Host {
    Host { machine: Some(machine.into()), boot: boot.into() }
}

/// Looks into the file as any other program may.
pub(crate) fn count(path: &Path, sql: &str) -> i64 {
    let conn = rusqlite::Connection::open(path).unwrap();
    conn.query_row(sql, [], |row| row.get(0)).unwrap()
}

/// Everything that an error says, with its causes.
pub(crate) fn said(error: &Error) -> String {
    format!("{error:?}")
}

/// How many seeds to run: so many unless `SERVICEKIT_SEEDS` says otherwise.
pub(crate) fn seeds(few: u64) -> std::ops::Range<u64> {
    let asked = std::env::var("SERVICEKIT_SEEDS").ok();
    0..asked.map_or(few, |seeds| seeds.parse().expect("SERVICEKIT_SEEDS is a number"))
}

/// A clock that stands still until it is moved.
#[derive(Clone, Debug, Default)]
pub(crate) struct Manual(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    now: Duration,
    /// After so many more readings it jumps so far.
    jump: Option<(usize, Duration)>,
}

impl Manual {
    pub(crate) fn env() -> (Self, Env) {
        let clock = Self::default();
        clock.advance(Duration::from_secs(1000));
        (clock.clone(), Env { clock: Arc::new(clock), random: servicekit_core::Random::seeded(7) })
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.0.lock().unwrap().now += by;
    }

    pub(crate) fn jump_after(&self, readings: usize, by: Duration) {
        self.0.lock().unwrap().jump = Some((readings, by));
    }
}

#[async_trait]
impl Clock for Manual {
    fn now(&self) -> Instant {
        let mut state = self.0.lock().unwrap();
        match &mut state.jump {
            Some((0, by)) => {
                let by = *by;
                state.now += by;
                state.jump = None;
            }
            Some((readings, _)) => *readings -= 1,
            None => {}
        }
        Instant::from_boot(state.now)
    }

    fn wall(&self) -> Timestamp {
        Timestamp::from_millis(1)
    }

    async fn sleep(&self, duration: Duration) {
        SystemClock.sleep(duration).await;
    }

    async fn sleep_until(&self, deadline: Instant) {
        while Instant::from_boot(self.0.lock().unwrap().now) < deadline {
            self.sleep(Duration::from_millis(1)).await;
        }
    }
}
