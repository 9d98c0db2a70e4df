//! The head of a lease: read with its queue, and changed by compare-and-swap alone.

use std::time::Duration;

use super::{
    super::{
        from_json, put_json,
        queue::{HEAD, Head, HeadGrant, Queue, TicketRef, TicketValue},
    },
    Leases, MOST_SWAPS, not_found, too_busy,
};
use crate::{
    Kind, Label, Name, Result,
    lease::Ending,
    store::{Expect, Keep, Key, Record, Store as _, Version},
};

/// What a swap makes of the head.
pub(in crate::over) enum Swap<T> {
    /// Write it, then return this.
    Write(T),
    /// Leave it as it is, and return this.
    Keep(T),
}

impl Leases {
    /// Reads everything about a lease.
    pub(in crate::over) async fn queue(&self, lease: &Label) -> Result<Queue> {
        let records = self.store().list(&[self.group(lease)]).await?;
        Queue::read(&records, self.oddities())
    }

    fn head_key(&self, lease: &Label) -> Result<Key> {
        Ok(self.group(lease).key(HEAD.parse::<Name>()?))
    }

    pub(super) async fn head(&self, lease: &Label) -> Result<Option<(Head, Version)>> {
        let record = self.store().get(&self.head_key(lease)?).await?;
        let read = |record: Record| Ok((from_json(&record)?, record.version));
        record.map(read).transpose()
    }

    pub(super) async fn put_head(
        &self,
        lease: &Label,
        head: &Head,
        expect: Expect,
    ) -> Result<Version> {
        let key = self.head_key(lease)?;
        let put = put_json(&self.env().random, &key, head, expect, Keep::Durable)?;
        self.store().put(&put).await
    }

    /// Changes the head by compare-and-swap: reads the whole queue, lets `change` decide, and tries again where somebody
    /// else was faster. Every change also settles what is due: grants without ticket have expired, free slots are offered.
    pub(in crate::over) async fn swap<T: Send>(
        &self,
        lease: &Label,
        change: impl Fn(&mut Head, &Queue) -> Result<Swap<T>> + Send + Sync,
    ) -> Result<T> {
        self.swap_from(lease, self.queue(lease).await?, None, change).await
    }

    /// Settles what is due after a ticket was deleted, whose grant ends as `how` says. Begins with what was read before.
    pub(in crate::over) async fn end(
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

    /// Turns the offer to a ticket into a grant; `None` when it was passed on. Begins with a head that was read before.
    pub(in crate::over) async fn take_offer(
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

    /// Gives others who swap the same head a chance.
    pub(super) async fn pause(&self, attempt: u32) {
        let longest = Duration::from_millis(2) * (attempt + 1).min(100);
        let pause = longest.mul_f64(self.env().random.below(1000) as f64 / 1000.0);
        self.env().clock.sleep(pause).await;
    }
}
