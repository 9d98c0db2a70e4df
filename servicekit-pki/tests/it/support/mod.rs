//! A store in memory, and authorities on it.

use std::sync::Arc;

use servicekit_core::{
    Backend, CertStore, Env, Name, Namespace, Result,
    store::{Expect, Limits, Memory, Profile, Store},
};
use servicekit_pki::{Authority, Certificate, Identity, Request};

/// A store of records, and who has the identity.
pub(crate) struct World {
    pub(crate) env: Env,
    pub(crate) identity: Identity,
    pub(crate) store: Arc<dyn Store>,
}

impl World {
    pub(crate) fn new(env: Env) -> Self {
        let store = Arc::new(Memory::new(env.clone(), Profile::Server));
        Self { identity: Identity::generate().unwrap(), store, env }
    }

    pub(crate) fn certs(&self, namespace: &str) -> Arc<dyn CertStore> {
        self.certs_of(namespace, self.env.clone())
    }

    pub(crate) fn certs_of(&self, namespace: &str, env: Env) -> Arc<dyn CertStore> {
        let namespace = namespace.parse().unwrap();
        Backend::over("memory", self.store.clone(), namespace, env, Limits::default()).certs
    }

    /// The authority of the default namespace, as another process sees it.
    pub(crate) fn authority(&self) -> Authority {
        self.authority_of("default", self.identity.clone(), self.env.clone())
    }

    pub(crate) fn authority_of(&self, namespace: &str, identity: Identity, env: Env) -> Authority {
        let certs = self.certs_of(namespace, env.clone());
        Authority::new(certs, namespace.parse::<Namespace>().unwrap(), identity, env)
    }

    pub(crate) async fn certificate(&self, request: &Request) -> Result<Certificate> {
        self.authority().certificate(request).await
    }

    /// What is stored under a name, as it is.
    pub(crate) async fn stored(&self, name: &str) -> Vec<u8> {
        let found = self.certs("default").get(&self::name(name)).await.unwrap();
        found.unwrap().bytes.to_vec()
    }

    /// Puts bytes there, whatever is there.
    pub(crate) async fn overwrite(&self, name: &str, bytes: &[u8]) {
        let (certs, name) = (self.certs("default"), self::name(name));
        let found = certs.get(&name).await.unwrap();
        let expect = found.map_or(Expect::Absent, |found| Expect::At(found.version));
        certs.put(&name, bytes, expect).await.unwrap();
    }

    pub(crate) async fn remove(&self, name: &str) {
        let (certs, name) = (self.certs("default"), self::name(name));
        let found = certs.get(&name).await.unwrap().unwrap();
        certs.delete(&name, &found.version).await.unwrap();
    }
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn request(label: &str, id: &str) -> Request {
    Request::new(label.parse().unwrap(), id.parse().unwrap())
}

pub(crate) fn named(label: &str, id: &str, names: &[&str]) -> Request {
    request(label, id).with_names(names.iter().map(|name| name.parse().unwrap()).collect())
}
