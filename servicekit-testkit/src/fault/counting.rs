use std::{
    ops::Sub,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use servicekit_core::{
    Capabilities, Result,
    store::{Change, Group, Key, Put, Record, Store, Version, WriteId},
};

/// Counts what is asked of the store behind it. Clones share the counts.
#[derive(Clone, Debug)]
pub struct Counting {
    store: Arc<dyn Store>,
    counts: Arc<Mutex<Counts>>,
}

/// How many requests of each kind there were; a stream of changes counts once, when it begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named after its request")]
#[expect(clippy::exhaustive_structs, reason = "compared by tests")]
pub struct Counts {
    pub get: u64,
    pub put: u64,
    pub touch: u64,
    pub delete: u64,
    pub list: u64,
    pub watch: u64,
}

impl Counting {
    /// Counts from zero.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, counts: Arc::default() }
    }

    /// How many requests there were until now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, request: impl FnOnce(&mut Counts) -> &mut u64) {
        *request(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner)) += 1;
    }
}

impl Counts {
    /// All together.
    #[must_use]
    pub fn sum(&self) -> u64 {
        let Self { get, put, touch, delete, list, watch } = self;
        get + put + touch + delete + list + watch
    }
}

/// What was asked since an earlier count.
impl Sub for Counts {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            get: self.get - earlier.get,
            put: self.put - earlier.put,
            touch: self.touch - earlier.touch,
            delete: self.delete - earlier.delete,
            list: self.list - earlier.list,
            watch: self.watch - earlier.watch,
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Store for Counting {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        self.count(|counts| &mut counts.get);
        self.store.get(key).await
    }

    async fn put(&self, put: &Put) -> Result<Version> {
        self.count(|counts| &mut counts.put);
        self.store.put(put).await
    }

    async fn touch(&self, key: &Key, write: &WriteId) -> Result<Version> {
        self.count(|counts| &mut counts.touch);
        self.store.touch(key, write).await
    }

    async fn delete(&self, key: &Key, version: &Version) -> Result<()> {
        self.count(|counts| &mut counts.delete);
        self.store.delete(key, version).await
    }

    async fn list(&self, groups: &[Group]) -> Result<Vec<Record>> {
        self.count(|counts| &mut counts.list);
        self.store.list(groups).await
    }

    fn watch(&self, group: &Group) -> BoxStream<'static, Result<Change>> {
        self.count(|counts| &mut counts.watch);
        self.store.watch(group)
    }
}
