//! The conformance suite on the embedded store under faults, seed by seed: as many as `SERVICEKIT_SEEDS` says.

use servicekit_core::{Env, Result};
use servicekit_local::Local;
use servicekit_testkit::{
    fault::Plan,
    suite::{Fresh, Options, Subject, Time},
};

/// So many unless the environment says otherwise.
const SEEDS: u64 = 4;

#[test]
fn the_embedded_store_keeps_its_promises_under_faults() {
    let subject = Subject::new("local", Time::Simulated, open);
    let seeds = std::env::var("SERVICEKIT_SEEDS").ok().map(|seeds| seeds.parse().unwrap());
    for seed in 0..seeds.unwrap_or(SEEDS) {
        subject.run_all(Options { seed, plan: Some(Plan::ROUGH) }).expect_no_failures();
    }
}

async fn open(env: Env) -> Result<Fresh> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let local = Local::open(&folder.path().join("servicekit.db"), env).await?;
    Ok(Fresh::new(local).keeping(folder))
}
