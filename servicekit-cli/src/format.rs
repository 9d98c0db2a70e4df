//! What the hosts of a service are printed as.

mod csv;
mod json;
mod lines;
mod prometheus;
mod table;

use servicekit::Instance;

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
    /// The document of Prometheus' http_sd
    Prometheus,
}

impl Format {
    /// Whether even no instance at all makes a document.
    pub(crate) fn is_structured(self) -> bool {
        matches!(self, Self::Json | Self::Prometheus)
    }

    /// The document for these instances, which is one line but for `Lines`.
    pub(crate) fn render(self, instances: &[Instance]) -> Result<String, Failure> {
        match self {
            Self::Csv => Ok(csv::render(instances)),
            Self::Lines => Ok(lines::render(instances)),
            Self::Json => json::render(instances),
            Self::Prometheus => prometheus::render(instances),
        }
    }
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

    pub(super) fn instances(hosts: &[(&str, Option<u16>)]) -> Vec<Instance> {
        let instances = hosts.iter().enumerate().map(|(i, (host, port))| {
            let id = format!("web-{i}").parse().unwrap();
            let since = Timestamp::from_millis(1_763_683_200_000);
            let mut instance = Instance::starting("web".parse().unwrap(), id, *host, since);
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
        let render = |format: Format| format.render(&instances).unwrap();
        assert_eq!(render(Format::Csv), "10.0.0.2:80,[::1]:80,::1\n");
        assert_eq!(render(Format::Lines), "10.0.0.2:80\n[::1]:80\n::1\n");
    }

    #[test]
    fn documents_are_valid_when_empty() {
        let render = |format: Format| format.render(&[]).unwrap();
        assert_eq!(render(Format::Csv), "");
        assert_eq!(render(Format::Lines), "");
        assert_eq!(render(Format::Json), "[]\n");
        assert_eq!(render(Format::Prometheus), "[]\n");
    }

    #[test]
    fn a_table_has_a_line_for_each() {
        let table = table(&instances(&[("10.0.0.2", Some(80))]));
        assert_eq!(
            table,
            "SERVICE ID  ADDRESS      STATE  SINCE                 REASON\n\
             web-0       10.0.0.2:80  up     2025-11-21T00:00:00Z  200 (rise 1)\n"
        );
    }
}
