//! The server's clock is set, by an hour, and back, or a proxy tells a time of its own: who holds a lease and renews it keeps
//! it.

use std::{net::Ipv4Addr, time::Duration};

use futures_util::StreamExt as _;
use servicekit_core::{
    Backend, Env, Instance, State,
    clock::timeout,
    lease::{Granted, Request, Standing, Term},
    registry::{Claim, Event},
};
use servicekit_testkit::server::{CouchDb, skipped};
use time::OffsetDateTime;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::common::backend;

const TTL: Duration = Duration::from_secs(5);
const HOUR: i64 = 3_600_000;

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
        return skipped("its clock is nobody's to set");
    }
    let clock = Env::system().clock;
    let rest = server.database_at(&server.endpoint());
    let (one, two) = (backend(&rest), backend(&rest));
    let lease: servicekit_core::Label = "web".parse().unwrap();
    let (ticket, standing) = one.leases.join(&lease, &request("one")).await.unwrap();
    let Standing::Granted(first) = standing else { panic!("{standing:?}") };
    let waiting = wait_for_a_grant(two, lease);
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

/// One process asks through a proxy that is an hour ahead, the other through one that is an hour behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxies_that_tell_a_time_of_their_own_end_no_attended_lease() {
    let Some(server) = CouchDb::start() else { return };
    let rest = server.database_at(&server.endpoint());
    let endpoint = server.endpoint();
    for ahead in [HOUR, -HOUR] {
        let through = async |ahead| {
            let proxy = dated_by_itself(endpoint.clone(), ahead).await;
            backend(&rest.replace(&endpoint, &proxy))
        };
        let (one, two) = (through(ahead).await, through(-ahead).await);
        let clock = Env::system().clock;
        let name = if ahead > 0 { "ahead" } else { "behind" };
        let lease: servicekit_core::Label = name.parse().unwrap();
        let (ticket, standing) = one.leases.join(&lease, &request("one")).await.unwrap();
        let Standing::Granted(first) = standing else { panic!("{standing:?}") };
        let waiting = wait_for_a_grant(two, lease);
        for _ in 0..10 {
            clock.sleep(TTL / 4).await;
            one.leases.renew(&ticket).await.unwrap();
        }
        assert!(!waiting.is_finished(), "{name}");
        // It dies, and is replaced.
        let granted = timeout(&*clock, TTL * 4, waiting).await.unwrap().unwrap();
        assert!(granted.token > first.token, "{name}");
    }
}

/// Waits, and comes again where it has lost its place: that counts by the store's clock, and is lost with an hour of it.
fn wait_for_a_grant(backend: Backend, lease: servicekit_core::Label) -> JoinHandle<Granted> {
    tokio::spawn(async move {
        loop {
            let (waiter, _) = backend.leases.join(&lease, &request("two")).await.unwrap();
            let mut standings = backend.leases.wait(&waiter);
            while let Some(standing) = standings.next().await {
                match standing.unwrap() {
                    Standing::Granted(granted) => return granted,
                    Standing::Waiting { .. } | Standing::Gone => {}
                    other @ Standing::Refused { .. } => panic!("{other:?}"),
                }
            }
        }
    })
}

/// A proxy before the server that writes its own time, so many milliseconds ahead, over the server's.
async fn dated_by_itself(server: String, ahead: i64) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&server).await.unwrap();
            let ((mut asked, mut answered), (mut answers, mut asks)) =
                (client.into_split(), server.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut asked, &mut asks).await });
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 << 10];
                // The head of an answer comes in one piece on this host.
                while let Ok(read @ 1..) = answers.read(&mut buffer).await {
                    let piece = &mut buffer[..read];
                    const DATE: &[u8] = b"\r\nDate: ";
                    if let Some(at) = piece.windows(DATE.len()).position(|found| found == DATE) {
                        let now = date(ahead);
                        let at = at + DATE.len();
                        piece[at..at + now.len()].copy_from_slice(now.as_bytes());
                    }
                    answered.write_all(piece).await.ok()?;
                }
                Some(())
            });
        }
    });
    endpoint
}

/// As HTTP writes a moment: always as long.
fn date(ahead: i64) -> String {
    let millis = i128::from(Env::system().clock.wall().as_millis()) + i128::from(ahead);
    let now = OffsetDateTime::from_unix_timestamp_nanos(millis * 1_000_000).unwrap();
    let (weekday, month) = (now.weekday().to_string(), now.month().to_string());
    let (hour, minute, second) = now.to_hms();
    format!(
        "{}, {:02} {} {} {hour:02}:{minute:02}:{second:02} GMT",
        &weekday[..3],
        now.day(),
        &month[..3],
        now.year()
    )
}

/// A follower hears of the time but now and then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_back_hides_nobody_for_long() {
    let Some(server) = CouchDb::start() else { return };
    if server.is_real() {
        return skipped("its clock is nobody's to set");
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
