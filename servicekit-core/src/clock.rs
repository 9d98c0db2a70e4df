//! Time: the boot clock for promises, the wall clock for people.

use std::{
    fmt,
    future::Future,
    ops::{Add, Sub},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::{Either, select};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec,
};
use serde::{Deserialize, Serialize};
use time::{
    OffsetDateTime,
    format_description::{BorrowedFormatItem, well_known::Rfc3339},
    macros::format_description,
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::Random;

/// A moment on this host's boot clock: nanoseconds since the boot, suspend included.
///
/// It means nothing on another host or after a reboot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(Duration);

/// A moment on a wall clock, in milliseconds since 1970, UTC: for people and for tokens, never for exclusion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

/// Tells the time and waits for it. [`SystemClock`] is the real one; tests bring their own.
#[async_trait]
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Now, on the boot clock.
    fn now(&self) -> Instant;

    /// Now, on the wall clock.
    fn wall(&self) -> Timestamp;

    /// Pauses for about this long; a suspend of the host does not count. For probes, polls and back-off.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the pause.
    async fn sleep(&self, duration: Duration);

    /// Waits until the boot clock shows `deadline`, suspend included. For promises.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the wait.
    async fn sleep_until(&self, deadline: Instant);
}

/// The clock and the randomness that everything else is given.
#[derive(Clone, Debug)]
pub struct Env {
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Draws numbers.
    pub random: Random,
}

/// The clock of this host.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "it has nothing to hold")]
pub struct SystemClock;

/// What [`timeout`] returns when the time was over first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no answer in time")]
#[non_exhaustive]
pub struct Elapsed;

/// Runs `future` for at most `limit` on `clock`.
///
/// # Errors
///
/// [`Elapsed`] when the time was over first; the future is dropped then.
pub async fn timeout<F: Future + Send>(
    clock: &dyn Clock,
    limit: Duration,
    future: F,
) -> Result<F::Output, Elapsed> {
    match select(std::pin::pin!(future), clock.sleep(limit)).await {
        Either::Left((output, _)) => Ok(output),
        Either::Right(((), _)) => Err(Elapsed),
    }
}

impl Env {
    /// This host's clock, and randomness from its operating system.
    #[must_use]
    pub fn system() -> Self {
        Self { clock: Arc::new(SystemClock), random: Random::system() }
    }
}

impl Instant {
    /// The moment this long after the boot.
    #[must_use]
    pub const fn from_boot(since: Duration) -> Self {
        Self(since)
    }

    /// How long after the boot this is.
    #[must_use]
    pub const fn since_boot(self) -> Duration {
        self.0
    }

    /// How long after `earlier` this is; zero when it is before.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration))
    }
}

impl Timestamp {
    /// The moment this many milliseconds after 1970 began.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since 1970 began.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero when it is before.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// RFC 3339 in UTC, always with milliseconds, so that later is also greater as text.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000)
            .ok()
            .and_then(|moment| moment.format(MILLIS).ok());
        // Beyond the year 9999 there is no such notation; a wrong clock must not end in a panic.
        f.pad(&text.unwrap_or_else(|| format!("@{}ms", self.0)))
    }
}

/// RFC 3339 allows any number of digits after the second; this is three.
const MILLIS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// The last millisecond that RFC 3339 can write.
const LAST: Timestamp = Timestamp(253_402_300_799_999);

/// A moment beyond the year 9999 is written as the last one before: what is written must be readable.
impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&(*self).min(LAST))
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let moment = OffsetDateTime::parse(&text, &Rfc3339).map_err(serde::de::Error::custom)?;
        let millis = moment.unix_timestamp_nanos() / 1_000_000;
        u64::try_from(millis).map(Self).map_err(serde::de::Error::custom)
    }
}

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant(read(ClockId::Boottime))
    }

    fn wall(&self) -> Timestamp {
        let millis = read(ClockId::Realtime).as_millis();
        Timestamp(u64::try_from(millis).unwrap_or(u64::MAX))
    }

    #[expect(clippy::disallowed_methods, reason = "this is the replacement that the ban names")]
    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    async fn sleep_until(&self, deadline: Instant) {
        if self.now() >= deadline {
            return;
        }
        if let Ok(timer) = arm(deadline) {
            // Only a broken event loop makes this fail; the poll below then takes over.
            if timer.readable().await.is_ok() {
                return;
            }
        }
        // Without a descriptor for a timer (there may be none left), look at the clock often enough.
        while self.now() < deadline {
            self.sleep(deadline.since(self.now()).min(Duration::from_millis(100))).await;
        }
    }
}

/// A century, in seconds.
const FAR: i64 = 100 * 365 * 86_400;

fn read(clock: ClockId) -> Duration {
    let now = rustix::time::clock_gettime(clock);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

// Its replacement is `unsafe`, for types that may close their descriptor meanwhile; an `OwnedFd` does not.
#[expect(deprecated, reason = "sound for an OwnedFd, and the replacement is unsafe")]
fn arm(deadline: Instant) -> std::io::Result<AsyncFd<std::os::fd::OwnedFd>> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    let timer = rustix::time::timerfd_create(TimerfdClockId::Boottime, flags)?;
    let never = Timespec { tv_sec: 0, tv_nsec: 0 };
    let at = Timespec {
        // The kernel takes no moment beyond its own range; nobody waits for this one either.
        tv_sec: i64::try_from(deadline.0.as_secs()).unwrap_or(i64::MAX).min(FAR),
        tv_nsec: deadline.0.subsec_nanos().into(),
    };
    let once = Itimerspec { it_interval: never, it_value: at };
    rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME, &once)?;
    AsyncFd::with_interest(timer, Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_rfc_3339_in_both_directions() {
        let moment = Timestamp::from_millis(1_763_683_200_123);
        let json = serde_json::to_string(&moment).unwrap();
        assert_eq!(json, "\"2025-11-21T00:00:00.123Z\"");
        assert_eq!(serde_json::from_str::<Timestamp>(&json).unwrap(), moment);
        let whole = Timestamp::from_millis(1_763_683_200_000);
        assert_eq!(whole.to_string(), "2025-11-21T00:00:00.000Z");
        assert!(moment.to_string() > whole.to_string());
        let written_before = "\"2025-11-21T00:00:00Z\"";
        assert_eq!(serde_json::from_str::<Timestamp>(written_before).unwrap(), whole);
        let beyond = Timestamp::from_millis(u64::MAX);
        assert_eq!(beyond.to_string(), format!("@{}ms", u64::MAX));
        let json = serde_json::to_string(&beyond).unwrap();
        assert_eq!(json, "\"9999-12-31T23:59:59.999Z\"");
        assert_eq!(serde_json::from_str::<Timestamp>(&json).unwrap(), LAST);
    }

    #[tokio::test]
    async fn a_deadline_on_the_boot_clock_is_met_and_not_before() {
        let clock = SystemClock;
        let deadline = clock.now() + Duration::from_millis(20);
        clock.sleep_until(deadline).await;
        assert!(clock.now() >= deadline);
        clock.sleep_until(deadline).await;
    }

    #[tokio::test]
    async fn what_takes_too_long_is_dropped() {
        let clock = SystemClock;
        let never = std::future::pending::<()>();
        assert_eq!(timeout(&clock, Duration::from_millis(5), never).await, Err(Elapsed));
        assert_eq!(timeout(&clock, Duration::from_secs(60), async { 7 }).await, Ok(7));
    }
}
