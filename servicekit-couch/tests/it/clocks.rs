//! The server's clock is set, by an hour, and back: who holds a lease and renews it keeps it.

use std::time::Duration;

use futures_util::StreamExt as _;
use servicekit_core::{
    Backend, Env, Instance, Namespace, State,
    clock::timeout,
    lease::{Request, Standing, Term},
    registry::{Claim, Event},
    store::Limits,
};
use servicekit_couch::{Config, Couch};
use servicekit_testkit::server::CouchDb;

const TTL: Duration = Duration::from_secs(5);
const HOUR: i64 = 3_600_000;

fn backend(rest: &str) -> Backend {
    let config = Config::parse(rest, false).unwrap();
    let couch = Couch::new(config, Env::system(), Limits::default()).unwrap();
    servicekit_couch::backend(couch, Namespace::default(), Env::system(), Limits::default())
}

fn request(holder: &str) -> Request {
    Request {
        holder: holder.parse().unwrap(),
        term: Term::Attended { ttl: TTL },
        slots: 1,
        wait: Some(Duration::from_secs(60)),
        note: String::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_ends_no_attended_lease() {
    let Some(server) = CouchDb::start() else { return };
    if server.is_real() {
        return eprintln!("ignored: its clock is nobody's to set");
    }
    let clock = Env::system().clock;
    let rest = server.database_at(&server.endpoint());
    let (one, two) = (backend(&rest), backend(&rest));
    let lease: servicekit_core::Label = "web".parse().unwrap();
    let (ticket, standing) = one.leases.join(&lease, &request("one")).await.unwrap();
    let Standing::Granted(first) = standing else { panic!("{standing:?}") };
    let waiting = tokio::spawn(async move {
        loop {
            let (waiter, _) = two.leases.join(&lease, &request("two")).await.unwrap();
            let mut standings = two.leases.wait(&waiter);
            while let Some(standing) = standings.next().await {
                match standing.unwrap() {
                    Standing::Granted(granted) => return granted,
                    // A place in the queue counts by the store's clock, and is lost with an hour of it.
                    Standing::Waiting { .. } | Standing::Gone => {}
                    other @ Standing::Refused { .. } => panic!("{other:?}"),
                }
            }
        }
    });
    for ahead in [HOUR, -HOUR, 0] {
        server.set_ahead(ahead);
        for _ in 0..5 {
            clock.sleep(TTL / 4).await;
            one.leases.renew(&ticket).await.unwrap();
        }
        assert!(!waiting.is_finished(), "{ahead}");
    }
    one.leases.leave(&ticket).await.unwrap();
    let granted = timeout(&*clock, TTL * 2, waiting).await.unwrap().unwrap();
    assert!(granted.token > first.token);
}

/// A follower hears of the time but now and then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_back_hides_nobody_for_long() {
    let Some(server) = CouchDb::start() else { return };
    if server.is_real() {
        return eprintln!("ignored: its clock is nobody's to set");
    }
    let clock = Env::system().clock;
    let rest = server.database_at(&server.endpoint());
    server.set_ahead(HOUR);
    let (one, two) = (backend(&rest), backend(&rest));
    let web: servicekit_core::Label = "web".parse().unwrap();
    let session = one.registry.open("node", TTL).await.unwrap();
    let mut instance =
        Instance::starting(web.clone(), "web-1".parse().unwrap(), "10.0.0.1", clock.wall());
    instance.change(State::Up, "rise 1", "200 OK", clock.wall());
    one.registry.put(&session, &Claim::new(), &instance).await.unwrap();
    let mut events = two.registry.watch(&web);
    let Some(Ok(Event::Snapshot(snapshot))) = events.next().await else { panic!("no snapshot") };
    assert_eq!(snapshot.up().count(), 1);

    server.set_ahead(0);
    let mut state = State::Up;
    for _ in 0..12 {
        one.registry.beat(&session).await.unwrap();
        while let Ok(event) = timeout(&*clock, Duration::from_secs(1), events.next()).await {
            match event.unwrap().unwrap() {
                Event::Changed(instance) => state = instance.state,
                Event::Snapshot(snapshot) => state = snapshot.instances[0].state,
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(state, State::Up);
}
