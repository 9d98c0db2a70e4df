//! `servicekit services`.

use std::{fs, process::Stdio};

use crate::harness::{Store, Web, eventually};

#[test]
fn every_label_is_counted_by_state() {
    let store = Store::new();
    let (well, ill) = (Web::new(200), Web::new(500));
    let _watchers = [
        store.watch("web", "web-1", &well.url()),
        store.watch("web", "web-2", &ill.url()),
        store.watch("api", "api-1", &well.url()),
    ];
    let expected = serde_json::json!([
        { "label": "api", "up": 1, "starting": 0, "draining": 0, "down": 0, "lost": 0 },
        { "label": "web", "up": 1, "starting": 0, "draining": 0, "down": 1, "lost": 0 },
    ]);
    eventually("all states", || store.json("services -o json") == expected);
    let table = store.run("services").stdout;
    let rows: Vec<Vec<_>> = table.lines().map(|row| row.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["LABEL", "UP", "STARTING", "DRAINING", "DOWN", "LOST"]);
    assert_eq!(rows[2], ["web", "1", "0", "0", "1", "0"]);
}

#[test]
fn namespaces_are_kept_apart() {
    let store = Store::new();
    let web = Web::new(200);
    let mut watcher = store.watch("web", "web-1", &web.url());
    watcher.says("-> up");
    eventually("the label", || store.json("services -o json").as_array().unwrap().len() == 1);
    assert_eq!(store.json("services -o json --namespace test"), serde_json::json!([]));
}

#[test]
fn a_broken_store_ends_with_3_and_says_where_why_and_what_to_try() {
    let store = Store::new();
    fs::write(store.path("store.db"), "this is no database, and was never one".repeat(100))
        .unwrap();
    let done = store.run("services");
    assert_eq!((done.code, done.stdout.as_str()), (3, ""), "{done:?}");
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    for part in [store.url().as_str(), "database", "servicekit doctor"] {
        assert!(done.stderr.contains(part), "{part:?} is missing: {}", done.stderr);
    }
}

#[test]
fn a_store_that_cannot_be_there_ends_with_3() {
    let store = Store::new();
    fs::write(store.path("file"), "").unwrap();
    let url = format!("local:{}/below.db", store.path("file").display());
    let done = store.run_args(["services", "--backend", &url]);
    assert_eq!((done.code, done.stdout.as_str()), (3, ""), "{done:?}");
    assert!(done.stderr.contains(&url), "{}", done.stderr);
}

#[test]
fn a_closed_pipe_ends_quietly_and_a_full_device_does_not() {
    let store = Store::new();
    for json in [false, true] {
        let mut command = store.command(["services"]);
        if json {
            command.args(["-o", "json"]);
        }
        // A pipe whose reading end is closed before anything is written.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command.stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = store.command(["services"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write to stdout"));
}
