//! A node that keeps instances: what every case on the registry does.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use servicekit_core::{
    Instance, Kind, Label, Registry, Result, State,
    registry::{Claim, InstanceKey, Session, Snapshot},
};

use crate::suite::world::{World, id};

/// A process with a session.
pub(super) struct Node<'a> {
    pub(super) world: &'a World,
    pub(super) registry: Arc<dyn Registry>,
    pub(super) session: Session,
}

impl<'a> Node<'a> {
    /// Opens a session of the world's ttl.
    pub(super) async fn open(world: &'a World) -> Self {
        Self::open_for(world, world.ttl()).await
    }

    /// Opens a session that outlives every case that does not beat.
    pub(super) async fn open_long(world: &'a World) -> Self {
        Self::open_for(world, world.ttl() * 100).await
    }

    pub(super) async fn open_for(world: &'a World, ttl: Duration) -> Self {
        let registry = world.process().registry;
        let session = world.ok("open", || registry.open("node", ttl)).await;
        Self { world, registry, session }
    }

    pub(super) async fn reopen(&mut self) {
        let (registry, ttl) = (&self.registry, self.session.ttl());
        self.session = self.world.ok("open", || registry.open("node", ttl)).await;
    }

    pub(super) async fn put(&self, claim: &Claim, instance: &Instance) {
        self.world.ok("put", || self.registry.put(&self.session, claim, instance)).await;
    }

    pub(super) async fn put_up(&self, claim: &Claim, label: &Label, service_id: &str) {
        self.put(claim, &up(self.world, label, service_id)).await;
    }

    pub(super) async fn try_put(
        &self,
        claim: &Claim,
        label: &Label,
        service_id: &str,
    ) -> Result<()> {
        self.registry.put(&self.session, claim, &up(self.world, label, service_id)).await
    }

    pub(super) async fn remove(&self, claim: &Claim, label: &Label, service_id: &str) {
        let id = id(service_id);
        self.world.ok("remove", || self.registry.remove(claim, label, &id)).await;
    }

    pub(super) async fn beat(&self) -> Vec<InstanceKey> {
        self.registry.beat(&self.session).await.expect("beat")
    }

    /// Beats for so long.
    pub(super) async fn live(&self, duration: Duration) {
        let until = self.world.now() + duration;
        while self.world.now() < until {
            let pause = self.session.ttl() / 3;
            self.world.pass(pause.min(until.since(self.world.now()))).await;
            assert_eq!(self.beat().await, [], "something was taken over");
        }
    }

    pub(super) async fn list(&self, label: &Label) -> Snapshot {
        list(self.world, &self.registry, label).await
    }

    /// The states by id.
    pub(super) async fn states(&self, label: &Label) -> BTreeMap<String, State> {
        states(&self.list(label).await)
    }
}

pub(super) async fn list(world: &World, registry: &Arc<dyn Registry>, label: &Label) -> Snapshot {
    world.ok("list", || registry.list(label)).await
}

/// An instance that is up.
pub(super) fn up(world: &World, label: &Label, service_id: &str) -> Instance {
    let now = world.env.clock.wall();
    let mut instance = Instance::starting(label.clone(), id(service_id), "host.example", now);
    instance.port = Some(8080);
    instance.change(State::Up, "rise 1", "200", now);
    instance
}

pub(super) fn states(snapshot: &Snapshot) -> BTreeMap<String, State> {
    let state = |instance: &Arc<Instance>| (instance.service_id.to_string(), instance.state);
    snapshot.instances.iter().map(state).collect()
}

pub(super) fn of(states: &[(&str, State)]) -> BTreeMap<String, State> {
    states.iter().map(|(id, state)| ((*id).to_owned(), *state)).collect()
}

/// An error has to be of this kind.
pub(super) fn expect_kind<T>(kind: Kind, result: Result<T>) {
    match result {
        Ok(_) => panic!("{kind:?} was expected"),
        Err(error) => assert_eq!(error.kind(), kind, "{error:?}"),
    }
}

pub(super) fn key(label: &Label, service_id: &str) -> InstanceKey {
    InstanceKey { label: label.clone(), service_id: id(service_id) }
}
