//! `servicekit leases`.

use servicekit::{
    Env, Name, Namespace,
    store::{Expect, Group, Keep, Put, Store as _, WriteId},
};
use servicekit_local::Local;

use crate::harness::{Store, eventually};

#[test]
fn grants_and_waiters_are_listed() {
    let store = Store::new();
    let taken = store.json("acquire-lease --label web --service-id a --lease-timeout 300s -o json");
    let _holding =
        store.spawn("acquire-lease --label db --slots 2 --service-id keeper -- sleep 1000");
    let mut first = store.spawn("acquire-lease --label web --service-id b");
    first.says("0 ahead");
    let mut second = store.spawn("acquire-lease --label web --service-id c");
    second.says("1 ahead");
    eventually("both leases", || store.json("leases -o json").as_array().unwrap().len() == 2);

    let web = store.lease("web");
    assert_eq!((web["label"].as_str(), web["slots"].as_u64()), (Some("web"), Some(1)));
    let grant = &web["grants"][0];
    assert_eq!(grant["service_id"], "a");
    assert_eq!(grant["token"], taken["token"]);
    assert_eq!(grant["slot"], 0);
    assert_eq!(grant["attended"], false);
    assert_eq!(grant["expires_at"], taken["expires_at"]);
    assert!(grant["since"].as_str().unwrap().ends_with('Z'));
    for (waiter, id) in ["b", "c"].iter().enumerate() {
        assert_eq!(web["waiting"][waiter]["place"], waiter + 1);
        assert_eq!(web["waiting"][waiter]["service_id"], *id);
    }

    let db = store.lease("db");
    assert_eq!(db["slots"], 2);
    assert_eq!(db["grants"][0]["attended"], true);
    assert_eq!(db["waiting"], serde_json::json!([]));

    let table = store.run("leases").stdout;
    let row = |parts: &[&str]| table.lines().any(|row| parts.iter().all(|part| row.contains(part)));
    assert!(row(&["web", "a", "unattended", &taken["token"].to_string()]), "{table}");
    assert!(row(&["web", "c", "waits in place 2"]), "{table}");
    assert!(row(&["db", "keeper", " attended"]), "{table}");
}

#[test]
fn a_free_lease_is_told_from_one_that_never_was() {
    let store = Store::new();
    assert_eq!(store.json("leases -o json"), serde_json::json!([]));
    let done = store.run("leases --label web -o json");
    assert_eq!((done.code, done.stdout.as_str()), (1, "[]\n"));
    assert!(done.stderr.contains("no lease is called web"), "{}", done.stderr);
    assert_eq!(store.run("leases --label web").stdout, "", "there is no data");
    store.run("acquire-lease --label web --service-id a");
    store.run("release-lease --label web --service-id a");
    assert_eq!(store.lease("web")["grants"], serde_json::json!([]));
    assert!(store.run("leases").stdout.contains("free"));
}

/// Puts nonsense where a lease's head is.
fn damage(store: &Store, lease: &str) {
    let damage = async {
        let local = Local::open(&store.path("store.db"), Env::system()).await?;
        let group = Group::scoped(&Namespace::default(), "lease", &lease.parse()?);
        let key = group.key("head".parse::<Name>()?);
        let head = local.get(&key).await?.expect("the head");
        let (value, expect) = ((*b"rubbish").into(), Expect::At(head.version));
        let write = WriteId::new("somebody");
        local.put(&Put { key, value, expect, keep: Keep::Unchanged, write }).await
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(damage).expect("the head is damaged");
}

#[test]
fn a_damaged_head_hides_no_other_lease_and_says_who_has_to_stop() {
    let store = Store::new();
    for lease in ["a", "b", "c"] {
        assert_eq!(store.run(&format!("acquire-lease --label {lease}")).code, 0);
    }
    damage(&store, "b");
    let done = store.run("leases -o json");
    assert_eq!(done.code, 3, "{done:?}");
    let listed: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    let labels: Vec<_> = listed.as_array().unwrap().iter().map(|lease| &lease["label"]).collect();
    assert_eq!(labels, ["a", "c"]);
    assert!(done.stderr.contains("stop all who hold or wait"), "{done:?}");
    assert_eq!(store.run("acquire-lease --label b --acquire-timeout 1s").code, 3);
}
