//! The suite under faults, seed by seed: as many as `SERVICEKIT_SEEDS` says.

use servicekit_core::store::{Memory, Profile};
use servicekit_testkit::{
    fault::Plan,
    suite::{Fresh, Options, Subject, Time},
};

/// So many unless the environment says otherwise.
const SEEDS: u64 = 12;

#[test]
fn a_store_like_a_server_keeps_its_promises_under_faults() {
    under_faults("server", Profile::Server, Plan::ROUGH);
}

#[test]
fn a_store_like_a_feed_keeps_its_promises_under_faults() {
    under_faults("feed", Profile::Feed, Plan::ROUGH);
}

#[test]
fn a_store_like_a_table_keeps_its_promises_under_faults() {
    under_faults("table", Profile::Table, Plan::ROUGH);
}

#[test]
fn a_store_whose_lists_are_stale_keeps_the_promises_that_it_makes() {
    under_faults("stale", Profile::Feed, Plan { stale_list: 0.3, ..Plan::ROUGH });
}

fn under_faults(name: &'static str, profile: Profile, plan: Plan) {
    let subject = memory(name, profile);
    let seeds = std::env::var("SERVICEKIT_SEEDS")
        .ok()
        .map(|seeds| seeds.parse().expect("SERVICEKIT_SEEDS is a number"));
    let mut failures = String::new();
    for seed in 0..seeds.unwrap_or(SEEDS) {
        let report = subject.run_all(Options { seed, plan: Some(plan) });
        assert!(report.passed() > 5, "too few cases run under faults: {report}");
        if report.failed().next().is_some() {
            failures += &report.to_string();
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

fn memory(name: &'static str, profile: Profile) -> Subject {
    Subject::new(name, Time::Simulated, move |env| async move {
        Ok(Fresh::new(Memory::new(env, profile)))
    })
}
