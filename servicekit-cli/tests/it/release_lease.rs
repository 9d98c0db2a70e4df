//! `servicekit release-lease`.

use crate::harness::{Store, eventually, hostname};

#[test]
fn an_unattended_lease_is_freed_by_id_by_token_and_by_default() {
    let store = Store::new();
    let token = |line: &str| store.json(line)["token"].to_string();
    let free = || store.lease("web")["grants"] == serde_json::json!([]);

    store.run("acquire-lease --label web --service-id a");
    assert_eq!(store.run("release-lease --label web --service-id a").code, 0);
    assert!(free());

    let held = token("acquire-lease --label web --service-id b -o json");
    assert_eq!(store.run(&format!("release-lease --label web --token {held}")).code, 0);
    assert!(free());

    let taken = store.json("acquire-lease --label web -o json");
    assert_eq!(taken["service_id"], format!("web-{}", hostname()));
    assert_eq!(store.run("release-lease --label web").code, 0);
    assert!(free());
}

#[test]
fn one_that_a_process_keeps_is_not_freed_and_is_named() {
    let store = Store::new();
    let mut keeper = store.spawn("acquire-lease --label web --service-id keeper -- sleep 1000");
    eventually("the grant", || store.run("leases").stdout.contains("keeper"));
    let token = store.lease("web")["grants"][0]["token"].to_string();
    for by in ["--service-id keeper".to_owned(), format!("--token {token}")] {
        let done = store.run(&format!("release-lease --label web {by}"));
        assert_eq!(done.code, 1);
        assert!(done.stderr.contains("keeper") && done.stderr.contains(&token), "{}", done.stderr);
    }
    assert!(keeper.is_running());
    assert_eq!(store.lease("web")["grants"].as_array().unwrap().len(), 1);
}

#[test]
fn what_is_not_there_ends_with_1_and_what_is_unclear_with_2() {
    let store = Store::new();
    let done = store.run("release-lease --label web --service-id a");
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("a does not hold web"), "{}", done.stderr);
    let done = store.run("release-lease --label web --token 7");
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("token 7"), "{}", done.stderr);

    let twice = "acquire-lease --label web --slots 2 -o json";
    let tokens = [store.json(twice)["token"].to_string(), store.json(twice)["token"].to_string()];
    store.run("release-lease --label web").is_usage_error(&["--token", &tokens[0], &tokens[1]]);
    assert_eq!(store.lease("web")["grants"].as_array().unwrap().len(), 2);
    store.run("release-lease --label web --token 1 --service-id a").is_usage_error(&["--token"]);
    store.run("release-lease --label web --token x").is_usage_error(&[
        "--token",
        "'x'",
        "`servicekit leases` shows",
    ]);
}
