//! Variables that a shell evaluates, or that systemd reads as an `EnvironmentFile`.
//!
//! The names are always the same ones, so that evaluating a later list leaves nothing of an earlier one behind.

use servicekit::{Instance, Label};

use super::{csv, distinct};

pub(super) fn render(label: &Label, instances: &[Instance]) -> String {
    let first = instances.first();
    let host = first.map(|first| first.host.clone()).unwrap_or_default();
    let port = first.and_then(|first| first.port).map(|port| port.to_string()).unwrap_or_default();
    let prefix = prefix(label);
    [
        ("HOSTS", csv::join(instances)),
        ("COUNT", distinct(instances).count().to_string()),
        ("HOST", host),
        ("PORT", port),
    ]
    .map(|(name, value)| format!("{prefix}_{name}={}\n", quoted(&value)))
    .concat()
}

/// With a name of our own in front, no label can overwrite a variable that a shell lives by, such as `PATH`.
fn prefix(label: &Label) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("SERVICEKIT_{}", label.as_str().chars().map(allowed).collect::<String>())
}

/// As one word of a shell, whatever is in it.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{instances, label};

    #[test]
    fn the_names_are_the_same_for_some_and_for_none() {
        let some = instances(&[("10.0.0.2", Some(80)), ("::1", None)]);
        assert_eq!(
            super::render(&label(), &some),
            "SERVICEKIT_WEB_HOSTS='10.0.0.2:80,::1'\nSERVICEKIT_WEB_COUNT='2'\n\
             SERVICEKIT_WEB_HOST='10.0.0.2'\nSERVICEKIT_WEB_PORT='80'\n"
        );
        assert_eq!(
            super::render(&"my-db.1".parse().unwrap(), &[]),
            "SERVICEKIT_MY_DB_1_HOSTS=''\nSERVICEKIT_MY_DB_1_COUNT='0'\n\
             SERVICEKIT_MY_DB_1_HOST=''\nSERVICEKIT_MY_DB_1_PORT=''\n"
        );
    }

    #[test]
    fn a_value_is_one_word_whatever_is_in_it() {
        assert_eq!(super::quoted("a'; rm -rf $HOME `x`"), r"'a'\''; rm -rf $HOME `x`'");
    }
}
