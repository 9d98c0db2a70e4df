//! An agent on a store that fails when it is told to, under a clock that jumps from one event to the next.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use servicekit_agent::{Agent, Options, Outcome, Report, Service};
use servicekit_core::{
    Backend, Capabilities, Clock as _, Env, Error, Instance, Kind, Namespace, Random, Result,
    Retry, State,
    health::{Probe, Verdict},
    store::{Change, Group, Key, Limits, Memory, Profile, Put, Record, Store, Version, WriteId},
};
use servicekit_testkit::sim::SimClock;
use tokio::{
    sync::{Semaphore, oneshot},
    task::JoinHandle,
};

pub(crate) const TTL: Duration = Duration::from_secs(15);
pub(crate) const BEAT: Duration = Duration::from_secs(5);

/// A store, and a backend over it.
pub(crate) struct World {
    pub(crate) env: Env,
    pub(crate) clock: SimClock,
    pub(crate) memory: Memory,
    pub(crate) store: Arc<Faulty>,
    pub(crate) backend: Backend,
}

impl World {
    /// Needs a runtime whose time is paused.
    pub(crate) fn new() -> Self {
        let (attempt, total) = (Duration::from_millis(500), Duration::from_secs(1));
        Self::with(Limits { attempt, total })
    }

    pub(crate) fn with(limits: Limits) -> Self {
        let clock = SimClock::new();
        let env = Env { clock: Arc::new(clock.clone()), random: Random::seeded(7) };
        let memory = Memory::new(env.clone(), Profile::Server);
        let store = Arc::new(Faulty::over(memory.clone(), clock.clone()));
        let namespace = Namespace::default();
        let backend = Backend::over("faulty", store.clone(), namespace, env.clone(), limits);
        Self { env, clock, memory, store, backend }
    }

    pub(crate) fn run(&self, services: Vec<Service>) -> Running {
        let Backend { registry, leases, .. } = self.backend.clone();
        let options = Options { node: "test".into(), ttl: TTL };
        let agent = Agent::new(registry, leases, self.env.clone(), options);
        let (stop, stopped) = oneshot::channel::<()>();
        let reports = Arc::new(Mutex::new(Vec::new()));
        let log = reports.clone();
        let report = move |report: Report| log.lock().unwrap().push(report.to_string());
        let task = tokio::spawn(async move {
            agent.run(services, async { drop(stopped.await) }, report).await
        });
        Running { stop, task, reports }
    }

    /// The instances of the label `web`, as anybody reads them; needs a store that is there.
    pub(crate) async fn list(&self) -> Vec<Arc<Instance>> {
        self.backend.registry.list(&"web".parse().unwrap()).await.unwrap().instances
    }

    pub(crate) async fn state(&self, id: &str) -> Option<State> {
        let listed = self.list().await;
        listed.iter().find(|instance| instance.service_id.as_str() == id).map(|found| found.state)
    }

    pub(crate) async fn sessions(&self) -> Vec<Record> {
        self.memory.list(&[Group::of(&Namespace::default(), "sessions")]).await.unwrap()
    }

    pub(crate) async fn pass(&self, time: Duration) {
        self.env.clock.sleep(time).await;
    }

    /// Waits until `condition` holds, for at most ten minutes of the paused clock.
    pub(crate) async fn until<F: Future<Output = bool>>(&self, mut condition: impl FnMut() -> F) {
        let deadline = self.env.clock.now() + Duration::from_secs(600);
        while !condition().await {
            assert!(self.env.clock.now() < deadline, "it does not happen");
            self.pass(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn until_state(&self, id: &str, state: State) {
        self.until(async || self.state(id).await == Some(state)).await;
    }
}

/// An agent at work.
pub(crate) struct Running {
    stop: oneshot::Sender<()>,
    pub(crate) task: JoinHandle<Outcome>,
    pub(crate) reports: Arc<Mutex<Vec<String>>>,
}

impl Running {
    /// How many reports contain `text`.
    pub(crate) fn reported(&self, text: &str) -> usize {
        self.reports.lock().unwrap().iter().filter(|report| report.contains(text)).count()
    }

    pub(crate) fn reports(&self) -> Vec<String> {
        self.reports.lock().unwrap().clone()
    }

    pub(crate) async fn stop(self) -> Outcome {
        let _ = self.stop.send(());
        self.task.await.unwrap()
    }
}

/// A probe that says what it is told to, and takes as long as it is told to.
#[derive(Debug)]
pub(crate) struct Scripted {
    verdict: Mutex<Verdict>,
    /// How many checks began.
    pub(crate) began: AtomicUsize,
    /// How many run now, and the most that ever did.
    running: AtomicUsize,
    pub(crate) most_running: AtomicUsize,
    /// A check ends when it gets a permit.
    gate: Semaphore,
}

impl Scripted {
    pub(crate) fn passing() -> Arc<Self> {
        let probe = Self::gated();
        probe.open(Semaphore::MAX_PERMITS >> 1);
        probe
    }

    /// Checks hang until [`Scripted::open`] lets so many of them end.
    pub(crate) fn gated() -> Arc<Self> {
        Arc::new(Self {
            verdict: Mutex::new(Verdict::Pass("fine".into())),
            began: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            most_running: AtomicUsize::new(0),
            gate: Semaphore::new(0),
        })
    }

    pub(crate) fn open(&self, checks: usize) {
        self.gate.add_permits(checks);
    }

    pub(crate) fn pass(&self) {
        *self.verdict.lock().unwrap() = Verdict::Pass("fine".into());
    }

    pub(crate) fn fail(&self, why: &str) {
        *self.verdict.lock().unwrap() = Verdict::Fail(why.into());
    }

    pub(crate) fn began(&self) -> usize {
        self.began.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Probe for Scripted {
    async fn check(&self) -> Verdict {
        self.began.fetch_add(1, Ordering::Relaxed);
        let running = self.running.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_running.fetch_max(running, Ordering::Relaxed);
        self.gate.acquire().await.unwrap().forget();
        self.running.fetch_sub(1, Ordering::Relaxed);
        self.verdict.lock().unwrap().clone()
    }
}

/// The instance `web/ID` on host `h`, probed every second.
pub(crate) fn service(id: &str, probe: &Arc<Scripted>) -> Service {
    Service {
        probes: vec![probe.clone()],
        interval: Duration::from_secs(1),
        ..Service::new("web".parse().unwrap(), id.parse().unwrap(), "h")
    }
}

/// A store that is there, away, or silent.
#[derive(Debug)]
pub(crate) struct Faulty {
    memory: Memory,
    mode: AtomicU8,
    /// How many puts of instances were applied.
    pub(crate) instance_puts: AtomicUsize,
    /// How long every put takes.
    pub(crate) slow: Mutex<Duration>,
    clock: SimClock,
}

const THERE: u8 = 0;
const AWAY: u8 = 1;
const SILENT: u8 = 2;

impl Faulty {
    fn over(memory: Memory, clock: SimClock) -> Self {
        Self {
            memory,
            mode: AtomicU8::new(THERE),
            instance_puts: AtomicUsize::new(0),
            slow: Mutex::default(),
            clock,
        }
    }

    pub(crate) fn come_back(&self) {
        self.mode.store(THERE, Ordering::Relaxed);
    }

    /// Every request is refused.
    pub(crate) fn go_away(&self) {
        self.mode.store(AWAY, Ordering::Relaxed);
    }

    /// No request is answered.
    pub(crate) fn fall_silent(&self) {
        self.mode.store(SILENT, Ordering::Relaxed);
    }

    async fn pass(&self) -> Result<()> {
        match self.mode.load(Ordering::Relaxed) {
            THERE => Ok(()),
            AWAY => Err(Error::new(Kind::Unavailable, "unplugged").retry_as(Retry::Safe)),
            _ => std::future::pending().await,
        }
    }
}

#[async_trait]
impl Store for Faulty {
    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        self.pass().await?;
        self.memory.get(key).await
    }

    async fn put(&self, put: &Put) -> Result<Version> {
        self.pass().await?;
        let slow = *self.slow.lock().unwrap();
        let (clock, memory, late) = (self.clock.clone(), self.memory.clone(), put.clone());
        // On its own: what was sent is applied, whether anybody waits for the answer or not.
        let applied = tokio::spawn(async move {
            clock.sleep(slow).await;
            memory.put(&late).await
        });
        let version = applied.await.unwrap()?;
        if put.key.group.as_str().contains("/instances/") {
            self.instance_puts.fetch_add(1, Ordering::Relaxed);
        }
        Ok(version)
    }

    async fn touch(&self, key: &Key, write: &WriteId) -> Result<Version> {
        self.pass().await?;
        self.memory.touch(key, write).await
    }

    async fn delete(&self, key: &Key, version: &Version) -> Result<()> {
        self.pass().await?;
        self.memory.delete(key, version).await
    }

    async fn list(&self, groups: &[Group]) -> Result<Vec<Record>> {
        self.pass().await?;
        self.memory.list(groups).await
    }

    fn watch(&self, group: &Group) -> BoxStream<'static, Result<Change>> {
        self.memory.watch(group)
    }
}
