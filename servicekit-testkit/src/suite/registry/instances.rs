use std::time::Duration;

use servicekit_core::{
    Instance, State, Timestamp,
    clock::timeout,
    instance::REMEMBERED_CHANGES,
    registry::{Claim, Event},
    store::{Expect, Group, Keep},
};

use super::node::{Node, list, of, states, up};
use crate::{
    fault::{Counts, Fault},
    suite::{
        case::cases,
        world::{World, id, is_fault, label, name},
    },
};

cases! { "registry";
    an_instance_that_was_put_is_listed [NoFaults],
    a_label_that_nobody_used_is_empty [NoFaults],
    an_instance_that_was_removed_is_gone [NoFaults],
    instances_are_listed_in_order [NoFaults],
    labels_do_not_touch_each_other,
    labels_are_listed_in_order,
    the_last_ten_changes_are_remembered [NoFaults],
    a_put_that_comes_late_brings_nothing_back [NoFaults],
    a_removal_settles_a_first_put_without_an_answer [NoFaults],
    instances_of_others_are_passed_over [NoFaults],
    a_damaged_instance_is_written_anew [NoFaults],
    a_beat_is_one_request_however_many_instances [NoFaults],
    a_list_is_one_request [NoFaults],
}

async fn an_instance_that_was_put_is_listed(world: World) {
    let began = world.env.clock.wall();
    let (node, web, claim) = (Node::open(&world).await, label("web"), Claim::new());
    let mut instance = up(&world, &web, "web-1");
    instance.host = "2001:db8::1".into();
    instance.weight = 7;
    instance.zone = Some("north".into());
    instance.info = [("version", "1.2"), ("empty", "")].into_iter().collect();
    node.put(&claim, &instance).await;
    let incarnation = claim.incarnation().expect("it was drawn");
    assert!(world.is_since(began, Timestamp::from_millis(incarnation)) && incarnation < 1 << 53);
    for registry in [&node.registry, &world.process().registry] {
        let snapshot = list(&world, registry, &web).await;
        let listed: Vec<&Instance> = snapshot.instances.iter().map(|i| &**i).collect();
        assert_eq!(listed, [&instance]);
        assert_eq!(snapshot.up().count(), 1);
    }
    for state in [State::Draining, State::Down, State::Starting, State::Up] {
        instance.change(state, "a rule", "an output", world.env.clock.wall());
        node.put(&claim, &instance).await;
        // On a slow store all of this takes longer than a ttl.
        node.beat().await;
        let snapshot = node.list(&web).await;
        assert_eq!((snapshot.instances.len(), snapshot.instances[0].state), (1, state));
        assert_eq!(snapshot.up().count(), usize::from(state == State::Up));
    }
    assert_eq!(claim.incarnation(), Some(incarnation));
}

async fn a_label_that_nobody_used_is_empty(world: World) {
    let registry = world.process().registry;
    assert_eq!(registry.list(&label("web")).await.expect("list").instances, []);
    assert_eq!(registry.labels().await.expect("labels"), []);
}

async fn an_instance_that_was_removed_is_gone(world: World) {
    let (node, web) = (Node::open_long(&world).await, label("web"));
    let (one, two) = (Claim::new(), Claim::new());
    node.remove(&one, &web, "web-1").await;
    node.put_up(&one, &web, "web-1").await;
    node.put_up(&two, &web, "web-2").await;
    node.remove(&one, &web, "web-1").await;
    assert_eq!(node.states(&web).await, of(&[("web-2", State::Up)]));
    node.remove(&one, &web, "web-1").await;
    node.put_up(&one, &web, "web-1").await;
    assert_eq!(node.states(&web).await.len(), 2, "its owner may put it again");
    node.remove(&one, &web, "web-1").await;
    node.remove(&two, &web, "web-2").await;
    assert_eq!(node.states(&web).await, of(&[]));
}

async fn instances_are_listed_in_order(world: World) {
    let (node, web) = (Node::open_long(&world).await, label("web"));
    let mut ids: Vec<_> = (0..40).map(|i| id(&format!("web-{}", i * 7 % 40))).collect();
    for id in &ids {
        node.put_up(&Claim::new(), &web, id.as_str()).await;
    }
    ids.sort();
    let listed = node.list(&web).await.instances;
    let listed: Vec<_> = listed.iter().map(|instance| instance.service_id.clone()).collect();
    assert_eq!(listed, ids);
}

async fn labels_do_not_touch_each_other(world: World) {
    let node = Node::open_long(&world).await;
    let labels = ["foo", "foo2", "foo.bar", "f", "sessions"].map(label);
    let claims = labels.each_ref().map(|_| Claim::new());
    for (label, claim) in labels.iter().zip(&claims) {
        node.put_up(claim, label, label.as_str()).await;
    }
    for label in &labels {
        let expected = of(&[(label.as_str(), State::Up)]);
        world.reads("the only instance", expected, || node.states(label)).await;
    }
    node.remove(&claims[0], &labels[0], "foo").await;
    world.reads("nothing of foo", of(&[]), || node.states(&labels[0])).await;
    let expected = of(&[("foo2", State::Up)]);
    world.reads("foo2", expected, || node.states(&labels[1])).await;
}

async fn labels_are_listed_in_order(world: World) {
    let node = Node::open_long(&world).await;
    for used in ["web", "db", "web2"] {
        let claim = Claim::new();
        node.put_up(&claim, &label(used), "one").await;
        node.remove(&claim, &label(used), "one").await;
    }
    let labels = || async { world.ok("labels", || node.registry.labels()).await };
    let expected = ["db", "web", "web2"].map(label);
    world.reads("also those without instances", expected.to_vec(), labels).await;
}

async fn the_last_ten_changes_are_remembered(world: World) {
    let (node, web) = (Node::open_long(&world).await, label("web"));
    let rules = async || -> Vec<String> {
        let snapshot = node.list(&web).await;
        snapshot.instances[0].changes.iter().map(|change| change.rule.clone()).collect()
    };
    let mut expected = Vec::new();
    for process in 0..3 {
        // A process knows nothing of what was before it.
        let (claim, mut instance) = (Claim::new(), up(&world, &web, "web-1"));
        expected.push("rise 1".to_owned());
        for i in 0..5 {
            let rule = format!("rule {process}-{i}");
            instance.change(State::Up, &rule, "", world.env.clock.wall());
            expected.push(rule);
            node.put(&claim, &instance).await;
            node.put(&claim, &instance).await;
            let surplus = expected.len().saturating_sub(REMEMBERED_CHANGES);
            assert_eq!(rules().await, expected[surplus..]);
        }
    }
}

/// Whichever request of a put is applied late: the removal after it is for good.
async fn a_put_that_comes_late_brings_nothing_back(world: World) {
    let (node, late) = (Node::open_long(&world).await, Duration::from_millis(300));
    let mut were_late = 0;
    for is_first in [true, false] {
        for request in 0..4 {
            let web = label(&format!("web-{is_first}-{request}"));
            let claim = Claim::new();
            if !is_first {
                node.put_up(&claim, &web, "one").await;
            }
            world.faulty.script(request, Fault::ApplyLate(late));
            drop(node.try_put(&claim, &web, "one").await);
            were_late += u32::from(!world.faulty.is_scripted());
            world.faulty.unscript();
            node.remove(&claim, &web, "one").await;
            world.pass(late * 2).await;
            assert_eq!(node.states(&web).await, of(&[]), "request {request} brought it back");
        }
    }
    assert!(were_late >= 2, "no put was late");
}

/// A process that does not know whether its first put was applied is told to stop.
async fn a_removal_settles_a_first_put_without_an_answer(world: World) {
    let (node, web) = (Node::open_long(&world).await, label("web"));
    for request in 0..3 {
        let claim = Claim::new();
        world.faulty.script(request, Fault::LoseAnswer);
        let outage = async {
            let is_done = || async { (!world.faulty.is_scripted()).then_some(()) };
            world.eventually("the fault", is_done).await;
            world.faulty.away();
        };
        let putting = async { futures_util::join!(outage, node.try_put(&claim, &web, "one")) };
        drop(timeout(&*world.env.clock, Duration::from_millis(400), putting).await);
        world.faulty.back();
        world.faulty.unscript();
        let remove = || async {
            let removed = node.registry.remove(&claim, &web, &id("one")).await;
            assert!(removed.as_ref().err().is_none_or(is_fault), "{removed:?}");
            removed.ok()
        };
        world.eventually("the removal", remove).await;
        assert_eq!(node.states(&web).await, of(&[]), "request {request}");
    }
}

async fn instances_of_others_are_passed_over(world: World) {
    let (node, web) = (Node::open_long(&world).await, label("web"));
    node.put_up(&Claim::new(), &web, "web-1").await;
    let store = world.store();
    let mut events = node.registry.watch(&web);
    world.next("a snapshot", &mut events, Some).await;
    let groups = [
        Group::scoped(&world.namespace, "instances", &(&web).into()),
        world.group("sessions"),
        world.group("labels"),
    ];
    for group in &groups {
        let records = store.list(std::slice::from_ref(group)).await.expect("list");
        assert!(!records.is_empty(), "the case looks at the wrong group, {group}");
        let fine = records[0].value.to_vec();
        let newer = String::from_utf8_lossy(&fine).replacen("\"v\":1", "\"v\":99", 1);
        assert_ne!(newer.as_bytes(), fine, "the record has another format");
        let junk = [
            Vec::new(),
            b"not JSON".to_vec(),
            vec![0xff, 0x00],
            b"{}".to_vec(),
            b"[1]".to_vec(),
            br#"{"v":1,"state":"sideways"}"#.to_vec(),
            newer.into_bytes(),
            // A fine record, but under a name that it does not belong to.
            fine,
        ];
        for (i, value) in junk.iter().enumerate() {
            for (keep, suffix) in [(Keep::Durable, "d"), (Keep::Ephemeral(world.ttl() * 100), "e")]
            {
                let key = group.key(name(&format!("Junk:{i}{suffix}")));
                let put = world.put(&key, value, Expect::Absent, keep);
                store.put(&put).await.expect("put");
            }
        }
    }
    assert_eq!(node.states(&web).await, of(&[("web-1", State::Up)]));
    let other = world.process().registry;
    assert_eq!(other.labels().await.expect("labels"), std::slice::from_ref(&web));
    node.put_up(&Claim::new(), &web, "web-2").await;
    node.beat().await;
    assert_eq!(states(&list(&world, &other, &web).await).len(), 2);
    let changed = |event| match event {
        Event::Changed(instance) => Some(instance.service_id.clone()),
        Event::Snapshot(_) | Event::Removed(_) => None,
    };
    let shown = world.next("the next instance", &mut events, changed).await;
    assert_eq!(shown, id("web-2"), "junk is shown");
}

async fn a_damaged_instance_is_written_anew(world: World) {
    let (node, web, claim) = (Node::open_long(&world).await, label("web"), Claim::new());
    node.put_up(&claim, &web, "web-1").await;
    let (store, group) =
        (world.store(), Group::scoped(&world.namespace, "instances", &(&web).into()));
    let record = store.get(&group.key(name("web-1"))).await.expect("get").expect("the record");
    let put = world.put(&record.key, "damaged", Expect::At(record.version), Keep::Durable);
    store.put(&put).await.expect("put");
    assert_eq!(node.states(&web).await, of(&[]));
    node.put_up(&claim, &web, "web-1").await;
    assert_eq!(node.states(&web).await, of(&[("web-1", State::Up)]));
}

async fn a_beat_is_one_request_however_many_instances(world: World) {
    let node = Node::open_long(&world).await;
    for i in 0..100 {
        let label = label(&format!("l{}", i % 5));
        node.put_up(&Claim::new(), &label, &format!("i{i}")).await;
    }
    let before = world.counting.counts();
    node.beat().await;
    assert_eq!(world.counting.counts() - before, Counts { touch: 1, ..Counts::default() });
}

async fn a_list_is_one_request(world: World) {
    let node = Node::open_long(&world).await;
    for i in 0..100 {
        node.put_up(&Claim::new(), &label("web"), &format!("i{i}")).await;
    }
    let before = world.counting.counts();
    assert_eq!(node.list(&label("web")).await.instances.len(), 100);
    assert_eq!(world.counting.counts() - before, Counts { list: 1, ..Counts::default() });
}
