//! A store whose file or disk fails: a clear error each time, in bounded time, and nothing that was acknowledged is lost.

#[cfg(test)]
use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use servicekit_core::{
    Env, Kind, Namespace, Random, Retry, Severity,
    clock::{SystemClock, timeout},
    store::{Expect, Limits, Put, Store as _},
};
use servicekit_local::Local;

use crate::common::{self, group, key, place, put, said};

const LONG: Duration = Duration::from_secs(60);

/// Names the folder in which a test that was started again, where it may mount, does its work.
const INSIDE: &str = "SERVICEKIT_TEST_MOUNTS";

#[tokio::test]
async fn a_locked_file_is_a_timeout_in_time_and_can_be_read() {
    let (_folder, path) = place();
    let local = Local::open(&path, Env::system()).await.unwrap();
    let version = local.put(&put(&key("a"), "1")).await.unwrap();
    let rude = rusqlite::Connection::open(&path).unwrap();
    rude.execute_batch("BEGIN IMMEDIATE").unwrap();
    let next = Put { expect: Expect::At(version), ..put(&key("a"), "2") };
    let answer = timeout(&SystemClock, Limits::default().attempt, local.put(&next)).await;
    let error = answer.expect("sooner than the wrapper gives up").unwrap_err();
    assert_eq!((error.kind(), error.retry()), (Kind::Timeout, Retry::Safe));
    assert!(error.message().contains(path.to_str().unwrap()), "{error}");
    assert_eq!(&*local.get(&key("a")).await.unwrap().unwrap().value, b"1");
    let backend = servicekit_local::backend(
        local.clone(),
        Namespace::default(),
        Env::system(),
        Limits::default(),
    );
    let findings = backend.doctor.examine().await;
    let lock = findings.iter().find(|finding| finding.check == "write lock").unwrap();
    assert_eq!(lock.severity, Severity::Problem);
    let me = format!("process {}", std::process::id());
    assert!(lock.remedy.as_ref().unwrap().contains(&me), "{lock:?}");
    rude.execute_batch("ROLLBACK").unwrap();
    local.put(&next).await.unwrap();
}

#[tokio::test]
async fn a_file_that_was_removed_or_replaced_is_not_written_to() {
    let (folder, path) = place();
    let local = Local::open(&path, Env::system()).await.unwrap();
    let version = local.put(&put(&key("a"), "1")).await.unwrap();
    let aside = folder.path().join("aside");
    fs::rename(&path, &aside).unwrap();
    let next = Put { expect: Expect::At(version), ..put(&key("a"), "2") };
    for replaced in [false, true] {
        if replaced {
            fs::write(&path, "").unwrap();
        }
        let errors = [
            local.put(&next).await.unwrap_err(),
            local.get(&key("a")).await.unwrap_err(),
            local.list(&[group("group")]).await.unwrap_err(),
        ];
        for error in errors {
            let (kind, what) =
                if replaced { (Kind::Invalid, "replaced") } else { (Kind::Unavailable, "removed") };
            assert_eq!((error.kind(), error.retry()), (kind, Retry::Never), "{error}");
            assert!(error.message().contains(what), "{error}");
        }
    }
    fs::rename(&aside, &path).unwrap();
    local.put(&next).await.unwrap();
}

#[tokio::test]
async fn a_healthy_store_has_nothing_to_report() {
    let (_folder, path) = place();
    let local = Local::open(&path, Env::system()).await.unwrap();
    local.put(&put(&key("a"), "1")).await.unwrap();
    let backend =
        servicekit_local::backend(local, Namespace::default(), Env::system(), Limits::default());
    let findings = backend.doctor.examine().await;
    for check in [
        "file",
        "permissions",
        "machine",
        "clock",
        "log",
        "disk",
        "write lock",
        "waking",
        "content",
    ] {
        let finding = findings.iter().find(|finding| finding.check == check);
        let finding = finding.unwrap_or_else(|| panic!("no finding on {check}"));
        // A container may have no machine id, a disk little space, and a user no more alarms.
        if !["machine", "disk", "waking"].contains(&check) {
            assert_eq!(finding.severity, Severity::Fine, "{finding:?}");
        }
    }
    assert!(findings.iter().all(|finding| finding.severity != Severity::Problem), "{findings:?}");
}

#[tokio::test]
async fn damage_is_an_error_or_does_no_harm() {
    let (folder, path) = place();
    let local = Local::open(&path, Env::system()).await.unwrap();
    let mut written = BTreeMap::new();
    for i in 0..60 {
        let put = put(
            &group(&format!("g{}", i % 3)).key(key(&format!("k{i}")).name),
            &"v".repeat(i * 17),
        );
        local.put(&put).await.unwrap();
        written.insert(put.key, put.value);
    }
    drop(local);
    let whole = fs::read(&path).unwrap();
    let mut noticed = 0;
    for seed in common::seeds(100) {
        let random = Random::seeded(seed);
        let mut bytes = whole.clone();
        for _ in 0..=random.below(8) {
            let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
            bytes[at] ^= 1 << random.below(8);
        }
        let damaged = folder.path().join(format!("{seed}.db"));
        fs::write(&damaged, bytes).unwrap();
        let read = timeout(&SystemClock, LONG, read_damaged(&damaged, &written)).await;
        noticed += usize::from(read.unwrap_or_else(|_| panic!("seed {seed}: hangs")).is_err());
    }
    assert!(noticed > 0, "none was noticed");
}

/// Reads all; what is told must be true, and what is missing must be noticed by the doctor.
async fn read_damaged(
    path: &Path,
    written: &BTreeMap<servicekit_core::store::Key, Arc<[u8]>>,
) -> Result<(), String> {
    let ended = "did not end";
    let local = Local::open(path, Env::system()).await.map_err(|error| said(&error))?;
    let mut result = Ok(());
    let mut missing = Vec::new();
    for (key, value) in written {
        match local.get(key).await {
            Ok(Some(record)) => {
                assert!(record.value == *value, "{} tells a lie of {key}", path.display())
            }
            Ok(None) => missing.push(key.clone()),
            Err(error) => result = Err(said(&error)),
        }
    }
    match local.list(&[group("g0"), group("g1"), group("g2")]).await {
        Ok(records) => {
            for record in &records {
                assert_eq!(written.get(&record.key), Some(&record.value), "{}", path.display());
            }
            let there =
                |key: &servicekit_core::store::Key| records.iter().any(|record| record.key == *key);
            missing.extend(written.keys().filter(|key| !there(key)).cloned());
        }
        Err(error) => result = Err(said(&error)),
    }
    if let Err(error) = local.put(&put(&key("new"), "")).await {
        result = Err(said(&error));
    }
    let text = result.clone().err().unwrap_or_default();
    assert!(!text.contains(ended), "a panic: {text}");
    if result.is_ok() && !missing.is_empty() {
        let backend = servicekit_local::backend(
            local,
            Namespace::default(),
            Env::system(),
            Limits::default(),
        );
        let findings = backend.doctor.examine().await;
        let content = findings.iter().find(|finding| finding.check == "content").unwrap();
        assert_eq!(
            content.severity,
            Severity::Problem,
            "{}: {missing:?} unnoticed",
            path.display()
        );
    }
    result
}

#[tokio::test]
async fn a_full_disk_is_said_and_nothing_acknowledged_is_lost() {
    let Some(folder) = inside("a_full_disk_is_said_and_nothing_acknowledged_is_lost") else {
        return;
    };
    mount(&["-t", "tmpfs", "-o", "size=2m", "servicekit-test"], &folder);
    let path = folder.join("servicekit.db");
    let local = Local::open(&path, Env::system()).await.unwrap();
    let ballast = folder.join("ballast");
    fs::write(&ballast, vec![0; 500_000]).unwrap();
    let mut acknowledged = Vec::new();
    let error = loop {
        let put = put(&key(&format!("k{}", acknowledged.len())), &"x".repeat(20_000));
        match local.put(&put).await {
            Ok(version) => acknowledged.push((put, version)),
            Err(error) => break error,
        }
        assert!(acknowledged.len() < 1000, "it never was full");
    };
    assert_eq!(error.kind(), Kind::Unavailable, "{}", said(&error));
    assert!(error.message().contains("disk"), "{error}");
    assert!(error.message().contains(path.to_str().unwrap()), "{error}");
    for (put, _) in &acknowledged {
        assert_eq!(local.get(&put.key).await.unwrap().unwrap().write, put.write);
    }
    fs::remove_file(&ballast).unwrap();
    let (put, version) = &acknowledged[0];
    let next = Put { expect: Expect::At(version.clone()), ..common::put(&put.key, "small") };
    local.put(&next).await.unwrap();
    drop(local);
    let local = Local::open(&path, Env::system()).await.unwrap();
    assert_eq!(local.list(&[group("group")]).await.unwrap().len(), acknowledged.len());
}

#[tokio::test]
async fn a_disk_without_room_for_a_store_is_said() {
    let Some(folder) = inside("a_disk_without_room_for_a_store_is_said") else { return };
    mount(&["-t", "tmpfs", "-o", "size=64k", "servicekit-test"], &folder);
    fs::write(folder.join("ballast"), vec![0; 60_000]).unwrap();
    let error = Local::open(&folder.join("servicekit.db"), Env::system()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{}", said(&error));
    fs::remove_file(folder.join("ballast")).unwrap();
    mount(&["-o", "remount,size=2m"], &folder);
    let local = Local::open(&folder.join("servicekit.db"), Env::system()).await.unwrap();
    local.put(&put(&key("a"), "")).await.unwrap();
}

#[tokio::test]
async fn a_read_only_disk_is_said() {
    let Some(folder) = inside("a_read_only_disk_is_said") else { return };
    mount(&["-t", "tmpfs", "-o", "size=2m", "servicekit-test"], &folder);
    let path = folder.join("servicekit.db");
    drop(Local::open(&path, Env::system()).await.unwrap());
    mount(&["-o", "remount,ro"], &folder);
    let result = match Local::open(&path, Env::system()).await {
        Ok(local) => local.put(&put(&key("a"), "")).await.map(drop),
        Err(error) => Err(error),
    };
    let error = result.unwrap_err();
    assert!(matches!(error.kind(), Kind::Denied | Kind::Unavailable), "{}", said(&error));
    assert!(error.message().contains("writ"), "{error}");
    let error = Local::open(&folder.join("new.db"), Env::system()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied, "{}", said(&error));
    assert!(error.message().contains("read-only"), "{error}");
}

/// Starts the test again where it may mount, and gives the folder to mount on; `None` outside, when that has passed.
fn inside(test: &str) -> Option<PathBuf> {
    if let Some(folder) = env::var_os(INSIDE) {
        return Some(folder.into());
    }
    let may_mount =
        Command::new("unshare").args(["-rm", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    if !may_mount.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!(
            "SKIPPED {test}: it needs `unshare -rm` and `mount`, as root or with user namespaces: {may_mount:?}"
        );
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut again = Command::new("unshare");
    again.arg("-rm").arg(env::current_exe().unwrap()).args([
        "--exact",
        &format!("failures::{test}"),
        "--nocapture",
    ]);
    let output = again.env(INSIDE, folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    None
}

fn mount(options: &[&str], folder: &Path) {
    let output = Command::new("mount").args(options).arg(folder).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}
