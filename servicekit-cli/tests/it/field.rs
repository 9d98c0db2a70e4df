//! A store of its own for a test of many processes, and the binary on it.

#![expect(
    clippy::disallowed_methods,
    reason = "tests wait on the host's own clock, and end at the first surprise"
)]

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A folder with an embedded store in it.
pub(crate) struct Field(tempfile::TempDir);

/// Far more than anything takes: what is reached is a hang.
const BOUND: Duration = Duration::from_secs(300);

impl Field {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The binary on this store; nothing of the caller's environment reaches it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_servicekit"));
        let url = format!("local:{}", self.path("servicekit.db").display());
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.env_clear().env("PATH", path).env("SERVICEKIT_BACKEND", url);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn run<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Output {
        self.command().args(args).output().unwrap()
    }

    /// What `leases -o json` says of each lease.
    pub(crate) fn leases(&self) -> Vec<Value> {
        let output = self.run(["leases", "-o", "json"]);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }
}

/// Waits until `is` holds.
pub(crate) fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < BOUND, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn send(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(child.id().try_into().unwrap()).unwrap();
    // It may be gone already.
    let _ = kill_process(pid, signal);
}

pub(crate) fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}
