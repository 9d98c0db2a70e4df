//! The conformance suite on the embedded store under faults, seed by seed: as many as `SERVICEKIT_SEEDS` says.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use servicekit_core::{Env, Result};
use servicekit_local::Local;
use servicekit_testkit::{
    fault::Plan,
    suite::{Fresh, Options, Subject, Time},
};

/// So many unless the environment says otherwise.
const SEEDS: u64 = 4;
const THREADS: usize = 8;

#[test]
fn the_embedded_store_keeps_its_promises_under_faults() {
    let subject = Subject::new("local", Time::Simulated, open);
    let seeds = std::env::var("SERVICEKIT_SEEDS").ok().map(|seeds| seeds.parse().unwrap());
    let (seeds, next) = (seeds.unwrap_or(SEEDS), AtomicU64::new(0));
    // They mostly wait for the disk.
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    let options = Options { seed, plan: Some(Plan::ROUGH) };
                    subject.run_all(options).expect_no_failures();
                }
            });
        }
    });
}

async fn open(env: Env) -> Result<Fresh> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let local = Local::open(&folder.path().join("servicekit.db"), env).await?;
    Ok(Fresh::new(local).keeping(folder))
}
