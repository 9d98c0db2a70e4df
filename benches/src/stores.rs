//! What is measured alike on every store that is a server.

use std::{sync::Arc, time::Duration};

use futures_util::{
    StreamExt as _,
    future::{join_all, try_join_all},
};
use servicekit::{
    Backend, Clock as _, Env, Instance, Instant, Label, LeaseProvider, Registry, State,
    clock::SystemClock,
    discovery::{Options, View},
    lease::{Request, Standing, Term, Ticket},
    registry::{Claim, Session},
};
use tokio::task::JoinHandle;

use crate::Result;

const ROUNDS: usize = 20;
const INSTANCES: usize = 10_000;

/// Lease cycles, so many a round, against the same requests sent by the bare client. They take turns.
///
/// # Errors
///
/// Those of either.
pub async fn cycles(
    backend: &Backend,
    each: usize,
    mut bare: impl AsyncFnMut() -> Result<()>,
) -> Result<()> {
    cycle(backend).await?;
    bare().await?;
    let clock = SystemClock;
    let (mut ours, mut theirs) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..ROUNDS {
        let began = clock.now();
        for _ in 0..each {
            cycle(backend).await?;
        }
        let between = clock.now();
        for _ in 0..each {
            bare().await?;
        }
        ours += between.since(began);
        theirs += clock.now().since(between);
    }
    let count = f64::from(u32::try_from(ROUNDS * each)?);
    println!("lease cycles:                    {:8.0} a second", count / ours.as_secs_f64());
    println!("the same requests, bare:         {:8.0} a second", count / theirs.as_secs_f64());
    println!("time against bare:               {:8.2}", ours.as_secs_f64() / theirs.as_secs_f64());
    Ok(())
}

/// A lease is asked for, granted, and left.
async fn cycle(backend: &Backend) -> Result<()> {
    match backend.leases.join(&"bench".parse()?, &request("bench")?).await? {
        (ticket, Standing::Granted(_)) => Ok(backend.leases.leave(&ticket).await?),
        (_, standing) => Err(format!("not granted: {standing:?}").into()),
    }
}

/// Asks for a lease, and waits for it in the background; the task ends with the moment of the grant.
///
/// # Errors
///
/// Those of joining.
pub async fn wait_for(
    leases: &Arc<dyn LeaseProvider>,
    lease: &Label,
    holder: &str,
) -> Result<(Ticket, JoinHandle<Instant>)> {
    let (ticket, _) = leases.join(lease, &request(holder)?).await?;
    let mut standings = leases.wait(&ticket);
    let granted = tokio::spawn(async move {
        loop {
            match standings.next().await {
                Some(Ok(Standing::Granted(_))) => return SystemClock.now(),
                Some(_) => {}
                None => panic!("it ended without a grant"),
            }
        }
    });
    Ok((ticket, granted))
}

/// A request for a lease that nobody renews for a minute.
///
/// # Errors
///
/// The holder is no service id.
pub fn request(holder: &str) -> Result<Request> {
    Ok(Request {
        holder: holder.parse()?,
        term: Term::Attended { ttl: Duration::from_secs(60) },
        slots: 1,
        wait: Some(Duration::from_secs(600)),
        note: String::new(),
    })
}

/// Ten thousand instances: a list of them, so many views, and a change to one of them.
///
/// # Errors
///
/// Those of the store.
pub async fn instances(url: &str, watchers: u32) -> Result<()> {
    let (clock, env) = (SystemClock, Env::system());
    let web: Label = "web".parse()?;
    let registry = servicekit::connect(url).await?.registry;
    let session = registry.open("bench", Duration::from_secs(600)).await?;
    let now = clock.wall();
    let up = |i: usize| -> Result<Instance> {
        let mut instance =
            Instance::starting(web.clone(), format!("web-{i}").parse()?, "10.0.0.1", now);
        instance.change(State::Up, "rise 1", "200 OK", now);
        Ok(instance)
    };
    for first in (0..INSTANCES).step_by(100) {
        let puts = (first..first + 100).map(|i| {
            let instance = up(i);
            let (registry, session) = (&registry, &session);
            async move { put_one(registry, session, instance?).await }
        });
        try_join_all(puts).await?;
    }
    let mut lists = Vec::new();
    for _ in 0..10 {
        let began = clock.now();
        if registry.list(&web).await?.up().count() != INSTANCES {
            return Err("some are missing".into());
        }
        lists.push(clock.now().since(began));
    }
    println!("list of 10,000 instances:        {:8.2} ms", median(&mut lists));
    let before = resident()?;
    let mut views = Vec::new();
    for _ in 0..watchers {
        let registry = servicekit::connect(url).await?.registry;
        let view = View::open(&registry, Options::labels([web.clone()]), env.clone());
        view.ready().await;
        views.push(Arc::new(view));
    }
    println!(
        "a view of them:                  {:8.2} MB",
        (resident()? - before) / f64::from(watchers) / 1e6
    );
    let (mut times, claim, mut one) = (Vec::new(), Claim::new(), up(INSTANCES)?);
    for i in 0..20_u32 {
        one.weight = i + 1;
        let seen = views.iter().map(|view| {
            let (view, web) = (view.clone(), web.clone());
            tokio::spawn(async move {
                let is_there = |view: &View| {
                    view.list(&web).is_some_and(|list| list.up.iter().any(|up| up.weight == i + 1))
                };
                while !is_there(&view) {
                    view.changed().await;
                }
                SystemClock.now()
            })
        });
        let seen: Vec<_> = seen.collect();
        let began = clock.now();
        registry.put(&session, &claim, &one).await?;
        let last = join_all(seen).await.into_iter().flatten().max().ok_or("nobody saw it")?;
        times.push(last.since(began));
    }
    println!("a change to the last of {watchers:3}:     {:8.2} ms", median(&mut times));
    Ok(())
}

async fn put_one(
    registry: &Arc<dyn Registry>,
    session: &Session,
    instance: Instance,
) -> Result<()> {
    Ok(registry.put(session, &Claim::new(), &instance).await?)
}

/// In milliseconds.
#[must_use]
pub fn median(times: &mut [Duration]) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

/// Bytes of memory that this process has in use.
fn resident() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/statm")?;
    let pages: f64 = status.split(' ').nth(1).ok_or("no size")?.parse()?;
    Ok(pages * 4096.0)
}
