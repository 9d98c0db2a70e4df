//! How a record is laid out in a database: a public contract, described in `docs/backends/couchdb.md`.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use servicekit_core::{
    Error, Kind, Name, Result,
    store::{Group, Key, Life, Record, Version, WriteId},
};

/// A record as it is written.
#[derive(Serialize)]
pub(crate) struct Written<'a> {
    /// The format.
    servicekit: u32,
    #[serde(rename = "_rev", skip_serializing_if = "Option::is_none")]
    pub(crate) rev: Option<&'a str>,
    /// The value where it is text, which is easiest to read.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    /// The value where it is not text, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    value64: Option<String>,
    write: &'a str,
    /// The ttl of an ephemeral record, and the moment of its end by the store's clock, in milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ends_ms: Option<i64>,
}

/// How long a record stays, as it is stored: its ttl, and the moment of its end, both in milliseconds.
pub(crate) type Stored = Option<(u64, i64)>;

/// A document as it is read. Others may have written anything at all.
#[derive(Deserialize)]
pub(crate) struct Document {
    #[serde(rename = "_rev", default)]
    pub(crate) rev: String,
    /// The revisions that lost against this one, where the database was written in two places.
    #[serde(rename = "_conflicts", default)]
    pub(crate) conflicts: Vec<String>,
    #[serde(rename = "_deleted", default)]
    pub(crate) deleted: bool,
    #[serde(default)]
    value: Value,
    #[serde(default)]
    value64: Value,
    #[serde(default)]
    write: Value,
    #[serde(default)]
    ttl_ms: Value,
    #[serde(default)]
    ends_ms: Value,
}

impl<'a> Written<'a> {
    pub(crate) fn new(
        rev: Option<&'a str>,
        value: &'a [u8],
        write: &'a WriteId,
        life: Stored,
    ) -> Self {
        let text = std::str::from_utf8(value).ok();
        Self {
            servicekit: 1,
            rev,
            value: text,
            value64: text.is_none().then(|| BASE64_STANDARD.encode(value)),
            write: write.as_str(),
            ttl_ms: life.map(|(ttl, _)| ttl),
            ends_ms: life.map(|(_, ends)| ends),
        }
    }
}

impl Document {
    /// The record in it, read when the store's clock showed `now`. What others wrote is returned as far as it goes, with a
    /// write id that nobody drew.
    pub(crate) fn decode(&self, key: Key, now: i64) -> Record {
        let stored = self.life();
        let life = stored.map_or(Life::Durable, |(ttl, ends)| {
            let left = u64::try_from(ends.saturating_sub(now)).unwrap_or(0).min(ttl);
            Life::Ephemeral {
                ttl: Duration::from_millis(ttl),
                left: Some(Duration::from_millis(left)),
            }
        });
        Record {
            key,
            value: self.value().into(),
            version: version(&self.rev, stored),
            write: self.write(),
            life,
        }
    }

    pub(crate) fn write(&self) -> WriteId {
        WriteId::new(self.write.as_str().unwrap_or_default())
    }

    pub(crate) fn life(&self) -> Stored {
        Some((self.ttl_ms.as_u64()?, self.ends_ms.as_i64()?))
    }

    pub(crate) fn value(&self) -> Vec<u8> {
        match (&self.value, &self.value64) {
            (Value::String(text), _) => text.clone().into_bytes(),
            (_, Value::String(text)) => BASE64_STANDARD.decode(text).unwrap_or_default(),
            _ => Vec::new(),
        }
    }
}

/// A revision, and how long the record stays: so that a put which leaves that alone need not read it before.
pub(crate) fn version(rev: &str, life: Stored) -> Version {
    match life {
        Some((ttl, ends)) => Version::new(format!("{rev}/{ttl}/{ends}")),
        None => Version::new(rev),
    }
}

/// The parts of a version.
pub(crate) fn parts(version: &Version) -> (&str, Stored) {
    let mut parts = version.as_str().split('/');
    let rev = parts.next().unwrap_or_default();
    let ttl = parts.next().and_then(|ttl| ttl.parse().ok());
    let ends = parts.next().and_then(|ends| ends.parse().ok());
    (rev, ttl.zip(ends))
}

/// What the ids of a group's documents begin with: `default:instances:web:`, and `default:certs::` where there is no scope.
///
/// # Errors
///
/// `Invalid` for a `:` in what comes before the name, which would be taken for the end of it.
pub(crate) fn prefix(group: &Group) -> Result<String> {
    let text = group.as_str();
    if text.contains(':') {
        return Err(Error::new(Kind::Invalid, "no ':' may be in a namespace or a scope"));
    }
    let scope = if text.matches('/').count() < 2 { ":" } else { "" };
    Ok(format!("{}:{scope}", text.replace('/', ":")))
}

/// The id of a record's document.
pub(crate) fn id_of(key: &Key) -> Result<String> {
    Ok(format!("{}{}", prefix(&key.group)?, key.name))
}

/// Whether a group is of beats: they have a database of their own, where they wake nobody who follows anything else, and
/// which can forget them.
pub(crate) fn is_of_beats(group: &Group) -> bool {
    kind(group) == Some("sessions")
}

/// Whether a group is a lease's: what must not be written in two places.
pub(crate) fn is_of_a_lease(group: &Group) -> bool {
    kind(group) == Some("lease")
}

/// Whether a group is that of certificates.
pub(crate) fn is_of_certificates(group: &Group) -> bool {
    kind(group) == Some("certs")
}

fn kind(group: &Group) -> Option<&str> {
    group.as_str().split('/').nth(1)
}

/// Documents that are none of ours, each reported once.
#[derive(Debug, Default)]
pub(crate) struct Strangers(Mutex<BTreeSet<String>>);

impl Strangers {
    /// The key of a document whose id begins with `prefix`; `None` for what is none of the group's records.
    pub(crate) fn key(&self, group: &Group, prefix: &str, id: &str) -> Option<Key> {
        let name: Option<Name> = id.strip_prefix(prefix).and_then(|name| name.parse().ok());
        if name.is_none() {
            let mut strangers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Others may write as many as they like.
            if strangers.len() < 10_000 && strangers.insert(id.to_owned()) {
                tracing::warn!(?id, "skipped a document that is none of servicekit's");
            }
        }
        name.map(|name| group.key(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(scope: Option<&str>) -> Group {
        let namespace = "default".parse().unwrap();
        match scope {
            Some(scope) => Group::scoped(&namespace, "foo", &scope.parse().unwrap()),
            None => Group::of(&namespace, "foo"),
        }
    }

    fn key() -> Key {
        group(None).key("a".parse::<Name>().unwrap())
    }

    #[test]
    fn ids_are_readable_and_never_those_of_another_group() {
        assert_eq!(id_of(&key()).unwrap(), "default:foo::a");
        let scoped = group(Some("web")).key("a:b".parse::<Name>().unwrap());
        assert_eq!(id_of(&scoped).unwrap(), "default:foo:web:a:b");
        assert_eq!(prefix(&group(Some("a:b"))).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn a_value_is_kept_byte_by_byte() {
        for value in [&b"\xff\x00"[..], b"", b" 1", b"null", b"\x1b[31m\0", "ü".as_bytes()] {
            let write = WriteId::new("w");
            let written = Written::new(Some("1-a"), value, &write, Some((1500, 2000)));
            let json = serde_json::to_string(&written).unwrap();
            let record = serde_json::from_str::<Document>(&json).unwrap().decode(key(), 1000);
            assert_eq!((&*record.value, &record.write), (value, &write));
            let left = Some(Duration::from_secs(1));
            assert_eq!(record.life, Life::Ephemeral { ttl: Duration::from_millis(1500), left });
            assert_eq!(parts(&record.version), ("1-a", Some((1500, 2000))));
        }
    }

    #[test]
    fn a_document_of_others_is_a_record_that_nobody_put() {
        for json in [
            r#"{"_rev":"1-a"}"#,
            r#"{"_rev":"1-a","value":7,"write":[],"ttl_ms":-1,"ends_ms":"x"}"#,
            r#"{"_rev":"1-a","value64":"?","ttl_ms":1.5,"ends_ms":1e40}"#,
        ] {
            let record = serde_json::from_str::<Document>(json).unwrap().decode(key(), 0);
            assert_eq!((record.version.as_str(), record.write.as_str()), ("1-a", ""));
            assert_eq!((record.life, &*record.value), (Life::Durable, &b""[..]));
        }
    }

    #[test]
    fn what_is_no_name_is_no_record() {
        let strangers = Strangers::default();
        let key_of = |id: &str| strangers.key(&group(None), "default:foo::", id);
        assert_eq!(key_of("default:foo::a"), Some(key()));
        for id in ["", "default:foo::", "default:foo::ü", "default:foo::a/b", "_design/x"] {
            assert_eq!(key_of(id), None);
        }
    }
}
