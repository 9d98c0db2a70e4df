//! The everyday commands on a real etcd.

use std::{ffi::OsStr, fs, os::unix::ffi::OsStrExt as _};

use servicekit_testkit::server;

use crate::{everyday, harness::Store};

/// A store on an etcd of its own; `None` without etcd.
fn store() -> Option<(Store, server::Etcd)> {
    let server = server::Etcd::start()?;
    Some((Store::at(format!("etcd://{}", server.endpoints())), server))
}

everyday::tests!(store);

#[test]
fn an_outage_changes_nothing_but_work_under_a_lease() {
    let Some((store, mut server)) = store() else { return };
    everyday::an_outage_changes_nothing_but_work_under_a_lease(&store, &mut server.members()[0]);
}

#[test]
fn a_doctor_sees_the_members_and_what_is_away() {
    let Some((store, mut server)) = store() else { return };
    let done = store.run("doctor -o json");
    assert!(done.stdout.contains("leader"), "{done:?}");
    server.members()[0].pause();
    let done = store.run("doctor -o json --store-timeout 8s");
    assert_eq!(done.code, 3, "{done:?}");
    assert!(done.stdout.contains("no answer within"), "{done:?}");
    server.members()[0].resume();
}

#[test]
fn a_probe_does_not_see_the_password_of_etcdctl() {
    let Some((there, _server)) = store() else { return };
    let endpoints = there.url().replace("etcd://", "");
    let mut store = Store::at("etcd".into());
    store.set("ETCDCTL_ENDPOINTS", endpoints.leak());
    store.set("ETCDCTL_PASSWORD", "hush");
    let seen = store.path("seen");
    let probe = format!("env >{}", seen.display());
    let mut watcher = store.spawn_args(["watch", "--label", "web", "--monitor-exec", &probe]);
    watcher.says("-> up");
    let seen = fs::read_to_string(seen).unwrap();
    assert!(!seen.contains("hush") && seen.contains("ETCDCTL_ENDPOINTS"), "{seen}");
}

#[test]
fn bad_addresses_are_refused_in_one_line() {
    let store = Store::new();
    for (url, parts) in [
        ("etcd:host", &["//"][..]),
        ("etcd://db1:0", &["db1:0"]),
        ("etcd://db1?ca=/ca.pem", &["etcds://"]),
        ("etcds://db1?cert=/c.pem", &["`key`"]),
        ("etcd://root@db1", &["\"root\"", "SERVICEKIT_PASSWORD"]),
        ("etcd://db1?user=me", &["user", "password-file"]),
    ] {
        store.run(&format!("hosts --label web --backend {url}")).is_usage_error(parts);
    }
}

#[test]
fn a_password_that_is_no_text_is_refused_and_an_empty_one_is_none() {
    let mut store = Store::at("etcd://root@127.0.0.1:1".into());
    let mut command = store.command(["services"]);
    command.env("SERVICEKIT_PASSWORD", OsStr::from_bytes(b"sh\xff"));
    let done = store.spawn_command(command).wait();
    done.is_usage_error(&["SERVICEKIT_PASSWORD is not UTF-8"]);
    assert!(!done.stderr.contains("sh"), "{done:?}");
    store.set("SERVICEKIT_PASSWORD", "");
    store.run("services").is_usage_error(&["\"root\" needs a password"]);
}
