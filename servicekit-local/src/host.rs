//! Which machine this is, and which run of it.

use std::{fs, path::Path};

use servicekit_core::{Error, Kind, Result};

/// What ties a file to this machine, and an ephemeral record to this run of it.
///
/// Tests make their own, to play a reboot or another machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "made by tests of other crates")]
pub struct Host {
    /// The machine; `None` where nothing tells, as in many containers.
    pub machine: Option<String>,
    /// Drawn by the kernel at every boot.
    pub boot: String,
}

/// Where a machine says which one it is, the best first. The last is readable for root only.
const MACHINE: [&str; 3] =
    ["/etc/machine-id", "/var/lib/dbus/machine-id", "/sys/class/dmi/id/product_uuid"];

impl Host {
    /// The machine that this process runs on.
    ///
    /// # Errors
    ///
    /// `Unsupported` without `/proc`, and in a time namespace whose boot clock is not the host's.
    pub fn this() -> Result<Self> {
        let Some(boot) = word("/proc/sys/kernel/random/boot_id") else {
            let message = "/proc/sys/kernel/random/boot_id cannot be read, so that a reboot could not be told; mount /proc";
            return Err(Error::new(Kind::Unsupported, message).on("local"));
        };
        let offsets = fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
        if has_own_boot_clock(&offsets) {
            let message = "this process is in a time namespace with a boot clock of its own, so that deadlines of other \
                           processes mean nothing to it; run it without one";
            return Err(Error::new(Kind::Unsupported, message).on("local"));
        }
        Ok(Self { machine: MACHINE.into_iter().find_map(word), boot })
    }
}

/// The one word in a file; a file without one, or with the mark of a machine that is not set up, tells nothing.
fn word(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let word = text.trim();
    (!word.is_empty() && word != "uninitialized").then(|| word.to_ascii_lowercase())
}

fn has_own_boot_clock(offsets: &str) -> bool {
    offsets
        .lines()
        .filter_map(|line| line.trim().strip_prefix("boottime"))
        .any(|offset| offset.split_whitespace().any(|number| number != "0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_a_boot_id_that_stays() {
        let host = Host::this().unwrap();
        assert_eq!(host.boot.len(), 36);
        assert_eq!(host, Host::this().unwrap());
    }

    #[test]
    fn a_file_without_a_word_tells_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, expected) in
            [("", None), ("\n", None), ("uninitialized\n", None), ("AB12\n", Some("ab12"))]
        {
            fs::write(file.path(), text).unwrap();
            assert_eq!(word(file.path()).as_deref(), expected, "{text:?}");
        }
        assert_eq!(word("/nowhere/at/all"), None);
    }

    #[test]
    fn a_shifted_boot_clock_is_seen() {
        assert!(!has_own_boot_clock(""));
        assert!(!has_own_boot_clock(
            "monotonic           0         0\nboottime            0         0\n"
        ));
        assert!(!has_own_boot_clock(
            "monotonic          10         0\nboottime            0         0\n"
        ));
        assert!(has_own_boot_clock(
            "monotonic           0         0\nboottime        86400         0\n"
        ));
        assert!(has_own_boot_clock(
            "monotonic           0         0\nboottime            0       500\n"
        ));
    }
}
