//! The round trips, requests and capacity units of `docs/backends/dynamodb.md`, counted at the wire.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::BoxFuture;
use servicekit_core::{
    Backend, Env, Namespace, State, discovery,
    lease::{Standing, Ticket},
    store::{Group, Limits, Store as _},
};
use servicekit_dynamo::Dynamo;
use servicekit_testkit::{
    budget::{EACH, NODES, crowd, fill, hand_over, label, pass, put_many, request},
    proxy::{Count, Proxy},
    server::{Call, DynamoDb},
};

use crate::common;

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
            let is_of_items = call.action.ends_with("Item") || call.action == "Query";
            assert!(
                call.status != 200 || !is_of_items || call.units > 0.0,
                "it told no units: {call:?}"
            );
            *actions.entry(call.action.clone()).or_default() += 1;
            match call.action.as_str() {
                "UpdateItem" | "DeleteItem" => writes += call.units,
                _ => reads += call.units,
            }
        }
        Self { count, reads, writes, actions }
    }

    /// No more than this, of which the page tells what it comes to in an hour.
    #[track_caller]
    fn units(&self, what: &str, reads: f64, writes: f64) {
        assert!(self.reads <= reads && self.writes <= writes, "{what}: {self:?}");
    }

    #[track_caller]
    fn within(&self, what: &str, round_trips: u64, requests: u64) {
        let Self { count, reads, writes, actions } = self;
        println!("{what}: {reads} read and {writes} write units; {actions:?}");
        count.assert_within(what, round_trips, requests);
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
    cost.units("leave", 1.0, 2.0);

    let (joined, cost) = counted.count(leases.join(&lease, &request("one"))).await;
    cost.within("join and grant, nobody there", 2, 3);
    cost.units("join and grant", 1.0, 2.0);
    let (ticket, standing) = joined.unwrap();
    assert!(matches!(standing, Standing::Granted(_)));
    let (renewed, cost) = counted.count(leases.renew(&ticket)).await;
    renewed.unwrap();
    cost.within("renew", 1, 1);
    cost.units("renew", 0.0, 1.0);
    leases.leave(&ticket).await.unwrap();

    // The head remembers sixteen grants: with names of a usual length it is more than a kilobyte then.
    let request = request("elasticsearch-node-17");
    for _ in 0..16 {
        let (ticket, _) = leases.join(&lease, &request).await.unwrap();
        leases.leave(&ticket).await.unwrap();
    }
    let (joined, cost) = counted.count(leases.join(&lease, &request)).await;
    cost.within("join and grant, after sixteen grants", 2, 3);
    cost.units("join and grant, after sixteen grants", 1.0, 3.0);
    let (left, cost) = counted.count(leases.leave(&joined.unwrap().0)).await;
    left.unwrap();
    cost.within("leave, after sixteen grants", 2, 3);
    cost.units("leave, after sixteen grants", 1.0, 3.0);
}

/// A lease that a hundred wait for, and its hand-over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_at_a_lease() {
    const WAITERS: usize = 100;
    const SECONDS: u64 = 10;

    let Some(counted) = Counted::start().await else { return };
    let (leases, lease) = (&counted.backend.leases, label("x"));
    let (ticket, mut waiting) = crowd(leases, &lease, WAITERS).await;
    pass(Duration::from_secs(5)).await;
    leases.renew(&ticket).await.unwrap();
    let ((), cost) = counted.count(pass(Duration::from_secs(SECONDS))).await;
    cost.within("100 waiters, ten seconds", u64::MAX, 40 * SECONDS);
    cost.units("100 waiters, ten seconds", 400.0, 0.0);
    println!("an hour: {} read units", cost.reads * 3600.0 / SECONDS as f64);

    leases.renew(&ticket).await.unwrap();
    let writes = |cost: &Cost| {
        let of = |action| cost.actions.get(action).copied().unwrap_or_default();
        (of("UpdateItem"), of("DeleteItem"))
    };
    let count = async |work: BoxFuture<'_, Ticket>| counted.count(work).await;
    let enough = |cost: &Cost| writes(cost) == (3, 1);
    let cost = hand_over(leases, ticket, &mut waiting, count, enough).await;
    cost.within("hand-over with 100 waiters", u64::MAX, u64::MAX);
    assert_eq!(writes(&cost), (3, 1), "updates and deletions for a hand-over");
}

/// Nobody follows the queue: only the join is counted.
#[tokio::test]
async fn a_join_that_waits() {
    let Some(counted) = Counted::start().await else { return };
    let (leases, lease) = (&counted.backend.leases, label("x"));
    for i in 0..=100 {
        leases.join(&lease, &request(&format!("w{i}"))).await.unwrap();
    }
    let (joined, cost) = counted.count(leases.join(&lease, &request("another"))).await;
    assert!(matches!(joined.unwrap().1, Standing::Waiting { ahead: 100, .. }));
    // One more where the name of the ticket was taken.
    cost.within("join behind 100 waiters", 6, 8);
    cost.units("join behind 100 waiters", 12.0, 5.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registry() {
    let Some(counted) = Counted::start().await else { return };
    let (registry, web) = (&counted.backend.registry, label("web"));
    let fleet = fill(registry, &web).await;
    let (session, instances) = &fleet[0];
    let (claim, instance) = &instances[0];

    let (beaten, cost) = counted.count(registry.beat(session)).await;
    beaten.unwrap();
    cost.within("a beat of a node with ten instances", 1, 1);
    cost.units("a beat", 0.0, 1.0);

    let (again, cost) = counted.count(registry.put(session, claim, instance)).await;
    again.unwrap();
    cost.within("an instance is put again as it is", 2, 2);
    cost.units("an instance is put again", 1.0, 1.0);

    let mut changed = instance.clone();
    changed.change(State::Down, "fall 2", "503", Env::system().clock.wall());
    let (put, cost) = counted.count(registry.put(session, claim, &changed)).await;
    put.unwrap();
    cost.within("an instance changes, and is marked", 3, 3);
    cost.units("an instance changes", 1.0, 2.0);

    for _ in 0..9 {
        changed.change(State::Up, "rise 2", "200 OK after 12 ms", Env::system().clock.wall());
        changed.change(
            State::Down,
            "fall 2",
            "503 Service Unavailable",
            Env::system().clock.wall(),
        );
    }
    let (put, cost) = counted.count(registry.put(session, claim, &changed)).await;
    put.unwrap();
    cost.within("an instance changes that has changed ten times", 3, 3);
    cost.units("an instance changes that has changed ten times", 1.0, 3.0);

    let (listed, cost) = counted.count(registry.list(&web)).await;
    assert_eq!(listed.unwrap().instances.len(), NODES * EACH);
    cost.within("list of 1,000 instances on 100 nodes", 1, 2);
    cost.units("list", 130.0, 0.0);

    let options = discovery::Options::labels([web.clone()]);
    let view = discovery::View::open(registry, options, Env::system());
    view.ready().await;
    pass(Duration::from_secs(1)).await;
    let idle = pass(Duration::from_secs(20));
    let ((), cost) = counted.count(idle).await;
    cost.within("an idle watcher, twenty seconds", u64::MAX, 26);
    cost.units("an idle watcher", 40.0, 0.0);
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
    let expected = put_many(&counted.dynamo, &group, RECORDS).await;
    let list = counted.dynamo.list(std::slice::from_ref(&group));
    let (listed, cost) = counted.count(list).await;
    cost.within("list of 3,000 records", 2, 2);
    let names: Vec<_> = listed.unwrap().iter().map(|record| record.key.name.to_string()).collect();
    assert_eq!(names, expected);
}
