use std::{fmt, future::Future, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _};
use servicekit_core::{
    Backend, Capabilities, Env, Error, Instant, Label, Name, Namespace, Result, ServiceId,
    Timestamp,
    clock::timeout,
    lease::turn,
    store::{Expect, Group, Keep, Key, Put, Store, WriteId},
};

use super::{MakeBackend, Setting};
use crate::{
    fault::{Counting, Faulty},
    sim::SimClock,
};

/// What a case is given: a new store that can be made to fail, time, and as many processes as it wants.
pub(super) struct World {
    pub(super) env: Env,
    /// The simulated clock, where time is simulated.
    pub(super) clock: Option<SimClock>,
    pub(super) faulty: Faulty,
    pub(super) counting: Counting,
    pub(super) namespace: Namespace,
    pub(super) setting: Setting,
    pub(super) backend: MakeBackend,
    /// How far the wall clocks of processes may be from that of `env`.
    pub(super) apart: Duration,
}

impl World {
    /// The store, as a process sees it.
    pub(super) fn store(&self) -> Arc<dyn Store> {
        Arc::new(self.counting.clone())
    }

    pub(super) fn capabilities(&self) -> Capabilities {
        self.setting.capabilities
    }

    /// The public traits in a process of its own.
    pub(super) fn process(&self) -> Backend {
        self.process_on(&self.env)
    }

    /// The public traits in a process on a host with other clocks.
    pub(super) fn process_on(&self, env: &Env) -> Backend {
        (self.backend)(self.store(), self.namespace.clone(), env.clone())
    }

    /// The simulated clock; only for cases that need it.
    pub(super) fn clock(&self) -> &SimClock {
        self.clock.as_ref().expect("a case that uses the simulated clock needs simulated time")
    }

    /// Another host: the same time passes there, its clocks show another.
    pub(super) fn another_host(&self) -> (Env, SimClock) {
        let clock = self.clock().another_host(Duration::from_secs(5_000));
        (Env { clock: Arc::new(clock.clone()), random: self.env.random.clone() }, clock)
    }

    /// A ttl that cases can wait for.
    pub(super) fn ttl(&self) -> Duration {
        let short = if self.clock.is_some() {
            Duration::from_secs(20)
        } else {
            // Longer than a busy machine with two cores lets a process wait for its turn.
            Duration::from_secs(5)
        };
        short.max(self.capabilities().min_ttl)
    }

    /// How long a slot is kept for a waiter.
    pub(super) fn turn(&self) -> Duration {
        turn(self.capabilities())
    }

    /// So many, or a few where time is real.
    pub(super) fn many(&self, simulated: u32, real: u32) -> u32 {
        if self.clock.is_some() { simulated } else { real }
    }

    /// A random number below `bound`.
    pub(super) fn below(&self, bound: u64) -> usize {
        usize::try_from(self.env.random.below(bound)).unwrap_or(0)
    }

    /// How long anything may take that nothing stands in the way of.
    pub(super) fn patience(&self) -> Duration {
        let faults = if self.setting.has_faults { 20 } else { 1 };
        if self.clock.is_some() {
            Duration::from_secs(60) * faults
        } else {
            // A real store may be slow, and so may the machine that runs it beside sixteen cases.
            Duration::from_secs(40)
        }
    }

    /// How much later than on an idle machine something may come. Where time is real it proves nothing to be strict: that
    /// would be a test of how busy the machine is.
    pub(super) fn lag(&self) -> Duration {
        if self.clock.is_some() { Duration::from_millis(10) } else { Duration::from_secs(10) }
    }

    pub(super) fn now(&self) -> Instant {
        self.env.clock.now()
    }

    /// Whether a process may have meant a moment between these two, by the wall clock of its host.
    pub(super) fn is_between(&self, from: Timestamp, meant: Timestamp, to: Timestamp) -> bool {
        meant + self.apart >= from && meant <= to + self.apart
    }

    /// Whether a process may have noted this moment since `began`, by the wall clock of its host.
    pub(super) fn is_since(&self, began: Timestamp, noted: Timestamp) -> bool {
        self.is_between(began, noted, self.env.clock.wall())
    }

    pub(super) async fn pass(&self, duration: Duration) {
        self.env.clock.sleep(duration).await;
    }

    /// What `future` comes to; it must not take unusually long.
    pub(super) async fn soon<T>(&self, what: &str, future: impl Future<Output = T> + Send) -> T {
        match timeout(&*self.env.clock, self.patience(), future).await {
            Ok(output) => output,
            Err(_) => panic!("{what}: not within {:?}", self.patience()),
        }
    }

    /// Asks again and again until the answer is `Some`.
    pub(super) async fn eventually<T: Send, F>(
        &self,
        what: &str,
        mut ask: impl FnMut() -> F + Send,
    ) -> T
    where
        F: Future<Output = Option<T>> + Send,
    {
        self.soon(what, async {
            loop {
                if let Some(answer) = ask().await {
                    return answer;
                }
                self.pass(Duration::from_millis(25)).await;
            }
        })
        .await
    }

    /// What is read has to be this: at once, or in the end where a list may be stale.
    pub(super) async fn reads<T, F>(
        &self,
        what: &str,
        expected: T,
        mut read: impl FnMut() -> F + Send,
    ) where
        T: fmt::Debug + PartialEq + Send + Sync,
        F: Future<Output = T> + Send,
    {
        if self.capabilities().linearizable {
            return assert_eq!(read().await, expected, "{what}");
        }
        self.soon(what, async {
            while read().await != expected {
                self.pass(Duration::from_millis(100)).await;
            }
        })
        .await;
    }

    /// The first success; only what waiting may help is tried again, and only where faults happen by plan.
    pub(super) async fn ok<T: Send, F>(&self, what: &str, mut ask: impl FnMut() -> F + Send) -> T
    where
        F: Future<Output = Result<T>> + Send,
    {
        let may_fail = self.setting.has_faults;
        self.soon(what, async {
            loop {
                match ask().await {
                    Ok(value) => return value,
                    Err(error) if may_fail && is_fault(&error) => {
                        self.pass(Duration::from_millis(200)).await
                    }
                    Err(error) => panic!("{what}: {error:?}"),
                }
            }
        })
        .await
    }

    /// The first item of `stream` that `choose` makes something of; errors are passed over where there may be some.
    pub(super) async fn next<T, U: Send>(
        &self,
        what: &str,
        stream: &mut (impl Stream<Item = Result<T>> + Unpin + Send),
        mut choose: impl FnMut(T) -> Option<U> + Send,
    ) -> U
    where
        T: Send,
    {
        self.soon(what, async {
            loop {
                match stream.next().await {
                    Some(Ok(item)) => {
                        if let Some(chosen) = choose(item) {
                            return chosen;
                        }
                    }
                    Some(Err(error)) => assert!(error.is_transient(), "{what}: {error:?}"),
                    None => panic!("{what}: the stream ended"),
                }
            }
        })
        .await
    }

    pub(super) fn group(&self, kind: &'static str) -> Group {
        Group::of(&self.namespace, kind)
    }

    /// A put under a write id of its own.
    pub(super) fn put(
        &self,
        key: &Key,
        value: impl AsRef<[u8]>,
        expect: Expect,
        keep: Keep,
    ) -> Put {
        let write = WriteId::draw(&self.env.random);
        Put { key: key.clone(), value: value.as_ref().into(), expect, keep, write }
    }
}

/// Whether an error is one that a fault by plan can lead to, and that sending again can heal.
pub(super) fn is_fault(error: &Error) -> bool {
    error.is_transient() || error.retry() == servicekit_core::Retry::Unknown
}

pub(super) fn label(text: &str) -> Label {
    text.parse().expect("a fine label")
}

pub(super) fn id(text: &str) -> ServiceId {
    text.parse().expect("a fine service id")
}

pub(super) fn name(text: &str) -> Name {
    text.parse().expect("a fine name")
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("setting", &self.setting).finish_non_exhaustive()
    }
}
