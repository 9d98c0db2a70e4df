use std::{collections::BTreeMap, time::Duration};

use servicekit_core::{Instant, lease::Token};

use super::{Attempt, End, Event, Violation, What};

/// How long after its turn somebody may have left without having noticed that it missed it.
const UNNOTICED: Duration = Duration::from_secs(60);

/// What one attempt came to.
#[derive(Default)]
struct Course {
    joined: usize,
    waited: Option<usize>,
    grant: Option<Grant>,
    ended: Option<(Instant, End)>,
}

/// The time in which somebody counted on a grant.
#[derive(Clone, Copy)]
struct Grant {
    token: Token,
    slot: u32,
    /// Its place among all events.
    order: usize,
    from: Instant,
    until: Option<Instant>,
}

pub(super) fn violations(events: &[Event], slots: u32) -> Vec<Violation> {
    let courses = courses(events);
    let mut grants: Vec<_> = courses.values().filter_map(|course| course.grant).collect();
    grants.retain(|grant| grant.stands_at(grant.from));
    grants.sort_by_key(|grant| (grant.from, grant.order));
    let mut found = Vec::new();
    overlaps(&grants, &mut found);
    crowds(&grants, slots, &mut found);
    tokens(&courses, &grants, &mut found);
    turns(&courses, slots, &mut found);
    found
}

fn courses(events: &[Event]) -> BTreeMap<Attempt, Course> {
    let mut courses: BTreeMap<Attempt, Course> = BTreeMap::new();
    let mut forced = BTreeMap::new();
    for (order, Event { at, what }) in events.iter().enumerate() {
        match *what {
            What::Joining(attempt) => courses.entry(attempt).or_default().joined = order,
            What::Waiting(attempt) => {
                courses.entry(attempt).or_default().waited.get_or_insert(order);
            }
            What::Granted(attempt, token, slot) => {
                // Who is evicted by force may hear of its grant only after that.
                let until = forced.get(&token).copied();
                let grant = Grant { token, slot, order, from: *at, until };
                courses.entry(attempt).or_default().grant = Some(grant);
            }
            What::Ended(attempt, end) => {
                let course = courses.entry(attempt).or_default();
                course.ended = Some((*at, end));
                close(course.grant.as_mut(), *at);
            }
            What::Forced(token) => {
                forced.insert(token, *at);
                let grants = courses.values_mut().filter_map(|course| course.grant.as_mut());
                close(grants.into_iter().find(|grant| grant.token == token), *at);
            }
        }
    }
    courses
}

/// A grant ends once: when it was ended by force, its holder may notice later.
fn close(grant: Option<&mut Grant>, at: Instant) {
    if let Some(grant) = grant {
        grant.until = Some(grant.until.map_or(at, |until| until.min(at)));
    }
}

impl Grant {
    fn stands_at(&self, moment: Instant) -> bool {
        self.from <= moment && self.until.is_none_or(|until| moment < until)
    }
}

/// Two held one slot.
fn overlaps(grants: &[Grant], found: &mut Vec<Violation>) {
    for (i, second) in grants.iter().enumerate() {
        let before = grants[..i].iter().filter(|first| first.slot == second.slot);
        for first in before.filter(|first| first.stands_at(second.from)) {
            found.push(Violation::Overlap {
                slot: second.slot,
                first: first.token,
                second: second.token,
            });
        }
    }
}

/// More held a slot than there are.
fn crowds(grants: &[Grant], slots: u32, found: &mut Vec<Violation>) {
    for (i, last) in grants.iter().enumerate() {
        let at = last.from;
        let standing = grants[..=i].iter().filter(|grant| grant.stands_at(at));
        let tokens: Vec<_> = standing.map(|grant| grant.token).collect();
        if tokens.len() > slots as usize {
            found.push(Violation::TooMany { at, tokens });
        }
    }
}

/// A token is lower than that of a grant that was certainly before: on the same slot, or known before the join began.
fn tokens(courses: &BTreeMap<Attempt, Course>, grants: &[Grant], found: &mut Vec<Violation>) {
    let mut fell = |from: &Grant, to: &Grant| {
        let violation = Violation::TokenFell { from: from.token, to: to.token };
        if from.token >= to.token && !found.contains(&violation) {
            found.push(violation);
        }
    };
    for (i, second) in grants.iter().enumerate() {
        let before = grants[..i].iter().rev();
        before
            .clone()
            .find(|first| first.slot == second.slot)
            .into_iter()
            .for_each(|first| fell(first, second));
        before.filter(|first| first.token == second.token).for_each(|first| fell(first, second));
    }
    for course in courses.values() {
        let Some(second) = &course.grant else {
            continue;
        };
        grants
            .iter()
            .filter(|first| first.order < course.joined)
            .for_each(|first| fell(first, second));
    }
}

/// Somebody was granted before one who waited already when it came, and who did not leave or lose its place.
///
/// Of several slots, one may be kept for the earlier while the later takes its own first.
fn turns(courses: &BTreeMap<Attempt, Course>, slots: u32, found: &mut Vec<Violation>) {
    for (attempt, later) in courses {
        let Some(grant) = &later.grant else { continue };
        for (waited, earlier) in courses {
            if earlier.waited.is_none_or(|waited| waited >= later.joined) {
                continue;
            }
            let is_fine = match (&earlier.grant, &earlier.ended) {
                (Some(first), _) => {
                    let is_kept = slots > 1 && first.from <= grant.from + UNNOTICED;
                    first.token < grant.token || is_kept
                }
                (None, Some((_, End::Lost))) => true,
                (None, Some((at, End::Left))) => *at <= grant.from + UNNOTICED,
                (None, None) => false,
            };
            if !is_fine {
                found.push(Violation::Overtaken { waited: *waited, granted: *attempt });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An event each, a second apart.
    fn found(slots: u32, happened: &[What]) -> Vec<Violation> {
        let events: Vec<_> = happened
            .iter()
            .enumerate()
            .map(|(i, what)| Event { at: second(i), what: what.clone() })
            .collect();
        violations(&events, slots)
    }

    fn second(i: usize) -> Instant {
        Instant::from_boot(Duration::from_secs(i as u64))
    }

    fn joining(attempt: usize) -> What {
        What::Joining(Attempt(attempt))
    }

    fn waiting(attempt: usize) -> What {
        What::Waiting(Attempt(attempt))
    }

    fn granted(attempt: usize, token: u64, slot: u32) -> What {
        What::Granted(Attempt(attempt), Token(token), slot)
    }

    fn left(attempt: usize) -> What {
        What::Ended(Attempt(attempt), End::Left)
    }

    fn lost(attempt: usize) -> What {
        What::Ended(Attempt(attempt), End::Lost)
    }

    #[test]
    fn one_after_the_other_is_fine() {
        let happened = [
            joining(1),
            granted(1, 10, 0),
            joining(2),
            waiting(2),
            joining(3),
            waiting(3),
            left(1),
            granted(2, 11, 0),
            lost(2),
            granted(3, 12, 0),
            left(3),
        ];
        assert_eq!(found(1, &happened), []);
    }

    #[test]
    fn as_many_as_there_are_slots_is_fine() {
        let happened = [
            joining(1),
            joining(2),
            granted(2, 11, 1),
            granted(1, 10, 0),
            left(2),
            joining(3),
            granted(3, 12, 1),
        ];
        assert_eq!(found(2, &happened), [], "answers may come in another order than grants");
    }

    #[test]
    fn two_on_one_slot_are_found() {
        let happened = [joining(1), granted(1, 10, 0), joining(2), granted(2, 11, 0), left(1)];
        let overlap = Violation::Overlap { slot: 0, first: Token(10), second: Token(11) };
        assert_eq!(found(2, &happened), [overlap]);
    }

    #[test]
    fn an_overlap_with_one_long_before_is_found() {
        let happened = [
            joining(1),
            granted(1, 10, 0),
            joining(2),
            granted(2, 11, 1),
            left(2),
            joining(3),
            granted(3, 12, 0),
        ];
        let overlap = Violation::Overlap { slot: 0, first: Token(10), second: Token(12) };
        assert_eq!(found(2, &happened), [overlap]);
    }

    #[test]
    fn more_than_there_are_slots_are_found() {
        let happened = [joining(1), granted(1, 10, 0), joining(2), granted(2, 11, 1)];
        let crowd = Violation::TooMany { at: second(3), tokens: vec![Token(10), Token(11)] };
        assert_eq!(found(1, &happened), [crowd]);
    }

    #[test]
    fn a_token_that_falls_or_comes_back_is_found() {
        let fell = |from, to| Violation::TokenFell { from: Token(from), to: Token(to) };
        let again = [joining(1), granted(1, 10, 0), left(1), joining(2), granted(2, 10, 0)];
        assert_eq!(found(1, &again), [fell(10, 10)]);
        let lower = [joining(1), granted(1, 10, 0), left(1), joining(2), granted(2, 9, 0)];
        assert_eq!(found(1, &lower), [fell(10, 9)]);
        let elsewhere = [joining(1), granted(1, 10, 0), joining(2), granted(2, 9, 1)];
        assert_eq!(found(2, &elsewhere), [fell(10, 9)]);
    }

    #[test]
    fn one_who_waits_and_is_overtaken_is_found() {
        let overtaken = |waited, granted| Violation::Overtaken {
            waited: Attempt(waited),
            granted: Attempt(granted),
        };
        let start = [
            joining(1),
            granted(1, 10, 0),
            joining(2),
            waiting(2),
            joining(3),
            waiting(3),
            left(1),
        ];
        let then = |rest: &[What]| [start.as_slice(), rest].concat();
        let forgotten = then(&[granted(3, 11, 0), left(3)]);
        assert_eq!(found(1, &forgotten), [overtaken(2, 3)]);
        let swapped = then(&[granted(3, 11, 0), left(3), granted(2, 12, 0)]);
        assert_eq!(found(1, &swapped), [overtaken(2, 3)]);
    }

    #[test]
    fn of_several_slots_one_may_be_kept_for_who_was_first() {
        let happened = [
            joining(1),
            joining(2),
            granted(1, 10, 0),
            granted(2, 11, 1),
            joining(3),
            waiting(3),
            joining(4),
            waiting(4),
            left(1),
            left(2),
            granted(4, 12, 0),
            granted(3, 13, 1),
        ];
        assert_eq!(found(2, &happened), []);
    }

    #[test]
    fn one_who_left_or_missed_its_turn_may_be_overtaken() {
        let start = [joining(1), granted(1, 10, 0), joining(2), waiting(2), joining(3), waiting(3)];
        for end in [left(2), lost(2)] {
            let happened = [start.as_slice(), &[end, left(1), granted(3, 11, 0)]].concat();
            assert_eq!(found(1, &happened), []);
        }
    }

    #[test]
    fn one_whose_join_was_not_answered_yet_may_be_overtaken() {
        let happened = [
            joining(1),
            granted(1, 10, 0),
            joining(2),
            joining(3),
            waiting(2),
            waiting(3),
            left(1),
            granted(3, 11, 0),
            left(3),
            granted(2, 12, 0),
        ];
        assert_eq!(found(1, &happened), []);
    }

    #[test]
    fn force_may_overlap() {
        let happened = [
            joining(1),
            granted(1, 10, 0),
            What::Forced(Token(10)),
            joining(2),
            granted(2, 11, 0),
            lost(1),
        ];
        assert_eq!(found(1, &happened), []);
        let unheard =
            [joining(1), What::Forced(Token(10)), joining(2), granted(2, 11, 0), granted(1, 10, 0)];
        assert_eq!(found(1, &unheard), []);
    }
}
