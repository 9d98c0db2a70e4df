//! The suite tests itself: implementations that are broken in one way each, and the case that has to see it.

mod leases;
mod registry;
mod store;

use std::sync::Arc;

use servicekit_core::{
    Backend,
    store::{Limits, Memory, Profile},
};
use servicekit_testkit::suite::{self, Fresh, Options, Outcome, Subject, Time};

/// Where a bug is put in.
#[derive(Clone, Copy, Debug)]
enum Mutant {
    Store(store::Bug),
    Leases(leases::Bug),
    Registry(registry::Bug),
    Certs,
}

use Mutant::{Certs, Leases, Registry, Store};
use Profile::{Feed, Server};

/// Every mutant, the kind of store that it is made of, and the case that catches it.
const MUTANTS: &[(Mutant, Profile, &str)] = &[
    (Store(store::Bug::PutsWithoutCondition), Server, "store::absent_is_a_condition"),
    (Store(store::Bug::ChecksThenWrites), Server, "store::of_many_puts_on_one_condition_one_wins"),
    (Store(store::Bug::MakesVersionsOfContent), Feed, "store::a_version_never_comes_back"),
    (Store(store::Bug::ForgetsTheWriteId), Server, "store::a_write_id_is_kept_and_read_back"),
    (Store(store::Bug::DeletesWithoutCondition), Server, "store::delete_needs_the_version"),
    (Store(store::Bug::ReadsStale), Feed, "store::a_read_after_a_write_shows_it"),
    (Store(store::Bug::ListsByPrefix), Server, "store::a_list_shows_its_groups_and_nothing_else"),
    (Store(store::Bug::ListsOnePage), Server, "store::a_list_is_in_order_and_whole"),
    (Store(store::Bug::FoldsCase), Server, "store::names_are_taken_literally"),
    (Store(store::Bug::TouchRevives), Server, "store::what_has_ended_is_absent_for_good"),
    (
        Store(store::Bug::TouchIgnoresTheWriteId),
        Feed,
        "store::a_touch_needs_the_record_and_its_write_id",
    ),
    (Store(store::Bug::EndsEarly), Server, "store::a_record_ends_after_its_ttl_and_not_before"),
    (Store(store::Bug::EndsByTheWallClock), Server, "store::a_wall_clock_that_is_set_ends_nothing"),
    (
        Store(store::Bug::MissesWhatHappenedWhileAway),
        Server,
        "store::a_watch_heals_with_a_snapshot",
    ),
    (
        Store(store::Bug::MissesDeletes),
        Feed,
        "store::a_watch_misses_nothing_that_happens_meanwhile",
    ),
    (Leases(leases::Bug::ResetsTokens), Server, "leases::tokens_rise_whatever_ends_a_grant"),
    (Leases(leases::Bug::RenewalProvesTheSession), Server, "leases::a_renewal_proves_this_grant"),
    (
        Leases(leases::Bug::CountsFromTheAnswer),
        Server,
        "leases::a_grant_counts_from_before_it_was_sent",
    ),
    (
        Leases(leases::Bug::EvictsByWrittenTime),
        Feed,
        "leases::the_clocks_of_other_hosts_change_no_attended_grant",
    ),
    (
        Leases(leases::Bug::GrantsByPosition),
        Server,
        "leases::the_second_waits_and_is_granted_when_the_first_leaves",
    ),
    (Leases(leases::Bug::LastComeFirstServed), Server, "leases::first_come_first_served"),
    (
        Leases(leases::Bug::RefusalLeavesATicket),
        Server,
        "leases::who_would_not_wait_is_refused_and_leaves_nothing",
    ),
    (
        Leases(leases::Bug::EvictsByForceAlways),
        Server,
        "leases::who_is_evicted_is_told_and_the_next_waits_for_its_leave",
    ),
    (Leases(leases::Bug::WaitEndsWithTheStore), Server, "leases::waiting_outlives_an_outage"),
    (
        Leases(leases::Bug::RenewsWithoutAnswer),
        Server,
        "leases::a_guard_is_lost_by_its_deadline_when_the_store_is_away",
    ),
    (
        Registry(registry::Bug::IgnoresIncarnations),
        Server,
        "registry::the_newer_incarnation_wins_and_the_older_is_told",
    ),
    (
        Registry(registry::Bug::RemovesByDeletingAlone),
        Server,
        "registry::an_instance_that_was_removed_is_gone",
    ),
    (
        Registry(registry::Bug::BeatsForEachInstance),
        Server,
        "registry::a_beat_is_one_request_however_many_instances",
    ),
    (Registry(registry::Bug::ListsByPrefix), Server, "registry::labels_do_not_touch_each_other"),
    (
        Registry(registry::Bug::LosesEverybodyWithTheStore),
        Server,
        "registry::after_an_outage_nobody_is_lost_who_beats_again_within_its_ttl",
    ),
    (
        Registry(registry::Bug::ReopensSilently),
        Server,
        "registry::a_session_that_ended_is_opened_again",
    ),
    (Certs, Server, "certs::of_many_who_find_nothing_one_writes"),
];

#[test]
fn every_mutant_is_caught_by_its_case() {
    let mut survivors = Vec::new();
    for (mutant, profile, name) in MUTANTS {
        let case = suite::cases().find(|case| case.name == *name);
        let case = case.unwrap_or_else(|| panic!("there is no case {name}"));
        match subject(Some(*mutant), *profile).run(case, OPTIONS) {
            Outcome::Failed(how) => println!("{mutant:?} is caught: {how}"),
            outcome => survivors.push((mutant, name, outcome)),
        }
        let sound = subject(None, *profile).run(case, OPTIONS);
        assert_eq!(sound, Outcome::Passed, "{name} fails on what is sound, and proves nothing");
    }
    assert!(survivors.is_empty(), "{survivors:#?}");
}

const OPTIONS: Options = Options { seed: 0, plan: None };

fn subject(mutant: Option<Mutant>, profile: Profile) -> Subject {
    Subject::new("mutant", Time::Simulated, move |env| async move {
        let memory = Memory::new(env.clone(), profile);
        let Some(Store(bug)) = mutant else {
            return Ok(Fresh::new(memory).with_backend(move |store, namespace, env| {
                let limits = Limits::default();
                let backend = Backend::over("sound", store, namespace, env.clone(), limits);
                match mutant {
                    Some(Leases(bug)) => leases::put_in(bug, backend, env),
                    Some(Registry(bug)) => registry::put_in(bug, backend),
                    Some(Certs) => registry::put_into_certs(backend),
                    Some(Store(_)) | None => backend,
                }
            }));
        };
        Ok(Fresh::new(store::Mutant::new(bug, Arc::new(memory), env)))
    })
}
