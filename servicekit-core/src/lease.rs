//! Leases: one at a time, n at a time, in order, and never two.
//!
//! A lease has a name and *slots*. Who wants one *joins* its queue with a *ticket*, and is *granted* a slot with a *token*
//! that only rises. A lease is no lock on anything outside the store: give the token to the guarded resource, and let it
//! refuse tokens lower than the highest that it has seen.

mod guard;

use std::{fmt, time::Duration};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};

pub use guard::{Guard, Held, Loss, Obtained, Progress, acquire, margin, obtain};

use crate::{Capabilities, Label, Name, Result, ServiceId, Timestamp};

/// The largest number of slots of one lease.
pub const MOST_SLOTS: u32 = 64;

/// The longest note of a holder, in bytes: each change of the lease writes it again.
pub const MOST_NOTE: usize = 128;

/// Grants slots of named leases, first come, first served.
///
/// - At most `slots` grants stand at a time. A grant is recorded in the store, and only leaving, expiry or eviction ends it.
/// - If the join of A returned [`Standing::Waiting`] before that of B began, B is not granted before A, unless A left,
///   lapsed, or did not claim its [`turn`]. Where several slots come free at once, those whose turn it is may
///   claim them in any order among themselves.
/// - Tokens rise per lease name, for ever, also after the store was restored from a backup.
#[async_trait]
pub trait LeaseProvider: fmt::Debug + Send + Sync + 'static {
    /// What the store behind it can promise.
    fn capabilities(&self) -> Capabilities;

    /// Takes a place in the queue of a lease: granted at once where a slot is free and nobody is ahead.
    ///
    /// With [`Term::Unattended`] and `reuse`, joining again while one's own unattended grant stands returns that grant.
    ///
    /// # Errors
    ///
    /// `Invalid` when the lease has another number of slots, the ttl is below [`Capabilities::min_ttl`], or the note is longer
    /// than [`MOST_NOTE`]; `Unsupported` where the store cannot promise exclusion; those of reaching the store. After a
    /// failure a ticket that nobody knows may be left; it misses its turn and ends by itself.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future is like a failure.
    async fn join(&self, lease: &Label, request: &Request) -> Result<(Ticket, Standing)>;

    /// Where a ticket stands now, without changing anything.
    ///
    /// # Errors
    ///
    /// Those of reaching the store.
    async fn standing(&self, ticket: &Ticket) -> Result<Standing>;

    /// Waits for a grant: a stream of standings, one for each change, that ends after `Granted` or `Gone`.
    ///
    /// Only following it keeps one's turn from being missed. Errors heal themselves; dropping the stream and calling again
    /// loses nothing but turns missed between. It never ends while the store is away.
    fn wait(&self, ticket: &Ticket) -> BoxStream<'static, Result<Standing>>;

    /// Keeps a ticket alive: a grant for its ttl, a waiting ticket for its wait.
    ///
    /// For a grant, `Ok` proves that it stood at some moment after the call began. It counts from *before* the call.
    ///
    /// # Errors
    ///
    /// `Lost` when the ticket has ended or was evicted: its grant must not be used. Any other leaves unknown whether it was
    /// renewed, and does not extend anything.
    async fn renew(&self, ticket: &Ticket) -> Result<()>;

    /// Gives a grant or a place in the queue back, and offers the slot to the next in line. Any process may do it for
    /// a ticket that [`LeaseProvider::inspect`] showed.
    ///
    /// # Errors
    ///
    /// Those of reaching the store; the grant then ends by its ttl. A ticket that is gone already is no error.
    async fn leave(&self, ticket: &Ticket) -> Result<()>;

    /// Every lease that was ever used, in order.
    ///
    /// # Errors
    ///
    /// Those of reaching the store.
    async fn names(&self) -> Result<Vec<Label>>;

    /// Who holds a lease, who waits, and who held it last; `None` for one that was never used.
    ///
    /// # Errors
    ///
    /// Those of reaching the store.
    async fn inspect(&self, lease: &Label) -> Result<Option<Lease>>;

    /// Sets the number of slots, for joins to come. Growing lets waiters in; shrinking revokes nobody.
    ///
    /// # Errors
    ///
    /// `Invalid` beyond 1 to [`MOST_SLOTS`]; `NotFound` for a lease that was never used; those of reaching the store.
    async fn resize(&self, lease: &Label, slots: u32) -> Result<()>;

    /// Ends the grant with this token: it can no longer be renewed, and its slot is free once the holder has left, or one
    /// ttl later. An unattended grant is free at once. With `force` any is, and two may overlap.
    ///
    /// # Errors
    ///
    /// `NotFound` when no grant has this token; those of reaching the store.
    async fn evict(&self, lease: &Label, token: Token, force: bool) -> Result<()>;
}

/// How long a slot is kept for the first in line before it is offered to the next: three seconds, and three times as long where
/// waiters have to look, since those who are far back look every five seconds or so.
#[must_use]
pub fn turn(capabilities: Capabilities) -> Duration {
    const TURN: Duration = Duration::from_secs(3);
    if capabilities.push_watch { TURN } else { TURN * 3 }
}

/// A fencing token: rises with every grant of a lease, below 2^53, so that JSON carries it exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(pub u64);

/// What a join asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "made by callers")]
pub struct Request {
    /// Who asks.
    pub holder: ServiceId,
    /// How long a grant stands.
    pub term: Term,
    /// How many slots the lease has; the first join sets it, later ones must agree.
    pub slots: u32,
    /// How long the caller will wait; `None` does not wait.
    pub wait: Option<Duration>,
    /// What the holder wants others to see, in at most [`MOST_NOTE`] bytes.
    pub note: String,
}

/// How long a grant stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there are two")]
pub enum Term {
    /// While a process renews it: it ends when it was not renewed for `ttl`.
    Attended {
        /// How long a renewal lasts.
        ttl: Duration,
    },
    /// For a time, by the store's clock, whether anybody renews it or not. It orders a start-up; after its time it is over.
    Unattended {
        /// How long it stands.
        time: Duration,
        /// Whether an unattended grant that `holder` has already will do.
        reuse: bool,
    },
}

/// A place in the queue of a lease, or a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    pub(crate) lease: Label,
    pub(crate) name: Name,
    /// Tells it from others of its name: names are used again, this is not.
    pub(crate) nonce: String,
}

impl Ticket {
    /// The lease that it is for.
    #[must_use]
    pub fn lease(&self) -> &Label {
        &self.lease
    }
}

/// Where a ticket stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a caller has to handle each")]
pub enum Standing {
    /// It holds a slot.
    Granted(Granted),
    /// It waits.
    Waiting {
        /// How many are before it in the queue.
        ahead: usize,
        /// Who holds the slots.
        holders: Vec<Grant>,
    },
    /// No slot was free, and the caller would not wait; nothing is left in the store.
    Refused {
        /// Who holds the slots.
        holders: Vec<Grant>,
    },
    /// It has ended: it left, lapsed, was evicted, or missed its turn.
    Gone,
}

/// A grant, as its holder sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "providers of other crates make them")]
pub struct Granted {
    /// Higher than that of every grant before.
    pub token: Token,
    /// Which of the slots, from 0.
    pub slot: u32,
    /// When the request that began it was sent, on this process's boot clock: a ttl counts from here.
    pub counted_from: crate::Instant,
    /// Unattended: when it is over, by the wall clock of who took it.
    pub expires_at: Option<Timestamp>,
}

/// A lease, as anybody sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "providers of other crates make them")]
pub struct Lease {
    /// Its name.
    pub name: Label,
    /// How many may hold it at a time.
    pub slots: u32,
    /// Who holds it, by slot.
    pub grants: Vec<Grant>,
    /// Who waits, the first in line first.
    pub waiting: Vec<Waiter>,
    /// The last grants that ended, the latest last; at most sixteen.
    pub past: Vec<PastGrant>,
}

/// Somebody holding a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "providers of other crates make them")]
pub struct Grant {
    /// Who.
    pub holder: ServiceId,
    /// Under which token.
    pub token: Token,
    /// Which of the slots.
    pub slot: u32,
    /// Since when, by the wall clock of the host that was granted.
    pub since: Timestamp,
    /// When it is over unless it is renewed, by the wall clock of this process; `None` where the store does not tell.
    pub expires_at: Option<Timestamp>,
    /// Whether a process renews it.
    pub attended: bool,
    /// Whether it was evicted, and stands only until its holder has left.
    pub evicted: bool,
    /// What the holder wants others to see.
    pub note: String,
    /// To leave it with.
    pub ticket: Ticket,
}

/// Somebody waiting.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "providers of other crates make them")]
pub struct Waiter {
    /// Who.
    pub holder: ServiceId,
    /// Since when, by its wall clock.
    pub since: Timestamp,
    /// What it wants others to see.
    pub note: String,
    /// To leave it with.
    pub ticket: Ticket,
}

/// A grant that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "providers of other crates make them")]
pub struct PastGrant {
    /// Who held it.
    pub holder: ServiceId,
    /// Under which token.
    pub token: Token,
    /// When it ended, by the wall clock of who ended it.
    pub ended: Timestamp,
    /// How it ended.
    pub how: Ending,
}

/// How a grant ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Ending {
    /// Its holder gave it back, or somebody released it.
    Left,
    /// It was not renewed, or its time was over.
    Expired,
    /// It was evicted.
    Evicted,
    /// It was evicted by force; it may have overlapped with the next.
    Forced,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
