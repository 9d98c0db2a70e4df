//! servicekit on DynamoDB: the registry, leases and certificates of a whole fleet in one table, and no cluster to run.
//!
//! What it promises, how it lays out its items, which permissions it needs and what it costs is in
//! `docs/backends/dynamodb.md`.
//!
//! ```no_run
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! use servicekit_core::{Env, Namespace, store::Limits};
//! use servicekit_dynamo::{Config, Dynamo};
//! let config = Config::parse("//eu-central-1/servicekit")?;
//! let dynamo = Dynamo::new(config, Env::system(), Limits::default());
//! let backend = servicekit_dynamo::backend(dynamo, Namespace::default(), Env::system(), Limits::default());
//! assert!(backend.registry.labels().await?.is_empty());
//! # Ok::<_, servicekit_core::Error>(()) }).unwrap();
//! ```

mod config;
mod credentials;
mod doctor;
mod error;
mod mark;
mod records;
mod store;
mod table;
mod time;
mod watch;

use std::sync::Arc;

use servicekit_core::{Backend, Env, Namespace, store::Limits};

pub use config::Config;
pub use store::Dynamo;

/// Everything that servicekit needs, over one table, with a doctor that also examines it.
#[must_use]
pub fn backend(dynamo: Dynamo, namespace: Namespace, env: Env, limits: Limits) -> Backend {
    let over = Backend::over("dynamodb", Arc::new(dynamo.clone()), namespace, env, limits);
    Backend { doctor: Arc::new(doctor::TableDoctor::new(dynamo, over.doctor)), ..over }
}
