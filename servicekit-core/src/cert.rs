//! The certificates' store: sealed bytes under a name, changed only by condition.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use crate::{
    Capabilities, Name, Result,
    store::{Expect, Version},
};

/// Keeps sealed bytes. It never sees anything else.
#[async_trait]
pub trait CertStore: fmt::Debug + Send + Sync + 'static {
    /// What the store behind it can promise.
    fn capabilities(&self) -> Capabilities;

    /// Reads what is stored under `name`.
    ///
    /// # Errors
    ///
    /// Those of reaching the store. Nothing there is `None`.
    async fn get(&self, name: &Name) -> Result<Option<Sealed>>;

    /// Stores `bytes` under `name` if the condition holds, and returns the new version.
    ///
    /// There is no unconditional put: who writes has read, or knows that there was nothing.
    ///
    /// # Errors
    ///
    /// `Conflict` when the condition does not hold. After an error with retry `Unknown`, read, and put again on the
    /// condition of what was read: that settles it.
    async fn put(&self, name: &Name, bytes: &[u8], expect: Expect) -> Result<Version>;

    /// The names that begin with `prefix`, in order.
    ///
    /// # Errors
    ///
    /// Those of reaching the store.
    async fn list(&self, prefix: &str) -> Result<Vec<Name>>;

    /// Deletes what is stored under `name`, if it is at this version.
    ///
    /// # Errors
    ///
    /// `NotFound` and `Conflict`, as for a record.
    async fn delete(&self, name: &Name, version: &Version) -> Result<()>;

    /// What is stored under `name`, now and after each change; `None` while there is nothing.
    ///
    /// It heals itself after an `Err` and does not end.
    fn watch(&self, name: &Name) -> BoxStream<'static, Result<Option<Sealed>>>;
}

/// Sealed bytes, and the version to put the next on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "stores of other crates make them")]
pub struct Sealed {
    /// What was stored.
    pub bytes: Arc<[u8]>,
    /// Its version.
    pub version: Version,
}
