//! Discovery and leases for plain hosts, on the store that is already there.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let backend = servicekit::connect("memory:").await?;
//! let web = backend.registry.list(&"web".parse()?).await?;
//! assert_eq!(web.up().count(), 0);
//! # Ok::<(), servicekit::Error>(()) }).unwrap();
//! ```
//!
//! - [`connect()`] makes a [`Backend`] from the address of a store; a [`Connector`] also knows schemes of your own.
//! - [`Registry`], [`LeaseProvider`] and [`CertStore`] are what a backend consists of.
//! - [`lease::Guard`] keeps a lease, [`discovery::View`] keeps a list of who is up.
//! - [`agent`] probes services and keeps them registered.
//! - [`pki`] issues certificates, and [`identity()`] finds the key that seals them.
//!
//! Each backend is a feature of this crate; `local`, the embedded one, is on by default.

pub mod connect;
mod identity;

pub use connect::{Connector, connect};
pub use identity::{identity, identity_file};
pub use servicekit_agent as agent;
pub use servicekit_core::{
    Backend, Capabilities, CertStore, Clock, Doctor, Env, Error, Finding, Instance, Instant,
    Invalid, Kind, Label, LeaseProvider, Name, Namespace, Random, Registry, Result, Retry,
    ServiceId, Severity, State, Timestamp, cert, clock, discovery, health, instance, lease,
    registry, store,
};
pub use servicekit_pki as pki;
