//! `servicekit identity`.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    process::Command,
};

use crate::harness::Store;

#[test]
fn new_makes_a_file_for_its_owner_alone_and_never_overwrites() {
    let store = Store::new();
    let file = store.path("identity.txt");
    let out = file.display();
    let done = store.run(&format!("identity new --out {out}"));
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
    let recipient = done.stdout.trim();
    assert!(recipient.starts_with("age1") && recipient.len() == 62, "{recipient}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(&format!("# public key: {recipient}\nAGE-SECRET-KEY-1")));

    let again = store.run(&format!("identity new --out {out}"));
    assert_eq!((again.code, again.stdout.as_str()), (1, ""));
    assert!(again.stderr.contains("never overwritten"), "{}", again.stderr);
    assert_eq!(fs::read_to_string(&file).unwrap(), text);

    let shown = store.json(&format!("identity show --identity {out} -o json"));
    assert_eq!(shown["recipient"], recipient);
    assert_eq!(shown["file"], out.to_string());
    // Nobody else's words for it.
    let derived = Command::new("age-keygen").arg("-y").arg(&file).output().unwrap();
    assert_eq!(String::from_utf8(derived.stdout).unwrap().trim(), recipient);
    assert!(!store.path("store.db").exists(), "no store is needed for an identity");
}

#[test]
fn what_age_makes_is_an_identity() {
    let store = Store::new();
    let file = store.path("age.txt");
    let made = Command::new("age-keygen").arg("-o").arg(&file).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let done = store.run(&format!("identity show --identity {}", file.display()));
    assert!(String::from_utf8(made.stderr).unwrap().contains(done.stdout.trim()));
}

#[test]
fn without_a_subcommand_they_are_named() {
    let done = Store::new().run("identity");
    assert_eq!((done.code, done.stdout.as_str()), (2, ""));
    assert!(done.stderr.contains("[subcommands: new, show, help]"), "{}", done.stderr);
    assert_eq!(done.stderr.lines().count(), 1);
}

#[test]
fn a_place_that_cannot_be_written_is_said() {
    let store = Store::new();
    let done = store.run("identity new --out /nowhere/at/all");
    assert_eq!((done.code, done.stdout.as_str()), (125, ""));
    assert!(done.stderr.contains("/nowhere/at/all cannot be written"), "{}", done.stderr);
    store.run("identity new").is_usage_error(&["--out"]);
    store.run("identity").is_usage_error(&["new", "show"]);
}

#[test]
fn the_one_beside_the_store_is_shown_once_it_is_made() {
    let store = Store::new();
    let missing = store.run("identity show");
    assert_eq!((missing.code, missing.stdout.as_str()), (4, ""));
    assert!(missing.stderr.contains("store.db.identity is missing"), "{}", missing.stderr);
    let memory = store.run("identity show --backend memory:");
    assert_eq!((memory.code, memory.stdout.as_str()), (4, ""));
    assert!(memory.stderr.contains("in memory has an identity of its own"), "{}", memory.stderr);
    store.json("cert --label web --x509 --service-id web-1");
    let shown = store.run("identity show");
    assert!(shown.stdout.starts_with("age1"), "{shown:?}");
    let mode = fs::metadata(store.path("store.db.identity")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// Every identity that does not do: exit 4, and the way out.
#[test]
fn an_identity_that_does_not_do_says_what_to_do() {
    let store = Store::new();
    let file = |name: &str, text: &[u8], mode: u32| {
        let path = store.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path.display().to_string()
    };
    let good = store.path("good");
    store.run(&format!("identity new --out {}", good.display()));
    let good = fs::read(good).unwrap();
    let two = [&good[..], &good[..]].concat();
    let open = file("open", &good, 0o644);
    let group = file("group", &good, 0o640);
    let folder = store.path("folder");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, Permissions::from_mode(0o700)).unwrap();
    for (path, said) in [
        (
            store.path("none").display().to_string(),
            "is missing; put it back, or, when nothing is sealed yet, make one with: servicekit identity new --out",
        ),
        (open.clone(), &*format!("(mode 0644); close it with: chmod 600 {open}")),
        (group.clone(), &*format!("(mode 0640); close it with: chmod 600 {group}")),
        (
            file("binary", b"age-encryption.org/v1\n-> scrypt x 18\n\xff\xff", 0o600),
            "protected by a passphrase",
        ),
        (
            file("armored", b"-----BEGIN AGE ENCRYPTED FILE-----\nx", 0o600),
            "protected by a passphrase",
        ),
        (file("empty", b"", 0o600), "no identity file"),
        (file("two", &two, 0o600), "one secret key"),
        (file("recipient", b"age1qqqqqqqqqqqqqqqq\n", 0o600), "no secret key"),
        (file("ssh", b"-----BEGIN OPENSSH PRIVATE KEY-----", 0o600), "no secret key"),
        (file("large", &[b'#'; 70_000], 0o600), "too large"),
        (folder.display().to_string(), "is a folder; name the file"),
        (store.path("").display().to_string(), "is a folder; name the file"),
    ] {
        let commands = ["cert --label web --x509 --service-id web-1", "identity show"];
        for command in commands {
            let done = store.run(&format!("{command} --identity {path}"));
            assert_eq!((done.code, done.stdout.as_str()), (4, ""), "{path}: {done:?}");
            assert!(done.stderr.contains(&path) && done.stderr.contains(said), "{said}: {done:?}");
            assert_eq!(done.stderr.lines().count(), 1, "{done:?}");
            assert!(!done.stderr.contains("SECRET-KEY-1Q"), "{done:?}");
        }
    }
}
