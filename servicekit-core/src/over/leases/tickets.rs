//! The tickets of a lease: each is a record of its own, put, renewed and deleted by itself.

use std::{
    collections::HashMap,
    sync::{MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    super::{
        queue::{Queue, TicketRef, TicketRow, TicketValue},
        to_json,
    },
    Leases, MOST_SWAPS, too_busy,
};
use crate::{
    Instant, Kind, Label, Name, Result,
    store::{Expect, Keep, Put, Store as _, Version, WriteId},
};

/// Tickets of a lease have one of so many names, used again and again: some stores keep a row for every name ever deleted.
const TICKET_NAMES: u64 = 4096;

impl Leases {
    /// Puts a new ticket under a name that is free, and a nonce for that name.
    ///
    /// Each attempt puts another: one that is applied late, after the grant has ended and its ticket was deleted, must not
    /// be a ticket that its holder can renew.
    pub(super) async fn put_ticket(
        &self,
        lease: &Label,
        value: &mut TicketValue,
    ) -> Result<(TicketRef, Version, Instant)> {
        let (group, ttl) = (self.group(lease), Duration::from_millis(value.ttl_ms));
        for _ in 0..MOST_SWAPS {
            let draw = || {
                let name: Name =
                    format!("t-{:03x}", self.env().random.below(TICKET_NAMES)).parse()?;
                value.nonce = self.env().random.id();
                let put = self.ticket_put(lease, &name, value, Expect::Absent, ttl)?;
                let ticket = TicketRef { name, nonce: value.nonce.clone() };
                Ok((put, (ticket, self.now())))
            };
            match self.store().put_anew(&group, draw).await {
                Ok(((ticket, sent), version)) => return Ok((ticket, version, sent)),
                Err(error) if error.kind() == Kind::Conflict => {}
                Err(error) => return Err(error),
            }
        }
        Err(too_busy(lease))
    }

    /// The put of a ticket's record. Its write id follows from what it says, so that a renewal knows it.
    pub(in crate::over) fn ticket_put(
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
    pub(in crate::over) async fn touch(
        &self,
        lease: &Label,
        ticket: &TicketRef,
        number: Option<u64>,
    ) -> Result<Version> {
        let key = self.group(lease).key(ticket.name.clone());
        self.store().touch(&key, &write_id(&ticket.nonce, number)).await
    }

    /// Reads one ticket's record.
    pub(in crate::over) async fn ticket(
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

    /// Deletes a ticket's record, whatever happened to it meanwhile.
    pub(in crate::over) async fn delete_ticket(
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
    pub(in crate::over) fn hold(&self, ticket: &TicketRef, version: Version) {
        self.held().insert(ticket.nonce.clone(), version);
    }

    pub(super) fn let_go(&self, ticket: &TicketRef) -> Option<Version> {
        self.held().remove(&ticket.nonce)
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Version>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rewrites a ticket so that its holder's next renewal fails; it ends one ttl from now.
    pub(super) async fn forbid_renewal(&self, lease: &Label, ticket: &TicketRef) -> Result<()> {
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

fn write_id(nonce: &str, number: Option<u64>) -> WriteId {
    WriteId::new(match number {
        None => nonce.to_owned(),
        Some(number) => format!("{nonce}.{number}"),
    })
}
