//! `servicekit hosts --exec`: a command that runs on each change. How its runs follow on each other is tested with the hook itself.

use std::{fs, time::Duration};

use crate::harness::{Running, Signal, Store, Web, eventually, instance};

const SOON: Duration = Duration::from_secs(8);

/// Follows `web` with a script in which `$OUT` is a file.
fn exec(store: &Store, options: &str, script: &str) -> Running {
    let script = format!("OUT='{}'; {script}", store.path("hook").display());
    let args = ["hosts", "--label", "web", "--exec", &script];
    store.spawn_args(args.into_iter().chain(options.split_whitespace()))
}

fn eventually_hooked(store: &Store, text: &str) {
    eventually(&format!("{text:?} from the hook"), || {
        fs::read_to_string(store.path("hook")).is_ok_and(|said| said == text)
    });
}

#[test]
fn it_runs_for_the_first_list_and_on_each_change() {
    let store = Store::new();
    let web = Web::new(200);
    let following = exec(&store, "", "cat >> $OUT; echo . >> $OUT; echo heard");
    eventually_hooked(&store, ".\n");
    let _one = store.watch_at("one", &web, "h1:1");
    eventually_hooked(&store, ".\nh1:1\n.\n");
    let two = store.watch_at("two", &web, "h2:2");
    eventually_hooked(&store, ".\nh1:1\n.\nh1:1\nh2:2\n.\n");
    assert_eq!(two.end(Signal::TERM, SOON).code, 0);
    eventually_hooked(&store, ".\nh1:1\n.\nh1:1\nh2:2\n.\nh1:1\n.\n");
    web.set(500);
    eventually_hooked(&store, ".\nh1:1\n.\nh1:1\nh2:2\n.\nh1:1\n.\n.\n");
    let done = following.end(Signal::TERM, SOON);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
    assert!(done.stdout.lines().all(|line| line == "heard"), "{}", done.stdout);
}

#[test]
fn it_finds_the_format_that_is_named() {
    let store = Store::new();
    store.register([instance("one", "10.0.0.2", Some(80)), instance("two", "10.0.0.2", Some(81))]);
    for (options, list, printed) in [
        ("", "10.0.0.2:80\n10.0.0.2:81\n", ""),
        ("--no-port", "10.0.0.2\n", ""),
        ("--format csv", "10.0.0.2:80,10.0.0.2:81\n", ""),
        ("--format hosts", "10.0.0.2 one.web two.web web\n", ""),
        ("--watch", "10.0.0.2:80\n10.0.0.2:81\n", "10.0.0.2:80,10.0.0.2:81\n"),
        ("--watch --format lines", "10.0.0.2:80\n10.0.0.2:81\n", "10.0.0.2:80\n10.0.0.2:81\n\n"),
    ] {
        let following = exec(&store, options, "cat > $OUT.new; mv $OUT.new $OUT");
        eventually_hooked(&store, list);
        let done = following.end(Signal::INT, SOON);
        assert_eq!((done.code, done.stdout.as_str()), (0, printed), "{options}: {}", done.stderr);
        fs::remove_file(store.path("hook")).unwrap();
    }
}

#[test]
fn one_that_fails_is_said_and_tried_again() {
    let store = Store::new();
    let mut following = exec(&store, "", "cat >> $OUT; echo . >> $OUT; [ -e $OUT.fine ] || exit 7");
    following.says(
        "the command of --exec ended with exit status: 7; again in 1s, or on the next change",
    );
    fs::write(store.path("hook.fine"), "").unwrap();
    eventually_hooked(&store, ".\n.\n");
    let done = following.end(Signal::TERM, SOON);
    assert_eq!((done.code, done.stderr.lines().count()), (0, 1), "{}", done.stderr);
}

#[test]
fn one_that_is_empty_is_refused() {
    let done = Store::new().run_args(["hosts", "--label", "web", "--exec", ""]);
    assert_eq!((done.code, done.stdout.as_str()), (2, ""));
    assert!(done.stderr.contains("--exec"), "{}", done.stderr);
}

#[test]
fn it_gets_no_table_for_people() {
    let store = Store::new();
    store.register([instance("one", "10.0.0.2", Some(80))]);
    for format in ["", "-o text"] {
        let done = store.run(&format!("hosts --label web --all --exec cat {format}"));
        done.is_usage_error(&["--all", "--exec", "--format json"]);
    }
    for format in ["--format json", "-o json"] {
        let _following =
            exec(&store, &format!("--all {format}"), "cat > $OUT.new; mv $OUT.new $OUT");
        eventually("JSON", || {
            fs::read_to_string(store.path("hook")).is_ok_and(|said| said.starts_with("[{"))
        });
        fs::remove_file(store.path("hook")).unwrap();
    }
}

#[test]
fn one_that_hangs_is_told_of() {
    let store = Store::new();
    let mut following = exec(&store, "", "sleep 1000");
    following.says("the command of --exec still runs after 30s, and changes wait for its end");
    let done = following.end(Signal::TERM, SOON);
    assert_eq!((done.code, done.stderr.lines().count()), (0, 1), "{}", done.stderr);
}

#[test]
fn a_signal_ends_it_with_its_whole_group_also_what_does_not_want_to() {
    for signal in [Signal::TERM, Signal::INT] {
        let store = Store::new();
        let script =
            "trap '' TERM; (trap '' TERM; sleep 1000; sleep 1000) & echo $! > $OUT; wait; wait";
        let following = exec(&store, "", script);
        let said = || fs::read_to_string(store.path("hook")).unwrap_or_default();
        eventually("the hook", || said().ends_with('\n'));
        let done = following.end(signal, SOON);
        assert_eq!((done.code, done.stderr.as_str()), (0, ""));
        let stat = format!("/proc/{}/stat", said().trim());
        eventually("its end", || {
            fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") Z "))
                || fs::metadata(&stat).is_err()
        });
    }
}

#[test]
fn it_does_not_see_the_password_of_the_store() {
    let mut store = Store::new();
    store.set("SERVICEKIT_PASSWORD", "hush");
    store.set("SERVICEKIT_NAMESPACE", "plain");
    let script = "echo \"${SERVICEKIT_PASSWORD:-hidden} $SERVICEKIT_NAMESPACE\" > $OUT.new; mv $OUT.new $OUT";
    let _following = exec(&store, "", script);
    eventually_hooked(&store, "hidden plain\n");
}
