//! What is due at every swap of a head: grants that have ended, slots that are free, tickets that nobody knows of.

use std::{sync::PoisonError, time::Duration};

use super::{
    super::queue::{Head, Queue, TicketRow},
    Leases,
};
use crate::{Kind, Label, Result, lease::Ending, store::Store as _};

/// How many orphans one swap sweeps up, so that nobody has to wait for a thousand.
const MOST_SWEPT: usize = 32;

impl Leases {
    /// Ends grants and offers whose ticket is gone, and offers what is free; whether the head changed.
    ///
    /// That a ticket is missing in a list proves nothing, since one list may mix moments; a read after it does.
    pub(super) async fn settle(
        &self,
        lease: &Label,
        queue: &Queue,
        head: &mut Head,
    ) -> Result<bool> {
        let mut changed = false;
        for ticket in queue.missing(head) {
            if self.ticket(lease, &ticket).await?.is_none() {
                changed |= head.end(&ticket, Ending::Expired, self.wall());
            }
        }
        changed |= self.end_unattended(lease, queue, head).await?;
        self.sweep(lease, queue, head).await?;
        Ok(head.offer(queue) | changed)
    }

    /// Ends unattended grants whose time is over by the store's clock, on a store that does not end them itself.
    async fn end_unattended(&self, lease: &Label, queue: &Queue, head: &mut Head) -> Result<bool> {
        let grants = head.grants.iter().filter(|grant| !grant.attended);
        let rows = grants.filter_map(|grant| queue.ticket(&grant.ticket));
        let over: Vec<_> = rows.filter(|row| row.is_over()).collect();
        let mut ended = false;
        for row in over {
            // One that is another by now may have been claimed meanwhile.
            if self.delete_row(lease, row).await? {
                ended |= head.end(&row.reference(), Ending::Expired, self.wall());
            }
        }
        Ok(ended)
    }

    /// Deletes tickets that the head knows nothing of: those of joins and waits that were broken off, on a store that does not
    /// end them itself. One that may be about to be granted must have been seen unchanged for its whole ttl.
    async fn sweep(&self, lease: &Label, queue: &Queue, head: &Head) -> Result<()> {
        if self.store().capabilities().server_expiry {
            return Ok(());
        }
        let is_orphan = |row: &&TicketRow| {
            let ticket = row.reference();
            head.grant_of(&ticket).is_none() && !head.offers.contains(&ticket)
        };
        let orphans: Vec<_> = queue.tickets.values().filter(is_orphan).collect();
        let over = self.over(lease, &orphans);
        for row in over.into_iter().take(MOST_SWEPT) {
            self.delete_row(lease, row).await?;
        }
        Ok(())
    }

    /// Which orphans have ended: one that waits by the store's clock, one that is ready by what was seen of it.
    fn over<'q>(&self, lease: &Label, orphans: &[&'q TicketRow]) -> Vec<&'q TicketRow> {
        let now = self.now();
        let mut seen = self.0.orphans.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|(of, version), _| {
            of != lease || orphans.iter().any(|row| row.version == *version)
        });
        let mut is_over = |row: &&&TicketRow| {
            if row.waits() {
                return row.is_over();
            }
            let key = (lease.clone(), row.version.clone());
            let since = *seen.entry(key).or_insert(now);
            now >= since + Duration::from_millis(row.value.ttl_ms)
        };
        orphans.iter().filter(|row| is_over(row)).copied().collect()
    }

    /// Deletes a ticket's record if it is still as it was seen; whether it is gone.
    async fn delete_row(&self, lease: &Label, row: &TicketRow) -> Result<bool> {
        match self.store().delete(&self.group(lease).key(row.name.clone()), &row.version).await {
            Err(error) if error.kind() == Kind::Conflict => Ok(false),
            Err(error) if error.kind() == Kind::NotFound => Ok(true),
            answer => answer.map(|()| true),
        }
    }
}
