//! `servicekit man`.

use std::{fs, path::Path, process::Command};

use crate::harness::Store;

/// As a terminal of 80 columns shows it.
fn rendered(page: &Path) -> String {
    let output = Command::new("mandoc").args(["-Tascii", "-O", "width=78"]).arg(page).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    // Bold is a letter, a backspace and the letter again.
    let mut text = String::new();
    for c in String::from_utf8(output.stdout).unwrap().chars() {
        match c {
            '\u{8}' => _ = text.pop(),
            c => text.push(c),
        }
    }
    text
}

#[test]
fn every_command_has_a_page_that_reads_well() {
    let store = Store::new();
    let done = store.run(&format!("man --out {}", store.path("new/man1").display()));
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
    let pages: Vec<_> = done.stdout.lines().map(Path::new).collect();
    assert!(pages.contains(&&*store.path("new/man1/servicekit.1")));
    assert!(pages.contains(&&*store.path("new/man1/servicekit-identity-new.1")));
    for page in &pages {
        let mut lint = Command::new("mandoc");
        let lint = lint.args(["-Tlint", "-Werror"]).arg(page).output().unwrap();
        assert!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stdout));
        let text = rendered(page);
        for part in ["NAME", "SYNOPSIS", "DESCRIPTION", "EXAMPLES", "SERVICEKIT_BACKEND"] {
            assert!(text.contains(part), "{part} is missing: {}", page.display());
        }
        assert!(text.contains(concat!("servicekit ", env!("CARGO_PKG_VERSION"))), "{text}");
    }
    let all = store.run("help").stdout;
    let commands = all.split("Commands:").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = commands.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    for command in names.filter(|name| !name.is_empty()) {
        let page = store.path(&format!("new/man1/servicekit-{command}.1"));
        assert!(command == "help" || pages.contains(&&*page), "{command} has no page");
    }
}

#[test]
fn examples_keep_their_lines() {
    let store = Store::new();
    store.run(&format!("man --out {}", store.path("").display()));
    let text = rendered(&store.path("servicekit-hosts.1"));
    let has = |line: &str| text.lines().any(|printed| printed.trim() == line);
    assert!(has("servicekit hosts --label web --wait 3 --timeout 2m"), "{text}");
    assert!(has("servicekit hosts --label web --exec 'cat > /tmp/web.hosts'"), "{text}");
    let text = rendered(&store.path("servicekit-watch.1"));
    assert!(text.lines().any(|line| line.trim() == "[[service]]"), "{text}");
}

#[test]
fn without_a_folder_the_main_page_is_printed() {
    let store = Store::new();
    let done = store.run("man");
    fs::write(store.path("servicekit.1"), &done.stdout).unwrap();
    let text = rendered(&store.path("servicekit.1"));
    for part in ["servicekit-hosts(1)", "EXIT STATUS", "EXAMPLES"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!store.path("store.db").exists(), "no store is needed");
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let store = Store::new();
    fs::write(store.path("file"), "").unwrap();
    let done = store.run(&format!("man --out {}", store.path("file/man1").display()));
    assert_eq!((done.code, done.stdout.as_str()), (125, ""));
    assert!(done.stderr.contains("file/man1: Not a directory"), "{}", done.stderr);
}
