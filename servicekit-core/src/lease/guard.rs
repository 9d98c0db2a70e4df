//! Obtaining a lease, and keeping it.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::{
    StreamExt as _,
    future::{Either, select},
};
use tokio::{sync::watch, task::JoinHandle};

use super::{Grant, Granted, LeaseProvider, Request, Standing, Term, Ticket, Token, turn};
use crate::{Env, Error, Instant, Kind, Label, Result};

/// What obtaining a lease ended in.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_enums, reason = "a caller has to handle each")]
pub enum Obtained {
    /// A slot.
    Granted(Ticket, Granted),
    /// No slot was free in time; nothing is left in the store.
    NotGranted {
        /// Who held the slots, as far as that is known.
        holders: Vec<Grant>,
    },
}

/// What happens while a lease is waited for.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "a caller has to handle each")]
pub enum Progress<'a> {
    /// The ticket waits; told again whenever that changes.
    Waiting {
        /// How many are before it in the queue.
        ahead: usize,
        /// Who holds the slots.
        holders: &'a [Grant],
    },
    /// The store cannot be reached; told once.
    StoreAway(&'a Error),
    /// The store answers again.
    StoreBack,
}

/// Obtains a lease: joins its queue and waits for as long as the request says, also while the store is away.
///
/// A request that does not wait waits nevertheless, for two turns at most, where a slot is free but kept for somebody who has
/// not claimed it: whoever died with its turn would keep it, if nobody waited.
///
/// `tell` is called on the way. For a lease that is kept by this process use [`acquire`].
///
/// # Errors
///
/// Those of [`LeaseProvider::join`] that waiting cannot mend; the last error when the store is away as the time ends, or
/// when the request does not wait.
///
/// # Cancel safety
///
/// Dropping the future leaves a ticket behind that misses its turn and ends by itself.
pub async fn obtain(
    provider: &Arc<dyn LeaseProvider>,
    lease: &Label,
    request: &Request,
    env: &Env,
    mut tell: impl FnMut(Progress<'_>) + Send,
) -> Result<Obtained> {
    let mut wait = request.wait;
    let mut deadline = env.clock.now() + wait.unwrap_or_default().min(FOREVER);
    let all_held = |holders: &[Grant]| holders.len() >= request.slots as usize;
    let mut outage = Outage::default();
    let mut holders = Vec::new();
    loop {
        let left = deadline.since(env.clock.now());
        let attempt = Request { wait: wait.map(|_| left), ..request.clone() };
        let joining = until(env, wait.map(|_| deadline), provider.join(lease, &attempt)).await;
        let (ticket, mut standing) = match joining {
            None => {
                // Nothing was heard in all that time: that is no answer to give.
                let message = "the store did not answer within the time to wait";
                let error = || Error::new(Kind::Timeout, message).during("join").at(lease);
                return Err(outage.0.unwrap_or_else(error));
            }
            Some(Ok(joined)) => {
                outage.back(&mut tell);
                joined
            }
            Some(Err(error)) if error.is_transient() && request.wait.is_some() => {
                outage.away(error, &mut tell);
                env.clock.sleep(env.random.jitter(PAUSE, 0.5)).await;
                continue;
            }
            Some(Err(error)) => return Err(error),
        };
        let mut standings = provider.wait(&ticket);
        loop {
            match standing {
                Standing::Granted(granted) => return Ok(Obtained::Granted(ticket, granted)),
                Standing::Refused { holders } if wait.is_some() || all_held(&holders) => {
                    return Ok(Obtained::NotGranted { holders });
                }
                // A slot is free, and kept: who it is kept for claims it at once, or never.
                Standing::Refused { .. } => {
                    let turns = turn(provider.capabilities()) * 2;
                    (wait, deadline) = (Some(turns), env.clock.now() + turns);
                    break;
                }
                Standing::Waiting { holders, .. }
                    if request.wait.is_none() && all_held(&holders) =>
                {
                    drop(standings);
                    outage.last(leave(provider, &ticket, env).await);
                    return outage.end(holders);
                }
                // Its turn was missed, or it was not renewed during an outage: stand in line again.
                Standing::Gone => break,
                Standing::Waiting { ahead, holders: now } => {
                    tell(Progress::Waiting { ahead, holders: &now });
                    holders = now;
                }
            }
            standing = loop {
                match until(env, Some(deadline), standings.next()).await {
                    None => {
                        drop(standings);
                        outage.last(leave(provider, &ticket, env).await);
                        return outage.end(holders);
                    }
                    Some(None) => break Standing::Gone,
                    Some(Some(Ok(standing))) => {
                        outage.back(&mut tell);
                        break standing;
                    }
                    Some(Some(Err(error))) if error.is_transient() => outage.away(error, &mut tell),
                    Some(Some(Err(error))) => {
                        drop(standings);
                        let _ = leave(provider, &ticket, env).await;
                        return Err(error);
                    }
                }
            };
        }
        if env.clock.now() >= deadline {
            return outage.end(holders);
        }
    }
}

/// Waiting longer than this is waiting for ever; timers need a number.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The pause after a join that failed.
const PAUSE: Duration = Duration::from_millis(500);

/// How long leaving the queue may take once the time is over.
const LEAVING: Duration = Duration::from_secs(2);

/// Leaves the queue at the end of the wait. A grant that comes at this very moment is given back.
async fn leave(provider: &Arc<dyn LeaseProvider>, ticket: &Ticket, env: &Env) -> Result<()> {
    let leaving = until(env, Some(env.clock.now() + LEAVING), provider.leave(ticket)).await;
    let silent = || Error::new(Kind::Timeout, format!("no answer within {LEAVING:?}"));
    let left = leaving.unwrap_or_else(|| Err(silent().during("leave").at(ticket.lease())));
    if let Err(error) = &left {
        tracing::debug!(%error, "a ticket is left to end by itself");
    }
    left
}

async fn until<F: Future + Send>(
    env: &Env,
    deadline: Option<Instant>,
    future: F,
) -> Option<F::Output> {
    let Some(deadline) = deadline else {
        return Some(future.await);
    };
    match select(std::pin::pin!(future), env.clock.sleep_until(deadline)).await {
        Either::Left((output, _)) => Some(output),
        Either::Right(((), _)) => None,
    }
}

/// Whether the store is away, told once.
#[derive(Default)]
struct Outage(Option<Error>);

impl Outage {
    fn away(&mut self, error: Error, tell: &mut impl FnMut(Progress<'_>)) {
        if self.0.is_none() {
            tell(Progress::StoreAway(&error));
        }
        self.0 = Some(error);
    }

    fn back(&mut self, tell: &mut impl FnMut(Progress<'_>)) {
        if self.0.take().is_some() {
            tell(Progress::StoreBack);
        }
    }

    /// Takes in the answer to the last request: of an outage that is young nothing else was heard.
    fn last(&mut self, answer: Result<()>) {
        match answer {
            Err(error) if error.is_transient() => self.0 = Some(error),
            _ => {}
        }
    }

    fn end(self, holders: Vec<Grant>) -> Result<Obtained> {
        match self.0 {
            Some(error) => Err(error),
            None => Ok(Obtained::NotGranted { holders }),
        }
    }
}

/// Obtains a lease for `ttl` at a time, and keeps it; `None` when no slot was free within `wait`.
///
/// ```
/// # use std::{sync::Arc, time::Duration};
/// # use servicekit_core::{Backend, Env, Namespace, lease, store::{Limits, Memory, Profile}};
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// # let env = Env::system();
/// # let store = Arc::new(Memory::new(env.clone(), Profile::Server));
/// # let backend = Backend::over("memory", store, Namespace::default(), env.clone(), Limits::default());
/// let request = lease::Request {
///     holder: "db-1".parse()?,
///     term: lease::Term::Attended { ttl: Duration::from_secs(30) },
///     slots: 1,
///     wait: Some(Duration::from_secs(60)),
///     note: String::new(),
/// };
/// let guard = lease::acquire(&backend.leases, &"migrate".parse()?, &request, &env).await?;
/// let guard = guard.expect("nobody else wants it");
/// assert!(guard.token().0 > 0); // give it to whatever the lease protects
/// guard.release().await?;
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
///
/// # Errors
///
/// Those of [`obtain`]; `Invalid` for a request that is not [`Term::Attended`].
///
/// # Cancel safety
///
/// As [`obtain`].
pub async fn acquire(
    provider: &Arc<dyn LeaseProvider>,
    lease: &Label,
    request: &Request,
    env: &Env,
) -> Result<Option<Guard>> {
    let Term::Attended { ttl } = request.term else {
        return Err(Error::new(Kind::Invalid, "only an attended lease can be kept").at(lease));
    };
    match obtain(provider, lease, request, env, |_| {}).await? {
        Obtained::Granted(ticket, granted) => {
            Ok(Some(Guard::keep(provider.clone(), ticket, granted, ttl, env.clone())))
        }
        Obtained::NotGranted { .. } => Ok(None),
    }
}

/// A grant that a task of this process renews.
///
/// Work under the lease must stop by [`Guard::deadline`], which every renewal moves on, and which the guard never moves
/// past what the store can know. [`Guard::lost`] tells when it is over. Dropping a guard stops renewing: the grant ends by
/// its ttl; [`Guard::release`] ends it now.
pub struct Guard {
    provider: Arc<dyn LeaseProvider>,
    ticket: Ticket,
    granted: Granted,
    state: watch::Receiver<Held>,
    trouble: watch::Receiver<Option<Arc<Error>>>,
    renewing: JoinHandle<()>,
}

/// What a guard knows of its grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there are two")]
pub enum Held {
    /// It stands until this moment, unless it is renewed.
    Until(Instant),
    /// It is over.
    Lost(Loss),
}

/// How a grant was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Loss {
    /// The store says that it has ended, or was evicted.
    Ended,
    /// No renewal was acknowledged before its deadline.
    Unrenewed,
}

/// How much earlier than its ttl a grant is given up: a tenth, for clocks that do not run at the same rate.
#[must_use]
pub fn margin(ttl: Duration) -> Duration {
    ttl / 10
}

impl Guard {
    /// Keeps a grant for as long as the guard lives, renewing it three times per ttl.
    #[must_use]
    pub fn keep(
        provider: Arc<dyn LeaseProvider>,
        ticket: Ticket,
        granted: Granted,
        ttl: Duration,
        env: Env,
    ) -> Self {
        let from = granted.counted_from;
        let (held, state) = watch::channel(Held::Until(from + ttl - margin(ttl)));
        let (complaints, trouble) = watch::channel(None);
        let tell = Tell { held, complaints };
        let renewal = renew(provider.clone(), ticket.clone(), from, ttl, env, tell);
        Self { provider, ticket, granted, state, trouble, renewing: tokio::spawn(renewal) }
    }

    /// The fencing token: give it to whatever the lease protects.
    #[must_use]
    pub fn token(&self) -> Token {
        self.granted.token
    }

    /// Which of the slots, from 0.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.granted.slot
    }

    /// The moment by which all work under the grant must have stopped, unless it is renewed; `None` once it is lost.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match *self.state.borrow() {
            Held::Until(deadline) => Some(deadline),
            Held::Lost(_) => None,
        }
    }

    /// Follows the deadline, and the loss.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<Held> {
        self.state.clone()
    }

    /// Follows why the grant is not being renewed: the last failure, or that no answer has come for a tenth of the ttl;
    /// `None` while all is well. The grant stands nevertheless, until its deadline.
    #[must_use]
    pub fn trouble(&self) -> watch::Receiver<Option<Arc<Error>>> {
        self.trouble.clone()
    }

    /// Waits until the grant is lost. By then its work must have stopped; see [`Guard::deadline`] for when to begin.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn lost(&self) -> Loss {
        let mut state = self.state.clone();
        loop {
            if let Held::Lost(loss) = *state.borrow_and_update() {
                return loss;
            }
            if state.changed().await.is_err() {
                return Loss::Ended;
            }
        }
    }

    /// Stops renewing and gives the slot back, also after a loss.
    ///
    /// # Errors
    ///
    /// Those of [`LeaseProvider::leave`]; the grant then ends by its ttl.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves unknown whether the slot was given back; it ends by its ttl.
    pub async fn release(self) -> Result<()> {
        self.renewing.abort();
        self.provider.leave(&self.ticket).await
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ticket, granted, .. } = self;
        f.debug_struct("Guard").field("lease", ticket.lease()).field("granted", granted).finish()
    }
}

/// What others learn from the renewals.
struct Tell {
    held: watch::Sender<Held>,
    complaints: watch::Sender<Option<Arc<Error>>>,
}

/// Renews until the grant is lost. A renewal counts from the moment before it was sent, and races the deadline.
async fn renew(
    provider: Arc<dyn LeaseProvider>,
    ticket: Ticket,
    mut from: Instant,
    ttl: Duration,
    env: Env,
    tell: Tell,
) {
    let clock = &*env.clock;
    let mut next = from + ttl / 3;
    let loss = loop {
        let deadline = from + ttl - margin(ttl);
        clock.sleep_until(next.min(deadline)).await;
        let sent = clock.now();
        // Also when this process was stopped for a while: the deadline comes first.
        if sent >= deadline {
            break Loss::Unrenewed;
        }
        let mut renewal = provider.renew(&ticket);
        let mut answer = until(&env, Some(deadline.min(sent + ttl / 10)), &mut renewal).await;
        if answer.is_none() {
            // It may still be answered in time; people should hear of it before it is too late.
            let message = format!("no answer to a renewal within {:?}", ttl / 10);
            tell.complain(Error::new(Kind::Timeout, message).at(ticket.lease()));
            answer = until(&env, Some(deadline), renewal).await;
        }
        match answer {
            None => break Loss::Unrenewed,
            Some(Ok(())) => {
                from = sent;
                next = sent + ttl / 3;
                tell.held.send_replace(Held::Until(from + ttl - margin(ttl)));
                tell.complaints.send_if_modified(|complaint| complaint.take().is_some());
            }
            Some(Err(error)) if error.kind() == Kind::Lost => {
                tracing::debug!(%error, "the grant has ended");
                break Loss::Ended;
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "a renewal failed");
                tell.complain(error);
                next = clock.now() + env.random.jitter(ttl / 30, 0.5);
            }
        }
    };
    tell.held.send_replace(Held::Lost(loss));
}

impl Tell {
    fn complain(&self, error: Error) {
        self.complaints.send_replace(Some(Arc::new(error)));
    }
}
