//! An instance of a service, as the registry keeps it.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{Label, ServiceId, Timestamp};

/// How many changes an instance remembers.
pub const REMEMBERED_CHANGES: usize = 10;

/// How many bytes of a probe's output a change keeps.
pub const REMEMBERED_OUTPUT: usize = 256;

/// One instance of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "agents of other crates make them")]
pub struct Instance {
    /// The service.
    pub label: Label,
    /// Which of its instances.
    pub service_id: ServiceId,
    /// A host name or address, without port.
    pub host: String,
    /// The port, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// What it is doing.
    pub state: State,
    /// Why it is in that state.
    pub reason: String,
    /// Since when, by the clock of the host that watches it.
    pub since: Timestamp,
    /// Its share of the load, relative to the others; 100 unless set.
    pub weight: u32,
    /// Where it runs, for those who prefer what is near.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// What its owner wants readers to know.
    #[serde(default)]
    pub info: Info,
    /// Its last changes, the latest last; at most [`REMEMBERED_CHANGES`].
    #[serde(default)]
    pub changes: Vec<StateChange>,
}

/// Names and values, in the order of the names: a map that takes no more room than what is in it, since a view may hold a
/// hundred thousand of them.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<Box<str>, Box<str>>", into = "BTreeMap<Box<str>, Box<str>>")]
pub struct Info(Box<[(Box<str>, Box<str>)]>);

/// What an instance is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::exhaustive_enums, reason = "readers decide by each")]
pub enum State {
    /// Not yet seen to be well.
    Starting,
    /// Well.
    Up,
    /// Still serving what it has, and wants nothing new.
    Draining,
    /// Seen to be unwell.
    Down,
    /// Its node gave no sign of life for its ttl. A reader's judgement; it is never written.
    Lost,
}

/// One change of an instance's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct StateChange {
    /// When, by the clock of the host that watches it.
    pub at: Timestamp,
    /// From what.
    pub from: State,
    /// To what.
    pub to: State,
    /// By which rule.
    pub rule: String,
    /// What the probe said, cut to [`REMEMBERED_OUTPUT`] bytes.
    pub output: String,
}

impl Instance {
    /// An instance that is starting now, of weight 100, with no port and nothing to tell.
    #[must_use]
    pub fn starting(
        label: Label,
        service_id: ServiceId,
        host: impl Into<String>,
        now: Timestamp,
    ) -> Self {
        Self {
            label,
            service_id,
            host: host.into(),
            port: None,
            state: State::Starting,
            reason: "not yet probed".into(),
            since: now,
            weight: 100,
            zone: None,
            info: Info::default(),
            changes: Vec::new(),
        }
    }

    /// Moves to another state by a rule, because of what a probe said, and remembers that.
    pub fn change(&mut self, to: State, rule: &str, output: &str, at: Timestamp) {
        let output = cut(output, REMEMBERED_OUTPUT);
        self.changes.push(StateChange {
            at,
            from: self.state,
            to,
            rule: rule.into(),
            output: output.into(),
        });
        let surplus = self.changes.len().saturating_sub(REMEMBERED_CHANGES);
        self.changes.drain(..surplus);
        self.reason = if output.is_empty() { rule.into() } else { format!("{output} ({rule})") };
        self.state = to;
        self.since = at;
    }

    /// `host:port`, or `host` alone where there is no port; an IPv6 address before a port is bracketed.
    #[must_use]
    pub fn address(&self) -> String {
        match self.port {
            Some(port) if self.host.contains(':') => format!("[{}]:{port}", self.host),
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.clone(),
        }
    }
}

impl Info {
    /// The value of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// All names with their values, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}

impl From<BTreeMap<Box<str>, Box<str>>> for Info {
    fn from(map: BTreeMap<Box<str>, Box<str>>) -> Self {
        Self(map.into_iter().collect())
    }
}

impl From<Info> for BTreeMap<Box<str>, Box<str>> {
    fn from(info: Info) -> Self {
        info.0.into_iter().collect()
    }
}

/// Of a name that comes twice, the last value stays.
impl<K: Into<Box<str>>, V: Into<Box<str>>> FromIterator<(K, V)> for Info {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        pairs
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect::<BTreeMap<_, _>>()
            .into()
    }
}

impl fmt::Debug for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl State {
    /// The state in a word, as it is written in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Up => "up",
            Self::Draining => "draining",
            Self::Down => "down",
            Self::Lost => "lost",
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Cuts `text` to at most `bytes`, at the border of a character.
fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance() -> Instance {
        let label = "web".parse().unwrap();
        Instance::starting(label, "web-1".parse().unwrap(), "::1", Timestamp::from_millis(0))
    }

    #[test]
    fn the_last_ten_changes_are_remembered_and_outputs_are_cut() {
        let mut instance = instance();
        for i in 0..15 {
            let to = if i % 2 == 0 { State::Up } else { State::Down };
            instance.change(to, "rise 1", &"ü".repeat(200), Timestamp::from_millis(i));
        }
        assert_eq!(instance.changes.len(), REMEMBERED_CHANGES);
        assert_eq!(instance.changes[9].at, Timestamp::from_millis(14));
        assert_eq!(instance.changes[9].output, "ü".repeat(128));
        assert_eq!((instance.state, instance.since), (State::Up, Timestamp::from_millis(14)));
    }

    #[test]
    fn an_address_can_be_pasted() {
        let mut instance = instance();
        assert_eq!(instance.address(), "::1");
        instance.port = Some(80);
        assert_eq!(instance.address(), "[::1]:80");
    }
}
