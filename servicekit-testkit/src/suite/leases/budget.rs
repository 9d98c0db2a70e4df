use std::time::Duration;

use futures_util::future::{join_all, select};

use servicekit_core::lease::Term;

use super::contender::contender;
use crate::{
    fault::Counts,
    suite::{case::cases, world::World},
};

cases! { "leases";
    a_join_and_its_grant_take_four_requests [NoFaults, Linearizable],
    a_renewal_is_one_request [NoFaults, Linearizable],
    who_joins_a_crowd_reads_it_once [NoFaults, Linearizable],
    a_freed_slot_wakes_one_waiter_however_many_wait [NoFaults, Linearizable, PushWatch],
    waiters_send_nothing_while_others_hold [NoFaults, Linearizable, PushWatch],
    a_freed_slot_is_taken_with_two_writes_where_waiters_poll [NoFaults, Linearizable, Polled],
    who_polls_looks_more_rarely_the_further_back_it_waits [NoFaults, Linearizable, Polled],
}

async fn a_join_and_its_grant_take_four_requests(world: World) {
    let one = contender(&world, "one");
    for most in [4, 3, 3] {
        let before = world.counting.counts();
        let held = one.granted().await;
        let counts = world.counting.counts() - before;
        assert!(counts.sum() <= most, "{counts:?} for a join that is granted");
        one.leave(&held.ticket).await;
    }
}

async fn a_renewal_is_one_request(world: World) {
    let one = contender(&world, "one");
    let held = one.granted().await;
    let before = world.counting.counts();
    one.renew(&held.ticket).await;
    assert_eq!(world.counting.counts() - before, Counts { touch: 1, ..Counts::default() });
}

async fn who_joins_a_crowd_reads_it_once(world: World) {
    // On a slow store that many joins take longer than the usual ttl.
    let term = Term::Attended { ttl: Duration::from_secs(60) };
    contender(&world, "one").term(term).granted().await;
    for i in 0..world.many(30, 4) {
        contender(&world, &format!("w{i}")).waiting().await;
    }
    let before = world.counting.counts();
    contender(&world, "last").waiting().await;
    let counts = world.counting.counts() - before;
    assert_eq!(counts.list, 1, "{counts:?} for a join that waits");
    // One more for each name of a ticket that was taken.
    assert!(counts.sum() - counts.put <= 3 && counts.put <= 8, "{counts:?} for a join that waits");
}

async fn a_freed_slot_wakes_one_waiter_however_many_wait(world: World) {
    // A store that takes long for one of them makes the next in line step in: what it takes when all is well counts.
    let least = async |many| {
        let mut least = u64::MAX;
        for attempt in 0..3 {
            least = least.min(hand_over(&world, many, attempt).await);
            if least <= 5 {
                break;
            }
        }
        least
    };
    let (few, many) = (least(2).await, least(12).await);
    assert!(few <= 6, "{few} requests for a hand-over");
    assert!(many <= few + 1, "{many} with more waiters, {few} with one");
}

/// How many requests it takes to free a slot that so many wait for, and to take it.
async fn hand_over(world: &World, many: usize, attempt: usize) -> u64 {
    let mut one = contender(world, "one");
    one.lease = crate::suite::world::label(&format!("lease-{many}-{attempt}"));
    let held = one.granted().await;
    let mut waiters = Vec::new();
    for i in 0..many {
        let mut waiter = contender(world, &format!("w{i}"));
        waiter.lease = one.lease.clone();
        let ticket = waiter.waiting().await;
        // On a slow store that many joins take longer than a ttl.
        one.renew(&held.ticket).await;
        waiters.push((waiter, ticket));
    }
    let (first, others) = waiters.split_first().expect("there is a first");
    let others = join_all(
        others.iter().map(|(waiter, ticket)| waiter.wait_for(ticket, Duration::from_secs(3600))),
    );
    let handing_over = async {
        // Everybody follows before the slot is freed.
        world.pass(Duration::from_millis(200)).await;
        let before = world.counting.counts();
        let ((), granted) = futures_util::join!(
            async {
                world.pass(Duration::from_millis(200)).await;
                one.leave(&held.ticket).await;
            },
            first.0.wait(&first.1, Duration::ZERO)
        );
        world.pass(Duration::from_millis(200)).await;
        drop(granted);
        let counts = world.counting.counts() - before;
        counts.sum() - counts.watch
    };
    match select(Box::pin(handing_over), others).await {
        futures_util::future::Either::Left((counts, _)) => counts,
        futures_util::future::Either::Right(_) => panic!("all the others were granted"),
    }
}

async fn waiters_send_nothing_while_others_hold(world: World) {
    let one = contender(&world, "one");
    let held = one.granted().await;
    let many = world.many(30, 8);
    let mut waiters = Vec::new();
    for i in 0..many {
        let waiter = contender(&world, &format!("w{i}"));
        let ticket = waiter.waiting().await;
        one.renew(&held.ticket).await;
        waiters.push((waiter, ticket));
    }
    let waiting = join_all(
        waiters.iter().map(|(waiter, ticket)| waiter.wait_for(ticket, Duration::from_secs(3600))),
    );
    let holding = async {
        world.pass(Duration::from_millis(200)).await;
        let before = world.counting.counts();
        for _ in 0..8 {
            one.keep(&held.ticket, world.ttl() / 3).await;
        }
        world.counting.counts() - before
    };
    let counts = match select(Box::pin(holding), waiting).await {
        futures_util::future::Either::Left((counts, _)) => counts,
        futures_util::future::Either::Right(_) => panic!("the waiters were granted"),
    };
    assert!(counts.touch <= 9, "{counts:?}");
    assert_eq!(
        counts,
        Counts { touch: counts.touch, ..Counts::default() },
        "waiters send something"
    );
}

async fn a_freed_slot_is_taken_with_two_writes_where_waiters_poll(world: World) {
    let one = contender(&world, "one");
    let held = one.granted().await;
    let mut waiters = Vec::new();
    for i in 0..world.many(12, 6) {
        let waiter = contender(&world, &format!("w{i}"));
        let ticket = waiter.waiting().await;
        one.renew(&held.ticket).await;
        waiters.push((waiter, ticket));
    }
    let (first, others) = waiters.split_first().expect("there is a first");
    let others = others.iter().map(|(waiter, ticket)| waiter.wait_for(ticket, FOREVER));
    let handing_over = async {
        world.pass(Duration::from_secs(1)).await;
        let before = world.counting.counts();
        let ((), held) =
            futures_util::join!(one.leave(&held.ticket), first.0.wait(&first.1, Duration::ZERO));
        (world.counting.counts() - before, held)
    };
    let counts = match select(Box::pin(handing_over), join_all(others)).await {
        futures_util::future::Either::Left((counts, _)) => counts.0,
        futures_util::future::Either::Right(_) => panic!("all the others were granted"),
    };
    // Who leaves deletes its ticket and offers the slot; who takes it writes its ticket and the head.
    assert_eq!((counts.delete, counts.put, counts.touch), (1, 3, 0), "{counts:?}");
}

async fn who_polls_looks_more_rarely_the_further_back_it_waits(world: World) {
    let one = contender(&world, "one");
    let held = one.granted().await;
    let many = world.many(60, 10);
    let mut waiters = Vec::new();
    for i in 0..many {
        let waiter = contender(&world, &format!("w{i}"));
        let ticket = waiter.waiting().await;
        one.renew(&held.ticket).await;
        waiters.push((waiter, ticket));
    }
    let waiting = join_all(waiters.iter().map(|(waiter, ticket)| waiter.wait_for(ticket, FOREVER)));
    let holding = async {
        world.pass(Duration::from_secs(2)).await;
        let (before, began) = (world.counting.counts(), world.now());
        one.keep(&held.ticket, world.ttl() * 3).await;
        (world.counting.counts() - before, world.now().since(began).as_secs_f64())
    };
    let (counts, seconds) = match select(Box::pin(holding), waiting).await {
        futures_util::future::Either::Left((counts, _)) => counts,
        futures_util::future::Either::Right(_) => panic!("the waiters were granted"),
    };
    assert_eq!((counts.put, counts.delete), (0, 0), "waiters write: {counts:?}");
    // Half a second for the first, a quarter more for each that is further back, up to five; and jitter. Some also look at
    // who holds the slot, ten times in its ttl.
    let looks: f64 = (0..many).map(|place| 1.25 / (0.5 + 0.25 * f64::from(place)).min(5.0)).sum();
    let observers = 30.0 / world.ttl().as_secs_f64();
    let most = (looks + observers) * seconds + 2.0 * f64::from(many);
    let sent = counts.get + counts.list;
    assert!(sent as f64 <= most, "{counts:?} in {seconds} s; at most {most}");
    assert!(counts.list <= u64::from(many), "{counts:?}");
}

/// Longer than any case takes.
const FOREVER: Duration = Duration::from_secs(3600);
