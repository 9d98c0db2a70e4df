use std::fmt;

use futures_util::future::BoxFuture;
use servicekit_core::Capabilities;

use super::World;

/// One promise, and how to see whether it is kept.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Case {
    /// The level, and the promise in words.
    pub name: &'static str,
    /// What it cannot be seen without.
    pub needs: &'static [Need],
    pub(super) run: fn(World) -> BoxFuture<'static, ()>,
}

/// Something that a case cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Need {
    /// [`Capabilities::linearizable`].
    Linearizable,
    /// No [`Capabilities::linearizable`].
    NotLinearizable,
    /// [`Capabilities::multi_host`].
    MultiHost,
    /// [`Capabilities::server_expiry`].
    ServerExpiry,
    /// No [`Capabilities::server_expiry`].
    ObservedExpiry,
    /// [`Capabilities::push_watch`].
    PushWatch,
    /// No [`Capabilities::push_watch`].
    Polled,
    /// Time that is simulated.
    SimulatedTime,
    /// A run without faults by plan.
    NoFaults,
}

/// Where a case is to run.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "made by tests")]
pub struct Setting {
    /// What the store tells.
    pub capabilities: Capabilities,
    /// Whether time is simulated.
    pub is_simulated: bool,
    /// Whether faults happen by plan.
    pub has_faults: bool,
}

impl Case {
    /// The first thing that this case needs and does not have.
    #[must_use]
    pub fn lacks(&self, setting: &Setting) -> Option<Need> {
        self.needs.iter().copied().find(|need| !need.is_met(setting))
    }
}

impl Need {
    fn is_met(self, setting: &Setting) -> bool {
        let Setting { capabilities, is_simulated, has_faults } = setting;
        match self {
            Self::Linearizable => capabilities.linearizable,
            Self::NotLinearizable => !capabilities.linearizable,
            Self::MultiHost => capabilities.multi_host,
            Self::ServerExpiry => capabilities.server_expiry,
            Self::ObservedExpiry => !capabilities.server_expiry,
            Self::PushWatch => capabilities.push_watch,
            Self::Polled => !capabilities.push_watch,
            Self::SimulatedTime => *is_simulated,
            Self::NoFaults => !has_faults,
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linearizable => "linearizable",
            Self::NotLinearizable => "not linearizable",
            Self::MultiHost => "multi_host",
            Self::ServerExpiry => "server_expiry",
            Self::ObservedExpiry => "no server_expiry",
            Self::PushWatch => "push_watch",
            Self::Polled => "no push_watch",
            Self::SimulatedTime => "simulated time",
            Self::NoFaults => "no faults",
        })
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case")
            .field("name", &self.name)
            .field("needs", &self.needs)
            .finish_non_exhaustive()
    }
}

/// The table of a module's cases: functions of the module, each with what it needs.
macro_rules! cases {
    ($level:literal; $($name:ident $([$($need:ident),+])?),+ $(,)?) => {
        pub(super) const CASES: &[$crate::suite::Case] = &[$(
            $crate::suite::Case {
                name: concat!($level, "::", stringify!($name)),
                needs: &[$($($crate::suite::Need::$need),+)?],
                run: |world| Box::pin($name(world)),
            }
        ),+];
    };
}

pub(super) use cases;
