//! Following a group: a snapshot, then the feed of changes from before it on, compared with what was shown already, so that it
//! does not matter whether a feed repeats itself, goes back or begins again.

use std::{collections::BTreeMap, time::Duration};

use async_stream::stream;
use futures_util::stream::BoxStream;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Response;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use servicekit_core::{
    Effect, Error, Instant, Kind, Name, Result, Retry,
    clock::timeout,
    store::{Change, Group, Record},
};

use crate::{
    error::explain,
    read::read_document,
    records::prefix,
    store::{Couch, on},
};

/// How often the server shows that it is there.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// How long it may be silent: a connection may be open at one end alone, and a proxy may keep lines to itself.
const SILENCE: Duration = Duration::from_secs(6);
/// How often all is read again: documents that are purged, or that a backup did not have, are in no feed.
const ALL: Duration = Duration::from_secs(300);
/// The longest line: a record, its id and its revisions.
const MAX_LINE_BYTES: usize = 16 << 20;

/// The pause after a failure; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Follows one group; see [`Store::watch`](servicekit_core::store::Store::watch).
pub(crate) fn follow_group(couch: Couch, group: Group) -> BoxStream<'static, Result<Change>> {
    Box::pin(stream! {
        let env = couch.0.env.clone();
        let mut pause = FIRST_PAUSE;
        loop {
            match Following::begin(&couch, &group).await {
                Ok((mut following, records)) => {
                    yield Ok(Change::Snapshot(records));
                    let failed = loop {
                        match following.next().await {
                            Ok(Some(change)) => {
                                pause = FIRST_PAUSE;
                                yield Ok(change);
                            }
                            Ok(None) => break None,
                            Err(error) => break Some(error),
                        }
                    };
                    let Some(error) = failed else { continue };
                    yield Err(on("watch", &group)(error));
                }
                Err(error) => yield Err(on("watch", &group)(error)),
            }
            // All who watch lose their server at the same moment.
            env.clock.sleep(env.random.jitter(pause, 0.5)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    })
}

struct Following<'a> {
    couch: &'a Couch,
    group: &'a Group,
    prefix: String,
    /// The revision of each record that was shown.
    shown: BTreeMap<Name, String>,
    since: String,
    feed: Option<Feed>,
    again: Instant,
}

struct Feed {
    response: Response,
    bytes: Vec<u8>,
    /// How many of the bytes have no end of a line in them.
    searched: usize,
}

#[derive(Deserialize)]
struct Line<'a> {
    /// Missing in the last line of a feed.
    id: Option<String>,
    #[serde(default)]
    deleted: bool,
    #[serde(borrow)]
    doc: Option<&'a RawValue>,
}

impl<'a> Following<'a> {
    async fn begin(couch: &'a Couch, group: &'a Group) -> Result<(Self, Vec<Record>)> {
        let database = &couch.0.database;
        database.open().await?;
        let since = match database.info_of(group).await?.update_seq {
            Value::String(text) => text,
            other => other.to_string(),
        };
        let records = couch.read_group(group).await?;
        let shown = records.iter().map(|record| (record.key.name.clone(), rev(record)));
        let env = &couch.0.env;
        let following = Self {
            couch,
            group,
            prefix: prefix(group)?,
            shown: shown.collect(),
            since,
            feed: None,
            again: env.clock.now() + env.random.jitter(ALL, 0.1),
        };
        Ok((following, records))
    }

    /// The next change; `None` when it is time to read all again.
    async fn next(&mut self) -> Result<Option<Change>> {
        let clock = self.couch.0.env.clock.clone();
        loop {
            // Also where each line is a change.
            if clock.now() >= self.again {
                return Ok(None);
            }
            let mut feed = match self.feed.take() {
                Some(feed) => feed,
                None => self.open().await?,
            };
            let line = timeout(&*clock, SILENCE, feed.line()).await;
            let line = line.map_err(|_| held_back("showed nothing"))??;
            let change = self.change(&line).await?;
            self.feed = Some(feed);
            if change.is_some() {
                return Ok(change);
            }
        }
    }

    async fn open(&self) -> Result<Feed> {
        let database = &self.couch.0.database;
        let path = format!(
            "{}/_changes?feed=continuous&filter=_selector&include_docs=true&conflicts=true&heartbeat={}&since={}",
            database.of(self.group),
            HEARTBEAT.as_millis(),
            utf8_percent_encode(&self.since, NON_ALPHANUMERIC)
        );
        // No range: CouchDB sorts by the rules of languages there. A deleted document has its id still.
        let ids = format!("^{}", self.prefix.replace('.', "[.]"));
        let selector = serde_json::json!({ "selector": { "_id": { "$regex": ids } } });
        // Nothing comes before the first change or sign of life, on some servers not even the head of the answer.
        let clock = &*self.couch.0.env.clock;
        let begun =
            timeout(clock, SILENCE, database.stream(&path, selector.to_string().into_bytes()))
                .await;
        let response = begun.map_err(|_| held_back("did not begin"))??;
        Ok(Feed { response, bytes: Vec::new(), searched: 0 })
    }

    /// What a line tells of this group that was not shown yet.
    async fn change(&mut self, line: &[u8]) -> Result<Option<Change>> {
        if line.trim_ascii().is_empty() {
            return Ok(None);
        }
        let line: Line<'_> = serde_json::from_slice(line).map_err(|error| {
            Error::new(Kind::Unexpected, "the feed of changes makes no sense").because(error)
        })?;
        let Some(id) = line.id else { return Err(ended()) };
        if !id.starts_with(&self.prefix) {
            return Ok(None);
        }
        let couch = &*self.couch.0;
        let Some(key) = couch.strangers.key(self.group, &self.prefix, &id) else {
            return Ok(None);
        };
        let document = line.doc.filter(|_| !line.deleted);
        let Some(document) = document.and_then(|doc| read_document(doc, &key)) else {
            return Ok(self.shown.remove(&key.name).map(|_| Change::Removed(key.name)));
        };
        let document = self.couch.settled(&key, &document)?;
        let name = key.name.clone();
        let clock = &couch.database.http.clock;
        if document.life().is_some_and(|(_, ends)| ends <= clock.earliest()) {
            // Whoever wrote it just now may know the time better: a feed tells it once, when it begins.
            couch.database.version().await?;
        }
        let record = document.decode(key, clock.earliest());
        let rev = rev(&record);
        let before = self.shown.insert(name, rev.clone());
        Ok((before != Some(rev)).then_some(Change::Put(record)))
    }
}

impl Feed {
    /// The next line, which is empty where the server only shows that it is there.
    async fn line(&mut self) -> Result<Vec<u8>> {
        loop {
            let end = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n');
            if let Some(end) = end {
                let rest = self.bytes.split_off(self.searched + end + 1);
                self.searched = 0;
                return Ok(std::mem::replace(&mut self.bytes, rest));
            }
            self.searched = self.bytes.len();
            if self.searched > MAX_LINE_BYTES {
                return Err(Error::new(Kind::Unexpected, "a line of the feed is too long"));
            }
            let chunk = self.response.chunk().await;
            match chunk.map_err(|error| explain(error, Effect::Nothing, SILENCE))? {
                Some(chunk) => self.bytes.extend_from_slice(&chunk),
                None => return Err(ended()),
            }
        }
    }
}

fn rev(record: &Record) -> String {
    record.version.to_string()
}

fn held_back(what: &str) -> Error {
    let message =
        format!("the feed of changes {what} within {SILENCE:?}; does a proxy hold it back?");
    Error::new(Kind::Timeout, message).retry_as(Retry::Safe)
}

fn ended() -> Error {
    let message = "the feed of changes has ended";
    Error::new(Kind::Unavailable, message).retry_as(Retry::Safe)
}
