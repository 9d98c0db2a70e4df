use std::time::Duration;

use futures_util::{StreamExt as _, future::join_all};
use servicekit_core::{
    clock::timeout,
    lease::{Ending, Obtained, Standing, Term},
};

use super::contender::{Contender, contender};
use crate::{
    fault::Fault,
    suite::{
        case::cases,
        world::{World, label},
    },
};

cases! { "leases";
    first_come_first_served [NoFaults, Linearizable],
    a_waiter_sees_its_place [NoFaults, Linearizable],
    a_waiter_that_left_is_passed_over [NoFaults, Linearizable],
    a_waiter_that_is_not_there_is_passed_over_within_its_turn [NoFaults, Linearizable],
    a_slot_that_is_free_beside_one_that_is_kept_is_for_who_comes_next [NoFaults, Linearizable],
    who_is_far_back_has_its_turn_when_all_before_it_leave [NoFaults, Linearizable, Polled],
    who_tries_once_does_not_find_a_slot_kept_for_the_dead [NoFaults, Linearizable],
    who_tries_once_is_refused_when_a_kept_slot_is_claimed [NoFaults, Linearizable],
    a_claim_that_dies_at_any_of_its_requests_is_passed_on [NoFaults, Linearizable],
    a_waiter_that_lapsed_is_gone [NoFaults, Linearizable, SimulatedTime],
    waiting_goes_on_for_longer_than_any_ttl [NoFaults, Linearizable, SimulatedTime],
    waiting_outlives_an_outage [NoFaults, Linearizable],
    a_wait_that_begins_in_an_outage_keeps_its_place [NoFaults, Linearizable],
    another_process_can_give_a_grant_back [NoFaults, Linearizable],
    a_wait_that_is_followed_again_loses_nothing [NoFaults, Linearizable],
}

async fn first_come_first_served(world: World) {
    let many = world.many(40, 10);
    let names: Vec<_> = (0..many).map(|i| format!("w{i}")).collect();
    let first = contender(&world, "first");
    let held = first.granted().await;
    let mut waiters = Vec::new();
    for name in &names {
        let waiter = contender(&world, name);
        let ticket = waiter.waiting().await;
        waiters.push((waiter, ticket));
    }
    let granted = waiters.iter().map(async |(waiter, ticket)| {
        let held = waiter.wait(ticket, Duration::ZERO).await;
        let standing = first.inspect().await;
        assert_eq!(standing.grants.len(), 1);
        waiter.leave(&held.ticket).await;
        held.token()
    });
    let ((), tokens) = futures_util::join!(first.leave(&held.ticket), join_all(granted));
    assert!(tokens.is_sorted(), "not in the order in which they came: {tokens:?}");
    assert!(tokens[0] > held.token());
}

async fn a_waiter_sees_its_place(world: World) {
    let (one, two, three) =
        (contender(&world, "one"), contender(&world, "two"), contender(&world, "three"));
    let held = one.granted().await;
    let (second, third) = (two.waiting().await, three.waiting().await);
    let mut standings = three.leases.wait(&third);
    let place = async |standings: &mut _, expected: usize| {
        world
            .next("its place", standings, |standing| match standing {
                Standing::Waiting { ahead, holders } if ahead == expected => Some(holders),
                _ => None,
            })
            .await
    };
    let holders = place(&mut standings, 1).await;
    assert_eq!(holders[0].token, held.granted.token);
    two.leave(&second).await;
    place(&mut standings, 0).await;
    one.leave(&held.ticket).await;
    world
        .next("the grant", &mut standings, |standing| {
            matches!(standing, Standing::Granted(_)).then_some(())
        })
        .await;
    assert!(standings.next().await.is_none(), "the stream ends with the grant");
}

async fn a_waiter_that_left_is_passed_over(world: World) {
    let (one, two, three) =
        (contender(&world, "one"), contender(&world, "two"), contender(&world, "three"));
    let held = one.granted().await;
    let (second, third) = (two.waiting().await, three.waiting().await);
    two.leave(&second).await;
    one.leave(&held.ticket).await;
    let began = world.now();
    three.wait(&third, Duration::ZERO).await;
    assert!(world.now().since(began) < world.turn() + world.lag(), "who left has no turn");
    let mut standings = two.leases.wait(&second);
    let standing = world.soon("the end of a wait that left", standings.next()).await;
    assert_eq!(standing.expect("a standing").expect("no fault"), Standing::Gone);
    assert!(standings.next().await.is_none());
}

async fn a_waiter_that_is_not_there_is_passed_over_within_its_turn(world: World) {
    let (one, two, three) =
        (contender(&world, "one"), contender(&world, "two"), contender(&world, "three"));
    let held = one.granted().await;
    let (second, third) = (two.waiting().await, three.waiting().await);
    let leave = async {
        world.pass(Duration::from_millis(500)).await;
        one.leave(&held.ticket).await;
        world.now()
    };
    let (left, granted) = futures_util::join!(leave, three.wait(&third, world.turn()));
    let took = granted.known.since(left);
    assert!(took >= world.turn() - Duration::from_millis(100), "two had a turn of only {took:?}");
    assert!(took <= world.turn() + Duration::from_secs(3) + world.lag(), "it took {took:?}");
    assert_eq!(two.leases.standing(&second).await.expect("standing"), Standing::Gone);
}

/// A slot is kept for one who waits, and another one is free: that is for who comes next, and not for who comes after.
async fn a_slot_that_is_free_beside_one_that_is_kept_is_for_who_comes_next(world: World) {
    let (one, two) = (contender(&world, "one").term(LONG), contender(&world, "two").term(LONG));
    let (three, four) = (contender(&world, "three").slots(3), contender(&world, "four").slots(3));
    one.granted().await;
    let second = two.waiting().await;
    world.ok("resize", || one.leases.resize(&one.lease, 3)).await;
    let third = three.waiting().await;
    two.wait(&second, Duration::ZERO).await;
    four.waiting().await;
    three.wait(&third, Duration::ZERO).await;
}

/// It looks ever more rarely the further back it believes to be, and does not know that all before it have gone.
async fn who_is_far_back_has_its_turn_when_all_before_it_leave(world: World) {
    // At whatever time after its last look.
    for round in 0..world.many(12, 1) {
        far_back(&world, round).await;
    }
}

async fn far_back(world: &World, round: u32) {
    let lease = label(&format!("lease-{round}"));
    let of =
        |holder: &str| Contender { lease: lease.clone(), ..contender(world, holder).term(HOUR) };
    let (one, last) = (of("one"), of("last"));
    let held = one.granted().await;
    let mut before = Vec::new();
    for i in 0..world.many(30, 12) {
        let waiter = of(&format!("w{i}"));
        let ticket = waiter.waiting().await;
        before.push((waiter, ticket));
    }
    let ticket = last.waiting().await;
    let waiting = async {
        let held = last.wait(&ticket, Duration::from_secs(60)).await;
        last.leave(&held.ticket).await;
        held
    };
    let leaving = async {
        world.pass(Duration::from_secs(8) + Duration::from_millis(450) * round).await;
        for (waiter, ticket) in &before {
            waiter.leave(ticket).await;
        }
        one.leave(&held.ticket).await;
        // Somebody who looks at everything first, and sees who does not take its turn.
        of("new").obtain(Duration::from_secs(60)).await
    };
    let (last, new) = futures_util::join!(waiting, leaving);
    assert!(last.token() < new.token());
}

const HOUR: Term = Term::Attended { ttl: Duration::from_secs(3600) };
/// Longer than a case takes.
const LONG: Term = Term::Attended { ttl: Duration::from_secs(60) };

async fn who_tries_once_does_not_find_a_slot_kept_for_the_dead(world: World) {
    let (one, two) = (contender(&world, "one"), contender(&world, "two"));
    let held = one.granted().await;
    let dead = two.waiting().await;
    one.leave(&held.ticket).await;
    let began = world.now();
    let obtained = contender(&world, "three").not_waiting().try_once().await;
    assert!(matches!(obtained, Obtained::Granted(..)), "{obtained:?}");
    let took = world.now().since(began);
    assert!(took >= world.turn() - Duration::from_millis(100), "two had a turn of only {took:?}");
    assert_eq!(two.leases.standing(&dead).await.expect("standing"), Standing::Gone);
}

async fn who_tries_once_is_refused_when_a_kept_slot_is_claimed(world: World) {
    let (one, two, three) =
        (contender(&world, "one"), contender(&world, "two"), contender(&world, "three"));
    let held = one.granted().await;
    let second = two.waiting().await;
    one.leave(&held.ticket).await;
    let claim = async {
        world.pass(Duration::from_millis(500)).await;
        two.wait(&second, Duration::ZERO).await
    };
    let three = three.not_waiting();
    let (claimed, obtained) = futures_util::join!(claim, three.try_once());
    let Obtained::NotGranted { holders } = obtained else { panic!("{obtained:?}") };
    assert_eq!(holders.len(), 1, "{holders:?}");
    assert_eq!(holders[0].token, claimed.granted.token);
    assert_eq!(three.inspect().await.waiting, [], "nothing is left of who tried once");
}

/// Whichever request of a claim is late, and who sent it is dead by then: the next is granted when the turn is over.
async fn a_claim_that_dies_at_any_of_its_requests_is_passed_on(world: World) {
    // Leaving takes three.
    for request in 3..world.many(9, 5) {
        for late in [world.turn() * 2, Duration::from_secs(3600)] {
            let lease = label(&format!("lease-{request}-{}", late.as_secs()));
            let of = |holder| Contender { lease: lease.clone(), ..contender(&world, holder) };
            let (one, two, three) = (of("one"), of("two"), of("three"));
            let held = one.granted().await;
            let (second, third) = (two.waiting().await, three.waiting().await);
            world.faulty.script(request as usize, Fault::ApplyLate(late));
            let dying = async {
                // Before it tries again.
                let (waiting, soon) =
                    (two.wait_for(&second, Duration::ZERO), Duration::from_millis(20));
                timeout(&*world.env.clock, soon, waiting).await.ok().flatten()
            };
            let (died, (), next) = futures_util::join!(
                dying,
                one.leave(&held.ticket),
                three.wait(&third, world.ttl() * 2 + world.turn() * 2)
            );
            assert!(died.is_none_or(|died| died.token() < next.token()));
            three.keep(&third, world.turn() * 2).await;
            assert_eq!(three.inspect().await.grants.len(), 1, "request {request}, {late:?}");
            let standing = two.leases.standing(&second).await.expect("standing");
            assert_eq!(standing, Standing::Gone);
            world.faulty.unscript();
        }
    }
}

/// Who asked to wait for a minute, and is not heard of any more, is gone after a while.
async fn a_waiter_that_lapsed_is_gone(world: World) {
    let (one, mut two, three) =
        (contender(&world, "one"), contender(&world, "two"), contender(&world, "three"));
    two.request.wait = Some(Duration::from_secs(60));
    let held = one.granted().await;
    two.waiting().await;
    let third = three.waiting().await;
    let following = three.wait(&third, Duration::from_secs(3600));
    let leaving = async {
        one.keep(&held.ticket, Duration::from_secs(600)).await;
        let waiting = one.inspect().await.waiting;
        assert_eq!(
            waiting.iter().map(|waiter| waiter.holder.as_str()).collect::<Vec<_>>(),
            ["three"]
        );
        one.leave(&held.ticket).await;
        world.now()
    };
    let (granted, left) = futures_util::join!(following, leaving);
    assert!(granted.known.since(left) <= world.turn() + Duration::from_secs(3) + world.lag());
}

async fn waiting_goes_on_for_longer_than_any_ttl(world: World) {
    let (one, mut two) = (contender(&world, "one"), contender(&world, "two"));
    let long = Duration::from_secs(3600);
    two.request.wait = Some(long * 2);
    let held = one.granted().await;
    let second = two.waiting().await;
    let leaving = async {
        one.keep(&held.ticket, long).await;
        one.leave(&held.ticket).await;
        world.now()
    };
    let (granted, left) = futures_util::join!(two.wait(&second, long), leaving);
    assert!(granted.known.since(left) < world.turn() + world.lag(), "it kept its place");
}

async fn waiting_outlives_an_outage(world: World) {
    let (one, two) = (contender(&world, "one"), contender(&world, "two"));
    let held = one.granted().await;
    let second = two.waiting().await;
    let outage = async {
        world.pass(Duration::from_millis(200)).await;
        world.faulty.away();
        world.pass(world.ttl() * 2).await;
        world.faulty.back();
    };
    // Nobody renewed meanwhile, so the grant of one is over.
    let ((), granted) = futures_util::join!(outage, two.wait(&second, world.ttl() * 4));
    assert!(granted.token() > held.token());
    one.expect_lost(&held.ticket).await;
}

async fn a_wait_that_begins_in_an_outage_keeps_its_place(world: World) {
    let (one, two) = (contender(&world, "one"), contender(&world, "two"));
    let held = one.term(Term::Attended { ttl: world.ttl() * 100 }).granted().await;
    let second = two.waiting().await;
    world.faulty.away();
    let mut standings = two.leases.wait(&second);
    let mut next = async || world.soon("what a wait tells", standings.next()).await;
    assert!(next().await.expect("it goes on").is_err(), "the store is away");
    world.faulty.back();
    loop {
        match next().await.expect("it goes on") {
            Ok(Standing::Waiting { ahead: 0, holders }) => {
                assert_eq!(holders[0].token, held.granted.token);
                return;
            }
            Ok(standing) => panic!("it is {standing:?}"),
            Err(_) => {}
        }
    }
}

async fn another_process_can_give_a_grant_back(world: World) {
    let (one, two, other) =
        (contender(&world, "one"), contender(&world, "two"), contender(&world, "other"));
    let held = one.granted().await;
    let second = two.waiting().await;
    let seen = other.inspect().await;
    other.leave(&seen.grants[0].ticket).await;
    one.expect_lost(&held.ticket).await;
    let second = two.wait(&second, Duration::ZERO).await;
    let seen = other.inspect().await;
    assert_eq!(
        seen.past.last().map(|past| (past.token, past.how)),
        Some((held.granted.token, Ending::Left))
    );
    other.leave(&held.ticket).await;
    two.renew(&second.ticket).await;
    let third = contender(&world, "three").waiting().await;
    other.leave(&other.inspect().await.waiting[0].ticket).await;
    assert_eq!(other.leases.standing(&third).await.expect("standing"), Standing::Gone);
}

async fn a_wait_that_is_followed_again_loses_nothing(world: World) {
    let (one, two) = (contender(&world, "one"), contender(&world, "two"));
    let held = one.granted().await;
    let second = two.waiting().await;
    for _ in 0..3 {
        let mut standings = two.leases.wait(&second);
        world.next("a standing", &mut standings, Some).await;
    }
    one.leave(&held.ticket).await;
    let granted = two.wait(&second, Duration::ZERO).await;
    let again = two.wait(&second, Duration::ZERO).await;
    assert_eq!(again.granted.token, granted.granted.token, "a grant is told again");
}
