//! Two hundred processes at once on one embedded store: nothing is lost, nothing hangs, and each lease has one holder at a
//! time, first come, first served.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/field.rs"]
mod field;

use std::{
    collections::BTreeMap,
    net::TcpListener,
    process::{Child, Output, Stdio},
};

use field::{Field, eventually, lines, send};
use rustix::process::Signal;
use serde_json::Value;

/// Of each kind; a guard process and a child come on top for every contender that is granted.
const WATCHERS: usize = 70;
const READERS: usize = 50;
const CONTENDERS: usize = 76;
const LEASES: usize = 4;

#[test]
fn two_hundred_processes_share_a_store() {
    let field = Field::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
    // Taken in, or the kernel's queue would be full after a while; the thread ends with the process.
    std::thread::spawn(move || listener.incoming().for_each(drop));

    // The leases are held, so that the contenders queue up in an order that can be read.
    let mut gates: Vec<Child> = (0..LEASES).map(|lease| gate(&field, lease)).collect();
    eventually("the gates hold their leases", || {
        let held = field.leases().iter().filter(|lease| ids(lease, "grants").len() == 1).count();
        held == LEASES
    });
    let watchers: Vec<Child> = (0..WATCHERS).map(|i| watcher(&field, i, &target)).collect();
    let contenders: Vec<Child> = (0..CONTENDERS).map(|i| contender(&field, i)).collect();
    let readers: Vec<Child> = (0..READERS).map(|_| reader(&field)).collect();

    // Nobody who registered is lost: every reader sees all of them up.
    for output in readers.into_iter().map(finish) {
        assert!(output.status.success(), "{output:?}");
        let hosts = String::from_utf8(output.stdout).unwrap();
        assert_eq!(hosts.trim().split(',').count(), WATCHERS, "{hosts}");
    }

    eventually("all contenders wait", || {
        let leases = field.leases();
        leases.iter().map(|lease| ids(lease, "waiting").len()).sum::<usize>() == CONTENDERS
    });
    let queues: BTreeMap<String, Vec<String>> = field
        .leases()
        .iter()
        .map(|lease| (lease["label"].as_str().unwrap().to_owned(), ids(lease, "waiting")))
        .collect();
    // A gate's child reads until the end of its input.
    gates.iter_mut().for_each(|gate| drop(gate.stdin.take()));
    for output in gates.into_iter().chain(contenders).map(finish) {
        assert!(output.status.success(), "{output:?}");
    }
    let log = lines(&field.path("log"));
    for (lease, queue) in &queues {
        check(&log, lease, queue);
    }

    watchers.iter().for_each(|watcher| send(watcher, Signal::TERM));
    for output in watchers.into_iter().map(finish) {
        assert!(output.status.success(), "{output:?}");
    }
    let left = field.run(["hosts", "--label", "web", "--all", "-o", "json"]);
    assert_eq!(String::from_utf8_lossy(&left.stdout).trim(), "[]", "everybody deregistered");
}

fn watcher(field: &Field, i: usize, target: &str) -> Child {
    // With room for a machine this busy: what is tested is the store, not the budget.
    let (id, address) = (format!("web-{i}"), format!("10.0.0.{i}"));
    let args = ["watch", "--label", "web", "--service-id", &id, "--address", &address];
    let probe = ["--monitor-tcp", target, "--timeout", "10s", "--detect-within", "120s"];
    field.command().args(args).args(probe).spawn().unwrap()
}

fn reader(field: &Field) -> Child {
    let all = WATCHERS.to_string();
    let args = ["hosts", "--label", "web", "--wait", &all, "--timeout", "240s"];
    field.command().args(args).spawn().unwrap()
}

/// Holds a lease until its input ends.
fn gate(field: &Field, lease: usize) -> Child {
    let label = format!("lease-{lease}");
    let args = ["acquire-lease", "--label", &label, "--service-id", "gate", "--ttl", "60s"];
    let mut command = field.command();
    command.args(args).args(["--", "cat"]).stdin(Stdio::piped()).spawn().unwrap()
}

/// Logs when it enters and when it leaves, and under which token.
fn contender(field: &Field, i: usize) -> Child {
    let (label, id) = (format!("lease-{}", i % LEASES), format!("c-{i}"));
    let log = field.path("log");
    let script =
        r#"for what in in out; do echo "$1 $2 $what $SERVICEKIT_LEASE_TOKEN" >> "$0"; done"#;
    let mut command = field.command();
    command.args(["acquire-lease", "--label", &label, "--service-id", &id, "--ttl", "60s"]);
    command.args(["--acquire-timeout", "300s", "--", "sh", "-c", script]).arg(log);
    command.args([label, id]).spawn().unwrap()
}

/// One at a time, tokens rising, in the order of the queue.
fn check(log: &[String], lease: &str, queue: &[String]) {
    let lines = log.iter().map(|line| line.split(' ').collect::<Vec<_>>());
    let events: Vec<_> = lines.filter(|line| line[0] == lease).collect();
    assert_eq!(events.len(), queue.len() * 2, "{lease}: {events:?}");
    let mut last = 0;
    for (pair, id) in events.chunks(2).zip(queue) {
        assert_eq!((pair[0][1], pair[0][2]), (&**id, "in"), "{lease}: {events:?}\n{queue:?}");
        assert_eq!((pair[1][1], pair[1][2]), (&**id, "out"), "{lease}: {events:?}");
        let token: u64 = pair[0][3].parse().unwrap();
        assert!(token > last, "{lease}: tokens rise: {events:?}");
        last = token;
    }
}

fn ids(lease: &Value, of: &str) -> Vec<String> {
    let all = lease[of].as_array().unwrap().iter();
    all.map(|one| one["service_id"].as_str().unwrap().to_owned()).collect()
}

fn finish(child: Child) -> Output {
    child.wait_with_output().unwrap()
}
