use std::time::Duration;

use futures_util::future::join_all;
use servicekit_core::{Kind, State, clock::timeout, registry::Claim};

use super::node::{Node, expect_kind, key, of, up};
use crate::{
    fault::Plan,
    suite::{
        case::cases,
        world::{World, id, label},
    },
};

cases! { "registry";
    the_newer_incarnation_wins_and_the_older_is_told [NoFaults],
    the_older_incarnation_brings_nothing_back [NoFaults],
    a_takeover_is_told_once_and_to_the_former_owner_alone [NoFaults],
    a_takeover_is_told_even_when_beats_are_dropped [NoFaults],
    who_comes_after_a_removal_is_newer [NoFaults],
    who_comes_after_a_crash_takes_over [NoFaults],
    incarnations_rise_when_the_wall_clock_is_set_back [NoFaults, SimulatedTime],
    of_many_who_take_over_one_wins [NoFaults, Linearizable],
}

async fn the_newer_incarnation_wins_and_the_older_is_told(world: World) {
    let (old, new, web) =
        (Node::open_long(&world).await, Node::open_long(&world).await, label("web"));
    let (older, newer, other) = (Claim::new(), Claim::new(), Claim::new());
    old.put_up(&older, &web, "web-1").await;
    old.put_up(&other, &web, "web-2").await;
    let mut instance = up(&world, &web, "web-1");
    instance.host = "elsewhere.example".into();
    new.put(&newer, &instance).await;
    assert!(newer.incarnation() > older.incarnation());
    expect_kind(Kind::Superseded, old.try_put(&older, &web, "web-1").await);
    expect_kind(Kind::Superseded, old.registry.remove(&older, &web, &id("web-1")).await);
    let listed = &new.list(&web).await.instances[0];
    assert_eq!(listed.host, "elsewhere.example", "the older has overwritten it");
    assert_eq!(old.beat().await, [key(&web, "web-1")]);
    old.put_up(&other, &web, "web-2").await;
    new.put_up(&newer, &web, "web-1").await;
    let expected = of(&[("web-1", State::Up), ("web-2", State::Up)]);
    assert_eq!(new.states(&web).await, expected);
}

async fn the_older_incarnation_brings_nothing_back(world: World) {
    let (mut old, new, web) =
        (Node::open_long(&world).await, Node::open_long(&world).await, label("web"));
    let (older, newer) = (Claim::new(), Claim::new());
    old.put_up(&older, &web, "web-1").await;
    new.put_up(&newer, &web, "web-1").await;
    new.remove(&newer, &web, "web-1").await;
    for is_reopened in [false, true] {
        if is_reopened {
            old.reopen().await;
        }
        expect_kind(Kind::Superseded, old.try_put(&older, &web, "web-1").await);
        assert_eq!(old.states(&web).await, of(&[]));
    }
}

async fn a_takeover_is_told_once_and_to_the_former_owner_alone(world: World) {
    let (mut one, two) = (Node::open_long(&world).await, Node::open_long(&world).await);
    let (third, web, db) = (Node::open_long(&world).await, label("web"), label("db"));
    let claims = [Claim::new(), Claim::new()];
    // Another session of the same process is no takeover.
    let before = one.session.clone();
    for _ in 0..2 {
        one.put_up(&claims[0], &web, "a").await;
        one.put_up(&claims[1], &db, "a").await;
        one.reopen().await;
    }
    one.put_up(&claims[0], &web, "a").await;
    one.put_up(&claims[1], &db, "a").await;
    assert_eq!(one.registry.beat(&before).await.expect("beat"), []);
    assert_eq!(one.beat().await, []);
    let newer = Claim::new();
    two.put_up(&newer, &web, "a").await;
    two.put_up(&newer, &web, "a").await;
    two.put_up(&Claim::new(), &db, "a").await;
    let mut told = one.beat().await;
    told.sort();
    assert_eq!(told, [key(&db, "a"), key(&web, "a")]);
    assert_eq!(one.beat().await, [], "told twice");
    assert_eq!(two.beat().await, []);
    assert_eq!(third.beat().await, []);
}

async fn a_takeover_is_told_even_when_beats_are_dropped(world: World) {
    let (web, old) = (label("web"), Node::open_long(&world).await);
    for i in 0..world.many(24, 6) {
        let service_id = format!("web-{i}");
        let new = Node::open_long(&world).await;
        old.put_up(&Claim::new(), &web, &service_id).await;
        new.put_up(&Claim::new(), &web, &service_id).await;
        let slowest = Duration::from_millis(10);
        world.faulty.follow(Plan { delay: 1.0, slowest, ..Plan::NONE });
        let mut told = Vec::new();
        for _ in 0..3 {
            let limit = Duration::from_millis(world.env.random.below(40));
            let beat = timeout(&*world.env.clock, limit, old.registry.beat(&old.session)).await;
            told.extend(beat.into_iter().flat_map(|taken| taken.expect("beat")));
        }
        world.faulty.follow(Plan::NONE);
        told.extend(old.beat().await);
        assert!(told.contains(&key(&web, &service_id)), "nobody was told of {service_id}");
    }
}

async fn who_comes_after_a_removal_is_newer(world: World) {
    let (web, node) = (label("web"), Node::open_long(&world).await);
    let mut last = None;
    for _ in 0..4 {
        let claim = Claim::new();
        node.put_up(&claim, &web, "web-1").await;
        assert!(claim.incarnation() > last, "{:?} after {last:?}", claim.incarnation());
        last = claim.incarnation();
        node.remove(&claim, &web, "web-1").await;
    }
    assert_eq!(node.beat().await, []);
}

async fn who_comes_after_a_crash_takes_over(world: World) {
    let (crashed, web) = (Node::open(&world).await, label("web"));
    crashed.put_up(&Claim::new(), &web, "web-1").await;
    world.pass(world.ttl() * 2).await;
    let node = Node::open_long(&world).await;
    assert_eq!(node.states(&web).await, of(&[("web-1", State::Lost)]));
    node.put_up(&Claim::new(), &web, "web-1").await;
    assert_eq!(node.states(&web).await, of(&[("web-1", State::Up)]));
    assert_eq!(node.beat().await, []);
}

async fn incarnations_rise_when_the_wall_clock_is_set_back(world: World) {
    let (web, node) = (label("web"), Node::open_long(&world).await);
    let mut older = Claim::new();
    node.put_up(&older, &web, "web-1").await;
    for _ in 0..3 {
        world.clock().set_back(Duration::from_secs(3600));
        let newer = Claim::new();
        node.put_up(&newer, &web, "web-1").await;
        assert!(newer.incarnation() > older.incarnation());
        expect_kind(Kind::Superseded, node.try_put(&older, &web, "web-1").await);
        older = newer;
    }
}

async fn of_many_who_take_over_one_wins(world: World) {
    let web = label("web");
    let mut nodes = Vec::new();
    for _ in 0..6 {
        nodes.push((Node::open_long(&world).await, Claim::new()));
    }
    let puts = nodes.iter().map(async |(node, claim)| {
        let put = node.try_put(claim, &web, "web-1").await;
        put.expect("a first put takes over whatever is there");
    });
    join_all(puts).await;
    let mut incarnations: Vec<_> = nodes.iter().map(|(_, claim)| claim.incarnation()).collect();
    incarnations.sort_unstable();
    incarnations.dedup();
    assert_eq!(incarnations.len(), nodes.len(), "an incarnation was drawn twice");
    for (node, claim) in &nodes {
        let put = node.try_put(claim, &web, "web-1").await;
        if Some(&claim.incarnation()) == incarnations.last() {
            put.expect("it is the newest");
        } else {
            expect_kind(Kind::Superseded, put);
            assert_eq!(node.beat().await, [key(&web, "web-1")]);
        }
    }
}
