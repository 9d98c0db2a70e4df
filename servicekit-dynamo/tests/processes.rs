//! Processes that contend for one lease and are killed, stopped for longer than their ttl, or cut off: no two may hold it at a
//! time. The others are this test binary, started again. As many rounds as `SERVICEKIT_ROUNDS` says.

#![allow(clippy::unwrap_used, reason = "all of it is tests")]

mod common;

use std::{
    collections::BTreeSet,
    env,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use futures_util::{
    StreamExt as _,
    future::{Either, select},
};
use servicekit_core::{
    Env, Instant, Label, LeaseProvider, Namespace, Random,
    lease::{Granted, Guard, Request, Standing, Term, Ticket, Token, margin},
    store::Limits,
};
use servicekit_dynamo::Dynamo;
use servicekit_testkit::{
    history::{Attempt, End, History, Violation},
    proxy::{Mode, Proxy},
    server,
};

/// So many unless the environment says otherwise.
const ROUNDS: u64 = 4;
const CONTENDERS: usize = 5;
const TTL: Duration = Duration::from_secs(5);

const ENDPOINT: &str = "SERVICEKIT_TEST_ENDPOINT";

#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill,
    Stop,
    Cut,
}

/// What a process said, and what was done to it.
type Said = Arc<Mutex<Vec<(usize, String)>>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_die_stop_and_are_cut_off_never_hold_a_lease_together() {
    let Some(server) = server::DynamoDb::start() else { return };
    let rounds = env::var("SERVICEKIT_ROUNDS").map_or(ROUNDS, |text| text.parse().unwrap());
    let system = Env::system();
    let seed = system.random.below(1 << 32);
    println!("{rounds} rounds, seed {seed}");
    let random = Random::seeded(seed);
    let clock = system.clock;
    let below = |bound: usize| usize::try_from(random.below(bound as u64)).unwrap();
    let said: Said = Arc::default();
    let mut contenders = Vec::new();
    for _ in 0..CONTENDERS {
        contenders.push(Contender::start(&server, contenders.len(), &said).await);
    }
    let mut ids = CONTENDERS;
    for round in 0..rounds {
        let holders = || holder(&said.lock().unwrap());
        while holders().is_none() {
            clock.sleep(Duration::from_millis(20)).await;
        }
        let chosen = match holders().filter(|_| random.chance(0.7)) {
            Some(id) => contenders.iter().position(|contender| contender.id == id).unwrap_or(0),
            None => below(contenders.len()),
        };
        let fault = [Fault::Kill, Fault::Stop, Fault::Cut][match usize::try_from(round).unwrap() {
            first @ 0..3 => first,
            _ => below(3),
        }];
        let longer = TTL + Duration::from_millis(random.below(5_000));
        let id = contenders[chosen].id;
        println!("round {round}: {fault:?} {id} for {longer:?}");
        said.lock().unwrap().push((id, format!("fault {}", clock.now().since_boot().as_nanos())));
        match fault {
            Fault::Kill => {
                drop(contenders.remove(chosen));
                let now = clock.now().since_boot().as_nanos();
                said.lock().unwrap().push((id, format!("died {now}")));
                contenders.push(Contender::start(&server, ids, &said).await);
                ids += 1;
            }
            Fault::Stop => {
                contenders[chosen].signal("STOP");
                clock.sleep(longer).await;
                contenders[chosen].signal("CONT");
            }
            Fault::Cut => {
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
        let now = clock.now().since_boot().as_nanos();
        said.lock().unwrap().push((id, format!("died {now}")));
    }
    let said = said.lock().unwrap().clone();
    let (history, disturbed) = replay(&said);
    let violations: Vec<_> = history
        .violations(1)
        .into_iter()
        // Who could not answer may have missed its turn.
        .filter(|violation| {
            !matches!(violation, Violation::Overtaken { waited, .. } if disturbed.contains(waited))
        })
        .collect();
    assert!(violations.is_empty(), "seed {seed}: {violations:#?}\n{history}");
    println!("{} grants", history.grants());
    assert!(history.grants() as u64 > rounds, "seed {seed}: only {} grants", history.grants());
}

/// Who was granted last and has not said that it ended.
fn holder(said: &[(usize, String)]) -> Option<usize> {
    let (id, line) = said
        .iter()
        .rev()
        .find(|(_, line)| ["granted", "ended", "died"].iter().any(|word| line.starts_with(word)))?;
    line.starts_with("granted").then_some(*id)
}

struct Contender {
    id: usize,
    process: Child,
    proxy: Proxy,
}

impl Contender {
    async fn start(server: &server::DynamoDb, id: usize, said: &Said) -> Self {
        let proxy = Proxy::start(&server.endpoint()).await;
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["--exact", "contend", "--nocapture"])
            .env(ENDPOINT, proxy.endpoint())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let said = said.clone();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                said.lock().unwrap().push((id, line));
            }
        });
        Self { id, process, proxy }
    }

    fn signal(&self, signal: &str) {
        let mut kill = Command::new("kill");
        kill.arg(format!("-{signal}")).arg(self.process.id().to_string());
        assert!(kill.status().unwrap().success());
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What each said, in the order of their common boot clock; and the attempts that something was done to.
fn replay(said: &[(usize, String)]) -> (History, BTreeSet<Attempt>) {
    let mut events: Vec<(u64, usize, Vec<&str>)> = said
        .iter()
        .filter_map(|(id, line)| {
            let mut words = line.split(' ');
            let (what, at) = (words.next()?, words.next()?.parse().ok()?);
            Some((at, *id, std::iter::once(what).chain(words).collect()))
        })
        .collect();
    // A grant ends at its deadline, whenever its holder came to say so.
    for i in 0..events.len() {
        let (at, id, what) = (events[i].0, events[i].1, events[i].2[0]);
        if what == "ended" || what == "died" {
            let before = events[..i].iter().rev().filter(|(_, other, _)| *other == id);
            let held = before.take_while(|(.., words)| !matches!(words[0], "joining" | "ended"));
            let deadline = held.filter(|(.., words)| words[0] == "until").map(|(at, ..)| *at).max();
            events[i].0 = deadline.map_or(at, |deadline| at.min(deadline));
        }
    }
    events.retain(|(.., words)| words[0] != "until");
    events.sort_by_key(|(at, ..)| *at);
    let (history, mut disturbed) = (History::default(), BTreeSet::new());
    let mut attempts: Vec<Option<Attempt>> = Vec::new();
    for (at, id, words) in events {
        let at = Instant::from_boot(Duration::from_nanos(at));
        attempts.resize(attempts.len().max(id + 1), None);
        match (words[0], attempts[id]) {
            ("joining", _) => attempts[id] = Some(history.joining(at)),
            ("waiting", Some(attempt)) => history.waiting(at, attempt),
            ("granted", Some(attempt)) => {
                let (token, slot) = (words[1].parse().unwrap(), words[2].parse().unwrap());
                let granted =
                    Granted { token: Token(token), slot, counted_from: at, expires_at: None };
                history.granted(at, attempt, &granted);
            }
            ("ended", Some(attempt)) => {
                history.ended(at, attempt, if words[1] == "left" { End::Left } else { End::Lost });
                attempts[id] = None;
            }
            ("died", Some(attempt)) => history.ended(at, attempt, End::Left),
            ("fault", Some(attempt)) => drop(disturbed.insert(attempt)),
            _ => {}
        }
    }
    (history, disturbed)
}

/// Not a test by itself: what the other processes do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contend() {
    let Ok(endpoint) = env::var(ENDPOINT) else { return };
    // It ends with the process that started it.
    thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let env = Env::system();
    let dynamo = Dynamo::new(common::config(&endpoint), env.clone(), Limits::default());
    let backend =
        servicekit_dynamo::backend(dynamo, Namespace::default(), env.clone(), Limits::default());
    let lease: Label = "contended".parse().unwrap();
    let request = Request {
        holder: format!("p-{}", std::process::id()).parse().unwrap(),
        term: Term::Attended { ttl: TTL },
        slots: 1,
        wait: Some(Duration::from_secs(600)),
        note: String::new(),
    };
    loop {
        say("joining", env.clock.now(), "");
        let granted = match backend.leases.join(&lease, &request).await {
            Ok((ticket, Standing::Granted(granted))) => Some((ticket, granted)),
            Ok((ticket, Standing::Waiting { .. })) => {
                say("waiting", env.clock.now(), "");
                wait(&backend.leases, &ticket).await.map(|granted| (ticket, granted))
            }
            _ => {
                env.clock.sleep(Duration::from_millis(200)).await;
                None
            }
        };
        match granted {
            Some((ticket, granted)) => work(&backend.leases, ticket, granted, &env).await,
            None => say("ended", env.clock.now(), " lost"),
        }
    }
}

async fn wait(leases: &Arc<dyn LeaseProvider>, ticket: &Ticket) -> Option<Granted> {
    let mut standings = leases.wait(ticket);
    loop {
        match standings.next().await? {
            Ok(Standing::Granted(granted)) => return Some(granted),
            Ok(Standing::Gone | Standing::Refused { .. }) => return None,
            Ok(Standing::Waiting { .. }) | Err(_) => {}
        }
    }
}

async fn work(leases: &Arc<dyn LeaseProvider>, ticket: Ticket, granted: Granted, env: &Env) {
    let deadline = granted.counted_from + TTL - margin(TTL);
    let now = env.clock.now();
    if now >= deadline {
        return say("ended", now, " lost");
    }
    say("until", deadline, "");
    say("granted", now, &format!(" {} {}", granted.token.0, granted.slot));
    let guard = Guard::keep(leases.clone(), ticket, granted, TTL, env.clone());
    let until = env.clock.now() + Duration::from_millis(500 + env.random.below(3_000));
    let mut told = deadline;
    let working = async {
        while env.clock.now() < until {
            if let Some(deadline) = guard.deadline().filter(|deadline| *deadline != told) {
                say("until", deadline, "");
                told = deadline;
            }
            env.clock.sleep(Duration::from_millis(20)).await;
        }
    };
    match select(Box::pin(guard.lost()), Box::pin(working)).await {
        Either::Left(_) => say("ended", env.clock.now(), " lost"),
        Either::Right(_) => say("ended", env.clock.now(), " left"),
    }
    drop(guard.release().await);
}

fn say(what: &str, at: Instant, more: &str) {
    let mut out = std::io::stdout().lock();
    // At the beginning of a line, whatever the harness has printed.
    let _ = write!(out, "\n{what} {}{more}\n", at.since_boot().as_nanos());
    let _ = out.flush();
}
