//! Processes that contend for one lease and are killed, stopped for longer than their ttl, or cut off, while their server is
//! killed and started again: no two may hold the lease at a time.
//!
//! The contenders are the test program, started again. A backend needs two tests in a module `processes` at the program's root:
//! one that calls [`contest`], and one of the name `contend` that calls [`contend`] where there is an [`address`].

mod contender;
mod replay;

use std::{
    env,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use servicekit_core::{Clock, Env, Random};

pub use self::contender::{address, contend};
use crate::{
    history::Violation,
    proxy::{Mode, Proxy},
    server::Member,
};

const CONTENDERS: usize = 5;
const TTL: Duration = Duration::from_secs(5);

const ADDRESS: &str = "SERVICEKIT_TEST_ADDRESS";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Kill,
    Stop,
    Cut,
    Restart,
}

/// Lets five processes contend, each through a proxy of its own before the server at `endpoint`, and does something to one of
/// them or to the server round by round: as many rounds as `SERVICEKIT_ROUNDS` says, else one more than there are faults.
///
/// `address` makes of a proxy's endpoint what [`address`](address()) is there. A `server` keeps its data when it is killed.
///
/// # Panics
///
/// When two held the lease at a time, a token fell, somebody was overtaken, or hardly anybody was granted it; with the seed
/// and the history.
pub async fn contest(
    endpoint: &str,
    address: impl Fn(&str) -> String + Sync,
    mut server: Option<&mut Member>,
) {
    let mut faults = vec![Fault::Kill, Fault::Stop, Fault::Cut];
    faults.extend(server.as_ref().map(|_| Fault::Restart));
    let rounds = env::var("SERVICEKIT_ROUNDS")
        .map_or(faults.len() + 1, |text| text.parse().expect("SERVICEKIT_ROUNDS is a number"));
    let Env { clock, random, .. } = Env::system();
    let seed = random.below(1 << 32);
    println!("{rounds} rounds of {faults:?}, seed {seed}");
    let random = Random::seeded(seed);
    let below = |bound: usize| usize::try_from(random.below(bound as u64)).unwrap_or(0);
    let said = Said::new(clock.clone());
    let mut contenders = Vec::new();
    for id in 0..CONTENDERS {
        contenders.push(Contender::start(endpoint, &address, id, &said).await);
    }
    for round in 0..rounds {
        while said.holder().is_none() {
            clock.sleep(Duration::from_millis(20)).await;
        }
        // Mostly the holder.
        let chosen = match said.holder().filter(|_| random.chance(0.7)) {
            Some(id) => contenders.iter().position(|contender| contender.id == id).unwrap_or(0),
            None => below(contenders.len()),
        };
        // Each in turn first, then as it comes.
        let fault = faults[if round < faults.len() { round } else { below(faults.len()) }];
        let longer = TTL + Duration::from_millis(random.below(5_000));
        let id = contenders[chosen].id;
        said.add(id, "fault");
        match fault {
            Fault::Restart => {
                let Some(server) = &mut server else { continue };
                // Sometimes all leases outlive it.
                let away = Duration::from_millis(random.below(10_000));
                println!("round {round}: {fault:?} after {away:?}");
                said.add_for(&contenders, "fault");
                server.kill();
                clock.sleep(away).await;
                server.start();
                said.add_for(&contenders, "fault");
            }
            Fault::Kill => {
                println!("round {round}: {fault:?} {id}");
                drop(contenders.remove(chosen));
                said.add(id, "died");
                let next = Contender::start(endpoint, &address, CONTENDERS + round, &said);
                contenders.push(next.await);
            }
            Fault::Stop => {
                println!("round {round}: {fault:?} {id} for {longer:?}");
                contenders[chosen].signal("STOP");
                clock.sleep(longer).await;
                contenders[chosen].signal("CONT");
            }
            Fault::Cut => {
                println!("round {round}: {fault:?} {id} for {longer:?}");
                contenders[chosen].proxy.set(Mode::Cut);
                clock.sleep(longer).await;
                contenders[chosen].proxy.set(Mode::Pass);
            }
        }
        clock.sleep(Duration::from_millis(random.below(3_000))).await;
    }
    for contender in contenders.drain(..) {
        let id = contender.id;
        drop(contender);
        said.add(id, "died");
    }
    judge(&said.lines(), rounds, seed);
}

fn judge(said: &[(usize, String)], rounds: usize, seed: u64) {
    let (history, disturbed) = replay::replay(said);
    let mut violations = history.violations(1);
    // Who could not answer may have missed its turn.
    violations.retain(|violation| {
        !matches!(violation, Violation::Overtaken { waited, .. } if disturbed.contains(waited))
    });
    assert!(violations.is_empty(), "seed {seed}: {violations:#?}\n{history}");
    println!("{} grants", history.grants());
    // A round may be short, and hit nobody who holds.
    assert!(history.grants() * 2 > rounds, "seed {seed}: only {} grants", history.grants());
}

/// What the processes said, each by its number, and what was done to them.
#[derive(Clone)]
struct Said {
    clock: Arc<dyn Clock>,
    lines: Arc<Mutex<Vec<(usize, String)>>>,
}

impl Said {
    fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, lines: Arc::default() }
    }

    /// Adds what was done to one just now.
    fn add(&self, id: usize, what: &str) {
        let now = self.clock.now().since_boot().as_nanos();
        self.lock().push((id, format!("{what} {now}")));
    }

    fn add_for(&self, contenders: &[Contender], what: &str) {
        contenders.iter().for_each(|contender| self.add(contender.id, what));
    }

    /// Who was granted last and has not said that it ended.
    fn holder(&self) -> Option<usize> {
        let lines = self.lock();
        let (id, line) = lines.iter().rev().find(|(_, line)| {
            ["granted", "ended", "died"].iter().any(|word| line.starts_with(word))
        })?;
        line.starts_with("granted").then_some(*id)
    }

    fn lines(&self) -> Vec<(usize, String)> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(usize, String)>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Contender {
    id: usize,
    process: Child,
    proxy: Proxy,
}

impl Contender {
    async fn start(
        endpoint: &str,
        address: &(impl Fn(&str) -> String + Sync),
        id: usize,
        said: &Said,
    ) -> Self {
        let proxy = Proxy::start(endpoint).await;
        let mut process = Command::new(env::current_exe().expect("this program has a path"))
            .args(["--exact", "processes::contend", "--nocapture"])
            .env(ADDRESS, address(&proxy.endpoint()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program can be run");
        let lines = BufReader::new(process.stdout.take().expect("it is piped")).lines();
        let said = said.clone();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                said.lock().push((id, line));
            }
        });
        Self { id, process, proxy }
    }

    fn signal(&self, signal: &str) {
        let mut kill = Command::new("kill");
        kill.arg(format!("-{signal}")).arg(self.process.id().to_string());
        assert!(kill.status().is_ok_and(|status| status.success()), "{signal} reaches {}", self.id);
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
