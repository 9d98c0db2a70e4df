//! kill -9 at any point: what remains in the store is consistent, and gone within its ttl, and no child is left.

#![expect(
    clippy::disallowed_methods,
    reason = "the moment of the kill is what is tested, and a test ends at the first surprise"
)]

use std::{
    net::TcpListener,
    process::Child,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;
use servicekit::Random;

use crate::field::{Field, eventually, lines, send};

/// `SERVICEKIT_SEEDS` asks for more rounds than the few that always run.
fn seeds(few: u64) -> std::ops::Range<u64> {
    let asked = std::env::var("SERVICEKIT_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    0..asked.unwrap_or(few)
}

/// Kills it at some point of its first third of a second, or while it works.
fn kill(child: &mut Child, random: &Random) {
    std::thread::sleep(Duration::from_millis(random.below(350)));
    send(child, Signal::KILL);
    child.wait().unwrap();
}

#[test]
fn a_killed_holder_leaves_no_child_and_the_next_gets_the_lease() {
    let field = Field::new();
    let mut last = 0;
    for seed in seeds(12) {
        eprintln!("seed {seed}");
        let random = Random::seeded(seed);
        let marker = field.path(&format!("marker-{seed}"));
        // It would go on for long, ignores being asked to stop, and has a child of its own that does the same.
        let script = r#"trap '' TERM; (trap '' TERM; while :; do echo y >> "$0"; sleep 0.02; done) &
            while :; do echo x >> "$0"; sleep 0.02; done"#;
        let mut command = field.command();
        command.args(["acquire-lease", "--label", "job", "--ttl", "3s", "--kill-after", "500ms"]);
        let mut holder = command.args(["--", "sh", "-c", script]).arg(&marker).spawn().unwrap();
        kill(&mut holder, &random);

        // The next one gets the lease, whatever the first had done by then, and finds no work going on.
        let seen = r#"wc -l < "$0" > "$0.then"; sleep 0.3; wc -l < "$0" > "$0.now"; echo $SERVICEKIT_LEASE_TOKEN > "$0.token""#;
        std::fs::OpenOptions::new().create(true).append(true).open(&marker).unwrap();
        let mut command = field.command();
        command.args(["acquire-lease", "--label", "job", "--ttl", "3s", "--kill-after", "500ms"]);
        command.args(["--acquire-timeout", "60s", "--", "sh", "-c", seen]).arg(&marker);
        let output = command.output().unwrap();
        assert!(output.status.success(), "seed {seed}: {output:?}");
        let of = |suffix: &str| {
            let path = field.path(&format!("marker-{seed}.{suffix}"));
            lines(&path).concat().trim().parse::<u64>().unwrap()
        };
        assert_eq!(
            of("then"),
            of("now"),
            "seed {seed}: work went on under a lease of somebody else"
        );
        assert!(of("token") > last, "seed {seed}: tokens rise");
        last = of("token");
    }
    eventually("nothing is left but the lease's head", || {
        let lease = &field.leases()[0];
        lease["grants"].as_array().unwrap().is_empty()
            && lease["waiting"].as_array().unwrap().is_empty()
    });
}

#[test]
fn a_killed_waiter_is_passed_over() {
    let field = Field::new();
    for seed in seeds(4) {
        eprintln!("seed {seed}");
        let random = Random::seeded(seed);
        let acquire = |id: &str, args: &[&str]| {
            let mut command = field.command();
            command.args(["acquire-lease", "--label", "job", "--service-id", id]).args(args);
            command.spawn().unwrap()
        };
        let held = acquire("first", &[]).wait_with_output().unwrap();
        assert!(held.status.success(), "seed {seed}: {held:?}");
        let mut waiter = acquire("waiter", &["--acquire-timeout", "20s"]);
        kill(&mut waiter, &random);
        let next = acquire("next", &["--acquire-timeout", "60s"]);
        let released = field.run(["release-lease", "--label", "job", "--service-id", "first"]);
        assert!(released.status.success(), "seed {seed}: {released:?}");
        let output = next.wait_with_output().unwrap();
        assert!(output.status.success(), "seed {seed}: {output:?}");
        let released = field.run(["release-lease", "--label", "job", "--service-id", "next"]);
        assert!(released.status.success(), "seed {seed}: {released:?}");
    }
}

#[test]
fn a_killed_watch_is_not_up_for_longer_than_its_budget() {
    let field = Field::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
    // Taken in, or the kernel's queue would be full after a while; the thread ends with the process.
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let budget = Duration::from_secs(2);
    for seed in seeds(8) {
        eprintln!("seed {seed}");
        let random = Random::seeded(seed);
        let mut command = field.command();
        command.args(["watch", "--label", "web", "--service-id", "web-1", "--address", "10.0.0.1"]);
        command.args(["--interval", "200ms", "--timeout", "300ms", "--detect-within", "2s"]);
        match seed % 4 {
            // Killed while it is starting: its first probe is still out.
            3 => command.args(["--monitor-exec", "sleep 1"]),
            _ => command.args(["--monitor-tcp", &target]),
        };
        let mut watch = command.spawn().unwrap();
        kill(&mut watch, &random);
        let killed = Instant::now();
        // Not up is not yet lost: one that was starting is shown as that, until its session is over.
        eventually("whatever is there is lost", || {
            let is_due = killed.elapsed() > budget;
            let all = field.run(["hosts", "--label", "web", "--all", "-o", "json"]);
            assert!(matches!(all.status.code(), Some(0 | 1)), "seed {seed}: {all:?}");
            // Whatever it had written by then is whole.
            let instances: Vec<Value> = serde_json::from_slice(&all.stdout).unwrap();
            assert!(instances.len() <= 1, "seed {seed}: {instances:?}");
            let is_over = instances.iter().all(|instance| instance["state"] == "lost");
            assert!(is_over || !is_due, "seed {seed}, beyond the budget: {instances:?}");
            is_over
        });
        let up = field.run(["hosts", "--label", "web"]);
        assert_eq!(up.status.code(), Some(1), "seed {seed}: {up:?}");
    }
}
