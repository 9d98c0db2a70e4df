//! Stores that fail as real ones do, and repeatably: the same seed on the same simulated runtime gives the same faults.

mod counting;
mod faulty;

use std::time::Duration;

pub use counting::{Counting, Counts};
pub use faulty::Faulty;

/// How often which fault happens; each rate is a probability from 0.0 to 1.0.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "made by tests, with struct update")]
pub struct Plan {
    /// A request fails and was not applied.
    pub fail_before: f64,
    /// A write is applied, and its answer is lost.
    pub lose_answer: f64,
    /// A write fails with a time-out, and is applied up to [`Plan::latest`] after that.
    pub apply_late: f64,
    /// A request or its answer, or a change on its way to a follower, takes up to [`Plan::slowest`].
    pub delay: f64,
    /// A list is answered as it was answered before. A store with such a plan no longer tells that it is linearizable.
    pub stale_list: f64,
    /// A change is lost on its way to a follower, who is told, and then sent a snapshot.
    pub break_watch: f64,
    /// The longest delay.
    pub slowest: Duration,
    /// How long after its time-out a write may still be applied.
    pub latest: Duration,
}

impl Plan {
    /// No faults.
    pub const NONE: Self = Self {
        fail_before: 0.0,
        lose_answer: 0.0,
        apply_late: 0.0,
        delay: 0.0,
        stale_list: 0.0,
        break_watch: 0.0,
        slowest: Duration::ZERO,
        latest: Duration::ZERO,
    };

    /// A store on a bad day: everything that a linearizable store can do to its callers, often.
    pub const ROUGH: Self = Self {
        fail_before: 0.05,
        lose_answer: 0.04,
        apply_late: 0.03,
        delay: 0.2,
        break_watch: 0.05,
        slowest: Duration::from_millis(800),
        latest: Duration::from_secs(5),
        ..Self::NONE
    };
}

/// One fault, for [`Faulty::script`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "made by tests")]
pub enum Fault {
    /// The request fails and is not applied.
    FailBefore,
    /// The request is applied, and its answer is lost.
    LoseAnswer,
    /// The request fails with a time-out, and is applied so long after that.
    ApplyLate(Duration),
    /// The request is applied at once, and its answer takes so long.
    SlowAnswer(Duration),
}
