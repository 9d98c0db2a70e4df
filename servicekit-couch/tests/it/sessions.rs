//! The session that a user has with CouchDB: begun, ended, and begun again.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use futures_util::{StreamExt as _, future::join_all};
use reqwest::Method;
use serde_json::json;
use servicekit_core::{
    Env, Kind, Retry,
    store::{Change, Expect, Put, Store as _},
};
use servicekit_testkit::{
    proxy::{Mode, Proxy},
    server::CouchDb,
};

use crate::{
    common::{Other, key, open, open_with, put, stub::stub, tests},
    feed::Ahead,
};

/// A crowd logs in once, and once again when the session has ended.
#[tokio::test]
async fn a_session_that_ended_is_begun_again_without_a_word() {
    let (logins, ended) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (counted, over) = (logins.clone(), ended.clone());
    let endpoint = stub(move |request, cookie| {
        let good = ["AuthSession=one", "AuthSession=two"][over.load(Ordering::SeqCst) as usize];
        match request {
            "POST /_session" => {
                counted.fetch_add(1, Ordering::SeqCst);
                let set = [
                    "Set-Cookie: AuthSession=one; Path=/\r\n",
                    "Set-Cookie: AuthSession=two; Path=/\r\n",
                ];
                (200, set[over.load(Ordering::SeqCst) as usize], r#"{"ok":true}"#)
            }
            _ if cookie != good => {
                (401, "", r#"{"error":"unauthorized","reason":"You are not authorized."}"#)
            }
            "GET /" => (200, "", r#"{"couchdb":"Welcome"}"#),
            "GET /_membership" => (200, "", r#"{"cluster_nodes":["a"]}"#),
            "GET /fleet" | "GET /fleet-sessions" => (200, "", "{}"),
            _ => (404, "", r#"{"error":"not_found","reason":"missing"}"#),
        }
    })
    .await;
    let couch = open(&format!("//admin:hush@{endpoint}/fleet"));
    let crowd = async || {
        let (group, couch) = (tests(), &couch);
        let key = key(&group);
        let asked = (0..20).map(|_| couch.get(&key));
        join_all(asked).await.into_iter().for_each(|got| assert_eq!(got.unwrap(), None));
    };
    crowd().await;
    assert_eq!(logins.load(Ordering::SeqCst), 1);
    ended.store(1, Ordering::SeqCst);
    crowd().await;
    assert_eq!(logins.load(Ordering::SeqCst), 2);
}

/// CouchDB locks a user out for minutes, for everybody at that address, who sends five wrong passwords.
#[tokio::test]
async fn a_password_that_was_refused_is_not_sent_again_at_once() {
    let logins = Arc::new(AtomicU64::new(0));
    let counted = logins.clone();
    let endpoint = stub(move |request, _| match request {
        "POST /_session" => {
            counted.fetch_add(1, Ordering::Relaxed);
            let said = r#"{"error":"unauthorized","reason":"Name or password is incorrect."}"#;
            (401, "", said)
        }
        _ => (500, "", ""),
    })
    .await;
    let later = Arc::new(AtomicU64::new(0));
    let env = Env::system();
    let env = Env { clock: Arc::new(Ahead(env.clock, later.clone())), ..env };
    let couch = open_with(&format!("//me:hush@{endpoint}/fleet"), env);
    let key = key(&tests());
    for (seconds, sent) in [(0, 1), (100, 1), (130, 2)] {
        later.store(seconds, Ordering::Relaxed);
        for asked in join_all((0..4).map(|_| couch.get(&key))).await {
            let error = asked.unwrap_err();
            assert_eq!((error.kind(), error.retry()), (Kind::Denied, Retry::Never), "{error:?}");
            assert!(error.message().contains("password"), "{error:?}");
        }
        assert_eq!(logins.load(Ordering::Relaxed), sent, "after {seconds} s");
    }
}

/// As when the server's secret is another one: what it signed before is nothing any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_goes_on_in_a_new_session_and_not_with_an_old_password() {
    let Some(server) = CouchDb::start() else { return };
    if !server.is_real() {
        return servicekit_testkit::server::skipped("it asks nobody for a password");
    }
    let (rest, other) = Other::start(&server).await;
    let (_, place) = rest.split_once('@').unwrap();
    let user = format!("u-{}", other.database);
    let path = format!("_users/org.couchdb.user:{user}");
    let set = async |password: &str| {
        let mut document =
            json!({ "name": user, "password": password, "roles": [], "type": "user" });
        if let Some(rev) = other.send(Method::GET, &path, None).await.1.get("_rev") {
            document["_rev"] = rev.clone();
        }
        assert_eq!(other.send(Method::PUT, &path, Some(document)).await.0, 201);
    };
    set("hush").await;
    let members = json!({ "admins": {}, "members": { "names": [user] } });
    for name in [other.database.clone(), format!("{}-sessions", other.database)] {
        let security = format!("{name}/_security");
        assert_eq!(other.send(Method::PUT, &security, Some(members.clone())).await.0, 200);
    }
    let place = place.split_once('?').unwrap().0;
    let proxy = Proxy::start(&server.endpoint()).await;
    let proxied = place.replace(&server.endpoint(), &proxy.endpoint());
    let couch = open(&format!("//{user}:hush@{proxied}"));
    let mut version = couch.put(&put(key(&tests()))).await.unwrap();
    let mut changes = couch.watch(&tests());
    assert!(matches!(changes.next().await.unwrap().unwrap(), Change::Snapshot(_)));
    let next = async |version: &mut servicekit_core::store::Version| {
        let change = Put { expect: Expect::At(version.clone()), ..put(key(&tests())) };
        *version = couch.put(&change).await.unwrap();
    };

    // The same password anew: its session is over, and what is open goes on.
    set("hush").await;
    next(&mut version).await;
    assert!(matches!(changes.next().await.unwrap().unwrap(), Change::Put(_)));
    set("hush").await;
    proxy.set(Mode::Cut);
    assert!(changes.next().await.unwrap().unwrap_err().is_transient());
    proxy.set(Mode::Pass);
    loop {
        match changes.next().await.unwrap() {
            Ok(Change::Snapshot(_)) => break,
            Ok(change) => panic!("{change:?} before a snapshot"),
            Err(error) => assert!(error.is_transient(), "{error:?}"),
        }
    }

    set("other").await;
    // CouchDB itself hears of the change a moment later.
    let error = loop {
        if let Err(error) = couch.get(&key(&tests())).await {
            break error;
        }
    };
    assert_eq!((error.kind(), error.retry()), (Kind::Denied, Retry::Never), "{error:?}");
    assert!(!format!("{error:?}").contains("hush"), "{error:?}");
    proxy.set(Mode::Cut);
    changes.next().await.unwrap().unwrap_err();
    proxy.set(Mode::Pass);
    let refused = async {
        loop {
            match changes.next().await.unwrap() {
                Err(error) if error.kind() == Kind::Denied => break,
                Err(error) => assert!(error.is_transient(), "{error:?}"),
                Ok(change) => panic!("{change:?}"),
            }
        }
    };
    refused.await;
    // An operator puts it back, and nobody has to be started again.
    set("hush").await;
    loop {
        match changes.next().await.unwrap() {
            Ok(Change::Snapshot(_)) => break,
            Ok(change) => panic!("{change:?} before a snapshot"),
            Err(error) => assert!(error.kind() == Kind::Denied || error.is_transient()),
        }
    }
    let rev = other.send(Method::GET, &path, None).await.1["_rev"].clone();
    let path = format!("{path}?rev={}", rev.as_str().unwrap());
    assert_eq!(other.send(Method::DELETE, &path, None).await.0, 200);
}
