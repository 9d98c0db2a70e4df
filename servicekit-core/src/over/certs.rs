//! [`CertStore`] over a store: one durable record per name.

use std::sync::Arc;

use async_stream::stream;
use async_trait::async_trait;
use futures_util::{StreamExt as _, stream::BoxStream};

use crate::{
    Capabilities, CertStore, Env, Name, Namespace, Result,
    cert::Sealed,
    store::{Change, Expect, Group, Keep, Put, Record, Reliable, Store as _, Version, WriteId},
};

/// The certificates' store over a store.
#[derive(Debug)]
pub(crate) struct Certs {
    store: Arc<Reliable>,
    group: Group,
    env: Env,
}

impl Certs {
    pub(crate) fn new(store: Arc<Reliable>, namespace: &Namespace, env: Env) -> Self {
        Self { store, group: Group::of(namespace, "certs"), env }
    }
}

fn sealed(record: Record) -> Sealed {
    Sealed { bytes: record.value, version: record.version }
}

#[async_trait]
impl CertStore for Certs {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    async fn get(&self, name: &Name) -> Result<Option<Sealed>> {
        Ok(self.store.get(&self.group.key(name.clone())).await?.map(sealed))
    }

    async fn put(&self, name: &Name, bytes: &[u8], expect: Expect) -> Result<Version> {
        let key = self.group.key(name.clone());
        let write = WriteId::draw(&self.env.random);
        let put = Put { key, value: bytes.into(), expect, keep: Keep::Durable, write };
        self.store.put(&put).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Name>> {
        let records = self.store.list(std::slice::from_ref(&self.group)).await?;
        let names = records.into_iter().map(|record| record.key.name);
        Ok(names.filter(|name| name.as_str().starts_with(prefix)).collect())
    }

    async fn delete(&self, name: &Name, version: &Version) -> Result<()> {
        self.store.delete(&self.group.key(name.clone()), version).await
    }

    fn watch(&self, name: &Name) -> BoxStream<'static, Result<Option<Sealed>>> {
        let mut changes = self.store.watch(&self.group);
        let name = name.clone();
        Box::pin(stream! {
            let mut told: Option<Option<Sealed>> = None;
            while let Some(change) = changes.next().await {
                let now = match change {
                    Ok(Change::Snapshot(records)) => {
                        records.into_iter().find(|record| record.key.name == name).map(sealed)
                    }
                    Ok(Change::Put(record)) if record.key.name == name => Some(sealed(record)),
                    Ok(Change::Removed(removed)) if removed == name => None,
                    Ok(_) => continue,
                    Err(error) => {
                        yield Err(error);
                        continue;
                    }
                };
                if told.as_ref() != Some(&now) {
                    told = Some(now.clone());
                    yield Ok(now);
                }
            }
        })
    }
}
