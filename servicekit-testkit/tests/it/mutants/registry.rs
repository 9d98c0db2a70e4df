//! Registries, and a certificates' store, that break their promises.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream::BoxStream};
use servicekit_core::{
    Backend, Capabilities, CertStore, Instance, Kind, Label, Name, Registry, Result, ServiceId,
    State,
    cert::Sealed,
    registry::{Claim, Event, InstanceKey, Session, Snapshot},
    store::{Expect, Version},
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bug {
    IgnoresIncarnations,
    RemovesByDeletingAlone,
    BeatsForEachInstance,
    ListsByPrefix,
    LosesEverybodyWithTheStore,
    ReopensSilently,
}

pub(crate) fn put_in(bug: Bug, backend: Backend) -> Backend {
    let registry = Mutant { bug, registry: backend.registry, reopened: Mutex::default() };
    Backend { registry: Arc::new(registry), ..backend }
}

pub(crate) fn put_into_certs(backend: Backend) -> Backend {
    Backend { certs: Arc::new(Unconditional(backend.certs)), ..backend }
}

#[derive(Debug)]
struct Mutant {
    bug: Bug,
    registry: Arc<dyn Registry>,
    reopened: Mutex<BTreeMap<Name, Session>>,
}

#[async_trait]
impl Registry for Mutant {
    fn capabilities(&self) -> Capabilities {
        self.registry.capabilities()
    }

    async fn open(&self, node: &str, ttl: Duration) -> Result<Session> {
        self.registry.open(node, ttl).await
    }

    async fn beat(&self, session: &Session) -> Result<Vec<InstanceKey>> {
        if self.bug == Bug::BeatsForEachInstance {
            for label in self.registry.labels().await? {
                self.registry.list(&label).await?;
            }
        }
        let current =
            self.reopened.lock().expect("no panic while it was held").get(session.name()).cloned();
        match self.registry.beat(current.as_ref().unwrap_or(session)).await {
            Err(error) if self.bug == Bug::ReopensSilently && error.kind() == Kind::Lost => {
                let again = self.registry.open("node", session.ttl()).await?;
                self.reopened
                    .lock()
                    .expect("no panic while it was held")
                    .insert(session.name().clone(), again);
                Ok(Vec::new())
            }
            answer => answer,
        }
    }

    async fn close(&self, session: &Session) -> Result<()> {
        self.registry.close(session).await
    }

    async fn put(&self, session: &Session, claim: &Claim, instance: &Instance) -> Result<()> {
        match self.bug {
            Bug::IgnoresIncarnations => self
                .registry
                .put(session, claim, instance)
                .await
                .or(self.registry.put(session, &Claim::new(), instance).await),
            _ => self.registry.put(session, claim, instance).await,
        }
    }

    async fn remove(&self, claim: &Claim, label: &Label, id: &ServiceId) -> Result<()> {
        let claim = if self.bug == Bug::RemovesByDeletingAlone { &Claim::new() } else { claim };
        self.registry.remove(claim, label, id).await
    }

    async fn list(&self, label: &Label) -> Result<Snapshot> {
        let mut snapshot = self.registry.list(label).await?;
        if self.bug == Bug::ListsByPrefix {
            for other in self.registry.labels().await? {
                if other != *label && other.as_str().starts_with(label.as_str()) {
                    snapshot.instances.extend(self.registry.list(&other).await?.instances);
                }
            }
        }
        Ok(snapshot)
    }

    fn watch(&self, label: &Label) -> BoxStream<'static, Result<Event>> {
        let events = self.registry.watch(label);
        if self.bug != Bug::LosesEverybodyWithTheStore {
            return events;
        }
        let mut seen = BTreeMap::new();
        events
            .map(move |event| match event {
                Ok(Event::Snapshot(snapshot)) => {
                    seen = snapshot
                        .instances
                        .iter()
                        .map(|i| (i.service_id.clone(), i.clone()))
                        .collect();
                    Ok(Event::Snapshot(snapshot))
                }
                Ok(Event::Changed(instance)) => {
                    seen.insert(instance.service_id.clone(), instance.clone());
                    Ok(Event::Changed(instance))
                }
                Err(_) => {
                    let lost =
                        |i: &Arc<Instance>| Instance { state: State::Lost, ..Instance::clone(i) };
                    let instances = seen.values().map(lost).map(Arc::new).collect();
                    Ok(Event::Snapshot(Snapshot { instances }))
                }
                event => event,
            })
            .boxed()
    }

    async fn labels(&self) -> Result<Vec<Label>> {
        self.registry.labels().await
    }
}

/// Overwrites whatever is there.
#[derive(Debug)]
struct Unconditional(Arc<dyn CertStore>);

#[async_trait]
impl CertStore for Unconditional {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    async fn get(&self, name: &Name) -> Result<Option<Sealed>> {
        self.0.get(name).await
    }

    async fn put(&self, name: &Name, bytes: &[u8], expect: Expect) -> Result<Version> {
        let mut answer = self.0.put(name, bytes, expect).await;
        while answer.as_ref().is_err_and(|error| error.kind() == Kind::Conflict) {
            let current = self.0.get(name).await?;
            let expect = current.map_or(Expect::Absent, |sealed| Expect::At(sealed.version));
            answer = self.0.put(name, bytes, expect).await;
        }
        answer
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Name>> {
        self.0.list(prefix).await
    }

    async fn delete(&self, name: &Name, version: &Version) -> Result<()> {
        self.0.delete(name, version).await
    }

    fn watch(&self, name: &Name) -> BoxStream<'static, Result<Option<Sealed>>> {
        self.0.watch(name)
    }
}
