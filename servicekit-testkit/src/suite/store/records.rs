use std::{collections::BTreeSet, time::Duration};

use futures_util::{FutureExt as _, future::join_all};
use servicekit_core::{
    Kind, Namespace,
    store::{Expect, Group, Keep, Key, Life, Record, Version},
};

use crate::{
    fault::{Fault, Plan},
    suite::{
        case::cases,
        world::{World, name},
    },
};

cases! { "store";
    nothing_is_none_and_an_empty_group_an_empty_list [NoFaults],
    what_was_put_is_read_back [NoFaults],
    absent_is_a_condition [NoFaults],
    a_version_is_a_condition [NoFaults],
    a_version_never_comes_back [NoFaults],
    a_write_id_is_kept_and_read_back [NoFaults],
    a_put_sent_twice_is_applied_once [NoFaults],
    of_many_puts_on_one_condition_one_wins [NoFaults, Linearizable],
    no_increment_is_lost [NoFaults, Linearizable],
    a_read_after_a_write_shows_it [NoFaults, Linearizable],
    delete_needs_the_version [NoFaults],
    a_list_shows_its_groups_and_nothing_else [NoFaults],
    a_list_is_in_order_and_whole [NoFaults],
    names_are_taken_literally [NoFaults],
    values_are_any_bytes_up_to_the_limit [NoFaults],
    a_dropped_put_is_applied_or_not [NoFaults],
    capabilities_do_not_change [NoFaults],
}

async fn nothing_is_none_and_an_empty_group_an_empty_list(world: World) {
    let (store, group) = (world.store(), world.group("foo"));
    assert_eq!(store.get(&group.key(name("a"))).await.expect("get"), None);
    assert_eq!(store.list(&[group]).await.expect("list"), []);
    assert_eq!(store.list(&[]).await.expect("a list of no groups"), []);
}

async fn what_was_put_is_read_back(world: World) {
    let (store, group) = (world.store(), world.group("foo"));
    let put = world.put(&group.key(name("a")), "one", Expect::Absent, Keep::Durable);
    let version = store.put(&put).await.expect("put");
    let record = store.get(&put.key).await.expect("get").expect("the record");
    let expected = Record {
        key: put.key.clone(),
        value: put.value.clone(),
        version: version.clone(),
        write: put.write.clone(),
        life: Life::Durable,
    };
    assert_eq!(record, expected);
    assert_eq!(store.list(&[group]).await.expect("list"), std::slice::from_ref(&expected));

    let put = world.put(&put.key, "two", Expect::At(version), Keep::Durable);
    let version = store.put(&put).await.expect("put on the version");
    let record = store.get(&put.key).await.expect("get").expect("the record");
    assert_eq!((record.value, record.version, record.write), (put.value, version, put.write));
}

async fn absent_is_a_condition(world: World) {
    let (store, key) = (world.store(), world.group("foo").key(name("a")));
    let first = world.put(&key, "one", Expect::Absent, Keep::Durable);
    let version = store.put(&first).await.expect("the first put");
    let second = world.put(&key, "two", Expect::Absent, Keep::Durable);
    let error = store.put(&second).await.expect_err("there is a record already");
    assert_eq!(error.kind(), Kind::Conflict);
    let record = store.get(&key).await.expect("get").expect("the record");
    assert_eq!((&*record.value, record.version, record.write), (&b"one"[..], version, first.write));
}

async fn a_version_is_a_condition(world: World) {
    let (store, key) = (world.store(), world.group("foo").key(name("a")));
    let first =
        store.put(&world.put(&key, "one", Expect::Absent, Keep::Durable)).await.expect("put");
    let at_first = || world.put(&key, "other", Expect::At(first.clone()), Keep::Durable);
    let second = store.put(&at_first()).await.expect("a put on the right version");
    assert_ne!(first, second);
    let error = store.put(&at_first()).await.expect_err("the version is an old one");
    assert_eq!(error.kind(), Kind::Conflict);

    let elsewhere = world.group("foo").key(name("b"));
    let put = world.put(&elsewhere, "x", Expect::At(second.clone()), Keep::Durable);
    assert_eq!(store.put(&put).await.expect_err("there is no such record").kind(), Kind::Conflict);
    assert_eq!(store.get(&elsewhere).await.expect("get"), None, "a refused put writes nothing");

    store.delete(&key, &second).await.expect("delete");
    let put = world.put(&key, "x", Expect::At(second), Keep::Durable);
    assert_eq!(store.put(&put).await.expect_err("the record is gone").kind(), Kind::Conflict);
}

async fn a_version_never_comes_back(world: World) {
    let (store, key) = (world.store(), world.group("foo").key(name("a")));
    let mut seen: BTreeSet<Version> = BTreeSet::new();
    let mut is_new = |version: &Version| {
        assert!(seen.insert(version.clone()), "version {version} was there before");
    };
    let mut first = None;
    for _ in 0..4 {
        let put = world.put(&key, "same", Expect::Absent, Keep::Durable);
        let one = store.put(&put).await.expect("put");
        is_new(&one);
        let put = world.put(&key, "same", Expect::At(one.clone()), Keep::Durable);
        let two = store.put(&put).await.expect("put on the version");
        is_new(&two);
        store.delete(&key, &two).await.expect("delete");
        let first = first.get_or_insert(one);
        let stale = world.put(&key, "stale", Expect::At(first.clone()), Keep::Durable);
        assert_eq!(store.put(&stale).await.expect_err("an old version").kind(), Kind::Conflict);
    }
    let put = world.put(&key, "same", Expect::Absent, Keep::Durable);
    is_new(&store.put(&put).await.expect("put"));
    let first = first.expect("there were puts");
    let error = store.delete(&key, &first).await.expect_err("a version of an earlier life");
    assert_eq!(error.kind(), Kind::Conflict);
}

async fn a_write_id_is_kept_and_read_back(world: World) {
    let (store, group) = (world.store(), world.group("foo"));
    let key = group.key(name("a"));
    let keep = Keep::Ephemeral(world.ttl() * 100);
    let put = world.put(&key, "one", Expect::Absent, keep);
    store.put(&put).await.expect("put");
    let write = async || store.get(&key).await.expect("get").expect("the record").write;
    assert_eq!(write().await, put.write);
    store.touch(&key, &put.write).await.expect("touch");
    assert_eq!(write().await, put.write, "a touch leaves the write id alone");
    let listed = store.list(&[group]).await.expect("list");
    assert_eq!(listed[0].write, put.write);
    let version = listed[0].version.clone();
    let next = world.put(&key, "two", Expect::At(version), Keep::Unchanged);
    store.put(&next).await.expect("put on the version");
    assert_eq!(write().await, next.write);
}

/// What the caller does whose answer was lost.
async fn a_put_sent_twice_is_applied_once(world: World) {
    let (store, key) = (world.store(), world.group("foo").key(name("a")));
    let put = world.put(&key, "one", Expect::Absent, Keep::Durable);
    world.faulty.script(0, Fault::LoseAnswer);
    store.put(&put).await.expect_err("the answer was lost");
    let error = store.put(&put).await.expect_err("it was applied already");
    assert_eq!(error.kind(), Kind::Conflict);
    let record = store.get(&key).await.expect("get").expect("the record");
    assert_eq!(record.write, put.write, "the write id tells whose put it was");
}

async fn of_many_puts_on_one_condition_one_wins(world: World) {
    let (store, key) = (world.store(), world.group("foo").key(name("a")));
    let mut expect = Expect::Absent;
    for round in 0..5 {
        let puts: Vec<_> = (0..10)
            .map(|i| world.put(&key, format!("{round}-{i}"), expect.clone(), Keep::Durable))
            .collect();
        let results = join_all(puts.iter().map(|put| store.put(put))).await;
        let mut won = puts.iter().zip(results).filter_map(|(put, result)| match result {
            Ok(version) => Some((put, version)),
            Err(error) => {
                assert_eq!(error.kind(), Kind::Conflict);
                None
            }
        });
        let (put, version) = won.next().expect("one wins");
        assert!(won.next().is_none(), "only one wins");
        let record = store.get(&key).await.expect("get").expect("the record");
        assert_eq!((&record.value, &record.version), (&put.value, &version));
        expect = Expect::At(version);
    }
}

async fn no_increment_is_lost(world: World) {
    const WRITERS: u32 = 5;
    let each = world.many(10, 5);
    let (store, key) = (world.store(), world.group("foo").key(name("a")));
    let put = world.put(&key, "0", Expect::Absent, Keep::Durable);
    store.put(&put).await.expect("put");
    let increments = async || {
        let mut done = 0;
        while done < each {
            let record = store.get(&key).await.expect("get").expect("the record");
            let next = number(&record) + 1;
            let expect = Expect::At(record.version);
            match store.put(&world.put(&key, next.to_string(), expect, Keep::Durable)).await {
                Ok(_) => done += 1,
                Err(error) => assert_eq!(error.kind(), Kind::Conflict),
            }
        }
    };
    world.soon("increments", join_all((0..WRITERS).map(|_| increments().boxed()))).await;
    let record = store.get(&key).await.expect("get").expect("the record");
    assert_eq!(number(&record), WRITERS * each);
}

fn number(record: &Record) -> u32 {
    str::from_utf8(&record.value).ok().and_then(|text| text.parse().ok()).expect("a number")
}

async fn a_read_after_a_write_shows_it(world: World) {
    let (store, group) = (world.store(), world.group("foo"));
    let key = group.key(name("a"));
    let mut expect = Expect::Absent;
    for i in 0..20 {
        let put = world.put(&key, i.to_string(), expect, Keep::Durable);
        let version = store.put(&put).await.expect("put");
        let read = store.get(&key).await.expect("get").expect("the record");
        assert_eq!(read.version, version, "a get is stale");
        let listed = store.list(std::slice::from_ref(&group)).await.expect("list");
        assert_eq!(listed[0].version, version, "a list is stale");
        expect = Expect::At(version);
    }
}

async fn delete_needs_the_version(world: World) {
    let (store, key) = (world.store(), world.group("foo").key(name("a")));
    let one = store.put(&world.put(&key, "one", Expect::Absent, Keep::Durable)).await.expect("put");
    let put = world.put(&key, "two", Expect::At(one.clone()), Keep::Durable);
    let two = store.put(&put).await.expect("put");
    let error = store.delete(&key, &one).await.expect_err("an old version");
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(store.get(&key).await.expect("get").is_some(), "a refused delete deletes nothing");
    store.delete(&key, &two).await.expect("delete");
    assert_eq!(store.get(&key).await.expect("get"), None);
    let error = store.delete(&key, &two).await.expect_err("there is none");
    assert_eq!(error.kind(), Kind::NotFound);
}

async fn a_list_shows_its_groups_and_nothing_else(world: World) {
    let store = world.store();
    let other = format!("{}-2", world.namespace);
    let other: Namespace = other.parse().expect("a fine namespace");
    let groups = [
        Group::of(&world.namespace, "foo"),
        Group::of(&world.namespace, "foo2"),
        Group::scoped(&world.namespace, "foo", &name("foo")),
        Group::scoped(&world.namespace, "foo", &name("foo2")),
        Group::scoped(&world.namespace, "foo", &name("foo.")),
        Group::of(&other, "foo"),
    ];
    for group in &groups {
        let put = world.put(&group.key(name("a")), group.as_str(), Expect::Absent, Keep::Durable);
        store.put(&put).await.expect("put");
    }
    let listed = async |asked: &[Group]| -> Vec<Key> {
        let records = store.list(asked).await.expect("list");
        records.into_iter().map(|record| record.key).collect()
    };
    for group in &groups {
        assert_eq!(listed(std::slice::from_ref(group)).await, [group.key(name("a"))]);
    }
    let both = [groups[3].clone(), groups[0].clone()];
    assert_eq!(listed(&both).await, [groups[0].key(name("a")), groups[3].key(name("a"))]);
}

/// More than a page of any store, and in the order of their keys.
async fn a_list_is_in_order_and_whole(world: World) {
    let (store, group) = (world.store(), world.group("foo"));
    let many = world.many(2_500, 300);
    let mut names: Vec<_> = (0..many).map(|i| name(&format!("n{}", i * 7919 % many))).collect();
    for names in names.chunks(20) {
        let puts = names.iter().map(async |name| {
            let value = "x".repeat(500);
            let put = world.put(&group.key(name.clone()), value, Expect::Absent, Keep::Durable);
            store.put(&put).await.expect("put")
        });
        join_all(puts).await;
    }
    names.sort();
    let listed = store.list(std::slice::from_ref(&group)).await.expect("list");
    let listed: Vec<_> = listed.into_iter().map(|record| record.key.name).collect();
    assert_eq!(listed.len(), names.len());
    assert!(listed == names, "not in order");
}

async fn names_are_taken_literally(world: World) {
    let (store, group) = (world.store(), world.group("foo"));
    let long = "x".repeat(128);
    let mut names: Vec<_> =
        ["a", "A", "a.", ".", "_", "-", "a:b", "a@b", "a-b", "a_b", "a.b", "10", "9", &long]
            .map(name)
            .into();
    for name in &names {
        let put = world.put(&group.key(name.clone()), name.as_str(), Expect::Absent, Keep::Durable);
        store.put(&put).await.expect("put");
    }
    names.sort();
    let listed = store.list(std::slice::from_ref(&group)).await.expect("list");
    let listed: Vec<_> = listed.into_iter().map(|record| record.key.name).collect();
    assert_eq!(listed, names);
    for name in names {
        let record = store.get(&group.key(name.clone())).await.expect("get").expect("the record");
        assert_eq!(&*record.value, name.as_str().as_bytes());
    }
}

async fn values_are_any_bytes_up_to_the_limit(world: World) {
    let (store, group) = (world.store(), world.group("foo"));
    let most = world.capabilities().max_value_bytes;
    let every_byte: Vec<u8> = (0..=u8::MAX).collect();
    for (name, value) in [
        (name("empty"), Vec::new()),
        (name("every-byte"), every_byte.clone()),
        (name("largest"), every_byte.iter().copied().cycle().take(most).collect()),
    ] {
        let key = group.key(name);
        let put = world.put(&key, &value, Expect::Absent, Keep::Durable);
        store.put(&put).await.expect("put");
        let record = store.get(&key).await.expect("get").expect("the record");
        assert!(*record.value == *value, "{key} was changed");
    }
    let key = group.key(name("too-large"));
    let put = world.put(&key, vec![7; most + 1], Expect::Absent, Keep::Durable);
    assert_eq!(store.put(&put).await.expect_err("too large").kind(), Kind::Invalid);
    assert_eq!(store.get(&key).await.expect("get"), None);
}

async fn a_dropped_put_is_applied_or_not(world: World) {
    let (store, key) = (world.store(), world.group("foo").key(name("a")));
    let slow = Plan { delay: 1.0, slowest: Duration::from_millis(20), ..Plan::NONE };
    let mut expect = Expect::Absent;
    let mut dropped = Vec::new();
    for i in 0..10_u64 {
        world.faulty.follow(slow);
        let put = world.put(&key, i.to_string(), expect.clone(), Keep::Durable);
        let limit = Duration::from_millis(2 * i);
        drop(servicekit_core::clock::timeout(&*world.env.clock, limit, store.put(&put)).await);
        dropped.push(put);
        world.faulty.follow(Plan::NONE);
        world.pass(Duration::from_millis(20)).await;
        let found = store.get(&key).await.expect("get");
        let unchanged = match (&expect, &found) {
            (Expect::Absent, None) => true,
            (Expect::At(version), Some(record)) => record.version == *version,
            _ => false,
        };
        if unchanged {
            // A real store may still be at it, and apply it instead of a later one that expects the same.
            continue;
        }
        let record = found.expect("nothing was deleted");
        let applied = dropped.iter().find(|put| record.write == put.write);
        assert_eq!(*record.value, *applied.expect("something else was written").value);
        expect = Expect::At(record.version);
        dropped.clear();
    }
}

async fn capabilities_do_not_change(world: World) {
    let (store, key) = (world.store(), world.group("foo").key(name("a")));
    let before = store.capabilities();
    store.put(&world.put(&key, "one", Expect::Absent, Keep::Durable)).await.expect("put");
    assert_eq!(store.capabilities(), before);
    assert!(before.max_value_bytes >= 100_000, "core needs values of 100,000 bytes");
    assert!(before.min_ttl <= Duration::from_secs(10), "a ttl of 10 s has to be possible");
    assert!(before.min_ttl > Duration::ZERO);
}
