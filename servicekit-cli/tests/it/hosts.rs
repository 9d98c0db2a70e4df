//! `servicekit hosts`.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::Duration,
};

use serde_json::Value;
use servicekit::{
    Env, Name, Namespace,
    store::{Expect, Group, Keep, Put, Store as _, WriteId},
};
use servicekit_local::Local;

use crate::harness::{Signal, Store, Web, eventually, hostname, instance};

#[test]
fn none_up_ends_with_1_and_a_valid_empty_document() {
    let store = Store::new();
    for (format, stdout) in [
        ("", ""),
        ("--format csv", ""),
        ("--format lines", ""),
        ("--format json", "[]\n"),
        ("-o json", "[]\n"),
        ("--format prometheus", "[]\n"),
        (
            "--format env",
            "SERVICEKIT_WEB_HOSTS=''\nSERVICEKIT_WEB_COUNT='0'\nSERVICEKIT_WEB_HOST=''\nSERVICEKIT_WEB_PORT=''\n",
        ),
        ("--format hosts", ""),
        ("--format haproxy", "backend web\n"),
        ("--format nginx", "upstream web {\n    server 127.0.0.1:1 down;\n}\n"),
        ("--all", ""),
        ("--all -o json", "[]\n"),
    ] {
        let done = store.run(&format!("hosts --label web {format}"));
        assert_eq!(
            (done.code, done.stdout.as_str(), done.stderr.as_str()),
            (1, stdout, ""),
            "{format}"
        );
    }
}

#[test]
fn those_that_are_up_are_listed_in_natural_order() {
    let store = Store::new();
    let (well, ill) = (Web::new(200), Web::new(500));
    let mut watchers = [
        store.watch_at("ten", &well, "10.0.0.10:80"),
        store.watch_at("two", &well, "10.0.0.2:80"),
        store.watch_at("six", &well, "[fe80::6]:80"),
        store.watch_at("none", &well, "10.0.0.3"),
        store.watch_at("ill", &ill, "10.0.0.1:80"),
    ];
    for watcher in &mut watchers[..4] {
        watcher.says("-> up");
    }
    watchers[4].says("-> down");
    assert_eq!(store.run("hosts --label web --wait 4").code, 0);
    eventually("the one that is down", || {
        store.run("hosts --label web --all").stdout.contains("down")
    });
    for (options, stdout) in [
        ("", "10.0.0.2:80,10.0.0.3,10.0.0.10:80,[fe80::6]:80\n"),
        ("--no-port", "10.0.0.2,10.0.0.3,10.0.0.10,fe80::6\n"),
        ("--port 9200", "10.0.0.2:9200,10.0.0.3:9200,10.0.0.10:9200,[fe80::6]:9200\n"),
        ("--format lines", "10.0.0.2:80\n10.0.0.3\n10.0.0.10:80\n[fe80::6]:80\n"),
        ("-o text --wait 4", "10.0.0.2:80,10.0.0.3,10.0.0.10:80,[fe80::6]:80\n"),
    ] {
        let done = store.run(&format!("hosts --label WEB {options}"));
        assert_eq!((done.code, done.stdout.as_str()), (0, stdout), "{options}: {}", done.stderr);
    }

    let hosts = store.json("hosts --label web -o json");
    let first = &hosts[0];
    assert_eq!(first["label"], "web");
    assert_eq!(first["service_id"], "two");
    assert_eq!((first["host"].as_str(), first["port"].as_u64()), (Some("10.0.0.2"), Some(80)));
    assert_eq!(first["state"], "up");
    assert_eq!(first["info"], serde_json::json!({ "version": "7" }));
    assert!(first["since"].as_str().unwrap().ends_with('Z'));
    assert_eq!(hosts[1]["port"], Value::Null);
    assert_eq!(hosts, store.json("hosts --label web --format json"));

    let targets = store.json("hosts --label web --format prometheus");
    assert_eq!(targets[3]["targets"], serde_json::json!(["[fe80::6]:80"]));
    assert_eq!(targets[3]["labels"]["__meta_servicekit_service_id"], "six");

    let all = store.json("hosts --label web --all -o json");
    assert_eq!(all[0]["service_id"], "ill");
    assert_eq!(all[0]["state"], "down");
    assert!(all[0]["reason"].as_str().unwrap().contains("500"), "{all}");
    let table = store.run("hosts --label web --all").stdout;
    assert!(
        table
            .lines()
            .any(|row| row.starts_with("ill ") && row.contains("down") && row.contains("500"))
    );
}

#[test]
fn an_address_that_instances_share_is_printed_once_but_as_json() {
    let store = Store::new();
    store.register([
        instance("web-1", "10.0.0.2", Some(81)),
        instance("web-2", "10.0.0.2", Some(80)),
        instance("web-3", "10.0.0.10", Some(80)),
    ]);
    for (options, stdout) in [
        ("", "10.0.0.2:80,10.0.0.2:81,10.0.0.10:80\n"),
        ("--no-port", "10.0.0.2,10.0.0.10\n"),
        ("--no-port --format lines", "10.0.0.2\n10.0.0.10\n"),
        ("--port 9", "10.0.0.2:9,10.0.0.10:9\n"),
        ("--no-port --wait 3 --timeout 1s", "10.0.0.2,10.0.0.10\n"),
    ] {
        let done = store.run(&format!("hosts --label web {options}"));
        assert_eq!((done.code, done.stdout.as_str()), (0, stdout), "{options}: {}", done.stderr);
    }
    let json = store.json("hosts --label web --no-port -o json");
    assert_eq!(json.as_array().unwrap().len(), 3);
    assert_eq!(json[0]["since"], "2025-11-21T00:00:00.000Z", "always as long, so that it sorts");
}

#[test]
fn a_slow_reader_is_not_taken_for_a_slow_store() {
    let store = Store::new();
    // More than a pipe holds.
    store.register((0..600).map(|i| instance(&format!("web-{i}"), "10.0.0.2", Some(80))));
    let mut command = store.command(["hosts", "--label", "web", "-o", "json"]);
    command.args(["--store-timeout", "1s"]).stdout(Stdio::piped());
    let child = command.spawn().unwrap();
    let (clock, began) = (Env::system().clock, Env::system().clock.now());
    eventually("a time longer than the store may take", || {
        clock.now().since(began) > Duration::from_secs(2)
    });
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(all.as_array().unwrap().len(), 600);
    assert!(output.stdout.len() > 1 << 16);
}

#[test]
fn what_is_left_out_or_lost_is_said_once() {
    let store = Store::new();
    let strange = ["a,b", "a b", "a;b", "a\nb", "-a", "{a}", ""];
    let strange = strange.iter().enumerate();
    store.register(strange.map(|(i, host)| instance(&format!("bad-{i}"), host, Some(80))));
    store.register([instance("fine", "10.0.0.2", None)]);
    for options in ["", "-o json", "--format haproxy --port 80", "--all", "--format nginx --port 8"]
    {
        let done = store.run(&format!("hosts --label web {options}"));
        assert_eq!(done.code, 0, "{options}: {}", done.stderr);
        assert!(!done.stdout.contains("bad-"), "{options}: {}", done.stdout);
        let said: Vec<_> = done.stderr.lines().collect();
        assert_eq!(said.len(), 7, "one for each problem: {}", done.stderr);
        assert!(said.iter().all(|line| line.contains("left out (")), "{}", done.stderr);
        assert!(done.stderr.contains("web: 1 left out (',' at character 2 of the host): bad-0"));
    }
    let done = store.run("hosts --label web --format nginx");
    assert_eq!((done.code, done.stdout.contains("127.0.0.1:1 down")), (1, true));
    assert!(
        done.stderr.contains("web: 1 left out (no port is registered, --port N gives one): fine")
    );
}

#[test]
fn who_is_lost_is_told_once_and_again_after_coming_back() {
    let store = Store::new();
    let web = Web::new(200);
    let mut following = store.spawn("hosts --label web --watch");
    for times in 1..=2 {
        let watcher = store.watch_at("one", &web, "h1:1");
        following.last_line_is("h1:1");
        // Killed, so that it cannot take its leave.
        drop(watcher);
        let lost = "web: 1 lost (no sign of life from the node): one";
        following.says(lost);
        following.last_line_is("");
        eventually("told again", || following.stderr().matches(lost).count() == times);
        let done = store.run("hosts --label web");
        assert_eq!((done.code, done.stdout.as_str()), (1, ""));
        assert!(done.stderr.contains(lost), "{}", done.stderr);
        assert_eq!(store.run("hosts --label web --all").stderr, "", "the table shows it");
    }
}

#[test]
fn a_loopback_is_registered_as_this_host() {
    let store = Store::new();
    let web = Web::new(200);
    let mut watcher = store.watch("web", "web-1", &web.url());
    watcher.says("-> up");
    let expected = format!("{}:{}\n", hostname(), web.port());
    assert_eq!(store.run("hosts --label web --wait").stdout, expected);
}

#[test]
fn waiting_ends_when_enough_are_up() {
    let store = Store::new();
    let web = Web::new(500);
    let waiting = store.spawn("hosts --label web --wait 2 --timeout 60s");
    let _one = store.watch_at("one", &web, "h1:1");
    let _two = store.watch_at("two", &web, "h2:2");
    eventually("both down", || {
        let done = store.run("hosts --label web --all -o json");
        let all: Value = serde_json::from_str(&done.stdout).unwrap();
        all.as_array().unwrap().iter().filter(|one| one["state"] == "down").count() == 2
    });
    web.set(200);
    let done = waiting.wait();
    assert_eq!((done.code, done.stdout.as_str()), (0, "h1:1,h2:2\n"), "{}", done.stderr);
    assert_eq!(done.stderr, "", "no progress where there is no terminal");
}

#[test]
fn waiting_in_vain_ends_with_1() {
    let store = Store::new();
    for (format, stdout) in [("csv", ""), ("json", "[]\n")] {
        let done = store.run(&format!("hosts --label web --wait --timeout 2s --format {format}"));
        assert_eq!((done.code, done.stdout.as_str()), (1, stdout));
        assert!(done.stderr.contains("0 of 1"), "{}", done.stderr);
    }
}

#[test]
fn watching_prints_the_list_now_and_on_each_change() {
    let store = Store::new();
    let web = Web::new(200);
    let following = store.spawn("hosts --label web --watch");
    following.last_line_is("");
    let _one = store.watch_at("one", &web, "h1:1");
    following.last_line_is("h1:1");
    let two = store.watch_at("two", &web, "h2:2");
    following.last_line_is("h1:1,h2:2");
    two.end(Signal::TERM, Duration::from_secs(8));
    following.last_line_is("h1:1");
    web.set(500);
    following.last_line_is("");
    let done = following.end(Signal::TERM, Duration::from_secs(8));
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
    assert_eq!(done.stdout, "\nh1:1\nh1:1,h2:2\nh1:1\n\n");
}

#[test]
fn watching_as_json_is_a_document_a_line() {
    let store = Store::new();
    let following = store.spawn("hosts --label web --watch -o json");
    following.last_line_is("[]");
    let web = Web::new(200);
    let _one = store.watch_at("one", &web, "h1:1");
    eventually("a document with the host", || {
        let stdout = following.stdout();
        let last = stdout.lines().last().unwrap_or_default();
        serde_json::from_str::<Value>(last).is_ok_and(|list| list[0]["host"] == "h1")
    });
}

#[test]
fn a_signal_before_there_is_an_answer_is_told_by_the_status() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let store = Store::new();
        let waiting = store.spawn("hosts --label web --wait --timeout 100s");
        // Signals are heard before the store is opened.
        eventually("the store", || store.path("store.db").exists());
        let done = waiting.end(signal, Duration::from_secs(8));
        assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{}", done.stderr);
    }
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let store = Store::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = store.command(["hosts", "--label", "web", "-o", "json"]);
    let output = command.stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let store = Store::new();
    for (options, parts) in [
        ("--port 0", &["--port", "0"][..]),
        ("--port 70000", &["--port", "70000"]),
        ("--port 1 --no-port", &["--port", "--no-port"]),
        ("--format json -o json", &["--format", "--output"]),
        ("--format yaml", &["--format", "yaml", "haproxy", "nginx", "env"]),
        ("--all --format csv", &["--all", "--format json"]),
        ("--all --format prometheus", &["--all"]),
        ("--timeout 5s", &["--wait"]),
        ("--wait 0", &["--wait", "0"]),
        ("--wait two", &["--wait", "two"]),
        ("--wait --timeout 5x", &["--timeout", "5x", "15s"]),
        ("--wait --watch", &["--wait", "--watch"]),
        ("--wait --exec true", &["--wait", "--exec"]),
        ("--all --format haproxy", &["--all"]),
    ] {
        store.run(&format!("hosts --label web {options}")).is_usage_error(parts);
    }
}

/// It accepts, and never answers: within a short wait nothing tells that it is away.
#[test]
fn a_store_that_says_nothing_in_all_the_wait_ends_with_3() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    for url in [format!("couchdb://127.0.0.1:{port}/fleet"), format!("etcd://127.0.0.1:{port}")] {
        let done = Store::at(url).run("hosts --label web --wait 1 --timeout 1s");
        assert_eq!((done.code, done.stdout.as_str()), (3, ""), "{done:?}");
        assert!(done.stderr.contains("did not answer"), "{done:?}");
    }
}

#[test]
fn a_store_that_is_away_for_the_whole_wait_ends_with_3() {
    let store = Store::new();
    std::fs::write(store.path("store.db"), "no database".repeat(500)).unwrap();
    for options in ["", "--wait --timeout 1s", "--watch"] {
        let done = store.run(&format!("hosts --label web {options}"));
        assert_eq!((done.code, done.stdout.as_str()), (3, ""), "{options}: {done:?}");
        assert!(done.stderr.contains(&store.url()), "{}", done.stderr);
    }
}

#[test]
fn a_record_that_is_not_ours_is_skipped_and_told_of_once() {
    let store = Store::new();
    let group = Group::scoped(&Namespace::default(), "instances", &"web".parse().unwrap());
    let put = Put {
        key: group.key("odd".parse::<Name>().unwrap()),
        value: (*b"no JSON").into(),
        expect: Expect::Absent,
        keep: Keep::Durable,
        write: WriteId::new("somebody"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let local = Local::open(&store.path("store.db"), Env::system()).await.unwrap();
        local.put(&put).await.unwrap();
    });
    let done = store.run("hosts --label web --wait --timeout 2s");
    assert_eq!((done.code, done.stdout.as_str()), (1, ""), "{done:?}");
    assert_eq!(done.stderr.matches("skipped a record").count(), 1, "{}", done.stderr);
    assert!(done.stderr.contains("instances/web/odd"), "{}", done.stderr);

    let mut silent = store.command(["hosts", "--label", "web"]);
    silent.env("SERVICEKIT_LOG", "off");
    let done = store.spawn_command(silent).wait();
    assert_eq!((done.code, done.stderr.as_str()), (1, ""));

    // A warning that nobody can read ends nothing.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output =
        store.command(["hosts", "--label", "web", "--all"]).stderr(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

/// As in `servicekit hosts --watch | head -1`, where nothing else changes.
#[test]
fn it_ends_when_nobody_reads_it_any_more() {
    let store = Store::new();
    store.register([instance("one", "10.0.0.2", Some(80))]);
    let mut command = store.command(["hosts", "--label", "web", "--watch"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "10.0.0.2:80\n");
    let mut status = None;
    eventually("its end", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    // A reader that stays, of a pipe or a file, keeps it running.
    let mut stays = store.spawn("hosts --label web --watch");
    stays.last_line_is("10.0.0.2:80");
    assert!(stays.is_running());
}

#[test]
fn a_file_that_is_kept_locked_is_waited_for_as_long_as_is_asked() {
    let store = Store::new();
    // Nobody can even read it, as while it becomes a store.
    let holder = rusqlite::Connection::open(store.path("store.db")).unwrap();
    holder.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let clock = Env::system().clock;
    let began = clock.now();
    let patient = store.spawn("hosts --label web --store-timeout 60s");
    let done = store.run("hosts --label web --store-timeout 5s");
    let took = clock.now().since(began);
    assert_eq!((done.code, done.stdout.as_str()), (3, ""));
    assert!(done.stderr.contains("kept it locked"), "{}", done.stderr);
    assert!(took > Duration::from_secs(4), "{took:?}");
    drop(holder);
    let done = patient.wait();
    assert_eq!((done.code, done.stderr.as_str()), (1, ""));
}
