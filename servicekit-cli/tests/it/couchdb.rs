//! The everyday commands on a CouchDB, or on what has its API.

use servicekit_testkit::server::{CouchDb, skipped};

use crate::{
    everyday,
    harness::{Store, Web},
};

/// A store on databases of its own; `None` without a server.
fn store() -> Option<(Store, CouchDb)> {
    let server = CouchDb::start()?;
    let store = Store::at(format!("couchdb:{}", server.database_at(&server.endpoint())));
    Some((store, server))
}

everyday::tests!(store);

#[test]
fn an_outage_changes_nothing_but_work_under_a_lease() {
    let Some((store, mut server)) = store() else { return };
    let Some(own) = server.own() else {
        return skipped("others may use this server, so that it is not stopped");
    };
    everyday::an_outage_changes_nothing_but_work_under_a_lease(&store, own);
}

#[test]
fn what_is_wrong_with_the_server_is_said_in_one_line() {
    let refused = |url: String, says: &str| {
        let done = Store::at(url).run("hosts --label web");
        assert_eq!((done.code, done.stdout.as_str()), (3, ""), "{done:?}");
        assert!(done.stderr.contains(says), "{says}: {done:?}");
        assert!(!done.stderr.contains("hush"), "{done:?}");
    };
    let web = Web::serving("{}".into());
    refused(format!("couchdb://127.0.0.1:{}/fleet", web.port()), "is not a CouchDB");

    let Some((store, server)) = store() else { return };
    let missing = store.url().replace("?create=true", "");
    refused(missing.clone(), "create=true");
    if !server.is_real() {
        return skipped("a wrong password, which this server does not ask for");
    }
    let endpoint = server.endpoint();
    refused(format!("couchdb://nobody:hush@{endpoint}/fleet"), "password");
}

#[test]
fn bad_addresses_are_refused_in_one_line() {
    let store = Store::new();
    for (url, parts) in [
        ("couchdb:host", &["//"][..]),
        ("couchdb://db1", &["names no database"]),
        ("couchdb://db1/Fleet", &["lower-case"]),
        ("couchdb://db1/fleet?create=1", &["true or false"]),
        ("couchdb://db1/fleet?ca=/ca.pem", &["couchdbs://"]),
        ("couchdb://db1/fleet?user=me", &["user", "password-file"]),
    ] {
        store.run(&format!("hosts --label web --backend {url}")).is_usage_error(parts);
    }
}
