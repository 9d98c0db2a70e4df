//! The round trips and requests of `docs/backends/etcd.md`, counted at the wire.

use std::time::Duration;

use futures_util::future::BoxFuture;
use servicekit_core::{
    Backend, Env, Namespace, discovery,
    lease::{Standing, Ticket},
    store::{Group, Limits, Store as _},
};
use servicekit_etcd::{Config, Etcd};
use servicekit_testkit::{
    budget::{EACH, NODES, crowd, fill, hand_over, label, pass, put_many, request},
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

#[tokio::test]
async fn leases() {
    let Some(counted) = Counted::start().await else { return };
    let (leases, lease) = (&counted.backend.leases, label("x"));
    let (ticket, _) = leases.join(&lease, &request("first")).await.unwrap();
    leases.leave(&ticket).await.unwrap();

    let (joined, count) = counted.count(leases.join(&lease, &request("one"))).await;
    count.assert_within("join and grant, nobody there", 3, 4);
    let (ticket, standing) = joined.unwrap();
    assert!(matches!(standing, Standing::Granted(_)));
    let (renewed, count) = counted.count(leases.renew(&ticket)).await;
    renewed.unwrap();
    count.assert_within("renew", 1, 2);

    leases.leave(&ticket).await.unwrap();

    let (ticket, mut waiting) = crowd(leases, &lease, 12).await;
    let count = async |work: BoxFuture<'_, Ticket>| counted.count(work).await;
    let enough = |count: &Count| count.requests <= 7 && count.round_trips <= 4;
    let count = hand_over(leases, ticket, &mut waiting, count, enough).await;
    count.assert_within("hand-over", 4, 7);
}

#[tokio::test]
async fn registry() {
    let Some(counted) = Counted::start().await else { return };
    let (registry, web) = (&counted.backend.registry, label("web"));
    let fleet = fill(registry, &web).await;

    let (beaten, count) = counted.count(registry.beat(&fleet[0].0)).await;
    beaten.unwrap();
    count.assert_within("a beat of a node with ten instances", 1, 2);

    let (listed, count) = counted.count(registry.list(&web)).await;
    assert_eq!(listed.unwrap().up().count(), NODES * EACH);
    count.assert_within("list of 1,000 instances on 100 nodes", 1, 1);

    let options = discovery::Options::labels([web.clone()]);
    let view = discovery::View::open(registry, options, Env::system());
    view.ready().await;
    let idle = async {
        pass(Duration::from_secs(3)).await;
        view.list(&web).unwrap()
    };
    let (list, count) = counted.count(idle).await;
    assert_eq!(list.up.len(), NODES * EACH);
    count.assert_within("an idle watcher, and a list from its view", 0, 0);
}

#[tokio::test]
async fn a_long_list_comes_in_pages_of_one_moment() {
    const RECORDS: usize = 4_100;

    let Some(server) = server::Etcd::start() else { return };
    let proxy = Proxy::start(&server.endpoints()).await;
    let config = Config::parse(&format!("//{}", proxy.endpoint()), false).unwrap();
    let etcd = Etcd::new(config, Env::system(), Limits::default()).unwrap();
    let group = Group::of(&Namespace::default(), "many");
    let expected = put_many(&etcd, &group, RECORDS).await;
    let _ = proxy.take_count();
    let listed = etcd.list(std::slice::from_ref(&group)).await.unwrap();
    proxy.take_count().assert_within("list of 4,100 records", 3, 3);
    let names: Vec<_> = listed.iter().map(|record| record.key.name.to_string()).collect();
    assert_eq!(names, expected);
}
