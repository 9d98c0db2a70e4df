use std::{collections::BTreeMap, convert::Infallible, fmt, sync::Arc, time::Duration};

use servicekit_core::{
    Env, Error, Instance, Label, LeaseProvider, Registry, ServiceId, State, Timestamp,
    clock::timeout,
    health::{Probe, Thresholds},
    instance::Info,
    lease::Token,
    registry::InstanceKey,
};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
};

use crate::{
    grants::{self, Grants},
    monitor,
    node::Node,
    registration::{self, Ended},
    session,
};

/// Probes services, and keeps their instances registered under one session.
///
/// It fails static: while the store is away, probing goes on, and the latest state is written when the store is back. After
/// a lost session it opens another one and puts what is still wanted, and nothing else.
#[derive(Debug)]
pub struct Agent {
    registry: Arc<dyn Registry>,
    leases: Arc<dyn LeaseProvider>,
    env: Env,
    options: Options,
}

/// How an [`Agent`] shows in the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "made by callers")]
pub struct Options {
    /// The name of this process's node, for people.
    pub node: String,
    /// How long after the last beat readers take the instances for lost. It beats every third of this.
    pub ttl: Duration,
}

/// A service to probe, and the instance of it to keep registered.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "made by callers")]
pub struct Service {
    /// The service.
    pub label: Label,
    /// Which of its instances.
    pub service_id: ServiceId,
    /// A host name or address, without port.
    pub host: String,
    /// The port, where there is one.
    pub port: Option<u16>,
    /// Its share of the load, relative to the others.
    pub weight: u32,
    /// Where it runs.
    pub zone: Option<String>,
    /// What readers should know.
    pub info: Info,
    /// What is asked in every round; all of them must pass. Without any, the service is up while the agent runs.
    pub probes: Vec<Arc<dyn Probe>>,
    /// From the start of one round of probes to the start of the next, give or take a tenth. A round that takes longer
    /// delays the next.
    pub interval: Duration,
    /// How many verdicts in a row make a change.
    pub thresholds: Thresholds,
}

/// Something that an operator may want to see.
#[derive(Debug)]
#[non_exhaustive]
pub enum Report {
    /// A service is in another state.
    Changed {
        /// The service.
        label: Label,
        /// Which of its instances.
        service_id: ServiceId,
        /// The state before.
        from: State,
        /// The state now.
        to: State,
        /// What the probes said, and the rule.
        reason: String,
    },
    /// The store does not take what the agent has to say; told once until [`Report::StoreBack`], and once more when an outage
    /// becomes a refusal: `Denied`, `Invalid` or `Unsupported`.
    StoreAway(Error),
    /// The store has taken everything again.
    StoreBack,
    /// The session has ended, and the instances were lost for a while; another session is being opened.
    SessionLost,
    /// Another process has taken this instance over; it is neither probed nor registered any more.
    Superseded {
        /// The service.
        label: Label,
        /// Which of its instances.
        service_id: ServiceId,
    },
    /// The agent stops, and could not remove these instances.
    Left {
        /// What may still be in the store.
        instances: Vec<InstanceKey>,
        /// When readers take them for lost at the latest; zero when they do so already.
        lost_within: Duration,
    },
    /// A service is well, and the unattended lease that ordered its start was given back.
    LeaseReleased {
        /// The service, and the lease.
        label: Label,
        /// Whose lease it was.
        service_id: ServiceId,
        /// The token of the grant.
        token: Token,
    },
}

/// Why an agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "callers decide by each")]
pub enum Outcome {
    /// It was told to.
    Stopped,
    /// Every service was taken over by another process.
    Superseded,
}

/// How long instances may take to be removed on stopping, and the session after them to be closed.
const REMOVE_WITHIN: Duration = Duration::from_secs(4);
const CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// First probes are spread by this much for every service, so that a thousand do not start at once.
const SPREAD: Duration = Duration::from_millis(1);

impl Service {
    /// A service of weight 100 without port, zone or probes; they would run every 5 seconds with default thresholds.
    pub fn new(label: Label, service_id: ServiceId, host: impl Into<String>) -> Self {
        Self {
            label,
            service_id,
            host: host.into(),
            port: None,
            weight: 100,
            zone: None,
            info: Info::default(),
            probes: Vec::new(),
            interval: Duration::from_secs(5),
            thresholds: Thresholds::default(),
        }
    }

    pub(crate) fn key(&self) -> InstanceKey {
        InstanceKey { label: self.label.clone(), service_id: self.service_id.clone() }
    }

    pub(crate) fn starting(&self, now: Timestamp) -> Instance {
        let instance =
            Instance::starting(self.label.clone(), self.service_id.clone(), &*self.host, now);
        Instance {
            port: self.port,
            weight: self.weight,
            zone: self.zone.clone(),
            info: self.info.clone(),
            ..instance
        }
    }
}

impl Agent {
    /// An agent that has not begun.
    pub fn new(
        registry: Arc<dyn Registry>,
        leases: Arc<dyn LeaseProvider>,
        env: Env,
        options: Options,
    ) -> Self {
        Self { registry, leases, env, options }
    }

    /// Probes and registers `services`, each under a key of its own, until `stop` ends or all were taken over.
    ///
    /// On stopping it removes its own instances and closes its session, within 5 seconds; what a store that is away does not
    /// take by then ends with the session's ttl, and is reported as [`Report::Left`]. `report` is called from this future, in order.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends all probes. The instances stay registered until the session's ttl is over.
    pub async fn run(
        self,
        services: Vec<Service>,
        stop: impl Future<Output = ()> + Send,
        mut report: impl FnMut(Report) + Send,
    ) -> Outcome {
        let (reports, mut inbox) = mpsc::unbounded_channel();
        let Self { registry, leases, env, options } = self;
        let node = Arc::new(Node::new(registry, leases, env, options, reports));
        let outcome = {
            let mut work = std::pin::pin!(work(&node, services, stop));
            loop {
                tokio::select! {
                    biased;
                    Some(next) = inbox.recv() => report(next),
                    outcome = &mut work => break outcome,
                }
            }
        };
        while let Ok(next) = inbox.try_recv() {
            report(next);
        }
        outcome
    }
}

async fn work(
    node: &Arc<Node>,
    services: Vec<Service>,
    stop: impl Future<Output = ()> + Send,
) -> Outcome {
    if services.is_empty() {
        stop.await;
        return Outcome::Stopped;
    }
    let mut tasks = JoinSet::new();
    let mut taken_over = BTreeMap::new();
    let mut all_grants = Vec::new();
    let spread = SPREAD * u32::try_from(services.len() - 1).unwrap_or(u32::MAX);
    for service in services {
        let notice = Arc::new(Notify::new());
        taken_over.insert(service.key(), notice.clone());
        let grants = Arc::new(Grants::new(service.key()));
        all_grants.push(grants.clone());
        let micros = spread.min(service.interval).as_micros();
        let delay = node.env.random.below(u64::try_from(micros).unwrap_or(u64::MAX));
        let delay = Duration::from_micros(delay);
        tasks.spawn(attend(node.clone(), service, delay, grants, notice));
    }
    let outcome = tokio::select! {
        never = session::hold(node, &taken_over) => match never {},
        never = grants::survey(node, &all_grants) => match never {},
        outcome = until_all_ended(&mut tasks) => outcome,
        () = async {
            stop.await;
            node.halt();
            node.env.clock.sleep(REMOVE_WITHIN).await;
        } => Outcome::Stopped,
    };
    tasks.shutdown().await;
    let mut lost_within = Duration::ZERO;
    if let Some(session) = node.session() {
        let closed = timeout(&*node.env.clock, CLOSE_WITHIN, node.registry.close(&session)).await;
        if !matches!(closed, Ok(Ok(()))) {
            tracing::debug!(?closed, "the session was not closed, and ends by its ttl");
            lost_within = node.options.ttl;
        }
    }
    let instances: Vec<_> = std::mem::take(&mut *node.registered()).into_iter().collect();
    if !instances.is_empty() {
        node.report(Report::Left { instances, lost_within });
    }
    outcome
}

/// Attends to one service until the node halts or another process takes the instance over.
async fn attend(
    node: Arc<Node>,
    service: Service,
    delay: Duration,
    grants: Arc<Grants>,
    taken_over: Arc<Notify>,
) -> Ended {
    let (states, state) = tokio::sync::watch::channel(service.starting(node.env.clock.wall()));
    let probing = async {
        node.env.clock.sleep(delay).await;
        tokio::select! {
            never = monitor::watch(&node, &service, states, &grants) => match never {},
            // On its own, so that a store that is slow to tell about leases does not delay a probe.
            never = grants::follow(&node, &grants) => match never {},
        }
    };
    let until_halted = async {
        tokio::select! {
            () = probing => {}
            () = node.halted() => {}
        }
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        biased;
        ended = registration::keep(&node, service.key(), state, &taken_over) => ended,
        never = until_halted => match never {},
    }
}

async fn until_all_ended(tasks: &mut JoinSet<Ended>) -> Outcome {
    let mut outcome = Outcome::Superseded;
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(Ended::Superseded) => {}
            Ok(Ended::Halted) => outcome = Outcome::Stopped,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => outcome = Outcome::Stopped,
        }
    }
    outcome
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed { label, service_id, from, to, reason } => {
                write!(f, "{label}/{service_id}: {from} -> {to}: {reason}")
            }
            Self::StoreAway(error) => {
                write!(f, "the store is away, probing goes on: {error}")
            }
            Self::StoreBack => f.write_str("the store is back"),
            Self::SessionLost => f.write_str("the session was lost, opening another"),
            Self::Superseded { label, service_id } => {
                write!(f, "{label}/{service_id}: taken over by another process")
            }
            Self::Left { instances, lost_within } => {
                f.write_str("not removed, and lost ")?;
                match *lost_within {
                    Duration::ZERO => f.write_str("by now:")?,
                    time => write!(f, "within {time:?}:")?,
                }
                let mut keys = instances.iter();
                keys.try_for_each(|key| write!(f, " {}/{}", key.label, key.service_id))
            }
            Self::LeaseReleased { label, service_id, token } => {
                write!(f, "{label}/{service_id}: released its start-up lease (token {token})")
            }
        }
    }
}
