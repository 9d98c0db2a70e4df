//! What is refused, and what is said then.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use futures_util::StreamExt as _;
use reqwest::Method;
use serde_json::{Value, json};
use servicekit_core::{
    Env, Error, Kind, Retry,
    store::{Change, Expect, Put, Store as _},
};
use servicekit_testkit::server::{CouchDb, skipped};

use crate::common::{
    Other, backend, key, lease, open, put,
    stub::{DESIGN, stub},
    tests,
};

fn is_clean(error: &Error) -> &Error {
    assert!(!format!("{error:?}").contains("hush"), "{error:?}");
    assert!(error.to_string().starts_with("couchdb: "), "{error}");
    error
}

const WELCOME: (u16, &str, &str) = (200, "", r#"{"couchdb":"Welcome","version":"3.5.0"}"#);

#[tokio::test]
async fn a_server_that_is_not_a_couchdb_is_named() {
    let endpoint = stub(|_, _| (200, "", "<html>hello</html>")).await;
    let error =
        open(&format!("//{endpoint}/fleet?create=true")).make_databases().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(is_clean(&error).message().contains("is not a CouchDB"), "{error}");
}

#[tokio::test]
async fn a_wrong_password_is_denied_and_not_shown() {
    let endpoint = stub(|_, _| {
        (401, "", r#"{"error":"unauthorized","reason":"Name or password is incorrect."}"#)
    })
    .await;
    let couch = open(&format!("//admin:hush@{endpoint}/fleet"));
    let error = couch.get(&key(&tests())).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (Kind::Denied, Retry::Never), "{error:?}");
    is_clean(&error);
}

#[tokio::test]
async fn what_too_few_nodes_have_taken_is_no_success() {
    let endpoint = stub(|request, _| match request {
        "GET /" => WELCOME,
        "GET /_membership" => (200, "", r#"{"all_nodes":["a"],"cluster_nodes":["a"]}"#),
        "GET /fleet" | "GET /fleet-sessions" => (200, "", r#"{"cluster":{"n":1}}"#),
        "GET /fleet/_design/servicekit" => DESIGN,
        _ => (202, "", r#"{"ok":true,"id":"x","rev":"1-a"}"#),
    })
    .await;
    let error = open(&format!("//{endpoint}/fleet")).put(&put(key(&tests()))).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (Kind::Unavailable, Retry::Unknown), "{error:?}");
}

#[tokio::test]
async fn a_cluster_is_refused_leases_unless_the_risk_is_taken() {
    let endpoint = stub(|request, _| match request {
        "GET /" => WELCOME,
        "GET /_membership" => (200, "", r#"{"cluster_nodes":["a","b","c"]}"#),
        "GET /fleet" | "GET /fleet-sessions" => (200, "", r#"{"cluster":{"n":3}}"#),
        _ => (201, "", r#"{"ok":true,"id":"x","rev":"1-a"}"#),
    })
    .await;
    let couch = open(&format!("//{endpoint}/fleet"));
    let error = couch.put(&put(key(&lease()))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(is_clean(&error).message().contains("3 copies on 3 nodes"), "{error}");
    couch.put(&put(key(&tests()))).await.unwrap();
    let couch = open(&format!("//{endpoint}/fleet?unsafe-leases=true"));
    couch.put(&put(key(&lease()))).await.unwrap();
}

#[tokio::test]
async fn a_user_who_may_not_know_the_nodes_may_use_the_database() {
    let logins = Arc::new(AtomicU64::new(0));
    let counted = logins.clone();
    let endpoint = stub(move |request, _| match request {
        "POST /_session" => {
            counted.fetch_add(1, Ordering::Relaxed);
            (200, "Set-Cookie: AuthSession=abc; Path=/\r\n", r#"{"ok":true}"#)
        }
        "GET /" => (200, "Set-Cookie: AuthSession=; Max-Age=0\r\n", WELCOME.2),
        "GET /_membership" => (401, "", r#"{"error":"unauthorized","reason":"x"}"#),
        "GET /fleet" | "GET /fleet-sessions" => (200, "", "{}"),
        _ => (404, "", r#"{"error":"not_found","reason":"missing"}"#),
    })
    .await;
    let couch = open(&format!("//admin:hush@{endpoint}/fleet"));
    assert_eq!(couch.get(&key(&tests())).await.unwrap(), None);
    assert_eq!(logins.load(Ordering::Relaxed), 1, "a login is slow");
}

#[tokio::test]
async fn a_database_that_is_missing_is_named_and_not_made() {
    let Some(server) = CouchDb::start() else { return };
    let rest = server.database_at(&server.endpoint());
    let couch = open(rest.split_once('?').unwrap().0);
    let error = couch.get(&key(&tests())).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (Kind::Unavailable, Retry::Never), "{error:?}");
    assert!(is_clean(&error).message().contains("create=true"), "{error}");
}

#[tokio::test]
async fn who_may_not_make_a_database_is_told() {
    let endpoint = stub(|request, _| match request {
        "GET /" => WELCOME,
        "GET /_membership" => (200, "", r#"{"cluster_nodes":["a"]}"#),
        "PUT /fleet" | "PUT /fleet-sessions" => {
            (401, "", r#"{"error":"unauthorized","reason":"You are not a server admin."}"#)
        }
        _ => (404, "", r#"{"error":"not_found","reason":"Database does not exist."}"#),
    })
    .await;
    let couch = open(&format!("//{endpoint}/fleet?create=true"));
    for error in
        [couch.make_databases().await.unwrap_err(), couch.get(&key(&tests())).await.unwrap_err()]
    {
        assert_eq!((error.kind(), error.retry()), (Kind::Denied, Retry::Never), "{error:?}");
        assert!(is_clean(&error).message().contains("not a server admin"), "{error}");
        assert_eq!(error.operation(), Some("create the database"));
    }
}

#[tokio::test]
async fn what_others_wrote_is_passed_over() {
    let Some(server) = CouchDb::start() else { return };
    let (rest, other) = Other::start(&server).await;
    let couch = open(&rest);
    for id in ["zebra", "default:tests::%C3%BC", "default:tests", "default:tests:x:y"] {
        other.write(id, json!({ "value": 7 })).await;
    }
    // Nonsense under a name that is ours is a record that nobody put.
    other.write("default:tests::a", json!({ "value": [], "ttl_ms": "x" })).await;
    let listed = couch.list(&[tests()]).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((&*listed[0].value, listed[0].write.as_str()), (&b""[..], ""));
    let version = listed[0].version.clone();
    couch.put(&Put { expect: Expect::At(version), ..put(key(&tests())) }).await.unwrap();
}

/// A head that somebody edited lets nobody in, and says so; an instance is reported and left out.
#[tokio::test]
async fn what_was_edited_by_hand_into_nonsense_is_an_error_or_left_out() {
    let Some(server) = CouchDb::start() else { return };
    let (rest, other) = Other::start(&server).await;
    // It would refuse most of it.
    other.without_design().await;
    let backend = backend(rest.split('?').next().unwrap());
    let web = "web".parse().unwrap();
    for nonsense in [
        json!({ "servicekit": 1, "value": "{}", "write": "w" }),
        json!({ "servicekit": 1, "value": "{\"v\":1,\"slots\":-1}", "write": "w" }),
        json!({ "value": { "v": 1 } }),
        json!({}),
    ] {
        for id in ["default:lease:web:head", "default:instances:web:web-1"] {
            let mut document = nonsense.clone();
            if let Value::String(rev) = &other.read(id).await["_rev"] {
                document["_rev"] = rev.clone().into();
            }
            other.write(id, document).await;
        }
        let error = backend.leases.inspect(&web).await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (Kind::Unexpected, Retry::Never), "{error:?}");
        assert!(error.to_string().contains("web/head"), "{error}");
        let listed = backend.registry.list(&web).await.unwrap();
        assert_eq!(listed.instances.len(), 0);
        let Some(Ok(_)) = backend.registry.watch(&web).next().await else { panic!("a snapshot") };
    }
}

/// The last document of a page is deleted before the next page is read.
#[tokio::test]
async fn a_page_that_ends_with_what_is_gone_loses_nothing() {
    let page = |from: usize, to: usize| -> &'static str {
        let row = |i| json!({ "id": format!("default:tests::r-{i:05}"), "doc": { "_rev": "1-a" } });
        let rows: Vec<_> = (from..to).map(row).collect();
        Box::leak(json!({ "rows": rows }).to_string().into_boxed_str())
    };
    let (first, second) = (page(0, 1200), page(1200, 1203));
    let endpoint = stub(move |request, _| match request {
        "GET /" => WELCOME,
        _ if request.contains("_all_docs") && request.contains("01199") => (200, "", second),
        _ if request.contains("_all_docs") => (200, "", first),
        _ => (200, "", "{}"),
    })
    .await;
    let records = open(&format!("//{endpoint}/fleet")).list(&[tests()]).await.unwrap();
    assert_eq!(records.len(), 1203);
}

/// Without the design document CouchDB takes a renewal of what is not there any more, and two would hold a lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_are_refused_where_the_design_document_is_missing() {
    let Some(server) = CouchDb::start() else { return };
    let (rest, other) = Other::start(&server).await;
    let design = other.without_design().await;
    let there = rest.split('?').next().unwrap();
    let web = "web".parse().unwrap();
    let request = servicekit_testkit::budget::request("one");
    let error = backend(there).leases.join(&web, &request).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (Kind::Unsupported, Retry::Never), "{error:?}");
    assert!(error.message().contains("doctor --setup"), "{error:?}");
    let risky = format!("{there}?unsafe-leases=true");
    backend(&risky).leases.join(&web, &request).await.unwrap();
    assert_eq!(other.read("_design/servicekit").await["error"], "not_found");

    // Who may make databases makes it, and then what was purged is missed.
    let one = backend(&rest);
    let db = "db".parse().unwrap();
    let (ticket, _) = one.leases.join(&db, &request).await.unwrap();
    assert_eq!(
        other.read("_design/servicekit").await["validate_doc_update"],
        design["validate_doc_update"]
    );
    one.leases.renew(&ticket).await.unwrap();
    if !server.is_real() {
        return skipped("a renewal after a purge: it purges nothing");
    }
    let range = "startkey=%22default:lease:db:t-%22&endkey=%22default:lease:db:t.%22";
    let path = format!("{}/_all_docs?{range}", other.database);
    let (_, found) = other.send(Method::GET, &path, None).await;
    let row = &found["rows"][0];
    let purged = json!({ row["id"].as_str().unwrap(): [row["value"]["rev"]] });
    let path = format!("{}/_purge", other.database);
    assert_eq!(other.send(Method::POST, &path, Some(purged)).await.0, 201);
    let error = one.leases.renew(&ticket).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Lost, "{error:?}");
}

/// What is read is a range of ids, whatever else there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_full_of_others_can_be_used() {
    const BATCH: usize = 2_000;

    let Some(server) = CouchDb::start() else { return };
    let (rest, other) = Other::start(&server).await;
    let couch = open(&rest);
    couch.put(&put(key(&tests()))).await.unwrap();
    let batches = if server.is_real() { 50 } else { 5 };
    let path = format!("{}/_bulk_docs", other.database);
    for batch in 0..batches {
        // Before, behind and between ours.
        let id = |i: usize| format!("{}:{batch}-{i}", ["a", "default:testr:", "z"][i % 3]);
        let docs: Vec<_> = (0..BATCH).map(|i| json!({ "_id": id(i) })).collect();
        let (status, _) = other.send(Method::POST, &path, Some(json!({ "docs": docs }))).await;
        assert_eq!(status, 201);
    }
    let clock = Env::system().clock;
    let begun = clock.now();
    assert_eq!(couch.list(&[tests()]).await.unwrap().len(), 1);
    println!("{:?} beside {} others", clock.now().since(begun), batches * BATCH);
    let Some(Ok(Change::Snapshot(seen))) = couch.watch(&tests()).next().await else { panic!() };
    assert_eq!(seen.len(), 1);
}
