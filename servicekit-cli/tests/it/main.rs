//! The integration tests, as one program: a program for each file would take minutes to link, and gigabytes.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod acquire_lease;
mod cert;
mod cert_consumers;
mod cert_crowd;
mod completions;
mod couchdb;
mod crowd;
mod doctor;
mod dynamodb;
mod etcd;
mod everyday;
mod evict_lease;
mod field;
mod formats;
mod full_disk;
mod harness;
mod help;
mod hosts;
mod hosts_exec;
mod identity;
mod kills;
mod leases;
mod man;
mod release_lease;
mod resize_lease;
mod services;
mod version;
mod watch;
mod why;
