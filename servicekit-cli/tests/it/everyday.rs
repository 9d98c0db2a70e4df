//! The everyday commands, which do the same on every store that is a server.

use std::time::Duration;

use servicekit_testkit::server::Member;

use crate::harness::{Running, Signal, Store, Web, eventually};

/// The tests of every store: `store` gives one and what keeps its server, `None` without a server.
macro_rules! tests {
    ($store:path) => {
        $crate::everyday::tests! { $store:
            who_is_up_is_found_and_why,
            a_lease_is_held_by_one_at_a_time,
            a_dead_holder_is_replaced_by_who_waits,
            certificates_need_an_identity_that_is_named,
        }
    };
    ($store:path: $($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                let Some((store, _server)) = $store() else { return };
                $crate::everyday::$name(&store);
            }
        )*
    };
}
pub(crate) use tests;

const SOON: Duration = Duration::from_secs(20);

/// A watcher that beats as often as every store can.
pub(crate) fn watch(store: &Store, id: &str, web: &Web, address: &str) -> Running {
    let url = web.url();
    store.spawn(&format!(
        "watch --label web --monitor-url {url} --service-id {id} --address {address} --interval 200ms --timeout 500ms \
         --detect-within 7s"
    ))
}

pub(crate) fn who_is_up_is_found_and_why(store: &Store) {
    let (one, two) = (Web::new(200), Web::new(200));
    let mut watchers =
        [watch(store, "one", &one, "10.0.0.1:80"), watch(store, "two", &two, "10.0.0.2:80")];
    for watcher in &mut watchers {
        watcher.says("-> up");
    }
    assert_eq!(store.run("hosts --label web --wait 2").stdout, "10.0.0.1:80,10.0.0.2:80\n");
    let following = store.spawn("hosts --label web --watch");
    following.last_line_is("10.0.0.1:80,10.0.0.2:80");
    two.set(500);
    following.last_line_is("10.0.0.1:80");
    let why = store.run("why --label web --service-id two");
    assert!(why.stdout.contains("is down since"), "{}", why.stdout);
    assert_eq!(store.json("services -o json")[0]["down"], 1);

    // Killed, it is gone within its time; told to end, at once.
    let [first, second] = watchers;
    second.signal(Signal::KILL);
    eventually("the loss", || {
        store.json("hosts --label web --all -o json").to_string().contains("lost")
    });
    assert_eq!(first.end(Signal::TERM, SOON).code, 0);
    assert_eq!(store.run("hosts --label web").code, 1);
}

pub(crate) fn a_lease_is_held_by_one_at_a_time(store: &Store) {
    let mut first = store.spawn("acquire-lease --label backup -- sleep 600");
    eventually("the first grant", || store.run("leases").stdout.contains("attended"));
    assert_eq!(store.run("acquire-lease --label backup --acquire-timeout 0 -- true").code, 124);
    let mut second = store.spawn_args([
        "acquire-lease",
        "--label",
        "backup",
        "--",
        "sh",
        "-c",
        "echo $SERVICEKIT_LEASE_TOKEN",
    ]);
    second.says("waiting for backup");
    let token = store.lease("backup")["grants"][0]["token"].as_u64();
    assert!(first.is_running() && second.is_running());
    first.end(Signal::TERM, SOON);
    let done = second.wait();
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stdout.trim().parse::<u64>().ok() > token, "{done:?}, {token:?}");
}

/// A holder that nobody saw die may live; who would not wait is refused for a ttl at least.
pub(crate) fn a_dead_holder_is_replaced_by_who_waits(store: &Store) {
    let first = store.spawn("acquire-lease --label x --ttl 6s --kill-after 1s -- sleep 600");
    eventually("the grant", || store.run("leases").stdout.contains("attended"));
    first.signal(Signal::KILL);
    assert_eq!(store.run("acquire-lease --label x --acquire-timeout 0 -- true").code, 124);
    let done = store.run("acquire-lease --label x --acquire-timeout 60s -- true");
    assert_eq!(done.code, 0, "{done:?}");
}

/// The server keeps its data when it is killed.
pub(crate) fn an_outage_changes_nothing_but_work_under_a_lease(store: &Store, server: &mut Member) {
    let web = Web::new(200);
    let mut watcher = watch(store, "one", &web, "10.0.0.1:80");
    watcher.says("-> up");
    let following = store.spawn("hosts --label web --watch");
    following.last_line_is("10.0.0.1:80");
    let before = following.stdout();
    let mut held = store.spawn("acquire-lease --label x --ttl 6s --kill-after 1s -- sleep 600");
    eventually("the grant", || store.run("leases").stdout.contains("attended"));

    server.kill();
    let done = store.run("hosts --label web --store-timeout 2s");
    assert_eq!((done.code, done.stdout.as_str()), (3, ""));
    assert!(done.stderr.contains("cannot reach the server"), "{}", done.stderr);
    watcher.says("the store is away");
    held.says("the store is away");
    let done = held.wait();
    assert_ne!(done.code, 0, "work under a lease ends by its deadline: {done:?}");

    server.start();
    watcher.says("the store is back");
    eventually("the list", || store.run("hosts --label web").stdout == "10.0.0.1:80\n");
    assert_eq!(following.stdout(), before, "the list was never shorter");
    assert_eq!(store.run("acquire-lease --label x --acquire-timeout 30s -- true").code, 0);
}

pub(crate) fn certificates_need_an_identity_that_is_named(store: &Store) {
    let ask = "cert --label web --x509 --service-id web-1";
    let done = store.run(ask);
    assert_eq!(done.code, 4, "{done:?}");
    assert!(done.stderr.contains("servicekit identity new --out FILE"), "{}", done.stderr);
    let identity = store.path("identity").display().to_string();
    assert_eq!(store.run(&format!("identity new --out {identity}")).code, 0);
    let out = store.path("tls").display().to_string();
    let done = store.run(&format!("{ask} --identity {identity} --out {out}"));
    assert_eq!(done.code, 0, "{done:?}");
    assert!(store.path("tls").join("key.pem").exists());
}
