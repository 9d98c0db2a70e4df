//! What random bytes must never do: one function for each parser of untrusted input, called by libFuzzer and, with the
//! inputs that are kept in `corpus/`, by an ordinary test.

#![forbid(unsafe_code)]

mod address;
mod certificates;
mod identity;
mod lease;
mod names;
mod registry;

use std::{future::Future, sync::Arc, time::Duration};

use servicekit::{
    Backend, Name, Namespace,
    clock::Env,
    store::{Expect, Group, Keep, Limits, Memory, Profile, Put, Store as _, WriteId},
};
use tokio::runtime::{Builder, Runtime};

pub use address::address;
pub use certificates::certificates;
pub use identity::identity;
pub use lease::lease;
pub use names::names;
pub use registry::registry;

/// One of the functions that take random bytes.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("address", address),
    ("certificates", certificates),
    ("identity", identity),
    ("lease", lease),
    ("names", names),
    ("registry", registry),
];

/// A store that somebody has written into, and a backend that reads it.
struct World {
    store: Memory,
    env: Env,
    namespace: Namespace,
}

impl World {
    fn new(profile: Profile) -> Self {
        let env = Env::system();
        Self { store: Memory::new(env.clone(), profile), env, namespace: Namespace::default() }
    }

    /// Writes a record; what the store itself refuses is no input.
    async fn write(&self, group: &Group, name: &str, value: &[u8], ttl: Option<Duration>) {
        let Ok(name) = name.parse::<Name>() else { return };
        let put = Put {
            key: group.key(name),
            value: value.into(),
            expect: Expect::Absent,
            keep: ttl.map_or(Keep::Durable, Keep::Ephemeral),
            write: WriteId::draw(&self.env.random),
        };
        drop(self.store.put(&put).await);
    }

    fn backend(&self) -> Backend {
        let (store, env) = (Arc::new(self.store.clone()), self.env.clone());
        // Nobody else is there, so that nothing is worth a second try.
        let limits = Limits { attempt: Duration::from_secs(1), total: Duration::from_secs(1) };
        Backend::over("fuzzed", store, self.namespace.clone(), env, limits)
    }
}

/// Runs one input to its end.
fn run(work: impl Future<Output = ()>) {
    thread_local! {
        static RUNTIME: Runtime =
            Builder::new_current_thread().enable_all().build().expect("a runtime");
    }
    RUNTIME.with(|runtime| runtime.block_on(work));
}

/// The first byte chooses the kind of store; the rest are lines.
fn lines(bytes: &[u8]) -> (Profile, impl Iterator<Item = &[u8]>) {
    let (first, rest) = bytes.split_first().unwrap_or((&0, &[]));
    let profile = if first % 2 == 0 { Profile::Server } else { Profile::Feed };
    (profile, rest.split(|byte| *byte == b'\n'))
}
