//! servicekit on etcd: the registry, leases and certificates of a whole fleet in the cluster that is already there.
//!
//! What it promises, how it lays out its keys, and which permissions it needs is in `docs/backends/etcd.md`.
//!
//! ```no_run
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! use servicekit_core::{Env, Namespace, store::Limits};
//! use servicekit_etcd::{Config, Etcd};
//! let config = Config::parse("//10.0.0.1:2379,10.0.0.2:2379/servicekit", false)?;
//! let etcd = Etcd::new(config, Env::system(), Limits::default())?;
//! let backend = servicekit_etcd::backend(etcd, Namespace::default(), Env::system(), Limits::default());
//! assert!(backend.registry.labels().await?.is_empty());
//! # Ok::<_, servicekit_core::Error>(()) }).unwrap();
//! ```

mod cluster;
mod config;
mod doctor;
mod error;
mod records;
mod store;
mod watch;

use std::sync::Arc;

use servicekit_core::{Backend, Env, Namespace, store::Limits};

pub use config::{Config, Tls};
pub use store::Etcd;

/// Everything that servicekit needs, over one cluster, with a doctor that also examines its members.
#[must_use]
pub fn backend(etcd: Etcd, namespace: Namespace, env: Env, limits: Limits) -> Backend {
    let over = Backend::over("etcd", Arc::new(etcd.clone()), namespace, env, limits);
    Backend { doctor: Arc::new(doctor::ClusterDoctor::new(etcd, over.doctor)), ..over }
}
