//! The store's time, as far as its answers tell: what a record's end is counted in, whatever the clocks of hosts show.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_sdk_dynamodb::{
    config::{
        ConfigBag, Intercept, RuntimeComponents,
        interceptors::{
            BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
        },
    },
    error::BoxError,
};
use aws_smithy_types::{
    DateTime,
    config_bag::{Storable, StoreReplace},
    date_time::Format,
};
use servicekit_core::{Clock, Instant};

/// How far off this host's boot clock may run: a millisecond in a second, ten times what a bad one does.
const DRIFT: i64 = 1000;

/// The store's clock. (Requests are signed by the SDK, which corrects a wrong clock of the host by the same answers.)
#[derive(Clone, Debug)]
pub(crate) struct StoreClock {
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
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, known: Arc::default() }
    }

    /// The earliest that it may be by the store's clock, in milliseconds since 1970: what has not ended by then is there.
    pub(crate) fn earliest(&self) -> i64 {
        self.now(|known| known.least)
    }

    /// The latest that it may be: a ttl that begins then is no shorter than it should be.
    pub(crate) fn latest(&self) -> i64 {
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
    pub(crate) fn ahead(&self) -> Option<i64> {
        (*self.lock())?;
        Some(self.wall() - self.now(|known| known.least.midpoint(known.most)))
    }

    /// Takes in that the store's clock showed the second that begins at `date`, at a moment between these two.
    fn learn(&self, date: i64, sent: Instant, received: Instant) {
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
        let drift = 1 + millis_of(told.as_of.since(self.as_of)) / DRIFT;
        let least = told.least.max(self.least - drift);
        let most = told.most.min(self.most + drift);
        (least <= most).then_some(Self { least, most, as_of: told.as_of })
    }
}

fn millis(instant: Instant) -> i64 {
    millis_of(instant.since_boot())
}

fn millis_of(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// When the request of this attempt was sent.
#[derive(Debug)]
struct Sent(Instant);

impl Storable for Sent {
    type Storer = StoreReplace<Self>;
}

impl Intercept for StoreClock {
    fn name(&self) -> &'static str {
        "StoreClock"
    }

    fn read_before_transmit(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        state: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        state.interceptor_state().store_put(Sent(self.clock.now()));
        Ok(())
    }

    fn read_before_deserialization(
        &self,
        answer: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        state: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = answer.response().headers().get("date");
        let date = date.and_then(|date| DateTime::from_str(date, Format::HttpDate).ok());
        let date = date.and_then(|date| date.to_millis().ok());
        if let (Some(date), Some(Sent(sent))) = (date, state.load::<Sent>()) {
            self.learn(date, *sent, self.clock.now());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use servicekit_core::Env;

    use super::*;

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
