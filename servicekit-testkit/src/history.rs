//! What happened to one lease, as its contenders saw it, and whether that may have happened.

mod check;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use servicekit_core::{
    Instant,
    lease::{Granted, Token},
};

/// Writes down what happens to one lease. Clones write into the same history.
///
/// All moments have to be of one clock, and every event has to be written when it is known: what was written first
/// happened first.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Mutex<Vec<Event>>>);

/// One attempt to get the lease: a join and all that follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(clippy::exhaustive_structs, reason = "made by tests of the checker")]
pub struct Attempt(pub usize);

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "made by tests of the checker")]
pub struct Event {
    /// When.
    pub at: Instant,
    /// What.
    pub what: What,
}

/// What may happen.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the checker has to handle each")]
pub enum What {
    /// A join is about to be sent.
    Joining(Attempt),
    /// The join has returned, and waits.
    Waiting(Attempt),
    /// The contender knows that it was granted, and begins its work.
    Granted(Attempt, Token, u32),
    /// The contender ended its work, or its wait; from this moment it counts on nothing.
    Ended(Attempt, End),
    /// Somebody freed the slot of this grant by force.
    Forced(Token),
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the checker has to handle each")]
pub enum End {
    /// By its own will: it left, was dropped, or its process died.
    Left,
    /// It was told that its grant or its place is gone, or its own deadline passed.
    Lost,
}

/// What must not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// Two held one slot at the same time.
    Overlap {
        /// The slot.
        slot: u32,
        /// Who had it.
        first: Token,
        /// Who had it too.
        second: Token,
    },
    /// More than the lease has slots worked at the same time.
    TooMany {
        /// Since when.
        at: Instant,
        /// Who.
        tokens: Vec<Token>,
    },
    /// A later grant had a token that is not higher.
    TokenFell {
        /// The token before.
        from: Token,
        /// The token after.
        to: Token,
    },
    /// Somebody was granted before one who had waited already when it came.
    Overtaken {
        /// Who waited.
        waited: Attempt,
        /// Who came later.
        granted: Attempt,
    },
}

impl History {
    /// Writes down that a join is about to be sent.
    #[must_use]
    pub fn joining(&self, at: Instant) -> Attempt {
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let attempt = Attempt(events.len());
        events.push(Event { at, what: What::Joining(attempt) });
        attempt
    }

    /// Writes down that the join returned, and waits.
    pub fn waiting(&self, at: Instant, attempt: Attempt) {
        self.write(at, What::Waiting(attempt));
    }

    /// Writes down a grant that its contender begins to count on.
    pub fn granted(&self, at: Instant, attempt: Attempt, granted: &Granted) {
        self.write(at, What::Granted(attempt, granted.token, granted.slot));
    }

    /// Writes down that the contender counts on nothing since `at`.
    pub fn ended(&self, at: Instant, attempt: Attempt, end: End) {
        self.write(at, What::Ended(attempt, end));
    }

    /// Writes down an eviction by force, that is about to be sent.
    pub fn forced(&self, at: Instant, token: Token) {
        self.write(at, What::Forced(token));
    }

    /// What was written.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Everything that must not have happened, for a lease of at most so many slots.
    #[must_use]
    pub fn violations(&self, slots: u32) -> Vec<Violation> {
        check::violations(&self.events(), slots)
    }

    /// How many grants there were.
    #[must_use]
    pub fn grants(&self) -> usize {
        self.events().iter().filter(|event| matches!(event.what, What::Granted(..))).count()
    }

    fn write(&self, at: Instant, what: What) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Event { at, what });
    }
}

/// One event a line.
impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let events = self.events();
        let Some(first) = events.first().map(|event| event.at) else {
            return Ok(());
        };
        for Event { at, what } in &events {
            writeln!(f, "{:>12.3?} {what:?}", at.since(first))?;
        }
        Ok(())
    }
}
