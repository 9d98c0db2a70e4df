//! Joining a lease: a slot at once where one is open, else a number and a place in the queue.

use std::time::Duration;

use futures_util::future::join;

use super::{
    super::{
        FORMAT,
        queue::{Head, HeadGrant, Queue, TicketRef, TicketValue},
    },
    Leases, MOST_SWAPS, Swap, granted, not_found, slots_differ, too_busy,
};
use crate::{
    Error, Instant, Kind, Label, Result,
    lease::{Grant, Request, Standing, Term, turn},
    store::{Expect, Store as _, Version},
};

/// A waiting ticket stays so long without a touch, at most.
const LONGEST_WAITING_TTL: Duration = Duration::from_secs(300);

/// A join on its way.
pub(super) struct Joining<'a> {
    leases: &'a Leases,
    lease: &'a Label,
    request: &'a Request,
    value: TicketValue,
    pub(super) ticket: TicketRef,
    version: Version,
    sent: Instant,
}

impl<'a> Joining<'a> {
    /// Puts a ticket that is ready to hold a slot, and reads the head meanwhile.
    pub(super) async fn begin(
        leases: &'a Leases,
        lease: &'a Label,
        request: &'a Request,
    ) -> Result<(Self, Option<(Head, Version)>)> {
        let mut value = TicketValue {
            v: FORMAT,
            nonce: String::new(),
            holder: request.holder.clone(),
            number: None,
            since: leases.wall(),
            attended: matches!(request.term, Term::Attended { .. }),
            ttl_ms: u64::try_from(request.term.length().as_millis()).unwrap_or(u64::MAX),
            evicted: false,
            note: request.note.clone(),
        };
        let (put, head) = join(leases.put_ticket(lease, &mut value), leases.head(lease)).await;
        let (ticket, version, sent) = put?;
        let joining = Self { leases, lease, request, value, ticket, version, sent };
        match head {
            Ok(head) => Ok((joining, head)),
            Err(error) => Err(joining.give_up(error).await),
        }
    }

    pub(super) async fn run(&mut self, mut head: Option<(Head, Version)>) -> Result<Standing> {
        for attempt in 0..MOST_SWAPS {
            let (mut next, expect) = match head.take() {
                Some((head, version)) => (head, Expect::At(version)),
                None => {
                    let Leases(inner) = self.leases;
                    inner.index.add(&inner.env.random, self.lease.into()).await?;
                    (Head::new(self.request.slots), Expect::Absent)
                }
            };
            if next.slots != self.request.slots {
                return Err(self.slots_differ(next.slots));
            }
            if next.grants.iter().any(|grant| self.will_do(grant)) {
                return self.queue_up().await;
            }
            if !next.is_open() {
                let (Some(wait), Expect::At(_)) = (self.request.wait, &expect) else {
                    return self.queue_up().await;
                };
                // By the head alone: else each of a thousand who wait would read the tickets of all others twice, and again
                // with each swap that it loses.
                let number = next.draw_number();
                match self.leases.put_head(self.lease, &next, expect).await {
                    Ok(_) => return self.line_up(number, wait).await,
                    Err(error) if error.kind() == Kind::Conflict => {}
                    Err(error) => return Err(error),
                }
                self.leases.pause(attempt).await;
                head = self.leases.head(self.lease).await?;
                continue;
            }
            let grant = next.grant(self.ticket.clone(), &self.value, self.leases.wall())?;
            let granted = granted(grant, self.sent);
            match self.leases.put_head(self.lease, &next, expect).await {
                Ok(_) => return Ok(Standing::Granted(granted)),
                Err(error) if error.kind() == Kind::Conflict => self.leases.pause(attempt).await,
                Err(error) => return Err(error),
            }
            head = self.leases.head(self.lease).await?;
            // A swap whose answer was lost may have been applied.
            if let Some(grant) = head.as_ref().and_then(|(head, _)| head.grant_of(&self.ticket)) {
                return Ok(Standing::Granted(self::granted(grant, self.sent)));
            }
        }
        Err(too_busy(self.lease))
    }

    /// Whether this is an unattended grant that the holder has already, and wants again.
    fn will_do(&self, grant: &HeadGrant) -> bool {
        matches!(self.request.term, Term::Unattended { reuse: true, .. })
            && !grant.attended
            && grant.holder == self.request.holder
    }

    /// No slot is open, or one is held already that will do: settle what has ended, and look again.
    async fn queue_up(&mut self) -> Result<Standing> {
        let Self { leases, lease, request, .. } = *self;
        let (wall, this) = (leases.wall(), &*self);
        let turn = leases.swap(lease, |head, queue| {
            if head.slots != request.slots {
                return Err(this.slots_differ(head.slots));
            }
            let lives = |grant: &&HeadGrant| {
                queue.ticket(&grant.ticket).is_some_and(|row| !row.waits() && !row.is_over())
            };
            let mut stands = head.grants.iter().filter(lives);
            let will_do = |grant: &&HeadGrant| grant.ticket == this.ticket || this.will_do(grant);
            if let Some(grant) = stands.find(will_do) {
                let row = queue.ticket(&grant.ticket).filter(|_| grant.ticket != this.ticket);
                let from = row.map_or(this.sent, |row| row.counted_from(this.sent));
                return Ok(Swap::Keep(Turn::Granted(grant.clone(), from)));
            }
            if head.is_open() && queue.waiting().is_empty() {
                let grant = head.grant(this.ticket.clone(), &this.value, wall)?;
                return Ok(Swap::Write(Turn::Granted(grant.clone(), this.sent)));
            }
            Ok(match request.wait {
                Some(wait) => Swap::Write(Turn::Number(head.draw_number(), wait)),
                None => Swap::Keep(Turn::Full(leases.grants(lease, queue))),
            })
        });
        match turn.await? {
            Turn::Granted(grant, from) => {
                if grant.ticket != self.ticket {
                    leases.delete_ticket(lease, &self.ticket, Some(self.version.clone())).await?;
                    self.ticket = grant.ticket.clone();
                }
                Ok(Standing::Granted(granted(&grant, from)))
            }
            Turn::Number(number, wait) if self.take_place(number, wait).await? => {
                self.look_again().await
            }
            Turn::Number(..) => Ok(Standing::Gone),
            Turn::Full(holders) => Ok(Standing::Refused { holders }),
        }
    }

    /// Waits under a number that was drawn by the head alone: looks whether there is something to settle.
    async fn line_up(&mut self, number: u64, wait: Duration) -> Result<Standing> {
        if !self.take_place(number, wait).await? {
            return Ok(Standing::Gone);
        }
        let (queue, announced) = join(self.leases.queue(self.lease), self.announce()).await;
        match (queue?, announced?) {
            (queue, Some(head)) if queue.is_settled(&head) => Ok(self.standing_in(&queue)),
            _ => self.look_again().await,
        }
    }

    /// Writes the number into the ticket; whether that is still there.
    async fn take_place(&self, number: u64, wait: Duration) -> Result<bool> {
        let value = TicketValue { number: Some(number), ..self.value.clone() };
        let turns = turn(self.leases.store().capabilities()) * 2;
        let ttl = wait.saturating_add(turns).min(LONGEST_WAITING_TTL);
        let expect = Expect::At(self.version.clone());
        let put = self.leases.ticket_put(self.lease, &self.ticket.name, &value, expect, ttl)?;
        match self.leases.store().put(&put).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == Kind::Conflict => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes the head as it is, and returns it: so whoever frees a slot with a list from before the number loses its swap, and
    /// lists again. `None` where a slot is free already: that has to be offered.
    async fn announce(&self) -> Result<Option<Head>> {
        let Self { leases, lease, .. } = *self;
        for attempt in 0..MOST_SWAPS {
            let Some((head, version)) = leases.head(lease).await? else {
                return Err(not_found(lease));
            };
            if head.has_free_slot() {
                return Ok(None);
            }
            match leases.put_head(lease, &head, Expect::At(version)).await {
                Ok(_) => return Ok(Some(head)),
                Err(error) if error.kind() == Kind::Conflict => leases.pause(attempt).await,
                Err(error) => return Err(error),
            }
        }
        Err(too_busy(lease))
    }

    /// Settles what is due, with the number to be seen: a slot that came free before was offered to nobody. It writes in any
    /// case, as [`Self::announce`] does.
    async fn look_again(&self) -> Result<Standing> {
        self.leases.swap(self.lease, |_, queue| Ok(Swap::Write(self.standing_in(queue)))).await
    }

    fn standing_in(&self, queue: &Queue) -> Standing {
        self.leases.standing_in(self.lease, queue, &self.ticket, self.sent)
    }

    fn slots_differ(&self, has: u32) -> Error {
        slots_differ(self.lease, self.request.slots, has)
    }

    /// Remembers the ticket, which was granted; one that was granted before may be another process's.
    pub(super) fn hold(&self) {
        if self.ticket.nonce == self.value.nonce {
            self.leases.hold(&self.ticket, self.version.clone());
        }
    }

    /// Takes the ticket back after a failure, as far as that goes; it ends by itself anyway.
    pub(super) async fn give_up(&self, error: Error) -> Error {
        if self
            .leases
            .delete_ticket(self.lease, &self.ticket, Some(self.version.clone()))
            .await
            .is_err()
        {
            tracing::debug!(lease = %self.lease, "a ticket is left to end by itself");
        }
        error
    }
}

/// What a join found when no slot was open at first.
enum Turn {
    /// A slot came free, or one that is held already will do; from when it counts.
    Granted(HeadGrant, Instant),
    /// To wait under this number, for so long.
    Number(u64, Duration),
    /// All slots are held, and the caller would not wait.
    Full(Vec<Grant>),
}
