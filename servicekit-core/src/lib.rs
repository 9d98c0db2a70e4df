//! The vocabulary of servicekit, the traits that a backend offers, and the one algorithm over any store.
//!
//! Read it in this order:
//!
//! - [`Label`], [`ServiceId`], [`Namespace`]: names, parsed once, at the edge.
//! - [`Registry`], [`LeaseProvider`], [`CertStore`]: what users hold, as `Arc<dyn …>`, in a [`Backend`].
//! - [`store::Store`]: what the author of a backend writes. [`Backend::over`] makes all of the above from it.
//! - [`lease::Guard`] and [`discovery::View`]: what most programs use.
//!
//! Time and randomness are injected through [`Env`], so that every promise can be tested.

pub mod address;
pub mod cert;
pub mod clock;
pub mod discovery;
pub mod health;
pub mod instance;
pub mod lease;
mod over;
pub mod registry;
pub mod store;

mod backend;
mod error;
mod name;
mod random;

pub use backend::{Backend, Capabilities, Doctor, Finding, Severity};
pub use cert::CertStore;
pub use clock::{Clock, Env, Instant, Timestamp};
pub use error::{Effect, Error, Kind, Result, Retry};
pub use instance::{Instance, State};
pub use lease::LeaseProvider;
pub use name::{Invalid, Label, Name, Namespace, ServiceId};
pub use random::Random;
pub use registry::Registry;
