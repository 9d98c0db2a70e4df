//! A store that asks to slow down is asked ever more rarely, whatever it is asked for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream};
use servicekit_core::{
    Capabilities, Error, Kind, Namespace, Result, Retry,
    store::{
        Change, Group, Key, Limits, Memory, Profile, Put, Record, Reliable, Store, Version, WriteId,
    },
};
use servicekit_testkit::sim::{self, Sim};

/// Asks everybody to slow down, and counts how often it has to.
#[derive(Debug)]
struct Busy {
    asked: Arc<AtomicU64>,
    capabilities: Capabilities,
}

impl Busy {
    fn refuse<T>(&self) -> Result<T> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Err(Error::new(Kind::Throttled, "slow down").retry_as(Retry::Safe))
    }
}

#[async_trait]
impl Store for Busy {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    async fn get(&self, _: &Key) -> Result<Option<Record>> {
        self.refuse()
    }

    async fn put(&self, _: &Put) -> Result<Version> {
        self.refuse()
    }

    async fn touch(&self, _: &Key, _: &WriteId) -> Result<Version> {
        self.refuse()
    }

    async fn delete(&self, _: &Key, _: &Version) -> Result<()> {
        self.refuse()
    }

    async fn list(&self, _: &[Group]) -> Result<Vec<Record>> {
        self.refuse()
    }

    fn watch(&self, _: &Group) -> BoxStream<'static, Result<Change>> {
        Box::pin(stream::pending())
    }
}

#[test]
fn each_operation_begins_where_the_last_one_ended() {
    sim::run(1, |Sim { env, .. }| async move {
        let asked = Arc::<AtomicU64>::default();
        let capabilities = Memory::new(env.clone(), Profile::Server).capabilities();
        let store = Arc::new(Busy { asked: asked.clone(), capabilities });
        let reliable = Reliable::new("busy", store, env.clone(), Limits::default());
        let group = Group::of(&Namespace::default(), "test");
        let key = group.key("a".parse::<servicekit_core::Name>().expect("a name"));
        // What a node sends that beats, and a waiter that looks, each of whom tries again soon.
        for minute in 0..3 {
            let (begun, before) = (env.clock.now(), asked.load(Ordering::Relaxed));
            while env.clock.now().since(begun) < Duration::from_secs(60) {
                let touched = reliable.touch(&key, &WriteId::new("w")).await;
                assert_eq!(touched.expect_err("it is busy").kind(), Kind::Throttled);
                env.clock.sleep(Duration::from_millis(500)).await;
            }
            let asked = asked.load(Ordering::Relaxed) - before;
            let most = if minute == 0 { 40 } else { 30 };
            assert!(asked <= most, "{asked} requests in minute {minute}");
        }
    });
}
