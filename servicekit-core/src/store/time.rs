//! The store's time, as far as its answers tell: what a record's end is counted in, whatever the clocks of hosts show.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{Clock, Instant};

/// How far off this host's boot clock may run: a millisecond in a second, ten times what a bad one does.
const DRIFT: i64 = 1000;

/// The clock of a store that tells it in the `Date` of every answer. Clones share what was learnt.
#[derive(Clone, Debug)]
pub struct StoreClock {
    clock: Arc<dyn Clock>,
    known: Arc<Mutex<Option<Bounds>>>,
}

/// Between which values the store's time less this host's boot clock is, in milliseconds.
///
/// A `Date` has whole seconds. Each answer gives bounds a second apart, and what several have in common is closer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounds {
    least: i64,
    most: i64,
    as_of: Instant,
}

impl StoreClock {
    /// Nothing is known yet: until an answer tells, it is this host's clock.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, known: Arc::default() }
    }

    /// The earliest that it may be by the store's clock, in milliseconds since 1970: what has not ended by then is there.
    #[must_use]
    pub fn earliest(&self) -> i64 {
        self.now(|known| known.least)
    }

    /// The latest that it may be: a ttl that begins then is no shorter than it should be.
    #[must_use]
    pub fn latest(&self) -> i64 {
        self.now(|known| known.most)
    }

    /// By this host's clock as long as no answer told.
    fn now(&self, offset: impl FnOnce(&Bounds) -> i64) -> i64 {
        match &*self.lock() {
            Some(known) => millis(self.clock.now()) + offset(known),
            None => self.wall(),
        }
    }

    fn wall(&self) -> i64 {
        i64::try_from(self.clock.wall().as_millis()).unwrap_or(i64::MAX)
    }

    /// How far this host's clock is ahead of the store's, in milliseconds; `None` when no answer told the time.
    #[must_use]
    pub fn ahead(&self) -> Option<i64> {
        (*self.lock())?;
        Some(self.wall() - self.now(|known| known.least.midpoint(known.most)))
    }

    /// Takes in that the store's clock showed the second that begins at `date`, in milliseconds since 1970, at a moment between
    /// these two.
    pub fn learn(&self, date: i64, sent: Instant, received: Instant) {
        let told = Bounds {
            least: date - millis(received),
            most: date + 1000 - millis(sent),
            as_of: received,
        };
        let mut known = self.lock();
        // Two that have nothing in common: the store's clock was set.
        *known = known.and_then(|known| known.narrowed(told)).or(Some(told));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Bounds>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bounds {
    fn narrowed(self, told: Self) -> Option<Self> {
        let since = told.as_of.since(self.as_of);
        // Counted once a second, and not with each of a thousand answers.
        let (drift, as_of) = if since < Duration::from_secs(1) {
            (0, self.as_of)
        } else {
            (1 + millis_of(since) / DRIFT, told.as_of)
        };
        let least = told.least.max(self.least - drift);
        let most = told.most.min(self.most + drift);
        (least <= most).then_some(Self { least, most, as_of })
    }
}

fn millis(instant: Instant) -> i64 {
    millis_of(instant.since_boot())
}

fn millis_of(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Env;

    fn at(millis: u64) -> Instant {
        Instant::from_boot(Duration::from_millis(millis))
    }

    fn bounds(clock: &StoreClock) -> (i64, i64) {
        let known = clock.lock().unwrap();
        (known.least, known.most)
    }

    #[test]
    fn whole_seconds_tell_more_the_more_there_are() {
        let clock = StoreClock::new(Env::system().clock);
        assert_eq!(clock.ahead(), None);
        // The store's clock is 70,000.3 s ahead of the boot clock, and answers take 20 ms.
        for sent in (1000..60_000).step_by(730) {
            let date = (i64::try_from(sent).unwrap() + 10 + 70_000_300) / 1000 * 1000;
            clock.learn(date, at(sent), at(sent + 20));
        }
        let (least, most) = bounds(&clock);
        assert!((70_000_150..=70_000_310).contains(&least), "{least}");
        assert!((70_000_290..=70_000_450).contains(&most), "{most}");

        // It was set an hour forward.
        clock.learn(73_600_000 + 61_000, at(61_000), at(61_020));
        assert_eq!(bounds(&clock), (73_600_000 - 20, 73_601_000));
    }
}
