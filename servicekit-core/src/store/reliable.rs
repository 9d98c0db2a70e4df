//! The one wrapper over a store: time-outs, retries, tracing, and the settling of unknown answers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use super::{Change, Group, Key, Put, Record, Store, Version, WriteId};
use crate::{Capabilities, Env, Error, Kind, Result, Retry, clock::timeout};

/// How long and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "made by callers")]
pub struct Limits {
    /// For one request. (A list has as long as the whole operation: it may be many requests, which a backend limits itself.)
    pub attempt: Duration,
    /// For one operation with all its attempts; none begins after it.
    pub total: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { attempt: Duration::from_secs(3), total: Duration::from_secs(8) }
    }
}

/// Sends requests again where that is safe, and finds out by the write id whether an unanswered put was applied.
#[derive(Debug)]
pub struct Reliable {
    name: &'static str,
    store: Arc<dyn Store>,
    env: Env,
    limits: Limits,
    /// How often the store asked to slow down of late: what is repeated is repeated the more slowly, whatever it is.
    throttled: AtomicU32,
}

/// The pause before the second attempt; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The same for a store that asks to slow down: many are told so at once, and few of them may ask again soon.
const LONGEST_THROTTLED: Duration = Duration::from_secs(4);
const MOST_DOUBLINGS: u32 = 10;

impl Reliable {
    /// Wraps a store that is called `name` in errors.
    #[must_use]
    pub fn new(name: &'static str, store: Arc<dyn Store>, env: Env, limits: Limits) -> Self {
        Self { name, store, env, limits, throttled: AtomicU32::new(0) }
    }

    /// Calls until it succeeds, fails for good, or the time is over. `attempt` is told whether an earlier one may have
    /// been applied.
    async fn retry<T, F>(
        &self,
        operation: &'static str,
        key: &(impl std::fmt::Display + Sync),
        attempt: impl FnMut(bool) -> F + Send,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send,
    {
        self.retry_within(self.limits.attempt, operation, key, attempt).await
    }

    async fn retry_within<T, F>(
        &self,
        longest: Duration,
        operation: &'static str,
        key: &(impl std::fmt::Display + Sync),
        mut attempt: impl FnMut(bool) -> F + Send,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send,
    {
        let clock = &*self.env.clock;
        let deadline = clock.now() + self.limits.total;
        let mut pause = FIRST_PAUSE;
        let mut unsettled = false;
        loop {
            let result = timeout(clock, longest, attempt(unsettled)).await;
            let error = match result {
                Ok(Ok(value)) => {
                    // Not all at once: of those who share what a store has, some are always let in.
                    let _ =
                        self.throttled.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                            n.checked_sub(n.div_ceil(2))
                        });
                    return Ok(value);
                }
                Ok(Err(error)) => error,
                Err(_) => Error::new(Kind::Timeout, format!("no answer within {longest:?}"))
                    .retry_as(Retry::Unknown),
            };
            let error = error.during(operation).on(self.name).at(key);
            tracing::debug!(%error, kind = ?error.kind(), retry = ?error.retry(), "attempt failed");
            unsettled |= error.retry() == Retry::Unknown;
            if error.kind() == Kind::Throttled {
                let doublings = self.throttled.fetch_add(1, Ordering::Relaxed).min(MOST_DOUBLINGS);
                pause = pause.max(FIRST_PAUSE * (1 << doublings)).min(LONGEST_THROTTLED);
            }
            let wait = self.env.random.jitter(pause, 0.5);
            let next = clock.now() + wait;
            match error.retry() {
                Retry::Never | Retry::Exhausted if unsettled && !settles(&error) => {
                    return Err(given_up(error, unsettled));
                }
                Retry::Never | Retry::Exhausted => return Err(error),
                Retry::Safe | Retry::Unknown if next >= deadline => {
                    return Err(given_up(error, unsettled));
                }
                Retry::Safe | Retry::Unknown => {}
            }
            clock.sleep(wait).await;
            let is_throttled = error.kind() == Kind::Throttled;
            pause = (pause * 2).min(if is_throttled { LONGEST_THROTTLED } else { LONGEST_PAUSE });
        }
    }

    /// Puts what `draw` makes for each attempt, and returns what that was for the one that was answered.
    ///
    /// The same put, sent twice, can be applied twice where a record may be absent again in between. Something else each time
    /// leaves something of its own at worst.
    pub(crate) async fn put_anew<T: Send>(
        &self,
        group: &Group,
        mut draw: impl FnMut() -> Result<(Put, T)> + Send,
    ) -> Result<(T, Version)> {
        self.retry("put", group, |_| {
            let drawn = draw();
            async move {
                let (put, what) = drawn?;
                Ok((what, self.store.put(&put).await?))
            }
        })
        .await
    }

    /// Puts, and tells whether this very call did: otherwise a put of the same write id was found there, which may be an
    /// earlier one.
    pub(crate) async fn put_once(&self, put: &Put) -> Result<(Version, bool)> {
        self.retry("put", &put.key, |unsettled| async move {
            let conflict = match self.store.put(put).await {
                Err(error) if unsettled && error.kind() == Kind::Conflict => error,
                answer => return answer.map(|version| Ok((version, true))),
            };
            // An earlier attempt may be what is in our way. If the record is not ours now, it may have been for a while.
            match self.store.get(&put.key).await? {
                Some(record) if record.write == put.write => Ok(Ok((record.version, false))),
                _ => {
                    let conflict = conflict.during("put").on(self.name).at(&put.key);
                    Ok(Err(conflict.retry_as(Retry::Unknown)))
                }
            }
        })
        .await?
    }
}

/// Whether it tells what became of the record, and so of an earlier attempt that was not answered.
fn settles(error: &Error) -> bool {
    matches!(error.kind(), Kind::Conflict | Kind::Lost | Kind::NotFound | Kind::Superseded)
}

/// What the caller gets when the time is over: `Unknown` stays unknown.
fn given_up(error: Error, unsettled: bool) -> Error {
    error.retry_as(if unsettled { Retry::Unknown } else { Retry::Exhausted })
}

#[async_trait]
impl Store for Reliable {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        self.retry("get", key, |_| self.store.get(key)).await
    }

    async fn put(&self, put: &Put) -> Result<Version> {
        self.put_once(put).await.map(|(version, _)| version)
    }

    async fn touch(&self, key: &Key, write: &WriteId) -> Result<Version> {
        self.retry("touch", key, |_| self.store.touch(key, write)).await
    }

    async fn delete(&self, key: &Key, version: &Version) -> Result<()> {
        self.retry("delete", key, |unsettled| async move {
            match self.store.delete(key, version).await {
                // Gone is gone, whoever did it.
                Err(error) if unsettled && error.kind() == Kind::NotFound => Ok(()),
                answer => answer,
            }
        })
        .await
    }

    async fn list(&self, groups: &[Group]) -> Result<Vec<Record>> {
        let what = groups.first().map_or("nothing", Group::as_str);
        self.retry_within(self.limits.total, "list", &what, |_| self.store.list(groups)).await
    }

    fn watch(&self, group: &Group) -> BoxStream<'static, Result<Change>> {
        self.store.watch(group)
    }
}
