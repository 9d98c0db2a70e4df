//! The round trips and requests of `docs/backends/couchdb.md`, counted at the wire.

use std::time::Duration;

use futures_util::{StreamExt as _, future::BoxFuture};
use servicekit_core::{
    Backend, Env, Namespace, State, discovery,
    lease::{Standing, Ticket},
    store::{Group, Limits, Store as _},
};
use servicekit_couch::{Config, Couch};
use servicekit_testkit::{
    budget::{EACH, NODES, crowd, fill, hand_over, label, pass, put_many, request},
    proxy::{Count, Proxy},
    server::CouchDb,
};

struct Counted {
    proxy: Proxy,
    backend: Backend,
    couch: Couch,
    _server: CouchDb,
}

impl Counted {
    /// One process on a database of its own, connected already; `None` without a server.
    async fn start() -> Option<Self> {
        let server = CouchDb::start()?;
        let proxy = Proxy::start(&server.endpoint()).await;
        let limits = Limits { attempt: Duration::from_secs(20), total: Duration::from_secs(60) };
        let config = Config::parse(&server.database_at(&proxy.endpoint()), false).unwrap();
        let couch = Couch::new(config, Env::system(), limits).unwrap();
        couch.make_databases().await.unwrap();
        let backend =
            servicekit_couch::backend(couch.clone(), Namespace::default(), Env::system(), limits);
        Some(Self { proxy, backend, couch, _server: server })
    }

    /// What `work` sends.
    async fn count<T>(&self, work: impl Future<Output = T>) -> (T, Count) {
        let _ = self.proxy.take_count();
        let output = work.await;
        (output, self.proxy.take_count())
    }
}

#[tokio::test]
async fn leases() {
    let Some(counted) = Counted::start().await else { return };
    let (leases, lease) = (&counted.backend.leases, label("x"));
    let (ticket, _) = leases.join(&lease, &request("first")).await.unwrap();
    let (left, count) = counted.count(leases.leave(&ticket)).await;
    left.unwrap();
    count.assert_within("leave", 3, 3);

    let (joined, count) = counted.count(leases.join(&lease, &request("one"))).await;
    count.assert_within("join and grant, nobody there", 2, 3);
    let (ticket, standing) = joined.unwrap();
    assert!(matches!(standing, Standing::Granted(_)));
    for _ in 0..2 {
        let (renewed, count) = counted.count(leases.renew(&ticket)).await;
        renewed.unwrap();
        count.assert_within("renew", 1, 1);
    }
}

/// A lease that a hundred wait for, and its hand-over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_at_a_lease() {
    const WAITERS: usize = 100;

    let Some(counted) = Counted::start().await else { return };
    let (leases, lease) = (&counted.backend.leases, label("x"));
    let (ticket, mut waiting) = crowd(leases, &lease, WAITERS).await;
    pass(Duration::from_secs(5)).await;
    leases.renew(&ticket).await.unwrap();
    let ((), count) = counted.count(pass(Duration::from_secs(5))).await;
    count.assert_within("100 waiters, five seconds", u64::MAX, 0);

    let (joined, count) = counted.count(leases.join(&lease, &request("another"))).await;
    // One more where the name of the ticket was taken; and those who wait send nothing.
    count.assert_within("join behind 100 waiters", 6, 8);
    leases.leave(&joined.unwrap().0).await.unwrap();

    leases.renew(&ticket).await.unwrap();
    let count = async |work: BoxFuture<'_, Ticket>| counted.count(work).await;
    let enough = |count: &Count| count.requests <= 5;
    let last = hand_over(leases, ticket, &mut waiting, count, enough).await;
    // Three of them are the one's who leaves.
    last.assert_within("hand-over with 100 waiters", u64::MAX, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registry() {
    let Some(counted) = Counted::start().await else { return };
    let (registry, web) = (&counted.backend.registry, label("web"));
    let fleet = fill(registry, &web).await;
    let (session, instances) = &fleet[0];
    let (claim, instance) = &instances[0];

    let (beaten, count) = counted.count(registry.beat(session)).await;
    beaten.unwrap();
    count.assert_within("a beat of a node with ten instances", 1, 1);

    let mut changed = instance.clone();
    changed.change(State::Down, "fall 2", "503", Env::system().clock.wall());
    let (put, count) = counted.count(registry.put(session, claim, &changed)).await;
    put.unwrap();
    count.assert_within("an instance changes", 2, 2);

    let (listed, count) = counted.count(registry.list(&web)).await;
    assert_eq!(listed.unwrap().instances.len(), NODES * EACH);
    count.assert_within("list of 1,000 instances on 100 nodes", 1, 2);

    let options = discovery::Options::labels([web.clone()]);
    let view = discovery::View::open(registry, options, Env::system());
    view.ready().await;
    pass(Duration::from_secs(8)).await;
    let ((), count) = counted.count(pass(Duration::from_secs(20))).await;
    count.assert_within("an idle watcher, twenty seconds", u64::MAX, 0);
    let (list, count) = counted.count(async { view.list(&web).unwrap() }).await;
    assert_eq!(list.up.len(), NODES * EACH - 1);
    count.assert_within("a list from a view", 0, 0);
    let begun = Env::system().clock.now();
    registry.put(session, claim, instance).await.unwrap();
    while view.list(&web).unwrap().up.len() < NODES * EACH {
        pass(Duration::from_millis(2)).await;
        assert!(Env::system().clock.now().since(begun) < Duration::from_secs(10), "it never shows");
    }
    println!("a change showed within {:?}", Env::system().clock.now().since(begun));
}

/// Who follows the instances of a label hears of no beat, and who follows sessions of every one.
#[tokio::test]
async fn beats_wake_nobody_who_follows_a_label() {
    let Some(counted) = Counted::start().await else { return };
    let namespace = Namespace::default();
    let session = counted.backend.registry.open("n", Duration::from_secs(60)).await.unwrap();
    let follow = |group: &Group| counted.couch.watch(group);
    let mut instances = follow(&Group::scoped(&namespace, "instances", &(&label("web")).into()));
    let mut sessions = follow(&Group::of(&namespace, "sessions"));
    instances.next().await.unwrap().unwrap();
    sessions.next().await.unwrap().unwrap();
    for _ in 0..5 {
        counted.backend.registry.beat(&session).await.unwrap();
        sessions.next().await.unwrap().unwrap();
    }
    let env = Env::system();
    let heard =
        servicekit_core::clock::timeout(&*env.clock, Duration::from_secs(1), instances.next());
    assert!(heard.await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_list_comes_in_pages() {
    const RECORDS: usize = 3_000;

    let Some(counted) = Counted::start().await else { return };
    let group = Group::of(&Namespace::default(), "many");
    let expected = put_many(&counted.couch, &group, RECORDS).await;
    let list = counted.couch.list(std::slice::from_ref(&group));
    let (listed, count) = counted.count(list).await;
    count.assert_within("list of 3,000 records", 3, 3);
    let names: Vec<_> = listed.unwrap().iter().map(|record| record.key.name.to_string()).collect();
    assert_eq!(names, expected);
}
