//! The sidekick of a service: it asks the service whether it is well, and keeps its instance registered accordingly.
//!
//! - [`probe`]: asks over HTTP, over TCP, or by a command.
//! - [`Agent`]: probes any number of services, turns verdicts into states, and keeps every instance registered under one
//!   session, through outages of the store.

pub mod probe;

mod agent;
mod grants;
mod monitor;
mod node;
mod outage;
mod registration;
mod session;

pub use agent::{Agent, Options, Outcome, Report, Service};
