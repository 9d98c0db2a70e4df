//! How a record is laid out in etcd: a public contract, described in `docs/backends/etcd.md`.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use etcd_client::KeyValue;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use servicekit_core::{
    Name,
    store::{Group, Key, Life, Record, Version, WriteId},
};

/// What etcd holds under a key: who wrote it, how long it stays, and the value in the form that is easiest to read.
#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    write: &'a str,
    /// The ttl of an ephemeral record, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<u64>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    json: Option<&'a RawValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

/// What is written for a value.
pub(crate) fn encode(value: &[u8], write: &WriteId, ttl: Option<Duration>) -> Vec<u8> {
    let text = std::str::from_utf8(value).ok();
    let json = text.and_then(|text| serde_json::from_str::<&RawValue>(text).ok());
    // Only what comes back byte by byte; `null` would be read as nothing at all.
    let json = json.filter(|json| json.get().len() == value.len() && json.get() != "null");
    let is_readable =
        |text: &&str| json.is_none() && !text.chars().any(|c| c.is_control() && c != '\n');
    let text = text.filter(is_readable).map(str::to_owned);
    let base64 = (json.is_none() && text.is_none()).then(|| BASE64_STANDARD.encode(value));
    let ttl_ms = ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
    let envelope = Envelope { write: write.as_str(), ttl_ms, json, text, base64 };
    serde_json::to_vec(&envelope).expect("strings and numbers can be written as JSON")
}

/// The record in `kv`. What others wrote is returned as it is, with a write id that nobody drew.
pub(crate) fn decode(key: Key, kv: &KeyValue) -> Record {
    let version = version(kv.mod_revision());
    let (value, write, ttl) =
        open(kv.value()).unwrap_or_else(|| (kv.value().into(), WriteId::new(""), None));
    let life = match ttl {
        Some(ttl) if kv.lease() != 0 => Life::Ephemeral { ttl, left: None },
        _ => Life::Durable,
    };
    Record { key, value, version, write, life }
}

/// The value, its write id and its ttl; `None` for what others wrote.
fn open(bytes: &[u8]) -> Option<(Arc<[u8]>, WriteId, Option<Duration>)> {
    let Envelope { write, ttl_ms, json, text, base64 } = serde_json::from_slice(bytes).ok()?;
    let value = match (json, text, base64) {
        (Some(json), None, None) => json.get().as_bytes().into(),
        (None, Some(text), None) => text.into_bytes().into(),
        (None, None, Some(coded)) => BASE64_STANDARD.decode(coded).ok()?.into(),
        _ => return None,
    };
    Some((value, WriteId::new(write), ttl_ms.map(Duration::from_millis)))
}

/// A revision never comes back within a cluster.
pub(crate) fn version(revision: i64) -> Version {
    Version::new(revision.to_string())
}

/// The revision of a version; one that etcd never gives for a version of another store.
pub(crate) fn revision(version: &Version) -> i64 {
    version.as_str().parse().unwrap_or(-1)
}

/// The keys of groups, below the prefix of one address.
#[derive(Debug)]
pub(crate) struct Layout {
    prefix: String,
    /// Keys that are none of ours, each reported once.
    strangers: Mutex<BTreeSet<Vec<u8>>>,
}

impl Layout {
    pub(crate) fn new(prefix: String) -> Self {
        Self { prefix, strangers: Mutex::default() }
    }

    pub(crate) fn key(&self, key: &Key) -> Vec<u8> {
        let mut bytes = self.start(&key.group);
        bytes.extend_from_slice(key.name.as_str().as_bytes());
        bytes
    }

    /// What the keys of all records of a group begin with.
    pub(crate) fn start(&self, group: &Group) -> Vec<u8> {
        format!("{}/{group}/", self.prefix).into_bytes()
    }

    /// The first key after those of a group.
    pub(crate) fn end(&self, group: &Group) -> Vec<u8> {
        // `0` is the character after `/`.
        format!("{}/{group}0", self.prefix).into_bytes()
    }

    /// The name of a record of `group`; `None` for what is none of its records.
    pub(crate) fn name(&self, group: &Group, key: &[u8]) -> Option<Name> {
        let rest = key.strip_prefix(&*self.start(group))?;
        if rest.contains(&b'/') {
            // A group whose name begins with this one's.
            return None;
        }
        let name = std::str::from_utf8(rest).ok().and_then(|name| name.parse().ok());
        if name.is_none() {
            let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
            // Others may write as many as they like.
            if strangers.len() < 10_000 && strangers.insert(key.to_vec()) {
                let key = String::from_utf8_lossy(key);
                tracing::warn!(?key, "skipped a key that is none of servicekit's");
            }
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(value: &[u8]) -> String {
        let ttl = Some(Duration::from_millis(1500));
        let bytes = encode(value, &WriteId::new("w1"), ttl);
        let (back, write, ttl_back) = open(&bytes).expect("it was written by this");
        assert_eq!((&*back, write.as_str(), ttl_back), (value, "w1", ttl));
        String::from_utf8(bytes).unwrap()
    }

    proptest! {
        #[test]
        fn any_value_comes_back(value: Vec<u8>) {
            round_trip(&value);
        }

        #[test]
        fn what_others_wrote_is_passed_over(value: Vec<u8>) {
            prop_assert!(open(&value).is_none());
        }

        #[test]
        fn what_looks_like_ours_is_read_without_surprise(
            members in proptest::collection::vec(
                "\"(write|ttl_ms|json|text|base64|x)\":(\"[a-z=]*\"|null|[0-9]{1,30}|-1|[{]|[{][}])",
                0..5,
            ),
        ) {
            drop(open(format!("{{{}}}", members.join(",")).as_bytes()));
        }
    }

    #[test]
    fn a_value_is_kept_byte_by_byte_in_the_form_that_is_easiest_to_read() {
        assert_eq!(
            round_trip(br#"{"v":1, "x":[ ]}"#),
            r#"{"write":"w1","ttl_ms":1500,"json":{"v":1, "x":[ ]}}"#
        );
        assert_eq!(
            round_trip(b"-----\nage"),
            r#"{"write":"w1","ttl_ms":1500,"text":"-----\nage"}"#
        );
        for value in
            [&b"\xff\x00"[..], b"", b" 1", b"1 ", b"\"", b"null", b"\x1b[31m", "ü".as_bytes()]
        {
            round_trip(value);
        }
    }

    #[test]
    fn keys_of_one_group_are_no_keys_of_another() {
        let layout = Layout::new("/p".into());
        let namespace = "default".parse().unwrap();
        let group = |kind| Group::of(&namespace, kind);
        let key = group("foo").key("a".parse::<Name>().unwrap());
        assert_eq!(layout.key(&key), b"/p/default/foo/a");
        assert!(layout.start(&group("foo")) < layout.key(&key));
        assert!(layout.key(&key) < layout.end(&group("foo")));
        let other = group("foo2").key("a".parse::<Name>().unwrap());
        assert!(layout.key(&other) > layout.end(&group("foo")));
        assert_eq!(layout.name(&group("foo"), b"/p/default/foo/a"), Some(key.name));
        for stranger in
            [&b"/p/default/foo/b/a"[..], b"/p/default/foo/", b"/p/default/foo/\xff", b"/q"]
        {
            assert_eq!(layout.name(&group("foo"), stranger), None);
        }
    }
}
