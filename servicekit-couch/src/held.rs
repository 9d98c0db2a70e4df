//! What this process put: CouchDB replaces whole documents, so that a touch writes the value again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use servicekit_core::store::{Key, WriteId};

/// So many records are remembered, and then all are forgotten.
const MOST: usize = 10_000;

/// The ephemeral records that were put or touched here.
#[derive(Default)]
pub(crate) struct AllHeld(Mutex<HashMap<Key, Held>>);

/// One of them, as it was when CouchDB last answered.
pub(crate) struct Held {
    pub(crate) rev: String,
    pub(crate) write: WriteId,
    pub(crate) value: Arc<[u8]>,
    pub(crate) ttl: u64,
}

impl AllHeld {
    pub(crate) fn keep(&self, key: &Key, record: Held) {
        let mut all = self.lock();
        if all.len() >= MOST {
            all.clear();
        }
        all.insert(key.clone(), record);
    }

    pub(crate) fn take(&self, key: &Key) -> Option<Held> {
        self.lock().remove(key)
    }

    pub(crate) fn forget(&self, key: &Key) {
        drop(self.take(key));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
