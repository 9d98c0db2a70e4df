//! The faults themselves: what is applied, what is told, and that a seed repeats them.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use servicekit_core::{
    Env, Kind, Retry,
    store::{Change, Expect, Keep, Memory, Profile, Put, Record, Store as _, WriteId},
};
use servicekit_testkit::{
    fault::{Counting, Counts, Fault, Faulty, Plan},
    sim::{self, Sim},
};

fn faulty(env: &Env, seed: u64) -> Faulty {
    let memory = Memory::new(env.clone(), Profile::Server);
    Faulty::new(Arc::new(memory), env.clock.clone(), seed)
}

fn group() -> servicekit_core::store::Group {
    servicekit_core::store::Group::of(&servicekit_core::Namespace::default(), "test")
}

fn put(env: &Env, name: &str) -> Put {
    Put {
        key: group().key(name.parse::<servicekit_core::Name>().expect("a fine name")),
        value: name.as_bytes().into(),
        expect: Expect::Absent,
        keep: Keep::Durable,
        write: WriteId::draw(&env.random),
    }
}

#[test]
fn the_same_seed_gives_the_same_faults() {
    let run = |seed| {
        sim::run(seed, |Sim { env, seed, .. }| async move {
            let store = faulty(&env, seed);
            store.follow(Plan::ROUGH);
            let mut told = Vec::new();
            for i in 0..100 {
                let put = store.put(&put(&env, &format!("n{i}"))).await.is_ok();
                let list = store.list(&[group()]).await.map(|records| records.len());
                told.push((env.clock.now(), put, list.ok()));
            }
            format!("{told:?}")
        })
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn each_fault_applies_what_it_says() {
    sim::run(1, |Sim { env, .. }| async move {
        let store = faulty(&env, 1);
        let found = async |put: &Put| -> Option<Record> { store.get(&put.key).await.expect("get") };

        let before = put(&env, "before");
        store.script(0, Fault::FailBefore);
        let error = store.put(&before).await.expect_err("it fails");
        assert_eq!((error.kind(), error.retry()), (Kind::Unavailable, Retry::Safe));
        assert_eq!(found(&before).await, None);

        let answer = put(&env, "answer");
        store.script(1, Fault::LoseAnswer);
        assert_eq!(found(&answer).await, None, "the first request passes");
        assert!(store.is_scripted());
        let error = store.put(&answer).await.expect_err("its answer is lost");
        assert_eq!((error.kind(), error.retry()), (Kind::Timeout, Retry::Unknown));
        assert!(found(&answer).await.is_some() && !store.is_scripted());

        let late = put(&env, "late");
        store.script(0, Fault::ApplyLate(Duration::from_secs(2)));
        let error = store.put(&late).await.expect_err("it is late");
        assert_eq!((error.kind(), error.retry()), (Kind::Timeout, Retry::Unknown));
        env.clock.sleep(Duration::from_secs(1)).await;
        assert_eq!(found(&late).await, None);
        env.clock.sleep(Duration::from_secs(2)).await;
        assert!(found(&late).await.is_some());

        let (slow, sent) = (put(&env, "slow"), env.clock.now());
        store.script(0, Fault::SlowAnswer(Duration::from_secs(2)));
        store.put(&slow).await.expect("put");
        assert_eq!(env.clock.now().since(sent), Duration::from_secs(2));

        store.script(5, Fault::FailBefore);
        store.unscript();
        assert!(!store.is_scripted());
    });
}

#[test]
fn a_stale_list_was_true_once_and_costs_the_promise() {
    sim::run(1, |Sim { env, .. }| async move {
        let store = faulty(&env, 1);
        assert!(store.capabilities().linearizable);
        store.follow(Plan { stale_list: 0.5, ..Plan::NONE });
        assert!(!store.capabilities().linearizable);
        let mut stale = 0;
        for i in 0..40 {
            store.put(&put(&env, &format!("n{i:02}"))).await.expect("put");
            let listed = store.list(&[group()]).await.expect("list");
            let names: Vec<_> = listed.iter().map(|r| r.key.name.to_string()).collect();
            let expected: Vec<_> = (0..names.len()).map(|i| format!("n{i:02}")).collect();
            assert_eq!(names, expected, "it mixes moments");
            stale += usize::from(names.len() <= i);
        }
        assert!(stale > 5 && stale < 35, "{stale} of 40 were stale");
    });
}

#[test]
fn while_it_is_away_nothing_is_answered() {
    sim::run(1, |Sim { env, .. }| async move {
        let store = faulty(&env, 1);
        let (one, two) = (put(&env, "one"), put(&env, "two"));
        store.script(0, Fault::SlowAnswer(Duration::from_secs(1)));
        let leaving = async {
            env.clock.sleep(Duration::from_millis(500)).await;
            store.away();
            store.away();
        };
        let (answer, ()) = futures_util::join!(store.put(&one), leaving);
        assert_eq!(answer.expect_err("it was on its way").retry(), Retry::Unknown);
        assert_eq!(store.put(&two).await.expect_err("away").retry(), Retry::Safe);
        let mut changes = store.watch(&group());
        assert!(changes.next().await.expect("an item").is_err());
        store.back();
        let Some(Ok(Change::Snapshot(records))) = changes.next().await else {
            panic!("a snapshot was expected")
        };
        assert_eq!(records.len(), 1, "the first put was applied, the second was not");
    });
}

#[test]
fn a_follower_hears_of_an_outage_that_it_slept_through() {
    sim::run(1, |Sim { env, .. }| async move {
        let store = faulty(&env, 1);
        let mut changes = store.watch(&group());
        assert!(matches!(changes.next().await, Some(Ok(Change::Snapshot(_)))));
        store.away();
        store.back();
        assert!(changes.next().await.expect("an item").is_err());
        assert!(matches!(changes.next().await, Some(Ok(Change::Snapshot(_)))));
    });
}

#[test]
fn a_connection_that_breaks_heals_with_a_snapshot() {
    sim::run(1, |Sim { env, .. }| async move {
        let store = faulty(&env, 1);
        store.follow(Plan { break_watch: 0.3, ..Plan::NONE });
        let mut changes = store.watch(&group());
        let (mut broken, mut known) = (0, 0);
        for i in 0..50 {
            store.put(&put(&env, &format!("n{i}"))).await.expect("put");
            let mut after_error = false;
            while known <= i {
                match changes.next().await.expect("it does not end") {
                    Ok(Change::Snapshot(records)) => known = records.len(),
                    Ok(_) if !after_error => known += 1,
                    Ok(change) => panic!("{change:?} after an error"),
                    Err(_) => broken += 1,
                }
                after_error = known <= i;
            }
        }
        assert!(broken > 5, "only {broken} broke");
    });
}

#[test]
fn requests_are_counted_by_kind() {
    sim::run(1, |Sim { env, .. }| async move {
        let store = Counting::new(Arc::new(faulty(&env, 1)));
        let put = put(&env, "one");
        let version = store.put(&put).await.expect("put");
        let before = store.clone().counts();
        store.get(&put.key).await.expect("get");
        store.list(&[group()]).await.expect("list");
        drop(store.watch(&group()));
        drop(store.touch(&put.key, &put.write).await);
        store.delete(&put.key, &version).await.expect("delete");
        let expected = Counts { get: 1, put: 0, touch: 1, delete: 1, list: 1, watch: 1 };
        assert_eq!(store.counts() - before, expected);
        assert_eq!(store.counts().sum(), 6);
    });
}
