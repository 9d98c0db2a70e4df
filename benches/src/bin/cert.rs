//! `servicekit cert` for a certificate that exists, as a whole process: CPU time and memory.
//!
//! ```sh
//! cargo build --release -p servicekit-cli && cargo run --release -p servicekit-benches --bin cert
//! ```

use std::process::{Command, Stdio};

use servicekit_benches::{Result, binary, measure};

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let url = format!("local:{}", folder.path().join("servicekit.db").display());
    let mut command = Command::new(binary()?);
    command.args(["cert", "--label", "web", "--x509", "--service-id", "web-1", "--backend", &url]);
    // The first makes the CA and the certificate.
    let first = command.stdout(Stdio::null()).status()?;
    if !first.success() {
        return Err(format!("cert failed: {first}").into());
    }
    measure(&mut command)
}
