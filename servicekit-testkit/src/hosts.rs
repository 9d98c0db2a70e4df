//! Two hosts whose clocks are apart, with one store between them.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use servicekit_core::{
    Capabilities, Clock, Env, Instant, Result, Timestamp,
    store::{Change, Group, Key, Put, Record, Store, Version, WriteId},
};

/// A host whose wall clock is so many milliseconds ahead of that of `env`; the same time passes there.
#[must_use]
pub fn ahead(env: &Env, millis: i64) -> Env {
    let clock = Arc::new(Wrong { clock: env.clock.clone(), ahead: millis });
    Env { clock, random: env.random.clone() }
}

#[derive(Debug)]
struct Wrong {
    clock: Arc<dyn Clock>,
    ahead: i64,
}

#[async_trait]
impl Clock for Wrong {
    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn wall(&self) -> Timestamp {
        let millis = self.clock.wall().as_millis();
        Timestamp::from_millis(millis.saturating_add_signed(self.ahead))
    }

    async fn sleep(&self, duration: Duration) {
        self.clock.sleep(duration).await;
    }

    async fn sleep_until(&self, deadline: Instant) {
        self.clock.sleep_until(deadline).await;
    }
}

/// Whatever there are several of, one after the other, and again from the first.
pub(crate) struct Turns<T> {
    all: Vec<T>,
    next: AtomicUsize,
}

impl<T> Turns<T> {
    /// Begins with the first; there has to be one.
    pub(crate) fn of(all: impl IntoIterator<Item = T>) -> Self {
        Self { all: all.into_iter().collect(), next: AtomicUsize::new(0) }
    }

    pub(crate) fn next(&self) -> &T {
        &self.all[self.next.fetch_add(1, Ordering::Relaxed) % self.all.len()]
    }
}

impl<T: fmt::Debug> fmt::Debug for Turns<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.all).finish()
    }
}

/// One store as several hosts see it: each request is sent by the next of them.
#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Store for Turns<Arc<dyn Store>> {
    fn capabilities(&self) -> Capabilities {
        self.next().capabilities()
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        self.next().get(key).await
    }

    async fn put(&self, put: &Put) -> Result<Version> {
        self.next().put(put).await
    }

    async fn touch(&self, key: &Key, write: &WriteId) -> Result<Version> {
        self.next().touch(key, write).await
    }

    async fn delete(&self, key: &Key, version: &Version) -> Result<()> {
        self.next().delete(key, version).await
    }

    async fn list(&self, groups: &[Group]) -> Result<Vec<Record>> {
        self.next().list(groups).await
    }

    fn watch(&self, group: &Group) -> BoxStream<'static, Result<Change>> {
        self.next().watch(group)
    }
}
