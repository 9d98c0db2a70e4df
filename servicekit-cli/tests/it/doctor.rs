//! `servicekit doctor`.

use std::fs;

use serde_json::Value;

use crate::harness::Store;

#[test]
fn a_store_that_is_well_has_only_fine_findings() {
    let store = Store::new();
    let findings = store.json("doctor -o json");
    let findings = findings.as_array().unwrap();
    assert!(!findings.is_empty());
    for finding in findings {
        assert!(finding["check"].is_string() && finding["detail"].is_string(), "{finding}");
        assert_ne!(finding["severity"], "problem", "{finding}");
    }
    let table = store.run("doctor");
    assert_eq!(table.code, 0);
    assert!(table.stdout.starts_with("CHECK"), "{}", table.stdout);
}

#[test]
fn a_store_in_memory_is_examined_too() {
    let done = Store::new().run("doctor --backend memory:");
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
}

#[test]
fn a_file_that_is_no_database_is_a_problem() {
    let store = Store::new();
    fs::write(store.path("store.db"), "no database".repeat(500)).unwrap();
    let done = store.run("doctor");
    assert_eq!(done.code, 3, "{done:?}");
    assert!(format!("{}{}", done.stdout, done.stderr).contains("store.db"), "{done:?}");
}

#[test]
fn who_keeps_the_store_locked_is_named_beside_all_other_findings() {
    let store = Store::new();
    store.json("doctor -o json");
    let holder = rusqlite::Connection::open(store.path("store.db")).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    let me = format!("process {} (it-", std::process::id());
    for time in ["1s", "3s", "10s"] {
        let done = store.run(&format!("doctor -o json --store-timeout {time}"));
        assert_eq!((done.code, done.stderr.as_str()), (3, ""), "{time}: {done:?}");
        let findings: Vec<Value> = serde_json::from_str(&done.stdout).unwrap();
        let of = |check: &str| findings.iter().find(|finding| finding["check"] == check).unwrap();
        let lock = of("write lock");
        assert_eq!(lock["severity"], "problem");
        assert!(lock["remedy"].as_str().unwrap().contains(&me), "{lock}");
        assert_eq!(of("operations")["severity"], "problem");
        assert_eq!(of("content")["severity"], "fine", "a reader needs no lock");
    }
    let table = store.run("doctor --store-timeout 3s");
    assert_eq!(table.code, 3);
    assert!(table.stdout.contains(&me), "{}", table.stdout);
}
