//! The conformance suite on real clusters: one server; three with TLS and users; and one behind a network that fails.

#![allow(clippy::unwrap_used, reason = "all of it is tests")]

mod common;

use std::{future::Future, process::ExitCode, sync::Arc, time::Duration};

use etcd_client::Client;
use servicekit_core::{
    Env, Random,
    store::{Limits, Reliable},
};
use servicekit_etcd::{Config, Etcd};
use servicekit_testkit::{
    proxy::{Mode, Proxy},
    server,
    suite::{self, Fresh, Subject, Time},
};
use tokio::runtime::Runtime;

/// What does not hold where connections break in the middle, and why.
const EXCEPTIONS: &[(&str, &str)] = &[
    (
        "store::no_increment_is_lost",
        "a put whose answer was lost may be told as a conflict, and is counted twice",
    ),
    ("store::a_put_sent_twice_is_applied_once", "it is sent again by the wrapper, too"),
    ("registry::a_beat_wakes_no_follower", "a connection that breaks does"),
    (
        "registry::instances_of_others_are_passed_over",
        "what changes during a failure comes with a snapshot",
    ),
    (
        "registry::a_follower_sees_who_is_lost",
        "who saw a failure declares nobody lost for a ttl, again and again",
    ),
    (
        "registry::a_removal_that_comes_with_a_loss_is_seen",
        "who saw a failure declares nobody lost for a ttl",
    ),
    (
        "registry::after_an_outage_nobody_is_lost_who_beats_again_within_its_ttl",
        "who saw a failure declares nobody lost for a ttl",
    ),
    ("leases::waiters_send_nothing_while_others_hold", "who saw a failure reads again"),
    ("leases::a_freed_slot_wakes_one_waiter_however_many_wait", "who saw a failure reads again"),
];

fn main() -> ExitCode {
    // The connections of a cluster's administrator and the proxies live here, longer than any case.
    let runtime = Runtime::new().expect("a runtime can be built");
    let subjects = [
        runtime.block_on(one_node()),
        runtime.block_on(three_nodes()),
        runtime.block_on(failing_network()),
    ];
    suite::main_of(subjects.into_iter().flatten())
}

async fn one_node() -> Option<Subject> {
    let server = server::Etcd::start()?;
    let address = format!("//{}", server.endpoints());
    Some(subject("one-node", address, false, server, |etcd, _| Fresh::new(etcd)))
}

async fn three_nodes() -> Option<Subject> {
    let pki = common::Pki::new();
    let cluster = server::Etcd::start_cluster(3, Some(&pki.server()))?;
    let endpoints = cluster.endpoints();
    let all: Vec<_> = endpoints.split(',').collect();
    common::add_users(&Client::connect(all, Some(pki.options())).await.unwrap()).await;
    let address = format!("//agent:hush@{endpoints}?{}", pki.parameters());
    let keep = (cluster, pki);
    Some(subject("three-nodes-tls-users", address, true, keep, |etcd, _| Fresh::new(etcd)))
}

async fn failing_network() -> Option<Subject> {
    let server = server::Etcd::start()?;
    let proxy = Arc::new(Proxy::start(&server.endpoints()).await);
    let address = format!("//{}", proxy.endpoint());
    tokio::spawn(fail_now_and_then(proxy));
    // With the wrapper that everybody has: without it, cases would be told of every failure.
    let open =
        |etcd, env| Fresh::new(Reliable::new("etcd", Arc::new(etcd), env, Limits::default()));
    let subject = subject("failing-network", address, false, server, open);
    Some(subject.with_ttl(Duration::from_secs(5)).except(EXCEPTIONS))
}

fn subject(
    name: &'static str,
    address: String,
    encrypted: bool,
    keep: impl Send + Sync + 'static,
    fresh: fn(Etcd, Env) -> Fresh,
) -> Subject {
    let keep = Arc::new(keep);
    Subject::new(name, Time::Real, move |env| {
        let config = Config::parse(&address, encrypted);
        let opened = config.and_then(|config| Etcd::new(config, env.clone(), Limits::default()));
        let keep = keep.clone();
        async move { Ok(fresh(opened?, env).keeping(keep)) }
    })
}

/// Anything may happen to a connection, for some moments, and then it is well for a while.
fn fail_now_and_then(proxy: Arc<Proxy>) -> impl Future<Output = ()> {
    let env = Env::system();
    let seed = env.random.below(1 << 32);
    println!("network failures of seed {seed}");
    let random = Random::seeded(seed);
    let faults = [
        Mode::Delay(Duration::from_millis(30)),
        Mode::Drip(Duration::from_millis(1)),
        Mode::Silence,
        Mode::LoseAnswers,
        Mode::Cut,
    ];
    async move {
        loop {
            env.clock.sleep(Duration::from_millis(500 + random.below(1500))).await;
            let fault = faults[usize::try_from(random.below(5)).unwrap_or(0)];
            proxy.set(fault);
            env.clock.sleep(Duration::from_millis(10 + random.below(100))).await;
            if fault == Mode::LoseAnswers {
                // What is missing in the middle of a stream is never made good; a network would not let it go on either.
                proxy.set(Mode::Cut);
                env.clock.sleep(Duration::from_millis(5)).await;
            }
            proxy.set(Mode::Pass);
        }
    }
}
