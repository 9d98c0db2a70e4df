//! The round trips, requests and capacity units of `docs/backends/dynamodb.md`, counted at the wire.

#![allow(clippy::unwrap_used, reason = "all of it is tests")]

mod common;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::join_all, stream::BoxStream};
use servicekit_core::{
    Backend, Env, Instance, Label, Name, Namespace, Result, State, discovery,
    lease::{Granted, Request, Standing, Term},
    registry::{Claim, Session},
    store::{Expect, Group, Keep, Limits, Put, Store as _, WriteId},
};
use servicekit_dynamo::Dynamo;
use servicekit_testkit::{
    proxy::{Count, Proxy},
    server::{Call, DynamoDb},
};

struct Counted {
    proxy: Proxy,
    backend: Backend,
    dynamo: Dynamo,
    server: DynamoDb,
}

impl Counted {
    /// One process on a server of its own, connected already; `None` without a server.
    async fn start() -> Option<Self> {
        let server = DynamoDb::start()?;
        let proxy = Proxy::start(&server.endpoint()).await;
        let limits = Limits { attempt: Duration::from_secs(20), total: Duration::from_secs(60) };
        let dynamo = Dynamo::new(common::config(&proxy.endpoint()), Env::system(), limits);
        dynamo.make_table().await.unwrap();
        let namespace = Namespace::default();
        let backend =
            servicekit_dynamo::backend(dynamo.clone(), namespace, Env::system(), Limits::default());
        backend.registry.labels().await.unwrap();
        Some(Self { proxy, backend, dynamo, server })
    }

    /// What `work` sends, and what that costs.
    async fn count<T>(&self, work: impl Future<Output = T>) -> (T, Cost) {
        let _ = (self.proxy.take_count(), self.server.take_calls());
        let output = work.await;
        let count = self.proxy.take_count();
        (output, Cost::of(count, &self.server.take_calls()))
    }
}

/// What some work took.
#[derive(Debug)]
struct Cost {
    count: Count,
    reads: f64,
    writes: f64,
    actions: BTreeMap<String, usize>,
}

impl Cost {
    fn of(count: Count, calls: &[Call]) -> Self {
        let (mut reads, mut writes, mut actions) = (0.0, 0.0, BTreeMap::new());
        for call in calls {
            *actions.entry(call.action.clone()).or_default() += 1;
            match call.action.as_str() {
                "UpdateItem" | "DeleteItem" => writes += call.units,
                _ => reads += call.units,
            }
        }
        Self { count, reads, writes, actions }
    }

    #[track_caller]
    fn within(&self, what: &str, round_trips: u64, requests: u64) {
        let Self { count, reads, writes, actions } = self;
        println!(
            "{what}: {} / {}; {reads} read and {writes} write units; {actions:?}",
            count.round_trips, count.requests
        );
        assert!(
            count.round_trips <= round_trips && count.requests <= requests,
            "{what}: {count:?}, budget {round_trips} / {requests}"
        );
    }
}

async fn pass(duration: Duration) {
    Env::system().clock.sleep(duration).await;
}

async fn granted(mut standings: BoxStream<'static, Result<Standing>>) -> Granted {
    loop {
        if let Some(Ok(Standing::Granted(granted))) = standings.next().await {
            return granted;
        }
    }
}

fn label(text: &str) -> Label {
    text.parse().unwrap()
}

fn request(holder: &str) -> Request {
    Request {
        holder: holder.parse().unwrap(),
        term: Term::Attended { ttl: Duration::from_secs(30) },
        slots: 1,
        wait: Some(Duration::from_secs(600)),
        note: String::new(),
    }
}

#[tokio::test]
async fn leases() {
    let Some(counted) = Counted::start().await else { return };
    let (leases, lease) = (&counted.backend.leases, label("x"));
    let (ticket, _) = leases.join(&lease, &request("first")).await.unwrap();
    let (left, cost) = counted.count(leases.leave(&ticket)).await;
    left.unwrap();
    cost.within("leave", 2, 3);

    let (joined, cost) = counted.count(leases.join(&lease, &request("one"))).await;
    cost.within("join and grant, nobody there", 2, 3);
    let (ticket, standing) = joined.unwrap();
    assert!(matches!(standing, Standing::Granted(_)));
    let (renewed, cost) = counted.count(leases.renew(&ticket)).await;
    renewed.unwrap();
    cost.within("renew", 1, 1);
    assert!(cost.writes <= 1.0, "{cost:?}");
}

/// A lease that a hundred wait for, and its hand-over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_at_a_lease() {
    const WAITERS: usize = 100;
    const SECONDS: u64 = 10;

    let Some(counted) = Counted::start().await else { return };
    let (leases, lease) = (&counted.backend.leases, label("x"));
    let (ticket, _) = leases.join(&lease, &request("one")).await.unwrap();
    let mut waiting = Vec::new();
    for i in 0..WAITERS {
        let (waiter, standing) = leases.join(&lease, &request(&format!("w{i}"))).await.unwrap();
        assert!(matches!(standing, Standing::Waiting { .. }), "{standing:?}");
        waiting.push(tokio::spawn(granted(leases.wait(&waiter))));
        if i % 10 == 0 {
            leases.renew(&ticket).await.unwrap();
        }
    }
    pass(Duration::from_secs(5)).await;
    leases.renew(&ticket).await.unwrap();
    let ((), cost) = counted.count(pass(Duration::from_secs(SECONDS))).await;
    cost.within("100 waiters, ten seconds", u64::MAX, 40 * SECONDS);
    assert!(cost.writes.abs() < f64::EPSILON, "{cost:?}");
    println!("an hour: {} read units", cost.reads * 3600.0 / SECONDS as f64);

    leases.renew(&ticket).await.unwrap();
    let begun = Env::system().clock.now();
    let hand_over = async {
        leases.leave(&ticket).await.unwrap();
        waiting.remove(0).await.unwrap()
    };
    let (granted, cost) = counted.count(hand_over).await;
    println!("handed over within {:?}", Env::system().clock.now().since(begun));
    cost.within("hand-over with 100 waiters", u64::MAX, u64::MAX);
    assert_eq!((cost.actions["UpdateItem"], cost.actions["DeleteItem"]), (3, 1), "{cost:?}");
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()), "one slot, one grant");
    assert!(granted.token.0 > 0);
}

const NODES: usize = 100;
const EACH: usize = 10;
/// That of `--detect-within 15s`.
const TTL: Duration = Duration::from_secs(12);

async fn fill(backend: &Backend) -> Vec<(Session, Vec<(Claim, Instance)>)> {
    let registry = &backend.registry;
    let now = Env::system().clock.wall();
    let mut sessions = Vec::new();
    for node in 0..NODES {
        let session = registry.open(&format!("n{node}"), TTL * 50).await.unwrap();
        let instances = join_all((0..EACH).map(|i| {
            let session = &session;
            async move {
                let id = format!("web-{node}-{i}").parse().unwrap();
                let mut instance = Instance::starting(label("web"), id, "10.0.0.1", now);
                instance.change(State::Up, "rise 1", "200 OK", now);
                let claim = Claim::new();
                registry.put(session, &claim, &instance).await.unwrap();
                (claim, instance)
            }
        }));
        let instances = instances.await;
        sessions.push((session, instances));
    }
    sessions
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registry() {
    let Some(counted) = Counted::start().await else { return };
    let (registry, web) = (&counted.backend.registry, label("web"));
    let fleet = fill(&counted.backend).await;
    let (session, instances) = &fleet[0];
    let (claim, instance) = &instances[0];

    let (beaten, cost) = counted.count(registry.beat(session)).await;
    beaten.unwrap();
    cost.within("a beat of a node with ten instances", 1, 1);
    assert!((cost.writes - 1.0).abs() < f64::EPSILON, "{cost:?}");

    let (again, cost) = counted.count(registry.put(session, claim, instance)).await;
    again.unwrap();
    cost.within("an instance is put again as it is", 2, 2);

    let mut changed = instance.clone();
    changed.change(State::Down, "fall 2", "503", Env::system().clock.wall());
    let (put, cost) = counted.count(registry.put(session, claim, &changed)).await;
    put.unwrap();
    cost.within("an instance changes, and is marked", 3, 3);

    let (listed, cost) = counted.count(registry.list(&web)).await;
    assert_eq!(listed.unwrap().instances.len(), NODES * EACH);
    cost.within("list of 1,000 instances on 100 nodes", 1, 2);

    let options = discovery::Options::labels([web.clone()]);
    let view = discovery::View::open(registry, options, Env::system());
    view.ready().await;
    pass(Duration::from_secs(1)).await;
    let idle = pass(Duration::from_secs(20));
    let ((), cost) = counted.count(idle).await;
    cost.within("an idle watcher, twenty seconds", u64::MAX, 26);
    println!("an hour: {} read units", cost.reads * 180.0);
    let (list, cost) = counted.count(async { view.list(&web).unwrap() }).await;
    assert_eq!(list.up.len(), NODES * EACH - 1);
    assert!(cost.count.requests <= 1, "a list from a view sends nothing: {cost:?}");
    // A change shows at the next look.
    let begun = Env::system().clock.now();
    registry.put(session, claim, instance).await.unwrap();
    while view.list(&web).unwrap().up.len() < NODES * EACH {
        pass(Duration::from_millis(20)).await;
        assert!(Env::system().clock.now().since(begun) < Duration::from_secs(10), "it never shows");
    }
    println!("a change showed within {:?}", Env::system().clock.now().since(begun));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_list_comes_in_pages() {
    const RECORDS: usize = 3_000;

    let Some(counted) = Counted::start().await else { return };
    let group = Group::of(&Namespace::default(), "many");
    let numbers: Vec<_> = (0..RECORDS).collect();
    for numbers in numbers.chunks(50) {
        let puts = numbers.iter().map(|number| {
            let put = Put {
                key: group.key(format!("r-{number:05}").parse::<Name>().unwrap()),
                value: Arc::from("x".repeat(500).into_bytes()),
                expect: Expect::Absent,
                keep: Keep::Durable,
                write: WriteId::new(format!("w-{number}")),
            };
            let dynamo = counted.dynamo.clone();
            async move { dynamo.put(&put).await.unwrap() }
        });
        join_all(puts).await;
    }
    let list = counted.dynamo.list(std::slice::from_ref(&group));
    let (listed, cost) = counted.count(list).await;
    cost.within("list of 3,000 records", 2, 2);
    let names: Vec<_> = listed.unwrap().iter().map(|record| record.key.name.to_string()).collect();
    let expected: Vec<_> = numbers.iter().map(|number| format!("r-{number:05}")).collect();
    assert_eq!(names, expected);
}
