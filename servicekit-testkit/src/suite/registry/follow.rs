use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{Either, join_all, select},
    stream::BoxStream,
};
use servicekit_core::{
    Instance, Result, ServiceId, State,
    clock::timeout,
    registry::{Claim, Event, Snapshot},
};

use super::node::{Node, of, up};
use crate::suite::{
    case::cases,
    world::{World, id, label},
};

cases! { "registry";
    a_follower_sees_a_snapshot_then_each_change [NoFaults],
    a_follower_sees_its_label_alone [NoFaults],
    a_follower_sees_who_is_lost [NoFaults],
    a_removal_that_comes_with_a_loss_is_seen [NoFaults],
    a_beat_wakes_no_follower [NoFaults],
    a_follower_misses_nothing_that_happens_meanwhile [NoFaults],
    a_follower_is_told_of_an_outage_and_catches_up [NoFaults],
    after_an_outage_nobody_is_lost_who_beats_again_within_its_ttl [NoFaults],
    however_often_the_store_is_away_who_is_dead_is_lost [NoFaults],
}

pub(super) type Events = BoxStream<'static, Result<Event>>;

/// A label as a follower sees it.
#[derive(Default)]
pub(super) struct Seen {
    instances: BTreeMap<ServiceId, Arc<Instance>>,
    snapshots: u32,
}

impl Seen {
    pub(super) fn take(&mut self, event: Event) {
        match event {
            Event::Snapshot(Snapshot { instances }) => {
                self.snapshots += 1;
                self.instances = instances.into_iter().map(|i| (i.service_id.clone(), i)).collect();
            }
            Event::Changed(instance) => {
                self.instances.insert(instance.service_id.clone(), instance);
            }
            Event::Removed(id) => {
                self.instances.remove(&id);
            }
        }
    }

    pub(super) fn states(&self) -> BTreeMap<String, State> {
        self.instances.iter().map(|(id, instance)| (id.to_string(), instance.state)).collect()
    }

    /// Follows until the states are these.
    pub(super) async fn until(
        &mut self,
        world: &World,
        events: &mut Events,
        expected: &BTreeMap<String, State>,
    ) {
        if self.snapshots > 0 && self.states() == *expected {
            return;
        }
        let what = format!("{expected:?} to follow {:?}", self.states());
        world
            .next(&what, events, |event| {
                self.take(event);
                (self.states() == *expected).then_some(())
            })
            .await;
    }
}

async fn a_follower_sees_a_snapshot_then_each_change(world: World) {
    let (node, web) = (Node::open_long(&world).await, label("web"));
    let (mut events, mut seen) = (node.registry.watch(&web), Seen::default());
    let first = world.next("the first event", &mut events, Some).await;
    assert_eq!(first, Event::Snapshot(Snapshot::default()));
    let (one, two) = (Claim::new(), Claim::new());
    node.put_up(&one, &web, "a").await;
    seen.until(&world, &mut events, &of(&[("a", State::Up)])).await;
    node.put_up(&two, &web, "b").await;
    seen.until(&world, &mut events, &of(&[("a", State::Up), ("b", State::Up)])).await;
    let mut instance = up(&world, &web, "b");
    instance.change(State::Down, "fall 2", "500", world.env.clock.wall());
    node.put(&two, &instance).await;
    seen.until(&world, &mut events, &of(&[("a", State::Up), ("b", State::Down)])).await;
    assert_eq!(seen.instances[&id("b")].reason, instance.reason);
    node.remove(&one, &web, "a").await;
    seen.until(&world, &mut events, &of(&[("b", State::Down)])).await;
    let (mut again, mut seen) = (world.process().registry.watch(&web), Seen::default());
    seen.take(world.next("the first event", &mut again, Some).await);
    assert_eq!((seen.snapshots, seen.states()), (1, of(&[("b", State::Down)])));
}

async fn a_follower_sees_its_label_alone(world: World) {
    let (node, own) = (Node::open_long(&world).await, label("foo"));
    let (mut events, mut seen) = (node.registry.watch(&own), Seen::default());
    world.next("a snapshot", &mut events, Some).await;
    for other in ["foo2", "fo", "foo.bar"] {
        node.put_up(&Claim::new(), &label(other), "other").await;
    }
    node.put_up(&Claim::new(), &own, "own").await;
    world
        .next("its own instance", &mut events, |event| {
            seen.take(event);
            let states = seen.states();
            assert!(states.keys().all(|id| id == "own"), "{states:?}");
            (!states.is_empty()).then_some(())
        })
        .await;
}

async fn a_follower_sees_who_is_lost(world: World) {
    let (node, web, ttl) = (Node::open(&world).await, label("web"), world.ttl());
    let other = Node::open_long(&world).await;
    let (mut events, mut seen) = (other.registry.watch(&web), Seen::default());
    node.put_up(&Claim::new(), &web, "silent").await;
    other.put_up(&Claim::new(), &web, "alive").await;
    let silent_is = |state| of(&[("alive", State::Up), ("silent", state)]);
    seen.until(&world, &mut events, &silent_is(State::Up)).await;
    let beat = world.now();
    node.beat().await;
    seen.until(&world, &mut events, &silent_is(State::Lost)).await;
    let after = world.now().since(beat);
    assert!(after >= ttl, "lost {after:?} after a beat that lasts {ttl:?}");
    assert!(after <= ttl + ttl / 4 + Duration::from_secs(2) + world.lag(), "it took {after:?}");
    // A new process on a new session.
    let again = Node::open_long(&world).await;
    again.put_up(&Claim::new(), &web, "silent").await;
    seen.until(&world, &mut events, &silent_is(State::Up)).await;
    again.registry.close(&again.session).await.expect("close");
    seen.until(&world, &mut events, &silent_is(State::Lost)).await;
}

async fn a_removal_that_comes_with_a_loss_is_seen(world: World) {
    let (silent, web, claim) = (Node::open(&world).await, label("web"), Claim::new());
    let node = Node::open_long(&world).await;
    let (mut events, mut seen) = (world.process().registry.watch(&web), Seen::default());
    silent.put_up(&Claim::new(), &web, "silent").await;
    node.put_up(&claim, &web, "removed").await;
    let both = of(&[("removed", State::Up), ("silent", State::Up)]);
    seen.until(&world, &mut events, &both).await;
    // Nobody looks meanwhile, so that both are there at once.
    node.live(world.ttl() * 2).await;
    node.remove(&claim, &web, "removed").await;
    seen.until(&world, &mut events, &of(&[("silent", State::Lost)])).await;
}

async fn a_beat_wakes_no_follower(world: World) {
    let (node, web) = (Node::open(&world).await, label("web"));
    node.put_up(&Claim::new(), &web, "web-1").await;
    let mut events = world.process().registry.watch(&web);
    let first = world.next("a snapshot", &mut events, Some).await;
    assert!(matches!(first, Event::Snapshot(_)));
    match select(node.live(world.ttl() * 3).boxed(), events.next()).await {
        Either::Left(_) => {}
        Either::Right((event, _)) => panic!("{event:?} while nothing changed"),
    }
}

async fn a_follower_misses_nothing_that_happens_meanwhile(world: World) {
    let web = label("web");
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(Node::open_long(&world).await);
    }
    let writing = nodes.iter().enumerate().map(async |(n, node)| {
        let claims: [Claim; 4] = Default::default();
        for _ in 0..world.many(60, 20) {
            let which = world.below(4);
            let service_id = format!("n{n}-{which}");
            if world.env.random.chance(0.3) {
                node.remove(&claims[which], &web, &service_id).await;
            } else {
                node.put_up(&claims[which], &web, &service_id).await;
            }
            world.pass(Duration::from_millis(world.env.random.below(4))).await;
        }
        node.put_up(&Claim::new(), &web, &format!("last-{n}")).await;
    });
    let following = (0..3).map(async |_| {
        world.pass(Duration::from_millis(world.env.random.below(60))).await;
        let (mut events, mut seen) = (world.process().registry.watch(&web), Seen::default());
        world
            .next("the last puts", &mut events, |event| {
                seen.take(event);
                let is_there = |n| seen.instances.contains_key(&id(&format!("last-{n}")));
                (0..3).all(is_there).then_some(())
            })
            .await;
        (events, seen)
    });
    let (_, followed) = futures_util::join!(join_all(writing), join_all(following));
    let expected = nodes[0].states(&web).await;
    assert!(expected.values().all(|state| *state == State::Up));
    for (mut events, mut seen) in followed {
        seen.until(&world, &mut events, &expected).await;
    }
}

async fn a_follower_is_told_of_an_outage_and_catches_up(world: World) {
    let (node, web, one) = (Node::open_long(&world).await, label("web"), Claim::new());
    let (mut events, mut seen) = (world.process().registry.watch(&web), Seen::default());
    node.put_up(&one, &web, "a").await;
    seen.until(&world, &mut events, &of(&[("a", State::Up)])).await;
    world.faulty.away();
    let error = world.soon("an error", events.next()).await.expect("it does not end");
    assert!(error.expect_err("the store is away").is_transient());
    world.pass(Duration::from_millis(300)).await;
    world.faulty.back();
    node.remove(&one, &web, "a").await;
    node.put_up(&Claim::new(), &web, "b").await;
    let snapshots = seen.snapshots;
    seen.until(&world, &mut events, &of(&[("b", State::Up)])).await;
    assert!(seen.snapshots > snapshots, "continuity could not be proven");
}

/// The store was away for longer than any ttl: that says nothing about the nodes.
async fn after_an_outage_nobody_is_lost_who_beats_again_within_its_ttl(world: World) {
    let (mut alive, dead) = (Node::open(&world).await, Node::open(&world).await);
    let (web, ttl, claim) = (label("web"), world.ttl(), Claim::new());
    alive.put_up(&claim, &web, "alive").await;
    dead.put_up(&Claim::new(), &web, "dead").await;
    let (mut events, mut seen) = (world.process().registry.watch(&web), Seen::default());
    let both = of(&[("alive", State::Up), ("dead", State::Up)]);
    seen.until(&world, &mut events, &both).await;
    world.faulty.away();
    world.pass(ttl * 3).await;
    world.faulty.back();
    let back = world.now();
    let beating = async {
        world.pass(ttl / 2).await;
        if alive.registry.beat(&alive.session).await.is_err() {
            alive.reopen().await;
            alive.put_up(&claim, &web, "alive").await;
        }
        alive.live(ttl * 2).await;
    };
    let following = world.soon("the loss of the dead", async {
        loop {
            match events.next().await.expect("it does not end") {
                Ok(event) => seen.take(event),
                Err(error) => assert!(error.is_transient(), "{error:?}"),
            }
            let states = seen.states();
            assert_eq!(states.get("alive"), Some(&State::Up), "who is alive was declared lost");
            if states["dead"] == State::Lost {
                return world.now().since(back);
            }
        }
    });
    let ((), after) = futures_util::join!(beating, following);
    assert!(after >= ttl - ttl / 20, "somebody was lost {after:?} after the store came back");
}

/// Neither short outages, one after the other, nor the long ttl of another node keep the dead.
async fn however_often_the_store_is_away_who_is_dead_is_lost(world: World) {
    let (node, other, ttl) = (Node::open(&world).await, Node::open_long(&world).await, world.ttl());
    let web = label("web");
    node.put_up(&Claim::new(), &web, "dead").await;
    other.put_up(&Claim::new(), &web, "alive").await;
    let (mut events, mut seen) = (world.process().registry.watch(&web), Seen::default());
    let up = of(&[("alive", State::Up), ("dead", State::Up)]);
    seen.until(&world, &mut events, &up).await;
    node.beat().await;
    let beat = world.now();
    while seen.states()["dead"] == State::Up {
        let after = world.now().since(beat);
        assert!(after <= ttl * 3 + world.lag(), "still up {after:?} after its last beat");
        world.faulty.away();
        let mut next = async || world.soon("an event", events.next()).await.expect("no end");
        while let Ok(event) = next().await {
            seen.take(event);
        }
        world.faulty.back();
        // Until nothing more comes for a while.
        while let Ok(event) = timeout(&*world.env.clock, ttl / 4, events.next()).await {
            if let Ok(event) = event.expect("no end") {
                seen.take(event);
            }
        }
    }
    assert_eq!(seen.states()["alive"], State::Up);
    let after = world.now().since(beat);
    assert!(after >= ttl, "lost {after:?} after a beat that lasts {ttl:?}");
}
