//! Waiting for a grant: a follower of the lease's records that acts when it is this ticket's turn.
//!
//! A waiter sends nothing while others have their turn. What a dead holder or a dead waiter leaves undone is done by the
//! first in line; those behind it step in one after the other, in case that the first is dead too. On a store that pushes
//! nothing, a waiter looks at what may concern it, and more rarely the further back it is: [`look`].

mod look;

use std::{
    collections::BTreeMap,
    future::{Future, pending},
    iter::{from_fn, once},
    pin::pin,
    time::Duration,
};

use async_stream::stream;
use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{Either, join, select},
    stream::BoxStream,
};

use self::look::Looks;
use super::{
    leases::{Leases, Swap, granted},
    queue::{Head, Queue, TicketRef, TicketRow, TicketValue},
};
use crate::{
    Error, Instant, Kind, Label, Name, Result,
    lease::{Ending, Granted, Standing, turn},
    store::{Change, Expect, Life, Store as _, Version},
};

/// How much later each waiter steps in than the one before it.
const STEP: Duration = Duration::from_millis(250);

/// The pause after a failure.
const PAUSE: Duration = Duration::from_millis(500);

/// Waits for one ticket.
pub(super) struct Waiter {
    leases: Leases,
    lease: Label,
    ticket: TicketRef,
    queue: Queue,
    /// When each ticket's record was first seen as it is now, and what it said of its life then.
    observed: Observed,
    /// When each ticket that still waits was first seen to have its turn.
    turns: BTreeMap<TicketRef, Instant>,
    /// Since when something in the head has ended, or a slot is free.
    unsettled: Option<Instant>,
    /// When this ticket last had its whole ttl, as far as that is known.
    touched: Option<Instant>,
    /// What was looked at when, on a store that pushes nothing.
    looks: Option<Looks>,
}

type Observed = BTreeMap<Name, (Version, Instant, Life)>;

/// What is to be done, by this waiter, at some moment.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Task {
    /// Take the slot that is offered to this ticket.
    Claim,
    /// Delete a ticket whose time is over, by what was seen of it.
    End(TicketRef, Version),
    /// Swap the head: something in it has ended, or a slot is free.
    Settle,
    /// Keep this ticket from ending while it waits.
    Touch,
    /// See what others did, where the store does not tell.
    Look,
}

impl Waiter {
    pub(super) fn new(leases: Leases, lease: Label, ticket: TicketRef) -> Self {
        let (observed, turns) = (BTreeMap::new(), BTreeMap::new());
        let queue = Queue::default();
        let looks = (!leases.store().capabilities().push_watch).then(Looks::default);
        let (unsettled, touched) = (None, None);
        Self { leases, lease, ticket, queue, observed, turns, unsettled, touched, looks }
    }

    /// The standings, until `Granted` or `Gone`.
    pub(super) fn standings(mut self) -> BoxStream<'static, Result<Standing>> {
        Box::pin(stream! {
            let clock = self.leases.env().clock.clone();
            let group = self.leases.group(&self.lease);
            let mut changes = match &self.looks {
                None => self.leases.store().watch(&group),
                Some(_) => pending().into_stream().boxed(),
            };
            let mut told = None;
            let mut known = false;
            loop {
                let due = if known || self.looks.is_some() { self.due() } else { None };
                let act_at = due.as_ref().map(|(at, _)| *at);
                let timer = pin!(maybe(act_at.map(|at| clock.sleep_until(at))));
                let step = match select(changes.next(), timer).await {
                    Either::Left((Some(change), _)) => {
                        // Those that came together are looked at together: each look is work for everybody who waits.
                        let more = from_fn(|| changes.next().now_or_never().flatten());
                        once(change).chain(more).try_for_each(|change| self.take(change)).map(|()| None)
                    }
                    Either::Left((None, _)) => Err(Error::new(Kind::Unexpected, "the watch ended")),
                    Either::Right(((), _)) => match due {
                        Some((_, task)) => self.act(task).await,
                        None => Ok(None),
                    },
                };
                match step {
                    Ok(Some(granted)) => {
                        yield Ok(Standing::Granted(granted));
                        return;
                    }
                    Ok(None) => known = true,
                    Err(error) => {
                        // Whoever heard of an error wants to hear that it is over.
                        told = None;
                        yield Err(error);
                        clock.sleep(self.leases.env().random.jitter(PAUSE, 0.5)).await;
                        continue;
                    }
                }
                let standing = match self.standing().await {
                    Ok(standing) => standing,
                    Err(error) => {
                        told = None;
                        yield Err(error);
                        continue;
                    }
                };
                let is_over = matches!(standing, Standing::Granted(_) | Standing::Gone);
                if told.as_ref() != Some(&outline(&standing)) {
                    told = Some(outline(&standing));
                    yield Ok(standing);
                }
                if is_over {
                    return;
                }
            }
        })
    }

    /// Where the ticket stands by what was seen. A grant that was only seen counts from a renewal.
    async fn standing(&self) -> Result<Standing> {
        let clock = &self.leases.env().clock;
        let sent = clock.now();
        let Self { leases, lease, ticket, queue, .. } = self;
        let standing = leases.standing_in(lease, queue, ticket, sent);
        let attended = queue.ticket(ticket).is_some_and(|row| row.value.attended);
        let Standing::Granted(granted) = standing else {
            return Ok(standing);
        };
        if !attended {
            return Ok(Standing::Granted(granted));
        }
        match leases.touch(lease, ticket, None).await {
            Ok(_) => Ok(Standing::Granted(Granted { counted_from: sent, ..granted })),
            Err(error) if matches!(error.kind(), Kind::Lost | Kind::Conflict) => Ok(Standing::Gone),
            Err(error) => Err(error),
        }
    }

    /// Takes a change of the records in.
    fn take(&mut self, change: Result<Change>) -> Result<()> {
        let oddities = self.leases.oddities();
        let now = self.leases.env().clock.now();
        match change? {
            Change::Snapshot(records) => {
                self.queue = Queue::read(&records, oddities)?;
                let tickets = &self.queue.tickets;
                self.observed.retain(|name, _| tickets.contains_key(name));
                for row in tickets.values() {
                    observe(&mut self.observed, row, now);
                }
            }
            Change::Put(record) => {
                self.queue.put(&record, oddities)?;
                match self.queue.tickets.get(&record.key.name) {
                    Some(row) => observe(&mut self.observed, row, now),
                    None => drop(self.observed.remove(&record.key.name)),
                }
            }
            Change::Removed(name) => {
                self.queue.remove(&name);
                self.observed.remove(&name);
            }
        }
        let head = &self.queue.head;
        let turns = self.queue.turns();
        self.turns.retain(|ticket, _| turns.iter().any(|row| row.is(ticket)));
        for row in turns {
            self.turns.entry(row.reference()).or_insert(now);
        }
        if let Some((_, seen, Life::Ephemeral { ttl, left: Some(left) })) =
            self.observed.get(&self.ticket.name)
        {
            self.touched = self.touched.max(Some(*seen + *left - *ttl));
        }
        let is_unsettled =
            |(head, _): &(Head, Version)| head.is_open() || !self.queue.missing(head).is_empty();
        let is_unsettled = head.as_ref().is_some_and(is_unsettled);
        self.unsettled = is_unsettled.then(|| self.unsettled.unwrap_or(now));
        Ok(())
    }

    /// The next thing that this waiter has to do, and when.
    fn due(&self) -> Option<(Instant, Task)> {
        let own = self.queue.ticket(&self.ticket);
        let (Some((head, _)), Some(own)) = (&self.queue.head, own) else {
            return self.looks.as_ref().map(|looks| (looks.next(0), Task::Look));
        };
        if head.offers.contains(&self.ticket) || self.turns.contains_key(&self.ticket) {
            return Some((self.leases.env().clock.now(), Task::Claim));
        }
        let place = self.place(own);
        let patience = STEP * u32::try_from(place).unwrap_or(u32::MAX);
        let mut tasks = Vec::new();
        if let Some(since) = self.unsettled {
            // Whoever left this behind is most likely about to settle it.
            tasks.push((since + STEP + patience, Task::Settle));
        }
        let turn = turn(self.leases.store().capabilities());
        for (ticket, seen) in &self.turns {
            if let Some(row) = self.queue.ticket(ticket) {
                let end = Task::End(ticket.clone(), row.version.clone());
                tasks.push((*seen + turn + patience, end));
            }
        }
        if !self.leases.store().capabilities().server_expiry {
            // Who does not see all of the others' signs of life judges only those that hold something.
            let concerns = |row: &&TicketRow| self.looks.is_none() || head.names(row);
            let rows = self.queue.tickets.values().filter(concerns);
            let ends = rows.filter_map(|row| self.ends(row));
            tasks.extend(ends.map(|(at, task)| (at + patience, task)));
        }
        if let Some(looks) = &self.looks {
            let turns = place / usize::try_from(head.slots).unwrap_or(1).max(1);
            tasks.push((looks.next(turns), Task::Look));
        }
        if let Life::Ephemeral { ttl, .. } = own.life {
            // Without any word of it, now.
            let touched = self.touched.unwrap_or(Instant::from_boot(Duration::ZERO));
            tasks.push((touched + ttl / 4 * 3, Task::Touch));
        }
        tasks.into_iter().min_by_key(|(at, _)| *at)
    }

    /// How many wait before this one, and do not have their turn.
    fn place(&self, own: &TicketRow) -> usize {
        let has_turn = |row: &TicketRow| self.turns.keys().any(|ticket| row.is(ticket));
        self.queue.before(own).filter(|row| !has_turn(row)).count()
    }

    /// When a ticket ends, on a store that leaves that to observers: one that a process renews when this waiter has itself
    /// seen it unchanged for a whole ttl; any other when its time is over by the store's clock.
    fn ends(&self, row: &TicketRow) -> Option<(Instant, Task)> {
        let (_, seen, life) = self.observed.get(&row.name)?;
        let Life::Ephemeral { ttl, left } = *life else {
            return None;
        };
        let renewed = row.value.attended && !row.waits();
        let at = if renewed { *seen + ttl } else { *seen + left.unwrap_or(ttl) };
        Some((at, Task::End(row.reference(), row.version.clone())))
    }

    async fn act(&mut self, task: Task) -> Result<Option<Granted>> {
        match task {
            Task::Claim => return self.claim().await,
            Task::End(ticket, version) => self.end(&ticket, &version).await?,
            Task::Settle => self.settle().await?,
            Task::Look => self.look().await?,
            Task::Touch => {
                let number = self.queue.ticket(&self.ticket).and_then(|row| row.value.number);
                let sent = self.leases.env().clock.now();
                match self.leases.touch(&self.lease, &self.ticket, number).await {
                    Err(error) if matches!(error.kind(), Kind::Lost | Kind::Conflict) => {
                        self.refresh().await?;
                    }
                    answer => {
                        let version = answer?;
                        // A claim needs it, and no watch may tell.
                        if let Some(row) = self.queue.tickets.get_mut(&self.ticket.name) {
                            row.version = version;
                        }
                    }
                }
                self.touched = Some(sent);
            }
        }
        Ok(None)
    }

    /// Makes the ticket ready to hold a slot, and takes the slot, at the same time: it is granted when both are done.
    async fn claim(&mut self) -> Result<Option<Granted>> {
        let Some(row) = self.queue.ticket(&self.ticket).cloned() else {
            return Ok(None);
        };
        let (clock, leases, lease) = (self.leases.env().clock.clone(), &self.leases, &self.lease);
        if row.value.evicted {
            leases.delete_ticket(lease, &self.ticket, Some(row.version)).await?;
            self.refresh().await?;
            return Ok(None);
        }
        let value = TicketValue { number: None, ..row.value.clone() };
        let sent = clock.now();
        let head = self.queue.head.clone();
        let (ready, taken) = join(
            self.make_ready(&row, &value),
            leases.take_offer(lease, &self.ticket, &value, head),
        )
        .await;
        let begun = match ready {
            Ok((version, touched)) => {
                leases.hold(&self.ticket, version);
                touched.unwrap_or(sent)
            }
            // Somebody else changed it, or ended it; a slot that was taken for it is not held by anybody.
            Err(error) if matches!(error.kind(), Kind::Conflict | Kind::Lost) => {
                self.refresh().await?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let taken = taken?;
        if taken.is_none() {
            leases.delete_ticket(lease, &self.ticket, None).await?;
            self.refresh().await?;
        }
        Ok(taken.map(|grant| granted(&grant, begun)))
    }

    /// Gives the ticket the ttl of a grant; returns from when that counts, too, where it is later than now.
    async fn make_ready(
        &self,
        row: &TicketRow,
        value: &TicketValue,
    ) -> Result<(Version, Option<Instant>)> {
        let Self { leases, lease, .. } = self;
        let ttl = Duration::from_millis(value.ttl_ms);
        let expect = Expect::At(row.version.clone());
        let put = leases.ticket_put(lease, &row.name, value, expect, ttl)?;
        if let (version, true) = leases.store().put_once(&put).await? {
            return Ok((version, None));
        }
        // An earlier claim, whose answer was lost, may have begun the ttl: begin it anew.
        let sent = leases.env().clock.now();
        let version = leases.touch(lease, &self.ticket, None).await?;
        Ok((version, Some(sent)))
    }

    /// Deletes a ticket if nothing happened to it since it was seen, and passes on what it held.
    async fn end(&mut self, ticket: &TicketRef, version: &Version) -> Result<()> {
        // What was seen of it last may be old.
        if self.looks.is_some() && !self.is_still(ticket, version).await? {
            return Ok(());
        }
        let key = self.leases.group(&self.lease).key(ticket.name.clone());
        match self.leases.store().delete(&key, version).await {
            Err(error) if error.kind() == Kind::Conflict => return self.refresh().await,
            Err(error) if error.kind() != Kind::NotFound => return Err(error),
            _ => {}
        }
        let queue = self.leases.queue(&self.lease).await?;
        self.leases.end(&self.lease, queue, ticket, Ending::Expired).await?;
        self.refresh().await
    }

    async fn settle(&mut self) -> Result<()> {
        self.leases.swap(&self.lease, |_, _| Ok(Swap::Keep(()))).await?;
        self.refresh().await?;
        // What could not be settled now is not tried again at once.
        let again = self.leases.env().clock.now() + PAUSE;
        self.unsettled = self.unsettled.map(|_| again);
        Ok(())
    }

    /// Reads everything again, so that what was just done is not done twice before the watch tells of it.
    async fn refresh(&mut self) -> Result<()> {
        let records = self.leases.store().list(&[self.leases.group(&self.lease)]).await?;
        self.take(Ok(Change::Snapshot(records)))
    }
}

/// Remembers since when a record is as it is.
fn observe(observed: &mut Observed, row: &TicketRow, now: Instant) {
    if observed.get(&row.name).is_none_or(|(version, ..)| *version != row.version) {
        observed.insert(row.name.clone(), (row.version.clone(), now, row.life));
    }
}

/// What a reader of standings notices.
fn outline(standing: &Standing) -> (usize, Vec<crate::lease::Token>) {
    match standing {
        Standing::Waiting { ahead, holders } => {
            (*ahead, holders.iter().map(|grant| grant.token).collect())
        }
        _ => (usize::MAX, Vec::new()),
    }
}

async fn maybe(timer: Option<impl Future<Output = ()>>) {
    match timer {
        Some(timer) => timer.await,
        None => pending().await,
    }
}
