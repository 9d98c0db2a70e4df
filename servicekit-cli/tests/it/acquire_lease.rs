//! `servicekit acquire-lease`.

use std::{fs, process::Stdio, time::Duration};

use rustix::process::{Pid, kill_process, test_kill_process};
use serde_json::Value;

use crate::harness::{Running, Signal, Store, Web, eventually};

const SOON: Duration = Duration::from_secs(8);

/// `acquire-lease` of the lease `web` with options, and a script as its command.
fn under_lease(store: &Store, options: &str, script: &str) -> Running {
    let options = options.split_whitespace();
    let args = ["acquire-lease", "--label", "web"].into_iter().chain(options);
    store.spawn_args(args.chain(["--", "sh", "-c", script]))
}

#[test]
fn an_unattended_lease_stands_after_the_command() {
    let store = Store::new();
    let done = store.run("acquire-lease --label web --service-id a");
    assert_eq!((done.code, done.stdout.as_str(), done.stderr.as_str()), (0, "", ""));
    let taken = store.json("acquire-lease --label web --service-id a -o json");
    let keys: Vec<_> = taken.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["expires_at", "label", "service_id", "slot", "token"]);
    assert!(taken["token"].is_u64());
    let again = store.json("acquire-lease --label web --service-id a --lease-timeout 999s -o json");
    assert_eq!(again, taken, "the same token and the same end");
    let done = store.run("acquire-lease --label web --service-id b --acquire-timeout 0");
    assert_eq!((done.code, done.stdout.as_str()), (1, ""));
    assert!(done.stderr.contains("web is not free: held by a since 20"), "{}", done.stderr);
}

#[test]
fn without_an_explicit_id_ones_own_lease_is_not_taken_again() {
    let store = Store::new();
    assert_eq!(store.run("acquire-lease --label web").code, 0);
    assert_eq!(store.run("acquire-lease --label web --acquire-timeout 0").code, 1);
}

#[test]
fn it_is_over_after_its_time_and_tokens_rise() {
    let store = Store::new();
    let first = store.json("acquire-lease --label web --service-id a --lease-timeout 1s -o json");
    let second = store.json("acquire-lease --label web --service-id b -o json");
    assert!(second["token"].as_u64() > first["token"].as_u64());
    assert!(second["expires_at"].as_str() > first["expires_at"].as_str());
}

#[test]
fn waiting_names_the_holder_and_ends_with_1() {
    let store = Store::new();
    store.run("acquire-lease --label web --service-id a");
    let done = store.run("acquire-lease --label web --service-id b --acquire-timeout 500ms");
    assert_eq!((done.code, done.stdout.as_str()), (1, ""));
    let lines: Vec<_> = done.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{}", done.stderr);
    assert!(lines[0].contains("waiting for web: held by a since 20"), "{}", lines[0]);
    assert!(lines[0].contains("0 ahead"), "{}", lines[0]);
    assert!(lines[1].contains("not granted within 500ms"), "{}", lines[1]);
    assert_eq!(store.lease("web")["waiting"], serde_json::json!([]));
}

#[test]
fn it_is_granted_to_one_at_a_time_first_come_first_served() {
    let store = Store::new();
    store.run("acquire-lease --label web --service-id gate");
    let log = store.path("log");
    let script = format!(
        "echo begin $1 $SERVICEKIT_LEASE_TOKEN >>{0}; sleep 0.05; echo end $1 $SERVICEKIT_LEASE_TOKEN >>{0}",
        log.display()
    );
    let mut jobs = Vec::new();
    for i in 0..8 {
        let id = format!("job-{i}");
        let args = [
            "acquire-lease",
            "--label",
            "web",
            "--service-id",
            &id,
            "--",
            "sh",
            "-c",
            &script,
            "sh",
        ];
        let mut job = store.spawn_args(args.into_iter().chain([i.to_string().as_str()]));
        job.says(&format!("; {i} ahead"));
        jobs.push(job);
    }
    store.run("release-lease --label web --service-id gate");
    for job in jobs {
        assert_eq!(job.wait().code, 0);
    }
    let log = fs::read_to_string(log).unwrap();
    let lines: Vec<Vec<_>> = log.lines().map(|line| line.split(' ').collect()).collect();
    let mut last = 0;
    for (i, pair) in lines.chunks(2).enumerate() {
        assert_eq!((pair[0][0], pair[1][0]), ("begin", "end"), "{log}");
        assert_eq!(pair[0][1..], pair[1][1..], "{log}");
        assert_eq!(pair[0][1], i.to_string(), "{log}");
        let token: u64 = pair[0][2].parse().unwrap();
        assert!(token > last, "{log}");
        last = token;
    }
}

#[test]
fn slots_are_shared_by_so_many() {
    let store = Store::new();
    let once = "acquire-lease --label web --slots 2 --acquire-timeout 0 -o json --service-id";
    assert_eq!(store.json(&format!("{once} a"))["slot"], 0);
    assert_eq!(store.json(&format!("{once} b"))["slot"], 1);
    assert_eq!(store.run(&format!("{once} c")).code, 1);
    let done = store.run("acquire-lease --label web --slots 3 --service-id c");
    done.is_usage_error(&["2 slots", "3"]);
}

#[test]
fn the_command_finds_the_lease_and_its_status_is_passed_on() {
    let store = Store::new();
    let script = "echo $SERVICEKIT_LEASE_TOKEN $SERVICEKIT_LEASE_LABEL; cat $SERVICEKIT_LEASE_FILE; \
                  echo $SERVICEKIT_LEASE_FILE; exit 7";
    let done = under_lease(&store, "--service-id a", script).wait();
    assert_eq!(done.code, 7, "{}", done.stderr);
    let lines: Vec<_> = done.stdout.lines().collect();
    let token = lines[0].strip_suffix(" web").unwrap();
    let file: Value = serde_json::from_str(lines[1]).unwrap();
    assert_eq!(file["token"].to_string(), token);
    assert!(file["deadline"].is_string());
    assert!(!fs::exists(lines[2]).unwrap(), "the file goes with the lease");
    assert_eq!(store.lease("web")["grants"], serde_json::json!([]));
}

#[test]
fn a_command_that_does_not_start_gives_the_lease_back() {
    let store = Store::new();
    for (program, code) in
        [("/nonexistent/program", 127), ("no-such-program", 127), ("/etc/passwd", 126)]
    {
        let done = store.run(&format!("acquire-lease --label web -- {program}"));
        assert_eq!(done.code, code, "{}", done.stderr);
        assert!(done.stderr.contains(program), "{}", done.stderr);
        assert_eq!(store.lease("web")["grants"], serde_json::json!([]));
    }
}

#[test]
fn a_command_that_has_to_wait_too_long_ends_with_124() {
    let store = Store::new();
    store.run("acquire-lease --label web --service-id a");
    for timeout in ["0", "300ms"] {
        let options = format!("--service-id a --acquire-timeout {timeout}");
        let done = under_lease(&store, &options, "echo never").wait();
        assert_eq!((done.code, done.stdout.as_str()), (124, ""), "{}", done.stderr);
    }
}

#[test]
fn who_tries_once_waits_for_the_turn_of_the_dead_also_beyond_the_time_of_the_store() {
    let store = Store::new();
    store.run("acquire-lease --label web --service-id a");
    let mut dead = store.spawn("acquire-lease --label web --service-id b");
    dead.says("waiting for web");
    drop(dead);
    store.run("release-lease --label web --service-id a");
    let once = "acquire-lease --label web --service-id c --acquire-timeout 0 --store-timeout 2s";
    let done = store.run(once);
    assert_eq!(done.code, 0, "{}", done.stderr);
}

#[test]
fn a_lease_that_a_process_keeps_is_never_shared() {
    let store = Store::new();
    let working = under_lease(&store, "--service-id a", "echo ready; exec sleep 1000");
    working.last_line_is("ready");
    let again = "acquire-lease --label web --service-id a --acquire-timeout 0";
    assert_eq!(store.run(again).code, 1);
    assert_eq!(store.run(&format!("{again} -- echo never")).code, 124);
}

#[test]
fn a_grant_that_nobody_hears_of_is_given_back() {
    let store = Store::new();
    for args in [&[][..], &["--", "echo", "never"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = store.command(["acquire-lease", "--label", "web", "-o", "json"]);
        let output = command.args(args).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(125));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("web was given back: cannot write to stdout"), "{said}");
        assert_eq!(store.lease("web")["grants"], serde_json::json!([]));
    }
}

#[test]
fn a_store_that_is_away_ends_with_3_or_with_125_for_a_command() {
    let store = Store::new();
    fs::write(store.path("store.db"), "no database".repeat(500)).unwrap();
    let done = store.run("acquire-lease --label web --acquire-timeout 1s");
    assert_eq!(done.code, 3, "{}", done.stderr);
    assert!(done.stderr.contains(&store.url()), "{}", done.stderr);
    let done = under_lease(&store, "--acquire-timeout 1s", "echo never").wait();
    assert_eq!((done.code, done.stdout.as_str()), (125, ""), "{}", done.stderr);
}

#[test]
fn a_signal_while_waiting_leaves_the_queue() {
    let store = Store::new();
    store.run("acquire-lease --label web --service-id a");
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        for command in [false, true] {
            let mut waiting = if command {
                under_lease(&store, "--service-id b", "echo never")
            } else {
                store.spawn("acquire-lease --label web --service-id b")
            };
            waiting.says("0 ahead");
            let done = waiting.end(signal, SOON);
            assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{}", done.stderr);
            let lease = store.lease("web");
            assert_eq!(lease["waiting"], serde_json::json!([]));
            assert_eq!(lease["grants"][0]["service_id"], "a");
        }
    }
}

#[test]
fn a_guard_that_is_killed_while_it_stands_by_is_replaced_and_none_is_left() {
    let store = Store::new();
    let held = under_lease(&store, "", "sleep 600");
    eventually("the first grant", || store.run("leases").stdout.contains("attended"));
    let (mut second, mut third) =
        (under_lease(&store, "", "exit 7"), under_lease(&store, "", "true"));
    second.says("waiting for");
    third.says("waiting for");
    let (of_second, of_third) = (guard_of(&second), guard_of(&third));
    kill_process(of_second, Signal::KILL).unwrap();
    let _ = third.end(Signal::TERM, Duration::from_secs(20));
    eventually("the end of the third's guard", || test_kill_process(of_third).is_err());
    held.end(Signal::TERM, Duration::from_secs(20));
    assert_eq!(second.wait().code, 7);
}

/// The only child of a servicekit that waits.
fn guard_of(waiting: &Running) -> Pid {
    let children = format!("/proc/{0}/task/{0}/children", waiting.id());
    let children = fs::read_to_string(children).expect("it runs");
    let child = children.trim().parse().expect("one child");
    Pid::from_raw(child).expect("not 0")
}

#[test]
fn a_signal_ends_the_command_and_frees_the_lease() {
    let store = Store::new();
    let script = "trap 'echo told; exit 9' TERM; echo ready; while :; do sleep 0.05; done";
    let working = under_lease(&store, "", script);
    working.last_line_is("ready");
    let done = working.end(Signal::TERM, SOON);
    assert_eq!((done.code, done.stdout.as_str()), (9, "ready\ntold\n"), "{}", done.stderr);
    assert_eq!(store.lease("web")["grants"], serde_json::json!([]));

    let working = under_lease(&store, "", "echo ready; exec sleep 1000");
    working.last_line_is("ready");
    assert_eq!(working.end(Signal::INT, SOON).code, 130);
}

#[test]
fn a_command_that_ignores_the_signal_is_killed() {
    let store = Store::new();
    let script = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let working = under_lease(&store, "--kill-after 500ms", script);
    working.last_line_is("ready");
    let done = working.end(Signal::TERM, Duration::from_secs(4));
    assert_eq!(done.code, 137, "{}", done.stderr);
    assert_eq!(store.lease("web")["grants"], serde_json::json!([]));
}

#[test]
fn it_is_renewed_while_the_command_runs() {
    let store = Store::new();
    let script = "cat $SERVICEKIT_LEASE_FILE; sleep 3; cat $SERVICEKIT_LEASE_FILE";
    let done = under_lease(&store, "--ttl 1500ms --kill-after 500ms", script).wait();
    assert_eq!(done.code, 0, "{}", done.stderr);
    let files: Vec<Value> =
        done.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(files[0]["token"], files[1]["token"]);
    assert!(files[0]["deadline"].as_str() < files[1]["deadline"].as_str());
}

#[test]
fn a_servicekit_that_was_stopped_says_that_the_lease_was_lost() {
    let store = Store::new();
    let pid = store.path("pid");
    let script = format!("echo $$ >{}; echo ready; exec sleep 1000", pid.display());
    let working = under_lease(&store, "--ttl 3s --kill-after 1s", &script);
    working.last_line_is("ready");
    working.signal(Signal::STOP);
    let pid = fs::read_to_string(pid).unwrap().trim().to_owned();
    eventually("the end of the command", || !fs::exists(format!("/proc/{pid}")).unwrap());
    let done = working.end(Signal::CONT, SOON);
    assert_eq!(done.code, 123, "{}", done.stderr);
    assert!(done.stderr.contains("lost web"), "{}", done.stderr);
}

#[test]
fn what_a_killed_servicekit_leaves_ends_within_its_ttl() {
    let store = Store::new();
    let pid = store.path("pid");
    let script = format!("echo $$ >{}; echo ready; exec sleep 1000", pid.display());
    let working = under_lease(&store, "--ttl 3s --kill-after 1s", &script);
    working.last_line_is("ready");
    working.end(Signal::KILL, SOON);
    let pid = fs::read_to_string(pid).unwrap().trim().to_owned();
    eventually("the end of the command", || !fs::exists(format!("/proc/{pid}")).unwrap());
    assert_eq!(
        store.run("acquire-lease --label web --service-id next --acquire-timeout 30s").code,
        0
    );
}

#[test]
fn until_healthy_gives_the_lease_back_and_the_command_runs_on() {
    let store = Store::new();
    let web = Web::new(503);
    let options = format!("--until-healthy {}", web.url());
    let mut working = under_lease(&store, &options, "echo ready; sleep 1000");
    working.last_line_is("ready");
    assert_eq!(store.lease("web")["grants"].as_array().unwrap().len(), 1);
    web.set(200);
    working.says("the command runs on");
    assert_eq!(store.lease("web")["grants"], serde_json::json!([]));
    assert!(working.is_running());
    assert_eq!(working.end(Signal::TERM, SOON).code, 143);
}

#[test]
fn until_healthy_in_vain_stops_the_command() {
    let store = Store::new();
    let web = Web::new(503);
    let options = format!("--until-healthy {} --lease-timeout 1s --kill-after 500ms", web.url());
    let done = under_lease(&store, &options, "sleep 1000").wait();
    assert_eq!(done.code, 123, "{}", done.stderr);
    assert!(done.stderr.contains("503"), "{}", done.stderr);
    assert_eq!(store.lease("web")["grants"], serde_json::json!([]));
}

#[test]
fn until_healthy_without_a_command_waits_itself() {
    let store = Store::new();
    let web = Web::new(503);
    let line = |time: &str| {
        format!("acquire-lease --label web --until-healthy {} --lease-timeout {time}", web.url())
    };
    let done = store.run(&line("1s"));
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("not healthy before the lease ended"), "{}", done.stderr);

    store.run("acquire-lease --label web --service-id a --lease-timeout 2s");
    let done = store.run(&format!("{} --service-id a", line("300s")));
    assert_eq!(done.code, 1, "a grant that is used again ends when it would have ended");
    assert!(done.stderr.contains("not healthy before the lease ended"), "{}", done.stderr);

    let mut waiting = store.spawn(&line("300s"));
    eventually("the grant", || store.run("leases").stdout.contains("unattended"));
    assert!(waiting.is_running());
    web.set(200);
    assert_eq!(waiting.wait().code, 0);
    assert_eq!(store.lease("web")["grants"], serde_json::json!([]));

    web.set(503);
    let waiting = store.spawn(&line("300s"));
    eventually("the grant", || store.run("leases").stdout.contains("unattended"));
    assert_eq!(waiting.end(Signal::TERM, SOON).code, 143);
    assert_eq!(store.lease("web")["grants"], serde_json::json!([]));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let store = Store::new();
    for (options, parts) in [
        ("--slots 0", &["--slots", "0", "from 1 to 64"][..]),
        ("--slots 65", &["--slots", "65"]),
        ("--acquire-timeout never", &["--acquire-timeout", "forever"]),
        ("--lease-timeout 0", &["--lease-timeout", "more than zero"]),
        ("--lease-timeout 5y", &["--lease-timeout", "15s"]),
        ("--service-id a/b", &["--service-id", "'/' at character 2"]),
        ("--ttl 30s", &["--ttl", "command after --", "--lease-timeout"]),
        ("--kill-after 1s", &["--kill-after", "command after --"]),
        ("--ttl 10s -- true", &["--ttl 10s", "--kill-after 5s"]),
        ("--kill-after 11s -- true", &["--ttl 30s", "--kill-after 11s"]),
        ("--until-healthy nowhere", &["--until-healthy"]),
        ("true", &["true"]),
        ("--", &["no command after --"]),
    ] {
        store.run(&format!("acquire-lease --label web {options}")).is_usage_error(parts);
    }
}
