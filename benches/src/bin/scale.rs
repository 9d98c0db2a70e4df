//! A hundred thousand instances in one registry, and a thousand who wait for one lease, on any store.
//!
//! ```sh
//! cargo run --release -p servicekit-benches --bin scale -- etcd://localhost [instances|waiters]
//! ```
//!
//! It leaves what it made in a namespace of its own: give it a store that may be thrown away.

use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use servicekit::{
    Backend, Clock as _, Env, Instance, Label, State,
    clock::SystemClock,
    connect::{Connector, Options},
    lease::{Request, Standing, Term, Ticket},
    registry::Claim,
};
use servicekit_benches::Result;

const LABELS: usize = 100;
const NODES: usize = 1000;
/// Each node has an instance of each label.
const AT_A_TIME: usize = 32;

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::args().nth(1).ok_or("give the address of a store")?;
    let namespace = format!("scale-{:08x}", Env::system().random.below(1 << 32)).parse()?;
    let options = Options { namespace, ..Options::default() };
    let backend = Connector::builtin().connect(&url.parse()?, options).await?;
    let part = std::env::args().nth(2);
    let wanted = |name: &str| part.as_deref().is_none_or(|part| part == name);
    if wanted("instances") {
        instances(&backend).await?;
    }
    if wanted("waiters") {
        waiters(&backend).await?;
    }
    Ok(())
}

async fn instances(backend: &Backend) -> Result<()> {
    let (clock, registry) = (SystemClock, &backend.registry);
    let began = clock.now();
    let put = async |node: usize| -> Result<()> {
        let name = format!("n{node}");
        let session = insist(|| registry.open(&name, Duration::from_secs(3600))).await?;
        for label in 0..LABELS {
            let (label, id) = (format!("l-{label}").parse()?, format!("i-{node}").parse()?);
            let mut instance = Instance::starting(label, id, "10.0.0.1:80", clock.wall());
            instance.change(State::Up, "rise 2", "200 OK", clock.wall());
            let claim = Claim::new();
            insist(|| registry.put(&session, &claim, &instance)).await?;
        }
        Ok(())
    };
    stream::iter((0..NODES).map(Ok)).try_for_each_concurrent(AT_A_TIME, put).await?;
    println!("{} instances put within {:.0?}", LABELS * NODES, clock.now().since(began));
    let began = clock.now();
    let labels = registry.labels().await?.len();
    println!("{labels} labels listed within {:.0?}", clock.now().since(began));
    let mut times = Vec::new();
    for label in 0..10 {
        let began = clock.now();
        let listed = registry.list(&format!("l-{label}").parse()?).await?;
        if listed.up().count() != NODES {
            return Err(format!("{} of {NODES} are up", listed.up().count()).into());
        }
        times.push(clock.now().since(began));
    }
    times.sort();
    println!("one label of {NODES} listed within {:.0?} (median of ten)", times[5]);
    Ok(())
}

/// A store on two cores is slow to answer now and then.
async fn insist<T, F>(mut ask: impl FnMut() -> F) -> servicekit::Result<T>
where
    F: Future<Output = servicekit::Result<T>>,
{
    loop {
        match ask().await {
            Err(error) if error.is_transient() => {}
            answer => return answer,
        }
    }
}

const WAITERS: usize = 1000;
const COMING: usize = 8;
const HAND_OVERS: usize = 10;

fn request(holder: &str) -> Result<Request> {
    Ok(Request {
        holder: holder.parse()?,
        term: Term::Attended { ttl: Duration::from_secs(3600) },
        slots: 1,
        wait: Some(Duration::from_secs(3600)),
        note: String::new(),
    })
}

/// They come some at a time, for each reads the queue, and have their turns one by one.
async fn waiters(backend: &Backend) -> Result<()> {
    let (clock, leases, lease) = (SystemClock, &backend.leases, "scale".parse::<Label>()?);
    let (mut ticket, _) = leases.join(&lease, &request("first")?).await?;
    let began = clock.now();
    let join = async |i: usize| -> Result<_> {
        let request = request(&format!("w-{i}"))?;
        match insist(|| leases.join(&lease, &request)).await? {
            (ticket, Standing::Waiting { .. }) => Ok(ticket),
            (_, standing) => Err(format!("it does not wait: {standing:?}").into()),
        }
    };
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    // Who waits has to be at it, or its ticket ends before the last has come.
    let follow = |ticket: Ticket| {
        let (mut standings, tell) = (leases.wait(&ticket), tell.clone());
        tokio::spawn(async move {
            while let Some(standing) = standings.next().await {
                if let Ok(Standing::Granted(granted)) = standing {
                    let _ = tell.send((ticket.clone(), granted.token, SystemClock.now()));
                }
            }
        });
    };
    let (join, follow) = (&join, &follow);
    let joins = (0..WAITERS).map(async |i| join(i).await.map(follow));
    stream::iter(joins).buffer_unordered(COMING).try_collect::<Vec<()>>().await?;
    println!("{WAITERS} who came, {COMING} at a time, wait after {:.1?}", clock.now().since(began));
    clock.sleep(Duration::from_secs(30)).await;
    let (mut times, mut last) = (Vec::new(), None);
    for _ in 0..HAND_OVERS {
        let began = clock.now();
        leases.leave(&ticket).await?;
        let (next, token, at) = told.recv().await.ok_or("nobody is granted")?;
        if last.replace(token) >= Some(token) {
            return Err("a token fell".into());
        }
        times.push(at.since(began));
        ticket = next;
    }
    times.sort();
    let (median, most) = (times[HAND_OVERS / 2], times[HAND_OVERS - 1]);
    println!("handed over within {median:.0?} (the longest of {HAND_OVERS}: {most:.0?})");
    Ok(())
}
