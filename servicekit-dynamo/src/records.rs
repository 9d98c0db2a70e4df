//! How a record is laid out in the table: a public contract, described in `docs/backends/dynamodb.md`.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use aws_sdk_dynamodb::{primitives::Blob, types::AttributeValue};
use servicekit_core::{
    Name,
    store::{Group, Key, Life, Record, Version, WriteId},
};

/// The partition key: the group.
pub(crate) const GROUP: &str = "group";
/// The sort key: the name in the group.
pub(crate) const NAME: &str = "name";
/// The value: a string where it is text, binary where not, null where it is empty.
pub(crate) const VALUE: &str = "value";
/// The write id.
pub(crate) const WRITE: &str = "write";
/// The version: a put draws a number, a touch adds one.
pub(crate) const VERSION: &str = "version";
/// The ttl of an ephemeral record, in milliseconds.
pub(crate) const TTL_MS: &str = "ttl_ms";
/// The same in seconds, rounded up: a touch can add it to [`EXPIRES`], but cannot divide.
pub(crate) const TTL_S: &str = "ttl_s";
/// When an ephemeral record is over: milliseconds since 1970 by the store's clock.
pub(crate) const ENDS_MS: &str = "ends_ms";
/// When DynamoDB may remove what is over: seconds since 1970; the table's time-to-live attribute.
pub(crate) const EXPIRES: &str = "expires";

/// The name of a group's mark, which no record can have; it sorts before all that records have.
pub(crate) const MARK: &str = "#";
/// The kinds of groups that have a mark: a number in [`VERSION`] that rises with each change. They are large, change rarely,
/// and many follow them; to read the mark is a two-hundredth of reading a thousand instances. Others are small, or change
/// with every beat, or are followed by nobody.
const MARKED: [&str; 2] = ["instances", "certs"];

/// How long what is over stays before DynamoDB removes it. No promise hangs on that, and none may: the end of a record is for
/// observers to see, so this is far longer than any clock that wrote it can be wrong.
pub(crate) const KEPT: Duration = Duration::from_secs(86_400);

pub(crate) type Item = HashMap<String, AttributeValue>;

/// The key attributes of a record.
pub(crate) fn key_of(key: &Key) -> Item {
    HashMap::from([
        (GROUP.to_owned(), AttributeValue::S(key.group.as_str().to_owned())),
        (NAME.to_owned(), AttributeValue::S(key.name.to_string())),
    ])
}

/// The key attributes of a group's mark.
pub(crate) fn mark_of(group: &Group) -> Item {
    HashMap::from([
        (GROUP.to_owned(), AttributeValue::S(group.as_str().to_owned())),
        (NAME.to_owned(), AttributeValue::S(MARK.to_owned())),
    ])
}

/// Whether a group has a mark.
pub(crate) fn is_marked(group: &Group) -> bool {
    kind(group).is_some_and(|kind| MARKED.contains(&kind))
}

/// Whether what a group holds must not be written in two Regions: two would hold a lease, or each make a CA.
pub(crate) fn has_one_writer(group: &Group) -> bool {
    matches!(kind(group), Some("lease" | "certs"))
}

fn kind(group: &Group) -> Option<&str> {
    group.as_str().split('/').nth(1)
}

pub(crate) fn number(number: impl ToString) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

/// What is written for a value.
pub(crate) fn encode(value: &[u8]) -> AttributeValue {
    match std::str::from_utf8(value) {
        Ok("") => AttributeValue::Null(true),
        Ok(text) => AttributeValue::S(text.to_owned()),
        Err(_) => AttributeValue::B(Blob::new(value)),
    }
}

/// The bytes that were encoded; what others wrote in another form is no value at all.
pub(crate) fn decode_value(item: &Item) -> Option<Vec<u8>> {
    match item.get(VALUE)? {
        AttributeValue::S(text) => Some(text.clone().into_bytes()),
        AttributeValue::B(blob) => Some(blob.as_ref().to_vec()),
        AttributeValue::Null(true) => Some(Vec::new()),
        _ => None,
    }
}

/// The record in `item`, read when the store's clock showed `now`. What others wrote is returned as far as it goes, with a
/// write id that nobody drew.
pub(crate) fn decode(key: Key, item: &Item, now: i64) -> Record {
    let write = match item.get(WRITE) {
        Some(AttributeValue::S(write)) => WriteId::new(write.as_str()),
        _ => WriteId::new(""),
    };
    let life = match (integer(item, TTL_MS), integer(item, ENDS_MS)) {
        (Some(ttl @ 0..), Some(ends)) => {
            let ttl = Duration::from_millis(ttl.unsigned_abs());
            let left = u64::try_from(ends.saturating_sub(now)).unwrap_or(0);
            Life::Ephemeral { ttl, left: Some(Duration::from_millis(left).min(ttl)) }
        }
        _ => Life::Durable,
    };
    let value = decode_value(item).unwrap_or_default().into();
    Record { key, value, version: version_of(item), write, life }
}

/// The version of an item; empty for one that has none, because others wrote it.
pub(crate) fn version_of(item: &Item) -> Version {
    match item.get(VERSION) {
        Some(AttributeValue::N(number)) => Version::new(number.as_str()),
        _ => Version::new(""),
    }
}

pub(crate) fn integer(item: &Item, attribute: &str) -> Option<i64> {
    match item.get(attribute)? {
        AttributeValue::N(number) => number.parse().ok(),
        _ => None,
    }
}

/// The whole seconds of a ttl, rounded up.
pub(crate) fn seconds(ttl: Duration) -> u64 {
    ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)
}

/// Items that are none of ours, each reported once.
#[derive(Debug, Default)]
pub(crate) struct Strangers(Mutex<BTreeSet<String>>);

impl Strangers {
    /// The key of an item of `group`; `None` for what is none of its records.
    pub(crate) fn key(&self, group: &Group, item: &Item) -> Option<Key> {
        let text = match item.get(NAME) {
            Some(AttributeValue::S(text)) => text.as_str(),
            _ => "",
        };
        let name: Option<Name> = text.parse().ok();
        if name.is_none() {
            let mut strangers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Others may write as many as they like.
            if strangers.len() < 10_000 && strangers.insert(format!("{group}/{text}")) {
                tracing::warn!(%group, name = ?text, "skipped an item that is none of servicekit's");
            }
        }
        name.map(|name| group.key(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(attributes: &[(&str, AttributeValue)]) -> Item {
        attributes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    }

    fn key() -> Key {
        Group::of(&"default".parse().unwrap(), "foo").key("a".parse::<Name>().unwrap())
    }

    #[test]
    fn a_value_is_kept_byte_by_byte_in_the_form_that_is_easiest_to_read() {
        assert_eq!(encode(b"{}"), AttributeValue::S("{}".into()));
        assert!(matches!(encode(b"\xff\x00"), AttributeValue::B(_)));
        for value in [&b"\xff\x00"[..], b"", b" 1", b"null", b"\x1b[31m\0", "ü".as_bytes()] {
            assert_eq!(decode_value(&item(&[(VALUE, encode(value))])).unwrap(), value);
        }
    }

    #[test]
    fn an_item_of_others_is_a_record_that_nobody_put() {
        for odd in [
            item(&[]),
            item(&[(VALUE, number(7)), (VERSION, AttributeValue::S("x".into()))]),
            item(&[(WRITE, number(1)), (TTL_MS, number("1.5")), (ENDS_MS, number("1e40"))]),
            item(&[(TTL_MS, number(-1)), (ENDS_MS, number(5))]),
        ] {
            let record = decode(key(), &odd, 0);
            assert_eq!((record.version.as_str(), record.write.as_str()), ("", ""));
            assert_eq!((record.life, &*record.value), (Life::Durable, &b""[..]));
        }
    }

    #[test]
    fn what_is_left_is_never_more_than_the_ttl() {
        let ends = |ends: i64| item(&[(TTL_MS, number(1500)), (ENDS_MS, number(ends))]);
        let left = |item: &Item| match decode(key(), item, 1000).life {
            Life::Ephemeral { left, .. } => left.unwrap().as_millis(),
            Life::Durable => panic!("it is durable"),
        };
        assert_eq!(left(&ends(2000)), 1000);
        assert_eq!(left(&ends(999)), 0);
        assert_eq!(left(&ends(i64::MIN)), 0);
        assert_eq!(left(&ends(i64::MAX)), 1500);
    }

    #[test]
    fn what_is_no_name_is_no_record() {
        let strangers = Strangers::default();
        let group = key().group;
        let named = |name: &str| item(&[(NAME, AttributeValue::S(name.into()))]);
        assert_eq!(strangers.key(&group, &named("a")), Some(key()));
        for name in ["", "a/b", "ü", "\u{1b}[31m"] {
            assert_eq!(strangers.key(&group, &named(name)), None);
        }
        assert_eq!(strangers.key(&group, &item(&[])), None);
    }
}
