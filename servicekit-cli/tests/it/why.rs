//! `servicekit why`.

use serde_json::Value;
use servicekit::{State, Timestamp};

use crate::harness::{Store, Web, eventually, instance};

fn history(store: &Store, options: &str) -> Value {
    store.json(&format!("why --label web {options} -o json"))
}

#[test]
fn the_last_changes_are_told_with_rule_and_output() {
    let store = Store::new();
    let web = Web::new(200);
    let mut watcher = store.watch_at("web-1", &web, "h1:1");
    watcher.says("starting -> up");
    web.set(503);
    watcher.says("up -> down");
    eventually("both changes", || {
        history(&store, "")[0]["changes"].as_array().is_some_and(|changes| changes.len() == 2)
    });
    let known = &history(&store, "--service-id web-1")[0];
    assert_eq!(
        (known["label"].as_str(), known["service_id"].as_str()),
        (Some("web"), Some("web-1"))
    );
    assert_eq!((known["host"].as_str(), known["port"].as_u64()), (Some("h1"), Some(1)));
    assert_eq!(known["state"], "down");
    let changes = known["changes"].as_array().unwrap();
    let told = |i: usize| ["from", "to", "rule"].map(|key| changes[i][key].as_str().unwrap());
    assert_eq!(told(0), ["up", "down", "fall 2"], "the latest first");
    assert_eq!(told(1), ["starting", "up", "rise 1"]);
    assert!(changes[0]["output"].as_str().unwrap().contains("503"), "{changes:?}");
    assert_eq!(changes[0]["at"], known["since"]);
    assert!(changes[1]["at"].as_str().unwrap() < changes[0]["at"].as_str().unwrap());

    let text = store.run("why --label web").stdout;
    let lines: Vec<_> = text.lines().collect();
    let head = format!("web web-1 at h1:1 is down since {} (", known["since"].as_str().unwrap());
    assert!(lines[0].starts_with(&head) && lines[0].ends_with(')'), "{text}");
    assert!(lines[1].starts_with("WHEN "), "{text}");
    assert!(lines[2].contains("down") && lines[2].contains("fall 2") && lines[2].contains("503"));
    assert!(lines[3].contains("starting") && lines[3].contains("200"), "{text}");
    assert_eq!(lines.len(), 4);
}

#[test]
fn who_is_lost_shows_that_as_of_now() {
    let store = Store::new();
    let web = Web::new(200);
    let mut watcher = store.watch_at("web-1", &web, "h1:1");
    watcher.says("-> up");
    eventually("the registration", || store.run("hosts --label web").code == 0);
    drop(watcher);
    eventually("the loss", || history(&store, "")[0]["state"] == "lost");
    let known = &history(&store, "")[0];
    assert_eq!(known["changes"][0]["to"], "up", "nobody saw it change");
    let text = store.run("why --label web").stdout;
    let head = "web web-1 at h1:1 is lost: its node gives no sign of life (it was up)\n";
    assert!(text.starts_with(head), "{text}");
}

#[test]
fn what_a_probe_said_cannot_steer_a_terminal() {
    let store = Store::new();
    let mut one = instance("web-1", "h\u{1b}[2J", None);
    let now = Timestamp::from_millis(1_763_683_201_000);
    one.change(State::Down, "fall\r2", "\u{1b}[31mred\nWHEN  faked\u{7}", now);
    store.register([one]);
    let text = store.run("why --label web").stdout;
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    assert_eq!(text.lines().count(), 4, "{text}");
    let output = &history(&store, "")[0]["changes"][0]["output"];
    assert_eq!(*output, "\u{1b}[31mred\nWHEN  faked\u{7}", "JSON escapes, and tells it as it was");
}

#[test]
fn one_that_is_not_there_ends_with_1_and_names_what_is() {
    let store = Store::new();
    for options in ["", "--service-id web-1"] {
        let done = store.run(&format!("why --label web {options}"));
        assert_eq!((done.code, done.stdout.as_str()), (1, ""));
        let said = "servicekit: no instance of web is registered, nor of any other service\n";
        assert_eq!(done.stderr, said);
    }
    store.register((1..=12).map(|i| instance(&format!("web-{i}"), &format!("10.0.0.{i}"), None)));
    let done = store.run("why --label web --service-id web-x -o json");
    assert_eq!((done.code, done.stdout.as_str()), (1, "[]\n"));
    assert!(done.stderr.contains("no instance of web is called web-x; there are: web-1, "));
    assert!(done.stderr.ends_with(", …\n"), "{}", done.stderr);
    let done = store.run("why --label db");
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("no instance of db is registered; services: web\n"));

    let text = store.run("why --label web").stdout;
    let heads: Vec<_> = text.lines().filter(|line| line.starts_with("web ")).collect();
    assert_eq!(heads.len(), 12);
    assert!(heads[1].starts_with("web web-2 at 10.0.0.2 "), "in natural order: {}", heads[1]);
}
