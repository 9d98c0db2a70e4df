use std::time::Duration;

use servicekit_core::{
    Kind, Timestamp,
    lease::{MOST_NOTE, MOST_SLOTS, Standing, Term},
};

use super::contender::contender;
use crate::suite::{
    case::cases,
    world::{World, id, label},
};

cases! { "leases";
    who_finds_a_free_slot_is_granted [NoFaults, Linearizable],
    a_lease_that_nobody_used_is_not_there [NoFaults],
    the_second_waits_and_is_granted_when_the_first_leaves [Linearizable],
    who_would_not_wait_is_refused_and_leaves_nothing [NoFaults, Linearizable],
    a_lease_has_as_many_holders_as_slots [NoFaults, Linearizable],
    another_number_of_slots_is_invalid_and_both_are_named [NoFaults, Linearizable],
    what_makes_no_sense_is_invalid [NoFaults, Linearizable],
    more_slots_let_waiters_in [NoFaults, Linearizable],
    fewer_slots_revoke_nothing [NoFaults, Linearizable],
    leases_do_not_touch_each_other [NoFaults, Linearizable],
    names_are_listed_in_order [Linearizable],
    anybody_can_see_who_holds_and_who_waits [NoFaults, Linearizable],
    the_last_sixteen_grants_are_remembered [NoFaults, Linearizable],
    an_unsafe_store_is_refused [NotLinearizable],
}

/// A grant that nobody renews, and that stands until the end of a case, however slow its store is.
const UNRENEWED: Term = Term::Attended { ttl: Duration::from_secs(60) };

async fn who_finds_a_free_slot_is_granted(world: World) {
    let one = contender(&world, "one");
    let (before, began) = (world.now(), world.env.clock.wall());
    let held = one.granted().await;
    assert_eq!(held.granted.slot, 0);
    assert!(held.granted.counted_from >= before && held.granted.counted_from <= world.now());
    assert_eq!(held.granted.expires_at, None, "an attended grant is over when it is not renewed");
    let drawn = Timestamp::from_millis(held.token());
    assert!(world.is_since(began, drawn) && held.token() < 1 << 53);
    assert_eq!(held.ticket.lease(), &one.lease);
    for leases in [&one.leases, &world.process().leases] {
        match leases.standing(&held.ticket).await.expect("standing") {
            Standing::Granted(granted) => {
                assert_eq!((granted.token, granted.slot), (held.granted.token, 0));
                assert!(
                    granted.counted_from <= held.known,
                    "it cannot count from later than the grant"
                );
            }
            other => panic!("its standing is {other:?}"),
        }
    }
    one.renew(&held.ticket).await;
    one.leave(&held.ticket).await;
    assert_eq!(one.leases.standing(&held.ticket).await.expect("standing"), Standing::Gone);
    one.leave(&held.ticket).await;
}

async fn a_lease_that_nobody_used_is_not_there(world: World) {
    let leases = world.process().leases;
    assert_eq!(leases.inspect(&label("lease")).await.expect("inspect"), None);
    assert_eq!(leases.names().await.expect("names"), []);
}

async fn the_second_waits_and_is_granted_when_the_first_leaves(world: World) {
    let (one, two) = (contender(&world, "one"), contender(&world, "two"));
    let first = one.obtain(world.ttl()).await;
    let (ticket, standing) = two.join().await;
    let second = match standing {
        Standing::Waiting { .. } => {
            one.leave(&first.ticket).await;
            match two.wait_for(&ticket, world.ttl()).await {
                Some(held) => held,
                None if world.setting.has_faults => two.obtain(world.ttl()).await,
                None => panic!("it missed its turn"),
            }
        }
        // What it needs of time under faults may be more than a ttl.
        Standing::Granted(_) | Standing::Gone if world.setting.has_faults => return,
        other => panic!("two is {other:?} while one holds the only slot"),
    };
    assert!(second.token() > first.token());
    assert_eq!(second.granted.slot, 0);
}

async fn who_would_not_wait_is_refused_and_leaves_nothing(world: World) {
    let one = contender(&world, "one");
    let held = one.granted().await;
    let records = one.records().await.len();
    let two = contender(&world, "two").not_waiting();
    let (ticket, standing) = two.join().await;
    match standing {
        Standing::Refused { holders } => {
            assert_eq!(holders.len(), 1);
            assert_eq!(
                (&holders[0].holder, holders[0].token),
                (&one.request.holder, held.granted.token)
            );
        }
        other => panic!("two is {other:?}"),
    }
    assert_eq!(two.records().await.len(), records, "a refused ticket is left");
    assert_eq!(two.leases.standing(&ticket).await.expect("standing"), Standing::Gone);
    assert_eq!(two.inspect().await.waiting, []);
    one.leave(&held.ticket).await;
    two.granted().await;
}

async fn a_lease_has_as_many_holders_as_slots(world: World) {
    let contender = |holder| contender(&world, holder).slots(3);
    let (one, two, three) = (contender("one"), contender("two"), contender("three"));
    let held = [one.granted().await, two.granted().await, three.granted().await];
    let mut slots = held.each_ref().map(|held| held.granted.slot);
    slots.sort_unstable();
    assert_eq!(slots, [0, 1, 2]);
    assert!(held[0].token() < held[1].token() && held[1].token() < held[2].token());
    let (four, five) = (contender("four"), contender("five"));
    let (fourth, fifth) = (four.waiting().await, five.waiting().await);
    two.leave(&held[1].ticket).await;
    let fourth = four.wait(&fourth, Duration::ZERO).await;
    assert_eq!(fourth.granted.slot, held[1].granted.slot);
    assert_eq!(one.inspect().await.grants.len(), 3);
    three.leave(&held[2].ticket).await;
    let fifth = five.wait(&fifth, Duration::ZERO).await;
    assert_eq!(fifth.granted.slot, held[2].granted.slot);
    assert!(fifth.token() > fourth.token());
}

async fn another_number_of_slots_is_invalid_and_both_are_named(world: World) {
    let one = contender(&world, "one").slots(2);
    let held = one.granted().await;
    for slots in [1, 3] {
        let other = contender(&world, "other").slots(slots);
        let error = other.leases.join(&other.lease, &other.request).await.expect_err("it has two");
        assert_eq!(error.kind(), Kind::Invalid);
        let text = error.to_string();
        assert!(
            text.contains('2') && text.contains(&slots.to_string()),
            "{text:?} does not name both"
        );
    }
    one.leave(&held.ticket).await;
    let other = contender(&world, "other");
    let error = other.leases.join(&other.lease, &other.request).await.expect_err("it has two");
    assert_eq!(error.kind(), Kind::Invalid, "also while nobody holds it");
    assert_eq!(one.records().await.len(), 1, "only the head is left");
}

async fn what_makes_no_sense_is_invalid(world: World) {
    let leases = world.process().leases;
    let kind = async |contender: super::contender::Contender<'_>| {
        let error = leases.join(&contender.lease, &contender.request).await.expect_err("nonsense");
        error.kind()
    };
    for slots in [0, MOST_SLOTS + 1] {
        assert_eq!(kind(contender(&world, "one").slots(slots)).await, Kind::Invalid);
    }
    let short = world.capabilities().min_ttl / 2;
    let term = Term::Attended { ttl: short };
    assert_eq!(kind(contender(&world, "one").term(term)).await, Kind::Invalid);
    let term = Term::Unattended { time: short, reuse: false };
    assert_eq!(kind(contender(&world, "one").term(term)).await, Kind::Invalid);
    let mut chatty = contender(&world, "one");
    chatty.request.note = "x".repeat(MOST_NOTE + 1);
    assert_eq!(kind(chatty).await, Kind::Invalid);
    assert_eq!(leases.names().await.expect("names"), [], "nothing was made");

    let error = leases.resize(&label("lease"), 2).await.expect_err("never used");
    assert_eq!(error.kind(), Kind::NotFound);
    contender(&world, "one").granted().await;
    for slots in [0, MOST_SLOTS + 1] {
        let error = leases.resize(&label("lease"), slots).await.expect_err("nonsense");
        assert_eq!(error.kind(), Kind::Invalid);
    }
    contender(&world, "all").slots(MOST_SLOTS);
}

async fn more_slots_let_waiters_in(world: World) {
    let (one, two, three) =
        (contender(&world, "one"), contender(&world, "two"), contender(&world, "three"));
    let first = one.granted().await;
    let (second, third) = (two.waiting().await, three.waiting().await);
    one.leases.resize(&one.lease, 2).await.expect("resize");
    let second = two.wait(&second, Duration::ZERO).await;
    assert_eq!((first.granted.slot, second.granted.slot), (0, 1));
    assert!(matches!(
        three.leases.standing(&third).await.expect("standing"),
        Standing::Waiting { ahead: 0, .. }
    ));
    assert_eq!(one.inspect().await.slots, 2);
    one.leases.resize(&one.lease, MOST_SLOTS).await.expect("resize");
    three.wait(&third, Duration::ZERO).await;
}

async fn fewer_slots_revoke_nothing(world: World) {
    let contender = |holder| contender(&world, holder).slots(2);
    let (one, two) = (contender("one"), contender("two"));
    let (first, second) = (one.granted().await, two.granted().await);
    one.leases.resize(&one.lease, 1).await.expect("resize");
    one.renew(&first.ticket).await;
    two.renew(&second.ticket).await;
    let three = contender("three").slots(1);
    let third = three.waiting().await;
    one.leave(&first.ticket).await;
    two.keep(&second.ticket, world.ttl()).await;
    assert!(
        matches!(three.leases.standing(&third).await.expect("standing"), Standing::Waiting { .. }),
        "the only slot is still held"
    );
    two.leave(&second.ticket).await;
    // Nobody watched for it meanwhile: it may have to stand in line again.
    let third = match three.wait_for(&third, Duration::ZERO).await {
        Some(held) => held,
        None => three.granted().await,
    };
    assert!(third.token() > second.token());
}

async fn leases_do_not_touch_each_other(world: World) {
    let of = |lease: &str| {
        let mut contender = contender(&world, "one").term(UNRENEWED);
        contender.lease = label(lease);
        contender
    };
    let names = ["foo", "foo2", "foo.bar", "head", "f"];
    for name in names {
        let held = of(name).granted().await;
        assert_eq!(held.granted.slot, 0);
    }
    for name in names {
        assert_eq!(of(name).inspect().await.grants.len(), 1);
    }
}

async fn names_are_listed_in_order(world: World) {
    for lease in ["web", "db", "web2"] {
        let mut contender = contender(&world, "one");
        contender.lease = label(lease);
        let (ticket, _) = contender.join().await;
        contender.leave(&ticket).await;
    }
    let leases = world.process().leases;
    let names = world.ok("names", || leases.names()).await;
    assert_eq!(names, ["db", "web", "web2"].map(label), "also those that nobody holds");
}

async fn anybody_can_see_who_holds_and_who_waits(world: World) {
    let (mut one, two, three) =
        (contender(&world, "one"), contender(&world, "two"), contender(&world, "three"));
    one.request.note = "for the migration".into();
    one.request.term = UNRENEWED;
    let began = world.env.clock.wall();
    let held = one.granted().await;
    let (second, third) = (two.waiting().await, three.waiting().await);
    let seen = contender(&world, "reader").inspect().await;
    let now = world.env.clock.wall();
    assert_eq!((&seen.name, seen.slots), (&one.lease, 1));
    let [grant] = seen.grants.as_slice() else { panic!("one grant, not {:?}", seen.grants) };
    assert_eq!((&grant.holder, grant.token, grant.slot), (&id("one"), held.granted.token, 0));
    assert!(grant.attended && !grant.evicted);
    assert!(world.is_since(began, grant.since));
    let ends = |at| world.is_between(now, at, now + UNRENEWED.length());
    assert!(grant.expires_at.is_none_or(ends));
    assert_eq!((grant.note.as_str(), &grant.ticket), ("for the migration", &held.ticket));
    let waiting: Vec<_> =
        seen.waiting.iter().map(|waiter| (&waiter.holder, &waiter.ticket)).collect();
    assert_eq!(waiting, [(&id("two"), &second), (&id("three"), &third)]);
    assert!(seen.waiting.iter().all(|waiter| world.is_since(began, waiter.since)));
    let (_, Standing::Waiting { ahead, holders }) = contender(&world, "four").join().await else {
        panic!("four does not wait")
    };
    let tokens: Vec<_> = holders.iter().map(|grant| grant.token).collect();
    assert_eq!((ahead, tokens), (2, vec![held.granted.token]));
}

async fn the_last_sixteen_grants_are_remembered(world: World) {
    let one = contender(&world, "one");
    let mut tokens = Vec::new();
    for _ in 0..20 {
        let held = one.granted().await;
        tokens.push(held.granted.token);
        one.leave(&held.ticket).await;
    }
    let past = one.inspect().await.past;
    let remembered: Vec<_> = past.iter().map(|past| past.token).collect();
    assert_eq!(remembered, tokens[4..], "the latest last");
    assert!(past.iter().all(|past| past.holder == id("one")));
    assert!(past.iter().all(|past| past.how == servicekit_core::lease::Ending::Left));
}

async fn an_unsafe_store_is_refused(world: World) {
    let one = contender(&world, "one");
    let error = one.leases.join(&one.lease, &one.request).await.expect_err("it is not safe");
    assert_eq!(error.kind(), Kind::Unsupported);
    let error = one.leases.resize(&one.lease, 2).await.expect_err("it is not safe");
    assert_eq!(error.kind(), Kind::Unsupported);
    assert_eq!(one.records().await, [], "nothing is written");
}
