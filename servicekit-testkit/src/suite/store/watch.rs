use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt as _, future::join};
use servicekit_core::{
    Name, Result,
    store::{Change, Expect, Group, Keep, Record, Store, Version},
};

use crate::suite::{
    case::cases,
    world::{World, name},
};

cases! { "store";
    a_watch_begins_with_a_snapshot [NoFaults],
    a_watch_shows_puts_and_deletes [NoFaults],
    a_watch_shows_its_group_alone [NoFaults],
    a_watch_shows_the_end_of_a_record [NoFaults, ServerExpiry],
    a_watch_shows_touches [NoFaults, ObservedExpiry],
    a_watch_misses_nothing_that_happens_meanwhile [NoFaults],
    a_watch_heals_with_a_snapshot [NoFaults],
    a_change_is_pushed_within_a_second [NoFaults, PushWatch],
}

type Changes = futures_util::stream::BoxStream<'static, Result<Change>>;

/// A group as a follower sees it.
#[derive(Default)]
struct Seen {
    records: BTreeMap<Name, Record>,
    snapshots: u32,
}

impl Seen {
    fn take(&mut self, change: Change) {
        match change {
            Change::Snapshot(records) => {
                self.snapshots += 1;
                self.records =
                    records.into_iter().map(|record| (record.key.name.clone(), record)).collect();
            }
            Change::Put(record) => {
                self.records.insert(record.key.name.clone(), record);
            }
            Change::Removed(name) => {
                self.records.remove(&name);
            }
        }
    }

    /// Follows until what is seen is as `expected`.
    async fn until(
        &mut self,
        world: &World,
        what: &str,
        changes: &mut Changes,
        mut is_expected: impl FnMut(&Self) -> bool + Send,
    ) {
        world
            .next(what, changes, |change| {
                self.take(change);
                is_expected(self).then_some(())
            })
            .await;
    }

    fn versions(&self) -> BTreeMap<Name, Version> {
        self.records.iter().map(|(name, record)| (name.clone(), record.version.clone())).collect()
    }
}

async fn put(world: &World, store: &dyn Store, group: &Group, at: &str, keep: Keep) -> Version {
    let put = world.put(&group.key(name(at)), "x", Expect::Absent, keep);
    store.put(&put).await.expect("put")
}

async fn a_watch_begins_with_a_snapshot(world: World) {
    let (store, group) = (world.store(), world.group("foo"));
    let first = async || world.next("the first item", &mut store.watch(&group), Some).await;
    assert_eq!(first().await, Change::Snapshot(Vec::new()));
    put(&world, &*store, &group, "b", Keep::Durable).await;
    put(&world, &*store, &group, "a", Keep::Durable).await;
    let expected = store.list(std::slice::from_ref(&group)).await.expect("list");
    assert_eq!(expected.len(), 2);
    assert_eq!(first().await, Change::Snapshot(expected));
}

async fn a_watch_shows_puts_and_deletes(world: World) {
    let (store, group) = (world.store(), world.group("foo"));
    let (mut changes, mut other) = (store.watch(&group), store.watch(&group));
    let (mut seen, mut other_seen) = (Seen::default(), Seen::default());
    seen.until(&world, "a snapshot", &mut changes, |_| true).await;
    let version = put(&world, &*store, &group, "a", Keep::Durable).await;
    let shows = |version: &Version| {
        let version = version.clone();
        move |seen: &Seen| {
            seen.records.get(&name("a")).is_some_and(|record| record.version == version)
        }
    };
    seen.until(&world, "the put", &mut changes, shows(&version)).await;
    let next = world.put(&group.key(name("a")), "two", Expect::At(version), Keep::Durable);
    let version = store.put(&next).await.expect("put");
    seen.until(&world, "the second put", &mut changes, shows(&version)).await;
    assert_eq!(
        (&seen.records[&name("a")].write, &seen.records[&name("a")].value),
        (&next.write, &next.value)
    );
    other_seen
        .until(&world, "the second put, for another follower", &mut other, shows(&version))
        .await;
    store.delete(&next.key, &version).await.expect("delete");
    seen.until(&world, "the delete", &mut changes, |seen| seen.records.is_empty()).await;
    drop(changes);
    other_seen
        .until(&world, "the delete, when the first has gone", &mut other, |seen| {
            seen.records.is_empty()
        })
        .await;
    assert_eq!(seen.snapshots, 1, "nothing broke");
}

async fn a_watch_shows_its_group_alone(world: World) {
    let (store, group) = (world.store(), world.group("foo"));
    let others = [world.group("foo2"), Group::scoped(&world.namespace, "foo", &name("foo"))];
    let (mut changes, mut seen) = (store.watch(&group), Seen::default());
    seen.until(&world, "a snapshot", &mut changes, |_| true).await;
    for other in &others {
        put(&world, &*store, other, "other", Keep::Durable).await;
    }
    put(&world, &*store, &group, "own", Keep::Durable).await;
    let own = name("own");
    seen.until(&world, "the put", &mut changes, |seen| {
        assert!(seen.records.keys().all(|name| *name == own), "it shows another group");
        seen.records.contains_key(&own)
    })
    .await;
}

async fn a_watch_shows_the_end_of_a_record(world: World) {
    let (store, group, ttl) = (world.store(), world.group("foo"), world.ttl());
    put(&world, &*store, &group, "stays", Keep::Durable).await;
    let (mut changes, mut seen) = (store.watch(&group), Seen::default());
    seen.until(&world, "a snapshot", &mut changes, |_| true).await;
    let began = world.now();
    put(&world, &*store, &group, "ends", Keep::Ephemeral(ttl)).await;
    seen.until(&world, "the put", &mut changes, |seen| seen.records.len() == 2).await;
    seen.until(&world, "the end", &mut changes, |seen| seen.records.len() == 1).await;
    assert!(world.now().since(began) >= ttl);
    assert!(seen.records.contains_key(&name("stays")));
}

async fn a_watch_shows_touches(world: World) {
    let (store, group, ttl) = (world.store(), world.group("foo"), world.ttl() * 10);
    let record = world.put(&group.key(name("a")), "x", Expect::Absent, Keep::Ephemeral(ttl));
    store.put(&record).await.expect("put");
    let (mut changes, mut seen) = (store.watch(&group), Seen::default());
    seen.until(&world, "a snapshot", &mut changes, |_| true).await;
    for _ in 0..3 {
        let version = store.touch(&record.key, &record.write).await.expect("touch");
        seen.until(&world, "the touch", &mut changes, |seen| {
            seen.records[&name("a")].version == version
        })
        .await;
    }
}

async fn a_watch_misses_nothing_that_happens_meanwhile(world: World) {
    let (store, group) = (world.store(), world.group("foo"));
    let writes = world.many(400, 100);
    let began = world.now();
    let write = async {
        for _ in 0..writes {
            // A slow store need not take them all: who follows has a limit of time, too.
            if world.now().since(began) > world.patience() / 4 {
                break;
            }
            let key = group.key(name(&format!("n{}", world.env.random.below(8))));
            let found = store.get(&key).await.expect("get");
            match found {
                Some(record) if world.env.random.chance(0.4) => {
                    store.delete(&key, &record.version).await.expect("delete");
                }
                found => {
                    let expect = found.map_or(Expect::Absent, |record| Expect::At(record.version));
                    store.put(&world.put(&key, "x", expect, Keep::Durable)).await.expect("put");
                }
            }
            world.pass(Duration::from_millis(world.env.random.below(5))).await;
        }
        put(&world, &*store, &group, "last", Keep::Durable).await;
    };
    let mut followers = Vec::new();
    for _ in 0..3 {
        followers.push(async {
            world.pass(Duration::from_millis(world.env.random.below(50))).await;
            let (mut changes, mut seen) = (store.watch(&group), Seen::default());
            seen.until(&world, "the last put", &mut changes, |seen| {
                seen.records.contains_key(&name("last"))
            })
            .await;
            (seen, changes)
        });
    }
    let ((), followed) = join(write, futures_util::future::join_all(followers)).await;
    let expected = Seen { records: listed(&*store, &group).await, snapshots: 0 }.versions();
    for (mut seen, mut changes) in followed {
        // The order of changes of different records is nobody's promise.
        if seen.versions() != expected {
            seen.until(&world, "what is there", &mut changes, |seen| seen.versions() == expected)
                .await;
        }
    }
}

async fn listed(store: &dyn Store, group: &Group) -> BTreeMap<Name, Record> {
    let records = store.list(std::slice::from_ref(group)).await.expect("list");
    records.into_iter().map(|record| (record.key.name.clone(), record)).collect()
}

/// What the followers of a broken connection live by: an error, then a snapshot that shows what they missed.
async fn a_watch_heals_with_a_snapshot(world: World) {
    let (store, group) = (world.store(), world.group("foo"));
    let (mut changes, mut seen) = (store.watch(&group), Seen::default());
    seen.until(&world, "a snapshot", &mut changes, |_| true).await;
    let version = put(&world, &*store, &group, "gone", Keep::Durable).await;
    seen.until(&world, "the put", &mut changes, |seen| seen.records.len() == 1).await;
    world.faulty.away();
    let error = world.soon("an error", changes.next()).await.expect("the stream does not end");
    assert!(error.expect_err("the store is away").is_transient());
    world.faulty.back();
    store.delete(&group.key(name("gone")), &version).await.expect("delete");
    put(&world, &*store, &group, "new", Keep::Durable).await;
    seen.until(&world, "what was missed", &mut changes, |seen| {
        seen.records.contains_key(&name("new"))
    })
    .await;
    assert_eq!(seen.records.len(), 1, "what was deleted meanwhile is gone");
    assert_eq!(seen.snapshots, 2);
}

async fn a_change_is_pushed_within_a_second(world: World) {
    let (store, group) = (world.store(), world.group("foo"));
    let (mut changes, mut seen) = (store.watch(&group), Seen::default());
    seen.until(&world, "a snapshot", &mut changes, |_| true).await;
    for i in 0..3 {
        world.pass(Duration::from_millis(150)).await;
        let began = world.now();
        put(&world, &*store, &group, &format!("n{i}"), Keep::Durable).await;
        seen.until(&world, "the put", &mut changes, |seen| seen.records.len() == i + 1).await;
        let took = world.now().since(began);
        assert!(took <= Duration::from_secs(1) + world.lag(), "it took {took:?}");
    }
}
