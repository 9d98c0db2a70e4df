use std::time::Duration;

use servicekit_core::{Kind, State, registry::Claim, store::Group};

use super::node::{Node, expect_kind, list, of};
use crate::{
    fault::Fault,
    suite::{
        case::cases,
        world::{World, label},
    },
};

cases! { "registry";
    an_instance_is_up_while_its_node_beats [NoFaults],
    an_instance_is_lost_when_its_node_is_silent [NoFaults],
    a_session_that_ended_is_opened_again [NoFaults],
    a_session_that_is_closed_has_ended [NoFaults],
    a_beat_whose_answer_was_lost_is_no_loss [NoFaults],
    sessions_are_apart [NoFaults],
    a_ttl_that_cannot_be_kept_is_invalid [NoFaults],
    a_wall_clock_that_is_set_loses_nobody [NoFaults, SimulatedTime],
    the_clocks_of_other_hosts_lose_nobody [NoFaults, SimulatedTime, MultiHost],
    what_is_over_does_not_add_up [NoFaults],
    what_is_lost_is_cleaned_away_after_an_hour_or_so [NoFaults, SimulatedTime],
}

/// Nodes come and go without a word, for ever.
async fn what_is_over_does_not_add_up(world: World) {
    let web = label("web");
    for i in 0..world.many(30, 12) {
        Node::open(&world).await.put_up(&Claim::new(), &web, &format!("web-{i}")).await;
    }
    world.pass(world.ttl() + Duration::from_secs(2)).await;
    let sessions = Group::of(&world.namespace, "sessions");
    let stored = async || {
        let list = || async { world.store().list(std::slice::from_ref(&sessions)).await };
        world.ok("list", list).await.len()
    };
    let mut nodes = Vec::new();
    while stored().await > nodes.len() {
        // One in eight does, at random: that a hundred do not has a probability of two in a million.
        assert!(nodes.len() < 100, "new nodes sweep up what is over");
        nodes.push(Node::open(&world).await);
    }
}

async fn an_instance_is_up_while_its_node_beats(world: World) {
    let (node, web) = (Node::open(&world).await, label("web"));
    node.put_up(&Claim::new(), &web, "web-1").await;
    for _ in 0..world.many(20, 4) {
        node.live(world.ttl() / 2).await;
        assert_eq!(node.states(&web).await, of(&[("web-1", State::Up)]));
    }
}

async fn an_instance_is_lost_when_its_node_is_silent(world: World) {
    let (node, web, ttl) = (Node::open(&world).await, label("web"), world.ttl());
    node.put_up(&Claim::new(), &web, "web-1").await;
    world.pass(ttl / 2).await;
    let sent = world.now();
    node.beat().await;
    let is_lost = || async {
        let snapshot = node.list(&web).await;
        let instance = snapshot.instances.first().expect("what is lost is still listed");
        (instance.state != State::Up).then(|| (instance.clone(), world.now().since(sent)))
    };
    let (instance, after) = world.eventually("the loss", is_lost).await;
    assert!(after >= ttl, "lost {after:?} after a beat that lasts {ttl:?}");
    assert!(after <= ttl + ttl / 4 + Duration::from_secs(2) + world.lag(), "it took {after:?}");
    assert_eq!(instance.state, State::Lost);
    assert!(!instance.reason.is_empty());
    assert_eq!(node.list(&web).await.up().count(), 0);
}

async fn a_session_that_ended_is_opened_again(world: World) {
    let (mut node, web, claim) = (Node::open(&world).await, label("web"), Claim::new());
    node.put_up(&claim, &web, "web-1").await;
    let incarnation = claim.incarnation();
    world.pass(world.ttl() * 2).await;
    let lost = of(&[("web-1", State::Lost)]);
    assert_eq!(node.states(&web).await, lost);
    match node.registry.beat(&node.session).await {
        Err(error) => {
            assert_eq!(error.kind(), Kind::Lost, "{error:?}");
            expect_kind(Kind::Lost, node.registry.beat(&node.session).await);
            assert_eq!(node.states(&web).await, lost, "a lost session does not come back");
            node.reopen().await;
            node.put_up(&claim, &web, "web-1").await;
        }
        // Where only observers judge, nobody has ended it.
        Ok(taken) => {
            assert_eq!(taken, []);
            assert!(!world.capabilities().server_expiry, "the store has ended it");
        }
    }
    assert_eq!(node.states(&web).await, of(&[("web-1", State::Up)]));
    assert_eq!(claim.incarnation(), incarnation, "it is the same process");
    node.live(world.ttl()).await;
}

async fn a_session_that_is_closed_has_ended(world: World) {
    let (node, other, web) = (Node::open(&world).await, Node::open(&world).await, label("web"));
    node.put_up(&Claim::new(), &web, "web-1").await;
    other.put_up(&Claim::new(), &web, "web-2").await;
    node.registry.close(&node.session).await.expect("close");
    let expected = of(&[("web-1", State::Lost), ("web-2", State::Up)]);
    assert_eq!(node.states(&web).await, expected);
    expect_kind(Kind::Lost, node.registry.beat(&node.session).await);
    node.registry.close(&node.session).await.expect("closing what is closed is no error");
    other.beat().await;
}

async fn a_beat_whose_answer_was_lost_is_no_loss(world: World) {
    let (node, web) = (Node::open(&world).await, label("web"));
    node.put_up(&Claim::new(), &web, "web-1").await;
    let late = Fault::ApplyLate(Duration::from_millis(50));
    for fault in [Fault::FailBefore, Fault::LoseAnswer, late] {
        world.faulty.script(0, fault);
        assert_eq!(node.beat().await, []);
        assert_eq!(node.beat().await, []);
    }
    assert_eq!(node.states(&web).await, of(&[("web-1", State::Up)]));
}

async fn sessions_are_apart(world: World) {
    let (short, long, web) =
        (Node::open(&world).await, Node::open_long(&world).await, label("web"));
    short.put_up(&Claim::new(), &web, "short").await;
    long.put_up(&Claim::new(), &web, "long").await;
    assert_ne!(short.session.name(), long.session.name());
    assert_eq!(short.session.ttl(), world.ttl());
    world.pass(world.ttl() * 2).await;
    let expected = of(&[("long", State::Up), ("short", State::Lost)]);
    assert_eq!(long.states(&web).await, expected);
}

async fn a_ttl_that_cannot_be_kept_is_invalid(world: World) {
    let registry = world.process().registry;
    let least = world.capabilities().min_ttl;
    expect_kind(Kind::Invalid, registry.open("node", least / 2).await);
    registry.open("node", least).await.expect("the shortest ttl");
}

async fn a_wall_clock_that_is_set_loses_nobody(world: World) {
    let (node, web, hour) = (Node::open(&world).await, label("web"), Duration::from_secs(3600));
    node.put_up(&Claim::new(), &web, "web-1").await;
    for step in 0..6 {
        match step % 2 {
            0 => world.clock().set_forward(hour),
            _ => world.clock().set_back(hour * 2),
        }
        assert_eq!(node.states(&web).await, of(&[("web-1", State::Up)]));
        node.live(world.ttl() / 2).await;
        assert_eq!(node.states(&web).await, of(&[("web-1", State::Up)]));
    }
    world.pass(world.ttl() * 2).await;
    assert_eq!(node.states(&web).await, of(&[("web-1", State::Lost)]));
}

async fn the_clocks_of_other_hosts_lose_nobody(world: World) {
    let (node, web, hour) = (Node::open(&world).await, label("web"), Duration::from_secs(3600));
    node.put_up(&Claim::new(), &web, "web-1").await;
    for is_behind in [true, false] {
        let (elsewhere, clock) = world.another_host();
        if is_behind {
            clock.set_back(hour * 3)
        } else {
            clock.set_forward(hour * 3)
        }
        let reader = world.process_on(&elsewhere).registry;
        for _ in 0..6 {
            node.live(world.ttl() / 2).await;
            assert_eq!(list(&world, &reader, &web).await.up().count(), 1, "behind: {is_behind}");
        }
    }
}

async fn what_is_lost_is_cleaned_away_after_an_hour_or_so(world: World) {
    let (node, web, minute) = (Node::open(&world).await, label("web"), Duration::from_secs(60));
    node.put_up(&Claim::new(), &web, "web-1").await;
    world.pass(minute * 50).await;
    assert_eq!(node.states(&web).await, of(&[("web-1", State::Lost)]), "it shows for an hour");
    world.pass(minute * 100).await;
    assert_eq!(node.states(&web).await, of(&[]));
}
