//! The agent on a real registry over a store that fails when it is told to.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use servicekit_agent::{Outcome, Service};
use servicekit_core::{
    Instance, State,
    health::Thresholds,
    lease::{Request, Standing, Term},
    store::{Limits, Store as _},
};
use servicekit_testkit::sim::SimClock;

use crate::world::{BEAT, Scripted, TTL, World, service};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn an_instance_goes_up_and_down_by_its_thresholds() {
    let world = World::new();
    let probe = Scripted::gated();
    let thresholds = Thresholds { rise: 2, fall: 3 };
    let full = Service {
        port: Some(80),
        weight: 7,
        zone: Some("a".into()),
        info: [("k", "v")].into_iter().collect(),
        thresholds,
        ..service("web-1", &probe)
    };
    let agent = world.run(vec![full]);
    world.until_state("web-1", State::Starting).await;
    let expected = |instance: &Instance| {
        instance.address() == "h:80"
            && instance.weight == 7
            && instance.zone.as_deref() == Some("a")
            && instance.info.get("k") == Some("v")
    };
    assert!(expected(&world.list().await[0]));

    probe.open(1);
    world.pass(3 * SECOND).await;
    assert_eq!(world.state("web-1").await, Some(State::Starting), "one pass is not two");
    probe.open(1);
    world.until_state("web-1", State::Up).await;

    probe.fail("no disk");
    probe.open(2);
    world.pass(3 * SECOND).await;
    assert_eq!(world.state("web-1").await, Some(State::Up), "two failures are not three");
    probe.open(1);
    world.until_state("web-1", State::Down).await;
    let instance = &world.list().await[0];
    assert_eq!(instance.reason, "no disk (fall 3)");
    let states: Vec<_> = instance.changes.iter().map(|change| (change.from, change.to)).collect();
    assert_eq!(states, [(State::Starting, State::Up), (State::Up, State::Down)]);
    assert!(expected(instance));
    assert_eq!(
        agent.reports(),
        ["web/web-1: starting -> up: fine (rise 2)", "web/web-1: up -> down: no disk (fall 3)",]
    );
    assert_eq!(agent.stop().await, Outcome::Stopped);
}

#[tokio::test(start_paused = true)]
async fn all_probes_must_pass_and_those_that_fail_are_told() {
    let world = World::new();
    let [one, two, three] = [Scripted::passing(), Scripted::passing(), Scripted::passing()];
    two.fail("two is ill");
    three.fail("three is too");
    let probes = vec![one.clone() as Arc<_>, two.clone() as _, three.clone() as _];
    let agent = world.run(vec![Service { probes, ..service("web-1", &one) }]);
    world.until_state("web-1", State::Down).await;
    assert_eq!(world.list().await[0].reason, "two is ill; three is too (fall 2)");
    two.pass();
    world.pass(5 * SECOND).await;
    assert_eq!(world.state("web-1").await, Some(State::Down));
    three.pass();
    world.until_state("web-1", State::Up).await;
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_hangs_delays_nobody_and_does_not_overlap_itself() {
    let world = World::new();
    let (hanging, well) = (Scripted::gated(), Scripted::passing());
    let agent = world.run(vec![service("web-1", &hanging), service("web-2", &well)]);
    world.pass(20 * SECOND).await;
    assert_eq!(world.state("web-1").await, Some(State::Starting));
    assert_eq!(world.state("web-2").await, Some(State::Up));
    assert_eq!(hanging.began(), 1);
    assert!((18..=23).contains(&well.began()), "{}", well.began());
    hanging.open(100);
    world.until_state("web-1", State::Up).await;
    assert_eq!(hanging.most_running.load(Ordering::Relaxed), 1);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_is_replaced_and_what_was_removed_stays_away() {
    let world = World::new();
    let probe = Scripted::passing();
    let agent = world.run(vec![service("web-1", &probe), service("web-2", &probe)]);
    world.until_state("web-2", State::Up).await;
    // Another process takes one over, and deregisters it.
    let other = world.run(vec![service("web-2", &probe)]);
    world.until(async || agent.reported("web-2: taken over") == 1).await;
    other.stop().await;
    assert_eq!(world.state("web-2").await, None);

    for session in world.sessions().await {
        world.memory.delete(&session.key, &session.version).await.unwrap();
    }
    assert_eq!(world.state("web-1").await, Some(State::Lost));
    world.until_state("web-1", State::Up).await;
    assert_eq!(agent.reported("the session was lost"), 1);
    world.pass(2 * TTL).await;
    assert_eq!(world.state("web-1").await, Some(State::Up));
    assert_eq!(world.state("web-2").await, None);
    assert_eq!(agent.reported("the store is away"), 0);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ended_during_an_outage_is_replaced() {
    let world = World::new();
    let probe = Scripted::passing();
    let agent = world.run(vec![service("web-1", &probe)]);
    world.until_state("web-1", State::Up).await;
    // Longer than the ttl away: the session ends meanwhile.
    world.store.go_away();
    world.pass(2 * TTL).await;
    probe.fail("ill");
    world.pass(5 * SECOND).await;
    world.store.come_back();
    world.until_state("web-1", State::Down).await;
    assert_eq!(agent.reported("the session was lost"), 1);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_stops_no_probe_and_the_latest_state_is_put_after_it() {
    for silent in [false, true] {
        let world = World::new();
        let probe = Scripted::passing();
        let agent = world.run(vec![service("web-1", &probe), service("web-2", &probe)]);
        world.until_state("web-1", State::Up).await;
        world.until_state("web-2", State::Up).await;
        if silent {
            world.store.fall_silent()
        } else {
            world.store.go_away()
        }
        let began = probe.began();
        probe.fail("ill");
        world.pass(10 * SECOND).await;
        probe.pass();
        world.pass(10 * SECOND).await;
        probe.fail("ill again");
        world.pass(10 * SECOND).await;
        assert!(probe.began() - began >= 2 * 27, "{} rounds", probe.began() - began);
        assert_eq!(agent.reported("the store is away"), 1);
        assert_eq!(agent.reported("the store is back"), 0);
        world.store.come_back();
        world.until_state("web-1", State::Down).await;
        world.until_state("web-2", State::Down).await;
        world.pass(2 * BEAT).await;
        assert_eq!(agent.reported("the store is away"), 1);
        assert_eq!(agent.reported("the store is back"), 1);
        assert_eq!(world.list().await[0].reason, "ill again (fall 2)");
        // Up, down, up, down: nothing that happened meanwhile is missing.
        assert_eq!(world.list().await[0].changes.len(), 4);
        assert_eq!(agent.stop().await, Outcome::Stopped);
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_starts_without_its_store_and_registers_when_it_is_there() {
    let world = World::new();
    let probe = Scripted::passing();
    world.store.go_away();
    let agent = world.run(vec![service("web-1", &probe)]);
    world.pass(60 * SECOND).await;
    assert_eq!(agent.reported("starting -> up"), 1);
    assert_eq!(agent.reported("the store is away, probing goes on: faulty: put"), 1);
    world.store.come_back();
    let back = world.env.clock.now();
    world.until_state("web-1", State::Up).await;
    assert!(world.env.clock.now().since(back) <= 2 * BEAT);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_set_back_or_forward_makes_no_instance_flap() {
    let world = World::new();
    let agent = world.run(vec![service("web-1", &Scripted::passing())]);
    world.until_state("web-1", State::Up).await;
    for set in [SimClock::set_back, SimClock::set_forward, SimClock::set_forward] {
        set(&world.clock, 3600 * SECOND);
        for _ in 0..300 {
            world.pass(SECOND / 10).await;
            assert_eq!(world.state("web-1").await, Some(State::Up));
        }
    }
    assert_eq!(agent.reports().len(), 1);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_suspend_the_instance_comes_back_by_itself() {
    let world = World::new();
    let agent = world.run(vec![service("web-1", &Scripted::passing())]);
    world.until_state("web-1", State::Up).await;
    world.clock.suspend(600 * SECOND);
    assert_eq!(world.state("web-1").await, Some(State::Lost));
    world.until_state("web-1", State::Up).await;
    assert_eq!(agent.reported("the session was lost"), 1);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn who_was_taken_over_stops_and_leaves_the_record_alone() {
    let world = World::new();
    let (old, new) = (Scripted::passing(), Scripted::passing());
    let first = world.run(vec![service("web-1", &old), service("web-2", &old)]);
    world.until_state("web-1", State::Up).await;
    world.until_state("web-2", State::Up).await;

    let second = world.run(vec![service("web-1", &new)]);
    world.until(async || first.reported("web-1: taken over by another process") == 1).await;
    let began = old.began();
    world.pass(10 * SECOND).await;
    let rounds = old.began() - began;
    assert!((8..=12).contains(&rounds), "{rounds} rounds of the service that is left");
    assert_eq!(world.state("web-1").await, Some(State::Up));

    let third = world.run(vec![service("web-2", &new)]);
    world.until(async || first.task.is_finished()).await;
    assert_eq!(first.stop().await, Outcome::Superseded);
    assert_eq!(world.state("web-1").await, Some(State::Up));
    assert_eq!(world.state("web-2").await, Some(State::Up));
    assert_eq!(world.sessions().await.len(), 2, "its session is closed");
    assert_eq!(second.stop().await, Outcome::Stopped);
    assert_eq!(third.stop().await, Outcome::Stopped);
}

#[tokio::test(start_paused = true)]
async fn who_was_taken_over_during_an_outage_does_not_fight() {
    let world = World::new();
    let probe = Scripted::passing();
    let first = world.run(vec![service("web-1", &probe)]);
    world.until_state("web-1", State::Up).await;
    // It cannot hear of it: its session ends before it beats again.
    world.store.go_away();
    world.pass(2 * TTL).await;
    let second = world.run(vec![service("web-1", &Scripted::passing())]);
    world.store.come_back();
    world.until(async || first.task.is_finished() || second.task.is_finished()).await;
    world.pass(2 * TTL).await;
    assert_ne!(first.task.is_finished(), second.task.is_finished());
    assert_eq!(world.state("web-1").await, Some(State::Up));
}

#[tokio::test(start_paused = true)]
async fn stopping_removes_its_own_instances_at_once_and_no_others() {
    let world = World::new();
    let probe = Scripted::passing();
    let agent = world.run(vec![service("web-1", &probe), service("web-2", &probe)]);
    let other = world.run(vec![service("web-3", &probe)]);
    for id in ["web-1", "web-2", "web-3"] {
        world.until_state(id, State::Up).await;
    }
    let (before, reports) = (world.env.clock.now(), agent.reports.clone());
    assert_eq!(agent.stop().await, Outcome::Stopped);
    assert!(world.env.clock.now().since(before) < SECOND);
    assert!(!reports.lock().unwrap().iter().any(|report| report.contains("not removed")));
    let left: Vec<_> = world.list().await.into_iter().map(|one| one.service_id.clone()).collect();
    assert_eq!(left, ["web-3".parse().unwrap()]);
    assert_eq!(world.sessions().await.len(), 1);
    other.stop().await;
    assert!(world.sessions().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_put_under_way_when_the_agent_stops_does_not_resurrect_the_instance() {
    for (had_died, after) in [0, 50, 150, 250, 350, 450, 550, 700, 900]
        .into_iter()
        .flat_map(|after| [(false, after), (true, after)])
    {
        let world = World::new();
        if had_died {
            let agent = world.run(vec![service("web-1", &Scripted::passing())]);
            world.until_state("web-1", State::Up).await;
            agent.task.abort();
            world.until_state("web-1", State::Lost).await;
        }
        *world.store.slow.lock().unwrap() = Duration::from_millis(400);
        let agent = world.run(vec![service("web-1", &Scripted::passing())]);
        world.pass(Duration::from_millis(after)).await;
        assert_eq!(agent.stop().await, Outcome::Stopped);
        world.pass(60 * SECOND).await;
        // What the dead process left is only replaced, and then removed, by a put that had begun.
        let left = if had_died && after < 400 { 1 } else { 0 };
        assert_eq!(world.list().await.len(), left, "stopped after {after} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn stopping_does_not_wait_for_a_store_that_is_away() {
    for silent in [false, true] {
        let forever = 3600 * SECOND;
        let world = World::with(Limits { attempt: forever, total: forever });
        let agent = world.run(vec![service("web-1", &Scripted::passing())]);
        world.until_state("web-1", State::Up).await;
        if silent {
            world.store.fall_silent()
        } else {
            world.store.go_away()
        }
        let (before, reports) = (world.env.clock.now(), agent.reports.clone());
        assert_eq!(agent.stop().await, Outcome::Stopped);
        assert!(world.env.clock.now().since(before) <= 5 * SECOND);
        let reports = reports.lock().unwrap().clone();
        assert!(!reports.iter().any(|report| report.contains("is back")));
        assert_eq!(reports.last().unwrap(), "not removed, and lost within 15s: web/web-1");
        world.store.come_back();
        world.until_state("web-1", State::Lost).await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_instance_is_put_again_now_and_then() {
    let world = World::new();
    let agent = world.run(vec![service("web-1", &Scripted::passing())]);
    world.until_state("web-1", State::Up).await;
    let puts = || world.store.instance_puts.load(Ordering::Relaxed);
    let before = puts();
    world.pass(17 * 60 * SECOND).await;
    assert_eq!(puts(), before);
    world.pass(6 * 60 * SECOND).await;
    assert_eq!(puts(), before + 1);
    world.pass(120 * 60 * SECOND).await;
    assert_eq!(world.state("web-1").await, Some(State::Up));
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_thousand_services_share_one_session() {
    let world = World::new();
    let probe = Scripted::passing();
    let ids: Vec<_> = (0..1000).map(|i| format!("web-{i}")).collect();
    let agent = world.run(ids.iter().map(|id| service(id, &probe)).collect());
    world.pass(5 * SECOND).await;
    assert!(world.list().await.iter().all(|instance| instance.state == State::Up));
    assert_eq!(world.list().await.len(), 1000);
    assert_eq!(world.sessions().await.len(), 1);
    // Starting and up: no more is written, however long it runs.
    world.pass(5 * SECOND).await;
    assert!(world.store.instance_puts.load(Ordering::Relaxed) <= 2000);
    assert_eq!(agent.stop().await, Outcome::Stopped);
    assert_eq!(world.list().await, []);
}

#[tokio::test(start_paused = true)]
async fn without_services_there_is_nothing_to_do_but_to_wait() {
    let world = World::new();
    let agent = world.run(Vec::new());
    world.pass(60 * SECOND).await;
    assert!(!agent.task.is_finished());
    assert!(world.sessions().await.is_empty());
    assert_eq!(agent.stop().await, Outcome::Stopped);
}

/// Takes the lease `web` for ten minutes.
async fn take_lease(world: &World, holder: &str, term: Term, slots: u32) {
    let request =
        Request { holder: holder.parse().unwrap(), term, slots, wait: None, note: String::new() };
    let (_, standing) = world.backend.leases.join(&"web".parse().unwrap(), &request).await.unwrap();
    assert!(matches!(standing, Standing::Granted(_)), "{standing:?}");
}

const UNATTENDED: Term = Term::Unattended { time: Duration::from_secs(600), reuse: false };

async fn holders(world: &World) -> Vec<String> {
    let lease = world.backend.leases.inspect(&"web".parse().unwrap()).await.unwrap();
    lease.into_iter().flat_map(|lease| lease.grants).map(|grant| grant.holder.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_released_by_the_first_pass_that_began_after_it_was_seen() {
    let world = World::new();
    take_lease(&world, "web-1", UNATTENDED, 1).await;
    let probe = Scripted::gated();
    let agent = world.run(vec![service("web-1", &probe)]);
    world.pass(30 * SECOND).await;
    // It has seen the lease by now, but the probe that hangs began before that.
    assert_eq!((probe.began(), holders(&world).await.len()), (1, 1));
    probe.open(1);
    world.until_state("web-1", State::Up).await;
    world.pass(30 * SECOND).await;
    assert_eq!((probe.began(), holders(&world).await.len()), (2, 1));
    assert_eq!(agent.reported("released"), 0);
    probe.open(1);
    world.until(async || holders(&world).await.is_empty()).await;
    assert_eq!(agent.reported("web/web-1: released its start-up lease (token "), 1);
    probe.open(100);
    world.pass(30 * SECOND).await;
    assert_eq!(agent.reported("released"), 1);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_does_not_wait_for_the_interval_to_release_its_lease() {
    let world = World::new();
    take_lease(&world, "web-1", UNATTENDED, 1).await;
    let (interval, began) = (60 * SECOND, world.env.clock.now());
    let probe = Scripted::passing();
    let agent = world.run(vec![Service { interval, ..service("web-1", &probe) }]);
    world.until(async || holders(&world).await.is_empty()).await;
    assert!(world.env.clock.now().since(began) < SECOND);
    world.pass(10 * SECOND).await;
    assert_eq!(probe.began(), 2);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_taken_while_the_service_is_up_is_released() {
    let world = World::new();
    let agent = world.run(vec![service("web-1", &Scripted::passing())]);
    world.until_state("web-1", State::Up).await;
    for _ in 0..2 {
        take_lease(&world, "web-1", UNATTENDED, 1).await;
        let taken = world.env.clock.now();
        world.until(async || holders(&world).await.is_empty()).await;
        assert!(world.env.clock.now().since(taken) <= BEAT + 2 * SECOND);
    }
    assert_eq!(agent.reported("released"), 2);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_failing_service_keeps_its_lease() {
    let world = World::new();
    take_lease(&world, "web-1", UNATTENDED, 1).await;
    let probe = Scripted::passing();
    probe.fail("not yet");
    let agent = world.run(vec![service("web-1", &probe)]);
    world.pass(60 * SECOND).await;
    assert_eq!(holders(&world).await, ["web-1"]);
    probe.pass();
    world.until(async || holders(&world).await.is_empty()).await;
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn leases_of_others_and_of_running_processes_are_left_alone() {
    let world = World::new();
    let attended = Term::Attended { ttl: Duration::from_secs(600) };
    take_lease(&world, "web-2", UNATTENDED, 3).await;
    take_lease(&world, "web-1", attended, 3).await;
    take_lease(&world, "web-1", UNATTENDED, 3).await;
    let agent = world.run(vec![service("web-1", &Scripted::passing())]);
    world.pass(60 * SECOND).await;
    assert_eq!(holders(&world).await, ["web-2", "web-1"]);
    assert_eq!(agent.reported("released"), 1);
    agent.stop().await;
    assert_eq!(holders(&world).await, ["web-2", "web-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_released_when_the_store_is_back() {
    let world = World::new();
    take_lease(&world, "web-1", UNATTENDED, 1).await;
    let probe = Scripted::passing();
    probe.fail("not yet");
    let agent = world.run(vec![service("web-1", &probe)]);
    world.until_state("web-1", State::Down).await;
    world.store.fall_silent();
    probe.pass();
    let began = probe.began();
    world.pass(20 * SECOND).await;
    assert!(probe.began() - began >= 18);
    world.store.come_back();
    world.until(async || holders(&world).await.is_empty()).await;
    assert_eq!(agent.reported("released"), 1);
    agent.stop().await;
}
