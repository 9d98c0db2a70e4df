//! Hosts whose clocks are two hours apart, and a store whose clock is set: nobody is taken for dead who lives, nobody for alive
//! for long who is dead, and no lease changes hands for it.

use std::time::Duration;

use futures_util::StreamExt as _;
use servicekit_core::{
    Backend, Clock as _, Env, Instance, Label, Namespace, State,
    clock::{SystemClock, timeout},
    lease::{Request, Standing, Term},
    registry::{Claim, Session},
    store::Limits,
};
use servicekit_dynamo::Dynamo;
use servicekit_testkit::{hosts, server::DynamoDb};

use crate::common;

const TTL: Duration = Duration::from_secs(6);
const HOUR: i64 = 3_600_000;

/// A process on a host whose clock is so many milliseconds ahead.
fn process(server: &DynamoDb, ahead: i64) -> Backend {
    let env = hosts::ahead(&Env::system(), ahead);
    let dynamo = Dynamo::new(common::config(&server.endpoint()), env.clone(), Limits::default());
    servicekit_dynamo::backend(dynamo, Namespace::default(), env, Limits::default())
}

async fn pass(duration: Duration) {
    SystemClock.sleep(duration).await;
}

fn label() -> Label {
    "web".parse().unwrap()
}

async fn register(backend: &Backend, id: &str) -> Session {
    let session = backend.registry.open(id, TTL).await.unwrap();
    let now = SystemClock.wall();
    let mut instance = Instance::starting(label(), id.parse().unwrap(), "10.0.0.1", now);
    instance.change(State::Up, "rise 1", "200 OK", now);
    backend.registry.put(&session, &Claim::new(), &instance).await.unwrap();
    session
}

async fn up(backend: &Backend) -> Vec<String> {
    let snapshot = backend.registry.list(&label()).await.unwrap();
    snapshot.up().map(|instance| instance.service_id.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_clocks_of_hosts_change_nothing_in_the_registry() {
    let Some(server) = DynamoDb::start() else { return };
    server.set_ahead(-HOUR / 2);
    let (late, early) = (process(&server, HOUR), process(&server, -HOUR));
    dynamo_is_made(&server).await;
    let sessions = [register(&late, "late").await, register(&early, "early").await];
    for _ in 0..5 {
        pass(TTL / 3).await;
        late.registry.beat(&sessions[0]).await.unwrap();
        early.registry.beat(&sessions[1]).await.unwrap();
        for reader in [&late, &early, &process(&server, 5 * HOUR)] {
            assert_eq!(up(reader).await, ["early", "late"]);
        }
    }
    // One dies.
    for _ in 0..4 {
        pass(TTL / 3).await;
        late.registry.beat(&sessions[0]).await.unwrap();
    }
    for reader in [&late, &early] {
        let begun = SystemClock.now();
        while up(reader).await != ["late"] {
            assert!(SystemClock.now().since(begun) < TTL * 2, "the dead is still up");
            late.registry.beat(&sessions[0]).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_clocks_change_nothing_in_who_holds_a_lease() {
    let Some(server) = DynamoDb::start() else { return };
    dynamo_is_made(&server).await;
    let (late, early) = (process(&server, HOUR), process(&server, -HOUR));
    let request = |holder: &str| Request {
        holder: holder.parse().unwrap(),
        term: Term::Attended { ttl: TTL },
        slots: 1,
        wait: Some(Duration::from_secs(600)),
        note: String::new(),
    };
    let (held, standing) = early.leases.join(&label(), &request("early")).await.unwrap();
    let Standing::Granted(first) = standing else { panic!("{standing:?}") };
    let (waits, standing) = late.leases.join(&label(), &request("late")).await.unwrap();
    assert!(matches!(standing, Standing::Waiting { .. }), "{standing:?}");
    let mut standings = late.leases.wait(&waits);
    let mut next = async || loop {
        match standings.next().await {
            Some(Ok(Standing::Granted(granted))) => return granted,
            Some(Ok(Standing::Waiting { .. }) | Err(_)) => {}
            other => panic!("it is {other:?}"),
        }
    };
    for i in 0..8 {
        // The store's clock is set, too; by less than who waits may be silent.
        server.set_ahead([0, HOUR / 30, -HOUR / 30][i % 3]);
        let granted = timeout(&SystemClock, TTL / 3, Box::pin(next())).await;
        assert!(granted.is_err(), "granted while it is held");
        early.leases.renew(&held).await.unwrap();
    }
    let renewed = SystemClock.now();
    let granted = timeout(&SystemClock, TTL * 4, Box::pin(next())).await.expect("a grant");
    let after = SystemClock.now().since(renewed);
    assert!(after >= TTL, "granted {after:?} after the last renewal");
    // Hours behind, and higher nevertheless.
    assert!(granted.token > first.token);
    let error = early.leases.renew(&held).await.unwrap_err();
    assert_eq!(error.kind(), servicekit_core::Kind::Lost, "{error:?}");
}

/// A store's clock that is set forward ends sessions for as long as it takes until their next beat.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_whose_clock_is_set_shows_everybody_again_after_a_beat() {
    let Some(server) = DynamoDb::start() else { return };
    dynamo_is_made(&server).await;
    let (node, reader) = (process(&server, 0), process(&server, 0));
    let session = register(&node, "one").await;
    for ahead in [HOUR, -HOUR, 0] {
        server.set_ahead(ahead);
        // Two answers, so that a clock that was set is known by now.
        node.registry.beat(&session).await.unwrap();
        node.registry.beat(&session).await.unwrap();
        assert_eq!(up(&reader).await, ["one"], "{ahead}");
    }
}

async fn dynamo_is_made(server: &DynamoDb) {
    let config = common::config(&server.endpoint());
    Dynamo::new(config, Env::system(), Limits::default()).make_table().await.unwrap();
}
