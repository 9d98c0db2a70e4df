//! A child under a lease: it ends, with all that it started, when the lease does.
//!
//! ```text
//! servicekit ──socket── sk-guard ── CMD ── …
//! ```
//!
//! [`Standby`] starts a guard, which is this program once more, and which starts the child when [`Supervisor`] tells it to. Each renewal of the lease tells
//! the guard a later deadline. The guard asks everything below it to end a little before the deadline, and kills it then, or
//! at once when its socket ends. So nothing that happens to servicekit lets the child outlive its lease; and nothing that
//! happens to the guard, since servicekit itself then ends all that is below it. Should both be killed in the same instant, a
//! cgroup remains, where one could be made: [`end_leftovers`].

mod cgroup;
mod guard;
mod lease_file;
mod supervisor;
mod tree;
mod wire;

use std::time::Duration;

use rustix::process::Signal;
use servicekit::{Clock, Instant};

pub use cgroup::end_leftovers;
pub use guard::guard_main;
pub use lease_file::LeaseFile;
pub use supervisor::{Ending, Options, Standby, StartError, Supervisor};

/// The first argument of a process that is to call [`guard_main`].
pub const GUARD: &str = "__guard";

/// The second, where the child is to have a cgroup of its own.
const WITH_CGROUP: &str = "cgroup";

/// Between two looks at processes that have to end.
const PAUSE: Duration = Duration::from_millis(5);

/// Whether a signal asks a process to end; others tell it something.
fn asks_to_end(number: i32) -> bool {
    [Signal::INT, Signal::QUIT, Signal::TERM].iter().any(|signal| signal.as_raw() == number)
}

/// Waits for a moment that may never come.
async fn until(clock: &dyn Clock, moment: Option<Instant>) {
    match moment {
        Some(moment) => clock.sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
