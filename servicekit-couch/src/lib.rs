//! servicekit on CouchDB: the registry, leases and certificates in one database, for those whose store is CouchDB.
//!
//! What it promises, how it lays out its documents, and what a cluster of CouchDB loses is in `docs/backends/couchdb.md`.
//!
//! It speaks HTTP through `reqwest`, and not through `couch_rs`: why is said in `http.rs`, the one file that does.
//!
//! ```no_run
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! use servicekit_core::{Env, Namespace, store::Limits};
//! use servicekit_couch::{Config, Couch};
//! let config = Config::parse("//localhost/servicekit", false)?;
//! let couch = Couch::new(config, Env::system(), Limits::default())?;
//! let backend = servicekit_couch::backend(couch, Namespace::default(), Env::system(), Limits::default());
//! assert!(backend.registry.labels().await?.is_empty());
//! # Ok::<_, servicekit_core::Error>(()) }).unwrap();
//! ```

mod config;
mod database;
mod doctor;
mod error;
mod held;
mod http;
mod read;
mod records;
mod setup;
mod store;
mod watch;

use std::sync::Arc;

use servicekit_core::{Backend, Env, Namespace, store::Limits};

pub use config::Config;
pub use store::Couch;

/// Everything that servicekit needs, over one database, with a doctor that also examines it.
#[must_use]
pub fn backend(couch: Couch, namespace: Namespace, env: Env, limits: Limits) -> Backend {
    let over = Backend::over("couchdb", Arc::new(couch.clone()), namespace, env, limits);
    Backend { doctor: Arc::new(doctor::DatabaseDoctor::new(couch, over.doctor)), ..over }
}
