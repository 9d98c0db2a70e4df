//! The conformance suite on the embedded store: on simulated time, where clocks jump, and on the host's own.

use std::process::ExitCode;

use servicekit_core::{Env, Result};
use servicekit_local::Local;
use servicekit_testkit::suite::{self, Fresh, Subject, Time};

fn main() -> ExitCode {
    suite::main_of([
        Subject::new("simulated", Time::Simulated, open),
        Subject::new("real", Time::Real, open),
    ])
}

async fn open(env: Env) -> Result<Fresh> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let local = Local::open(&folder.path().join("servicekit.db"), env).await?;
    Ok(Fresh::new(local).keeping(folder))
}
