//! Randomness, injected like the clock, so that a run can be repeated from its seed.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};

/// A source of random numbers that clones share.
#[derive(Clone)]
pub struct Random(Arc<Mutex<StdRng>>);

impl Random {
    /// Seeded by the operating system.
    ///
    /// # Panics
    ///
    /// When the operating system has no randomness to give; nothing works on such a machine.
    #[must_use]
    pub fn system() -> Self {
        let rng = StdRng::try_from_rng(&mut rand::rngs::SysRng);
        #[expect(clippy::expect_used, reason = "no identifier could be unique without it")]
        Self(Arc::new(Mutex::new(rng.expect("the operating system gives no random numbers"))))
    }

    /// The same numbers for the same seed.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// A number below `bound`; 0 when `bound` is 0.
    #[must_use]
    pub fn below(&self, bound: u64) -> u64 {
        self.with(|rng| if bound == 0 { 0 } else { rng.random_range(0..bound) })
    }

    /// True with this probability, from 0.0 to 1.0.
    #[must_use]
    pub fn chance(&self, probability: f64) -> bool {
        self.with(|rng| rng.random_bool(probability.clamp(0.0, 1.0)))
    }

    /// 128 random bits as 32 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> String {
        let bits = self.with(|rng| (u128::from(rng.next_u64()) << 64) | u128::from(rng.next_u64()));
        format!("{bits:032x}")
    }

    /// A duration between `duration` less and plus `share` of itself, so that many do not act as one.
    #[must_use]
    pub fn jitter(&self, duration: Duration, share: f64) -> Duration {
        let factor = self.with(|rng| rng.random_range(-1.0..=1.0));
        duration.mul_f64((1.0 + share * factor).max(0.0))
    }

    fn with<T>(&self, f: impl FnOnce(&mut StdRng) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Random")
    }
}
