//! What is seen of a lease: where a ticket stands, and who holds a slot.

use std::time::Duration;

use super::{
    super::queue::{Queue, TicketRef},
    Leases, granted, public_ticket,
};
use crate::{
    Instant, Label, LeaseProvider as _,
    lease::{Grant, Standing},
    store::Life,
};

impl Leases {
    /// Where a ticket stands by what was read after `sent`.
    pub(in crate::over) fn standing_in(
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
    pub(super) fn grants(&self, lease: &Label, queue: &Queue) -> Vec<Grant> {
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
