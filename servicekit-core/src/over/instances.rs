//! [`Registry`] over a store. Following is in [`super::merge`].

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};

use super::{FORMAT, Index, Oddities, merge::Merge, put_json, sweep::sweep};
use crate::{
    Capabilities, Env, Error, Instance, Kind, Label, Name, Namespace, Registry, Result, Retry,
    ServiceId, Timestamp,
    instance::{REMEMBERED_CHANGES, StateChange},
    registry::{Claim, Event, InstanceKey, RETENTION, Session, SessionRef, Snapshot, Takeover},
    store::{Expect, Group, Keep, Key, Put, Record, Reliable, Store as _, WriteId},
};

/// Sessions have one of so many names, used again and again: some stores keep a row for every name ever deleted.
const SESSION_NAMES: u64 = 65_536;

/// How often a write that lost is tried again.
const MOST_TRIES: u32 = 50;

/// How many takeovers a session's record holds, the latest; who missed more learns of them at its next puts.
const MOST_TAKEN: usize = 16;

/// The registry over a store.
#[derive(Debug)]
pub(crate) struct Instances {
    store: Arc<Reliable>,
    namespace: Namespace,
    env: Env,
    index: Index,
    /// Labels that are in the index for sure.
    indexed: Mutex<BTreeSet<Label>>,
    oddities: Arc<Oddities>,
}

/// The value of an instance's record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct InstanceValue {
    v: u32,
    pub(super) incarnation: u64,
    pub(super) session: SessionRef,
    /// Left behind for a while by a removal, so that nothing late brings the instance back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) removed: bool,
    #[serde(flatten)]
    pub(super) instance: Instance,
    /// What a newer version added.
    #[serde(flatten)]
    other: serde_json::Map<String, serde_json::Value>,
}

/// An instance's record, and whose put it was.
struct Stored {
    value: InstanceValue,
    bytes: Arc<[u8]>,
    write: WriteId,
}

/// The value of a session's record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SessionValue {
    v: u32,
    pub(super) nonce: String,
    node: String,
    /// Instances that were taken over from this session. They stay, so that a beat whose answer was lost loses none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    taken: Vec<Takeover>,
    /// What a newer version added.
    #[serde(flatten)]
    other: serde_json::Map<String, serde_json::Value>,
}

impl Instances {
    pub(crate) fn new(store: Arc<Reliable>, namespace: &Namespace, env: Env) -> Self {
        let index = Index { group: Group::of(namespace, "labels"), store: store.clone() };
        let (namespace, indexed) = (namespace.clone(), Mutex::default());
        Self { store, namespace, env, index, indexed, oddities: Arc::default() }
    }

    fn instances(&self, label: &Label) -> Group {
        Group::scoped(&self.namespace, "instances", &label.into())
    }

    fn sessions(&self) -> Group {
        Group::of(&self.namespace, "sessions")
    }

    async fn index(&self, label: &Label) -> Result<()> {
        let indexed = || self.indexed.lock().unwrap_or_else(PoisonError::into_inner);
        if indexed().contains(label) {
            return Ok(());
        }
        self.index.add(&self.env.random, label.into()).await?;
        // Once for each process, which makes few instances.
        sweep(&self.store, &self.env, &self.instances(label)).await;
        indexed().insert(label.clone());
        Ok(())
    }

    /// Reads an instance's record; one that cannot be used is reported, and its place may be taken.
    async fn stored(&self, key: &Key) -> Result<(Option<Stored>, Expect)> {
        let Some(record) = self.store.get(key).await? else { return Ok((None, Expect::Absent)) };
        let value = self.oddities.skip(&record);
        let stored = value.map(|value| Stored { value, bytes: record.value, write: record.write });
        Ok((stored, Expect::At(record.version)))
    }

    async fn session(&self, session: &SessionRef) -> Result<Option<(SessionValue, Record)>> {
        let key = self.sessions().key(session.name.clone());
        let Some(record) = self.store.get(&key).await? else {
            return Ok(None);
        };
        let value = self.oddities.skip::<SessionValue>(&record);
        Ok(value.filter(|value| value.nonce == session.nonce).map(|value| (value, record)))
    }

    /// Tells a session that one of its instances was taken over. It hears of it at its next beat.
    async fn tell(&self, session: &SessionRef, takeover: &Takeover) -> Result<()> {
        for attempt in 0..MOST_TRIES {
            let Some((mut value, record)) = self.session(session).await? else { return Ok(()) };
            if value.taken.contains(takeover) {
                return Ok(());
            }
            value.taken.push(takeover.clone());
            let surplus = value.taken.len().saturating_sub(MOST_TAKEN);
            value.taken.drain(..surplus);
            let expect = Expect::At(record.version);
            let put = put_json(&self.env.random, &record.key, &value, expect, Keep::Unchanged)?;
            match self.store.put(&put).await {
                Err(error) if error.kind() == Kind::Conflict => self.pause(attempt).await,
                answer => return answer.map(drop),
            }
        }
        Err(too_busy(&takeover.instance.service_id))
    }

    fn merge(&self, label: &Label) -> Merge {
        let Capabilities { server_expiry, .. } = self.capabilities();
        let (clock, oddities) = (self.env.clock.clone(), self.oddities.clone());
        Merge::new(clock, oddities, label.clone(), server_expiry)
    }

    async fn pause(&self, attempt: u32) {
        let longest = Duration::from_millis(2) * (attempt + 1).min(25);
        self.env.clock.sleep(self.env.random.jitter(longest / 2, 1.0)).await;
    }
}

#[async_trait]
impl Registry for Instances {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    async fn open(&self, node: &str, ttl: Duration) -> Result<Session> {
        // Whoever opens another session may have lost the first with everything else.
        self.indexed.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let least = self.capabilities().min_ttl;
        if ttl < least {
            let message =
                format!("a ttl of {ttl:?} is below the {least:?} that this store can keep");
            return Err(Error::new(Kind::Invalid, message).during("open"));
        }
        let random = &self.env.random;
        let value = SessionValue {
            v: FORMAT,
            nonce: random.id(),
            node: node.to_owned(),
            taken: Vec::new(),
            other: serde_json::Map::new(),
        };
        for _ in 0..MOST_TRIES {
            let name: Name = format!("s-{:04x}", random.below(SESSION_NAMES)).parse()?;
            let key = self.sessions().key(name.clone());
            let mut put = put_json(random, &key, &value, Expect::Absent, Keep::Ephemeral(ttl))?;
            let mut written = self.store.put(&put).await;
            if written.as_ref().is_err_and(|error| error.kind() == Kind::Conflict) {
                // Where nobody but observers ends a record, one that is over may be replaced.
                match self.store.get(&key).await? {
                    Some(record) if record.is_over() => put.expect = Expect::At(record.version),
                    _ => continue,
                }
                written = self.store.put(&put).await;
            }
            match written {
                Err(error) if error.kind() == Kind::Conflict => {}
                Err(error) => return Err(error),
                Ok(_) => {
                    sweep(&self.store, &self.env, &self.sessions()).await;
                    let reference = SessionRef { name, nonce: value.nonce };
                    return Ok(Session::new(reference, ttl, put.write));
                }
            }
        }
        Err(too_busy(&"sessions"))
    }

    async fn beat(&self, session: &Session) -> Result<Vec<InstanceKey>> {
        let key = self.sessions().key(session.reference.name.clone());
        for attempt in 0..MOST_TRIES {
            let known = session.known().write.clone();
            match self.store.touch(&key, &known).await {
                Err(error) if error.kind() == Kind::Conflict => {}
                answer => return answer.map(|_| Vec::new()),
            }
            // Somebody wrote a note into it, or it is somebody else's by now.
            let Some((value, record)) = self.session(&session.reference).await? else {
                let message = "the session has ended";
                return Err(Error::new(Kind::Lost, message).during("beat").at(&key));
            };
            match self.store.touch(&key, &record.write).await {
                Ok(_) => return Ok(session.hear(record.write, value.taken)),
                Err(error) if error.kind() == Kind::Conflict => self.pause(attempt).await,
                Err(error) => return Err(error),
            }
        }
        Err(too_busy(&key))
    }

    async fn close(&self, session: &Session) -> Result<()> {
        for attempt in 0..MOST_TRIES {
            let Some((_, record)) = self.session(&session.reference).await? else {
                return Ok(());
            };
            match self.store.delete(&record.key, &record.version).await {
                Err(error) if error.kind() == Kind::NotFound => return Ok(()),
                Err(error) if error.kind() == Kind::Conflict => self.pause(attempt).await,
                answer => return answer,
            }
        }
        Err(too_busy(&session.reference.name))
    }

    async fn put(&self, session: &Session, claim: &Claim, instance: &Instance) -> Result<()> {
        let Instance { label, service_id, .. } = instance;
        self.index(label).await?;
        let key = self.instances(label).key(service_id);
        for attempt in 0..MOST_TRIES {
            let (stored, expect) = self.stored(&key).await?;
            let (wall, reference) = (self.env.clock.wall(), &session.reference);
            let (incarnation, before) = claim.draw(stored.as_ref(), reference, wall, &key)?;
            let changes = before.iter().chain(&instance.changes);
            let surplus =
                (before.len() + instance.changes.len()).saturating_sub(REMEMBERED_CHANGES);
            let changes = changes.skip(surplus).cloned().collect();
            let value = InstanceValue {
                v: FORMAT,
                incarnation,
                session: session.reference.clone(),
                removed: false,
                instance: Instance { changes, ..instance.clone() },
                other: stored.map(|stored| stored.value.other).unwrap_or_default(),
            };
            let put = put_json(&self.env.random, &key, &value, expect, Keep::Ephemeral(RETENTION))?;
            claim.tries(incarnation, &put.write);
            match self.store.put(&put).await {
                Ok(_) => {}
                Err(error) if error.kind() == Kind::Conflict => {
                    self.pause(attempt).await;
                    continue;
                }
                Err(error) => return Err(error),
            }
            claim.make_good(incarnation);
            if let Some(former) = claim.former() {
                let instance = InstanceKey { label: label.clone(), service_id: service_id.clone() };
                self.tell(&former, &Takeover { instance, by: incarnation }).await?;
                claim.told();
            }
            return Ok(());
        }
        Err(too_busy(&key))
    }

    async fn remove(&self, claim: &Claim, label: &Label, id: &ServiceId) -> Result<()> {
        let key = self.instances(label).key(id);
        for attempt in 0..MOST_TRIES {
            let (stored, expect) = self.stored(&key).await?;
            let wall = self.env.clock.wall();
            let incarnation = match claim.removes(stored.as_ref(), &key)? {
                Removal::Nothing => return Ok(()),
                Removal::Settle => {
                    // Written as it is: from then on a put of ours that is still on its way has lost.
                    let Some(Stored { bytes: value, write, .. }) = stored else { return Ok(()) };
                    let put = Put { key: key.clone(), value, expect, keep: Keep::Unchanged, write };
                    match self.store.put(&put).await {
                        Err(error) if error.kind() == Kind::Conflict => self.pause(attempt).await,
                        answer => return answer.map(drop),
                    }
                    continue;
                }
                Removal::Of(incarnation) => incarnation,
            };
            let instance = Instance::starting(label.clone(), id.clone(), "", wall);
            let (name, nonce) = ("none".parse()?, String::new());
            let value = InstanceValue {
                v: FORMAT,
                incarnation,
                session: SessionRef { name, nonce },
                removed: true,
                instance,
                other: serde_json::Map::new(),
            };
            let put = put_json(&self.env.random, &key, &value, expect, Keep::Ephemeral(RETENTION))?;
            match self.store.put(&put).await {
                Err(error) if error.kind() == Kind::Conflict => self.pause(attempt).await,
                answer => return answer.map(drop),
            }
        }
        Err(too_busy(&key))
    }

    async fn list(&self, label: &Label) -> Result<Snapshot> {
        let group = self.instances(label);
        let records = self.store.list(&[group.clone(), self.sessions()]).await?;
        let (instances, sessions) =
            records.into_iter().partition(|record| record.key.group == group);
        let mut merge = self.merge(label);
        merge.snapshots(instances, sessions);
        Ok(merge.snapshot())
    }

    fn watch(&self, label: &Label) -> BoxStream<'static, Result<Event>> {
        let merge = self.merge(label);
        let instances = self.store.watch(&self.instances(label));
        let sessions = self.store.watch(&self.sessions());
        merge.follow(instances, sessions)
    }

    async fn labels(&self) -> Result<Vec<Label>> {
        self.index.names().await
    }
}

impl Claim {
    /// The incarnation to write with, and the history from before this claim.
    fn draw(
        &self,
        stored: Option<&Stored>,
        session: &SessionRef,
        wall: Timestamp,
        key: &Key,
    ) -> Result<(u64, Vec<StateChange>)> {
        let mut drawn = self.lock();
        let newest = stored.map_or(0, |stored| stored.value.incarnation);
        let incarnation = match (drawn.incarnation, &drawn.tried) {
            (Some(own), _) if newest > own => return Err(superseded(key)),
            (Some(own), _) => own,
            // An earlier put was applied after all.
            (None, Some((tried, write))) if stored.is_some_and(|stored| stored.write == *write) => {
                *tried
            }
            (None, _) => {
                // One under our own session may be an earlier try: whoever had it before that is still to be told.
                let before = stored.map(|stored| &stored.value).filter(|value| !value.removed);
                if let Some(value) = before {
                    let is_other = value.session != *session;
                    if is_other || drawn.tried.is_none() {
                        drawn.before = value.instance.changes.clone();
                    }
                    if is_other {
                        drawn.former = Some(value.session.clone());
                    }
                }
                wall.as_millis().max(newest.saturating_add(1))
            }
        };
        Ok((incarnation, drawn.before.clone()))
    }

    /// A put is about to be sent, and may be applied whether that is heard of or not.
    fn tries(&self, incarnation: u64, write: &WriteId) {
        self.lock().tried = Some((incarnation, write.clone()));
    }

    /// The put was acknowledged: the incarnation is this claim's.
    fn make_good(&self, incarnation: u64) {
        self.lock().incarnation = Some(incarnation);
    }

    fn former(&self) -> Option<SessionRef> {
        self.lock().former.clone()
    }

    fn told(&self) {
        self.lock().former = None;
    }

    /// What to remove. A first put that was not acknowledged may have been applied, and may still be.
    fn removes(&self, stored: Option<&Stored>, key: &Key) -> Result<Removal> {
        let drawn = self.lock();
        match (drawn.incarnation, &drawn.tried, stored) {
            (Some(own), _, Some(stored)) if stored.value.incarnation > own => Err(superseded(key)),
            (Some(own), ..) => Ok(Removal::Of(own)),
            (None, Some((_, write)), Some(stored)) if stored.write != *write => Ok(Removal::Settle),
            (None, Some((tried, _)), _) => Ok(Removal::Of(*tried)),
            (None, None, _) => Ok(Removal::Nothing),
        }
    }
}

/// What a removal has to do.
enum Removal {
    /// Nothing: this claim put nothing.
    Nothing,
    /// The record is somebody else's; see that it stays so.
    Settle,
    /// Leave a tombstone of this incarnation.
    Of(u64),
}

fn superseded(key: &Key) -> Error {
    let message = "a newer incarnation has taken this service id over";
    Error::new(Kind::Superseded, message).at(key)
}

fn too_busy(key: &dyn std::fmt::Display) -> Error {
    Error::new(Kind::Throttled, "too many write this record at once")
        .at(key)
        .retry_as(Retry::Exhausted)
}
