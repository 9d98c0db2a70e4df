//! `host:port,host:port` on one line; nothing for none.

use servicekit::Instance;

use super::distinct;

pub(super) fn render(instances: &[Instance]) -> String {
    if instances.is_empty() { String::new() } else { join(instances) + "\n" }
}

/// The addresses without the end of the line.
pub(super) fn join(instances: &[Instance]) -> String {
    distinct(instances).map(|(_, address)| address).collect::<Vec<_>>().join(",")
}
