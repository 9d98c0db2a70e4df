//! `servicekit hosts` as a whole process: CPU time and memory.
//!
//! ```sh
//! cargo build --release -p servicekit-cli && cargo run --release -p servicekit-benches --bin hosts
//! ```

use std::{process::Command, time::Duration};

use servicekit::{Clock as _, Instance, Label, State, clock::SystemClock, registry::Claim};
use servicekit_benches::{Result, binary, measure};

const INSTANCES: usize = 10;

#[tokio::main]
async fn main() -> Result<()> {
    let binary = binary()?;
    let folder = tempfile::tempdir()?;
    let url = format!("local:{}", folder.path().join("servicekit.db").display());
    let backend = servicekit::connect(&url).await?;
    let session = backend.registry.open("bench", Duration::from_secs(600)).await?;
    let label: Label = "web".parse()?;
    for i in 0..INSTANCES {
        let now = SystemClock.wall();
        let id = format!("web-{i}").parse()?;
        let mut instance = Instance::starting(label.clone(), id, format!("10.0.0.{i}"), now);
        instance.change(State::Up, "rise 1", "200 OK", now);
        backend.registry.put(&session, &Claim::new(), &instance).await?;
    }
    measure(Command::new(binary).args(["hosts", "--label", "web", "--backend", &url]))
}
