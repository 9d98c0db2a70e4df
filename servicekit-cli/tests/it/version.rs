//! `servicekit version`, and what holds for every command.

use crate::harness::Store;

#[test]
fn it_is_told_as_text_and_as_json() {
    let store = Store::new();
    let done = store.run("version");
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
    assert!(done.stdout.starts_with(&format!("servicekit {} (", env!("CARGO_PKG_VERSION"))));
    let json = store.json("version -o json");
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        json["backends"],
        serde_json::json!(["couchdb", "couchdbs", "dynamodb", "etcd", "etcds", "local", "memory"])
    );
    assert!(!store.path("store.db").exists(), "no store is needed to tell the version");
}

#[test]
fn a_wrong_command_line_ends_with_2_and_one_line() {
    let store = Store::new();
    for (line, parts) in [
        ("", &["requires a subcommand", "hosts"][..]),
        ("hots", &["hots", "hosts"]),
        ("hosts", &["--label"]),
        ("hosts --label we!b", &["--label", "'!' at character 3"]),
        ("hosts --label -web", &["-w"]),
        ("services --namespace a/b", &["--namespace", "'/' at character 2"]),
        ("services --store-timeout 0", &["--store-timeout", "more than zero"]),
        ("services -o xml", &["--output", "xml", "text", "json"]),
        ("version extra", &["extra"]),
    ] {
        store.run(line).is_usage_error(parts);
    }
}

#[test]
fn a_store_that_is_not_known_names_the_feature_and_shows_no_password() {
    let store = Store::new();
    for (url, part) in [
        ("dynamodb://a:secret@region/table", "no user or key belongs"),
        ("couchdb://a:secret@h", "names no database"),
        ("zookeeper://a:secret@h", "no backend is called \"zookeeper\""),
        ("Not A Url:secret@h", "not the URL"),
        ("local:relative.db", "absolute path"),
        ("memory:x", "nothing may follow"),
    ] {
        let mut command = store.command(["services"]);
        command.env("SERVICEKIT_BACKEND", url);
        let done = store.spawn_command(command).wait();
        done.is_usage_error(&[part]);
        assert!(!done.stderr.contains("secret"), "{}", done.stderr);

        let done = store.run_args(["services", "--backend", url]);
        assert_eq!(done.code, 2);
        assert!(!done.stderr.contains("secret"), "{}", done.stderr);
        let warned = done.stderr.contains("warning: every user of this host can read a password");
        assert_eq!(warned, url.contains("secret") && !url.contains(' '), "{}", done.stderr);
    }
}

#[test]
fn a_variable_that_is_wrong_is_named_and_an_empty_one_is_not_set() {
    let store = Store::new();
    let with = |name: &str, value: &str, args: &[&str]| {
        let mut command = store.command(args);
        command.env(name, value);
        store.spawn_command(command).wait()
    };
    for name in ["SERVICEKIT_BACKEND", "SERVICEKIT_NAMESPACE", "SERVICEKIT_STORE_TIMEOUT"] {
        let done = with(name, "", &["version"]);
        assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{name}");
        let done = with(name, "a/b", &["version"]);
        done.is_usage_error(&[name]);
    }
    let done = with("SERVICEKIT_STORE_TIMEOUT", "soon", &["version"]);
    assert!(!done.stderr.contains("--store-timeout"), "{}", done.stderr);
    let done = with("SERVICEKIT_STORE_TIMEOUT", "5s", &["version", "--store-timeout=soon"]);
    done.is_usage_error(&["--store-timeout", "soon"]);
    store.run_args(["services", "--backend", ""]).is_usage_error(&["not the URL"]);
}

#[test]
fn logs_are_asked_for_and_go_to_stderr() {
    let store = Store::new();
    let mut command = store.command(["services"]);
    command.env("SERVICEKIT_LOG", "a=b=c");
    store.spawn_command(command).wait().is_usage_error(&["SERVICEKIT_LOG"]);
    let mut command = store.command(["services", "-o", "json"]);
    command.env("SERVICEKIT_LOG", "trace");
    let done = store.spawn_command(command).wait();
    assert_eq!((done.code, done.stdout.as_str()), (0, "[]\n"));
}
