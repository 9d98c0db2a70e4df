//! [`LeaseProvider`] over a store: renewals and everything else that is a single step. Waiting is in [`super::waiter`].

mod head;
mod join;
mod settle;
mod standing;
mod tickets;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{future::join, stream::BoxStream};

pub(super) use self::head::Swap;
use self::join::Joining;
use super::{
    Index, Oddities,
    queue::{HeadGrant, TicketRef, TicketRow, TicketValue},
    waiter::Waiter,
};
use crate::{
    Capabilities, Env, Error, Instant, Kind, Label, LeaseProvider, Namespace, Result, Timestamp,
    lease::{
        Ending, Granted, Lease, MOST_NOTE, MOST_SLOTS, PastGrant, Request, Standing, Term, Ticket,
        Token, Waiter as Waiting,
    },
    store::{Group, Reliable, Store as _, Version},
};

/// How often a swap that lost is tried again before the lease is called too busy.
const MOST_SWAPS: u32 = 400;

/// The lease provider over a store.
#[derive(Clone, Debug)]
pub(crate) struct Leases(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Arc<Reliable>,
    namespace: Namespace,
    env: Env,
    index: Index,
    oddities: Oddities,
    /// Since when tickets that no head knows of were seen as they are.
    orphans: Mutex<BTreeMap<(Label, Version), Instant>>,
    /// Own grants' tickets as they were last, by nonce: so that leaving need not read before it deletes.
    held: Mutex<HashMap<String, Version>>,
}

impl Leases {
    pub(crate) fn new(store: Arc<Reliable>, namespace: &Namespace, env: Env) -> Self {
        let index = Index { group: Group::of(namespace, "leases"), store: store.clone() };
        let namespace = namespace.clone();
        let (oddities, orphans, held) = (Oddities::default(), Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { store, namespace, env, index, oddities, orphans, held }))
    }

    pub(super) fn store(&self) -> &Reliable {
        &self.0.store
    }

    pub(super) fn env(&self) -> &Env {
        &self.0.env
    }

    pub(super) fn oddities(&self) -> &Oddities {
        &self.0.oddities
    }

    pub(super) fn group(&self, lease: &Label) -> Group {
        Group::scoped(&self.0.namespace, "lease", &lease.into())
    }

    fn now(&self) -> Instant {
        self.env().clock.now()
    }

    fn wall(&self) -> Timestamp {
        self.env().clock.wall()
    }
}

#[async_trait]
impl LeaseProvider for Leases {
    fn capabilities(&self) -> Capabilities {
        self.store().capabilities()
    }

    async fn join(&self, lease: &Label, request: &Request) -> Result<(Ticket, Standing)> {
        self.check(request)?;
        let (mut joining, head) = Joining::begin(self, lease, request).await?;
        let standing = match joining.run(head).await {
            Ok(standing) => standing,
            Err(error) => return Err(joining.give_up(error).await),
        };
        match standing {
            Standing::Granted(_) => joining.hold(),
            Standing::Refused { .. } | Standing::Gone => {
                self.delete_ticket(lease, &joining.ticket, None).await?;
            }
            Standing::Waiting { .. } => {}
        }
        Ok((public_ticket(lease, &joining.ticket), standing))
    }

    async fn standing(&self, ticket: &Ticket) -> Result<Standing> {
        let sent = self.now();
        let queue = self.queue(&ticket.lease).await?;
        Ok(self.standing_in(&ticket.lease, &queue, &reference(ticket), sent))
    }

    fn wait(&self, ticket: &Ticket) -> BoxStream<'static, Result<Standing>> {
        Waiter::new(self.clone(), ticket.lease.clone(), reference(ticket)).standings()
    }

    async fn renew(&self, ticket: &Ticket) -> Result<()> {
        let reference = reference(ticket);
        let error = match self.touch(&ticket.lease, &reference, None).await {
            Ok(version) => {
                self.hold(&reference, version);
                return Ok(());
            }
            Err(error) if error.kind() == Kind::Conflict => error,
            Err(error) => {
                if error.kind() == Kind::Lost {
                    self.let_go(&reference);
                }
                return Err(error);
            }
        };
        // Not what a grant's record says: it may wait, or have been evicted.
        match self.ticket(&ticket.lease, &reference).await? {
            Some(TicketRow {
                value: TicketValue { number: Some(number), evicted: false, .. },
                ..
            }) => self.touch(&ticket.lease, &reference, Some(number)).await.map(drop),
            _ => Err(Error::new(Kind::Lost, "the grant was evicted").because(error)),
        }
    }

    async fn leave(&self, ticket: &Ticket) -> Result<()> {
        let (lease, reference) = (&ticket.lease, reference(ticket));
        // The ticket first: from then on nobody can renew it, and whoever comes next may settle the rest.
        let queue = match self.let_go(&reference) {
            held @ Some(_) => {
                let deleting = self.delete_ticket(lease, &reference, held);
                let (queue, deleted) = join(self.queue(lease), deleting).await;
                deleted?;
                queue?
            }
            None => {
                let queue = self.queue(lease).await?;
                let known = queue.ticket(&reference).map(|row| row.version.clone());
                self.delete_ticket(lease, &reference, known).await?;
                queue
            }
        };
        match self.end(lease, queue, &reference, Ending::Left).await {
            Err(error) if error.kind() == Kind::NotFound => Ok(()),
            left => left,
        }
    }

    async fn names(&self) -> Result<Vec<Label>> {
        self.0.index.names().await
    }

    async fn inspect(&self, lease: &Label) -> Result<Option<Lease>> {
        let queue = self.queue(lease).await?;
        let Some((head, _)) = &queue.head else {
            return Ok(None);
        };
        let waiting = queue.waiting().into_iter().filter(|row| !row.is_over());
        let waiting = waiting.map(|row| Waiting {
            holder: row.value.holder.clone(),
            since: row.value.since,
            note: row.value.note.clone(),
            ticket: public_ticket(lease, &row.reference()),
        });
        let past = head.past.iter().map(|past| PastGrant {
            holder: past.holder.clone(),
            token: past.token,
            ended: past.ended,
            how: past.how,
        });
        Ok(Some(Lease {
            name: lease.clone(),
            slots: head.slots,
            grants: self.grants(lease, &queue),
            waiting: waiting.collect(),
            past: past.collect(),
        }))
    }

    async fn resize(&self, lease: &Label, slots: u32) -> Result<()> {
        self.refuse_where_unsafe()?;
        if !(1..=MOST_SLOTS).contains(&slots) {
            let message = format!("{slots} slots; a lease has 1 to {MOST_SLOTS}");
            return Err(Error::new(Kind::Invalid, message));
        }
        self.swap(lease, |head, _| {
            head.resize(slots);
            Ok(Swap::Write(()))
        })
        .await
    }

    async fn evict(&self, lease: &Label, token: Token, force: bool) -> Result<()> {
        let found = self.swap(lease, |head, _| {
            let Some(grant) = head.grants.iter_mut().find(|grant| grant.token == token) else {
                return Ok(Swap::Keep(None));
            };
            let is_forced = force && grant.attended;
            grant.evicted = Some(if is_forced { Ending::Forced } else { Ending::Evicted });
            Ok(Swap::Write(Some((grant.ticket.clone(), force || !grant.attended))))
        });
        let found = match found.await {
            Err(error) if error.kind() == Kind::NotFound => None,
            found => found?,
        };
        match found {
            None => {
                let message = format!("no grant of the lease has the token {token}");
                Err(Error::new(Kind::NotFound, message).during("evict").at(lease))
            }
            Some((ticket, true)) => {
                self.delete_ticket(lease, &ticket, None).await?;
                self.swap(lease, |_, _| Ok(Swap::Keep(()))).await
            }
            Some((ticket, false)) => self.forbid_renewal(lease, &ticket).await,
        }
    }
}

impl Leases {
    fn refuse_where_unsafe(&self) -> Result<()> {
        let message =
            "this store cannot promise that a lease has one holder (it is not linearizable)";
        if self.capabilities().linearizable { Ok(()) } else { crate::backend::refuse(message) }
    }

    fn check(&self, request: &Request) -> Result<()> {
        self.refuse_where_unsafe()?;
        if !(1..=MOST_SLOTS).contains(&request.slots) {
            let message = format!("{} slots; a lease has 1 to {MOST_SLOTS}", request.slots);
            return Err(Error::new(Kind::Invalid, message));
        }
        if request.note.len() > MOST_NOTE {
            let message = format!("a note of {} bytes; {MOST_NOTE} fit", request.note.len());
            return Err(Error::new(Kind::Invalid, message));
        }
        let (ttl, least) = (request.term.length(), self.capabilities().min_ttl);
        if ttl < least {
            let message =
                format!("a ttl of {ttl:?} is below the {least:?} that this store can keep");
            return Err(Error::new(Kind::Invalid, message));
        }
        Ok(())
    }
}

impl Term {
    /// How long a grant lasts without renewal.
    #[must_use]
    pub fn length(self) -> Duration {
        match self {
            Self::Attended { ttl } => ttl,
            Self::Unattended { time, .. } => time,
        }
    }
}

pub(super) fn granted(grant: &HeadGrant, counted_from: Instant) -> Granted {
    let HeadGrant { token, slot, expires_at, .. } = *grant;
    Granted { token, slot, counted_from, expires_at }
}

fn reference(ticket: &Ticket) -> TicketRef {
    TicketRef { name: ticket.name.clone(), nonce: ticket.nonce.clone() }
}

fn public_ticket(lease: &Label, ticket: &TicketRef) -> Ticket {
    let TicketRef { name, nonce } = ticket.clone();
    Ticket { lease: lease.clone(), name, nonce }
}

fn slots_differ(lease: &Label, wanted: u32, has: u32) -> Error {
    let message =
        format!("the lease has {has} slots, not {wanted}; resize it, or join it with {has}");
    Error::new(Kind::Invalid, message).during("join").at(lease)
}

fn too_busy(lease: &Label) -> Error {
    Error::new(Kind::Throttled, "too many change the lease at once")
        .at(lease)
        .retry_as(crate::Retry::Exhausted)
}

fn not_found(lease: &Label) -> Error {
    Error::new(Kind::NotFound, "there is no such lease").at(lease)
}
