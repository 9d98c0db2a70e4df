//! `servicekit doctor`.

mod harness;

use std::fs;

use harness::Store;

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
