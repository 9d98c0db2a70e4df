//! The integration tests, as one program: a program for each file would take minutes to link, and gigabytes.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod common;
mod contract;
mod failures;
mod faults;
mod opening;
mod processes;
mod refusals;
