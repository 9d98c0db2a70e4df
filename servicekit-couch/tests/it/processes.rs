//! Processes that contend for one lease and are killed, stopped for longer than their ttl, or cut off, while the server is
//! killed and started again with its data: no two may hold it at a time. As many rounds as `SERVICEKIT_ROUNDS` says.

use servicekit_core::{Env, Namespace, store::Limits};
use servicekit_couch::{Config, Couch};
use servicekit_testkit::{processes, server};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_die_stop_and_are_cut_off_never_hold_a_lease_together() {
    let Some(mut server) = server::CouchDb::start() else { return };
    if server.is_real() {
        server::skipped("restarts of a server that others may use");
    }
    let endpoint = server.endpoint();
    let address = server.database_at(&endpoint);
    let through = |proxy: &str| address.replace(&endpoint, proxy);
    processes::contest(&endpoint, through, server.own()).await;
}

/// Not a test by itself: what the other processes do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contend() {
    let Some(address) = processes::address() else { return };
    let (env, limits) = (Env::system(), Limits::default());
    let config = Config::parse(&address, false).unwrap();
    let couch = Couch::new(config, env.clone(), limits).unwrap();
    let backend = servicekit_couch::backend(couch, Namespace::default(), env, limits);
    processes::contend(&backend.leases).await;
}
