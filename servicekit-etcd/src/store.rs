//! The store's contract over etcd: each write one transaction, each read linearizable, each ephemeral record on a lease of
//! its own.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, Error as EtcdError, GetOptions, GetResponse,
    KeyValue, LeaseGrantOptions, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use futures_util::{join, stream::BoxStream};
use servicekit_core::{
    Capabilities, Effect, Env, Error, Kind, Result, Retry,
    store::{Change, Expect, Group, Keep, Key, Life, Limits, Put, Record, Store, Version, WriteId},
};

use crate::{
    cluster::{Cluster, MAX_ANSWER_BYTES},
    config::Config,
    records::{self, Layout, decode, encode},
    watch,
};

/// etcd takes requests of a megabyte and a half; what is no text takes a third more there than it has.
const MAX_VALUE_BYTES: usize = 1_000_000;

/// How often a touch is begun again when the cluster has just changed its leader.
const MOST_TOUCHES: usize = 4;

/// How many records one answer brings: a thousand instances on a hundred nodes fit.
const PAGE: i64 = 2_000;

/// One etcd cluster. Clones share one handle.
///
/// It connects when it is first used. Dropping the last clone closes the connection.
#[derive(Clone)]
pub struct Etcd(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) env: Env,
    pub(crate) cluster: Cluster,
    pub(crate) layout: Layout,
    /// The leases of etcd that records which this process keeps hang on, as far as it knows.
    leases: Mutex<HashMap<Key, i64>>,
}

impl Etcd {
    /// Prepares to use a cluster; nothing is sent yet. A member that takes longer than most of one attempt of `limits` is
    /// left for the next.
    ///
    /// # Errors
    ///
    /// `Invalid` for a user without a password and for files of TLS that cannot be read; `Secret` for a key that everybody
    /// may read.
    pub fn new(config: Config, env: Env, limits: Limits) -> Result<Self> {
        let cluster = Cluster::new(&config, env.clone(), limits)?;
        let (layout, leases) = (Layout::new(config.prefix), Mutex::default());
        Ok(Self(Arc::new(Inner { env, cluster, layout, leases })))
    }

    /// Reads groups, all as of one revision, and tells which.
    pub(crate) async fn read(&self, groups: &[Group]) -> Result<(Vec<Record>, i64)> {
        let Inner { layout, .. } = &*self.0;
        let mut records = Vec::new();
        let mut revision = 0;
        let mut pages: Vec<_> = groups.iter().map(|group| (group, layout.start(group))).collect();
        while !pages.is_empty() {
            let answers = self.read_pages(&pages, revision).await?;
            revision = answers.header().map_or(revision, |header| match revision {
                0 => header.revision(),
                pinned => pinned,
            });
            let mut next = Vec::new();
            for ((group, _), answer) in pages.iter().zip(answers.op_responses()) {
                let TxnOpResponse::Get(page) = answer else { return Err(odd_answer()) };
                let here = |kv: &KeyValue| {
                    let name = layout.name(group, kv.key())?;
                    Some(decode(group.key(name), kv))
                };
                records.extend(page.kvs().iter().filter_map(here));
                next.extend(start_of_next(&page).map(|start| (*group, start)));
            }
            pages = next;
        }
        records.sort_by(|a, b| a.key.cmp(&b.key));
        Ok((records, revision))
    }

    /// Reads a page of each group, in one request; revision 0 is the latest.
    async fn read_pages(&self, pages: &[(&Group, Vec<u8>)], revision: i64) -> Result<TxnResponse> {
        let gets: Vec<_> = pages
            .iter()
            .map(|(group, start)| {
                let options = GetOptions::new().with_range(self.0.layout.end(group));
                let options = options.with_limit(PAGE).with_revision(revision);
                TxnOp::get(start.clone(), Some(options))
            })
            .collect();
        self.transact(Effect::Nothing, Txn::new().and_then(gets)).await
    }

    async fn transact(&self, effect: Effect, txn: Txn) -> Result<TxnResponse> {
        self.transact_at(self.0.cluster.current(), effect, txn).await
    }

    async fn transact_at(&self, member: usize, effect: Effect, txn: Txn) -> Result<TxnResponse> {
        let ask = |client: Arc<Client>| async move {
            client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES).txn(txn).await
        };
        let cluster = &self.0.cluster;
        let answer = cluster.ask_at(member, effect, ask).await?;
        cluster.heard(member, answer.header());
        Ok(answer)
    }

    fn leases(&self) -> MutexGuard<'_, HashMap<Key, i64>> {
        self.0.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn find(&self, key: &Key) -> Result<Option<KeyValue>> {
        self.find_at(self.0.cluster.current(), key).await
    }

    async fn find_at(&self, member: usize, key: &Key) -> Result<Option<KeyValue>> {
        let (cluster, bytes) = (&self.0.cluster, self.0.layout.key(key));
        let ask = |client: Arc<Client>| async move { client.kv_client().get(bytes, None).await };
        let mut answer = cluster.ask_at(member, Effect::Nothing, ask).await?;
        cluster.heard(member, answer.header());
        Ok(answer.take_kvs().pop())
    }

    /// Asks for a lease that ends when nobody keeps it alive for `ttl`, rounded up to whole seconds. Returns whether it was
    /// there already, by an earlier attempt or an earlier record: then it is kept alive.
    async fn grant_at(&self, member: usize, lease: i64, ttl: Duration) -> Result<bool> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        let ask = |client: Arc<Client>| async move {
            let options = LeaseGrantOptions::new().with_id(lease);
            match client.lease_client().grant(seconds, Some(options)).await {
                Err(error) if is_there_already(&error) => {
                    client.lease_client().keep_alive(lease).await.map(|_| true)
                }
                answer => answer.map(|_| false),
            }
        };
        self.0.cluster.ask_at(member, Effect::Nothing, ask).await
    }

    /// Gives a lease its whole time again, if it is there.
    async fn keep_alive_at(&self, member: usize, lease: i64) -> Result<bool> {
        let ask = |client: Arc<Client>| async move {
            match client.lease_client().keep_alive(lease).await {
                Err(EtcdError::LeaseKeepAliveError(said)) if said.contains("not found") => {
                    Ok(false)
                }
                answer => answer.map(|_| true),
            }
        };
        self.0.cluster.ask_at(member, Effect::Nothing, ask).await
    }

    /// Ends a lease that no record hangs on any longer; otherwise it would end by itself, later.
    fn revoke(&self, lease: i64) {
        let etcd = self.clone();
        tokio::spawn(async move {
            let ask =
                |client: Arc<Client>| async move { client.lease_client().revoke(lease).await };
            let revoked = etcd.0.cluster.ask(Effect::Nothing, ask).await;
            if let Err(error) = revoked {
                tracing::debug!(%error, lease, "left a lease to end by itself");
            }
        });
    }
}

#[async_trait]
impl Store for Etcd {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            linearizable: true,
            multi_host: true,
            server_expiry: true,
            push_watch: true,
            max_value_bytes: MAX_VALUE_BYTES,
            // What etcd itself keeps to, with its default heartbeat and election time-out.
            min_ttl: Duration::from_secs(2),
        }
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        let found = self.find(key).await.map_err(on("get", key))?;
        Ok(found.map(|kv| decode(key.clone(), &kv)))
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
        let listed = self.read(groups).await;
        let (records, _) = listed.map_err(|error| match groups.first() {
            Some(group) => on("list", group)(error),
            None => error.on("etcd").during("list"),
        })?;
        Ok(records)
    }

    fn watch(&self, group: &Group) -> BoxStream<'static, Result<Change>> {
        watch::follow_group(self.clone(), group.clone())
    }
}

/// What a record is to hang on.
struct Hanging {
    /// 0 for none.
    lease: i64,
    ttl: Option<Duration>,
    /// Whether the lease was there before, and had to be kept alive.
    was_there: bool,
}

impl Etcd {
    async fn put_record(&self, put: &Put) -> Result<Version> {
        let Put { key, value, expect, keep, write } = put;
        if value.len() > MAX_VALUE_BYTES {
            let message = format!("{} bytes; at most {MAX_VALUE_BYTES} fit", value.len());
            return Err(Error::new(Kind::Invalid, message));
        }
        let cluster = &self.0.cluster;
        let member = cluster.current();
        let term = cluster.term(member);
        let Hanging { lease, ttl, was_there } =
            self.lease_for(member, key, expect, *keep, write).await?;
        let bytes = self.0.layout.key(key);
        let condition = match expect {
            Expect::Absent => 0,
            Expect::At(version) => records::revision(version),
        };
        let options = PutOptions::new().with_lease(lease);
        let written = TxnOp::put(bytes.clone(), encode(value, write, ttl), Some(options));
        let compare = Compare::mod_revision(bytes, CompareOp::Equal, condition);
        let txn = Txn::new().when([compare]).and_then([written]);
        let answer = self.transact_at(member, Effect::Write, txn).await?;
        if !answer.succeeded() {
            // A lease that was asked for ends by itself: an earlier attempt may have put the record on it.
            return Err(conflict());
        }
        // See `touch_record`: it may have been kept alive in vain.
        if was_there && cluster.term(member) != term {
            let message = "the cluster has changed its leader meanwhile";
            return Err(Error::new(Kind::Unavailable, message).retry_as(Retry::Unknown));
        }
        if lease != 0 {
            self.leases().insert(key.clone(), lease);
        }
        // The lease that it had before is left to end by itself.
        let header = answer.header().ok_or_else(odd_answer)?;
        Ok(records::version(header.revision()))
    }

    async fn lease_for(
        &self,
        member: usize,
        key: &Key,
        expect: &Expect,
        keep: Keep,
        write: &WriteId,
    ) -> Result<Hanging> {
        match (keep, expect) {
            (Keep::Durable, _) => Ok(Hanging { lease: 0, ttl: None, was_there: false }),
            (Keep::Ephemeral(ttl), _) => {
                let lease = lease_of(write, expect);
                let was_there = self.grant_at(member, lease, ttl).await?;
                Ok(Hanging { lease, ttl: Some(ttl), was_there })
            }
            (Keep::Unchanged, Expect::At(version)) => match self.find(key).await? {
                Some(kv) if records::version(kv.mod_revision()) == *version => {
                    let ttl = match decode(key.clone(), &kv).life {
                        Life::Ephemeral { ttl, .. } => Some(ttl),
                        Life::Durable => None,
                    };
                    Ok(Hanging { lease: kv.lease(), ttl, was_there: false })
                }
                _ => Err(conflict()),
            },
            (Keep::Unchanged, Expect::Absent) => {
                let message = "a record that is not there has no time to keep";
                Err(Error::new(Kind::Invalid, message))
            }
        }
    }

    /// A lease that lives proves nothing about the record, and a record that is there nothing about its lease: both are
    /// asked, at the same time, of the same member.
    ///
    /// A member may still take a leader for one that the others have replaced, and keep the lease alive there in vain. The
    /// read is answered by the leader of the term that it tells. Where the member had answered in that term before, it has
    /// asked that very leader to keep the lease alive.
    async fn touch_record(&self, key: &Key, write: &WriteId) -> Result<Version> {
        let cluster = &self.0.cluster;
        let known = self.leases().get(key).copied();
        let mut lease = known.unwrap_or_else(|| lease_of(write, &Expect::Absent));
        let mut was_absent = false;
        for _ in 0..MOST_TOUCHES {
            let member = cluster.current();
            let term = cluster.term(member);
            let (found, alive) =
                join!(self.find_at(member, key), self.keep_alive_at(member, lease));
            let Some(kv) = found? else {
                self.leases().remove(key);
                return Err(lost());
            };
            let record = decode(key.clone(), &kv);
            if record.write != *write {
                return Err(conflict());
            }
            match kv.lease() {
                // Somebody took it off, and nothing would end it.
                0 => return Err(lost()),
                other if other != lease => {
                    lease = other;
                    self.leases().insert(key.clone(), lease);
                }
                _ if alive? => {
                    if cluster.term(member) == term {
                        return Ok(record.version);
                    }
                }
                // Of a lease that is gone the record is gone, too; a new leader may not know of either yet.
                _ if was_absent => return Err(lost()),
                _ => was_absent = true,
            }
        }
        let message = "the cluster changes its leader again and again";
        Err(Error::new(Kind::Unavailable, message).retry_as(Retry::Safe))
    }

    async fn delete_record(&self, key: &Key, version: &Version) -> Result<()> {
        let bytes = self.0.layout.key(key);
        let condition = records::revision(version);
        let compare = Compare::mod_revision(bytes.clone(), CompareOp::Equal, condition);
        let delete = TxnOp::delete(bytes.clone(), Some(DeleteOptions::new().with_prev_key()));
        let look = TxnOp::get(bytes, Some(GetOptions::new().with_keys_only()));
        let txn = Txn::new().when([compare]).and_then([delete]).or_else([look]);
        let answer = self.transact(Effect::Write, txn).await?;
        match answer.op_responses().first() {
            Some(TxnOpResponse::Delete(deleted)) => {
                // Of another lease it is not known what else hangs on it. This one is for no record any more.
                let lease = self.leases().remove(key);
                if let (Some(lease), Some(kv)) = (lease, deleted.prev_kvs().first())
                    && kv.lease() == lease
                {
                    self.revoke(lease);
                }
                Ok(())
            }
            Some(TxnOpResponse::Get(found)) if found.kvs().is_empty() => {
                Err(Error::new(Kind::NotFound, "there is no such record"))
            }
            Some(TxnOpResponse::Get(_)) => Err(conflict()),
            _ => Err(odd_answer()),
        }
    }
}

/// The lease for the record that `write` puts: the same when that put is sent again, and no other's, so that nothing which is
/// late for one record concerns another.
fn lease_of(write: &WriteId, expect: &Expect) -> i64 {
    let version = match expect {
        Expect::Absent => "",
        Expect::At(version) => version.as_str(),
    };
    // FNV-1a, which every release computes alike: <https://datatracker.ietf.org/doc/html/draft-eastlake-fnv>.
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = write.as_str().bytes().chain(version.bytes()).fold(0xcbf2_9ce4_8422_2325, step);
    // 0 means none, and etcd takes no negative ones.
    i64::try_from(hash >> 1).unwrap_or(i64::MAX).max(1)
}

fn is_there_already(error: &EtcdError) -> bool {
    matches!(error, EtcdError::GRpcStatus(status) if status.message().contains("lease already exists"))
}

/// Where the next page of a group begins, if there is one.
fn start_of_next(page: &GetResponse) -> Option<Vec<u8>> {
    let last = page.kvs().last().filter(|_| page.more())?;
    Some([last.key(), b"\0"].concat())
}

fn conflict() -> Error {
    Error::new(Kind::Conflict, "the record is another one by now")
}

fn lost() -> Error {
    Error::new(Kind::Lost, "the record has ended")
}

fn odd_answer() -> Error {
    Error::new(Kind::Unexpected, "the answer is not one to this request").retry_as(Retry::Unknown)
}

/// Names what was done, and to what.
fn on(operation: &'static str, what: &impl fmt::Display) -> impl FnOnce(Error) -> Error {
    move |error| error.on("etcd").during(operation).at(what)
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Etcd").field(&self.0.cluster).finish()
    }
}
