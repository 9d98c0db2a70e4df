use std::{
    env,
    io::{Read as _, Write as _},
    sync::Arc,
    thread,
    time::Duration,
};

use futures_util::{
    StreamExt as _,
    future::{Either, select},
};
use servicekit_core::{
    Env, Instant, Label, LeaseProvider,
    lease::{Granted, Guard, Request, Standing, Term, Ticket, margin},
};

use super::{ADDRESS, TTL};

/// Where the store is, in a process that was started to contend; in any other `None`.
#[must_use]
pub fn address() -> Option<String> {
    env::var(ADDRESS).ok()
}

/// Contends for the lease until the process that started this one ends, and says what happens.
///
/// # Panics
///
/// Never, on a store that knows a label and a service id.
pub async fn contend(leases: &Arc<dyn LeaseProvider>) {
    // It ends with the process that started it.
    thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let env = Env::system();
    let lease: Label = "contended".parse().expect("a label");
    let request = Request {
        holder: format!("p-{}", std::process::id()).parse().expect("a service id"),
        term: Term::Attended { ttl: TTL },
        slots: 1,
        wait: Some(Duration::from_secs(600)),
        note: String::new(),
    };
    loop {
        say("joining", env.clock.now(), "");
        let granted = match leases.join(&lease, &request).await {
            Ok((ticket, Standing::Granted(granted))) => Some((ticket, granted)),
            Ok((ticket, Standing::Waiting { .. })) => {
                say("waiting", env.clock.now(), "");
                wait(leases, &ticket).await.map(|granted| (ticket, granted))
            }
            _ => {
                env.clock.sleep(Duration::from_millis(200)).await;
                None
            }
        };
        match granted {
            Some((ticket, granted)) => work(leases, ticket, granted, &env).await,
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
