//! The everyday commands on a real etcd.

mod harness;

use std::{ffi::OsStr, fs, os::unix::ffi::OsStrExt as _, time::Duration};

use harness::{Signal, Store, Web, eventually};
use servicekit_testkit::server;

/// A store on an etcd of its own; `None` without etcd.
fn store() -> Option<(Store, server::Etcd)> {
    let server = server::Etcd::start()?;
    Some((Store::at(format!("etcd://{}", server.endpoints())), server))
}

#[test]
fn who_is_up_is_found_and_why() {
    let Some((store, _server)) = store() else { return };
    let (one, two) = (Web::new(200), Web::new(200));
    let mut watchers =
        [store.watch_at("one", &one, "10.0.0.1:80"), store.watch_at("two", &two, "10.0.0.2:80")];
    for watcher in &mut watchers {
        watcher.says("-> up");
    }
    assert_eq!(store.run("hosts --label web --wait 2").stdout, "10.0.0.1:80,10.0.0.2:80\n");
    let following = store.spawn("hosts --label web --watch");
    following.last_line_is("10.0.0.1:80,10.0.0.2:80");
    two.set(500);
    following.last_line_is("10.0.0.1:80");
    let why = store.run("why --label web --service-id two");
    assert!(why.stdout.contains("is down since"), "{}", why.stdout);
    assert_eq!(store.json("services -o json")[0]["down"], 1);

    // Killed, it is gone within its time; told to end, at once.
    let [first, second] = watchers;
    second.signal(Signal::KILL);
    eventually("the loss", || {
        store.json("hosts --label web --all -o json").to_string().contains("lost")
    });
    assert_eq!(first.end(Signal::TERM, Duration::from_secs(20)).code, 0);
    assert_eq!(store.run("hosts --label web").code, 1);
}

#[test]
fn a_lease_is_held_by_one_at_a_time() {
    let Some((store, _server)) = store() else { return };
    let mut first = store.spawn("acquire-lease --label backup -- sleep 600");
    eventually("the first grant", || store.run("leases").stdout.contains("attended"));
    assert_eq!(store.run("acquire-lease --label backup --acquire-timeout 0 -- true").code, 124);
    let mut second = store.spawn_args([
        "acquire-lease",
        "--label",
        "backup",
        "--",
        "sh",
        "-c",
        "echo $SERVICEKIT_LEASE_TOKEN",
    ]);
    second.says("waiting for backup");
    let token = store.lease("backup")["grants"][0]["token"].as_u64();
    assert!(first.is_running() && second.is_running());
    first.end(Signal::TERM, Duration::from_secs(20));
    let done = second.wait();
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stdout.trim().parse::<u64>().ok() > token, "{done:?}, {token:?}");
}

#[test]
fn an_outage_changes_nothing_but_work_under_a_lease() {
    let Some((store, mut server)) = store() else { return };
    let web = Web::new(200);
    let mut watcher = store.watch_at("one", &web, "10.0.0.1:80");
    watcher.says("-> up");
    let following = store.spawn("hosts --label web --watch");
    following.last_line_is("10.0.0.1:80");
    let before = following.stdout();
    let mut held = store.spawn("acquire-lease --label x --ttl 6s --kill-after 1s -- sleep 600");
    eventually("the grant", || store.run("leases").stdout.contains("attended"));

    server.members()[0].kill();
    let done = store.run("hosts --label web --store-timeout 2s");
    assert_eq!((done.code, done.stdout.as_str()), (3, ""));
    assert!(done.stderr.contains("cannot reach the server"), "{}", done.stderr);
    watcher.says("the store is away");
    held.says("the store is away");
    let done = held.wait();
    assert_ne!(done.code, 0, "work under a lease ends by its deadline: {done:?}");

    server.members()[0].start();
    watcher.says("the store is back");
    eventually("the list", || store.run("hosts --label web").stdout == "10.0.0.1:80\n");
    assert_eq!(following.stdout(), before, "the list was never shorter");
    assert_eq!(store.run("acquire-lease --label x --acquire-timeout 30s -- true").code, 0);
}

#[test]
fn certificates_need_an_identity_that_is_named() {
    let Some((store, _server)) = store() else { return };
    let ask = "cert --label web --x509 --service-id web-1";
    let done = store.run(ask);
    assert_eq!(done.code, 4, "{done:?}");
    assert!(done.stderr.contains("servicekit identity new --out FILE"), "{}", done.stderr);
    let identity = store.path("identity").display().to_string();
    assert_eq!(store.run(&format!("identity new --out {identity}")).code, 0);
    let out = store.path("tls").display().to_string();
    let done = store.run(&format!("{ask} --identity {identity} --out {out}"));
    assert_eq!(done.code, 0, "{done:?}");
    assert!(store.path("tls").join("key.pem").exists());
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
