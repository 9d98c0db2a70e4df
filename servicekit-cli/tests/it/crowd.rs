//! Two hundred processes at once on one embedded store: nothing is lost, nothing hangs, and each lease has one holder at a
//! time, first come, first served.

use std::{
    collections::BTreeMap,
    fs::File,
    net::TcpListener,
    process::{Child, Command, Output, Stdio},
};

use rustix::process::Signal;
use serde_json::Value;

use crate::field::{Field, eventually, lines, send};

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
    let mut gates: Vec<Process> = (0..LEASES).map(|lease| gate(&field, lease)).collect();
    eventually("the gates hold their leases", || {
        let held = field.leases().iter().filter(|lease| ids(lease, "grants").len() == 1).count();
        held == LEASES
    });
    let watchers: Vec<Process> = (0..WATCHERS).map(|i| watcher(&field, i, &target)).collect();
    let contenders: Vec<Process> = (0..CONTENDERS).map(|i| contender(&field, i)).collect();
    let readers: Vec<Process> = (0..READERS).map(|_| reader(&field)).collect();

    // Nobody who registered is lost: every reader sees all of them up.
    for output in readers.into_iter().map(Process::finish) {
        assert!(output.status.success(), "{output:?}");
        let hosts = String::from_utf8(output.stdout).unwrap();
        assert_eq!(hosts.trim().split(',').count(), WATCHERS, "{hosts}");
    }

    // By what each was told: a request that was broken off on a busy machine may have left a ticket for nobody.
    eventually("all contenders wait", || {
        let waits = |i| lines(&field.path(&format!("c-{i}"))).concat().contains("waiting for");
        (0..CONTENDERS).all(waits)
    });
    let queues: BTreeMap<String, Vec<String>> = field
        .leases()
        .iter()
        .map(|lease| (lease["label"].as_str().unwrap().to_owned(), queue(lease)))
        .collect();
    assert_eq!(queues.values().map(Vec::len).sum::<usize>(), CONTENDERS);
    // A gate's child reads until the end of its input.
    gates.iter_mut().for_each(Process::end_input);
    for output in gates.into_iter().chain(contenders).map(Process::finish) {
        assert!(output.status.success(), "{output:?}");
    }
    let log = lines(&field.path("log"));
    for (lease, queue) in &queues {
        check(&log, lease, queue);
    }

    watchers.iter().for_each(Process::terminate);
    for output in watchers.into_iter().map(Process::finish) {
        assert!(output.status.success(), "{output:?}");
    }
    let left = field.run(["hosts", "--label", "web", "--all", "-o", "json"]);
    assert_eq!(String::from_utf8_lossy(&left.stdout).trim(), "[]", "everybody deregistered");
}

fn watcher(field: &Field, i: usize, target: &str) -> Process {
    // With room for a machine this busy: what is tested is the store, not the budget.
    let (id, address) = (format!("web-{i}"), format!("10.0.0.{i}"));
    let args = ["watch", "--label", "web", "--service-id", &id, "--address", &address];
    let probe = ["--monitor-tcp", target, "--timeout", "10s", "--detect-within", "120s"];
    Process::start(field.command().args(args).args(probe))
}

fn reader(field: &Field) -> Process {
    let all = WATCHERS.to_string();
    let args = ["hosts", "--label", "web", "--wait", &all, "--timeout", "240s"];
    Process::start(field.command().args(args))
}

/// Holds a lease until its input ends.
fn gate(field: &Field, lease: usize) -> Process {
    let label = format!("lease-{lease}");
    let args = ["acquire-lease", "--label", &label, "--service-id", "gate", "--ttl", "60s"];
    Process::start(field.command().args(args).args(["--", "cat"]).stdin(Stdio::piped()))
}

/// Logs when it enters and when it leaves, and under which token.
fn contender(field: &Field, i: usize) -> Process {
    let (label, id) = (format!("lease-{}", i % LEASES), format!("c-{i}"));
    let log = field.path("log");
    let script =
        r#"for what in in out; do echo "$1 $2 $what $SERVICEKIT_LEASE_TOKEN" >> "$0"; done"#;
    let mut command = field.command();
    command.args(["acquire-lease", "--label", &label, "--service-id", &id, "--ttl", "60s"]);
    command.args(["--acquire-timeout", "300s", "--", "sh", "-c", script]).arg(log);
    let said = File::create(field.path(&id)).unwrap();
    Process::start(command.args([label, id]).stderr(said))
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

/// Who waits, in order; who has several tickets asked last for the one that counts.
fn queue(lease: &Value) -> Vec<String> {
    let mut queue = Vec::new();
    for id in ids(lease, "waiting") {
        queue.retain(|other| *other != id);
        queue.push(id);
    }
    queue
}

fn ids(lease: &Value, of: &str) -> Vec<String> {
    let all = lease[of].as_array().unwrap().iter();
    all.map(|one| one["service_id"].as_str().unwrap().to_owned()).collect()
}

/// Killed where the test ends before it: two hundred that are left would be in everybody's way.
struct Process(Option<Child>);

impl Process {
    fn start(command: &mut Command) -> Self {
        Self(Some(command.spawn().unwrap()))
    }

    fn end_input(&mut self) {
        drop(self.0.as_mut().and_then(|child| child.stdin.take()));
    }

    fn terminate(&self) {
        send(self.0.as_ref().unwrap(), Signal::TERM);
    }

    fn finish(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
