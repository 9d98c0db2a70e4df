//! Proves that a store keeps the promises of servicekit: one suite, with faults injected, under simulated time.
//!
//! - [`suite`]: every promise of the store, the registry, the leases and the certificates, as a named case. [`suite::main`]
//!   is all that a store's author needs.
//! - [`fault`]: a store that fails as real ones do, repeatably from a seed, and one that counts requests.
//! - [`sim`]: a runtime whose time passes as fast as it can, with clocks that jump.
//! - [`hosts`]: hosts whose clocks are apart.
//! - [`proxy`]: a network that fails, between a client and a real server.
//! - [`server`]: real servers, for the time of a test.
//! - [`processes`]: processes that contend for a lease on a real server, while things are done to them.
//! - [`budget`]: what there is to count for budgets of requests.
//! - [`history`]: what happened to a lease, and whether that may have happened.

pub mod budget;
pub mod fault;
pub mod history;
pub mod hosts;
pub mod processes;
pub mod proxy;
pub mod server;
pub mod sim;
pub mod suite;
