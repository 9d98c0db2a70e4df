//! A backend section of HAProxy, named by the label. What else it needs (mode, time-outs, balance, checks) comes from the
//! `defaults` section that stands before it.

use std::{collections::HashSet, net::IpAddr};

use servicekit::{Instance, Label, State};

use super::distinct;

/// The greatest weight that HAProxy takes.
const GREATEST: u64 = 256;

pub(super) fn render(label: &Label, instances: &[Instance]) -> String {
    let greatest = instances.iter().map(|instance| u64::from(instance.weight)).max().unwrap_or(0);
    let mut names = HashSet::new();
    let server = |(instance, address): (&Instance, String)| {
        let name = unique(instance.service_id.as_str(), &mut names);
        let weight = weight(instance, greatest);
        // A name that does not resolve just now must not keep all the others from being loaded.
        let is_name = instance.host.parse::<IpAddr>().is_err();
        let resolve = if is_name { " init-addr last,libc,none" } else { "" };
        format!("    server {name} {address} check weight {weight}{resolve}\n")
    };
    // At the address of one that is draining there may be its successor already.
    let (up, others): (Vec<_>, Vec<_>) =
        instances.iter().partition(|instance| instance.state == State::Up);
    let servers = distinct(up.into_iter().chain(others)).map(server);
    format!("backend {label}\n") + &servers.collect::<String>()
}

/// A name that HAProxy takes, and that no other server has.
fn unique(id: &str, names: &mut HashSet<String>) -> String {
    let name = id.replace('@', "_");
    let numbered = (2..).map(|number| format!("{name}-{number}"));
    let mut free =
        std::iter::once(name.clone()).chain(numbered).filter(|name| !names.contains(name));
    let name = free.next().unwrap_or(name);
    names.insert(name.clone());
    name
}

/// Weights keep their proportions where the greatest is more than HAProxy takes. Zero: no new connections.
fn weight(instance: &Instance, greatest: u64) -> u64 {
    let weight = u64::from(instance.weight);
    match instance.state {
        State::Draining => 0,
        _ if weight == 0 || greatest <= GREATEST => weight,
        _ => (weight * GREATEST / greatest).max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{instances, label},
        *,
    };

    #[test]
    fn each_instance_is_a_server() {
        let mut instances =
            instances(&[("10.0.0.2", Some(80)), ("::1", Some(80)), ("db", Some(1))]);
        instances[1].state = State::Draining;
        assert_eq!(
            render(&label(), &instances),
            "backend web\n    server web-0 10.0.0.2:80 check weight 100\n    \
             server web-2 db:1 check weight 100 init-addr last,libc,none\n    \
             server web-1 [::1]:80 check weight 0\n"
        );
    }

    #[test]
    fn names_are_unique_and_made_of_what_haproxy_takes() {
        let mut names = HashSet::new();
        let made = ["a@b", "a_b", "a_b-2", "a@b"].map(|id| unique(id, &mut names));
        assert_eq!(made, ["a_b", "a_b-2", "a_b-2-2", "a_b-3"]);
    }

    #[test]
    fn weights_keep_their_proportions() {
        let mut instances =
            instances(&[("a", Some(1)), ("b", Some(1)), ("c", Some(1)), ("d", Some(1))]);
        for (instance, weight) in instances.iter_mut().zip([1_000_000, 500_000, 1, 0]) {
            instance.weight = weight;
        }
        let weights: Vec<_> = instances.iter().map(|one| weight(one, 1_000_000)).collect();
        assert_eq!(weights, [256, 128, 1, 0]);
    }
}
