use std::time::Duration;

use servicekit_core::lease::{Ending, Standing, Term};

use super::contender::contender;
use crate::{
    fault::{Fault, Plan},
    suite::{
        case::cases,
        world::{World, label},
    },
};

cases! { "leases";
    a_grant_that_nobody_renews_passes_on_and_not_before_its_ttl [NoFaults, Linearizable],
    a_waiter_that_comes_late_does_not_expire_a_grant_early [NoFaults, Linearizable],
    a_renewed_grant_stands [NoFaults, Linearizable],
    a_renewal_proves_this_grant [NoFaults, Linearizable],
    an_acknowledged_renewal_was_not_expired [NoFaults, Linearizable],
    a_grant_counts_from_before_it_was_sent [NoFaults, Linearizable],
    a_grant_that_is_told_late_counts_from_its_beginning [NoFaults, Linearizable, SimulatedTime],
    a_lease_that_nobody_waits_for_is_free_after_its_ttl [NoFaults, Linearizable],
    a_wall_clock_that_is_set_changes_no_attended_grant [NoFaults, Linearizable, SimulatedTime],
    the_clocks_of_other_hosts_change_no_attended_grant [NoFaults, Linearizable, SimulatedTime, MultiHost],
    a_stopped_holder_is_told_when_it_goes_on [NoFaults, Linearizable],
    who_comes_after_the_holder_has_ended_is_granted_at_once [NoFaults, Linearizable, ServerExpiry, SimulatedTime],
}

/// It need not wait until somebody who waits has noticed.
async fn who_comes_after_the_holder_has_ended_is_granted_at_once(world: World) {
    contender(&world, "one").granted().await;
    world.pass(world.ttl() * 2).await;
    let began = world.now();
    contender(&world, "two").obtain(Duration::ZERO).await;
    let took = world.now().since(began);
    assert!(took < Duration::from_millis(100), "it took {took:?}");
}

async fn a_grant_that_nobody_renews_passes_on_and_not_before_its_ttl(world: World) {
    let (one, two) = (contender(&world, "one"), contender(&world, "two"));
    let ttl = world.ttl();
    let held = one.granted().await;
    let second = two.waiting().await;
    let renewing = async {
        world.pass(ttl / 3).await;
        one.renew(&held.ticket).await;
        world.pass(ttl / 2).await;
        one.renew(&held.ticket).await
    };
    let (renewed, granted) = futures_util::join!(renewing, two.wait(&second, ttl * 2));
    let after = granted.known.since(renewed);
    assert!(after >= ttl, "granted {after:?} after the last renewal, which lasts {ttl:?}");
    assert!(after <= ttl + ttl / 4 + Duration::from_secs(2) + world.lag(), "it took {after:?}");
    assert!(granted.token() > held.token());
    one.expect_lost(&held.ticket).await;
    let past = two.inspect().await.past;
    assert_eq!(
        past.last().map(|past| (past.token, past.how)),
        Some((held.granted.token, Ending::Expired))
    );
}

/// Who has not seen the record for a whole ttl has to trust the store, or to wait; never a written time.
async fn a_waiter_that_comes_late_does_not_expire_a_grant_early(world: World) {
    let (one, two) = (contender(&world, "one"), contender(&world, "two"));
    let ttl = world.ttl();
    let held = one.granted().await;
    world.pass(ttl / 2).await;
    let renewed = one.renew(&held.ticket).await;
    world.pass(ttl / 2).await;
    let second = two.waiting().await;
    let granted = two.wait(&second, ttl * 2).await;
    assert!(granted.known.since(renewed) >= ttl);
}

async fn a_renewed_grant_stands(world: World) {
    let (one, two) = (contender(&world, "one"), contender(&world, "two"));
    let held = one.granted().await;
    let second = two.waiting().await;
    let keeping = async {
        one.keep(&held.ticket, world.ttl() * world.many(20, 4)).await;
        one.leave(&held.ticket).await;
        world.now()
    };
    let (left, granted) = futures_util::join!(keeping, two.wait(&second, world.ttl() * 20));
    assert!(granted.known >= left);
}

/// Not merely that a session, or another ticket of the same process, lives.
async fn a_renewal_proves_this_grant(world: World) {
    let contender = |holder| contender(&world, holder).slots(3);
    let one = contender("one");
    let mut two = contender("two");
    two.leases = one.leases.clone();
    let (first, second) = (one.granted().await, two.granted().await);
    one.renew(&first.ticket).await;
    contender("three").leave(&first.ticket).await;
    two.renew(&second.ticket).await;
    one.expect_lost(&first.ticket).await;
    // The same holder again is another grant.
    let again = one.granted().await;
    one.expect_lost(&first.ticket).await;
    one.renew(&again.ticket).await;
    one.leases.evict(&one.lease, again.granted.token, true).await.expect("evict");
    two.renew(&second.ticket).await;
    one.expect_lost(&again.ticket).await;
    assert_eq!(one.leases.standing(&again.ticket).await.expect("standing"), Standing::Gone);
}

/// A renewal in the very last moments wins or loses; when it wins, nobody else is granted for a ttl from then.
async fn an_acknowledged_renewal_was_not_expired(world: World) {
    let ttl = world.ttl();
    for late in 0..world.many(40, 3) {
        let (one, two) = (contender(&world, "one"), contender(&world, "two"));
        let held = one.obtain(ttl).await;
        let second = two.waiting().await;
        let renewing = async {
            let early = Duration::from_millis(u64::from(late));
            world.pass(ttl - Duration::from_millis(20) + early).await;
            let sent = world.now();
            one.leases.renew(&held.ticket).await.is_ok().then_some(sent)
        };
        let (renewed, granted) = futures_util::join!(renewing, two.wait(&second, ttl * 3));
        if let Some(sent) = renewed {
            assert!(
                granted.known.since(sent) >= ttl,
                "granted {:?} after a renewal",
                granted.known.since(sent)
            );
        }
        two.leave(&granted.ticket).await;
    }
}

/// The store counts from when it applied the request, however long its answer took.
async fn a_grant_counts_from_before_it_was_sent(world: World) {
    let slow = Duration::from_millis(400);
    for request in 0..3 {
        let one = contender(&world, "one");
        world.faulty.script(request, Fault::SlowAnswer(slow));
        let sent = world.now();
        let held = one.granted().await;
        assert!(!world.faulty.is_scripted(), "a join makes fewer requests");
        let counted = held.granted.counted_from;
        assert!(
            counted.since(sent) < slow / 2,
            "it counts from {:?} after it was sent",
            counted.since(sent)
        );
        one.leave(&held.ticket).await;
    }
    let (one, two) = (contender(&world, "one"), contender(&world, "two"));
    let held = one.granted().await;
    let second = two.waiting().await;
    world.faulty.follow(Plan { delay: 1.0, slowest: slow, ..Plan::NONE });
    let leaving = async {
        one.leave(&held.ticket).await;
    };
    let ((), granted) = futures_util::join!(leaving, two.wait(&second, world.ttl()));
    world.faulty.follow(Plan::NONE);
    // Nobody renews: the next in line is granted no earlier than the deadline that two knows.
    let three = contender(&world, "three");
    let third = three.waiting().await;
    let next = three.wait(&third, world.ttl() * 2).await;
    assert!(next.known >= granted.granted.counted_from + world.ttl());
}

/// Whichever answer is lost while a waiter takes its turn: what it is told after an outage is not counted from then. Its
/// first request after the outage is lost too, so that it has to find out what became of those before.
async fn a_grant_that_is_told_late_counts_from_its_beginning(world: World) {
    let ttl = world.ttl();
    for request in 0..9 {
        let of = |holder| {
            let mut contender = contender(&world, holder);
            contender.lease = label(&format!("lease-{request}"));
            contender
        };
        let (one, two, three) = (of("one"), of("two"), of("three"));
        one.granted().await;
        let second = two.waiting().await;
        let trouble = async {
            world.pass(ttl - ttl / 20).await;
            world.faulty.script(request, Fault::LoseAnswer);
            let until = world.now() + ttl / 2;
            while world.faulty.is_scripted() && world.now() < until {
                world.pass(Duration::from_millis(1)).await;
            }
            world.faulty.unscript();
            world.faulty.away();
            world.pass(ttl / 2).await;
            world.faulty.script(0, Fault::ApplyLate(ttl * 1000));
            world.faulty.back();
        };
        let ((), granted) = futures_util::join!(trouble, two.wait_for(&second, ttl * 4));
        let Some(granted) = granted else { continue };
        let next = three.obtain(ttl * 3).await;
        let after = next.known.since(granted.granted.counted_from);
        assert!(
            after >= ttl,
            "request {request}: three is granted {after:?} after the count of two"
        );
        three.leave(&next.ticket).await;
    }
}

async fn a_lease_that_nobody_waits_for_is_free_after_its_ttl(world: World) {
    let ttl = world.ttl();
    let held = contender(&world, "one").granted().await;
    world.pass(ttl * 2).await;
    let two = contender(&world, "two");
    let granted = two.obtain(ttl).await;
    assert!(granted.token() > held.token());
    // The head must not hold what has ended: then one refuses who would not wait.
    let again = contender(&world, "three").not_waiting();
    assert!(matches!(again.join().await.1, Standing::Refused { .. }));
}

async fn a_wall_clock_that_is_set_changes_no_attended_grant(world: World) {
    let (one, two) = (contender(&world, "one"), contender(&world, "two"));
    let ttl = world.ttl();
    let held = one.granted().await;
    let second = two.waiting().await;
    let keeping = async {
        for step in 0..6 {
            let hour = Duration::from_secs(3600);
            if step % 2 == 0 {
                world.clock().set_forward(hour)
            } else {
                world.clock().set_back(hour * 2)
            }
            one.keep(&held.ticket, ttl).await;
            let grants = two.inspect().await.grants;
            assert_eq!(grants.len(), 1, "the grant is shown");
        }
        one.renew(&held.ticket).await
    };
    let (renewed, granted) = futures_util::join!(keeping, two.wait(&second, ttl * 10));
    let after = granted.known.since(renewed);
    assert!(after >= ttl, "granted {after:?} after the last renewal");
    assert!(after <= ttl + ttl / 2, "it took {after:?}");
}

async fn the_clocks_of_other_hosts_change_no_attended_grant(world: World) {
    let ttl = world.ttl();
    let (ahead, ahead_clock) = world.another_host();
    let (behind, behind_clock) = world.another_host();
    ahead_clock.set_forward(Duration::from_secs(3600));
    behind_clock.set_back(Duration::from_secs(3600));
    let (one, mut two, mut three) =
        (contender(&world, "one"), contender(&world, "two"), contender(&world, "three"));
    two.leases = world.process_on(&ahead).leases;
    three.leases = world.process_on(&behind).leases;
    let held = one.granted().await;
    let (second, third) = (two.waiting().await, three.waiting().await);
    let keeping = async {
        one.keep(&held.ticket, ttl * 4).await;
        one.renew(&held.ticket).await
    };
    let following = async {
        let granted = two.wait(&second, ttl * 10).await;
        let renewed = world.now();
        (granted, renewed, three.wait(&third, ttl * 10).await)
    };
    let (renewed, (granted, _, next)) = futures_util::join!(keeping, following);
    let after = granted.known.since(renewed);
    assert!(after >= ttl && after <= ttl + ttl / 2, "granted {after:?} after the last renewal");
    assert!(next.known.since(granted.known) >= ttl - Duration::from_secs(1));
    assert!(held.token() < granted.token() && granted.token() < next.token());
}

/// As if by SIGSTOP: it sends nothing for long, then goes on as if nothing had happened.
async fn a_stopped_holder_is_told_when_it_goes_on(world: World) {
    let (one, two) = (contender(&world, "one"), contender(&world, "two"));
    let held = one.granted().await;
    let granted = two.obtain(world.ttl() * 2).await;
    one.expect_lost(&held.ticket).await;
    two.renew(&granted.ticket).await;
    one.leave(&held.ticket).await;
    two.renew(&granted.ticket).await;
    let Term::Attended { .. } = two.request.term else { unreachable!("as made above") };
    assert_eq!(two.inspect().await.grants.len(), 1);
}
