use std::time::Duration;

use servicekit_core::{
    Kind,
    lease::{Ending, Standing, Token},
};

use super::contender::{Contender, contender};
use crate::suite::{case::cases, world::World};

cases! { "leases";
    who_is_evicted_is_told_and_the_next_waits_for_its_leave [NoFaults, Linearizable],
    who_is_evicted_and_silent_has_one_ttl [NoFaults, Linearizable],
    force_frees_the_slot_now [NoFaults, Linearizable],
    only_the_named_grant_is_evicted [NoFaults, Linearizable],
}

async fn evict(contender: &Contender<'_>, token: Token, force: bool) {
    contender.leases.evict(&contender.lease, token, force).await.expect("evict");
}

async fn who_is_evicted_is_told_and_the_next_waits_for_its_leave(world: World) {
    let (one, two) = (contender(&world, "one"), contender(&world, "two"));
    let held = one.granted().await;
    let second = two.waiting().await;
    let leaving = async {
        evict(&two, held.granted.token, false).await;
        one.expect_lost(&held.ticket).await;
        let grants = two.inspect().await.grants;
        assert!(
            grants.first().is_some_and(|grant| grant.evicted),
            "it stands until then: {grants:?}"
        );
        evict(&two, held.granted.token, false).await;
        world.pass(world.ttl() / 3).await;
        one.expect_lost(&held.ticket).await;
        let standing = two.leases.standing(&second).await.expect("standing");
        assert!(
            matches!(standing, Standing::Waiting { .. }),
            "the holder stops its work first: {standing:?}"
        );
        let left = world.now();
        one.leave(&held.ticket).await;
        left
    };
    let (left, granted) = futures_util::join!(leaving, two.wait(&second, world.ttl()));
    assert!(granted.known >= left);
    assert!(
        granted.known.since(left) < Duration::from_secs(1).max(world.ttl() / 2) + world.lag(),
        "it is free as soon as the holder left"
    );
    let past = two.inspect().await.past;
    assert_eq!(
        past.last().map(|past| (past.token, past.how)),
        Some((held.granted.token, Ending::Evicted))
    );
}

async fn who_is_evicted_and_silent_has_one_ttl(world: World) {
    let (one, two) = (contender(&world, "one"), contender(&world, "two"));
    let ttl = world.ttl();
    let held = one.granted().await;
    let second = two.waiting().await;
    let evicting = async {
        world.pass(ttl / 2).await;
        let renewed = one.renew(&held.ticket).await;
        evict(&two, held.granted.token, false).await;
        renewed
    };
    let (renewed, granted) = futures_util::join!(evicting, two.wait(&second, ttl * 2));
    let after = granted.known.since(renewed);
    assert!(after >= ttl, "granted {after:?} after the last renewal");
    assert!(after <= ttl + ttl / 4 + Duration::from_secs(2) + world.lag(), "it took {after:?}");
    one.expect_lost(&held.ticket).await;
}

async fn force_frees_the_slot_now(world: World) {
    let (one, two) = (contender(&world, "one"), contender(&world, "two"));
    let held = one.granted().await;
    let second = two.waiting().await;
    let began = world.now();
    let (granted, ()) = futures_util::join!(
        two.wait(&second, Duration::ZERO),
        evict(&two, held.granted.token, true)
    );
    assert!(granted.known.since(began) < world.ttl() / 2 + world.lag(), "it is free at once");
    assert!(granted.token() > held.token());
    one.expect_lost(&held.ticket).await;
    let past = two.inspect().await.past;
    assert_eq!(
        past.last().map(|past| (past.token, past.how)),
        Some((held.granted.token, Ending::Forced))
    );
    // What the evicted does now must not hurt the next.
    one.leave(&held.ticket).await;
    two.renew(&granted.ticket).await;
}

async fn only_the_named_grant_is_evicted(world: World) {
    let contender = |holder| contender(&world, holder).slots(2);
    let (one, two) = (contender("one"), contender("two"));
    let error = one.leases.evict(&one.lease, Token(1), true).await.expect_err("never used");
    assert_eq!(error.kind(), Kind::NotFound);
    let (first, second) = (one.granted().await, two.granted().await);
    for token in [first.token() - 1, second.token() + 1] {
        let error =
            one.leases.evict(&one.lease, Token(token), true).await.expect_err("no such grant");
        assert_eq!(error.kind(), Kind::NotFound);
    }
    evict(&one, second.granted.token, true).await;
    one.renew(&first.ticket).await;
    two.expect_lost(&second.ticket).await;
    let error = one.leases.evict(&one.lease, second.granted.token, true).await.expect_err("gone");
    assert_eq!(error.kind(), Kind::NotFound);
}
