//! Three servers that lose each other, while a fleet is registered and contends for leases: nothing may overlap, nobody may
//! be missing for long, and nothing that was removed may come back. As many rounds as `SERVICEKIT_ROUNDS` says.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use etcd_client::Client;
use futures_util::{
    StreamExt as _,
    future::{Either, join_all, select},
};
use servicekit_agent::{Agent, Options, Report, Service};
use servicekit_core::{
    Backend, Env, Instant, Label, Namespace, Random, ServiceId,
    lease::{Granted, Guard, Request, Standing, Term, Ticket, margin},
    store::Limits,
};
use servicekit_etcd::{Config, Etcd};
use servicekit_testkit::{
    history::{Attempt, End, History},
    server,
};

/// So many unless the environment says otherwise.
const ROUNDS: u64 = 4;

const NODES: usize = 20;
const INSTANCES_OF_EACH: usize = 10;
const CONTENDERS: usize = 20;
const LEASES: usize = 3;

/// How long a node that does not beat is taken for alive, and a grant that is not renewed stands.
const TTL: Duration = Duration::from_secs(6);

/// How long a member is away at most: also for longer than leases of etcd last.
const LONGEST_OUTAGE: Duration = Duration::from_secs(8);

#[derive(Clone, Copy, Debug)]
enum Fault {
    KillLeader,
    KillFollower,
    /// It stands still for longer than an election takes, and wakes up believing that it leads.
    PauseLeader,
    PauseFollower,
    /// It leads on for as long as nobody tells it that another does, and its clients reach it.
    IsolateLeader,
    IsolateFollower,
    RestartAll,
}

const FAULTS: [Fault; 7] = [
    Fault::KillLeader,
    Fault::PauseLeader,
    Fault::IsolateLeader,
    Fault::RestartAll,
    Fault::KillFollower,
    Fault::PauseFollower,
    Fault::IsolateFollower,
];

struct Fleet {
    env: Env,
    endpoints: String,
    ended: AtomicBool,
    histories: Vec<History>,
    /// Grants that were held for longer than a ttl, and grants that nobody renewed.
    renewed: AtomicU64,
    expired: AtomicU64,
    /// Since when they must not be listed as up.
    removed: Mutex<BTreeMap<ServiceId, Instant>>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_loses_members_keeps_its_promises() {
    let Some(mut cluster) = server::Etcd::start_cluster(3, None) else { return };
    let rounds = std::env::var("SERVICEKIT_ROUNDS").map_or(ROUNDS, |text| text.parse().unwrap());
    let env = Env::system();
    let seed = env.random.below(1 << 32);
    println!("{rounds} rounds, seed {seed}");
    let fleet = Arc::new(Fleet {
        env,
        endpoints: cluster.endpoints(),
        ended: AtomicBool::new(false),
        histories: (0..LEASES).map(|_| History::default()).collect(),
        renewed: AtomicU64::new(0),
        expired: AtomicU64::new(0),
        removed: Mutex::default(),
    });
    let mut tasks = Vec::new();
    for node in 0..NODES {
        tasks.push(tokio::spawn(fleet.clone().node(node)));
    }
    for contender in 0..CONTENDERS {
        tasks.push(tokio::spawn(fleet.clone().contender(contender)));
    }
    let observer = tokio::spawn(fleet.clone().observer());
    let random = Random::seeded(seed);
    fleet.until_all_are_up().await;
    for round in 0..rounds {
        let first = usize::try_from(round).unwrap_or(0);
        // Each fault in turn first, then as it comes.
        let chosen = if first < FAULTS.len() { first } else { below(&random, FAULTS.len()) };
        println!("round {round}: {:?}", FAULTS[chosen]);
        let leaver = tokio::spawn(fleet.clone().leaver(round, below(&random, 4_000)));
        fleet.strike(&mut cluster, FAULTS[chosen], &random).await;
        leaver.await.unwrap();
        fleet.until_all_are_up().await;
    }
    fleet.ended.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    let longest = observer.await.unwrap();
    println!("missing for at most {longest:?}");
    let [renewed, expired] =
        [&fleet.renewed, &fleet.expired].map(|many| many.load(Ordering::Relaxed));
    println!("{renewed} held for longer than a ttl, {expired} not renewed");
    assert!(renewed > 0 && expired > 0, "{renewed} {expired}");
    let mut all = 0;
    for history in &fleet.histories {
        let violations = history.violations(1);
        assert!(violations.is_empty(), "{violations:#?}\n{history}");
        let grants = history.grants();
        println!("{grants} grants");
        assert!(grants > 1, "only {grants} grants");
        all += u64::try_from(grants).unwrap_or(0);
    }
    assert!(all > rounds, "only {all} grants");
}

impl Fleet {
    /// The backend of a process of its own.
    fn connect(&self) -> Backend {
        let config = Config::parse(&format!("//{}", self.endpoints), false).unwrap();
        let etcd = Etcd::new(config, self.env.clone(), Limits::default()).unwrap();
        servicekit_etcd::backend(etcd, Namespace::default(), self.env.clone(), Limits::default())
    }

    fn now(&self) -> Instant {
        self.env.clock.now()
    }

    async fn pass(&self, duration: Duration) {
        self.env.clock.sleep(duration).await;
    }

    fn is_over(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn agent(&self, node: &str) -> Agent {
        let Backend { registry, leases, .. } = self.connect();
        let options = Options { node: node.into(), ttl: TTL };
        Agent::new(registry, leases, self.env.clone(), options)
    }

    async fn node(self: Arc<Self>, node: usize) {
        let service = |i| Service::new(web(), id(&format!("web-{node}-{i}")), "10.0.0.1");
        let services = (0..INSTANCES_OF_EACH).map(service).collect();
        let until_over = async {
            while !self.is_over() {
                self.pass(Duration::from_millis(100)).await;
            }
        };
        self.agent(&format!("node-{node}")).run(services, until_over, |_| {}).await;
    }

    /// Registers an instance before a fault, and removes it in the middle of it.
    async fn leaver(self: Arc<Self>, round: u64, after: usize) {
        let leaver = id(&format!("leaver-{round}"));
        let services = vec![Service::new(web(), leaver.clone(), "10.0.0.2")];
        let stop = self.pass(Duration::from_millis(after as u64));
        let mut gone_within = Duration::ZERO;
        self.agent(leaver.as_str())
            .run(services, stop, |report| {
                if let Report::Left { lost_within, .. } = report {
                    gone_within = lost_within;
                }
            })
            .await;
        // A lease of etcd is counted in seconds, and looked at every half.
        let slack = if gone_within.is_zero() { Duration::ZERO } else { Duration::from_secs(2) };
        self.removed.lock().unwrap().insert(leaver, self.now() + gone_within + slack);
    }

    async fn until_all_are_up(&self) {
        let registry = self.connect().registry;
        let begun = self.now();
        loop {
            let up = match registry.list(&web()).await {
                Ok(snapshot) => snapshot.up().filter(|i| i.host == "10.0.0.1").count(),
                Err(error) => {
                    assert!(error.is_transient(), "{error:?}");
                    0
                }
            };
            if up == NODES * INSTANCES_OF_EACH {
                return;
            }
            let waited = self.now().since(begun);
            assert!(waited < Duration::from_secs(60), "only {up} are up after {waited:?}");
            self.pass(Duration::from_millis(100)).await;
        }
    }

    /// Looks at the list again and again; returns for how long anybody was missing.
    async fn observer(self: Arc<Self>) -> Duration {
        let registry = self.connect().registry;
        let mut seen = BTreeMap::new();
        let mut longest = Duration::ZERO;
        while !self.is_over() {
            // Before the request: what it answers is at least as new.
            let asked = self.now();
            let Ok(snapshot) = registry.list(&web()).await else { continue };
            let removed = self.removed.lock().unwrap().clone();
            for instance in snapshot.up() {
                let since = removed.get(&instance.service_id);
                let is_back = since.is_some_and(|since| asked > *since);
                assert!(!is_back, "{} came back", instance.service_id);
                seen.insert(instance.service_id.clone(), asked);
            }
            if self.is_over() {
                break;
            }
            for (id, last) in seen.iter().filter(|(id, _)| id.as_str().starts_with("web-")) {
                // Only what an answer showed counts: it was there then, and is not now.
                if *last < asked {
                    let missing = asked.since(*last);
                    longest = longest.max(missing);
                    // Until the next beat, which finds out and puts it again.
                    assert!(missing < TTL, "{id} is missing for {missing:?}");
                }
            }
            self.pass(Duration::from_millis(100)).await;
        }
        longest
    }

    async fn contender(self: Arc<Self>, number: usize) {
        let leases = self.connect().leases;
        let (lease, history) = (number % LEASES, &self.histories[number % LEASES]);
        let lease: Label = format!("lease-{lease}").parse().unwrap();
        let request = Request {
            holder: id(&format!("c-{number}")),
            term: Term::Attended { ttl: TTL },
            slots: 1,
            wait: Some(Duration::from_secs(600)),
            note: String::new(),
        };
        while !self.is_over() {
            let attempt = history.joining(self.now());
            let (ticket, standing) = match leases.join(&lease, &request).await {
                Ok(joined) => joined,
                Err(error) => {
                    assert!(error.is_transient(), "{error:?}");
                    history.ended(self.now(), attempt, End::Lost);
                    self.pass(Duration::from_millis(200)).await;
                    continue;
                }
            };
            let granted = match standing {
                Standing::Granted(granted) => Some(granted),
                Standing::Waiting { .. } => {
                    history.waiting(self.now(), attempt);
                    self.wait(leases.wait(&ticket)).await
                }
                Standing::Refused { .. } | Standing::Gone => None,
            };
            match granted {
                Some(granted) => self.work(history, attempt, ticket, granted, &leases).await,
                None => history.ended(self.now(), attempt, End::Lost),
            }
        }
    }

    async fn wait(
        &self,
        mut standings: impl futures_util::Stream<Item = servicekit_core::Result<Standing>> + Unpin,
    ) -> Option<Granted> {
        loop {
            match standings.next().await? {
                Ok(Standing::Granted(granted)) => return Some(granted),
                Ok(Standing::Gone | Standing::Refused { .. }) => return None,
                Ok(Standing::Waiting { .. }) => {}
                Err(error) => assert!(error.is_transient(), "{error:?}"),
            }
        }
    }

    async fn work(
        &self,
        history: &History,
        attempt: Attempt,
        ticket: Ticket,
        granted: Granted,
        leases: &Arc<dyn servicekit_core::LeaseProvider>,
    ) {
        if self.now() >= granted.counted_from + TTL - margin(TTL) {
            return history.ended(self.now(), attempt, End::Lost);
        }
        history.granted(self.now(), attempt, &granted);
        let none_yet = |many: &AtomicU64| many.load(Ordering::Relaxed) == 0;
        if none_yet(&self.expired) || self.env.random.chance(0.05) {
            // It hangs: it renews nothing, and stops in time.
            self.env.clock.sleep_until(granted.counted_from + TTL - margin(TTL)).await;
            history.ended(self.now(), attempt, End::Lost);
            self.expired.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let first_end = granted.counted_from + TTL;
        let guard = Guard::keep(leases.clone(), ticket, granted, TTL, self.env.clone());
        // Most are short, so that there are many; some have to be renewed.
        let time = if none_yet(&self.renewed) || self.env.random.chance(0.15) {
            TTL * 3 / 2
        } else {
            Duration::from_millis(self.env.random.below(400))
        };
        let work = self.pass(time);
        match select(Box::pin(guard.lost()), Box::pin(work)).await {
            Either::Left(_) => history.ended(self.now(), attempt, End::Lost),
            Either::Right(_) => {
                if self.now() >= first_end {
                    self.renewed.fetch_add(1, Ordering::Relaxed);
                }
                history.ended(self.now(), attempt, End::Left);
            }
        }
        drop(guard.release().await);
    }

    async fn strike(&self, cluster: &mut server::Etcd, fault: Fault, random: &Random) {
        let leader = self.leader().await;
        let follower = (leader + 1 + below(random, 2)) % 3;
        let outage = Duration::from_millis(1_000 + random.below(7_000)).min(LONGEST_OUTAGE);
        println!("  for {outage:?}");
        match fault {
            Fault::KillLeader | Fault::KillFollower => {
                let who = if matches!(fault, Fault::KillLeader) { leader } else { follower };
                cluster.members()[who].kill();
                self.pass(outage).await;
                cluster.members()[who].start();
            }
            Fault::PauseLeader | Fault::PauseFollower => {
                let who = if matches!(fault, Fault::PauseLeader) { leader } else { follower };
                cluster.members()[who].pause();
                self.pass(outage).await;
                cluster.members()[who].resume();
            }
            Fault::IsolateLeader | Fault::IsolateFollower => {
                let who = if matches!(fault, Fault::IsolateLeader) { leader } else { follower };
                cluster.isolate(who);
                self.pass(outage).await;
                if matches!(fault, Fault::IsolateLeader) && outage > Duration::from_secs(4) {
                    let log = cluster.members()[who].log();
                    assert!(log.contains("quorum is not active"), "it still hears the others");
                }
                cluster.rejoin();
            }
            Fault::RestartAll => {
                for member in cluster.members() {
                    member.kill();
                    member.start();
                    self.pass(outage / 3).await;
                }
            }
        }
        // The members find each other again.
        self.leader().await;
    }

    /// Which member leads.
    async fn leader(&self) -> usize {
        loop {
            let asked = self.endpoints.split(',').map(|endpoint| async move {
                let client = Client::connect([endpoint], None).await.ok()?;
                let mut client = client.maintenance_client();
                let status = client.status();
                let status =
                    servicekit_core::clock::timeout(&*self.env.clock, LONGEST_OUTAGE, status).await;
                let status = status.ok()?.ok()?;
                Some((status.leader() != 0).then(|| {
                    status.header().is_some_and(|header| header.member_id() == status.leader())
                }))
            });
            let answers: Vec<_> = join_all(asked).await.into_iter().flatten().flatten().collect();
            if answers.len() == 3
                && let Some(leader) = answers.iter().position(|is_leader| *is_leader)
            {
                return leader;
            }
            self.pass(Duration::from_millis(100)).await;
        }
    }
}

fn below(random: &Random, bound: usize) -> usize {
    usize::try_from(random.below(bound as u64)).unwrap_or(0)
}

fn web() -> Label {
    "web".parse().unwrap()
}

fn id(text: &str) -> ServiceId {
    text.parse().unwrap()
}
