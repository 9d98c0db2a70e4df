use std::time::Duration;

use servicekit_core::{
    Kind,
    store::{Expect, Keep, Key, Life, Record, Store},
};

use crate::suite::{
    case::cases,
    world::{World, name},
};

cases! { "store";
    an_ephemeral_record_tells_its_ttl [NoFaults],
    the_time_left_falls_and_a_touch_restores_it [NoFaults],
    a_touch_needs_the_record_and_its_write_id [NoFaults],
    a_put_decides_how_long_a_record_stays [NoFaults],
    a_put_that_leaves_life_unchanged_prolongs_nothing [NoFaults],
    a_touched_record_stays [NoFaults],
    a_record_ends_after_its_ttl_and_not_before [NoFaults, ServerExpiry],
    what_has_ended_is_absent_for_good [NoFaults, ServerExpiry],
    a_record_that_is_over_stays_until_it_is_deleted [NoFaults, ObservedExpiry],
    a_touch_is_a_new_version [NoFaults, ObservedExpiry],
    a_wall_clock_that_is_set_ends_nothing [NoFaults, SimulatedTime],
}

/// More than the time that the ttl may be off where time is real.
fn margin(ttl: Duration) -> Duration {
    ttl / 4
}

async fn read(store: &dyn Store, key: &Key) -> Option<Record> {
    store.get(key).await.expect("get")
}

fn life(record: &Record) -> (Duration, Option<Duration>) {
    match record.life {
        Life::Ephemeral { ttl, left } => (ttl, left),
        Life::Durable => panic!("{} is durable", record.key),
    }
}

async fn an_ephemeral_record_tells_its_ttl(world: World) {
    let (store, group, ttl) = (world.store(), world.group("foo"), world.ttl());
    let key = group.key(name("a"));
    let put = world.put(&key, "one", Expect::Absent, Keep::Ephemeral(ttl));
    let sent = world.now();
    store.put(&put).await.expect("put");
    let listed = store.list(&[group]).await.expect("list");
    for record in [&listed[0], &read(&*store, &key).await.expect("the record")] {
        let (told, left) = life(record);
        assert_eq!(told, ttl);
        let unknown = margin(ttl) + world.now().since(sent);
        assert!(
            left.is_none_or(|left| left <= ttl && left + unknown > ttl),
            "{left:?} are left of {ttl:?}"
        );
        assert!(!record.is_over());
    }
}

async fn the_time_left_falls_and_a_touch_restores_it(world: World) {
    // Two hosts each know a store's time to a second, and less exactly where answers are slow.
    let (store, ttl) = (world.store(), world.ttl() * 4);
    let key = world.group("foo").key(name("a"));
    let put = world.put(&key, "one", Expect::Absent, Keep::Ephemeral(ttl));
    let sent = world.now();
    store.put(&put).await.expect("put");
    let put_took = world.now().since(sent);
    world.pass(ttl / 2).await;
    let sent = world.now();
    let record = read(&*store, &key).await.expect("the record, after half its ttl");
    let unknown = margin(ttl) + put_took + world.now().since(sent);
    let Some(before) = life(&record).1 else {
        return;
    };
    assert!(before <= ttl / 2 + unknown, "{before:?} left of {ttl:?} after half of it");
    let sent = world.now();
    store.touch(&key, &put.write).await.expect("touch");
    let touched = read(&*store, &key).await.expect("the record");
    let after = life(&touched).1.expect("it told before what is left");
    let unknown = margin(ttl) + world.now().since(sent);
    assert!(after + unknown > ttl, "{after:?} left of {ttl:?} after a touch");
}

async fn a_touch_needs_the_record_and_its_write_id(world: World) {
    let (store, ttl) = (world.store(), world.ttl() * 10);
    let key = world.group("foo").key(name("a"));
    let put = world.put(&key, "one", Expect::Absent, Keep::Ephemeral(ttl));
    let error = store.touch(&key, &put.write).await.expect_err("there is no record");
    assert_eq!(error.kind(), Kind::Lost);
    store.put(&put).await.expect("put");
    store.touch(&key, &put.write).await.expect("touch");
    store.touch(&key, &put.write).await.expect("the same touch again");
    let now = read(&*store, &key).await.expect("the record").version;
    let other = world.put(&key, "two", Expect::At(now), Keep::Ephemeral(ttl));
    let version = store.put(&other).await.expect("put");
    let error = store.touch(&key, &put.write).await.expect_err("the value is another one");
    assert_eq!(error.kind(), Kind::Conflict);
    store.delete(&key, &version).await.expect("delete");
    let error = store.touch(&key, &other.write).await.expect_err("the record is gone");
    assert_eq!(error.kind(), Kind::Lost);
}

async fn a_put_decides_how_long_a_record_stays(world: World) {
    let (store, ttl) = (world.store(), world.ttl() * 10);
    let key = world.group("foo").key(name("a"));
    let mut expect = Expect::Absent;
    let keeps = [
        (Keep::Ephemeral(ttl), Some(ttl)),
        (Keep::Durable, None),
        (Keep::Unchanged, None),
        (Keep::Ephemeral(ttl * 2), Some(ttl * 2)),
        (Keep::Unchanged, Some(ttl * 2)),
    ];
    for (keep, expected) in keeps {
        let version = store.put(&world.put(&key, "x", expect, keep)).await.expect("put");
        let record = read(&*store, &key).await.expect("the record");
        let told = match record.life {
            Life::Durable => None,
            Life::Ephemeral { ttl, .. } => Some(ttl),
        };
        assert_eq!(told, expected, "after {keep:?}");
        expect = Expect::At(version);
    }
}

async fn a_put_that_leaves_life_unchanged_prolongs_nothing(world: World) {
    let (store, ttl) = (world.store(), world.ttl() * 2);
    let key = world.group("foo").key(name("a"));
    let put = world.put(&key, "one", Expect::Absent, Keep::Ephemeral(ttl));
    let sent = world.now();
    store.put(&put).await.expect("put");
    let unknown = margin(ttl) + world.now().since(sent);
    world.pass(ttl / 2).await;
    let version = read(&*store, &key).await.expect("the record").version;
    let next = world.put(&key, "two", Expect::At(version), Keep::Unchanged);
    store.put(&next).await.expect("put");
    let record = read(&*store, &key).await.expect("the record");
    assert!(life(&record).1.is_none_or(|left| left <= ttl / 2 + unknown), "it was prolonged");
    world.pass(ttl / 2 + unknown).await;
    let found = read(&*store, &key).await;
    assert!(found.is_none_or(|record| life(&record).1.is_none_or(|left| left.is_zero())));
}

async fn a_touched_record_stays(world: World) {
    let (store, ttl) = (world.store(), world.ttl());
    let key = world.group("foo").key(name("a"));
    let put = world.put(&key, "one", Expect::Absent, Keep::Ephemeral(ttl));
    store.put(&put).await.expect("put");
    for _ in 0..6 {
        world.pass(ttl / 3).await;
        store.touch(&key, &put.write).await.expect("touch");
    }
    let record = read(&*store, &key).await.expect("the record");
    assert_eq!(record.write, put.write);
    assert!(!record.is_over());
}

async fn a_record_ends_after_its_ttl_and_not_before(world: World) {
    let (store, group, ttl) = (world.store(), world.group("foo"), world.ttl());
    let key = group.key(name("a"));
    let put = world.put(&key, "one", Expect::Absent, Keep::Ephemeral(ttl));
    store.put(&put).await.expect("put");
    world.pass(ttl / 2).await;
    let sent = world.now();
    store.touch(&key, &put.write).await.expect("touch");
    let ended = world
        .eventually("the end of the record", || async {
            read(&*store, &key).await.is_none().then(|| world.now())
        })
        .await;
    assert!(
        ended.since(sent) >= ttl,
        "it ended {:?} after a touch that gave it {ttl:?}",
        ended.since(sent)
    );
    assert_eq!(store.list(&[group]).await.expect("list"), []);
}

async fn what_has_ended_is_absent_for_good(world: World) {
    let (store, group, ttl) = (world.store(), world.group("foo"), world.ttl());
    let key = group.key(name("a"));
    let put = world.put(&key, "one", Expect::Absent, Keep::Ephemeral(ttl));
    let version = store.put(&put).await.expect("put");
    world
        .eventually("the end of the record", || async {
            read(&*store, &key).await.is_none().then_some(())
        })
        .await;
    assert_eq!(store.touch(&key, &put.write).await.expect_err("gone").kind(), Kind::Lost);
    assert_eq!(store.delete(&key, &version).await.expect_err("gone").kind(), Kind::NotFound);
    let next = world.put(&key, "two", Expect::At(version), Keep::Ephemeral(ttl));
    assert_eq!(store.put(&next).await.expect_err("gone").kind(), Kind::Conflict);
    assert_eq!(read(&*store, &key).await, None);
    let next = world.put(&key, "two", Expect::Absent, Keep::Durable);
    store.put(&next).await.expect("absent is absent");
}

async fn a_record_that_is_over_stays_until_it_is_deleted(world: World) {
    let (store, group, ttl) = (world.store(), world.group("foo"), world.ttl());
    let key = group.key(name("a"));
    let put = world.put(&key, "one", Expect::Absent, Keep::Ephemeral(ttl));
    store.put(&put).await.expect("put");
    world.pass(ttl + margin(ttl)).await;
    let record = world
        .eventually("its time is over", || async {
            let record = read(&*store, &key).await.expect("the record stays");
            life(&record).1.is_none_or(|left| left.is_zero()).then_some(record)
        })
        .await;
    assert_eq!(store.list(std::slice::from_ref(&group)).await.expect("list").len(), 1);
    store.touch(&key, &put.write).await.expect("a touch, as long as nobody deleted it");
    assert!(!read(&*store, &key).await.expect("the record").is_over());
    let error = store.delete(&key, &record.version).await.expect_err("it was touched since");
    assert_eq!(error.kind(), Kind::Conflict);
}

async fn a_touch_is_a_new_version(world: World) {
    let (store, ttl) = (world.store(), world.ttl() * 10);
    let key = world.group("foo").key(name("a"));
    let put = world.put(&key, "one", Expect::Absent, Keep::Ephemeral(ttl));
    let mut versions = vec![store.put(&put).await.expect("put")];
    for _ in 0..3 {
        let version = store.touch(&key, &put.write).await.expect("touch");
        assert!(!versions.contains(&version), "a version came back");
        assert_eq!(read(&*store, &key).await.expect("the record").version, version);
        versions.push(version);
    }
}

async fn a_wall_clock_that_is_set_ends_nothing(world: World) {
    let (store, ttl) = (world.store(), world.ttl());
    let hour = Duration::from_secs(3600);
    let key = world.group("foo").key(name("a"));
    let put = world.put(&key, "one", Expect::Absent, Keep::Ephemeral(ttl));
    store.put(&put).await.expect("put");
    world.clock().set_forward(hour);
    let forward = read(&*store, &key).await.expect("the record, an hour later by the wall clock");
    assert!(life(&forward).1.is_none_or(|left| left > ttl / 2 && left <= ttl));
    world.clock().set_back(hour * 2);
    world.pass(ttl + margin(ttl)).await;
    let back = read(&*store, &key).await;
    assert!(
        back.is_none_or(|record| record.life == Life::Durable
            || life(&record).1.is_none_or(|left| left.is_zero()))
    );
}
