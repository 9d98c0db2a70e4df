//! What every command does while the store is away: who waits keeps waiting and says so once, who asks fails.
//!
//! This program plays all parts: it is the tests, and the command with a store that a test can take away.

#![expect(clippy::unwrap_used, reason = "a test may fail so")]

#[path = "it/harness/mod.rs"]
mod harness;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream::BoxStream};
use libtest_mimic::{Arguments, Trial};
use servicekit::{
    Backend, Capabilities, Connector, Error, Kind, Result, Retry,
    connect::{Address, Options},
    store::{Change, Group, Key, Put, Record, Store as RecordStore, Version, WriteId},
};
use servicekit_local::Local;

use self::harness::{Running, Signal, Store, Web, eventually};

/// Where this variable is set, this program is the command.
const IS_COMMAND: &str = "OUTAGE_TEST_IS_COMMAND";

fn main() -> ExitCode {
    if env::var_os(IS_COMMAND).is_some() {
        return servicekit_cli::main(Connector::builtin().with("gated", connect));
    }
    let trials = [
        ("who_asks_fails_with_3_and_the_address", who_asks_fails_with_3_and_the_address as fn()),
        ("a_wait_that_ends_in_an_outage_ends_with_3", a_wait_that_ends_in_an_outage_ends_with_3),
        ("a_lease_is_waited_for_through_an_outage", a_lease_is_waited_for_through_an_outage),
        ("hosts_are_waited_for_through_an_outage", hosts_are_waited_for_through_an_outage),
        ("a_list_that_is_followed_survives_an_outage", a_list_that_is_followed_survives_an_outage),
        ("a_hook_is_not_run_for_an_outage", a_hook_is_not_run_for_an_outage),
        (
            "a_watcher_that_begins_in_an_outage_registers",
            a_watcher_that_begins_in_an_outage_registers,
        ),
        ("a_watcher_survives_an_outage", a_watcher_survives_an_outage),
        ("signals_end_everything_in_an_outage", signals_end_everything_in_an_outage),
        (
            "a_command_stops_when_its_lease_cannot_be_kept",
            a_command_stops_when_its_lease_cannot_be_kept,
        ),
        (
            "a_command_whose_lease_is_in_danger_is_told_so",
            a_command_whose_lease_is_in_danger_is_told_so,
        ),
    ];
    let trials = trials.map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit_code()
}

const SOON: Duration = Duration::from_secs(8);
const FAST: &str = "--interval 100ms --timeout 1s --detect-within 3s";

fn who_asks_fails_with_3_and_the_address() {
    let store = gated();
    close(&store);
    let identity = store.path("identity");
    store.run(&format!("identity new --out {}", identity.display()));
    let cert = format!("cert --label web --x509 --service-id a --identity {}", identity.display());
    for line in [
        cert.as_str(),
        "services",
        "hosts --label web",
        "leases",
        "release-lease --label web",
        "evict-lease --label web --token 1",
        "resize-lease --label web --slots 2",
        "doctor",
    ] {
        let done = store.run(&format!("{line} --store-timeout 1s"));
        assert_eq!((done.code, done.stdout.as_str()), (3, ""), "{line}: {}", done.stderr);
        assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
        for part in [store.url().as_str(), "the gate is closed", "try again"] {
            assert!(done.stderr.contains(part), "{line}: {}", done.stderr);
        }
    }
}

fn a_wait_that_ends_in_an_outage_ends_with_3() {
    let store = gated();
    close(&store);
    for (line, code) in [
        ("acquire-lease --label web --acquire-timeout 0", 3),
        ("acquire-lease --label web --acquire-timeout 1s", 3),
        ("acquire-lease --label web --acquire-timeout 1s -- echo never", 125),
        ("hosts --label web --wait --timeout 1s", 3),
    ] {
        let done = store.run(line);
        assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{line}: {}", done.stderr);
        assert!(done.stderr.contains(&store.url()), "{line}: {}", done.stderr);
    }

    open(&store);
    store.run("acquire-lease --label web --service-id a");
    let mut waits = Vec::new();
    for (line, code) in [
        ("acquire-lease --label web --service-id b --acquire-timeout 4s", 3),
        ("acquire-lease --label web --service-id b --acquire-timeout 4s -- echo never", 125),
        ("hosts --label web --wait --timeout 4s", 3),
    ] {
        waits.push((store.spawn(line), code));
    }
    for (waiting, _) in &mut waits[..2] {
        waiting.says("held by a");
    }
    close(&store);
    for (waiting, code) in waits {
        let done = waiting.wait();
        assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{}", done.stderr);
        said_once(&done.stderr, "the store is away");
    }
}

fn a_lease_is_waited_for_through_an_outage() {
    let store = gated();
    close(&store);
    let mut early = store.spawn("acquire-lease --label early");
    early.says("the store is away");
    open(&store);
    let done = early.wait();
    assert_eq!(done.code, 0, "{}", done.stderr);
    said_once(&done.stderr, "the store is away");
    said_once(&done.stderr, "the store is back");

    store.run("acquire-lease --label web --service-id a");
    let mut waiting = store.spawn("acquire-lease --label web --service-id b -- echo done");
    waiting.says("held by a");
    close(&store);
    waiting.says("the store is away");
    open(&store);
    waiting.says("the store is back");
    store.run("release-lease --label web --service-id a");
    let done = waiting.wait();
    assert_eq!((done.code, done.stdout.as_str()), (0, "done\n"), "{}", done.stderr);
}

fn hosts_are_waited_for_through_an_outage() {
    let store = gated();
    let mut waiting = store.spawn("hosts --label web --wait");
    eventually("the store", || store.path("store.db").exists());
    close(&store);
    waiting.says("the store is away");
    open(&store);
    let web = Web::new(200);
    let _watcher = watch(&store, &web);
    let done = waiting.wait();
    assert_eq!((done.code, done.stdout.as_str()), (0, "h:1\n"), "{}", done.stderr);
    said_once(&done.stderr, "the store is away");
}

fn a_list_that_is_followed_survives_an_outage() {
    let store = gated();
    let web = Web::new(200);
    let _watcher = watch(&store, &web);
    let mut following = store.spawn("hosts --label web --watch");
    following.last_line_is("h:1");
    close(&store);
    following.says("the store is away");
    open(&store);
    following.says("the store is back");
    web.set(500);
    following.last_line_is("");
    let done = following.end(Signal::TERM, SOON);
    assert_eq!(done.stdout.lines().last(), Some(""));
}

fn a_hook_is_not_run_for_an_outage() {
    let store = gated();
    close(&store);
    let script = format!("cat >> {0}; echo . >> {0}", store.path("hook").display());
    let mut following = store.spawn_args(["hosts", "--label", "web", "--exec", &script]);
    following.says("the store is away");
    let hooked = || fs::read_to_string(store.path("hook")).unwrap_or_default();
    assert_eq!(hooked(), "", "nothing is known yet, which is not the same as none");
    open(&store);
    let web = Web::new(200);
    let mut watcher = watch(&store, &web);
    eventually("the hook", || hooked().ends_with("h:1\n.\n"));
    let before = hooked();
    close(&store);
    watcher.says("the store is away");
    eventually("seen by both", || following.stderr().matches("the store is away").count() == 2);
    open(&store);
    watcher.says("the store is back");
    eventually("heard by both", || following.stderr().matches("the store is back").count() == 2);
    assert_eq!(hooked(), before);
    web.set(500);
    eventually("the hook", || hooked() == format!("{before}.\n"));
    assert_eq!(following.end(Signal::TERM, SOON).code, 0);
}

fn a_watcher_that_begins_in_an_outage_registers() {
    let store = gated();
    close(&store);
    let web = Web::new(200);
    let mut watcher = watch(&store, &web);
    watcher.says("the store is away");
    open(&store);
    eventually("the registration", || store.run("hosts --label web").stdout == "h:1\n");
    said_once(&watcher.stderr(), "the store is away");
}

fn a_watcher_survives_an_outage() {
    let store = gated();
    let web = Web::new(200);
    let mut watcher = watch(&store, &web);
    eventually("the registration", || store.run("hosts --label web").code == 0);
    close(&store);
    watcher.says("the store is away");
    web.set(500);
    watcher.says("up -> down");
    open(&store);
    watcher.says("the store is back");
    eventually("the new state", || store.run("hosts --label web --all").stdout.contains("down"));
    said_once(&watcher.stderr(), "the store is away");
}

fn signals_end_everything_in_an_outage() {
    let store = gated();
    let web = Web::new(200);
    let begun = watch(&store, &web);
    let mut queued = store.spawn("acquire-lease --label web");
    queued = {
        // The lease is free: hold it first, so that the next has to wait.
        assert_eq!(queued.wait().code, 0);
        store.spawn("acquire-lease --label web --service-id other")
    };
    queued.says("held by");
    let mut working = store.spawn_args(["acquire-lease", "--label", "work", "--", "sleep", "1000"]);
    eventually("the work", || store.run("leases").stdout.contains("attended"));
    eventually("the registration", || store.run("hosts --label web").code == 0);
    close(&store);
    let mut waiting = store.spawn("acquire-lease --label web");
    waiting.says("the store is away");
    let mut late = watch(&store, &web);
    late.says("the store is away");
    queued.says("the store is away");
    assert!(working.is_running());
    let done = begun.end(Signal::TERM, SOON);
    assert_eq!(done.code, 0, "{}", done.stderr);
    said_once(&done.stderr, "could not deregister web w: the store is away");
    said_once(&done.stderr, "lost within 2.4s");
    for (command, code) in [(late, 0), (waiting, 143), (queued, 143), (working, 143)] {
        let done = command.end(Signal::TERM, SOON);
        assert_eq!(done.code, code, "{}", done.stderr);
        assert!(!done.stderr.contains("deregister"), "there is nothing: {}", done.stderr);
    }
}

fn a_command_stops_when_its_lease_cannot_be_kept() {
    let store = gated();
    let options = "acquire-lease --label web --ttl 4500ms --kill-after 1s -- sh -c";
    let script = "echo ready; exec sleep 1000";
    let working = store.spawn_args(options.split(' ').chain([script]));
    working.last_line_is("ready");
    close(&store);
    let done = working.wait();
    assert_eq!(done.code, 123, "{}", done.stderr);
    said_once(&done.stderr, "the command will be stopped in ");
    assert!(!done.stderr.contains("is back"), "{}", done.stderr);
    open(&store);
    assert_eq!(
        store.run("acquire-lease --label web --service-id next --acquire-timeout 30s").code,
        0
    );
}

fn a_command_whose_lease_is_in_danger_is_told_so() {
    let store = gated();
    let options = "acquire-lease --label web --ttl 20s --kill-after 1s -- sh -c";
    let script = "echo ready; exec sleep 1000";
    let mut working = store.spawn_args(options.split(' ').chain([script]));
    working.last_line_is("ready");
    close(&store);
    working.says("the store is away");
    assert!(working.is_running());
    open(&store);
    working.says("the store is back, and web renewed");
    let done = working.end(Signal::TERM, SOON);
    assert_eq!(done.code, 143, "{}", done.stderr);
    said_once(&done.stderr, "the store is away");
    said_once(&done.stderr, "the command will be stopped in ");
    said_once(&done.stderr, "the store is back");
}

fn watch(store: &Store, web: &Web) -> Running {
    let url = web.url();
    store.spawn(&format!(
        "watch --label web --service-id w --monitor-url {url} --address h:1 {FAST}"
    ))
}

fn said_once(stderr: &str, text: &str) {
    assert_eq!(stderr.matches(text).count(), 1, "{stderr}");
}

// ---- A store with a gate ----

fn gated() -> Store {
    let mut store = Store::of(env::current_exe().unwrap(), "gated");
    store.set(IS_COMMAND, "1");
    store
}

fn close(store: &Store) {
    fs::write(gate(&store.path("store.db")), "").unwrap();
}

fn open(store: &Store) {
    fs::remove_file(gate(&store.path("store.db"))).unwrap();
}

/// While this file is there, the store is away.
fn gate(database: &Path) -> PathBuf {
    database.with_extension("closed")
}

async fn connect(address: Address, options: Options) -> Result<Backend> {
    let path = PathBuf::from(address.rest());
    let gate = gate(&path);
    check(&gate).map_err(|error| error.during("open"))?;
    let Options { namespace, env, limits, .. } = options;
    let local = Local::open(&path, env.clone()).await?;
    Ok(Backend::over("gated", Arc::new(Gated { local, gate }), namespace, env, limits))
}

fn check(gate: &Path) -> Result<()> {
    if !gate.exists() {
        return Ok(());
    }
    Err(Error::new(Kind::Unavailable, "the gate is closed").retry_as(Retry::Safe))
}

#[derive(Debug)]
struct Gated {
    local: Local,
    gate: PathBuf,
}

#[async_trait]
impl RecordStore for Gated {
    fn capabilities(&self) -> Capabilities {
        self.local.capabilities()
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        check(&self.gate)?;
        self.local.get(key).await
    }

    async fn put(&self, put: &Put) -> Result<Version> {
        check(&self.gate)?;
        self.local.put(put).await
    }

    async fn touch(&self, key: &Key, write: &WriteId) -> Result<Version> {
        check(&self.gate)?;
        self.local.touch(key, write).await
    }

    async fn delete(&self, key: &Key, version: &Version) -> Result<()> {
        check(&self.gate)?;
        self.local.delete(key, version).await
    }

    async fn list(&self, groups: &[Group]) -> Result<Vec<Record>> {
        check(&self.gate)?;
        self.local.list(groups).await
    }

    fn watch(&self, group: &Group) -> BoxStream<'static, Result<Change>> {
        let (local, gate, group) = (self.local.clone(), self.gate.clone(), group.clone());
        let clock = servicekit::Env::system().clock;
        // Looks at the gate between two changes; after an outage it begins again, with a snapshot.
        futures_util::stream::unfold(
            None,
            move |changes: Option<BoxStream<'static, Result<Change>>>| {
                let (local, gate, group, clock) =
                    (local.clone(), gate.clone(), group.clone(), clock.clone());
                async move {
                    let mut changes = changes.unwrap_or_else(|| local.watch(&group));
                    loop {
                        if let Err(error) = check(&gate) {
                            clock.sleep(Duration::from_millis(100)).await;
                            return Some((Err(error), None));
                        }
                        tokio::select! {
                            change = changes.next() => return Some((change?, Some(changes))),
                            () = clock.sleep(Duration::from_millis(20)) => {}
                        }
                    }
                }
            },
        )
        .boxed()
    }
}
