//! Documents that were written in two places, as replication and the end of a split leave them.

use std::time::Duration;

use futures_util::{StreamExt as _, stream::BoxStream};
use reqwest::Method;
use serde_json::json;
use servicekit_core::{
    Env, Error, Kind, Label, LeaseProvider, Result, Retry,
    clock::timeout,
    lease::{Granted, Request, Standing, Term, Ticket},
    store::{Change, Expect, Put, Store as _},
};
use servicekit_testkit::server::CouchDb;

use crate::common::{Other, backend, key, lease, open, put, tests};

fn web() -> Label {
    "web".parse().unwrap()
}

async fn join(leases: &dyn LeaseProvider, holder: &str) -> Result<(Ticket, Standing)> {
    let request = Request {
        holder: holder.parse().unwrap(),
        term: Term::Attended { ttl: Duration::from_secs(30) },
        slots: 1,
        wait: Some(Duration::from_secs(600)),
        note: String::new(),
    };
    leases.join(&web(), &request).await
}

#[track_caller]
fn is_refused(error: &Error) {
    assert_eq!((error.kind(), error.retry()), (Kind::Unavailable, Retry::Exhausted), "{error:?}");
    assert!(error.message().contains("two places"), "{error:?}");
}

async fn granted(standings: &mut BoxStream<'static, Result<Standing>>) -> Granted {
    let granted = async {
        loop {
            if let Ok(Standing::Granted(granted)) = standings.next().await.unwrap() {
                return granted;
            }
        }
    };
    timeout(&*Env::system().clock, Duration::from_secs(20), granted).await.unwrap()
}

/// All see the same revision, and whoever is about to write deletes the others.
#[tokio::test]
async fn what_is_no_lease_is_what_all_choose_and_the_rest_goes() {
    for wins in [true, false] {
        let Some(server) = CouchDb::start() else { return };
        let (rest, other) = Other::start(&server).await;
        let (couch, id) = (open(&rest), "default:tests::a");
        let version = couch.put(&put(key(&tests()))).await.unwrap();
        let theirs = json!({ "servicekit": 1, "value": "theirs", "write": "w" });
        let rev = other.conflict(id, wins, theirs).await;
        let expected = if wins { &b"theirs"[..] } else { &b"{}"[..] };

        let listed = couch.list(&[tests()]).await.unwrap();
        assert_eq!(&*listed[0].value, expected);
        let Some(Ok(Change::Snapshot(seen))) = couch.watch(&tests()).next().await else { panic!() };
        assert_eq!(seen[0].version, listed[0].version);
        let lost = if wins { version.as_str() } else { &*rev };
        assert_eq!(other.read(id).await["_conflicts"], json!([lost]));

        let chosen = couch.get(&key(&tests())).await.unwrap().unwrap();
        assert_eq!((&chosen.version, &*chosen.value), (&listed[0].version, expected));
        assert!(other.read(id).await["_conflicts"].is_null());
        // What lost does not come back.
        couch.delete(&key(&tests()), &chosen.version).await.unwrap();
        assert_eq!(couch.get(&key(&tests())).await.unwrap(), None);
        // Who goes on from a revision that lost is told.
        if wins {
            let late = Put { expect: Expect::At(version), ..put(key(&tests())) };
            assert_eq!(couch.put(&late).await.unwrap_err().kind(), Kind::Conflict);
        }
    }
}

#[tokio::test]
async fn a_record_of_a_lease_that_was_written_in_two_places_is_not_read() {
    let Some(server) = CouchDb::start() else { return };
    let (rest, other) = Other::start(&server).await;
    let couch = open(&rest);
    couch.put(&put(key(&lease()))).await.unwrap();
    other.conflict("default:lease:web:a", true, json!({ "value": "theirs", "write": "w" })).await;
    for error in [
        couch.get(&key(&lease())).await.unwrap_err(),
        couch.list(&[lease()]).await.unwrap_err(),
        couch.watch(&lease()).next().await.unwrap().unwrap_err(),
    ] {
        is_refused(&error);
        assert!(error.to_string().starts_with("couchdb: "), "{error}");
    }
}

/// Until all revisions but one are deleted, whichever of its documents it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_was_written_in_two_places_lets_nobody_in() {
    for of_the_head in [true, false] {
        let Some(server) = CouchDb::start() else { return };
        let (rest, other) = Other::start(&server).await;
        let (one, two) = (backend(&rest), backend(&rest));
        let (holder, standing) = join(&*one.leases, "one").await.unwrap();
        let Standing::Granted(grant) = standing else { panic!("{standing:?}") };
        let id = if of_the_head { "default:lease:web:head".into() } else { ticket(&other).await };
        let (waiter, _) = join(&*two.leases, "two").await.unwrap();
        let mut standings = two.leases.wait(&waiter);
        standings.next().await.unwrap().unwrap();

        let mut theirs = other.read(&id).await;
        theirs["write"] = "theirs".into();
        let rev = other.conflict(&id, false, theirs).await;
        is_refused(&standings.next().await.unwrap().unwrap_err());
        is_refused(&join(&*two.leases, "three").await.unwrap_err());
        is_refused(&two.leases.inspect(&web()).await.unwrap_err());
        is_refused(&two.leases.evict(&web(), grant.token, true).await.unwrap_err());
        // The holder reads nothing and hears nothing: nobody else is let in.
        one.leases.renew(&holder).await.unwrap();

        let lost = format!("{}/{id}?rev={rev}", other.database);
        assert_eq!(other.send(Method::DELETE, &lost, None).await.0, 200);
        one.leases.renew(&holder).await.unwrap();
        one.leases.leave(&holder).await.unwrap();
        assert!(granted(&mut standings).await.token > grant.token);
    }
}

/// It is free once that is mended, without anybody's help.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_a_lease_that_was_written_in_two_places_is_told() {
    let Some(server) = CouchDb::start() else { return };
    let (rest, other) = Other::start(&server).await;
    let (one, two) = (backend(&rest), backend(&rest));
    let (holder, _) = join(&*one.leases, "one").await.unwrap();
    let (waiter, _) = join(&*two.leases, "two").await.unwrap();
    let mut standings = two.leases.wait(&waiter);
    standings.next().await.unwrap().unwrap();
    let id = "default:lease:web:head";
    let mut theirs = other.read(id).await;
    theirs["write"] = "theirs".into();
    let rev = other.conflict(id, false, theirs).await;
    is_refused(&one.leases.leave(&holder).await.unwrap_err());
    assert_eq!(one.leases.renew(&holder).await.unwrap_err().kind(), Kind::Lost);
    let lost = format!("{}/{id}?rev={rev}", other.database);
    assert_eq!(other.send(Method::DELETE, &lost, None).await.0, 200);
    granted(&mut standings).await;
}

/// The id of the only ticket.
async fn ticket(other: &Other) -> String {
    let range = "startkey=%22default:lease:web:t-%22&endkey=%22default:lease:web:t.%22";
    let path = format!("{}/_all_docs?{range}", other.database);
    let (_, found) = other.send(Method::GET, &path, None).await;
    assert_eq!(found["rows"].as_array().unwrap().len(), 1);
    found["rows"][0]["id"].as_str().unwrap().to_owned()
}
