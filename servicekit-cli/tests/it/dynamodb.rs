//! The everyday commands on DynamoDB, and that a role with the documented policy may do them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use servicekit_testkit::server;

use crate::{
    everyday::{self, watch},
    harness::{Signal, Store, Web, eventually},
};

/// A store on a table of its own, for somebody whom the server knows; `None` without a server.
fn store() -> Option<(Store, server::DynamoDb)> {
    let server = server::DynamoDb::start()?;
    let store = at(&server, "?create=true");
    assert_eq!(store.run("services").code, 0, "it makes the table");
    Some((store, server))
}

fn at(server: &server::DynamoDb, parameters: &str) -> Store {
    let and = if parameters.is_empty() { "?" } else { "&" };
    let endpoint = server.endpoint();
    let url = format!("dynamodb://eu-central-1/fleet{parameters}{and}endpoint=http://{endpoint}");
    let mut store = Store::at(url);
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "hush"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ] {
        store.set(name, value);
    }
    store
}

everyday::tests!(store);

/// What each role does is what its policy in the documentation allows, and nothing more is allowed.
#[test]
fn the_documented_policies_are_what_is_used() {
    let Some((store, server)) = store() else { return };
    let policies = policies();
    let used = |server: &server::DynamoDb| -> BTreeSet<String> {
        server.take_calls().into_iter().map(|call| call.action).collect()
    };
    // Who makes the table is a reader besides.
    assert_eq!(&used(&server) - &policies["reader"], &policies["creator"] - &policies["reader"]);
    drop(store);
    let store = at(&server, "");
    let web = Web::new(200);

    let mut watcher = watch(&store, "one", &web, "10.0.0.1:80");
    watcher.says("-> up");
    let held = store.spawn("acquire-lease --label x -- sleep 600");
    eventually("the grant", || store.run("leases").stdout.contains("attended"));
    held.end(Signal::TERM, Duration::from_secs(20));
    watcher.end(Signal::TERM, Duration::from_secs(20));
    assert_eq!(used(&server), policies["agent"], "agent");

    let mut read = BTreeSet::new();
    for line in ["hosts --label web --all", "services", "leases", "why --label web"] {
        let _ = store.run(line);
        read.append(&mut used(&server));
    }
    let following = store.spawn("hosts --label web --watch");
    let mut seen = Vec::new();
    eventually("a look at the mark", || {
        seen.append(&mut server.take_calls());
        seen.iter().filter(|call| call.action == "GetItem").count() > 1
    });
    following.end(Signal::TERM, Duration::from_secs(20));
    read.extend(seen.into_iter().map(|call| call.action));
    read.append(&mut used(&server));
    assert_eq!(read, policies["reader"], "reader");

    let identity = store.path("identity");
    let identity = identity.display();
    assert_eq!(store.run(&format!("identity new --out {identity}")).code, 0);
    let ask = format!("cert --label web --x509 --service-id web-1 --identity {identity}");
    let done = store.run(&ask);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(used(&server), policies["issuer"], "issuer");

    store.run("doctor");
    assert_eq!(used(&server), policies["doctor"], "doctor");
}

/// The actions of each policy in the documentation, by its name.
fn policies() -> BTreeMap<String, BTreeSet<String>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/backends/dynamodb.md");
    let page = std::fs::read_to_string(path).expect("the page");
    let blocks = page.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next());
    let policies = blocks.filter_map(|block| {
        let policy: serde_json::Value = serde_json::from_str(block).expect("JSON");
        let statement = policy.get("Statement")?.get(0)?;
        let actions = statement["Action"].as_array().expect("actions").iter();
        let name = |action: &serde_json::Value| {
            action.as_str().expect("text").trim_start_matches("dynamodb:").to_owned()
        };
        Some((statement["Sid"].as_str()?.to_lowercase(), actions.map(name).collect()))
    });
    policies.collect()
}

#[test]
fn a_doctor_sees_the_table_and_the_clock() {
    let Some((store, server)) = store() else { return };
    let done = store.run("doctor -o json");
    assert_eq!(done.code, 0, "{done:?}");
    for said in ["on demand", "removes what has been over", "DynamoDB's", "by observation"] {
        assert!(done.stdout.contains(said), "{said}: {done:?}");
    }
    server.set_ahead(3_600_000);
    assert!(store.run("doctor").stdout.contains("set it, and keep it so"));
}

#[test]
fn what_is_wrong_with_the_address_or_the_credentials_is_said_in_one_line() {
    let store = Store::new();
    for (url, parts) in [
        ("dynamodb://fleet", &["names no table"][..]),
        ("dynamodb://eu-central-1/a+b", &["'+'"]),
        ("dynamodb://eu-central-1/fleet?create=1", &["true or false"]),
        ("dynamodb://eu-central-1/fleet?secret=x", &["endpoint, profile, create"]),
    ] {
        store.run(&format!("hosts --label web --backend {url}")).is_usage_error(parts);
    }

    let Some(server) = server::DynamoDb::start() else { return };
    let missing = at(&server, "").run("hosts --label web");
    assert_eq!(missing.code, 3, "{missing:?}");
    assert!(missing.stderr.contains("create=true"), "{missing:?}");
    let mut nobody = Store::at(at(&server, "").url());
    for (name, value) in [
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_CONFIG_FILE", "/nowhere"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/nowhere"),
    ] {
        nobody.set(name, value);
    }
    let done = nobody.run("hosts --label web");
    assert_eq!(done.code, 3, "{done:?}");
    assert!(done.stderr.contains("no usable AWS credentials"), "{done:?}");
}
