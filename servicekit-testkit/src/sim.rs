//! Simulated time: hours pass in milliseconds, clocks jump, and the same seed gives the same run.

use std::{
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::{Either, select};
use servicekit_core::{Clock, Env, Instant, Random, Timestamp};
use tokio::sync::watch;

/// What a simulated run is given.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "taken apart by tests")]
pub struct Sim {
    /// The clock of the first host, and randomness from the seed.
    pub env: Env,
    /// The same clock, to make it jump.
    pub clock: SimClock,
    /// What the run can be repeated with.
    pub seed: u64,
}

/// Runs `body` under simulated time, on one thread, and prints the seed when it panics.
///
/// Time stands still while anything can be done, and then jumps to the next timer.
///
/// # Panics
///
/// When `body` does, or when it is called within another runtime.
pub fn run<T, F: Future<Output = T>>(seed: u64, body: impl FnOnce(Sim) -> F) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let runtime = runtime.expect("a runtime can be built");
    let result = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            let clock = SimClock::new();
            let env = Env { clock: Arc::new(clock.clone()), random: Random::seeded(seed) };
            body(Sim { env, clock, seed }).await
        })
    }));
    result.unwrap_or_else(|panic| {
        eprintln!("the simulated run failed with seed {seed}");
        resume_unwind(panic)
    })
}

/// The clock of one simulated host, which clones share.
#[derive(Clone)]
pub struct SimClock {
    started: tokio::time::Instant,
    jumps: Arc<watch::Sender<Jumps>>,
}

/// How far a host's clocks are from the time that passed in the simulation.
#[derive(Clone, Copy)]
struct Jumps {
    boot: Duration,
    wall_millis: i64,
}

/// When a simulated host was booted: long enough ago that nothing is cut at zero.
const BOOTED_BEFORE: Duration = Duration::from_secs(1_000_000);
/// The wall clock at the beginning: 2026-01-01.
const EPOCH_MILLIS: i64 = 1_767_225_600_000;

impl SimClock {
    /// The clock of a host. It needs a runtime whose time is paused.
    #[must_use]
    pub fn new() -> Self {
        Self::with(Jumps { boot: BOOTED_BEFORE, wall_millis: EPOCH_MILLIS })
    }

    /// The clock of another host: the same time passes, but it was booted at another moment.
    #[must_use]
    pub fn another_host(&self, booted_earlier: Duration) -> Self {
        let Jumps { boot, wall_millis } = *self.jumps.borrow();
        let clock = Self::with(Jumps { boot: boot + booted_earlier, wall_millis });
        Self { started: self.started, ..clock }
    }

    /// The host was suspended for so long: its boot clock and its wall clock jump, its pauses do not.
    pub fn suspend(&self, duration: Duration) {
        self.jumps.send_modify(|jumps| {
            jumps.boot += duration;
            jumps.wall_millis += millis(duration);
        });
    }

    /// Somebody sets the wall clock forward.
    pub fn set_forward(&self, by: Duration) {
        self.jumps.send_modify(|jumps| jumps.wall_millis += millis(by));
    }

    /// Somebody sets the wall clock back.
    pub fn set_back(&self, by: Duration) {
        self.jumps.send_modify(|jumps| jumps.wall_millis -= millis(by));
    }

    #[expect(clippy::disallowed_methods, reason = "this is what simulated clocks are made of")]
    fn with(jumps: Jumps) -> Self {
        let started = tokio::time::Instant::now();
        Self { started, jumps: Arc::new(watch::Sender::new(jumps)) }
    }

    #[expect(clippy::disallowed_methods, reason = "this is what simulated clocks are made of")]
    fn passed(&self) -> Duration {
        tokio::time::Instant::now() - self.started
    }
}

impl Default for SimClock {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Clock for SimClock {
    fn now(&self) -> Instant {
        Instant::from_boot(self.jumps.borrow().boot + self.passed())
    }

    fn wall(&self) -> Timestamp {
        let now = self.jumps.borrow().wall_millis + millis(self.passed());
        Timestamp::from_millis(u64::try_from(now).unwrap_or(0))
    }

    #[expect(clippy::disallowed_methods, reason = "this is what simulated clocks are made of")]
    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    async fn sleep_until(&self, deadline: Instant) {
        let mut jumps = self.jumps.subscribe();
        while self.now() < deadline {
            jumps.mark_unchanged();
            let jump = std::pin::pin!(jumps.changed());
            match select(self.sleep(deadline.since(self.now())), jump).await {
                Either::Left(_) | Either::Right(_) => {}
            }
        }
    }
}

impl fmt::Debug for SimClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimClock({:?} after the boot)", self.now().since_boot())
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn an_hour_passes_at_once() {
        run(1, |Sim { env, .. }| async move {
            let (before, wall) = (env.clock.now(), env.clock.wall());
            env.clock.sleep(HOUR).await;
            assert_eq!(env.clock.now().since(before), HOUR);
            assert_eq!(env.clock.wall().since(wall), HOUR);
        });
    }

    #[test]
    fn a_suspend_ends_promises_and_not_pauses() {
        run(1, |Sim { env, clock, .. }| async move {
            let other = clock.another_host(HOUR);
            let (before, elsewhere) = (clock.now(), other.now());
            assert_eq!(elsewhere.since(before), HOUR);
            let promise = env.clock.sleep_until(before + HOUR);
            let pause = env.clock.sleep(HOUR);
            let suspend = async {
                clock.sleep(Duration::from_secs(60)).await;
                clock.suspend(HOUR);
            };
            let (ended, (), ()) = futures_util::join!(
                async {
                    promise.await;
                    other.now().since(elsewhere)
                },
                pause,
                suspend,
            );
            assert_eq!(ended, Duration::from_secs(60));
            assert_eq!(other.now().since(elsewhere), HOUR, "the pause was not cut short");
            assert_eq!(clock.now().since(before), HOUR * 2);
        });
    }

    #[test]
    fn the_wall_clock_is_set_alone() {
        run(1, |Sim { clock, .. }| async move {
            let (boot, wall) = (clock.now(), clock.wall());
            clock.set_forward(HOUR * 2);
            assert_eq!(clock.wall().since(wall), HOUR * 2);
            clock.set_back(HOUR * 3);
            assert_eq!(wall.since(clock.wall()), HOUR);
            assert_eq!(clock.now(), boot);
        });
    }

    #[test]
    fn the_same_seed_draws_the_same_and_a_panic_comes_through() {
        let draw = |seed| run(seed, |Sim { env, .. }| async move { env.random.id() });
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let failed = catch_unwind(|| run(9, |_| async { panic!("as expected") }));
        assert!(failed.is_err());
    }
}
