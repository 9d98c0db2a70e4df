//! The exec probe with real processes.

use std::{fs, path::Path, sync::Arc, time::Duration};

use servicekit_agent::probe::Exec;
use servicekit_core::health::{Probe as _, Verdict};

use crate::support::{LONG, SHORT, When, clock};

async fn check(command: &str, timeout: Duration) -> Verdict {
    Exec::new(command, timeout, clock()).check().await
}

/// Waits until the process whose id is in `file` is no more: gone, or a zombie that nobody has reaped yet.
async fn until_dead(file: &Path) {
    let id = fs::read_to_string(file).unwrap();
    let status = format!("/proc/{}/stat", id.trim());
    let is_alive = || {
        let stat = fs::read_to_string(&status).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    };
    let deadline = clock().now() + LONG;
    while is_alive() {
        assert!(clock().now() < deadline, "process {id} is still alive");
        clock().sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_exit_status_decides_and_the_last_line_is_told() {
    let passed = check("echo one; echo two >&2; echo", LONG).await;
    assert_eq!(passed, Verdict::Pass("exec: exit status: 0: two".into()));
    let failed = check("echo no replica; exit 3", LONG).await;
    assert_eq!(failed, Verdict::Fail("exec: exit status: 3: no replica".into()));
    let killed = check("kill -9 $$", LONG).await;
    assert!(!killed.passed() && killed.output().contains("signal: 9"), "{killed:?}");
    assert!(!check("/nonexistent", LONG).await.passed());
}

#[tokio::test]
async fn standard_input_is_empty() {
    assert!(check("! read line", LONG).await.passed());
}

#[tokio::test]
async fn at_the_time_out_the_whole_group_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let (child, grandchild, ready) = (file("child"), file("grandchild"), file("ready"));
    let deaf = "trap '' TERM INT HUP";
    let command = format!(
        "{deaf}; echo $$ > {}; sh -c \"{deaf}; sleep 1000\" & echo $! > {}; touch {}; wait",
        child.display(),
        grandchild.display(),
        ready.display()
    );
    let clock = Arc::new(When(move || ready.exists()));
    let verdict = Exec::new(command, SHORT, clock).check().await;
    assert_eq!(verdict, Verdict::Fail("exec: not done within 300ms, killed".into()));
    until_dead(&child).await;
    until_dead(&grandchild).await;
}

#[tokio::test]
async fn dropping_the_probe_kills_the_whole_group() {
    let folder = tempfile::tempdir().unwrap();
    let (ready, grandchild) = (folder.path().join("ready"), folder.path().join("grandchild"));
    let command =
        format!("sleep 1000 & echo $! > {}; touch {}; wait", grandchild.display(), ready.display());
    let probe = Exec::new(command, LONG, clock());
    tokio::select! {
        verdict = probe.check() => panic!("{verdict:?}"),
        () = async {
            while !ready.exists() {
                clock().sleep(Duration::from_millis(5)).await;
            }
        } => {}
    }
    until_dead(&grandchild).await;
}

#[tokio::test]
async fn what_stays_in_the_background_does_not_delay_the_verdict_and_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let grandchild = folder.path().join("grandchild");
    // It keeps the pipe open.
    let command = format!("sleep 1000 & echo $! > {}; echo fine", grandchild.display());
    let verdict = check(&command, LONG).await;
    assert_eq!(verdict, Verdict::Pass("exec: exit status: 0: fine".into()));
    until_dead(&grandchild).await;
}

#[tokio::test]
async fn a_process_that_left_the_group_does_not_delay_the_verdict() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = folder.path().join("daemon");
    let file = daemon.display();
    let command = format!(
        "setsid sh -c 'echo $$ > {file}; exec sleep 1000' & while ! [ -s {file} ]; do :; done; echo fine"
    );
    let verdict = check(&command, LONG).await;
    assert_eq!(verdict, Verdict::Pass("exec: exit status: 0: fine".into()));
    let id = fs::read_to_string(&daemon).unwrap().trim().parse().unwrap();
    let id = rustix::process::Pid::from_raw(id).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn output_without_end_fails_with_that_reason() {
    let verdict = check("yes flood", LONG).await;
    let reason = "exec: wrote more than 1024 KiB, killed: f";
    assert!(!verdict.passed() && verdict.output().starts_with(reason), "{verdict:?}");
}

#[tokio::test]
async fn closing_the_output_says_nothing_about_the_command() {
    let verdict = check("exec >/dev/null 2>&1; sleep 0.1; exit 4", LONG).await;
    assert_eq!(verdict, Verdict::Fail("exec: exit status: 4".into()));
    let verdict = check("exec >/dev/null 2>&1; sleep 1000", SHORT).await;
    assert_eq!(verdict, Verdict::Fail("exec: not done within 300ms, killed".into()));
}
