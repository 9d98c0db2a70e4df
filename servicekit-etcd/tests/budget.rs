//! The round trips and requests of `docs/backends/etcd.md`, counted at the wire.

#![allow(clippy::unwrap_used, reason = "all of it is tests")]

use std::time::Duration;

use futures_util::{StreamExt as _, future::join_all, stream::BoxStream};
use servicekit_core::{
    Backend, Env, Instance, Label, Name, Namespace, Result, State, discovery,
    lease::{Granted, Request, Standing, Term},
    registry::Claim,
    store::{Expect, Group, Keep, Limits, Put, Store as _, WriteId},
};
use servicekit_etcd::{Config, Etcd};
use servicekit_testkit::{
    proxy::{Count, Proxy},
    server,
};

struct Counted {
    proxy: Proxy,
    backend: Backend,
    _server: server::Etcd,
}

impl Counted {
    /// One process on a server of its own, connected already; `None` without etcd.
    async fn start() -> Option<Self> {
        let server = server::Etcd::start()?;
        let proxy = Proxy::start(&server.endpoints()).await;
        let backend = connect(&proxy.endpoint());
        backend.registry.labels().await.unwrap();
        Some(Self { proxy, backend, _server: server })
    }

    /// What `work` sends.
    async fn count<T>(&self, work: impl Future<Output = T>) -> (T, Count) {
        // What was sent in the background before is through by then.
        pass(Duration::from_millis(300)).await;
        let _ = self.proxy.take_count();
        let output = work.await;
        (output, self.proxy.take_count())
    }
}

fn connect(endpoint: &str) -> Backend {
    let config = Config::parse(&format!("//{endpoint}"), false).unwrap();
    let etcd = Etcd::new(config, Env::system(), Limits::default()).unwrap();
    servicekit_etcd::backend(etcd, Namespace::default(), Env::system(), Limits::default())
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

#[track_caller]
fn assert_budget(what: &str, count: Count, round_trips: u64, requests: u64) {
    println!("{what}: {} / {}", count.round_trips, count.requests);
    assert!(
        count.round_trips <= round_trips && count.requests <= requests,
        "{what}: {count:?}, budget {round_trips} / {requests}"
    );
}

fn label(text: &str) -> Label {
    text.parse().unwrap()
}

#[tokio::test]
async fn leases() {
    let Some(counted) = Counted::start().await else { return };
    let (leases, lease) = (&counted.backend.leases, label("x"));
    let request = |holder: &str| Request {
        holder: holder.parse().unwrap(),
        term: Term::Attended { ttl: Duration::from_secs(30) },
        slots: 1,
        wait: Some(Duration::from_secs(600)),
        note: String::new(),
    };
    let (ticket, _) = leases.join(&lease, &request("first")).await.unwrap();
    leases.leave(&ticket).await.unwrap();

    let (joined, count) = counted.count(leases.join(&lease, &request("one"))).await;
    assert_budget("join and grant, nobody there", count, 3, 4);
    let (ticket, standing) = joined.unwrap();
    assert!(matches!(standing, Standing::Granted(_)));
    let (renewed, count) = counted.count(leases.renew(&ticket)).await;
    renewed.unwrap();
    assert_budget("renew", count, 1, 2);

    let waiters = 12;
    let mut standings = Vec::new();
    for i in 0..waiters {
        let (ticket, standing) = leases.join(&lease, &request(&format!("w{i}"))).await.unwrap();
        assert!(matches!(standing, Standing::Waiting { .. }), "{standing:?}");
        standings.push(leases.wait(&ticket));
    }
    let mut waiting: Vec<_> =
        standings.into_iter().map(|standings| tokio::spawn(granted(standings))).collect();
    let hand_over = async {
        leases.leave(&ticket).await.unwrap();
        waiting.remove(0).await.unwrap()
    };
    let (granted, count) = counted.count(hand_over).await;
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()), "one slot, one grant");
    assert!(granted.token.0 > 0);
    assert_budget("hand-over", count, 4, 7);
}

#[tokio::test]
async fn registry() {
    const NODES: usize = 100;
    const EACH: usize = 10;

    let Some(counted) = Counted::start().await else { return };
    let (registry, web) = (&counted.backend.registry, label("web"));
    let now = Env::system().clock.wall();
    let fill = |node: usize| {
        let web = web.clone();
        async move {
            let session =
                registry.open(&format!("n{node}"), Duration::from_secs(60)).await.unwrap();
            for i in 0..EACH {
                let id = format!("web-{node}-{i}").parse().unwrap();
                let mut instance = Instance::starting(web.clone(), id, "10.0.0.1", now);
                instance.change(State::Up, "rise 1", "200 OK", now);
                registry.put(&session, &Claim::new(), &instance).await.unwrap();
            }
            session
        }
    };
    let sessions = join_all((0..NODES).map(fill)).await;

    let (beaten, count) = counted.count(registry.beat(&sessions[0])).await;
    beaten.unwrap();
    assert_budget("a beat of a node with ten instances", count, 1, 2);

    let (listed, count) = counted.count(registry.list(&web)).await;
    assert_eq!(listed.unwrap().up().count(), NODES * EACH);
    assert_budget("list of 1,000 instances on 100 nodes", count, 1, 1);

    let options = discovery::Options::labels([web.clone()]);
    let view = discovery::View::open(registry, options, Env::system());
    view.ready().await;
    let idle = async {
        pass(Duration::from_secs(3)).await;
        view.list(&web).unwrap()
    };
    let (list, count) = counted.count(idle).await;
    assert_eq!(list.up.len(), NODES * EACH);
    assert_budget("an idle watcher, and a list from its view", count, 0, 0);
}

#[tokio::test]
async fn a_long_list_comes_in_pages_of_one_moment() {
    const RECORDS: usize = 4_100;

    let Some(server) = server::Etcd::start() else { return };
    let proxy = Proxy::start(&server.endpoints()).await;
    let config = Config::parse(&format!("//{}", proxy.endpoint()), false).unwrap();
    let etcd = Etcd::new(config, Env::system(), Limits::default()).unwrap();
    let group = Group::of(&Namespace::default(), "many");
    let numbers: Vec<_> = (0..RECORDS).collect();
    for numbers in numbers.chunks(100) {
        let puts = numbers.iter().map(|number| {
            let put = Put {
                key: group.key(format!("r-{number:05}").parse::<Name>().unwrap()),
                value: number.to_string().into_bytes().into(),
                expect: Expect::Absent,
                keep: Keep::Durable,
                write: WriteId::new(format!("w-{number}")),
            };
            let etcd = etcd.clone();
            async move { etcd.put(&put).await.unwrap() }
        });
        join_all(puts).await;
    }
    let _ = proxy.take_count();
    let listed = etcd.list(std::slice::from_ref(&group)).await.unwrap();
    assert_budget("list of 4,100 records", proxy.take_count(), 3, 3);
    let names: Vec<_> = listed.iter().map(|record| record.key.name.to_string()).collect();
    let expected: Vec<_> = numbers.iter().map(|number| format!("r-{number:05}")).collect();
    assert_eq!(names, expected);
}
