//! The conformance suite: every promise as a named case, chosen by what a store says that it can do.
//!
//! A store's author needs a test target with `harness = false`, and in it:
//!
//! ```no_run
//! # use servicekit_core::store::{Memory, Profile};
//! use std::process::ExitCode;
//! use servicekit_testkit::suite::{self, Fresh, Subject, Time};
//!
//! fn main() -> ExitCode {
//!     suite::main(Subject::new("mine", Time::Simulated, |env| async move {
//!         Ok(Fresh::new(Memory::new(env, Profile::Server)))
//!     }))
//! }
//! ```
//!
//! A case that needs what the store cannot do is ignored, and says what it needs.

mod case;
mod certs;
mod leases;
mod registry;
mod run;
mod store;
mod world;

use std::{any::Any, fmt, future::Future, process::ExitCode, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use servicekit_core::{
    Backend, Env, Namespace, Result,
    store::{Limits, Store},
};

pub use case::{Case, Need, Setting};
pub use run::{Options, Outcome, Report};
use world::World;

use crate::hosts::{self, Turns};

/// Every case there is, level by level.
pub fn cases() -> impl Iterator<Item = &'static Case> {
    [store::TABLES, certs::TABLES, registry::TABLES, leases::TABLES]
        .into_iter()
        .flatten()
        .copied()
        .flatten()
}

/// Runs the suite as a test target of its own does: every case a test, chosen by the arguments that `cargo test` and
/// `cargo nextest` give.
#[must_use]
pub fn main(subject: Subject) -> ExitCode {
    main_of([subject])
}

/// Like [`main`], for several subjects in one target.
#[must_use]
pub fn main_of(subjects: impl IntoIterator<Item = Subject>) -> ExitCode {
    run::main_of(subjects)
}

/// What is to be proven: a kind of store, and how to get a new one.
#[derive(Clone)]
pub struct Subject {
    name: &'static str,
    time: Time,
    fails: bool,
    open: Open,
}

type Open = Arc<dyn Fn(Env) -> BoxFuture<'static, Result<Fresh>> + Send + Sync>;
type MakeBackend = Arc<dyn Fn(Arc<dyn Store>, Namespace, Env) -> Backend + Send + Sync>;

/// Whose time a store lives by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there are two")]
pub enum Time {
    /// That of the [`Env`] which it is opened with: cases run in simulated time, as fast as they can, and clocks jump.
    Simulated,
    /// Real time: ttls are short, and cases wait.
    Real,
}

/// A store for one case, with nothing in the namespaces that the case draws.
pub struct Fresh {
    store: Arc<dyn Store>,
    backend: MakeBackend,
    apart: Duration,
    keep: Vec<Box<dyn Any + Send + Sync>>,
}

impl Subject {
    /// A kind of store that `open` makes a new one of, for each case.
    #[must_use]
    pub fn new<F>(
        name: &'static str,
        time: Time,
        open: impl Fn(Env) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Fresh>> + Send + 'static,
    {
        let open: Open = Arc::new(move |env| Box::pin(open(env)));
        Self { name, time, fails: false, open }
    }

    /// A store whose requests fail now and then without a [`Plan`](crate::fault::Plan), as through a
    /// [`Proxy`](crate::proxy::Proxy) that cuts connections.
    #[must_use]
    pub fn failing(self) -> Self {
        Self { fails: true, ..self }
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Runs one case.
    #[must_use]
    pub fn run(&self, case: &Case, options: Options) -> Outcome {
        run::run(self, case, options)
    }

    /// Runs every case that the store, the time and the faults allow, each in a run of its own, so that a failure can be
    /// repeated from its seed alone.
    #[must_use]
    pub fn run_all(&self, options: Options) -> Report {
        let outcomes = cases().map(|case| (case.name, self.run(case, options))).collect();
        Report { subject: self.name, options, outcomes }
    }
}

impl Fresh {
    /// A store, with core's one implementation of the public traits over it.
    #[must_use]
    pub fn new(store: impl Store) -> Self {
        Self {
            store: Arc::new(store),
            backend: Arc::new(over),
            apart: Duration::ZERO,
            keep: Vec::new(),
        }
    }

    /// The same store as two hosts see it whose wall clocks are so far `apart`, one behind and one ahead of this host: `open`
    /// is called for each. Each request is sent by the other host than the one before it, and each process runs on the other.
    #[must_use]
    pub fn on_two_hosts<S: Store>(env: &Env, apart: Duration, open: impl Fn(Env) -> S) -> Self {
        let half = i64::try_from(apart.as_millis() / 2).unwrap_or(i64::MAX);
        let hosts = [-half, half].map(|millis| hosts::ahead(env, millis));
        let stores = hosts.clone().map(|env| Arc::new(open(env)) as Arc<dyn Store>);
        let hosts = Turns::of(hosts);
        let fresh = Self::new(Turns::of(stores))
            .with_backend(move |store, namespace, _| over(store, namespace, hosts.next().clone()));
        Self { apart, ..fresh }
    }

    /// Keeps `thing` until the case has ended, such as a folder that is then removed.
    #[must_use]
    pub fn keeping(mut self, thing: impl Any + Send + Sync) -> Self {
        self.keep.push(Box::new(thing));
        self
    }

    /// Brings public traits of its own: `make` is called for every process that a case has. It must use the store that it
    /// is given, which counts, and fails by plan.
    #[must_use]
    pub fn with_backend(
        self,
        make: impl Fn(Arc<dyn Store>, Namespace, Env) -> Backend + Send + Sync + 'static,
    ) -> Self {
        Self { backend: Arc::new(make), ..self }
    }
}

fn over(store: Arc<dyn Store>, namespace: Namespace, env: Env) -> Backend {
    Backend::over("suite", store, namespace, env, Limits::default())
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject")
            .field("name", &self.name)
            .field("time", &self.time)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Fresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fresh").field("store", &self.store).finish_non_exhaustive()
    }
}
