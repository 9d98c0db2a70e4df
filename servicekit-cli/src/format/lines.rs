//! `host:port`, one a line.

use servicekit::Instance;

use super::distinct;

pub(super) fn render(instances: &[Instance]) -> String {
    distinct(instances).map(|(_, address)| address + "\n").collect()
}
