//! `host:port,host:port` on one line; nothing for none.

use servicekit::Instance;

pub(super) fn render(instances: &[Instance]) -> String {
    if instances.is_empty() {
        return String::new();
    }
    let addresses: Vec<_> = instances.iter().map(Instance::address).collect();
    addresses.join(",") + "\n"
}
