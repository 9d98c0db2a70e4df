//! The integration tests, as one program: a program for each file would take minutes to link, and gigabytes.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod agent;
mod exec;
mod http;
mod support;
mod tcp;
mod world;
