use std::{collections::BTreeSet, iter, time::Duration};

use servicekit_core::{
    Instant,
    lease::{Granted, Token},
};

use crate::history::{Attempt, End, History};

/// What each said, in the order of their common boot clock; and the attempts that something was done to.
pub(super) fn replay(said: &[(usize, String)]) -> (History, BTreeSet<Attempt>) {
    let mut events: Vec<_> = said.iter().filter_map(|(id, line)| Event::read(*id, line)).collect();
    // A grant ends at its deadline, whenever its holder came to say so.
    for i in 0..events.len() {
        if matches!(events[i].words[0], "ended" | "died") {
            let id = events[i].id;
            let before = events[..i].iter().rev().filter(|event| event.id == id);
            let held = before.take_while(|event| !matches!(event.words[0], "joining" | "ended"));
            let deadlines = held.filter(|event| event.words[0] == "until").map(|event| event.at);
            let at = events[i].at;
            events[i].at = deadlines.max().map_or(at, |deadline| at.min(deadline));
        }
    }
    events.retain(|event| event.words[0] != "until");
    events.sort_by_key(|event| event.at);
    let (history, mut disturbed) = (History::default(), BTreeSet::new());
    let mut attempts: Vec<Option<Attempt>> = Vec::new();
    for Event { at, id, words } in events {
        attempts.resize(attempts.len().max(id + 1), None);
        match (words[0], attempts[id]) {
            ("joining", _) => attempts[id] = Some(history.joining(at)),
            ("waiting", Some(attempt)) => history.waiting(at, attempt),
            ("granted", Some(attempt)) => {
                let (token, slot) = (words[1].parse(), words[2].parse());
                let token = Token(token.expect("a token"));
                let slot = slot.expect("a slot");
                let granted = Granted { token, slot, counted_from: at, expires_at: None };
                history.granted(at, attempt, &granted);
            }
            ("ended", Some(attempt)) => {
                history.ended(at, attempt, if words[1] == "left" { End::Left } else { End::Lost });
                attempts[id] = None;
            }
            ("died", Some(attempt)) => history.ended(at, attempt, End::Left),
            ("fault", Some(attempt)) => drop(disturbed.insert(attempt)),
            _ => {}
        }
    }
    (history, disturbed)
}

/// A line: what, when, and more about it.
struct Event<'a> {
    at: Instant,
    id: usize,
    /// Without the time.
    words: Vec<&'a str>,
}

impl<'a> Event<'a> {
    fn read(id: usize, line: &'a str) -> Option<Self> {
        let mut words = line.split(' ');
        let (what, at) = (words.next()?, words.next()?.parse().ok()?);
        let at = Instant::from_boot(Duration::from_nanos(at));
        Some(Self { at, id, words: iter::once(what).chain(words).collect() })
    }
}
