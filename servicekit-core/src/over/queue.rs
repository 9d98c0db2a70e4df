//! The queue of one lease, pure: what its records say, and how the head changes.
//!
//! The **head** holds the grants, and offers of free slots; it is changed by compare-and-swap alone. Each **ticket** is a
//! record of its own, and the only thing that a holder renews. A grant or an offer stands for as long as its ticket is
//! there: whoever wants to end one deletes the ticket first, by condition, and then settles the head. A waiting ticket holds
//! nothing, even where the head has a grant for it already: its claim is not done. So a renewal that was
//! acknowledged proves the grant, and a grant that was taken away can never be renewed.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{FORMAT, Oddities, from_json};
use crate::{
    Error, Instant, Kind, Name, Result, ServiceId, Timestamp,
    lease::{Ending, MOST_SLOTS, Token},
    store::{Life, Record, Version},
};

/// The name of the head's record.
pub(super) const HEAD: &str = "head";

/// Past grants that the head remembers, and how long the names of their holders may be together: every change of the head
/// writes them all again, and a store may ask more for each kilobyte.
const REMEMBERED: usize = 16;
const REMEMBERED_BYTES: usize = 320;

/// The head of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    v: u32,
    pub(super) slots: u32,
    /// The number of the next ticket that has to wait.
    next: u64,
    /// The last token.
    token: u64,
    #[serde(default)]
    pub(super) grants: Vec<HeadGrant>,
    /// Tickets that a free slot is kept for.
    #[serde(default)]
    pub(super) offers: Vec<TicketRef>,
    #[serde(default)]
    pub(super) past: Vec<HeadPast>,
    /// What a newer version added.
    #[serde(flatten)]
    other: serde_json::Map<String, serde_json::Value>,
}

/// Which ticket: names are used again, nonces are not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct TicketRef {
    pub(super) name: Name,
    pub(super) nonce: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HeadGrant {
    #[serde(flatten)]
    pub(super) ticket: TicketRef,
    pub(super) holder: ServiceId,
    pub(super) token: Token,
    pub(super) slot: u32,
    pub(super) since: Timestamp,
    pub(super) attended: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) expires_at: Option<Timestamp>,
    /// How it will have ended, once it was evicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) evicted: Option<Ending>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) note: String,
}

/// Stored as an array, with the moment in milliseconds since 1970: every change of the head writes all of them again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PastRow", into = "PastRow")]
pub(super) struct HeadPast {
    pub(super) holder: ServiceId,
    pub(super) token: Token,
    pub(super) ended: Timestamp,
    pub(super) how: Ending,
}

type PastRow = (ServiceId, Token, u64, Ending);

impl From<PastRow> for HeadPast {
    fn from((holder, token, ended, how): PastRow) -> Self {
        Self { holder, token, ended: Timestamp::from_millis(ended), how }
    }
}

impl From<HeadPast> for PastRow {
    fn from(HeadPast { holder, token, ended, how }: HeadPast) -> Self {
        (holder, token, ended.as_millis(), how)
    }
}

/// The value of a ticket's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TicketValue {
    pub(super) v: u32,
    pub(super) nonce: String,
    pub(super) holder: ServiceId,
    /// Its place in the queue, while it waits; a ticket without one holds a slot or is about to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) number: Option<u64>,
    pub(super) since: Timestamp,
    pub(super) attended: bool,
    /// How long its grant lasts without renewal.
    pub(super) ttl_ms: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) evicted: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) note: String,
}

/// A ticket's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TicketRow {
    pub(super) name: Name,
    pub(super) value: TicketValue,
    pub(super) version: Version,
    pub(super) life: Life,
}

/// What the records of one lease say.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    pub(super) head: Option<(Head, Version)>,
    pub(super) tickets: BTreeMap<Name, TicketRow>,
}

impl Queue {
    /// Reads the records of a lease's group. A head that cannot be read is an error: nothing may be granted then.
    pub(super) fn read(records: &[Record], oddities: &Oddities) -> Result<Self> {
        let mut queue = Self::default();
        for record in records {
            queue.put(record, oddities)?;
        }
        Ok(queue)
    }

    /// Takes one record in.
    pub(super) fn put(&mut self, record: &Record, oddities: &Oddities) -> Result<()> {
        let name = &record.key.name;
        if name.as_str() == HEAD {
            let head = from_json(record).map_err(|error| {
                let message = format!(
                    "{}; while it is like this nothing is granted: restore the record, or stop all who hold or wait for \
                     the lease, and only then delete it",
                    error.message()
                );
                Error::new(error.kind(), message).at(&record.key).because(error)
            });
            self.head = Some((head?, record.version.clone()));
        } else if let Some(value) = oddities.skip(record) {
            let (version, life) = (record.version.clone(), record.life);
            self.tickets
                .insert(name.clone(), TicketRow { name: name.clone(), value, version, life });
        } else {
            self.tickets.remove(name);
        }
        Ok(())
    }

    /// Takes the end of a record in.
    pub(super) fn remove(&mut self, name: &Name) {
        if name.as_str() == HEAD {
            self.head = None;
        }
        self.tickets.remove(name);
    }

    /// The record of a ticket, if it is there and is the same one.
    pub(super) fn ticket(&self, ticket: &TicketRef) -> Option<&TicketRow> {
        self.tickets.get(&ticket.name).filter(|row| row.is(ticket))
    }

    /// The tickets that wait, first come first.
    pub(super) fn waiting(&self) -> Vec<&TicketRow> {
        let mut rows: Vec<_> = self.tickets.values().filter(|row| row.waits()).collect();
        rows.sort_by_key(|row| (row.value.number, row.name.clone()));
        rows
    }

    /// The tickets that wait and came before this one.
    pub(super) fn before<'q>(&'q self, row: &'q TicketRow) -> impl Iterator<Item = &'q TicketRow> {
        let place = |row: &'q TicketRow| (row.value.number, &row.name);
        let waiting = self.tickets.values().filter(|other| other.waits());
        waiting.filter(move |other| place(other) < place(row))
    }

    /// The tickets that still wait although a slot is kept for them, or was taken by a claim that is not done.
    pub(super) fn turns(&self) -> Vec<&TicketRow> {
        let Some((head, _)) = &self.head else {
            return Vec::new();
        };
        let rows = head.tickets().filter_map(|ticket| self.ticket(ticket));
        rows.filter(|row| row.waits()).collect()
    }

    /// The grant that a ticket holds.
    pub(super) fn grant_of(&self, row: &TicketRow) -> Option<&HeadGrant> {
        let (head, _) = self.head.as_ref().filter(|_| !row.waits())?;
        head.grants.iter().find(|grant| row.is(&grant.ticket))
    }

    /// Whether nothing of `head` has ended, as far as the records tell.
    pub(super) fn is_settled(&self, head: &Head) -> bool {
        head.tickets().all(|ticket| self.ticket(ticket).is_some_and(|row| !row.is_over()))
    }

    /// The grants and offers of `head` whose ticket is not among the records.
    pub(super) fn missing(&self, head: &Head) -> Vec<TicketRef> {
        head.tickets().filter(|ticket| self.ticket(ticket).is_none()).cloned().collect()
    }
}

impl TicketRow {
    /// From when the ttl of a grant counts, by what was read after `sent`.
    pub(super) fn counted_from(&self, sent: Instant) -> Instant {
        let left = match self.life {
            Life::Ephemeral { left, .. } => left.unwrap_or_default(),
            Life::Durable => Duration::ZERO,
        };
        sent + left - Duration::from_millis(self.value.ttl_ms)
    }

    /// Whether it has no slot yet, whatever the head says: a claim that is not done may have taken one.
    pub(super) fn waits(&self) -> bool {
        self.value.number.is_some()
    }

    pub(super) fn is(&self, ticket: &TicketRef) -> bool {
        self.name == ticket.name && self.value.nonce == ticket.nonce
    }

    pub(super) fn reference(&self) -> TicketRef {
        TicketRef { name: self.name.clone(), nonce: self.value.nonce.clone() }
    }
}

impl Head {
    /// The head of a lease that nobody used yet.
    pub(super) fn new(slots: u32) -> Self {
        Self {
            v: FORMAT,
            slots,
            next: 1,
            token: 0,
            grants: Vec::new(),
            offers: Vec::new(),
            past: Vec::new(),
            other: serde_json::Map::new(),
        }
    }

    /// Sets the number of slots. Shrinking revokes no grant, but offers that nobody took yet.
    pub(super) fn resize(&mut self, slots: u32) {
        self.slots = slots;
        self.offers.truncate((slots as usize).saturating_sub(self.grants.len()));
    }

    /// Whether a newcomer may be granted at once: a slot is free, and kept for nobody.
    pub(super) fn is_open(&self) -> bool {
        self.offers.is_empty() && self.has_free_slot()
    }

    /// Whether a slot is held by nobody, and kept for nobody.
    pub(super) fn has_free_slot(&self) -> bool {
        self.free() > 0
    }

    /// The number of a ticket that has to wait.
    pub(super) fn draw_number(&mut self) -> u64 {
        let number = self.next;
        self.next = self.next.saturating_add(1);
        number
    }

    /// Gives the ticket a slot, and draws the token in the same write.
    pub(super) fn grant(
        &mut self,
        ticket: TicketRef,
        value: &TicketValue,
        wall: Timestamp,
    ) -> Result<&HeadGrant> {
        let token = wall.as_millis().max(self.token.saturating_add(1));
        if token >= 1 << 53 {
            let message =
                format!("the token {token} would not fit into JSON; the clock says {wall}");
            return Err(Error::new(Kind::Invalid, message));
        }
        let taken = |slot: &u32| self.grants.iter().any(|grant| grant.slot == *slot);
        let slot = (0..MOST_SLOTS * 2).find(|slot| !taken(slot)).unwrap_or(0);
        self.offers.retain(|offer| *offer != ticket);
        self.token = token;
        let ttl = Duration::from_millis(value.ttl_ms);
        self.grants.push(HeadGrant {
            ticket,
            holder: value.holder.clone(),
            token: Token(token),
            slot,
            since: wall,
            attended: value.attended,
            expires_at: (!value.attended).then(|| wall + ttl),
            evicted: None,
            note: value.note.clone(),
        });
        Ok(&self.grants[self.grants.len() - 1])
    }

    /// The grant of a ticket.
    pub(super) fn grant_of(&self, ticket: &TicketRef) -> Option<&HeadGrant> {
        self.grants.iter().find(|grant| grant.ticket == *ticket)
    }

    /// Whether the ticket of this record has a grant or an offer.
    pub(super) fn names(&self, row: &TicketRow) -> bool {
        self.tickets().any(|ticket| row.is(ticket))
    }

    /// The tickets that have a grant or an offer.
    pub(super) fn tickets(&self) -> impl Iterator<Item = &TicketRef> {
        self.grants.iter().map(|grant| &grant.ticket).chain(&self.offers)
    }

    /// Takes a ticket's grant or offer away; whether it had one.
    pub(super) fn end(&mut self, ticket: &TicketRef, how: Ending, wall: Timestamp) -> bool {
        let before = self.offers.len();
        self.offers.retain(|offer| offer != ticket);
        let Some(at) = self.grants.iter().position(|grant| grant.ticket == *ticket) else {
            return self.offers.len() < before;
        };
        let HeadGrant { holder, token, evicted, .. } = self.grants.remove(at);
        let how = evicted.unwrap_or(how);
        self.past.push(HeadPast { holder, token, ended: wall, how });
        let mut bytes = 0;
        let fits = |past: &&HeadPast| {
            bytes += past.holder.as_str().len();
            bytes <= REMEMBERED_BYTES
        };
        let remembered = self.past.iter().rev().take(REMEMBERED).take_while(fits).count();
        self.past.drain(..self.past.len() - remembered);
        true
    }

    /// Offers each free slot to the first in line that has no offer; whether there was one.
    pub(super) fn offer(&mut self, queue: &Queue) -> bool {
        let before = self.offers.len();
        for row in queue.waiting() {
            let ticket = row.reference();
            let known = self.offers.contains(&ticket) || self.grant_of(&ticket).is_some();
            if self.free() > 0 && !known && !row.is_over() {
                self.offers.push(ticket);
            }
        }
        self.offers.len() > before
    }

    fn free(&self) -> usize {
        (self.slots as usize).saturating_sub(self.grants.len() + self.offers.len())
    }
}

impl TicketRow {
    /// Whether the store's clock says that its time is over.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.life, Life::Ephemeral { left: Some(Duration::ZERO), .. })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lease::MOST_NOTE;

    fn value(nonce: usize, number: Option<u64>) -> TicketValue {
        TicketValue {
            v: FORMAT,
            nonce: nonce.to_string(),
            holder: format!("holder-{nonce}").parse().unwrap(),
            number,
            since: Timestamp::from_millis(0),
            attended: true,
            ttl_ms: 1000,
            evicted: false,
            note: String::new(),
        }
    }

    fn row(nonce: usize, number: Option<u64>) -> TicketRow {
        TicketRow {
            name: format!("t-{nonce:03x}").parse().unwrap(),
            value: value(nonce, number),
            version: Version::new("1"),
            life: Life::Ephemeral { ttl: Duration::from_secs(1), left: None },
        }
    }

    fn queue(rows: impl IntoIterator<Item = TicketRow>) -> Queue {
        let tickets = rows.into_iter().map(|row| (row.name.clone(), row)).collect();
        Queue { head: None, tickets }
    }

    /// What may happen to a head; tickets are numbers.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Join(usize),
        Leave(usize),
        Claim,
        Resize(u32),
        Clock(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0usize..12).prop_map(Step::Join),
            (0usize..12).prop_map(Step::Leave),
            Just(Step::Claim),
            (1u32..4).prop_map(Step::Resize),
            (0u64..10_000).prop_map(Step::Clock),
        ]
    }

    proptest! {
        #[test]
        fn grants_stay_within_the_slots_tokens_rise_and_turns_come_in_order(
            steps in proptest::collection::vec(step(), 0..80),
        ) {
            let mut head = Head::new(1);
            let (mut waiting, mut now) = (Vec::<(u64, usize)>::new(), 0);
            let mut last_token = None;
            for step in steps {
                let before = head.grants.len();
                let mut granted = None;
                match step {
                    Step::Join(n) => {
                        let reference = row(n, None).reference();
                        let known = head.grant_of(&reference).is_some();
                        if known || waiting.iter().any(|(_, other)| *other == n) {
                            continue;
                        }
                        if head.is_open() {
                            let wall = Timestamp::from_millis(now);
                            granted = Some(head.grant(reference, &value(n, None), wall).unwrap().token);
                            // Nobody may pass those who wait.
                            prop_assert!(waiting.is_empty());
                        } else {
                            waiting.push((head.draw_number(), n));
                        }
                    }
                    Step::Leave(n) => {
                        waiting.retain(|(_, other)| *other != n);
                        head.end(&row(n, None).reference(), Ending::Left, Timestamp::from_millis(now));
                    }
                    Step::Claim => {
                        if let Some(offer) = head.offers.first().cloned() {
                            let n: usize = offer.nonce.parse().unwrap();
                            prop_assert_eq!(waiting.first().map(|(_, first)| *first), Some(n));
                            waiting.remove(0);
                            let wall = Timestamp::from_millis(now);
                            granted = Some(head.grant(offer, &value(n, None), wall).unwrap().token);
                        }
                    }
                    Step::Resize(slots) => head.resize(slots),
                    Step::Clock(wall) => now = wall,
                }
                head.offer(&queue(waiting.iter().map(|(number, n)| row(*n, Some(*number)))));
                if head.grants.len() > before {
                    prop_assert!(head.grants.len() + head.offers.len() <= head.slots as usize);
                }
                if let Some(token) = granted {
                    prop_assert!(last_token < Some(token));
                    last_token = Some(token);
                }
                let mut slots: Vec<_> = head.grants.iter().map(|grant| grant.slot).collect();
                slots.sort_unstable();
                slots.dedup();
                prop_assert_eq!(slots.len(), head.grants.len());
                prop_assert!(head.past.len() <= REMEMBERED);
                // A slot is never left free while somebody waits for it.
                prop_assert!(!head.is_open() || waiting.is_empty());
                let json = serde_json::to_vec(&head).unwrap();
                prop_assert_eq!(serde_json::from_slice::<Head>(&json).unwrap(), head.clone());
            }
        }
    }

    #[test]
    fn what_a_newer_version_added_survives_a_rewrite() {
        let json = r#"{"v":1,"slots":2,"next":1,"token":5,"colour":"red"}"#;
        let head: Head = serde_json::from_str(json).unwrap();
        let again = serde_json::to_value(&head).unwrap();
        assert_eq!(again["colour"], "red");
    }

    #[test]
    fn a_head_is_small_whatever_its_holders_are_called() {
        let wall = Timestamp::from_millis(1_795_263_002_000);
        for length in [1, 20, 43, 128] {
            let mut head = Head::new(1);
            for n in 0..20 {
                let holder = format!("{n:0>length$}").parse().unwrap();
                let value = TicketValue { holder, note: "n".repeat(MOST_NOTE), ..value(n, None) };
                let ticket = TicketRef { nonce: "f".repeat(32), ..row(n, None).reference() };
                head.grant(ticket.clone(), &value, wall).unwrap();
                let json = serde_json::to_string(&head).unwrap();
                assert!(json.len() < 1500, "{length}: {} bytes: {json}", json.len());
                head.end(&ticket, Ending::Left, wall);
            }
            assert!(head.past.len() == if length > 20 { 320 / length } else { REMEMBERED });
        }
    }

    #[test]
    fn a_clock_beyond_reason_is_an_error_and_not_a_token() {
        let mut head = Head::new(1);
        let wall = Timestamp::from_millis(1 << 53);
        let ticket = row(1, None).reference();
        assert_eq!(head.grant(ticket, &value(1, None), wall).unwrap_err().kind(), Kind::Invalid);
        assert!(head.grants.is_empty());
    }
}
