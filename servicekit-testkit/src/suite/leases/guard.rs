use std::time::Duration;

use servicekit_core::{
    Kind,
    lease::{self, Guard, Held, Loss, Term, margin},
};

use super::contender::{Contender, contender};
use crate::{
    fault::Plan,
    suite::{case::cases, world::World},
};

cases! { "leases";
    a_guard_keeps_its_grant_until_it_is_released [NoFaults, Linearizable],
    a_guard_is_lost_by_its_deadline_when_the_store_is_away [NoFaults, Linearizable],
    a_guard_that_is_dropped_ends_by_its_ttl [NoFaults, Linearizable],
    a_guard_is_told_of_an_eviction [NoFaults, Linearizable],
    the_guard_of_a_suspended_host_is_lost [NoFaults, Linearizable, SimulatedTime],
    a_renewal_counts_from_before_it_was_sent [NoFaults, Linearizable],
    an_outage_shorter_than_the_ttl_loses_no_guard [NoFaults, Linearizable],
    acquire_waits_as_long_as_it_is_told_and_leaves_nothing [NoFaults, Linearizable],
    a_wait_that_ends_in_a_young_outage_says_so [NoFaults, Linearizable],
}

async fn acquire(contender: &Contender<'_>) -> Guard {
    let Contender { world, leases, lease, request } = contender;
    let acquiring = lease::acquire(leases, lease, request, &world.env);
    acquiring.await.expect("acquire").expect("a slot is free in time")
}

/// Nobody was told of it yet, for what is sent is sent again for a while.
async fn a_wait_that_ends_in_a_young_outage_says_so(world: World) {
    let (one, mut two) = (contender(&world, "one"), contender(&world, "two"));
    let term = Term::Attended { ttl: Duration::from_secs(60) };
    one.term(term).granted().await;
    two.request.wait = Some(Duration::from_secs(10));
    let waiting = lease::obtain(&two.leases, &two.lease, &two.request, &world.env, |_| {});
    let outage = async {
        world.pass(Duration::from_secs(9)).await;
        world.faulty.follow(Plan { fail_before: 1.0, ..Plan::NONE });
    };
    let (obtained, ()) = futures_util::join!(waiting, outage);
    let error = obtained.expect_err("nobody knows whether the slot is free");
    assert!(error.is_transient(), "{error:?}");
}

async fn a_guard_keeps_its_grant_until_it_is_released(world: World) {
    let (one, two) = (contender(&world, "one"), contender(&world, "two"));
    let guard = acquire(&one).await;
    assert_eq!((guard.token(), guard.slot()), (one.inspect().await.grants[0].token, 0));
    let releasing = async {
        world.pass(world.ttl() * world.many(20, 4)).await;
        let deadline = guard.deadline().expect("it is kept");
        assert!(
            deadline > world.now() && deadline <= world.now() + world.ttl() - margin(world.ttl())
        );
        let (token, released) = (guard.token(), world.now());
        guard.release().await.expect("release");
        (token, released)
    };
    let ((token, released), next) = futures_util::join!(releasing, acquire(&two));
    assert!(world.now() >= released);
    assert!(next.token() > token);
    assert!(matches!(*next.follow().borrow(), Held::Until(_)));
}

async fn a_guard_is_lost_by_its_deadline_when_the_store_is_away(world: World) {
    let (one, two) = (contender(&world, "one"), contender(&world, "two"));
    let ttl = world.ttl();
    let guard = acquire(&one).await;
    let waiting = async {
        let next = acquire(&two).await;
        (next.token(), world.now())
    };
    let losing = async {
        world.pass(ttl).await;
        world.faulty.away();
        let mut trouble = guard.trouble();
        let told = world.soon("the trouble", trouble.wait_for(Option::is_some)).await.is_ok();
        assert!(told, "it was lost without a warning");
        let deadline = guard.deadline().expect("it is kept until now");
        let loss = world.soon("the loss", guard.lost()).await;
        let lost = world.now();
        assert_eq!((loss, guard.deadline()), (Loss::Unrenewed, None));
        assert!(lost >= deadline, "lost {:?} before its deadline", deadline.since(lost));
        assert!(lost.since(deadline) <= world.lag(), "lost {:?} after it", lost.since(deadline));
        world.pass(ttl).await;
        world.faulty.back();
        lost
    };
    let ((token, granted), lost) = futures_util::join!(waiting, losing);
    assert!(granted >= lost, "two hold it");
    assert!(token > guard.token());
}

async fn a_guard_that_is_dropped_ends_by_its_ttl(world: World) {
    let (one, two) = (contender(&world, "one"), contender(&world, "two"));
    let guard = acquire(&one).await;
    let deadline = guard.deadline().expect("it is kept");
    let dropped = world.now();
    drop(guard);
    let next = acquire(&two).await;
    assert!(world.now() >= deadline);
    assert!(world.now().since(dropped) <= world.ttl() * 2 + Duration::from_secs(2) + world.lag());
    drop(next);
}

async fn a_guard_is_told_of_an_eviction(world: World) {
    let (one, two) = (contender(&world, "one"), contender(&world, "two"));
    let guard = acquire(&one).await;
    two.leases.evict(&two.lease, guard.token(), false).await.expect("evict");
    let evicted = world.now();
    assert_eq!(world.soon("the loss", guard.lost()).await, Loss::Ended);
    assert!(world.now().since(evicted) <= world.ttl() / 2 + world.lag(), "with its next renewal");
    let (released, next) = futures_util::join!(guard.release(), acquire(&two));
    released.expect("release");
    assert!(
        world.now().since(evicted) < world.ttl() + world.lag(),
        "whoever leaves frees the slot at once"
    );
    drop(next);
}

/// The boot clock counts the suspend: on waking, the deadline has passed, whatever timers think.
async fn the_guard_of_a_suspended_host_is_lost(world: World) {
    let (elsewhere, clock) = world.another_host();
    let one = contender(&world, "one");
    let leases = world.process_on(&elsewhere).leases;
    let guard = lease::acquire(&leases, &one.lease, &one.request, &elsewhere).await;
    let guard = guard.expect("acquire").expect("a slot is free");
    world.pass(world.ttl() * 2).await;
    assert!(guard.deadline().is_some(), "it is kept");
    clock.suspend(world.ttl() * 3);
    let woken = world.now();
    assert_eq!(world.soon("the loss", guard.lost()).await, Loss::Unrenewed);
    assert!(world.now().since(woken) <= world.lag(), "at once");
}

async fn a_renewal_counts_from_before_it_was_sent(world: World) {
    let one = contender(&world, "one");
    let ttl = world.ttl();
    let guard = acquire(&one).await;
    let slow = ttl / 20;
    world.faulty.follow(Plan { delay: 1.0, slowest: slow, ..Plan::NONE });
    let mut held = guard.follow();
    for _ in 0..world.many(20, 3) {
        let before = world.counting.counts();
        world
            .eventually("a renewal is sent", || async {
                ((world.counting.counts() - before).sum() > 0).then_some(())
            })
            .await;
        let sent = world.now();
        world.soon("a renewal", held.changed()).await.expect("it is kept");
        let Held::Until(deadline) = *held.borrow_and_update() else { panic!("it was lost") };
        let limit = sent + ttl - margin(ttl);
        assert!(deadline <= limit, "the deadline is {:?} too late", deadline.since(limit));
    }
}

async fn an_outage_shorter_than_the_ttl_loses_no_guard(world: World) {
    // Long enough that a busy machine does not make the outage longer than it.
    let ttl = world.ttl() * world.many(1, 4);
    let one = contender(&world, "one").term(Term::Attended { ttl });
    let guard = acquire(&one).await;
    for _ in 0..world.many(10, 2) {
        world.faulty.away();
        world.pass(ttl / 3).await;
        world.faulty.back();
        world.pass(ttl / 3).await;
        assert!(guard.deadline().is_some_and(|deadline| deadline > world.now()), "it was lost");
        let mut trouble = guard.trouble();
        world.soon("the end of it", trouble.wait_for(Option::is_none)).await.expect("it is kept");
    }
    guard.release().await.expect("release");
}

async fn acquire_waits_as_long_as_it_is_told_and_leaves_nothing(world: World) {
    let (one, mut two) = (contender(&world, "one"), contender(&world, "two"));
    let guard = acquire(&one).await;
    let records = one.records().await.len();
    let wait = Duration::from_millis(700);
    for wait in [None, Some(wait)] {
        two.request.wait = wait;
        let began = world.now();
        let acquired = lease::acquire(&two.leases, &two.lease, &two.request, &world.env).await;
        assert!(acquired.expect("acquire").is_none(), "the only slot is held");
        let (took, wait) = (world.now().since(began), wait.unwrap_or_default());
        assert!(
            took >= wait && took <= wait + Duration::from_secs(2) + world.lag(),
            "it took {took:?}"
        );
        assert_eq!(one.records().await.len(), records, "a ticket is left");
    }
    two.request.term = Term::Unattended { time: world.ttl(), reuse: false };
    let error = lease::acquire(&two.leases, &two.lease, &two.request, &world.env).await;
    assert_eq!(error.expect_err("an unattended lease cannot be kept").kind(), Kind::Invalid);
    assert!(guard.deadline().is_some());
}
