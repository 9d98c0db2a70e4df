//! Core's one implementation of the public traits over any store.
