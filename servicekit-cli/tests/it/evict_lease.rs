//! `servicekit evict-lease`.

use crate::harness::{Store, eventually};

#[test]
fn an_attended_holder_stops_its_work_first() {
    let store = Store::new();
    let holder = store
        .spawn("acquire-lease --label web --service-id a --ttl 3s --kill-after 1s -- sleep 1000");
    eventually("the grant", || store.run("leases").stdout.contains("attended"));
    let mut waiting = store.spawn("acquire-lease --label web --service-id b");
    waiting.says("held by a");
    let token = store.lease("web")["grants"][0]["token"].to_string();
    let done = store.run(&format!("evict-lease --label web --token {token}"));
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{}", done.stderr);
    let done = holder.wait();
    assert_eq!(done.code, 123, "{}", done.stderr);
    assert!(done.stderr.contains("lost web"), "{}", done.stderr);
    assert_eq!(waiting.wait().code, 0);
}

#[test]
fn an_unattended_lease_is_free_at_once() {
    let store = Store::new();
    let token = store.json("acquire-lease --label web --service-id a -o json")["token"].to_string();
    let done = store.run(&format!("evict-lease --label web --token {token}"));
    assert_eq!(done.code, 0);
    assert!(done.stderr.contains("web is free\n"), "{}", done.stderr);
    assert_eq!(store.run("acquire-lease --label web --service-id b --acquire-timeout 0").code, 0);
}

#[test]
fn force_frees_it_now_and_warns_of_the_overlap() {
    let store = Store::new();
    // So long a ttl that nothing else can free it within the test.
    let holder = store.spawn("acquire-lease --label web --service-id a --ttl 300s -- sleep 1000");
    eventually("the grant", || store.run("leases").stdout.contains("attended"));
    let token = store.lease("web")["grants"][0]["token"].to_string();
    let done = store.run(&format!("evict-lease --label web --token {token} --force"));
    assert_eq!(done.code, 0);
    assert!(done.stderr.contains("warning") && done.stderr.contains("overlap"), "{}", done.stderr);
    assert_eq!(store.run("acquire-lease --label web --service-id b --acquire-timeout 0").code, 0);
    drop(holder);
}

#[test]
fn a_token_that_nobody_holds_ends_with_1() {
    let store = Store::new();
    assert_eq!(store.run("evict-lease --label web --token 7").code, 1);
    store.run("acquire-lease --label web --service-id a");
    let done = store.run("evict-lease --label web --token 7");
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("token 7"), "{}", done.stderr);
    store.run("evict-lease --label web").is_usage_error(&["--token"]);
}
