//! `servicekit cert`: what it prints and writes, and what it refuses.

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::Command,
};

use serde_json::Value;

use crate::harness::{self, Store};

const WEB: &str = "cert --label web --x509 --service-id web-1";
const FILES: [&str; 4] = ["key.pem", "cert.pem", "chain.pem", "ca.pem"];

fn text<'a>(json: &'a Value, key: &str) -> &'a str {
    json[key].as_str().unwrap()
}

fn read(folder: &Path) -> [String; 4] {
    FILES.map(|name| fs::read_to_string(folder.join(name)).unwrap())
}

#[test]
fn it_prints_one_object_and_the_same_when_asked_again() {
    let store = Store::new();
    let first = store.json(WEB);
    assert_eq!(first["type"], "x509");
    assert_eq!(first["label"], "web");
    assert_eq!(first["service_id"], "web-1");
    assert_eq!(first["names"], serde_json::json!(["web-1"]));
    assert_eq!(text(&first, "serial").len(), 32);
    for (key, begin) in [
        ("key", "-----BEGIN PRIVATE KEY-----\n"),
        ("cert", "-----BEGIN CERTIFICATE-----\n"),
        ("chain", "-----BEGIN CERTIFICATE-----\n"),
        ("ca", "-----BEGIN CERTIFICATE-----\n"),
    ] {
        assert!(text(&first, key).starts_with(begin), "{key}");
        assert!(text(&first, key).ends_with("-----\n"), "{key}");
    }
    for key in ["not_before", "not_after", "renew_at"] {
        assert!(text(&first, key).ends_with('Z'), "{key}");
    }
    assert_eq!(store.json(WEB), first);
    assert_eq!(store.json(&format!("{WEB} --san web-1")), first);

    let other = store.json(&format!("{WEB} --san b.example --san 10.0.0.1"));
    assert_ne!(other["serial"], first["serial"]);
    assert_eq!(other["ca"], first["ca"]);
    assert_eq!(other["names"], serde_json::json!(["b.example", "10.0.0.1"]));
    assert_eq!(store.json(WEB), other, "without --san the stored names stay");
    let short = store.json(&format!("{WEB} --ttl 1d"));
    assert_ne!(short["serial"], other["serial"]);
    assert_eq!(short["names"], other["names"]);
    assert_eq!(store.json(WEB), short);
}

#[test]
fn the_id_of_this_host_is_the_default() {
    let store = Store::new();
    let id = format!("web-{}", harness::hostname());
    let json = store.json(&format!("cert --label web --x509 --san {}", "any.example"));
    assert_eq!(text(&json, "service_id"), id);
}

#[test]
fn text_leaves_the_key_out() {
    let store = Store::new();
    let done = store.run(&format!("{WEB} -o text"));
    assert_eq!(done.code, 0);
    assert!(done.stdout.contains("web-1") && !done.stdout.contains("KEY-"), "{}", done.stdout);
}

#[test]
fn it_is_renewed_when_its_time_has_come() {
    let store = Store::new();
    let first = store.json(&format!("{WEB} --ttl 3s"));
    let mut next = first.clone();
    harness::eventually("a renewal", || {
        next = store.json(WEB);
        next["serial"] != first["serial"]
    });
    assert_eq!(next["lifetime_seconds"], 3);
}

#[test]
fn wrong_usage_ends_with_2_and_makes_nothing() {
    let store = Store::new();
    for (line, parts) in [
        ("cert --label web", &["--x509"][..]),
        ("cert --x509", &["--label"]),
        ("cert --label we!b --x509", &["--label", "'!'"]),
        ("cert --label web --x509 --service-id web_1", &["web_1", "--san", "'_' at character 4"]),
        (
            "cert --label web --x509 --san web_1",
            &["--san", "web_1", "neither DNS name nor address"],
        ),
        ("cert --label web --x509 --san 10.0.0.256", &["--san", "no address"]),
        ("cert --label web --x509 --san", &["--san"]),
        ("cert --label web --x509 --san a --ttl 3651d", &["3651 days", "a CA lasts 3650 days"]),
        ("cert --label web --x509 --ttl 0", &["--ttl", "more than zero"]),
        ("cert --label web --x509 --ttl soon", &["--ttl", "expected a whole number"]),
    ] {
        store.run(line).is_usage_error(parts);
    }
    // A certificate of ten years is possible in the first second of a CA only.
    let done = store.run(&format!("{WEB} --ttl 3649d"));
    assert_eq!(done.code, 0, "{done:?}");
}

#[test]
fn a_store_in_memory_needs_no_identity() {
    let store = Store::new();
    let json = store.json(&format!("{WEB} --backend memory:"));
    assert!(text(&json, "key").starts_with("-----BEGIN PRIVATE KEY-----"));
}

#[test]
fn without_the_identity_beside_the_store_what_is_there_is_not_replaced() {
    let store = Store::new();
    let first = store.json(WEB);
    let (identity, away) = (store.path("store.db.identity"), store.path("away"));
    fs::rename(&identity, &away).unwrap();
    for namespace in ["default", "another"] {
        let done = store.run(&format!("{WEB} --namespace {namespace}"));
        assert_eq!((done.code, done.stdout.as_str()), (4, ""), "{namespace}");
        assert!(done.stderr.contains("store.db.identity back"), "{}", done.stderr);
        assert!(!identity.exists());
    }
    assert_eq!(store.json(&format!("{WEB} --identity {}", away.display())), first);
    let other = store.path("other");
    store.run(&format!("identity new --out {}", other.display()));
    let done = store.run(&format!("{WEB} --identity {}", other.display()));
    assert_eq!((done.code, done.stdout.as_str()), (4, ""));
    let used =
        format!("another identity, or is damaged; the identity in use is {}", other.display());
    assert!(done.stderr.contains(&used), "{}", done.stderr);
    assert!(done.stderr.contains("(age1"), "{}", done.stderr);
}

#[test]
fn out_writes_four_files_and_prints_their_paths() {
    let store = Store::new();
    let out = store.path("new/tls");
    let json = store.json(&format!("{WEB} --out {}", out.display()));
    let plain = store.json(WEB);
    let contents = read(&out);
    let mode = |name: &str| fs::metadata(out.join(name)).unwrap().permissions().mode() & 0o777;
    for ((name, content), key) in FILES.iter().zip(contents).zip(["key", "cert", "chain", "ca"]) {
        assert_eq!(text(&json, key), out.join(name).to_str().unwrap());
        assert_eq!(content, text(&plain, key), "{name}");
        assert_eq!(mode(name), if *name == "key.pem" { 0o600 } else { 0o644 }, "{name}");
    }
    assert_eq!(mode("."), 0o700);
    assert_eq!(json["serial"], plain["serial"]);

    // Nothing changes as long as nothing has to.
    let target = fs::read_link(out.join(".servicekit")).unwrap();
    let changed = || fs::metadata(&out).unwrap().modified().unwrap();
    let before = changed();
    store.json(&format!("{WEB} --out {}", out.display()));
    assert_eq!(fs::read_link(out.join(".servicekit")).unwrap(), target);
    assert_eq!(changed(), before, "others may watch the folder");
    // Then all do, and nothing of the old is left.
    store.json(&format!("{WEB} --san b --out {}", out.display()));
    let changed = store.json(WEB);
    assert_eq!(
        read(&out),
        ["key", "cert", "chain", "ca"].map(|key| text(&changed, key).to_owned())
    );
    assert!(!out.join(target).exists());
    // What somebody has damaged is mended.
    fs::write(out.join("cert.pem"), "x").unwrap();
    store.json(&format!("{WEB} --out {}", out.display()));
    assert_eq!(read(&out)[1], text(&changed, "cert"));
}

#[test]
fn a_folder_that_cannot_be_written_is_known_before_anything_is_issued() {
    let store = Store::new();
    let file = store.path("file");
    fs::write(&file, "").unwrap();
    for out in [file.display().to_string(), format!("{}/below", file.display()), "/proc/x".into()] {
        let done = store.run(&format!("{WEB} --out {out}"));
        assert_eq!((done.code, done.stdout.as_str()), (125, ""), "no answer is no no: {done:?}");
        assert!(done.stderr.contains(&out) && done.stderr.contains("--out"), "{done:?}");
    }
    assert!(!store.path("store.db.identity").exists());
}

#[test]
fn files_of_others_are_never_replaced() {
    let store = Store::new();
    let out = store.path("tls");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("key.pem"), "precious").unwrap();
    let done = store.run(&format!("{WEB} --out {}", out.display()));
    done.is_usage_error(&["key.pem was not written by servicekit", "name another folder (--out)"]);
    assert_eq!(fs::read_to_string(out.join("key.pem")).unwrap(), "precious");
    fs::remove_file(out.join("key.pem")).unwrap();
    symlink("/etc/passwd", out.join("ca.pem")).unwrap();
    assert_eq!(store.run(&format!("{WEB} --out {}", out.display())).code, 2);
}

#[test]
fn a_folder_of_another_instance_is_refused_before_anything_is_issued() {
    let store = Store::new();
    let out = store.path("tls");
    store.json(&format!("{WEB} --out {}", out.display()));
    let before = read(&out);
    for other in ["--label web --service-id web-2", "--label db --service-id web-1"] {
        let done = store.run(&format!("cert --x509 {other} --out {}", out.display()));
        done.is_usage_error(&["has the certificate of web web-1", "--out", "empty that one"]);
        assert_eq!(read(&out), before);
    }
    let names = "SELECT count(*) FROM records WHERE name LIKE 'leaf:%'";
    assert_eq!(sqlite(&store, names), "1");
    // An empty folder is anybody's, also when only what is seen was removed.
    for name in FILES {
        fs::remove_file(out.join(name)).unwrap();
    }
    let other =
        store.json(&format!("cert --x509 --label db --service-id db-1 --out {}", out.display()));
    assert_eq!(other["label"], "db");
    assert_ne!(read(&out), before);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 6, "nothing of the former is left");
}

#[test]
fn a_folder_with_a_certificate_of_another_ca_is_not_taken_for_an_older_one() {
    let store = Store::new();
    let (out, web) = (store.path("tls"), format!("{WEB} --out {}", store.path("tls").display()));
    store.json(&web);
    let first = read(&out);
    // In another namespace the revision is the same, then higher.
    for san in ["a", "b", "c"] {
        let done = store.run(&format!("{web} --namespace other --san {san}"));
        done.is_usage_error(&["a certificate of another CA", "--out", "empty that one"]);
        assert_eq!(read(&out), first);
    }
    // The way to begin anew that docs/certificates.md shows.
    let begin = "DELETE FROM records WHERE grp = 'default/certs' AND name IN ('ca', 'mark:ca')";
    sqlite(&store, begin);
    let done = store.run(&web);
    assert_eq!((done.code, done.stdout.as_str()), (2, ""));
    assert!(done.stderr.contains("the CA that issued it is gone"), "{}", done.stderr);
    assert!(done.stderr.contains("a certificate of another CA"), "{}", done.stderr);
    assert_eq!(read(&out), first);
    fs::remove_dir_all(&out).unwrap();
    store.json(&web);
    assert_ne!(read(&out)[3], first[3]);
}

fn sqlite(store: &Store, sql: &str) -> String {
    let output = Command::new("sqlite3").arg(store.path("store.db")).arg(sql).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A process that was killed has left its links, its set with a key in it, and the link that was about to replace the one in
/// force. The next one removes them, also when it fails or has nothing to do.
#[test]
fn what_a_killed_process_left_is_removed_by_the_next() {
    let store = Store::new();
    let out = store.path("tls");
    let leave = || {
        fs::create_dir_all(out.join(".servicekit-killed")).unwrap();
        fs::write(out.join(".servicekit-killed/key.pem"), "secret").unwrap();
        symlink(".servicekit-killed", out.join(".servicekit.next")).unwrap();
    };
    let names = || {
        let entries = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name());
        entries.map(|name| name.into_string().unwrap()).collect::<BTreeSet<_>>()
    };
    leave();
    for name in FILES {
        symlink(Path::new(".servicekit").join(name), out.join(name)).unwrap();
    }
    let fails = format!("{WEB} --out {} --identity /none", out.display());
    assert_eq!(store.run(&fails).code, 4);
    assert_eq!(names(), BTreeSet::new());

    store.json(&format!("{WEB} --out {}", out.display()));
    let (whole, files) = (names(), read(&out));
    assert_eq!(whole.len(), 6);
    leave();
    assert_eq!(store.run(&fails).code, 4);
    assert_eq!(names(), whole);
    leave();
    store.json(&format!("{WEB} --out {}", out.display()));
    assert_eq!((names(), read(&out)), (whole, files));
}

/// The store as a whole, put back: its own records cannot tell, the folder can.
#[test]
fn a_folder_remembers_what_the_store_has_forgotten() {
    let store = Store::new();
    let out = store.path("tls");
    store.json(WEB);
    fs::copy(store.path("store.db"), store.path("backup")).unwrap();
    store.json(&format!("{WEB} --san b --out {}", out.display()));
    let before = read(&out);
    for name in ["store.db", "store.db-wal", "store.db-shm"] {
        let _ = fs::remove_file(store.path(name));
    }
    fs::copy(store.path("backup"), store.path("store.db")).unwrap();
    let done = store.run(&format!("{WEB} --out {}", out.display()));
    assert_eq!((done.code, done.stdout.as_str()), (4, ""));
    assert!(done.stderr.contains("rolled back"), "{}", done.stderr);
    assert_eq!(read(&out), before);
    fs::set_permissions(&out, Permissions::from_mode(0o700)).unwrap();
    fs::remove_dir_all(&out).unwrap();
    store.json(&format!("{WEB} --out {}", out.display()));
}
