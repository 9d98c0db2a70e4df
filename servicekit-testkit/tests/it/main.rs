//! The integration tests, as one program: a program for each file would take minutes to link, and gigabytes.

mod coverage;
mod crowd;
mod fault;
mod faults;
mod mutants;
mod throttling;
