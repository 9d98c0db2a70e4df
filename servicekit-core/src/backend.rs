//! A backend: the three public traits over one store, or over several.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{
    CertStore, Env, LeaseProvider, Namespace, Registry, Result, over,
    store::{Limits, Reliable, Store},
};

/// Everything that servicekit needs of a store; parts can be mixed by struct update.
///
/// ```
/// # use std::sync::Arc;
/// use servicekit_core::{Backend, Env, Namespace, store::{Limits, Memory, Profile}};
/// let env = Env::system();
/// let memory = Arc::new(Memory::new(env.clone(), Profile::Server));
/// let one = Backend::over("memory", memory.clone(), Namespace::default(), env.clone(), Limits::default());
/// let two = Backend::over("memory", memory, Namespace::default(), env, Limits::default());
/// let mixed = Backend { certs: two.certs, ..one };
/// # let _ = mixed;
/// ```
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "made to be mixed by struct update")]
pub struct Backend {
    /// What it is called in errors and findings.
    pub name: &'static str,
    /// Who is up, and where.
    pub registry: Arc<dyn Registry>,
    /// Who may.
    pub leases: Arc<dyn LeaseProvider>,
    /// Sealed certificates.
    pub certs: Arc<dyn CertStore>,
    /// What is wrong.
    pub doctor: Arc<dyn Doctor>,
}

/// What a store can promise. It selects cases of the suite, and what is not safe is refused; that is all that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a backend has to tell each")]
pub struct Capabilities {
    /// Conditions are judged, and reads answered, as if by one server. Leases are refused without it.
    pub linearizable: bool,
    /// Processes on several hosts share it.
    pub multi_host: bool,
    /// The store ends ephemeral records itself.
    pub server_expiry: bool,
    /// Changes are pushed; otherwise following polls.
    pub push_watch: bool,
    /// The largest value, in bytes.
    pub max_value_bytes: usize,
    /// The shortest ttl that is kept exactly enough.
    pub min_ttl: Duration,
}

/// Examines a backend.
#[async_trait]
pub trait Doctor: fmt::Debug + Send + Sync + 'static {
    /// Looks at everything that servicekit needs of the store. What is wrong is a finding, never an error.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave a scratch record behind, which ends by itself.
    async fn examine(&self) -> Vec<Finding>;

    /// Makes what the store should have and everyday commands may not make, such as roles; then what was done. What is there
    /// already stays as it is. What goes wrong is a finding, never an error.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave a part of it made; doing it again makes the rest.
    async fn set_up(&self) -> Vec<Finding>;
}

/// One thing that a doctor looked at.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[expect(clippy::exhaustive_structs, reason = "doctors of other crates make them")]
pub struct Finding {
    /// What was looked at, in a word or two.
    pub check: String,
    /// How bad it is.
    pub severity: Severity,
    /// What was seen.
    pub detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::exhaustive_enums, reason = "there will be no fourth")]
pub enum Severity {
    /// As it should be.
    Fine,
    /// It works, but.
    Warning,
    /// Something that servicekit needs does not work.
    Problem,
}

impl Finding {
    /// All is well.
    pub fn fine(check: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { check: check.into(), severity: Severity::Fine, detail: detail.into(), remedy: None }
    }

    /// It works, but `remedy` would be better.
    pub fn warning(
        check: impl Into<String>,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let remedy = Some(remedy.into());
        Self { check: check.into(), severity: Severity::Warning, detail: detail.into(), remedy }
    }

    /// It does not work; `remedy` is what to try.
    pub fn problem(
        check: impl Into<String>,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let remedy = Some(remedy.into());
        Self { check: check.into(), severity: Severity::Problem, detail: detail.into(), remedy }
    }
}

impl Backend {
    /// Makes a whole backend of one store, with core's one algorithm.
    #[must_use]
    pub fn over(
        name: &'static str,
        store: Arc<dyn Store>,
        namespace: Namespace,
        env: Env,
        limits: Limits,
    ) -> Self {
        let store = Arc::new(Reliable::new(name, store, env.clone(), limits));
        Self {
            name,
            registry: Arc::new(over::Instances::new(store.clone(), &namespace, env.clone())),
            leases: Arc::new(over::Leases::new(store.clone(), &namespace, env.clone())),
            certs: Arc::new(over::Certs::new(store.clone(), &namespace, env.clone())),
            doctor: Arc::new(over::Examiner::new(store, &namespace, env)),
        }
    }
}

/// Refuses an answer of `Ok` where the store cannot keep what was asked of it.
pub(crate) fn refuse<T>(message: &str) -> Result<T> {
    Err(crate::Error::new(crate::Kind::Unsupported, message))
}
