//! Following: what is sent, and what becomes of a database that is deleted, made again, or lacks what was purged.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream::BoxStream};
use reqwest::Method;
use serde_json::json;
use servicekit_core::{
    Clock, Env, Error, Instant, Kind, Name, Namespace, Result, Retry, Timestamp,
    lease::{Request, Term},
    store::{Change, Keep, Limits, Put, Store as _},
};
use servicekit_testkit::{
    proxy::{Mode, Proxy},
    server::CouchDb,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::common::{
    Other, key, lease, open, open_with, put,
    stub::{DESIGN, stub},
    tests,
};

/// The next snapshot; errors before it are returned with it.
async fn snapshot(changes: &mut BoxStream<'static, Result<Change>>) -> (Vec<Name>, Vec<Error>) {
    let mut errors = Vec::new();
    loop {
        match changes.next().await.unwrap() {
            Ok(Change::Snapshot(records)) => {
                return (records.into_iter().map(|record| record.key.name).collect(), errors);
            }
            Ok(other) => panic!("{other:?} before a snapshot"),
            Err(error) => errors.push(error),
        }
    }
}

/// Passes on what is between a client and a server, and counts the bytes of answers.
async fn counting(server: String) -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (endpoint, count) = (listener.local_addr().unwrap().to_string(), Arc::default());
    let counted: Arc<AtomicU64> = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (server, counted) = (server.clone(), counted.clone());
            tokio::spawn(async move {
                let (mut from_client, mut to_client) = client.into_split();
                let server = TcpStream::connect(&server).await.unwrap();
                let (mut from_server, mut to_server) = server.into_split();
                tokio::spawn(
                    async move { tokio::io::copy(&mut from_client, &mut to_server).await },
                );
                let mut bytes = vec![0; 1 << 16];
                while let Ok(some @ 1..) = from_server.read(&mut bytes).await {
                    counted.fetch_add(some.try_into().unwrap(), Ordering::Relaxed);
                    if to_client.write_all(&bytes[..some]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    (endpoint, count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_a_group_is_sent_nothing_of_others() {
    const OTHERS: usize = 200;
    const EACH: usize = 5_000;

    let Some(server) = CouchDb::start() else { return };
    let (rest, other) = Other::start(&server).await;
    let (relay, count) = counting(server.endpoint()).await;
    let couch = open(&rest.replace(&server.endpoint(), &relay));
    let mut changes = couch.watch(&tests());
    snapshot(&mut changes).await;
    let first = put(key(&tests()));
    open(&rest).put(&first).await.unwrap();
    assert!(matches!(changes.next().await.unwrap().unwrap(), Change::Put(_)));
    let before = count.load(Ordering::Relaxed);
    for i in 0..OTHERS {
        other.write(&format!("default:testss::{i}"), json!({ "value": "x".repeat(EACH) })).await;
    }
    // A deletion has to come through, and comes after them.
    let version = couch.get(&first.key).await.unwrap().unwrap().version;
    couch.delete(&first.key, &version).await.unwrap();
    let removed = changes.next().await.unwrap().unwrap();
    assert_eq!(removed, Change::Removed(first.key.name.clone()));
    let sent = count.load(Ordering::Relaxed) - before;
    println!("{sent} bytes while {OTHERS} others of {EACH} bytes changed");
    assert!(sent < 10_000, "{sent}");
}

/// Sequences are numbers on some servers, and nothing hangs on them but where a feed begins.
#[tokio::test]
async fn a_feed_that_repeats_itself_or_goes_back_shows_nothing_twice() {
    let endpoint = stub(|request, _| match request {
        "GET /" => (200, "", r#"{"couchdb":"Welcome"}"#),
        "GET /_membership" => (200, "", r#"{"cluster_nodes":["a"]}"#),
        "GET /fleet" | "GET /fleet-sessions" => (200, "", r#"{"update_seq":"5-abc"}"#),
        "GET /fleet/_design/servicekit" => DESIGN,
        _ if request.starts_with("GET /fleet/_all_docs") => (
            200,
            "",
            r#"{"rows":[{"id":"default:tests::a","doc":{"_rev":"1-a","value":"","write":"w"}}]}"#,
        ),
        _ if request.starts_with("POST /fleet/_changes") && request.ends_with("since=5%2Dabc") => (
            200,
            "",
            concat!(
                r#"{"seq":1,"id":"default:tests::a","doc":{"_rev":"1-a","value":"","write":"w"}}"#,
                "\n\n",
                r#"{"seq":"2-x","id":"default:tests::b","doc":{"_rev":"1-b","value":"","write":"w"}}"#,
                "\n",
                r#"{"seq":0,"id":"default:tests::a","doc":{"_rev":"1-a","value":"","write":"w"}}"#,
                "\n",
                r#"{"seq":1,"id":"default:tests::b","doc":{"_rev":"1-b","value":"","write":"w"}}"#,
                "\n",
                r#"{"seq":3,"id":"default:tests::b","deleted":true,"doc":{"_rev":"2-b","_deleted":true}}"#,
                "\n",
                r#"{"seq":3,"id":"default:tests::b","deleted":true,"doc":{"_rev":"2-b","_deleted":true}}"#,
                "\n",
                r#"{"last_seq":"3-y"}"#,
                "\n"
            ),
        ),
        _ => (500, "", ""),
    })
    .await;
    let mut changes = open(&format!("//{endpoint}/fleet")).watch(&tests());
    for _ in 0..2 {
        assert_eq!(snapshot(&mut changes).await.0.len(), 1);
        let Change::Put(record) = changes.next().await.unwrap().unwrap() else { panic!("a put") };
        assert_eq!(record.key.name.as_str(), "b");
        let removed = changes.next().await.unwrap().unwrap();
        assert_eq!(removed, Change::Removed(record.key.name));
        let ended = changes.next().await.unwrap().unwrap_err();
        assert!(ended.message().contains("has ended"), "{ended:?}");
    }
}

/// As some proxies do, until they have enough of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_that_is_held_back_is_an_error_and_heals() {
    let Some(server) = CouchDb::start() else { return };
    let (rest, _) = Other::start(&server).await;
    let proxy = Proxy::start(&server.endpoint()).await;
    let couch = open(&rest.replace(&server.endpoint(), &proxy.endpoint()));
    let mut changes = couch.watch(&tests());
    snapshot(&mut changes).await;
    let direct = open(&rest);
    let version = direct.put(&put(key(&tests()))).await.unwrap();
    assert!(matches!(changes.next().await.unwrap().unwrap(), Change::Put(_)));
    proxy.set(Mode::Silence);
    direct.delete(&key(&tests()), &version).await.unwrap();
    let error = changes.next().await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.retry()), (Kind::Timeout, Retry::Safe), "{error:?}");
    assert!(error.message().contains("does a proxy hold it back"), "{error}");
    proxy.set(Mode::Pass);
    assert_eq!(snapshot(&mut changes).await.0.len(), 0);
}

/// By others, under processes that run. None of them makes it again: it would let in a second holder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_deleted_is_missed_and_one_that_is_made_again_is_used() {
    let Some(server) = CouchDb::start() else { return };
    let (rest, other) = Other::start(&server).await;
    let couch = open(&rest);
    let beat = Put { keep: Keep::Ephemeral(Duration::from_secs(60)), ..put(key(&tests())) };
    couch.put(&beat).await.unwrap();
    let mut changes = couch.watch(&tests());
    assert_eq!(snapshot(&mut changes).await.0.len(), 1);

    other.both(Method::DELETE).await;
    let error = changes.next().await.unwrap().unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    couch.touch(&beat.key, &beat.write).await.unwrap_err();
    for error in [
        couch.touch(&beat.key, &beat.write).await.unwrap_err(),
        couch.put(&put(key(&tests()))).await.unwrap_err(),
        couch.list(&[tests()]).await.unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.retry()), (Kind::Unavailable, Retry::Never), "{error:?}");
        assert!(error.message().contains("it was there before"), "{error:?}");
        assert!(error.to_string().contains(&other.database), "{error}");
    }
    assert_eq!(other.send(Method::GET, &other.database, None).await.0, 404);

    other.both(Method::PUT).await;
    let (names, errors) = snapshot(&mut changes).await;
    assert_eq!(names, [] as [Name; 0], "{errors:?}");
    assert_eq!(couch.touch(&beat.key, &beat.write).await.unwrap_err().kind(), Kind::Lost);
    couch.put(&put(key(&tests()))).await.unwrap();
    assert!(matches!(changes.next().await.unwrap().unwrap(), Change::Put(_)));
}

/// Deleted and made again between two requests, on what became a cluster.
#[tokio::test]
async fn a_database_in_the_place_of_another_is_looked_at_anew() {
    let replaced = Arc::new(AtomicU64::new(0));
    let is_another = replaced.clone();
    let endpoint = stub(move |request, _| match request {
        "GET /" => (200, "", r#"{"couchdb":"Welcome"}"#),
        "GET /_membership" => (200, "", r#"{"cluster_nodes":["a"]}"#),
        "GET /fleet" if is_another.load(Ordering::Relaxed) == 1 => {
            (200, "", r#"{"update_seq":0,"instance_start_time":"2","cluster":{"n":3}}"#)
        }
        "GET /fleet" => {
            (200, "", r#"{"update_seq":0,"instance_start_time":"1","cluster":{"n":1}}"#)
        }
        "GET /fleet-sessions" => (200, "", "{}"),
        "GET /fleet/_design/servicekit" => DESIGN,
        _ if request.starts_with("GET /fleet/_all_docs") => (200, "", r#"{"rows":[]}"#),
        _ => (201, "", r#"{"ok":true,"id":"x","rev":"1-a"}"#),
    })
    .await;
    let couch = open(&format!("//{endpoint}/fleet"));
    couch.put(&put(key(&lease()))).await.unwrap();
    replaced.store(1, Ordering::Relaxed);
    snapshot(&mut couch.watch(&tests())).await;
    let error = couch.put(&put(key(&lease()))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "{error:?}");
}

#[tokio::test]
async fn without_the_database_of_beats_leases_go_on() {
    let Some(server) = CouchDb::start() else { return };
    let (rest, other) = Other::start(&server).await;
    // As patient as a test that fails should be.
    let limits = Limits { attempt: Duration::from_secs(2), total: Duration::from_secs(3) };
    let backend =
        servicekit_couch::backend(open(&rest), Namespace::default(), Env::system(), limits);
    let (leases, registry) = (&backend.leases, &backend.registry);
    let session = registry.open("node", Duration::from_secs(60)).await.unwrap();
    let request = Request {
        holder: "one".parse().unwrap(),
        term: Term::Attended { ttl: Duration::from_secs(60) },
        slots: 1,
        wait: None,
        note: String::new(),
    };
    let (ticket, _) = leases.join(&"web".parse().unwrap(), &request).await.unwrap();
    let beats = format!("{}-sessions", other.database);
    other.send(Method::DELETE, &beats, None).await;
    let error = registry.beat(&session).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
    assert!(error.message().contains("no such database"), "{error:?}");
    leases.renew(&ticket).await.unwrap();
    other.send(Method::PUT, &beats, None).await;
    assert_eq!(registry.beat(&session).await.unwrap_err().kind(), Kind::Lost);
    registry.open("node", Duration::from_secs(60)).await.unwrap();
}

/// A clock that is ahead of the host's by as much as a test wants.
#[derive(Clone, Debug)]
pub(crate) struct Ahead(pub(crate) Arc<dyn Clock>, pub(crate) Arc<AtomicU64>);

#[async_trait]
impl Clock for Ahead {
    fn now(&self) -> Instant {
        self.0.now() + Duration::from_secs(self.1.load(Ordering::Relaxed))
    }

    fn wall(&self) -> Timestamp {
        self.0.wall()
    }

    async fn sleep(&self, duration: Duration) {
        self.0.sleep(duration).await;
    }

    async fn sleep_until(&self, deadline: Instant) {
        self.0.sleep(deadline.since(self.now())).await;
    }
}

/// What is purged is in no feed.
#[tokio::test]
async fn what_was_purged_is_missed_when_all_is_read_again() {
    let Some(server) = CouchDb::start() else { return };
    if !server.is_real() {
        return servicekit_testkit::server::skipped("it purges nothing");
    }
    let (rest, other) = Other::start(&server).await;
    let ahead = Ahead(Env::system().clock, Arc::default());
    let env = Env { clock: Arc::new(ahead.clone()), ..Env::system() };
    let couch = open_with(&rest, env);
    couch.put(&put(key(&tests()))).await.unwrap();
    let mut changes = couch.watch(&tests());
    assert_eq!(snapshot(&mut changes).await.0.len(), 1);
    let id = "default:tests::a";
    let purged = json!({ id: [other.read(id).await["_rev"]] });
    let path = format!("{}/_purge", other.database);
    assert_eq!(other.send(Method::POST, &path, Some(purged)).await.0, 201);
    assert_eq!(couch.get(&key(&tests())).await.unwrap(), None);
    ahead.1.store(600, Ordering::Relaxed);
    let (names, errors) = snapshot(&mut changes).await;
    assert_eq!((names.len(), errors.len()), (0, 0), "{errors:?}");
}
