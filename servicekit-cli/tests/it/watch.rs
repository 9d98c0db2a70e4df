//! `servicekit watch`.

use std::{fs, net::TcpListener, time::Duration};

use crate::harness::{Signal, Store, Web, eventually, hostname};

#[test]
fn it_deregisters_at_once_when_it_is_told_to_end() {
    let store = Store::new();
    let web = Web::new(200);
    for signal in [Signal::TERM, Signal::INT] {
        let mut watcher = store.watch("web", "web-1", &web.url());
        watcher.says("web web-1: starting -> up");
        eventually("the registration", || store.run("hosts --label web").code == 0);
        let done = watcher.end(signal, Duration::from_secs(8));
        assert_eq!((done.code, done.stdout.as_str()), (0, ""));
        let done = store.run("hosts --label web --all -o json");
        assert_eq!((done.code, done.stdout.as_str()), (1, "[]\n"));
    }
}

#[test]
fn each_change_is_a_line_with_its_reason() {
    let store = Store::new();
    let web = Web::new(200);
    let mut watcher = store.watch("web", "web-1", &web.url());
    watcher.says("starting -> up");
    web.set(503);
    watcher.says("up -> down");
    assert!(watcher.stderr().contains("503"), "{}", watcher.stderr());
    eventually("the change", || store.run("hosts --label web").code == 1);
    web.set(204);
    watcher.says("down -> up");
    assert_eq!(watcher.stderr().lines().count(), 3, "{}", watcher.stderr());
}

#[test]
fn only_2xx_is_well_unless_more_is_expected() {
    let store = Store::new();
    let web = Web::new(302);
    let mut strict = store.watch("strict", "one", &web.url());
    strict.says("-> down");
    let url = web.url();
    let mut wide = store.spawn(&format!(
        "watch --label wide --monitor-url {url} --expect-status 200-399 --interval 100ms"
    ));
    wide.says(&format!("wide wide-{}: starting -> up", hostname()));
}

#[test]
fn all_probes_must_pass() {
    let store = Store::new();
    let web = Web::new(200);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = listener.local_addr().unwrap();
    let flag = store.path("flag");
    let args = [
        "watch",
        "--label",
        "web",
        "--service-id",
        "web-1",
        "--service-info",
        "a=1",
        "b=2",
        "--interval",
        "100ms",
        "--monitor-url",
        &web.url(),
        "--monitor-tcp",
        &tcp.to_string(),
        "--monitor-exec",
        &format!("test -e {}", flag.display()),
    ];
    let mut watcher = store.spawn_args(args);
    watcher.says("starting -> down");
    fs::write(&flag, "").unwrap();
    watcher.says("down -> up");
    let hosts = store.json("hosts --label web --wait -o json");
    assert_eq!(hosts[0]["info"], serde_json::json!({ "a": "1", "b": "2" }));
    drop(listener);
    watcher.says("up -> down");
}

#[test]
fn a_probe_does_not_see_a_password_of_the_store() {
    let store = Store::new();
    let seen = store.path("seen");
    let probe = format!("env >{}", seen.display());
    let mut command = store.command(["watch", "--label", "web", "--monitor-exec", &probe]);
    command.env("SERVICEKIT_PASSWORD", "secret").env("SERVICEKIT_NAMESPACE", "kept");
    let mut watcher = store.spawn_command(command);
    watcher.says("-> up");
    let seen = fs::read_to_string(seen).unwrap();
    assert!(!seen.contains("secret"), "{seen}");
    assert!(seen.contains("SERVICEKIT_NAMESPACE=kept"), "{seen}");
    assert!(seen.contains("SERVICEKIT_BACKEND=local:"), "a probe may ask the same store: {seen}");
}

#[test]
fn the_newer_of_two_with_the_same_id_wins_and_the_older_ends_with_5() {
    let store = Store::new();
    let web = Web::new(200);
    let mut older = store.watch("web", "web-1", &web.url());
    older.says("-> up");
    let mut newer = store.watch("web", "web-1", &web.url());
    newer.says("-> up");
    let done = older.wait();
    assert_eq!(done.code, 5);
    assert!(done.stderr.contains("superseded"), "{}", done.stderr);
    assert!(newer.is_running());
    let hosts = store.json("hosts --label web --wait -o json");
    assert_eq!(hosts.as_array().unwrap().len(), 1);
    assert_eq!(newer.end(Signal::TERM, Duration::from_secs(8)).code, 0);
}

#[test]
fn what_was_killed_is_lost_within_the_budget() {
    let store = Store::new();
    let web = Web::new(200);
    let mut watcher = store.watch("web", "web-1", &web.url());
    watcher.says("-> up");
    eventually("the registration", || store.run("hosts --label web").code == 0);
    watcher.end(Signal::KILL, Duration::from_secs(8));
    eventually("the loss", || store.run("hosts --label web").code == 1);
    let all = store.json("hosts --label web --all -o json");
    assert_eq!(all[0]["state"], "lost");
}

#[test]
fn it_frees_the_unattended_lease_of_its_instance_and_no_other() {
    let store = Store::new();
    let web = Web::new(500);
    let mut watcher = store.watch("web", "web-1", &web.url());
    watcher.says("-> down");
    for id in ["web-1", "web-2"] {
        let line =
            format!("acquire-lease --label web --service-id {id} --slots 2 --lease-timeout 300s");
        assert_eq!(store.run(&line).code, 0);
    }
    web.set(200);
    watcher.says("released the lease web");
    let lease = store.lease("web");
    let grants = &lease["grants"];
    assert_eq!(grants.as_array().unwrap().len(), 1);
    assert_eq!(grants[0]["service_id"], "web-2");
}

#[test]
fn many_services_of_a_file_are_watched_in_one_process() {
    let store = Store::new();
    let web = Web::new(200);
    let file = store.path("watch.toml");
    let text = format!(
        "detect-within = \"10s\"\n\
         [[service]]\nlabel = \"web\"\nmonitor-url = \"{url}\"\ninterval = \"100ms\"\naddress = \"h1:80\"\n\
         service-info = {{ version = \"1\", data = 2 }}\n\
         [[service]]\nlabel = \"db\"\nservice-id = \"db-1\"\nmonitor-exec = [\"true\", \"exit 0\"]\ninterval = 1\nfall = 3\n\
         weight = 50\nzone = \"a\"\ninsecure = false\n",
        url = web.url()
    );
    fs::write(&file, text).unwrap();
    let mut watcher = store.spawn(&format!("watch --config {}", file.display()));
    watcher.says("db db-1: starting -> up");
    watcher.says(&format!("web web-{}: starting -> up", hostname()));
    let hosts = store.json("hosts --label web --wait -o json");
    assert_eq!(hosts[0]["info"], serde_json::json!({ "data": "2", "version": "1" }));
    let hosts = store.json("hosts --label db --wait -o json");
    assert_eq!((hosts[0]["weight"].as_u64(), hosts[0]["zone"].as_str()), (Some(50), Some("a")));
    assert_eq!(watcher.end(Signal::TERM, Duration::from_secs(8)).code, 0);
    assert_eq!(store.run("hosts --label db --all").code, 1);
}

#[test]
fn a_wrong_file_is_named_with_the_place() {
    let store = Store::new();
    let file = store.path("watch.toml");
    let line = format!("watch --config {}", file.display());
    let name = file.display().to_string();
    store.run(&line).is_usage_error(&[&name, "No such file"]);
    for (text, part) in [
        ("", "at least one [[service]]"),
        ("a =", "line 1"),
        ("\n\n[[service]\n", "line 3"),
        ("detect = 1\n[[service]]\nlabel = \"a\"", "unknown key \"detect\""),
        ("[[service]]\nlabel = \"a\"\nmonitor-exec = \"true\"\ncolour = 1", "--colour"),
        ("[[service]]\nlabel = \"a\"\nmonitor-exec = \"true\"\nconfig = \"x\"", "--config"),
        ("[[service]]\nmonitor-exec = \"true\"", "--label"),
        ("[[service]]\nlabel = \"a\"", "number 1 (\"a\"): give --monitor-url"),
        ("[[service]]\nlabel = \"a b\"\nmonitor-exec = \"true\"", "' ' at character 2"),
        ("[[service]]\nlabel = \"a\"\nmonitor-exec = \"true\"\nfall = 1.5", "fall: expected"),
        (
            "[[service]]\nlabel = \"a\"\nmonitor-exec = \"true\"\ninterval = \"1h\"",
            "--detect-within",
        ),
        (
            "[[service]]\nlabel = \"a\"\nmonitor-exec = \"true\"\n[[service]]\nlabel = \"a\"\nmonitor-exec = \"true\"",
            "twice",
        ),
    ] {
        fs::write(&file, text).unwrap();
        let done = store.run(&line);
        done.is_usage_error(&[part]);
        assert!(done.stderr.contains(&name) || part == "twice", "{}", done.stderr);
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let store = Store::new();
    fs::write(store.path("ca.pem"), "no certificate").unwrap();
    let ca = format!("--monitor-url https://h/ --ca {}", store.path("ca.pem").display());
    for (options, parts) in [
        ("", &["--monitor-url"][..]),
        ("--monitor-url nowhere", &["--monitor-url"]),
        ("--monitor-url ftp://h/", &["--monitor-url", "ftp"]),
        ("--monitor-tcp h", &["--monitor-tcp", "HOST:PORT"]),
        ("--monitor-tcp h:0", &["--monitor-tcp", "1 to 65535"]),
        ("--monitor-exec= --service-id a", &["--monitor-exec"]),
        ("--monitor-exec true --service-id a/b", &["--service-id", "'/' at character 2"]),
        ("--monitor-exec true --address a,b:1", &["--address", "','"]),
        ("--monitor-exec true --service-info novalue", &["--service-info", "KEY=VALUE"]),
        ("--monitor-exec true --expect-status 200", &["--monitor-url"]),
        ("--monitor-url http://h/ --expect-status 2xx", &["--expect-status", "2xx"]),
        ("--monitor-url http://h/ --header nocolon", &["--header", "NAME: VALUE"]),
        ("--monitor-exec true --rise 0", &["--rise", "0"]),
        ("--monitor-exec true --interval 0", &["--interval", "more than zero"]),
        ("--monitor-exec true --config x.toml", &["--config"]),
        (
            "--monitor-exec true --detect-within 10ms --interval 1ms --timeout 1ms",
            &["--detect-within", "store"],
        ),
        (ca.as_str(), &["ca.pem"]),
    ] {
        store.run(&format!("watch --label web {options}")).is_usage_error(parts);
    }
}

#[test]
fn a_probe_that_is_too_slow_for_the_budget_is_refused_with_the_sum() {
    let store = Store::new();
    let done =
        store.run("watch --label web --monitor-exec true --fall 3 --interval 5s --timeout 2s");
    done.is_usage_error(&[
        "--fall 3",
        "--interval 5s",
        "--timeout 2s",
        "21s",
        "--detect-within 15s",
    ]);
}

#[test]
fn a_store_that_was_replaced_ends_it_with_3() {
    let store = Store::new();
    let web = Web::new(200);
    let mut watcher = store.watch("web", "web-1", &web.url());
    watcher.says("starting -> up");
    eventually("the registration", || store.run("hosts --label web").code == 0);
    for suffix in ["", "-wal", "-shm"] {
        fs::remove_file(store.path(&format!("store.db{suffix}"))).unwrap();
    }
    // Whoever comes next makes a new one.
    assert_eq!(store.run("hosts --label web").code, 1);
    let done = watcher.wait();
    assert_eq!(done.code, 3, "{}", done.stderr);
    assert!(done.stderr.contains("replaced"), "{}", done.stderr);
}
