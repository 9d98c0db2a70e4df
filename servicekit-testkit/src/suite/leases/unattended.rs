use std::time::Duration;

use servicekit_core::lease::{Ending, Standing, Term};

use super::contender::contender;
use crate::suite::{case::cases, world::World};

cases! { "leases";
    an_unattended_grant_stands_its_time [NoFaults, Linearizable],
    an_unattended_grant_is_used_again_by_its_holder_alone [NoFaults, Linearizable],
    an_unattended_grant_is_not_shortened_by_the_wall_clock [NoFaults, Linearizable, SimulatedTime],
    anybody_frees_an_unattended_grant [NoFaults, Linearizable],
}

fn unattended(world: &World, reuse: bool) -> Term {
    Term::Unattended { time: world.ttl(), reuse }
}

async fn an_unattended_grant_stands_its_time(world: World) {
    let ttl = world.ttl();
    let one = contender(&world, "one").term(unattended(&world, false));
    let two = contender(&world, "two").term(unattended(&world, false));
    let before = world.env.clock.wall();
    let held = one.granted().await;
    let expires_at = held.granted.expires_at.expect("it is over at some time");
    let now = world.env.clock.wall();
    assert!(world.is_between(before + ttl, expires_at, now + ttl));
    let grants = two.inspect().await.grants;
    assert!(!grants[0].attended);
    assert_eq!(grants[0].expires_at, Some(expires_at));
    let second = two.waiting().await;
    let granted = two.wait(&second, ttl * 2).await;
    let after = granted.known.since(held.granted.counted_from);
    assert!(after >= ttl, "it stood for {after:?}");
    assert!(after <= ttl + ttl / 4 + Duration::from_secs(2) + world.lag(), "it took {after:?}");
    assert!(granted.token() > held.token());
}

async fn an_unattended_grant_is_used_again_by_its_holder_alone(world: World) {
    let one = contender(&world, "one").term(unattended(&world, true));
    let held = one.granted().await;
    world.pass(world.ttl() / 4).await;
    let again = contender(&world, "one").term(unattended(&world, true)).granted().await;
    assert_eq!(again.granted.token, held.granted.token);
    assert_eq!(again.granted.expires_at, held.granted.expires_at, "the same end");
    assert_eq!(again.ticket, held.ticket);
    assert_eq!(one.inspect().await.grants.len(), 1);

    let refused = async |holder: &str, term: Term| {
        let (_, standing) = contender(&world, holder).term(term).not_waiting().join().await;
        assert!(matches!(standing, Standing::Refused { .. }), "{holder} {term:?} is {standing:?}");
    };
    refused("two", unattended(&world, true)).await;
    refused("one", unattended(&world, false)).await;
    refused("one", Term::Attended { ttl: world.ttl() }).await;
    one.leave(&again.ticket).await;
    let kept = contender(&world, "one").granted().await;
    refused("one", unattended(&world, true)).await;
    assert_eq!(
        one.inspect().await.grants[0].token,
        kept.granted.token,
        "one that a process keeps is not shared"
    );
}

async fn an_unattended_grant_is_not_shortened_by_the_wall_clock(world: World) {
    let ttl = world.ttl();
    let one = contender(&world, "one").term(unattended(&world, false));
    let two = contender(&world, "two");
    let held = one.granted().await;
    let second = two.waiting().await;
    world.clock().set_forward(Duration::from_secs(3600));
    let granted = two.wait(&second, ttl * 2).await;
    assert!(granted.known.since(held.granted.counted_from) >= ttl, "the store's clock was not set");
    two.leave(&granted.ticket).await;
    let held = one.granted().await;
    world.clock().set_back(Duration::from_secs(7200));
    let second = two.obtain(ttl * 2).await;
    let after = second.known.since(held.granted.counted_from);
    assert!(after >= ttl && after <= ttl * 2, "it stood for {after:?}");
}

async fn anybody_frees_an_unattended_grant(world: World) {
    let one = contender(&world, "one").term(unattended(&world, false));
    let other = contender(&world, "other");
    one.granted().await;
    let second = other.waiting().await;
    other.leave(&other.inspect().await.grants[0].ticket).await;
    let granted = other.wait(&second, Duration::ZERO).await;
    other.leave(&granted.ticket).await;

    let held = one.granted().await;
    let second = other.waiting().await;
    other.leases.evict(&one.lease, held.granted.token, false).await.expect("evict");
    other.wait(&second, Duration::ZERO).await;
    let past = other.inspect().await.past;
    let ended: Vec<_> = past.iter().rev().take(2).map(|past| past.how).collect();
    assert_eq!(ended, [Ending::Evicted, Ending::Left]);
}
