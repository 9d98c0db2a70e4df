//! `servicekit help`: what it shows can be pasted.

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use crate::harness::{Running, Signal, Store, eventually};

/// Every example of every help.
fn examples(store: &Store) -> Vec<String> {
    let mut examples = Vec::new();
    for command in commands(&store.run("help").stdout) {
        let help = store.run(&format!("help {command}")).stdout;
        let lines = help.lines().filter(|line| line.starts_with("  servicekit "));
        examples.extend(lines.map(|line| line.trim().to_owned()));
    }
    examples
}

fn commands(help: &str) -> Vec<String> {
    let listed = help.split("Commands:").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = listed.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let names = names.filter(|name| !name.is_empty() && *name != "help");
    names.map(str::to_owned).collect()
}

#[test]
fn every_example_runs() {
    let store = Store::new();
    let examples = examples(&store);
    assert!(examples.len() > 30, "{examples:?}");
    // Nothing of this host is there but what every host has, and paths lead into a folder of our own.
    let programs = store.path("bin");
    fs::create_dir(&programs).unwrap();
    symlink(env!("CARGO_BIN_EXE_servicekit"), programs.join("servicekit")).unwrap();
    for program in ["sh", "cat"] {
        symlink(Path::new("/bin").join(program), programs.join(program)).unwrap();
    }
    for folder in ["etc/servicekit", "var/lib/servicekit", "tmp"] {
        fs::create_dir_all(store.path(folder)).unwrap();
    }
    let config = "[[service]]\nlabel = \"web\"\nmonitor-exec = \"true\"\naddress = \"h\"\n";
    fs::write(store.path("etc/servicekit/watch.toml"), config).unwrap();

    let folder = store.path("");
    let here = |line: &str| {
        let root = folder.display();
        line.replace(" /", &format!(" {root}/")).replace("local:/", &format!("local:{root}/"))
    };
    let run = |number: usize, line: &str| {
        let mut command = std::process::Command::new("/bin/sh");
        command.args(["-c", &format!("exec {}", here(line))]).current_dir(&folder);
        command.env_clear().env("PATH", &programs).env("SERVICEKIT_BACKEND", store.url());
        // Two watchers of one service id would be in each other's way.
        command.env("SERVICEKIT_NAMESPACE", format!("example-{number}"));
        store.spawn_command(command)
    };
    let numbered = examples.iter().enumerate();
    let mut running: Vec<(Running, &String)> =
        numbered.map(|(number, line)| (run(number, line), line)).collect();
    let clock = servicekit::Env::system().clock;
    let later = clock.now() + Duration::from_secs(5);
    eventually("those that end by themselves", || {
        running.iter_mut().all(|(one, _)| !one.is_running()) || clock.now() > later
    });
    for (mut one, line) in running {
        let done = if one.is_running() {
            one.end(Signal::TERM, Duration::from_secs(10))
        } else {
            one.wait()
        };
        // None up, no such lease, no such program: all of that may be, but no wrong usage, and no panic.
        let may_be = [0, 1, 3, 4, 125, 126, 127, 128 + 15, -15];
        assert!(may_be.contains(&done.code), "{line}: {done:?}");
    }
}

#[test]
fn every_environment_variable_of_a_flag_is_shown() {
    let store = Store::new();
    let help = store.run("help hosts").stdout;
    for name in ["BACKEND", "NAMESPACE", "STORE_TIMEOUT"] {
        assert!(help.contains(&format!("[env: SERVICEKIT_{name}]")), "{help}");
    }
    let help = store.run("help").stdout;
    assert!(help.contains("SERVICEKIT_LOG"), "{help}");
}
