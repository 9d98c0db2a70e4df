//! The integration tests, as one program: a program for each file would take minutes to link, and gigabytes.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod ambiguity;
mod budget;
mod clocks;
mod common;
mod contract;
mod followers;
mod processes;
mod refusals;
mod stub;
