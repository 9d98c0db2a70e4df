//! Processes that contend for one lease and are killed, stopped for longer than their ttl, or cut off: no two may hold it at a
//! time. As many rounds as `SERVICEKIT_ROUNDS` says.

use servicekit_core::{Env, Namespace, store::Limits};
use servicekit_dynamo::Dynamo;
use servicekit_testkit::{processes, server};

use crate::common;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_die_stop_and_are_cut_off_never_hold_a_lease_together() {
    let Some(server) = server::DynamoDb::start() else { return };
    processes::contest(&server.endpoint(), str::to_owned, None).await;
}

/// Not a test by itself: what the other processes do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contend() {
    let Some(endpoint) = processes::address() else { return };
    let (env, limits) = (Env::system(), Limits::default());
    let dynamo = Dynamo::new(common::config(&endpoint), env.clone(), limits);
    let backend = servicekit_dynamo::backend(dynamo, Namespace::default(), env, limits);
    processes::contend(&backend.leases).await;
}
