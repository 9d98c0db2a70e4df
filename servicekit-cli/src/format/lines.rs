//! `host:port`, one a line.

use servicekit::Instance;

pub(super) fn render(instances: &[Instance]) -> String {
    instances.iter().map(|instance| instance.address() + "\n").collect()
}
