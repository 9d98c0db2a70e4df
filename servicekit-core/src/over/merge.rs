//! Instances and sessions merged into what a reader sees: who is up, and who is lost.

use std::{
    collections::BTreeMap,
    future::{Future, pending},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use async_stream::stream;
use futures_util::{
    StreamExt as _,
    future::{Either, select},
    stream::BoxStream,
};

use super::{
    Oddities,
    instances::{InstanceValue, SessionValue},
};
use crate::{
    Clock, Instance, Instant, Kind, Label, Name, Result, State,
    registry::{Event, SessionRef, Snapshot},
    store::{Change, Life, Record},
};

/// What is known of one label.
pub(super) struct Merge {
    clock: Arc<dyn Clock>,
    oddities: Arc<Oddities>,
    label: Label,
    /// Whether the store tells the end of a session; otherwise its time does.
    server_expiry: bool,
    instances: BTreeMap<Name, Written>,
    sessions: BTreeMap<Name, Known>,
    /// Until when each instance is not declared lost: the store was away, and its node could not beat.
    graces: BTreeMap<Name, Instant>,
    shown: BTreeMap<Name, Arc<Instance>>,
    last_session: Option<Arc<SessionRef>>,
    /// When all instances were last judged.
    judged: Instant,
    /// Until when each instance is given the benefit of the doubt: its session may only be slower to show.
    doubts: BTreeMap<Name, Instant>,
    /// Whether this follows, or only judges once.
    follows: bool,
}

/// How much slower a session may show than an instance that was put after it.
const DOUBT: Duration = Duration::from_secs(1);

/// An instance as it was written.
struct Written {
    session: Arc<SessionRef>,
    instance: Arc<Instance>,
}

/// Which instances a change may have touched.
enum Touched {
    None,
    One(Name),
    Many,
}

/// A session as a reader knows it.
struct Known {
    nonce: String,
    ttl: Duration,
    /// Where the store leaves expiry to observers: when its time is over.
    ends: Option<Instant>,
}

impl Known {
    fn lives(&self, now: Instant) -> bool {
        self.ends.is_none_or(|ends| now < ends)
    }
}

impl Merge {
    pub(super) fn new(
        clock: Arc<dyn Clock>,
        oddities: Arc<Oddities>,
        label: Label,
        server_expiry: bool,
    ) -> Self {
        let (instances, sessions, shown, doubts, graces) = Default::default();
        Self {
            clock,
            oddities,
            label,
            server_expiry,
            instances,
            sessions,
            graces,
            shown,
            last_session: None,
            judged: Instant::from_boot(Duration::ZERO),
            doubts,
            follows: false,
        }
    }

    /// Takes whole groups in.
    pub(super) fn snapshots(&mut self, instances: Vec<Record>, sessions: Vec<Record>) {
        self.instances.clear();
        self.sessions.clear();
        for record in instances {
            self.put_instance(&record);
        }
        for record in sessions {
            self.put_session(&record);
        }
    }

    /// All instances, judged now.
    pub(super) fn snapshot(&self) -> Snapshot {
        let now = self.clock.now();
        let judge = |(name, written)| self.judge(name, written, now);
        Snapshot { instances: self.instances.iter().filter_map(judge).collect() }
    }

    /// Follows both groups for ever. What the instances remember is left out: it is most of their size.
    pub(super) fn follow(
        mut self,
        mut instances: BoxStream<'static, Result<Change>>,
        mut sessions: BoxStream<'static, Result<Change>>,
    ) -> BoxStream<'static, Result<Event>> {
        self.follows = true;
        Box::pin(stream! {
            // Nothing is shown before both groups are known, and again after a failure of either.
            let (mut knows_instances, mut knows_sessions) = (false, false);
            let mut is_away = false;
            let mut afresh = true;
            loop {
                let next = self.next_end().filter(|_| knows_instances && knows_sessions);
                let clock = self.clock.clone();
                let change = {
                    let timer = pin!(maybe(next.map(|at| clock.sleep_until(at))));
                    let either = select(instances.next(), sessions.next());
                    match select(either, timer).await {
                        Either::Right(((), _)) => None,
                        Either::Left((Either::Left((change, _)), _)) => Some((change, true)),
                        Either::Left((Either::Right((change, _)), _)) => Some((change, false)),
                    }
                };
                let touched = match change {
                    None => Touched::Many,
                    Some((None, _)) => {
                        yield Err(crate::Error::new(Kind::Unexpected, "the watch ended"));
                        return;
                    }
                    Some((Some(Err(error)), of_instances)) => {
                        *(if of_instances { &mut knows_instances } else { &mut knows_sessions }) = false;
                        is_away = true;
                        yield Err(error);
                        continue;
                    }
                    Some((Some(Ok(change)), of_instances)) => {
                        if matches!(change, Change::Snapshot(_)) {
                            *(if of_instances { &mut knows_instances } else { &mut knows_sessions }) = true;
                            afresh = true;
                        }
                        if std::mem::take(&mut is_away) {
                            self.begin_graces();
                        }
                        if of_instances { self.take_instance(change) } else { self.take_session(change) }
                    }
                };
                if !(knows_instances && knows_sessions) {
                    continue;
                }
                // Also when the streams keep this too busy for its timer.
                let now = self.clock.now();
                let is_due = self.next_end().is_some_and(|at| at <= now);
                let touched = if is_due { Touched::Many } else { touched };
                if afresh || matches!(touched, Touched::Many) {
                    self.judged = now;
                    self.graces.retain(|_, until| now < *until);
                    self.doubts.retain(|_, until| now < *until);
                }
                if std::mem::take(&mut afresh) {
                    yield Ok(Event::Snapshot(self.show_all()));
                    continue;
                }
                for name in self.names(touched) {
                    if let Some(event) = self.show(&name) {
                        yield Ok(event);
                    }
                }
            }
        })
    }

    fn take_instance(&mut self, change: Change) -> Touched {
        match change {
            Change::Snapshot(records) => {
                self.instances.clear();
                for record in records {
                    self.put_instance(&record);
                }
                Touched::Many
            }
            Change::Put(record) => {
                self.put_instance(&record);
                Touched::One(record.key.name)
            }
            Change::Removed(name) => {
                self.instances.remove(&name);
                Touched::One(name)
            }
        }
    }

    fn take_session(&mut self, change: Change) -> Touched {
        match change {
            Change::Snapshot(records) => {
                self.sessions.clear();
                for record in records {
                    self.put_session(&record);
                }
                Touched::Many
            }
            Change::Put(record) => {
                let now = self.clock.now();
                let known = self.sessions.get(&record.key.name);
                let before =
                    known.filter(|known| known.lives(now)).map(|known| known.nonce.clone());
                self.put_session(&record);
                let known = self.sessions.get(&record.key.name);
                // A beat of a session that lives changes nothing that is shown.
                if before.is_some() && before.as_ref() == known.map(|known| &known.nonce) {
                    Touched::None
                } else {
                    Touched::Many
                }
            }
            Change::Removed(name) => match self.sessions.remove(&name) {
                Some(_) => Touched::Many,
                None => Touched::None,
            },
        }
    }

    fn put_instance(&mut self, record: &Record) {
        let name = record.key.name.clone();
        let value = self.oddities.skip::<InstanceValue>(record);
        let fits = |value: &InstanceValue| {
            value.instance.label == self.label && Name::from(&value.instance.service_id) == name
        };
        match value.filter(|value| !value.removed && !record.is_over() && fits(value)) {
            Some(InstanceValue { session, mut instance, .. }) => {
                if self.follows {
                    instance.changes = Vec::new();
                }
                let now = self.clock.now();
                if self.follows && !self.lives(&session, now) {
                    self.doubts.insert(name.clone(), now + DOUBT);
                }
                // Most instances of a node, and all labels, are equal: one copy will do.
                instance.label = self.label.clone();
                let last = self.last_session.as_ref().filter(|last| ***last == session).cloned();
                let session = last.unwrap_or_else(|| Arc::new(session));
                self.last_session = Some(session.clone());
                let instance = Arc::new(instance);
                self.instances.insert(name, Written { session, instance });
            }
            None => {
                self.instances.remove(&name);
                self.doubts.remove(&name);
                self.graces.remove(&name);
            }
        }
    }

    fn put_session(&mut self, record: &Record) {
        let name = record.key.name.clone();
        let (Some(value), Life::Ephemeral { ttl, left }) =
            (self.oddities.skip::<SessionValue>(record), record.life)
        else {
            self.sessions.remove(&name);
            return;
        };
        let ends = left.filter(|_| !self.server_expiry).map(|left| self.clock.now() + left);
        self.sessions.insert(name, Known { nonce: value.nonce, ttl, ends });
    }

    /// Gives who was alive when it was judged last, before the store was away, one ttl of its session to beat again. Who was
    /// not has no more time than it had: or each outage would keep the dead for another ttl.
    fn begin_graces(&mut self) {
        let now = self.clock.now();
        let alive = self.instances.iter().filter_map(|(name, written)| {
            let known = self.session(&written.session).filter(|known| known.lives(self.judged))?;
            Some((name.clone(), now + known.ttl))
        });
        let alive: Vec<_> = alive.collect();
        self.graces.extend(alive);
    }

    /// An instance as it is to be shown; `None` while that is in doubt and it was never shown.
    fn judge(&self, name: &Name, written: &Written, now: Instant) -> Option<Arc<Instance>> {
        let instance = &written.instance;
        if self.lives(&written.session, now) {
            return Some(instance.clone());
        }
        let shown = self.shown.get(name);
        let has_grace = self.graces.get(name).is_some_and(|until| now < *until);
        if has_grace && shown.is_some_and(|shown| shown.state != State::Lost) {
            return Some(instance.clone());
        }
        if self.doubts.get(name).is_some_and(|until| now < *until) {
            return shown.cloned();
        }
        let reason = format!("its node gives no sign of life (it was {})", instance.state);
        Some(Arc::new(Instance { state: State::Lost, reason, ..Instance::clone(instance) }))
    }

    fn lives(&self, session: &SessionRef, now: Instant) -> bool {
        self.session(session).is_some_and(|known| known.lives(now))
    }

    fn session(&self, session: &SessionRef) -> Option<&Known> {
        self.sessions.get(&session.name).filter(|known| known.nonce == session.nonce)
    }

    /// The names of the instances that may have to be shown anew.
    fn names(&self, touched: Touched) -> Vec<Name> {
        match touched {
            Touched::None => Vec::new(),
            Touched::One(name) => vec![name],
            Touched::Many => {
                let gone = self.shown.keys().filter(|name| !self.instances.contains_key(*name));
                gone.chain(self.instances.keys()).cloned().collect()
            }
        }
    }

    /// Shows everything.
    fn show_all(&mut self) -> Snapshot {
        let snapshot = self.snapshot();
        let by_name =
            |instance: &Arc<Instance>| (Name::from(&instance.service_id), instance.clone());
        self.shown = snapshot.instances.iter().map(by_name).collect();
        snapshot
    }

    /// Shows one instance, where that tells anything new.
    fn show(&mut self, name: &Name) -> Option<Event> {
        let written = self.instances.get(name);
        match written.and_then(|written| self.judge(name, written, self.clock.now())) {
            Some(instance) if self.shown.get(name) == Some(&instance) => None,
            Some(instance) => {
                self.shown.insert(name.clone(), instance.clone());
                Some(Event::Changed(instance))
            }
            None => self.shown.remove(name).map(|gone| Event::Removed(gone.service_id.clone())),
        }
    }

    /// When the next session ends, or a doubt or a grace.
    fn next_end(&self) -> Option<Instant> {
        let ends = self.sessions.values().filter_map(|session| session.ends);
        let given = self.doubts.values().chain(self.graces.values()).copied();
        ends.chain(given).filter(|at| *at > self.judged).min()
    }
}

async fn maybe(timer: Option<impl Future<Output = ()>>) {
    match timer {
        Some(timer) => timer.await,
        None => pending().await,
    }
}
