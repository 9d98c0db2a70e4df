//! What the author of a backend writes: seven methods on records, and nothing about services or leases.
//!
//! # Contract
//!
//! Records live in groups. A record has a value, a [`Version`] and the [`WriteId`] of the put that made its value.
//!
//! - **Conditional or not at all.** There is no unconditional put. When [`Capabilities::linearizable`] is told, a
//!   condition is judged and the record changed in one step that no other request can come between.
//! - **A version never comes back.** Every put changes it, and a key that was deleted and made again gets one that it
//!   never had. Where the store does not expire records itself, every touch changes it too: that is what an observer sees.
//! - **A write id tells whose put it was.** It is stored with the value and read back; a touch leaves it alone.
//! - **Ephemeral records** end when nobody touched them for their ttl. With [`Capabilities::server_expiry`] the store ends
//!   them: from then on they are absent, for good, in every answer. Without it they stay, and `left` tells how much time
//!   they have by the store's own clock; what to make of that is core's business.
//! - **Errors** carry their [`Retry`](crate::Retry): `Unknown` wherever a request may have been, or may still be, applied.
//! - **Untrusted.** What was written by others is returned as it is; core validates it.
//!
//! Every method is cancel safe in this sense: a dropped future leaves the store consistent, and for a write it is then
//! unknown whether it was applied.
//!
//! Prove an implementation with `servicekit-testkit`; ten lines do.

mod follow;
mod memory;
mod reliable;
mod time;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::stream::BoxStream;

pub use follow::{Shows, follow};
pub use memory::{Memory, Profile};
pub use reliable::{Limits, Reliable};
pub use time::StoreClock;

use crate::{Capabilities, Name, Namespace, Random, Result};

/// A store of records; see the [module](self) for the contract.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// What this store can promise. The same for as long as it is open.
    fn capabilities(&self) -> Capabilities;

    /// Reads one record, never a stale one.
    ///
    /// # Errors
    ///
    /// Those of reaching the store. An absent record is `None`.
    async fn get(&self, key: &Key) -> Result<Option<Record>>;

    /// Writes one record if its condition holds, and returns the new version.
    ///
    /// # Errors
    ///
    /// `Conflict` when the condition does not hold (nothing was written); `Invalid` when the value is larger than
    /// [`Capabilities::max_value_bytes`]; those of reaching the store, `Unknown` where it may have been applied.
    async fn put(&self, put: &Put) -> Result<Version>;

    /// Gives an ephemeral record its whole ttl again, if its value is still the one that `write` put there.
    ///
    /// Sending it twice does what sending it once does.
    ///
    /// # Errors
    ///
    /// `Lost` when the record is gone; `Conflict` when its value is another one; those of reaching the store.
    async fn touch(&self, key: &Key, write: &WriteId) -> Result<Version>;

    /// Deletes one record if it is at this version.
    ///
    /// # Errors
    ///
    /// `NotFound` when there is none; `Conflict` at another version; those of reaching the store.
    async fn delete(&self, key: &Key, version: &Version) -> Result<()>;

    /// Reads all records of these groups, in the order of their keys, and nothing of any other group.
    ///
    /// Each record is at least as new as the moment of the call; one answer may mix moments after that.
    ///
    /// # Errors
    ///
    /// Those of reaching the store. An empty group is an empty list.
    async fn list(&self, groups: &[Group]) -> Result<Vec<Record>>;

    /// Follows one group: a [`Change::Snapshot`] first, then every change.
    ///
    /// A change shows within a second or, without [`Capabilities::push_watch`], within the store's interval of polling.
    /// Changes of one record may be folded into the last of them. With `server_expiry` a record that ends by itself
    /// shows as [`Change::Removed`], and touches need not show; without it, every touch shows.
    ///
    /// The stream does not end. After an `Err` it heals itself, with a snapshot first, and so it does whenever it cannot
    /// prove that nothing was missed. Dropping it ends the following.
    fn watch(&self, group: &Group) -> BoxStream<'static, Result<Change>>;
}

/// Names a set of records that are listed and followed together: `namespace/kind` or `namespace/kind/scope`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group(Arc<str>);

/// Names one record: a name within a group.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The set that the record is listed with.
    pub group: Group,
    /// Its name there.
    pub name: Name,
}

/// A state of a record, opaque to everybody but its store.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(Arc<str>);

/// Tells whose put it was: drawn at random for every put, and the same when that put is sent again.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId(Arc<str>);

/// One record, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it is.
    pub key: Key,
    /// What the last put wrote.
    pub value: Arc<[u8]>,
    /// Its state.
    pub version: Version,
    /// Whose put it was.
    pub write: WriteId,
    /// How long it stays.
    pub life: Life,
}

/// How long a record stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a store has to handle each")]
pub enum Life {
    /// Until it is deleted.
    Durable,
    /// Until nobody touched it for `ttl`.
    Ephemeral {
        /// What a put or a touch gives it.
        ttl: Duration,
        /// What was left of it, by the store's clock, when the store answered; `None` where the store does not tell.
        left: Option<Duration>,
    },
}

/// A request to write one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// Where.
    pub key: Key,
    /// What.
    pub value: Arc<[u8]>,
    /// On which condition.
    pub expect: Expect,
    /// How long it stays.
    pub keep: Keep,
    /// Tells this put from all others.
    pub write: WriteId,
}

/// The condition of a [`Put`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a store has to handle each")]
pub enum Expect {
    /// There is no such record.
    Absent,
    /// The record is at this version.
    At(Version),
}

/// How long the record of a [`Put`] stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a store has to handle each")]
pub enum Keep {
    /// Until it is deleted.
    Durable,
    /// For this long after this put or a later touch.
    Ephemeral(Duration),
    /// As long as before; only with [`Expect::At`].
    Unchanged,
}

/// One step of [`Store::watch`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a follower has to handle each")]
pub enum Change {
    /// All records of the group; whatever is not in it is not there.
    Snapshot(Vec<Record>),
    /// This record was written or touched.
    Put(Record),
    /// The record of this name was deleted or has ended.
    Removed(Name),
}

impl Group {
    /// The group of all records of one kind.
    #[must_use]
    pub fn of(namespace: &Namespace, kind: &'static str) -> Self {
        Self(format!("{namespace}/{kind}").into())
    }

    /// The group of the records of one kind that belong to `scope`, such as the instances of a label.
    #[must_use]
    pub fn scoped(namespace: &Namespace, kind: &'static str, scope: &Name) -> Self {
        Self(format!("{namespace}/{kind}/{scope}").into())
    }

    /// The group as text: names and `/` between them.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The record of this name in this group.
    #[must_use]
    pub fn key(&self, name: impl Into<Name>) -> Key {
        Key { group: self.clone(), name: name.into() }
    }
}

impl Version {
    /// What a store makes of its own notion of a version.
    #[must_use]
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The version as its store made it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl WriteId {
    /// A write id that was never drawn before.
    #[must_use]
    pub fn draw(random: &Random) -> Self {
        Self(random.id().into())
    }

    /// One that the caller knows to be unique, or that was read back from the store.
    #[must_use]
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The write id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Record {
    /// Whether the store's clock says that this record's time is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.life, Life::Ephemeral { left: Some(Duration::ZERO), .. })
    }
}

macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    )*};
}

as_text!(Group, Version, WriteId);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.name)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}
