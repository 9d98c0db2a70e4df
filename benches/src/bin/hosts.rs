//! `servicekit hosts` as a whole process: CPU time and memory.
//!
//! ```sh
//! cargo build --release -p servicekit-cli && cargo run --release -p servicekit-benches --bin hosts
//! ```

use std::{
    error::Error,
    process::{Command, Stdio},
    time::Duration,
};

use servicekit::{Clock as _, Instance, Label, State, clock::SystemClock, registry::Claim};
use wait4::Wait4 as _;

const INSTANCES: usize = 10;
const RUNS: usize = 200;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let binary = std::env::current_exe()?.with_file_name("servicekit");
    if !binary.exists() {
        return Err("build it first: cargo build --release -p servicekit-cli".into());
    }
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
    let (mut cpu, mut memory) = (Vec::new(), 0);
    for _ in 0..RUNS {
        let mut command = Command::new(&binary);
        command.args(["hosts", "--label", "web", "--backend", &url]).stdout(Stdio::null());
        let usage = command.spawn()?.wait4()?;
        if !usage.status.success() {
            return Err(format!("hosts failed: {}", usage.status).into());
        }
        cpu.push(usage.rusage.utime + usage.rusage.stime);
        memory = memory.max(usage.rusage.maxrss);
    }
    cpu.sort();
    println!("CPU, median of {RUNS}:  {:6.2} ms", cpu[RUNS / 2].as_secs_f64() * 1e3);
    println!("CPU, 95th percentile: {:6.2} ms", cpu[RUNS * 95 / 100].as_secs_f64() * 1e3);
    println!("memory, largest:      {:6.2} MB", memory as f64 / 1e6);
    Ok(())
}
