//! [`LeaseProvider`] over a store: renewals and everything else that is a single step. Waiting is in [`super::waiter`].

mod join;
mod settle;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{future::join, stream::BoxStream};

use self::join::Joining;
use super::{
    Index, Oddities, put_json,
    queue::{HEAD, Head, HeadGrant, Queue, TicketRef, TicketRow, TicketValue},
    to_json,
    waiter::Waiter,
};
use crate::{
    Capabilities, Env, Error, Instant, Kind, Label, LeaseProvider, Name, Namespace, Result,
    Timestamp,
    lease::{
        Ending, Grant, Granted, Lease, MOST_SLOTS, PastGrant, Request, Standing, Term, Ticket,
        Token, Waiter as Waiting,
    },
    store::{Expect, Group, Keep, Key, Life, Put, Record, Reliable, Store as _, Version, WriteId},
};

/// Tickets of a lease have one of so many names, used again and again: some stores keep a row for every name ever deleted.
const TICKET_NAMES: u64 = 4096;

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

/// What a swap makes of the head.
pub(super) enum Swap<T> {
    /// Write it, then return this.
    Write(T),
    /// Leave it as it is, and return this.
    Keep(T),
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

    fn head_key(&self, lease: &Label) -> Result<Key> {
        Ok(self.group(lease).key(HEAD.parse::<Name>()?))
    }

    fn now(&self) -> Instant {
        self.env().clock.now()
    }

    fn wall(&self) -> Timestamp {
        self.env().clock.wall()
    }

    /// Reads everything about a lease.
    pub(super) async fn queue(&self, lease: &Label) -> Result<Queue> {
        let records = self.store().list(&[self.group(lease)]).await?;
        Queue::read(&records, self.oddities())
    }

    async fn head(&self, lease: &Label) -> Result<Option<(Head, Version)>> {
        let record = self.store().get(&self.head_key(lease)?).await?;
        let read = |record: Record| Ok((super::from_json(&record)?, record.version));
        record.map(read).transpose()
    }

    async fn put_head(&self, lease: &Label, head: &Head, expect: Expect) -> Result<Version> {
        let key = self.head_key(lease)?;
        let put = put_json(&self.env().random, &key, head, expect, Keep::Durable)?;
        self.store().put(&put).await
    }

    /// Changes the head by compare-and-swap: reads the whole queue, lets `change` decide, and tries again where somebody
    /// else was faster. Every change also settles what is due: grants without ticket have expired, free slots are offered.
    pub(super) async fn swap<T: Send>(
        &self,
        lease: &Label,
        change: impl Fn(&mut Head, &Queue) -> Result<Swap<T>> + Send + Sync,
    ) -> Result<T> {
        self.swap_from(lease, self.queue(lease).await?, None, change).await
    }

    /// Settles what is due after a ticket was deleted, whose grant ends as `how` says. Begins with what was read before.
    pub(super) async fn end(
        &self,
        lease: &Label,
        mut queue: Queue,
        ticket: &TicketRef,
        how: Ending,
    ) -> Result<()> {
        // A slot must not be offered to a ticket that is no more.
        if queue.ticket(ticket).is_some() {
            queue.remove(&ticket.name);
        }
        self.swap_from(lease, queue, Some((ticket, how)), |_, _| Ok(Swap::Keep(()))).await
    }

    async fn swap_from<T: Send>(
        &self,
        lease: &Label,
        mut queue: Queue,
        ended: Option<(&TicketRef, Ending)>,
        change: impl Fn(&mut Head, &Queue) -> Result<Swap<T>> + Send + Sync,
    ) -> Result<T> {
        for attempt in 0..MOST_SWAPS {
            let Some((mut head, version)) = queue.head.clone() else {
                return Err(not_found(lease));
            };
            let ended = ended.is_some_and(|(ticket, how)| head.end(ticket, how, self.wall()));
            let settled = self.settle(lease, &queue, &mut head).await? | ended;
            let (value, wanted) = match change(&mut head, &queue)? {
                Swap::Write(value) => (value, true),
                Swap::Keep(value) => (value, false),
            };
            if !wanted && !settled {
                return Ok(value);
            }
            head.offer(&queue);
            match self.put_head(lease, &head, Expect::At(version)).await {
                Ok(_) => return Ok(value),
                Err(error) if error.kind() == Kind::Conflict => self.pause(attempt).await,
                Err(error) => return Err(error),
            }
            queue = self.queue(lease).await?;
        }
        Err(too_busy(lease))
    }

    /// Reads one ticket's record.
    pub(super) async fn ticket(
        &self,
        lease: &Label,
        ticket: &TicketRef,
    ) -> Result<Option<TicketRow>> {
        let Some(record) = self.store().get(&self.group(lease).key(ticket.name.clone())).await?
        else {
            return Ok(None);
        };
        let mut queue = Queue::default();
        queue.put(&record, self.oddities())?;
        Ok(queue.ticket(ticket).cloned())
    }

    /// Turns the offer to a ticket into a grant; `None` when it was passed on. Begins with a head that was read before.
    pub(super) async fn take_offer(
        &self,
        lease: &Label,
        ticket: &TicketRef,
        value: &TicketValue,
        mut known: Option<(Head, Version)>,
    ) -> Result<Option<HeadGrant>> {
        for attempt in 0..MOST_SWAPS {
            let read = match known.take() {
                Some(known) => Some(known),
                None => self.head(lease).await?,
            };
            let Some((mut head, version)) = read else {
                return Ok(None);
            };
            // A swap whose answer was lost may have been applied.
            if let Some(grant) = head.grant_of(ticket) {
                return Ok(Some(grant.clone()));
            }
            if !head.offers.contains(ticket) {
                return Ok(None);
            }
            let grant = head.grant(ticket.clone(), value, self.wall())?.clone();
            match self.put_head(lease, &head, Expect::At(version)).await {
                Ok(_) => return Ok(Some(grant)),
                Err(error) if error.kind() == Kind::Conflict => self.pause(attempt).await,
                Err(error) => return Err(error),
            }
        }
        Err(too_busy(lease))
    }

    /// Deletes a ticket's record, whatever happened to it meanwhile.
    pub(super) async fn delete_ticket(
        &self,
        lease: &Label,
        ticket: &TicketRef,
        mut known: Option<Version>,
    ) -> Result<()> {
        let key = self.group(lease).key(ticket.name.clone());
        for attempt in 0..MOST_SWAPS {
            let version = match known.take() {
                Some(version) => version,
                None => match self.ticket(lease, ticket).await? {
                    Some(row) => row.version,
                    None => return Ok(()),
                },
            };
            match self.store().delete(&key, &version).await {
                Err(error) if error.kind() == Kind::NotFound => return Ok(()),
                Err(error) if error.kind() == Kind::Conflict => self.pause(attempt).await,
                answer => return answer,
            }
        }
        Err(too_busy(lease))
    }

    /// Remembers the ticket of a grant of this process.
    pub(super) fn hold(&self, ticket: &TicketRef, version: Version) {
        self.held().insert(ticket.nonce.clone(), version);
    }

    fn let_go(&self, ticket: &TicketRef) -> Option<Version> {
        self.held().remove(&ticket.nonce)
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Version>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives others who swap the same head a chance.
    async fn pause(&self, attempt: u32) {
        let longest = Duration::from_millis(2) * (attempt + 1).min(25);
        let pause = longest.mul_f64(self.env().random.below(1000) as f64 / 1000.0);
        self.env().clock.sleep(pause).await;
    }

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
        let (ttl, least) = (request.term.length(), self.capabilities().min_ttl);
        if ttl < least {
            let message =
                format!("a ttl of {ttl:?} is below the {least:?} that this store can keep");
            return Err(Error::new(Kind::Invalid, message));
        }
        Ok(())
    }
}

impl Leases {
    /// Puts a new ticket under a name that is free, and a nonce for that name.
    async fn put_ticket(
        &self,
        lease: &Label,
        value: &mut TicketValue,
    ) -> Result<(TicketRef, Version, Instant)> {
        for _ in 0..MOST_SWAPS {
            let name: Name = format!("t-{:03x}", self.env().random.below(TICKET_NAMES)).parse()?;
            value.nonce = self.env().random.id();
            let ttl = Duration::from_millis(value.ttl_ms);
            let put = self.ticket_put(lease, &name, value, Expect::Absent, ttl)?;
            let sent = self.now();
            match self.store().put(&put).await {
                Ok(version) => {
                    return Ok((TicketRef { name, nonce: value.nonce.clone() }, version, sent));
                }
                Err(error) if error.kind() == Kind::Conflict => {}
                Err(error) => return Err(error),
            }
        }
        Err(too_busy(lease))
    }

    /// The put of a ticket's record. Its write id follows from what it says, so that a renewal knows it.
    pub(super) fn ticket_put(
        &self,
        lease: &Label,
        name: &Name,
        value: &TicketValue,
        expect: Expect,
        ttl: Duration,
    ) -> Result<Put> {
        let write = if value.evicted {
            WriteId::draw(&self.env().random)
        } else {
            write_id(&value.nonce, value.number)
        };
        let key = self.group(lease).key(name.clone());
        Ok(Put { key, value: to_json(value)?, expect, keep: Keep::Ephemeral(ttl), write })
    }

    /// Gives a ticket's record its whole ttl again.
    pub(super) async fn touch(
        &self,
        lease: &Label,
        ticket: &TicketRef,
        number: Option<u64>,
    ) -> Result<Version> {
        let key = self.group(lease).key(ticket.name.clone());
        self.store().touch(&key, &write_id(&ticket.nonce, number)).await
    }

    /// Where a ticket stands by what was read after `sent`.
    pub(super) fn standing_in(
        &self,
        lease: &Label,
        queue: &Queue,
        ticket: &TicketRef,
        sent: Instant,
    ) -> Standing {
        let Some(row) = queue.ticket(ticket) else {
            return Standing::Gone;
        };
        if let Some(grant) = queue.grant_of(row) {
            // What is left by the store's clock is not known exactly enough for an exclusion to hang on it: a renewal tells.
            let is_for_sure = self.capabilities().server_expiry || !grant.attended;
            let ttl = Duration::from_millis(row.value.ttl_ms);
            let from = if is_for_sure { row.counted_from(sent) } else { sent - ttl };
            return Standing::Granted(granted(grant, from));
        }
        if !row.waits() {
            // A claim that was broken off can be taken up again for as long as the slot is kept.
            let is_offered =
                queue.head.as_ref().is_some_and(|(head, _)| head.offers.contains(ticket));
            return if is_offered {
                Standing::Waiting { ahead: 0, holders: self.grants(lease, queue) }
            } else {
                Standing::Gone
            };
        }
        let ahead = queue.before(row).count();
        Standing::Waiting { ahead, holders: self.grants(lease, queue) }
    }

    /// The grants, as anybody sees them.
    fn grants(&self, lease: &Label, queue: &Queue) -> Vec<Grant> {
        let Some((head, _)) = &queue.head else {
            return Vec::new();
        };
        let wall = self.wall();
        let mut grants: Vec<_> = head
            .grants
            .iter()
            .filter_map(|grant| {
                let row = queue.ticket(&grant.ticket).filter(|row| !row.waits())?;
                // What has ended already is only waiting to be swept up.
                if !grant.attended && row.is_over() {
                    return None;
                }
                let left = match row.life {
                    Life::Ephemeral { left, .. } => left,
                    Life::Durable => None,
                };
                Some(Grant {
                    holder: grant.holder.clone(),
                    token: grant.token,
                    slot: grant.slot,
                    since: grant.since,
                    expires_at: grant.expires_at.or_else(|| left.map(|left| wall + left)),
                    attended: grant.attended,
                    evicted: grant.evicted.is_some(),
                    note: grant.note.clone(),
                    ticket: public_ticket(lease, &grant.ticket),
                })
            })
            .collect();
        grants.sort_by_key(|grant| grant.slot);
        grants
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
    /// Rewrites a ticket so that its holder's next renewal fails; it ends one ttl from now.
    async fn forbid_renewal(&self, lease: &Label, ticket: &TicketRef) -> Result<()> {
        for attempt in 0..MOST_SWAPS {
            let Some(row) = self.ticket(lease, ticket).await? else {
                return Ok(());
            };
            if row.value.evicted {
                return Ok(());
            }
            let value = TicketValue { evicted: true, ..row.value };
            let ttl = Duration::from_millis(value.ttl_ms);
            let put = self.ticket_put(lease, &ticket.name, &value, Expect::At(row.version), ttl)?;
            match self.store().put(&put).await {
                Err(error) if error.kind() == Kind::Conflict => self.pause(attempt).await,
                answer => return answer.map(drop),
            }
        }
        Err(too_busy(lease))
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

fn write_id(nonce: &str, number: Option<u64>) -> WriteId {
    WriteId::new(match number {
        None => nonce.to_owned(),
        Some(number) => format!("{nonce}.{number}"),
    })
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
