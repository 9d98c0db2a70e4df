//! Who is up, at which address, and why not.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use crate::{
    Capabilities, Instance, Label, Name, Result, ServiceId, State, instance::StateChange,
    store::WriteId,
};

/// How often an instance is put again while nothing changes: the record of one that is not ends after [`RETENTION`].
pub const REFRESH: Duration = Duration::from_secs(20 * 60);

/// How long the record of an instance stays after its last put: an hour in which a lost one is shown, and [`REFRESH`].
pub const RETENTION: Duration = Duration::from_secs(80 * 60);

/// Keeps instances, and tells who is up.
///
/// An instance is *up* while its last state is `up` and the session of its node lives. An instance whose session ended is
/// [`State::Lost`]: it is listed as such for an hour or so, then it is cleaned away.
#[async_trait]
pub trait Registry: fmt::Debug + Send + Sync + 'static {
    /// What the store behind it can promise.
    fn capabilities(&self) -> Capabilities;

    /// Begins a session: a node's proof of life, which ends when it was not beaten for `ttl`.
    ///
    /// # Errors
    ///
    /// `Invalid` for a ttl below [`Capabilities::min_ttl`]; those of reaching the store. After a failure a session that
    /// nobody knows may be left; it ends by itself.
    async fn open(&self, node: &str, ttl: Duration) -> Result<Session>;

    /// Keeps a session alive, however many instances hang on it, and tells which of them were taken over since.
    ///
    /// # Errors
    ///
    /// `Lost` when the session has ended: open another, and put everything again that is still wanted. Others leave
    /// unknown whether it was kept alive; beat again.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves unknown whether it was kept alive, and loses no takeover.
    async fn beat(&self, session: &Session) -> Result<Vec<InstanceKey>>;

    /// Ends a session at once. Its instances are lost from then on; remove them before.
    ///
    /// # Errors
    ///
    /// Those of reaching the store; the session then ends by its ttl. A session that is gone already is no error.
    async fn close(&self, session: &Session) -> Result<()>;

    /// Writes an instance under a session and a claim.
    ///
    /// The first put under a claim draws its incarnation: this process owns the record from then on, and whoever owned it
    /// before is told at its next beat. The instance's earlier changes are kept.
    ///
    /// # Errors
    ///
    /// `Superseded` when a newer incarnation owns the record, or has removed it: stop, and do not put again.
    /// That the session has ended shows at its next beat. After an error with retry `Unknown` put again; it settles itself.
    async fn put(&self, session: &Session, claim: &Claim, instance: &Instance) -> Result<()>;

    /// Removes an instance that this claim owns, for good: no late request brings it back.
    ///
    /// # Errors
    ///
    /// `Superseded` when a newer incarnation owns the record (it is left alone); those of reaching the store.
    /// An instance that is not there is no error.
    async fn remove(&self, claim: &Claim, label: &Label, id: &ServiceId) -> Result<()>;

    /// All instances of a label, up or not, in the order of their ids.
    ///
    /// # Errors
    ///
    /// Those of reaching the store. A label that nobody knows is an empty snapshot.
    async fn list(&self, label: &Label) -> Result<Snapshot>;

    /// The instances of a label, now and after each change.
    ///
    /// What the instances remember of their changes is left out. It begins with a snapshot, sends a fresh one whenever it cannot prove that nothing was missed, heals itself after an
    /// `Err`, and does not end. After an outage it declares nobody lost until one ttl after the store answered again.
    fn watch(&self, label: &Label) -> BoxStream<'static, Result<Event>>;

    /// Every label that was ever used, in order.
    ///
    /// # Errors
    ///
    /// Those of reaching the store.
    async fn labels(&self) -> Result<Vec<Label>>;
}

/// A node's proof of life.
#[derive(Clone, Debug)]
pub struct Session {
    pub(crate) reference: SessionRef,
    pub(crate) ttl: Duration,
    pub(crate) known: Arc<Mutex<Known>>,
}

/// What the node knows of its session's record.
#[derive(Debug)]
pub(crate) struct Known {
    /// The put that a beat proves; a note replaces it.
    pub(crate) write: WriteId,
    /// The takeovers that were told already.
    told: BTreeSet<Takeover>,
}

/// An instance that was taken over, by the incarnation that did it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub(crate) struct Takeover {
    #[serde(flatten)]
    pub(crate) instance: InstanceKey,
    pub(crate) by: u64,
}

impl Session {
    pub(crate) fn new(reference: SessionRef, ttl: Duration, write: WriteId) -> Self {
        let known = Known { write, told: BTreeSet::new() };
        Self { reference, ttl, known: Arc::new(Mutex::new(known)) }
    }

    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the record's notes in, and returns those that are new.
    pub(crate) fn hear(&self, write: WriteId, taken: Vec<Takeover>) -> Vec<InstanceKey> {
        let mut known = self.known();
        known.write = write;
        let before = std::mem::replace(&mut known.told, taken.iter().cloned().collect());
        let new = taken.into_iter().filter(|takeover| !before.contains(takeover));
        new.map(|takeover| takeover.instance).collect()
    }

    /// How long it lives without a beat.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Its name in the store.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.reference.name
    }
}

/// A process's right to one instance; it begins without an incarnation, and the first put draws it.
///
/// One for each instance; keep it for as long as the process lives, over any number of sessions.
#[derive(Debug, Default)]
pub struct Claim(Mutex<Drawn>);

#[derive(Debug, Default)]
pub(crate) struct Drawn {
    /// The incarnation and the write id of the last put, whether it was applied or not.
    pub(crate) tried: Option<(u64, WriteId)>,
    pub(crate) incarnation: Option<u64>,
    /// The instance's changes from before this claim.
    pub(crate) before: Vec<StateChange>,
    /// The session that has to be told that it was taken over.
    pub(crate) former: Option<SessionRef>,
}

/// Which session: names are used again, nonces are not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub(crate) struct SessionRef {
    pub(crate) name: Name,
    pub(crate) nonce: String,
}

impl Claim {
    /// A claim that the next put makes good.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The incarnation, once it was drawn.
    #[must_use]
    pub fn incarnation(&self) -> Option<u64> {
        self.lock().incarnation
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Drawn> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Names an instance.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct InstanceKey {
    /// The service.
    pub label: Label,
    /// Which of its instances.
    pub service_id: ServiceId,
}

/// All instances of a label at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "registries of other crates make them")]
pub struct Snapshot {
    /// The instances, in the order of their ids.
    pub instances: Vec<Arc<Instance>>,
}

impl Snapshot {
    /// Those that are up.
    pub fn up(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.instances.iter().filter(|instance| instance.state == State::Up)
    }
}

/// One step of [`Registry::watch`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a follower has to handle each")]
pub enum Event {
    /// All instances; whatever is not in it is not there.
    Snapshot(Snapshot),
    /// This instance is new, or has changed.
    Changed(Arc<Instance>),
    /// This instance is no longer registered.
    Removed(ServiceId),
}
