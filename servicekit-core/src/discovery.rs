//! A live list of who is up, that outlives the store.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures_util::StreamExt as _;
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    Env, Instance, Instant, Label, Registry, Result, ServiceId, State,
    registry::{Event, Snapshot},
};

/// What to follow, and when to distrust it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    labels: Vec<Label>,
    panic_threshold: f64,
}

impl Options {
    /// Follows these labels.
    #[must_use]
    pub fn labels(labels: impl IntoIterator<Item = Label>) -> Self {
        Self { labels: labels.into_iter().collect(), panic_threshold: 0.0 }
    }

    /// When less than this share (0.0 to 1.0) of the registered instances is up, keep the list from before: more likely than
    /// that so many died at once is that their monitoring did. 0.0, the default, never does.
    #[must_use]
    pub fn with_panic_threshold(self, share: f64) -> Self {
        Self { panic_threshold: share.clamp(0.0, 1.0), ..self }
    }
}

/// A live list of the instances that are up, for any number of labels.
///
/// It asks the store for nothing: a task follows each label, and [`View::list`] reads memory. While the store is away it keeps
/// the last known good list, and says how old it is.
#[derive(Debug)]
pub struct View {
    lists: Arc<Lists>,
    env: Env,
    followers: Vec<JoinHandle<()>>,
}

/// The instances of one label that are up, as last known.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct List {
    /// Those that are up, in the order of their ids; what they remember of their changes is left out.
    pub up: Vec<Arc<Instance>>,
    /// Whether this is a list from before, because too few of it were left.
    pub panicking: bool,
    /// Since when the store has not been heard of; `None` while it answers.
    pub stale_since: Option<Instant>,
}

#[derive(Debug)]
struct Lists {
    by_label: BTreeMap<Label, Slot>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Slot {
    list: RwLock<Option<Arc<List>>>,
}

impl View {
    /// Begins to follow. Use [`View::ready`] to wait for the first lists.
    #[must_use]
    pub fn open(registry: &Arc<dyn Registry>, options: Options, env: Env) -> Self {
        let by_label =
            options.labels.iter().map(|label| (label.clone(), Slot::default())).collect();
        let lists = Arc::new(Lists { by_label, changes: watch::Sender::new(0) });
        let followers = options
            .labels
            .into_iter()
            .map(|label| {
                let follower = Follower {
                    registry: registry.clone(),
                    lists: lists.clone(),
                    env: env.clone(),
                    threshold: options.panic_threshold,
                    known: BTreeMap::new(),
                    good: Vec::new(),
                    label,
                };
                tokio::spawn(follower.run())
            })
            .collect();
        Self { lists, env, followers }
    }

    /// Waits until every label was heard of once.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn ready(&self) {
        let mut changes = self.lists.changes.subscribe();
        while self.lists.by_label.values().any(|slot| slot.read().is_none()) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// The list of a label; `None` for one that is not followed, or was not heard of yet. It costs no request and no
    /// allocation.
    #[must_use]
    pub fn list(&self, label: &Label) -> Option<Arc<List>> {
        self.lists.by_label.get(label)?.read()
    }

    /// How long ago the store was last heard of, for a label; zero while it answers.
    #[must_use]
    pub fn age(&self, label: &Label) -> Option<Duration> {
        let list = self.list(label)?;
        Some(list.stale_since.map_or(Duration::ZERO, |since| self.env.clock.now().since(since)))
    }

    /// Waits until any list changes after this call.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn changed(&self) {
        let mut changes = self.lists.changes.subscribe();
        // The sender lives as long as the view.
        let _ = changes.changed().await;
    }
}

impl Drop for View {
    fn drop(&mut self) {
        for follower in &self.followers {
            follower.abort();
        }
    }
}

impl Slot {
    fn read(&self) -> Option<Arc<List>> {
        self.list.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Follows one label.
struct Follower {
    registry: Arc<dyn Registry>,
    lists: Arc<Lists>,
    env: Env,
    threshold: f64,
    label: Label,
    known: BTreeMap<ServiceId, Arc<Instance>>,
    /// What was up when enough were.
    good: Vec<ServiceId>,
}

impl Follower {
    async fn run(mut self) {
        let mut events = self.registry.watch(&self.label);
        while let Some(event) = events.next().await {
            self.take(event);
        }
    }

    fn take(&mut self, event: Result<Event>) {
        match event {
            Ok(Event::Snapshot(Snapshot { instances })) => {
                self.known = instances.into_iter().map(by_id).collect();
            }
            Ok(Event::Changed(instance)) => {
                self.known.insert(instance.service_id.clone(), instance);
            }
            Ok(Event::Removed(id)) => drop(self.known.remove(&id)),
            Err(error) => {
                tracing::debug!(label = %self.label, %error, "the view is stale");
                self.age();
                return;
            }
        }
        let list = self.judge();
        self.publish(list);
    }

    /// Keeps the list, and says that it is old.
    fn age(&self) {
        let Some(slot) = self.lists.by_label.get(&self.label) else {
            return;
        };
        if let Some(list) = slot.read().filter(|list| list.stale_since.is_none()) {
            self.publish(List { stale_since: Some(self.env.clock.now()), ..(*list).clone() });
        }
    }

    /// What to show. An instance that was removed is never kept: that was somebody's will.
    fn judge(&mut self) -> List {
        let up = || self.known.values().filter(|instance| instance.state == State::Up);
        self.good.retain(|id| self.known.contains_key(id));
        let panicking = (up().count() as f64) < self.threshold * self.known.len() as f64;
        if !panicking {
            self.good = up().map(|instance| instance.service_id.clone()).collect();
        }
        let shown = self.good.iter().filter_map(|id| self.known.get(id)).cloned().collect();
        List { up: shown, panicking, stale_since: None }
    }

    fn publish(&self, list: List) {
        if let Some(slot) = self.lists.by_label.get(&self.label) {
            *slot.list.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(list));
        }
        self.lists.changes.send_modify(|changes| *changes += 1);
    }
}

fn by_id(instance: Arc<Instance>) -> (ServiceId, Arc<Instance>) {
    (instance.service_id.clone(), instance)
}
