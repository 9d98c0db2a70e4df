//! `servicekit completions`, in the shells that they are for.

use std::{fs, process::Command};

use crate::harness::Store;

fn script(store: &Store, shell: &str, file: &str) -> String {
    let done = store.run(&format!("completions {shell}"));
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
    let path = store.path(file);
    fs::write(&path, done.stdout).unwrap();
    path.display().to_string()
}

fn says(shell: &str, args: &[&str]) -> Vec<String> {
    let output = Command::new(shell).args(args).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_and_options() {
    let store = Store::new();
    let file = script(&store, "bash", "servicekit");
    let complete = |words: &str| {
        let script = format!(
            "source {file}; COMP_WORDS=({words} ''); [ \"${{words: -1}}\" = ' ' ] || unset 'COMP_WORDS[-1]'; \
             COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _servicekit servicekit \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; echo \"${{COMPREPLY[@]}}\""
        );
        says("bash", &["--norc", "-c", &format!("words='{words}'; {script}")])
    };
    assert_eq!(complete("servicekit ho"), ["hosts"]);
    assert_eq!(complete("servicekit acq"), ["acquire-lease"]);
    assert_eq!(complete("servicekit hosts --form"), ["--format"]);
    let formats = complete("servicekit hosts --format ");
    assert!(formats.contains(&"haproxy".into()) && formats.contains(&"csv".into()), "{formats:?}");
    assert_eq!(complete("servicekit identity n"), ["new"]);
}

#[test]
fn fish_completes_commands_and_options() {
    let store = Store::new();
    let file = script(&store, "fish", "servicekit.fish");
    let complete = |words: &str| {
        // Each line is a completion, and what it is about after a tab.
        let command =
            format!("source {file}; complete --do-complete '{words}' | string split -f 1 \\t");
        says("fish", &["--no-config", "-c", &command])
    };
    assert_eq!(complete("servicekit ho"), ["hosts"]);
    assert_eq!(complete("servicekit hosts --format ha"), ["haproxy"]);
}

#[test]
fn zsh_loads_it_and_knows_every_command() {
    let store = Store::new();
    let file = script(&store, "zsh", "_servicekit");
    says("zsh", &["-f", "-n", &file]);
    let folder = store.path("");
    // What completion finds can only be seen at a terminal; that its functions load can be seen without.
    let load = format!(
        "fpath=({} $fpath); autoload -Uz compinit; compinit -u -d {}; print $_comps[servicekit]; \
         autoload +X _servicekit; print loaded",
        folder.display(),
        store.path("dump").display()
    );
    assert_eq!(says("zsh", &["-f", "-c", &load]), ["_servicekit", "loaded"]);
    let text = fs::read_to_string(file).unwrap();
    for command in ["hosts", "acquire-lease", "why"] {
        assert!(text.contains(&format!("'{command}:")), "{command}");
    }
}

#[test]
fn a_shell_that_is_not_known_is_refused() {
    let store = Store::new();
    store.run("completions powershell").is_usage_error(&["powershell", "bash", "zsh", "fish"]);
    store.run("completions").is_usage_error(&["<SHELL>"]);
}
