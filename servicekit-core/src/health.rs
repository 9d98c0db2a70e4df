//! Verdicts, and how many of them make a change: pure, so that every rule can be tested without a network.

use std::fmt;

use async_trait::async_trait;

use crate::State;

/// Asks a service whether it is well.
#[async_trait]
pub trait Probe: fmt::Debug + Send + Sync + 'static {
    /// Asks once. It must end within the time-out that it was made with, whatever the service does.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the probe and everything that it started.
    async fn check(&self) -> Verdict;
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there are two")]
pub enum Verdict {
    /// The service is well; what it said.
    Pass(String),
    /// It is not; why.
    Fail(String),
}

impl Verdict {
    /// Whether the service is well.
    #[must_use]
    pub fn passed(&self) -> bool {
        matches!(self, Self::Pass(_))
    }

    /// What the probe said.
    #[must_use]
    pub fn output(&self) -> &str {
        match self {
            Self::Pass(output) | Self::Fail(output) => output,
        }
    }
}

/// How many verdicts in a row make a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "made by callers")]
pub struct Thresholds {
    /// So many passes in a row: up.
    pub rise: u32,
    /// So many failures in a row: down.
    pub fall: u32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { rise: 1, fall: 2 }
    }
}

/// Turns verdicts into changes of state: starting until the first change, then up or down.
#[derive(Clone, Debug)]
pub struct Health {
    thresholds: Thresholds,
    state: State,
    in_a_row: u32,
    passing: bool,
}

impl Health {
    /// Of a service that was not probed yet.
    #[must_use]
    pub fn new(thresholds: Thresholds) -> Self {
        Self { thresholds, state: State::Starting, in_a_row: 0, passing: false }
    }

    /// The state by the verdicts so far.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Takes a verdict in, and returns the new state and the rule where that changes it.
    pub fn observe(&mut self, verdict: &Verdict) -> Option<(State, String)> {
        let passed = verdict.passed();
        self.in_a_row = if passed == self.passing { self.in_a_row.saturating_add(1) } else { 1 };
        self.passing = passed;
        let Thresholds { rise, fall } = self.thresholds;
        let (to, rule, needed) =
            if passed { (State::Up, "rise", rise) } else { (State::Down, "fall", fall) };
        if to == self.state || self.in_a_row < needed {
            return None;
        }
        self.state = to;
        Some((to, format!("{rule} {needed}")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn verdict(passed: bool) -> Verdict {
        if passed { Verdict::Pass("200".into()) } else { Verdict::Fail("500".into()) }
    }

    #[test]
    fn one_failure_is_no_change_and_two_are() {
        let mut health = Health::new(Thresholds::default());
        assert_eq!(health.state(), State::Starting);
        assert_eq!(health.observe(&verdict(true)), Some((State::Up, "rise 1".into())));
        assert_eq!(health.observe(&verdict(false)), None);
        assert_eq!(health.observe(&verdict(true)), None);
        assert_eq!(health.observe(&verdict(false)), None);
        assert_eq!(health.observe(&verdict(false)), Some((State::Down, "fall 2".into())));
    }

    proptest! {
        #[test]
        fn the_state_is_that_of_the_last_run_that_was_long_enough(
            rise in 1u32..4, fall in 1u32..4, verdicts in proptest::collection::vec(any::<bool>(), 0..40),
        ) {
            let mut health = Health::new(Thresholds { rise, fall });
            let mut expected = State::Starting;
            for end in 1..=verdicts.len() {
                health.observe(&verdict(verdicts[end - 1]));
                let last = verdicts[end - 1];
                let run = verdicts[..end].iter().rev().take_while(|v| **v == last).count() as u32;
                if last && run >= rise { expected = State::Up; }
                if !last && run >= fall { expected = State::Down; }
                prop_assert_eq!(health.state(), expected);
            }
        }
    }
}
