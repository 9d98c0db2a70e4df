//! What the hosts of a service are printed as.

mod csv;
mod env;
mod haproxy;
mod hosts;
mod json;
mod lines;
mod nginx;
mod prometheus;
mod table;

use std::{collections::HashSet, net::IpAddr};

use servicekit::{Instance, Label, State};

pub(crate) use json::Summary;
pub(crate) use table::Table;

use crate::report::Failure;

/// A format for a list of instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// host:port, comma-separated on one line
    Csv,
    /// host:port, one a line
    Lines,
    /// An array of objects
    Json,
    /// Variables for a shell
    Env,
    /// Lines of /etc/hosts
    Hosts,
    /// A backend section
    Haproxy,
    /// An upstream block
    Nginx,
    /// The document of Prometheus' http_sd
    Prometheus,
}

impl Format {
    /// Whether even no instance at all makes a document.
    pub(crate) fn is_structured(self) -> bool {
        !matches!(self, Self::Csv | Self::Lines)
    }

    /// Whether a document is one line, always.
    pub(crate) fn is_one_line(self) -> bool {
        matches!(self, Self::Csv | Self::Json | Self::Prometheus)
    }

    /// Whether an instance in this state has a place in the document.
    pub(crate) fn takes(self, state: State) -> bool {
        state == State::Up || (self == Self::Haproxy && state == State::Draining)
    }

    /// Why the document cannot hold this instance.
    pub(crate) fn problem(self, instance: &Instance) -> Option<&'static str> {
        match self {
            Self::Haproxy | Self::Nginx if instance.port.is_none() => {
                Some("no port is registered, --port N gives one")
            }
            Self::Nginx if instance.host.eq_ignore_ascii_case("unix") => {
                Some("nginx would take the host for a socket")
            }
            Self::Hosts if instance.host.parse::<IpAddr>().is_err() => {
                Some("the host is a name, and a hosts file takes only addresses")
            }
            _ => None,
        }
    }

    /// The document for these instances of `label`, none of which is a problem.
    pub(crate) fn render(self, label: &Label, instances: &[Instance]) -> Result<String, Failure> {
        match self {
            Self::Csv => Ok(csv::render(instances)),
            Self::Lines => Ok(lines::render(instances)),
            Self::Json => json::render(instances),
            Self::Env => Ok(env::render(label, instances)),
            Self::Hosts => Ok(hosts::render(label, instances)),
            Self::Haproxy => Ok(haproxy::render(label, instances)),
            Self::Nginx => Ok(nginx::render(label, instances)),
            Self::Prometheus => prometheus::render(instances),
        }
    }
}

/// The first instance at each address, since several may share one once their ports are dropped or replaced.
fn distinct<'a>(
    instances: impl IntoIterator<Item = &'a Instance>,
) -> impl Iterator<Item = (&'a Instance, String)> {
    let mut seen = HashSet::new();
    let addressed = instances.into_iter().map(|instance| (instance, instance.address()));
    addressed.filter(move |(_, address)| seen.insert(address.clone()))
}

/// All about these instances, for people.
pub(crate) fn table(instances: &[Instance]) -> String {
    let mut table = Table::new(["SERVICE ID", "ADDRESS", "STATE", "SINCE", "REASON"]);
    for instance in instances {
        let Instance { service_id, state, since, reason, .. } = instance;
        table.row([
            service_id.to_string(),
            instance.address(),
            state.to_string(),
            since.to_string(),
            reason.clone(),
        ]);
    }
    table.render()
}

/// Sorts by address as people do: 10.0.0.2 before 10.0.0.10.
pub(crate) fn sort_naturally(instances: &mut [Instance]) {
    instances.sort_by_cached_key(|instance| {
        (natural(&instance.host), instance.port, natural(instance.service_id.as_str()))
    });
}

/// Text and numbers in turn. A number is its length without leading zeros, then its digits, so that none is too large.
fn natural(text: &str) -> Vec<(String, usize, String)> {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (words, after) = rest.split_at(digits);
        let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        let (number, after) = after.split_at(end);
        let number = number.trim_start_matches('0');
        parts.push((words.to_owned(), number.len(), number.to_owned()));
        rest = after;
    }
    parts
}

#[cfg(test)]
mod tests {
    use servicekit::{State, Timestamp};

    use super::*;

    pub(super) fn label() -> Label {
        "web".parse().unwrap()
    }

    pub(super) fn instances(hosts: &[(&str, Option<u16>)]) -> Vec<Instance> {
        let instances = hosts.iter().enumerate().map(|(i, (host, port))| {
            let id = format!("web-{i}").parse().unwrap();
            let since = Timestamp::from_millis(1_763_683_200_000);
            let mut instance = Instance::starting(label(), id, *host, since);
            instance.port = *port;
            instance.change(State::Up, "rise 1", "200", since);
            instance
        });
        instances.collect()
    }

    #[test]
    fn numbers_in_hosts_are_compared_as_numbers() {
        let mut instances = instances(&[
            ("10.0.0.10", None),
            ("web10", None),
            ("10.0.0.2", Some(90)),
            ("web9", None),
            ("10.0.0.2", Some(80)),
            ("web", None),
        ]);
        sort_naturally(&mut instances);
        let sorted: Vec<_> = instances.iter().map(Instance::address).collect();
        assert_eq!(sorted, ["10.0.0.2:80", "10.0.0.2:90", "10.0.0.10", "web", "web9", "web10"]);
    }

    #[test]
    fn lists_can_be_pasted() {
        let instances = instances(&[("10.0.0.2", Some(80)), ("::1", Some(80)), ("::1", None)]);
        let render = |format: Format| format.render(&label(), &instances).unwrap();
        assert_eq!(render(Format::Csv), "10.0.0.2:80,[::1]:80,::1\n");
        assert_eq!(render(Format::Lines), "10.0.0.2:80\n[::1]:80\n::1\n");
    }

    #[test]
    fn an_address_that_is_shared_is_printed_once() {
        let instances = instances(&[("a01", None), ("a1", None), ("a01", None), ("b", None)]);
        let render = |format: Format| format.render(&label(), &instances).unwrap();
        assert_eq!(render(Format::Csv), "a01,a1,b\n");
        assert_eq!(render(Format::Lines), "a01\na1\nb\n");
        assert_eq!(render(Format::Json).matches("a01").count(), 2);
    }

    #[test]
    fn documents_are_valid_when_empty() {
        let render = |format: Format| format.render(&label(), &[]).unwrap();
        assert_eq!(render(Format::Csv), "");
        assert_eq!(render(Format::Lines), "");
        assert_eq!(render(Format::Json), "[]\n");
        assert_eq!(render(Format::Prometheus), "[]\n");
        assert_eq!(render(Format::Hosts), "");
        assert_eq!(render(Format::Haproxy), "backend web\n");
    }

    #[test]
    fn a_table_has_a_line_for_each() {
        let table = table(&instances(&[("10.0.0.2", Some(80))]));
        assert_eq!(
            table,
            "SERVICE ID  ADDRESS      STATE  SINCE                     REASON\n\
             web-0       10.0.0.2:80  up     2025-11-21T00:00:00.000Z  200 (rise 1)\n"
        );
    }
}
