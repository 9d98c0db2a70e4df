//! Core's one implementation of the public traits over any store.
//!
//! | group | records | value |
//! | --- | --- | --- |
//! | `NS/sessions` | one per node, ephemeral | [`instances`] |
//! | `NS/labels`, `NS/leases` | one per name that was ever used | an index |
//! | `NS/instances/LABEL` | one per instance, ephemeral | [`instances`] |
//! | `NS/lease/NAME` | `head`, durable; one per ticket, ephemeral | [`queue`] |
//! | `NS/certs` | one per name, durable | sealed bytes |
//! | `NS/scratch` | what the [`examiner`] tries, ephemeral | a format number |

mod certs;
mod examiner;
mod instances;
mod leases;
mod merge;
mod queue;
mod sweep;
mod waiter;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Serialize, de::DeserializeOwned};

pub(crate) use certs::Certs;
pub(crate) use examiner::Examiner;
pub(crate) use instances::Instances;
pub(crate) use leases::Leases;

use crate::{
    Error, Kind, Name, Random, Result,
    store::{Expect, Group, Keep, Key, Put, Record, Reliable, Store as _, WriteId},
};

/// The format that this version writes, and the only one that it reads.
const FORMAT: u32 = 1;

/// Writes `value` as JSON under a condition.
fn put_json(
    random: &Random,
    key: &Key,
    value: &impl Serialize,
    expect: Expect,
    keep: Keep,
) -> Result<Put> {
    Ok(Put { key: key.clone(), value: to_json(value)?, expect, keep, write: WriteId::draw(random) })
}

fn to_json(value: &impl Serialize) -> Result<Arc<[u8]>> {
    let json = serde_json::to_vec(value).map_err(|error| {
        Error::new(Kind::Unexpected, "cannot be written as JSON").because(error)
    })?;
    Ok(json.into())
}

/// Reads a record's value; what is not ours, or of another format, is an error that says so.
fn from_json<T: DeserializeOwned>(record: &Record) -> Result<T> {
    #[derive(serde::Deserialize)]
    struct Format {
        v: u32,
    }
    let refused = |message: String| Error::new(Kind::Unexpected, message).at(&record.key);
    let Format { v } = serde_json::from_slice(&record.value)
        .map_err(|error| refused("the record is not one of servicekit's".into()).because(error))?;
    if v != FORMAT {
        return Err(refused(format!("the record has format {v}; this servicekit reads {FORMAT}")));
    }
    serde_json::from_slice(&record.value)
        .map_err(|error| refused("the record is damaged".into()).because(error))
}

/// Records that cannot be used, each reported once.
#[derive(Debug, Default)]
struct Oddities(Mutex<BTreeSet<Key>>);

impl Oddities {
    /// Reads a record's value, or reports it and skips it.
    fn skip<T: DeserializeOwned>(&self, record: &Record) -> Option<T> {
        match from_json(record) {
            Ok(value) => Some(value),
            Err(error) => {
                self.report(record, &error);
                None
            }
        }
    }

    fn report(&self, record: &Record, error: &Error) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Untrusted input must not fill the memory either.
        if seen.len() < 10_000 && seen.insert(record.key.clone()) {
            tracing::warn!(key = %record.key, %error, "skipped a record");
        }
    }
}

/// The names that were ever used, one record each.
#[derive(Debug)]
struct Index {
    group: Group,
    store: Arc<Reliable>,
}

impl Index {
    /// Makes sure that `name` is in the index.
    async fn add(&self, random: &Random, name: Name) -> Result<()> {
        #[derive(Serialize)]
        struct Entry {
            v: u32,
        }
        let entry = Entry { v: FORMAT };
        let put = put_json(random, &self.group.key(name), &entry, Expect::Absent, Keep::Durable)?;
        match self.store.put(&put).await {
            Err(error) if error.kind() == Kind::Conflict => Ok(()),
            answer => answer.map(drop),
        }
    }

    /// All names that parse as `T`.
    async fn names<T: std::str::FromStr>(&self) -> Result<Vec<T>> {
        let records = self.store.list(std::slice::from_ref(&self.group)).await?;
        Ok(records.iter().filter_map(|record| record.key.name.as_str().parse().ok()).collect())
    }
}
