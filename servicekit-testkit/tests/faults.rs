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
    under_faults("server", Profile::Server);
}

#[test]
fn a_store_like_a_feed_keeps_its_promises_under_faults() {
    under_faults("feed", Profile::Feed);
}

#[test]
fn a_store_like_a_table_keeps_its_promises_under_faults() {
    under_faults("table", Profile::Table);
}

fn under_faults(name: &'static str, profile: Profile) {
    let open = move |env| async move { Ok(Fresh::new(Memory::new(env, profile))) };
    let subject = Subject::new(name, Time::Simulated, open);
    let seeds = std::env::var("SERVICEKIT_SEEDS").ok().map(|seeds| seeds.parse().unwrap());
    for seed in 0..seeds.unwrap_or(SEEDS) {
        let options = Options { seed, plan: Some(Plan::ROUGH) };
        subject.run_all(options).expect_no_failures();
    }
}
