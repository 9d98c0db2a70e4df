//! Waiting for the lease, telling people how it goes, and leaving the queue when told to end.

use std::time::Duration;

use servicekit::{
    Backend, Label, LeaseProvider, Result as StoreResult,
    clock::timeout,
    lease::{self, Grant, Obtained, Progress as Event, Request},
};

use crate::{
    args,
    context::{Context, unless_told},
    progress::Progress,
    report::{Failure, chain, say},
    signals::Signals,
};

/// How long leaving may take when told to end.
const LEAVING: Duration = Duration::from_secs(2);

/// Obtains the lease, also when the store is away at first; the time-out is that of the request.
pub(super) async fn obtain(
    label: &Label,
    request: &Request,
    context: &Context,
    signals: &mut Signals,
) -> Result<(Backend, Obtained), Failure> {
    let clock = &context.env.clock;
    let deadline = clock.now() + request.wait.unwrap_or_default();
    let connected = unless_told(signals, context.connect_by(Some(deadline))).await;
    let backend = connected.map_err(Failure::Interrupted)??;

    let wait = request.wait.map(|_| deadline.since(clock.now()));
    let request = Request { wait, ..request.clone() };
    let mut progress = Progress::default();
    let tell = |event: Event<'_>| tell(&mut progress, label, event);
    let obtaining = async {
        let obtaining = lease::obtain(&backend.leases, label, &request, &context.env, tell);
        Ok(obtaining.await?)
    };
    let obtained = unless_told(signals, async {
        match request.wait {
            Some(_) => obtaining.await,
            // A slot may be free, and kept for the turns of two who died.
            None => {
                let turns = lease::turn(backend.leases.capabilities()) * 2;
                context.ask_and_wait(turns, obtaining).await
            }
        }
    });
    match obtained.await {
        Ok(Ok(obtained)) => Ok((backend, obtained)),
        Ok(Err(failure)) => {
            withdraw(&backend, label, &request, context).await;
            Err(failure)
        }
        Err(signal) => {
            withdraw(&backend, label, &request, context).await;
            Err(Failure::Interrupted(signal))
        }
    }
}

/// Tells this process's tickets from all others, and people who it is.
pub(super) fn note(context: &Context) -> String {
    let id = context.env.random.below(1 << 32);
    format!("pid {} on {}, {id:08x}", std::process::id(), args::hostname())
}

/// Who holds a lease, for people.
pub(super) fn describe(holders: &[Grant]) -> String {
    let holders = holders.iter().map(|grant| format!("{} since {}", grant.holder, grant.since));
    let holders: Vec<_> = holders.collect();
    match holders.as_slice() {
        [] => "its holder is just changing".into(),
        [first, second, third, more @ ..] if !more.is_empty() => {
            format!("held by {first}, {second}, {third} and {} more", more.len())
        }
        all => format!("held by {}", all.join(", ")),
    }
}

/// Waits for a last request to the store, but not for long.
pub(super) async fn within_reason(
    context: &Context,
    leaving: impl Future<Output = StoreResult<()>> + Send,
) {
    let problem = match timeout(&*context.env.clock, LEAVING, leaving).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => chain(&error),
        Err(elapsed) => elapsed.to_string(),
    };
    say(format_args!("the lease could not be given back, and ends by itself: {problem}"));
}

fn tell(progress: &mut Progress, label: &Label, event: Event<'_>) {
    match event {
        // The slot is passed on at this moment: who is next is told by what comes next.
        Event::Waiting { holders: [], .. } => {}
        Event::Waiting { ahead, holders } => {
            progress.tell(format!("waiting for {label}: {}; {ahead} ahead", describe(holders)));
        }
        Event::StoreAway(error) => {
            progress.say(format_args!("the store is away, trying on: {}", chain(error)));
        }
        Event::StoreBack => progress.say("the store is back"),
    }
}

/// Gives back what this process has of the lease: its place in the queue, or a grant that has come at this very moment.
async fn withdraw(backend: &Backend, label: &Label, request: &Request, context: &Context) {
    let leaving = leave_all(&*backend.leases, label, &request.note);
    let left = timeout(&*context.env.clock, LEAVING, leaving).await;
    // In most cases there is nothing, and why the store does not answer is being told already.
    tracing::debug!(?left, "withdrew");
}

async fn leave_all(leases: &dyn LeaseProvider, label: &Label, note: &str) -> StoreResult<()> {
    let Some(lease) = leases.inspect(label).await? else { return Ok(()) };
    let granted = lease.grants.into_iter().map(|grant| (grant.note, grant.ticket));
    let waiting = lease.waiting.into_iter().map(|waiter| (waiter.note, waiter.ticket));
    for (_, ticket) in granted.chain(waiting).filter(|(of, _)| of == note) {
        leases.leave(&ticket).await?;
    }
    Ok(())
}
