//! `servicekit cert` for a certificate that exists, as a whole process: CPU time and memory.
//!
//! ```sh
//! cargo build --release -p servicekit-cli && cargo run --release -p servicekit-benches --bin cert
//! ```

use std::{
    error::Error,
    process::{Command, Stdio},
};

use wait4::Wait4 as _;

const RUNS: usize = 200;

fn main() -> Result<(), Box<dyn Error>> {
    let binary = std::env::current_exe()?.with_file_name("servicekit");
    if !binary.exists() {
        return Err("build it first: cargo build --release -p servicekit-cli".into());
    }
    let folder = tempfile::tempdir()?;
    let url = format!("local:{}", folder.path().join("servicekit.db").display());
    let (mut cpu, mut memory) = (Vec::new(), 0);
    // The first makes the CA and the certificate.
    for run in 0..=RUNS {
        let mut command = Command::new(&binary);
        command.args(["cert", "--label", "web", "--x509", "--service-id", "web-1"]);
        command.args(["--backend", &url]).stdout(Stdio::null());
        let usage = command.spawn()?.wait4()?;
        if !usage.status.success() {
            return Err(format!("cert failed: {}", usage.status).into());
        }
        if run > 0 {
            cpu.push(usage.rusage.utime + usage.rusage.stime);
            memory = memory.max(usage.rusage.maxrss);
        }
    }
    cpu.sort();
    println!("CPU, median of {RUNS}:  {:6.2} ms", cpu[RUNS / 2].as_secs_f64() * 1e3);
    println!("CPU, 95th percentile: {:6.2} ms", cpu[RUNS * 95 / 100].as_secs_f64() * 1e3);
    println!("memory, largest:      {:6.2} MB", memory as f64 / 1e6);
    Ok(())
}
