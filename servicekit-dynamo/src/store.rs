//! The store's contract over one table: each write one conditional request, each read consistent, each ephemeral record with
//! the moment of its end by the store's own clock.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use aws_sdk_dynamodb::{
    Client,
    operation::update_item::builders::UpdateItemFluentBuilder,
    types::{AttributeValue, ReturnValue},
};
use futures_util::{future::try_join_all, stream::BoxStream};
use servicekit_core::{
    Capabilities, Effect, Env, Error, Kind, Result, Retry,
    store::{Change, Expect, Group, Keep, Key, Life, Limits, Put, Record, Store, Version, WriteId},
};

use crate::{
    config::Config,
    mark::{Debt, Marks},
    records::{
        ENDS_MS, EXPIRES, GROUP, Item, KEPT, MARK, NAME, Strangers, TTL_MS, TTL_S, VALUE, VERSION,
        WRITE, decode, decode_value, encode, has_one_writer, is_marked, key_of, number, seconds,
        version_of,
    },
    table::Table,
    watch,
};

/// An item has at most 400 kB, with the names of its attributes and all else that is in it.
const MAX_VALUE_BYTES: usize = 400_000;

/// Versions begin somewhere below this, so that a record that was deleted and made again never has one that it had before.
const VERSIONS: u64 = 1 << 60;

/// How often what only reads is asked for again before anybody hears of it.
const TRIES: u32 = 2;
/// How long it waits before the first of these; twice as long before the next.
const MOMENT: Duration = Duration::from_millis(300);

/// One table. Clones share one handle.
///
/// It connects when it is first used. Dropping the last clone closes the connections.
#[derive(Clone)]
pub struct Dynamo(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) env: Env,
    pub(crate) table: Table,
    strangers: Strangers,
    marks: Marks,
}

impl Dynamo {
    /// Prepares to use a table; nothing is sent yet. An answer may take most of one attempt of `limits`.
    #[must_use]
    pub fn new(config: Config, env: Env, limits: Limits) -> Self {
        let table = Table::new(config, env.clone(), limits);
        let (strangers, marks) = Default::default();
        Self(Arc::new(Inner { env, table, strangers, marks }))
    }

    /// Makes the table if it is missing, and waits until it can be used, for most of the time that `limits` gives an operation.
    ///
    /// # Errors
    ///
    /// `Denied` and others of making it; `Unsupported` for a table of another shape; `Unavailable` (safe to repeat) when it is not
    /// ready by then. That the store cannot be reached is no error here: whoever uses it finds out.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves a table that is being made, and will be ready soon.
    pub async fn make_table(&self) -> Result<()> {
        let made = self.0.table.make().await;
        made.map_err(|error| error.on("dynamodb"))
    }

    /// Reads one group, page by page. What a decision hangs on has to be consistent, which costs twice as much.
    ///
    /// A page that fails is asked for again, so that the others were not read in vain; the first is left to the caller.
    pub(crate) async fn read_group(&self, group: &Group, consistent: bool) -> Result<Vec<Record>> {
        let Inner { table, strangers, .. } = &*self.0;
        let (client, _) = table.open().await?;
        let mut records = Vec::new();
        let mut start: Option<Item> = None;
        let mut failures = 0;
        loop {
            let query = client
                .query()
                .table_name(&table.config.table)
                .consistent_read(consistent)
                .key_condition_expression("#group = :group AND #name > :mark")
                .expression_attribute_names("#group", GROUP)
                .expression_attribute_names("#name", NAME)
                .expression_attribute_values(":mark", AttributeValue::S(MARK.to_owned()))
                .expression_attribute_values(":group", AttributeValue::S(group.as_str().to_owned()))
                .set_exclusive_start_key(start.clone());
            let page = match table.ask(Effect::Nothing, query.send()).await {
                Err(error) if start.is_some() && self.may_pass(&error, &mut failures).await => {
                    continue;
                }
                page => page?,
            };
            failures = 0;
            let now = table.clock.earliest();
            let here = |item: &Item| Some(decode(strangers.key(group, item)?, item, now));
            records.extend(page.items().iter().filter_map(here));
            start = page.last_evaluated_key;
            if start.as_ref().is_none_or(Item::is_empty) {
                return Ok(records);
            }
        }
    }

    /// Whether to ask again after a failure, which is one of several in a row; then this has waited for a moment.
    pub(crate) async fn may_pass(&self, error: &Error, failures: &mut u32) -> bool {
        if *failures >= TRIES || !error.is_transient() || error.retry() == Retry::Never {
            return false;
        }
        let Env { clock, random } = &self.0.env;
        clock.sleep(random.jitter(MOMENT * (1 << *failures), 0.5)).await;
        *failures += 1;
        true
    }
}

#[async_trait]
impl Store for Dynamo {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            linearizable: true,
            multi_host: true,
            server_expiry: false,
            push_watch: false,
            max_value_bytes: MAX_VALUE_BYTES,
            // The store's clock is known to a second, and better after a few answers; followers look every second or two.
            min_ttl: Duration::from_secs(5),
        }
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        let found = self.find(key).await.map_err(on("get", key))?;
        Ok(found.map(|item| decode(key.clone(), &item, self.0.table.clock.earliest())))
    }

    async fn put(&self, put: &Put) -> Result<Version> {
        self.put_record(put).await.map_err(on("put", &put.key))
    }

    async fn touch(&self, key: &Key, write: &WriteId) -> Result<Version> {
        self.touch_record(key, write).await.map_err(on("touch", key))
    }

    async fn delete(&self, key: &Key, version: &Version) -> Result<()> {
        self.delete_record(key, version).await.map_err(on("delete", key))
    }

    async fn list(&self, groups: &[Group]) -> Result<Vec<Record>> {
        let read = groups
            .iter()
            .map(async |group| self.read_group(group, true).await.map_err(on("list", group)));
        let mut records = try_join_all(read).await?.concat();
        records.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(records)
    }

    fn watch(&self, group: &Group) -> BoxStream<'static, Result<Change>> {
        watch::follow_group(self.clone(), group.clone())
    }
}

impl Dynamo {
    async fn find(&self, key: &Key) -> Result<Option<Item>> {
        let table = &self.0.table;
        let (client, _) = table.open().await?;
        let get = client
            .get_item()
            .table_name(&table.config.table)
            .set_key(Some(key_of(key)))
            .consistent_read(true);
        Ok(table.ask(Effect::Nothing, get.send()).await?.item)
    }

    /// The client, for a write to a record.
    async fn open_for(&self, key: &Key) -> Result<&Client> {
        let (client, seen) = self.0.table.open().await?;
        match &seen.refused {
            Some(why) if has_one_writer(&key.group) => Err(Error::new(Kind::Unsupported, why)),
            _ => Ok(client),
        }
    }

    async fn put_record(&self, put: &Put) -> Result<Version> {
        let Put { key, value, expect, keep, write } = put;
        if value.len() > MAX_VALUE_BYTES {
            let message = format!("{} bytes; at most {MAX_VALUE_BYTES} fit", value.len());
            return Err(Error::new(Kind::Invalid, message));
        }
        let client = self.open_for(key).await?;
        let version = self.0.env.random.below(VERSIONS).to_string();
        let mut update = self
            .update(client, key)
            .expression_attribute_names("#value", VALUE)
            .expression_attribute_values(":value", encode(value))
            .expression_attribute_names("#write", WRITE)
            .expression_attribute_values(":write", AttributeValue::S(write.to_string()))
            .expression_attribute_values(":drawn", number(&version));
        let mut sets = "SET #value = :value, #write = :write, #version = :drawn".to_owned();
        match keep {
            Keep::Unchanged if *expect == Expect::Absent => {
                let message = "a record that is not there has no time to keep";
                return Err(Error::new(Kind::Invalid, message));
            }
            Keep::Unchanged => {}
            Keep::Durable => {
                sets += " REMOVE #ttl, #ttl_s, #ends, #expires";
                update = name_life(update);
            }
            Keep::Ephemeral(ttl) => {
                let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
                let now = self.0.table.clock.latest();
                let expires = later(now).saturating_add(seconds(*ttl));
                sets += ", #ttl = :ttl, #ttl_s = :ttl_s, #ends = :ends, #expires = :expires";
                update = name_life(update)
                    .expression_attribute_values(":ttl", number(ttl_ms))
                    .expression_attribute_values(":ttl_s", number(seconds(*ttl)))
                    .expression_attribute_values(":ends", number(now.saturating_add(ttl_ms)))
                    .expression_attribute_values(":expires", number(expires));
            }
        }
        update = match expect {
            Expect::Absent => update
                .condition_expression("attribute_not_exists(#group)")
                .expression_attribute_names("#group", GROUP),
            Expect::At(expected) => {
                let (condition, name, value) = at(expected);
                let update =
                    update.condition_expression(condition).expression_attribute_values(name, value);
                if condition.contains("#group") {
                    update.expression_attribute_names("#group", GROUP)
                } else {
                    update
                }
            }
        };
        let debt = is_marked(&key.group).then(|| self.0.marks.begin(&key.group));
        if debt.is_some() {
            update = update.return_values(ReturnValue::AllOld);
        }
        let answer = self.0.table.ask(Effect::Write, update.update_expression(sets).send()).await;
        if let Some(debt) = debt {
            // To put again what is there keeps it, and is nothing to see.
            let before = answer.as_ref().ok().and_then(|answer| answer.attributes.as_ref());
            let is_new = before.and_then(decode_value).as_deref() != Some(&**value);
            self.mark(debt, answer.as_ref().map(|_| is_new)).await?;
        }
        answer?;
        Ok(Version::new(version))
    }

    /// Sending it twice does what sending it once does, but for the version, which nobody was told then.
    async fn touch_record(&self, key: &Key, write: &WriteId) -> Result<Version> {
        let client = self.open_for(key).await?;
        let now = self.0.table.clock.latest();
        let update = name_life(self.update(client, key))
            .update_expression(
                "SET #version = #version + :one, #ends = :now + #ttl, #expires = :later + #ttl_s",
            )
            .condition_expression("#write = :write AND attribute_exists(#ttl)")
            .expression_attribute_names("#write", WRITE)
            .expression_attribute_values(":write", AttributeValue::S(write.to_string()))
            .expression_attribute_values(":one", number(1))
            .expression_attribute_values(":now", number(now))
            .expression_attribute_values(":later", number(later(now)))
            .return_values(ReturnValue::UpdatedNew);
        match self.0.table.ask(Effect::Nothing, update.send()).await {
            Ok(answer) => answer.attributes.as_ref().map(version_of).ok_or_else(odd_answer),
            Err(error) if error.kind() == Kind::Conflict => match self.find(key).await? {
                None => Err(Error::new(Kind::Lost, "the record has ended")),
                Some(item) => {
                    let record = decode(key.clone(), &item, now);
                    if record.write == *write && record.life == Life::Durable {
                        return Err(Error::new(Kind::Invalid, "a durable record needs no touch"));
                    }
                    Err(error)
                }
            },
            Err(error) => Err(error),
        }
    }

    async fn delete_record(&self, key: &Key, version: &Version) -> Result<()> {
        let client = self.open_for(key).await?;
        let (condition, name, value) = at(version);
        let mut delete = client
            .delete_item()
            .table_name(&self.0.table.config.table)
            .set_key(Some(key_of(key)))
            .condition_expression(condition)
            .expression_attribute_names("#version", VERSION)
            .expression_attribute_values(name, value);
        if condition.contains("#group") {
            delete = delete.expression_attribute_names("#group", GROUP);
        }
        let debt = is_marked(&key.group).then(|| self.0.marks.begin(&key.group));
        let answer = self.0.table.ask(Effect::Write, delete.send()).await.map(drop);
        if let Some(debt) = debt {
            self.mark(debt, answer.as_ref().map(|()| true)).await?;
        }
        match answer {
            Err(error) if error.kind() == Kind::Conflict && self.find(key).await?.is_none() => {
                Err(Error::new(Kind::NotFound, "there is no such record"))
            }
            answer => answer,
        }
    }

    /// Marks a change, after an answer that tells whether it is one that shows.
    async fn mark(&self, debt: Debt<'_>, shows: Result<bool, &Error>) -> Result<()> {
        let is_due = match shows {
            Ok(shows) => shows || debt.is_old,
            // An earlier attempt of this very change may be what is in the way, and nobody marked that.
            Err(error) if error.kind() == Kind::Conflict => true,
            // It may be made, or still be: the next attempt marks it.
            Err(error) if error.retry() == Retry::Unknown => return Ok(()),
            Err(_) => false,
        };
        if is_due {
            return debt.pay(&self.0.table).await;
        }
        debt.forgive();
        Ok(())
    }

    fn update(&self, client: &Client, key: &Key) -> UpdateItemFluentBuilder {
        client
            .update_item()
            .table_name(&self.0.table.config.table)
            .set_key(Some(key_of(key)))
            .expression_attribute_names("#version", VERSION)
    }
}

/// The condition that a record is at this version; what others wrote without one has the empty version.
fn at(version: &Version) -> (&'static str, &'static str, AttributeValue) {
    match version.as_str() {
        "" => (
            "attribute_exists(#group) AND NOT attribute_type(#version, :number)",
            ":number",
            AttributeValue::S("N".into()),
        ),
        version => ("#version = :expected", ":expected", number(version)),
    }
}

fn name_life(update: UpdateItemFluentBuilder) -> UpdateItemFluentBuilder {
    update
        .expression_attribute_names("#ttl", TTL_MS)
        .expression_attribute_names("#ttl_s", TTL_S)
        .expression_attribute_names("#ends", ENDS_MS)
        .expression_attribute_names("#expires", EXPIRES)
}

/// When DynamoDB may remove what ends at `now`, in seconds since 1970.
fn later(now: i64) -> u64 {
    u64::try_from(now / 1000).unwrap_or(0).saturating_add(KEPT.as_secs())
}

fn odd_answer() -> Error {
    Error::new(Kind::Unexpected, "the answer is not one to this request")
}

/// Names what was done, and to what.
fn on(operation: &'static str, what: &impl fmt::Display) -> impl FnOnce(Error) -> Error {
    move |error| error.on("dynamodb").during(operation).at(what)
}

impl fmt::Debug for Dynamo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Dynamo").field(&self.0.table).finish()
    }
}
