//! Seeing what others do, on a store that pushes nothing: the head often, and of the tickets only those that it names.
//!
//! A thousand who wait would read a million tickets to follow each other. What a waiter has to know is whether a slot is kept
//! for it, and, if it is near the front, whether those that hold something are alive.

use std::time::Duration;

use futures_util::future::try_join_all;

use super::{TicketRow, Waiter};
use crate::{
    Env, Error, Instant, Kind, Name, Result,
    lease::turn,
    over::queue::{HEAD, TicketRef},
    store::{Change, Store as _, Version},
};

/// How long who is next in line does not look.
const FIRST: Duration = Duration::from_millis(500);
/// How much longer each turn that comes before makes it.
const STEP: Duration = Duration::from_millis(250);
/// Less than a turn, whatever becomes of those who come before.
const LONGEST: Duration = Duration::from_secs(5);

/// So many from the front look whether who holds a slot is alive; the others ask before they judge.
const OBSERVERS: usize = 3;
/// So often is the time between two looks doubled on a store that asks to slow down.
const MOST_DOUBLINGS: u32 = 4;
/// More tickets than this are read as a whole group.
const FEW: usize = 8;

/// The whole queue is read again after this long: who left meanwhile is counted as ahead until then.
const ALL: Duration = Duration::from_secs(60);
/// How much longer each turn that comes before makes that.
const ALL_STEP: Duration = Duration::from_secs(2);

/// What was looked at when.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// When to look next if nothing came before, and how much of a [`STEP`] each turn adds: both with jitter.
    at: Option<(Instant, Duration)>,
    /// When all was read.
    all: Option<Instant>,
    /// When the tickets that hold something were read.
    holders: Option<Instant>,
    /// The highest number that had its turn.
    passed: u64,
    /// How often in a row the store asked to slow down.
    throttled: u32,
}

impl Looks {
    /// When to look next, with so many turns before this waiter's.
    pub(super) fn next(&self, turns: usize) -> Instant {
        let Some((at, step)) = self.at else { return Instant::from_boot(Duration::ZERO) };
        let after = (step * u32::try_from(turns).unwrap_or(u32::MAX)).min(LONGEST);
        at + after * (1 << self.throttled.min(MOST_DOUBLINGS))
    }

    /// Notes when the next look counts from, and whether the store asked to slow down.
    fn looked(&mut self, env: &Env, is_throttled: bool) {
        self.throttled = if is_throttled { self.throttled + 1 } else { 0 };
        let first = env.random.jitter(FIRST, 0.2) * (1 << self.throttled.min(MOST_DOUBLINGS));
        self.at = Some((env.clock.now() + first, env.random.jitter(STEP, 0.2)));
    }
}

impl Waiter {
    /// Takes in what is new.
    pub(super) async fn look(&mut self) -> Result<()> {
        let looked = self.take_in_what_is_new().await;
        let env = self.leases.env();
        if let Some(looks) = &mut self.looks {
            let throttled = |error: &Error| error.kind() == Kind::Throttled;
            looks.looked(env, looked.as_ref().is_err_and(throttled));
        }
        looked
    }

    async fn take_in_what_is_new(&mut self) -> Result<()> {
        let now = self.leases.env().clock.now();
        let place = self.queue.ticket(&self.ticket).map_or(0, |own| self.place(own));
        let Some(looks) = &self.looks else { return Ok(()) };
        let all_again = ALL + ALL_STEP * u32::try_from(place).unwrap_or(u32::MAX);
        // Who was stopped may have missed its turn. Where the store asks to slow down, all look late.
        let turn = turn(self.leases.store().capabilities());
        let is_late = looks.throttled == 0 && looks.at.is_some_and(|(at, _)| now >= at + turn);
        if is_late || looks.all.is_none_or(|read| now >= read + all_again) {
            self.refresh().await?;
            // Not before: until all was read once, a ticket that was not seen is not one that has gone.
            if let Some(looks) = &mut self.looks {
                looks.all = Some(now);
            }
            return Ok(());
        }
        let key = self.leases.group(&self.lease).key(HEAD.parse::<Name>()?);
        let known = self.queue.head.as_ref().map(|(_, version)| version.clone());
        let Some(record) = self.leases.store().get(&key).await? else {
            return self.refresh().await;
        };
        let is_new = known.as_ref() != Some(&record.version);
        if is_new {
            self.take(Ok(Change::Put(record)))?;
            if self.forget_who_passed() {
                return self.refresh().await;
            }
        }
        let tickets = self.tickets_to_read(is_new, place, now);
        if tickets.len() > FEW {
            return self.refresh().await;
        }
        try_join_all(tickets.iter().map(async |ticket| self.read(ticket).await))
            .await?
            .into_iter()
            .try_for_each(|change| self.take(Ok(change)))
    }

    /// Whether a ticket is as it was when it was seen last; takes in what it is now.
    pub(super) async fn is_still(&mut self, ticket: &TicketRef, version: &Version) -> Result<bool> {
        let change = self.read(ticket).await?;
        let is_still = matches!(&change, Change::Put(record) if record.version == *version);
        self.take(Ok(change))?;
        Ok(is_still)
    }

    async fn read(&self, ticket: &TicketRef) -> Result<Change> {
        let key = self.leases.group(&self.lease).key(ticket.name.clone());
        let found = self.leases.store().get(&key).await?;
        Ok(found.map_or_else(|| Change::Removed(ticket.name.clone()), Change::Put))
    }

    /// Which tickets have to be read: those that a new head names for the first time or in a new way, and, near the front and
    /// often enough to notice soon that nobody renews them, all that it names.
    fn tickets_to_read(&mut self, is_new: bool, place: usize, now: Instant) -> Vec<TicketRef> {
        let (Some((head, _)), Some(looks)) = (&self.queue.head, &mut self.looks) else {
            return Vec::new();
        };
        let shortest = head.tickets().filter_map(|ticket| self.queue.ticket(ticket));
        let shortest = shortest.map(|row| Duration::from_millis(row.value.ttl_ms)).min();
        let often = shortest.unwrap_or_default() / 10;
        if place < OBSERVERS && looks.holders.is_none_or(|read| now >= read + often) {
            looks.holders = Some(now);
            return head.tickets().filter(|ticket| **ticket != self.ticket).cloned().collect();
        }
        let waits = |ticket: &&TicketRef| self.queue.ticket(ticket).is_none_or(TicketRow::waits);
        if !is_new {
            return Vec::new();
        }
        head.tickets().filter(waits).filter(|ticket| **ticket != self.ticket).cloned().collect()
    }

    /// Numbers have their turns in order: whoever has a lower one than one that had its turn is not in the queue any longer.
    /// Returns whether that is true of this waiter, too.
    fn forget_who_passed(&mut self) -> bool {
        let (Some((head, _)), Some(looks)) = (&self.queue.head, &mut self.looks) else {
            return false;
        };
        let named = head.tickets().filter_map(|ticket| self.queue.ticket(ticket));
        let passed = named.filter_map(|row| row.value.number).max();
        looks.passed = looks.passed.max(passed.unwrap_or(0));
        let (passed, own) = (looks.passed, &self.ticket);
        let stays = |row: &TicketRow| {
            row.value.number.is_none_or(|number| number > passed) || row.is(own) || head.names(row)
        };
        self.queue.tickets.retain(|_, row| stays(row));
        let tickets = &self.queue.tickets;
        self.observed.retain(|name, _| tickets.contains_key(name));
        let own = self.queue.ticket(own).filter(|row| !head.names(row));
        own.is_some_and(|row| row.value.number.is_some_and(|number| number <= passed))
    }
}
