//! What several benches share.

pub mod stores;

use std::{
    error::Error,
    path::PathBuf,
    process::{Command, Stdio},
};

use wait4::Wait4 as _;

/// What a bench fails with.
pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// How often a whole process is run.
const RUNS: usize = 200;

/// Where the binary is that is measured.
///
/// # Errors
///
/// It was not built.
pub fn binary() -> Result<PathBuf> {
    let binary = std::env::current_exe()?.with_file_name("servicekit");
    if !binary.exists() {
        return Err("build it first: cargo build --release -p servicekit-cli".into());
    }
    Ok(binary)
}

/// Runs a command again and again as a whole process, and prints what CPU time and memory it takes.
///
/// # Errors
///
/// It failed.
pub fn measure(command: &mut Command) -> Result<()> {
    command.stdout(Stdio::null());
    let (mut cpu, mut memory) = (Vec::new(), 0);
    for _ in 0..RUNS {
        let usage = command.spawn()?.wait4()?;
        if !usage.status.success() {
            return Err(format!("{command:?} failed: {}", usage.status).into());
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
