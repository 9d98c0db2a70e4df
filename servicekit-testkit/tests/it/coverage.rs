//! Nothing was forgotten: every case is in the table, every promise has a case, every capability selects one.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use servicekit_core::Capabilities;
use servicekit_testkit::suite::{Setting, cases};

#[test]
fn every_case_is_in_the_table_once() {
    let mut written = BTreeSet::new();
    for source in suite_sources() {
        for line in source.lines().filter(|line| line.ends_with("(world: World) {")) {
            let name = line.trim_start_matches("async fn ").trim_end_matches("(world: World) {");
            written.insert(name.to_owned());
        }
    }
    assert!(written.len() > 100, "the sources are not read as they should be");
    let tabled: Vec<_> = cases().map(|case| case.name).collect();
    let names: BTreeSet<_> =
        tabled.iter().map(|name| name.rsplit("::").next().unwrap().to_owned()).collect();
    assert_eq!(written, names, "functions on the left, table on the right");
    assert_eq!(tabled.iter().collect::<BTreeSet<_>>().len(), tabled.len(), "a name is there twice");
}

#[test]
fn every_method_of_every_trait_is_called_by_a_case() {
    let suite = suite_sources().concat().split_whitespace().collect::<String>();
    let mut missing = Vec::new();
    let mut methods = 0;
    for (file, name) in [
        ("store.rs", "Store"),
        ("registry.rs", "Registry"),
        ("lease.rs", "LeaseProvider"),
        ("cert.rs", "CertStore"),
    ] {
        let source = read(&root().join("../servicekit-core/src").join(file));
        let start = source.find(&format!("pub trait {name}:")).unwrap();
        let body = &source[start..start + source[start..].find("\n}").unwrap()];
        for line in body.lines().map(str::trim) {
            let line = line.strip_prefix("async ").unwrap_or(line);
            let Some(method) = line.strip_prefix("fn ") else { continue };
            let method = method.split('(').next().unwrap();
            methods += 1;
            if !suite.contains(&format!(".{method}(")) {
                missing.push(format!("{name}::{method}"));
            }
        }
    }
    assert!(methods >= 30, "only {methods} methods were found");
    assert!(missing.is_empty(), "no case calls {missing:?}");
}

#[test]
fn every_capability_selects_a_case() {
    let all = Setting { capabilities: ALL, is_simulated: true, has_faults: false };
    let without = |change: fn(&mut Setting)| {
        let mut setting = all;
        change(&mut setting);
        setting
    };
    let settings = [
        ("linearizable", without(|setting| setting.capabilities.linearizable = false)),
        ("multi_host", without(|setting| setting.capabilities.multi_host = false)),
        ("server_expiry", without(|setting| setting.capabilities.server_expiry = false)),
        ("push_watch", without(|setting| setting.capabilities.push_watch = false)),
        ("simulated time", without(|setting| setting.is_simulated = false)),
        ("no faults", without(|setting| setting.has_faults = true)),
    ];
    let selected = |setting: &Setting| {
        cases().filter(|case| case.lacks(setting).is_none()).map(|case| case.name).collect()
    };
    let with_all: BTreeSet<_> = selected(&all);
    for (name, setting) in &settings {
        assert!(with_all.difference(&selected(setting)).count() > 0, "nothing needs {name}");
    }
    let reachable: BTreeSet<_> =
        settings.iter().flat_map(|(_, setting)| selected(setting)).chain(with_all).collect();
    assert_eq!(reachable.len(), cases().count(), "a case needs what excludes each other");
    let suite = suite_sources().concat();
    for limit in ["max_value_bytes", "min_ttl"] {
        assert!(suite.contains(&format!(".{limit}")), "no case goes to the limit of {limit}");
    }
}

const ALL: Capabilities = Capabilities {
    linearizable: true,
    multi_host: true,
    server_expiry: true,
    push_watch: true,
    max_value_bytes: 300_000,
    min_ttl: Duration::from_millis(100),
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The sources of the cases, all levels.
fn suite_sources() -> Vec<String> {
    let suite = root().join("src/suite");
    let mut sources = vec![read(&suite.join("certs.rs"))];
    for level in ["store", "registry", "leases"] {
        for entry in fs::read_dir(suite.join(level)).expect("a folder of cases") {
            sources.push(read(&entry.expect("a file of cases").path()));
        }
    }
    sources
}
