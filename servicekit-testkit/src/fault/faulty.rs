use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_stream::stream;
use async_trait::async_trait;
use futures_util::{
    StreamExt as _,
    future::{BoxFuture, Either, select},
    stream::BoxStream,
};
use servicekit_core::{
    Capabilities, Clock, Error, Kind, Random, Result, Retry,
    store::{Change, Group, Key, Put, Record, Store, Version, WriteId},
};
use tokio::sync::watch;

use super::{Fault, Plan};

/// A store in front of another one, that fails by plan, by script, or altogether. Clones share everything.
#[derive(Clone, Debug)]
pub struct Faulty(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    random: Random,
    state: Mutex<State>,
    /// How often the store went away or came back: while it is away, an odd number.
    turns: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    plan: Plan,
    /// How many requests pass before the fault.
    script: Option<(usize, Fault)>,
    /// What was answered before, by groups.
    answers: BTreeMap<Vec<Group>, VecDeque<Vec<Record>>>,
}

/// What happens to one request.
struct Fate {
    fault: Option<Fault>,
    /// How long it is on its way.
    before: Duration,
    /// How long its answer is.
    after: Duration,
}

/// How many earlier answers a stale list is drawn from.
const REMEMBERED_ANSWERS: usize = 4;
/// How long a follower is without a connection after one broke.
const RECONNECT: Duration = Duration::from_millis(100);

impl Faulty {
    /// A store in front of `store` that does not fail yet.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, seed: u64) -> Self {
        let state = State { plan: Plan::NONE, script: None, answers: BTreeMap::new() };
        Self(Arc::new(Inner {
            store,
            clock,
            random: Random::seeded(seed),
            state: Mutex::new(state),
            turns: watch::Sender::new(0),
        }))
    }

    /// From now on, fail by this plan.
    pub fn follow(&self, plan: Plan) {
        self.state().plan = plan;
    }

    /// Lets `passed` more requests pass, and does `fault` to the next.
    pub fn script(&self, passed: usize, fault: Fault) {
        self.state().script = Some((passed, fault));
    }

    /// Forgets the scripted fault, if it is still to come.
    pub fn unscript(&self) {
        self.state().script = None;
    }

    /// Whether the scripted fault is still to come.
    #[must_use]
    pub fn is_scripted(&self) -> bool {
        self.state().script.is_some()
    }

    /// From now on, answer nothing, not even what is on its way.
    pub fn away(&self) {
        self.0.turns.send_if_modified(|turns| turn(turns, true));
    }

    /// Answer again.
    pub fn back(&self) {
        self.0.turns.send_if_modified(|turns| turn(turns, false));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turns(&self) -> u64 {
        *self.0.turns.borrow()
    }

    fn draw(&self, is_write: bool) -> Fate {
        let mut state = self.state();
        let (plan, random) = (state.plan, &self.0.random);
        let (before, after) = (delay(random, plan), delay(random, plan));
        let scripted = match &mut state.script {
            Some((0, fault)) => Some(*fault),
            Some((passed, _)) => {
                *passed -= 1;
                None
            }
            None => None,
        };
        if scripted.is_some() {
            state.script = None;
        }
        let fault = if scripted.is_some() {
            scripted
        } else if random.chance(plan.fail_before) {
            Some(Fault::FailBefore)
        } else if is_write && random.chance(plan.lose_answer) {
            Some(Fault::LoseAnswer)
        } else if is_write && random.chance(plan.apply_late) {
            Some(Fault::ApplyLate(part(random, plan.latest)))
        } else {
            None
        };
        Fate { fault, before, after }
    }

    /// Sends one request, and lets its fate have its way.
    async fn send<T: Send + 'static>(
        &self,
        is_write: bool,
        request: impl FnOnce(Arc<dyn Store>) -> BoxFuture<'static, Result<T>> + Send,
    ) -> Result<T> {
        let Fate { fault, before, mut after } = self.draw(is_write);
        let Inner { store, clock, .. } = &*self.0;
        pause(&**clock, before).await;
        let turns = self.turns();
        if is_away(turns) {
            return Err(unavailable());
        }
        match fault {
            None => {}
            Some(Fault::FailBefore) => return Err(unavailable()),
            Some(Fault::LoseAnswer) => {
                let _ = request(store.clone()).await;
                return Err(lost(is_write));
            }
            Some(Fault::ApplyLate(late)) => {
                let (request, clock) = (request(store.clone()), clock.clone());
                tokio::spawn(async move {
                    clock.sleep(late).await;
                    let _ = request.await;
                });
                return Err(lost(is_write));
            }
            Some(Fault::SlowAnswer(slow)) => after += slow,
        }
        let answer = request(store.clone()).await;
        pause(&**clock, after).await;
        if self.turns() == turns { answer } else { Err(lost(is_write)) }
    }

    /// Remembers an answer, and gives it or an earlier one.
    fn perhaps_stale(&self, groups: &[Group], answer: Vec<Record>) -> Vec<Record> {
        let mut state = self.state();
        let rate = state.plan.stale_list;
        let answers = state.answers.entry(groups.to_vec()).or_default();
        answers.push_back(answer.clone());
        if answers.len() > REMEMBERED_ANSWERS {
            answers.pop_front();
        }
        let which = self.0.random.below(answers.len() as u64);
        if self.0.random.chance(rate) {
            let earlier = usize::try_from(which).ok().and_then(|which| answers.get(which));
            return earlier.cloned().unwrap_or(answer);
        }
        answer
    }

    /// How long a change is on its way to a follower, or `None` when the connection breaks instead.
    fn draw_change(&self) -> Option<Duration> {
        let (plan, random) = (self.state().plan, &self.0.random);
        let delay = delay(random, plan);
        (!random.chance(plan.break_watch)).then_some(delay)
    }
}

fn is_away(turns: u64) -> bool {
    turns % 2 == 1
}

/// Goes away or comes back, unless that is done already.
fn turn(turns: &mut u64, away: bool) -> bool {
    let changes = is_away(*turns) != away;
    *turns += u64::from(changes);
    changes
}

fn delay(random: &Random, plan: Plan) -> Duration {
    if random.chance(plan.delay) { part(random, plan.slowest) } else { Duration::ZERO }
}

fn part(random: &Random, longest: Duration) -> Duration {
    Duration::from_micros(random.below(u64::try_from(longest.as_micros()).unwrap_or(u64::MAX)))
}

/// Not even a pause of no length where there is none: it would let other tasks go first.
async fn pause(clock: &dyn Clock, duration: Duration) {
    if !duration.is_zero() {
        clock.sleep(duration).await;
    }
}

fn unavailable() -> Error {
    Error::new(Kind::Unavailable, "connection refused, by plan").retry_as(Retry::Safe)
}

fn lost(is_write: bool) -> Error {
    let retry = if is_write { Retry::Unknown } else { Retry::Safe };
    Error::new(Kind::Timeout, "no answer, by plan").retry_as(retry)
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Store for Faulty {
    fn capabilities(&self) -> Capabilities {
        let capabilities = self.0.store.capabilities();
        let linearizable = capabilities.linearizable && self.state().plan.stale_list == 0.0;
        Capabilities { linearizable, ..capabilities }
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        let key = key.clone();
        self.send(false, |store| Box::pin(async move { store.get(&key).await })).await
    }

    async fn put(&self, put: &Put) -> Result<Version> {
        let put = put.clone();
        self.send(true, |store| Box::pin(async move { store.put(&put).await })).await
    }

    async fn touch(&self, key: &Key, write: &WriteId) -> Result<Version> {
        let (key, write) = (key.clone(), write.clone());
        self.send(true, |store| Box::pin(async move { store.touch(&key, &write).await })).await
    }

    async fn delete(&self, key: &Key, version: &Version) -> Result<()> {
        let (key, version) = (key.clone(), version.clone());
        self.send(true, |store| Box::pin(async move { store.delete(&key, &version).await })).await
    }

    async fn list(&self, groups: &[Group]) -> Result<Vec<Record>> {
        let asked = groups.to_vec();
        let request = |store: Arc<dyn Store>| -> BoxFuture<'static, _> {
            Box::pin(async move { store.list(&asked).await })
        };
        let answer = self.send(false, request).await?;
        Ok(self.perhaps_stale(groups, answer))
    }

    fn watch(&self, group: &Group) -> BoxStream<'static, Result<Change>> {
        let (faulty, group) = (self.clone(), group.clone());
        Box::pin(stream! {
            let Inner { store, clock, turns, .. } = &*faulty.0;
            let mut turns = turns.subscribe();
            loop {
                if is_away(*turns.borrow()) {
                    yield Err(unavailable());
                    if turns.wait_for(|turns| !is_away(*turns)).await.is_err() {
                        return;
                    }
                }
                let connected = *turns.borrow();
                let mut changes = store.watch(&group);
                loop {
                    let next = {
                        let gone = std::pin::pin!(turns.wait_for(|turns| *turns != connected));
                        match select(gone, changes.next()).await {
                            Either::Left(_) => None,
                            Either::Right((change, _)) => Some(change),
                        }
                    };
                    let change = match next {
                        Some(Some(change)) => change,
                        Some(None) => return,
                        // It may be back already: what happened meanwhile was missed all the same.
                        None if is_away(*turns.borrow()) => break,
                        None => {
                            yield Err(unavailable());
                            break;
                        }
                    };
                    let Some(delay) = faulty.draw_change() else {
                        yield Err(unavailable());
                        clock.sleep(RECONNECT).await;
                        break;
                    };
                    pause(&**clock, delay).await;
                    yield change;
                }
            }
        })
    }
}
