//! `servicekit resize-lease`.

use crate::harness::Store;

#[test]
fn growing_lets_waiters_in_and_shrinking_revokes_nobody() {
    let store = Store::new();
    store.run("acquire-lease --label web --service-id a");
    let mut waiting = store.spawn("acquire-lease --label web --service-id b");
    waiting.says("held by a");
    assert_eq!(store.run("resize-lease --label web --slots 2").code, 0);
    assert_eq!(waiting.wait().code, 0);
    assert_eq!(store.run("resize-lease --label web --slots 1").code, 0);
    let lease = store.lease("web");
    assert_eq!(lease["slots"], 1);
    assert_eq!(lease["grants"].as_array().unwrap().len(), 2);
}

#[test]
fn what_cannot_be_is_refused() {
    let store = Store::new();
    assert_eq!(store.run("resize-lease --label web --slots 2").code, 1);
    store.run("resize-lease --label web --slots 0").is_usage_error(&[
        "--slots",
        "0",
        "from 1 to 64",
    ]);
    store.run("resize-lease --label web --slots 65").is_usage_error(&["--slots", "65"]);
    store.run("resize-lease --label web").is_usage_error(&["--slots"]);
}
