//! A disk that fills up below the store.

use std::{
    env, fs,
    io::Write as _,
    path::Path,
    process::{Command, Output},
};

use crate::harness::{Store, Web, eventually};

/// Set where the test may mount.
const MAY_MOUNT: &str = "SERVICEKIT_TEST_MAY_MOUNT";

#[test]
fn a_watcher_says_once_that_the_disk_is_full_and_once_that_it_is_not() {
    if env::var_os(MAY_MOUNT).is_none() {
        return again_where_it_may_mount(
            "a_watcher_says_once_that_the_disk_is_full_and_once_that_it_is_not",
        );
    }
    let (store, web) = (Store::new(), Web::new(200));
    let disk = store.path("disk");
    fs::create_dir(&disk).unwrap();
    let tmpfs = ["-t", "tmpfs", "-o", "size=1m", "servicekit-test"];
    succeeds(&Command::new("mount").args(tmpfs).arg(&disk).output().unwrap());
    let on_disk = format!("--backend local:{}", disk.join("store.db").display());
    let is_up = || store.run(&format!("hosts --label web {on_disk}")).code == 0;

    let fast = "--interval 100ms --timeout 1s --detect-within 3s";
    let url = web.url();
    let mut watcher =
        store.spawn(&format!("watch --label web --monitor-url {url} {fast} {on_disk}"));
    eventually("the registration", is_up);
    let ballast = disk.join("ballast");
    fill(&ballast);
    watcher.says("the disk is full");
    eventually("the loss, as nothing can be written", || !is_up());
    web.set(500);
    watcher.says("up -> down");
    web.set(200);
    watcher.says("down -> up");
    fs::remove_file(&ballast).unwrap();
    watcher.says("the store is back");
    eventually("the return", is_up);
    let said = watcher.stderr();
    for line in ["the disk is full", "the store is back"] {
        assert_eq!(said.matches(line).count(), 1, "{said}");
    }
}

fn fill(ballast: &Path) {
    let mut ballast = fs::File::create(ballast).unwrap();
    while ballast.write_all(&[0; 1024]).is_ok() {}
}

fn again_where_it_may_mount(test: &str) {
    let may_mount = unshare(&["mount", "-t", "tmpfs", "none", "/mnt"]);
    if !may_mount.status.success() {
        return eprintln!(
            "SKIPPED {test}: it needs `unshare -rm` and `mount`, as root or with user namespaces: {may_mount:?}"
        );
    }
    let me = env::current_exe().unwrap();
    let again = unshare(&[me.to_str().unwrap(), "--exact", &format!("full_disk::{test}")]);
    succeeds(&again);
    assert!(String::from_utf8_lossy(&again.stdout).contains("1 passed"), "{again:?}");
}

fn unshare(command: &[&str]) -> Output {
    Command::new("unshare").arg("-rm").args(command).env(MAY_MOUNT, "1").output().unwrap()
}

fn succeeds(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}
