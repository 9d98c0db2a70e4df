//! One service to watch: from flags, or from the keys of the same names in a file.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use servicekit::{
    Label, ServiceId,
    agent::{
        Service,
        probe::{Clients, Exec, Http, HttpOptions, Statuses, Tcp},
    },
    health::{Probe, Thresholds},
};
use url::{Host, Url};

use crate::{
    args::{self, HostPort},
    context::Context,
    report::{Failure, chain},
};

/// A service to watch.
#[derive(Debug, clap::Args)]
pub(super) struct Monitored {
    /// The service
    #[arg(long)]
    label: Option<Label>,
    /// Which of its instances [default: <label>-<hostname>]
    #[arg(long, value_name = "ID")]
    service_id: Option<ServiceId>,
    /// Where it is found [default: what is probed, with this host's name in place of a loopback]
    #[arg(long, value_name = "HOST[:PORT]", value_parser = args::host_port)]
    address: Option<HostPort>,
    /// What readers should know; may be repeated
    #[arg(long, value_name = "K=V", num_args = 1.., value_parser = args::key_value)]
    service_info: Vec<(String, String)>,
    /// Its share of the load, relative to the others
    #[arg(long, value_name = "N", default_value = "100", value_parser = args::number(0..=1_000_000))]
    weight: u32,
    /// Where it runs, for readers who prefer what is near
    #[arg(long, value_name = "NAME")]
    zone: Option<String>,

    /// It is well when a GET is answered with 2xx; several probes may be given, and all must pass
    #[arg(long, value_name = "URL", help_heading = "Probes")]
    monitor_url: Vec<String>,
    /// It is well when it accepts a connection
    #[arg(long, value_name = "HOST:PORT", value_parser = args::host_and_port, help_heading = "Probes")]
    monitor_tcp: Vec<HostPort>,
    /// It is well when this ends with 0, run by sh; it does not see a password of the store
    #[arg(long, value_name = "CMD", help_heading = "Probes")]
    monitor_exec: Vec<String>,
    /// How often it is probed, give or take a tenth
    #[arg(
        long, value_name = "DURATION", default_value = "5s", value_parser = args::positive,
        help_heading = "Probes"
    )]
    interval: Duration,
    /// How long one probe may take
    #[arg(
        long, value_name = "DURATION", default_value = "2s", value_parser = args::positive,
        help_heading = "Probes"
    )]
    timeout: Duration,
    /// So many successes in a row: up
    #[arg(
        long, value_name = "N", default_value = "1", value_parser = args::number(1..=u32::MAX),
        help_heading = "Probes"
    )]
    rise: u32,
    /// So many failures in a row: down
    #[arg(
        long, value_name = "N", default_value = "2", value_parser = args::number(1..=u32::MAX),
        help_heading = "Probes"
    )]
    fall: u32,
    /// Which statuses are well, such as 200-399
    #[arg(
        long,
        value_name = "STATUSES",
        default_value_t,
        requires = "monitor_url",
        help_heading = "Probes"
    )]
    expect_status: Statuses,
    /// Send this header; may be repeated
    #[arg(
        long, value_name = "NAME: VALUE", value_parser = args::header, requires = "monitor_url",
        help_heading = "Probes"
    )]
    header: Vec<(String, String)>,
    /// Trust only the authorities of this PEM file
    #[arg(long, value_name = "FILE", requires = "monitor_url", help_heading = "Probes")]
    ca: Option<PathBuf>,
    /// Accept any certificate
    #[arg(long, requires = "monitor_url", conflicts_with = "ca", help_heading = "Probes")]
    insecure: bool,
}

impl Monitored {
    pub(super) fn service(
        self,
        detect_within: Duration,
        clients: &mut Clients,
        context: &Context,
    ) -> Result<Service, Failure> {
        let probes = self.probes(clients, context)?;
        self.check_budget(detect_within)?;
        let HostPort { host, port } = self.address()?;
        let label = self.label.ok_or_else(|| usage("--label LABEL is missing"))?;
        let service_id = match self.service_id {
            Some(id) => id,
            None => args::default_service_id(&label).map_err(Failure::Usage)?,
        };
        Ok(Service {
            port,
            weight: self.weight,
            zone: self.zone,
            info: self.service_info.into_iter().collect(),
            probes,
            interval: self.interval,
            thresholds: Thresholds { rise: self.rise, fall: self.fall },
            ..Service::new(label, service_id, host)
        })
    }

    fn probes(
        &self,
        clients: &mut Clients,
        context: &Context,
    ) -> Result<Vec<Arc<dyn Probe>>, Failure> {
        let clock = || context.env.clock.clone();
        let mut probes: Vec<Arc<dyn Probe>> = Vec::new();
        for url in &self.monitor_url {
            let options = HttpOptions {
                timeout: self.timeout,
                expect: self.expect_status.clone(),
                headers: self.header.clone(),
                ca: self.ca.clone(),
                insecure: self.insecure,
                ..HttpOptions::new(url)
            };
            let probe = Http::new(options, clients, clock());
            probes.push(Arc::new(
                probe.map_err(|error| usage(format!("--monitor-url: {}", chain(&error))))?,
            ));
        }
        for target in &self.monitor_tcp {
            let probe = Tcp::new(&target.to_string(), self.timeout, clock());
            probes.push(Arc::new(probe.map_err(|error| usage(format!("--monitor-tcp: {error}")))?));
        }
        for command in &self.monitor_exec {
            if command.trim().is_empty() {
                return Err(usage(
                    "--monitor-exec: there is no command, and nothing is always well",
                ));
            }
            let exec = Exec::new(command, self.timeout, clock());
            probes.push(Arc::new(exec.without_variables(context.secret_variables())));
        }
        if probes.is_empty() {
            return Err(usage("give --monitor-url, --monitor-tcp or --monitor-exec"));
        }
        Ok(probes)
    }

    /// A failing probe has to show within the budget, too.
    fn check_budget(&self, detect_within: Duration) -> Result<(), Failure> {
        let Self { fall, interval, timeout, .. } = *self;
        let shows_within = interval.saturating_add(timeout).saturating_mul(fall);
        if shows_within <= detect_within {
            return Ok(());
        }
        Err(usage(format!(
            "a failing probe shows within --fall {fall} x (--interval {interval:?} + --timeout {timeout:?}) = \
             {shows_within:?}, which is more than --detect-within {detect_within:?}"
        )))
    }

    /// Where others find it.
    fn address(&self) -> Result<HostPort, Failure> {
        if let Some(address) = &self.address {
            return Ok(address.clone());
        }
        let url = self.monitor_url.first().and_then(|url| Url::parse(url).ok());
        let probed = url.and_then(|url| of_url(&url)).or_else(|| self.monitor_tcp.first().cloned());
        let own = |port| HostPort { host: args::hostname(), port };
        let address = match probed {
            Some(HostPort { host, port }) if is_this_host(&host) => own(port),
            Some(address) => address,
            None => own(None),
        };
        match args::host_problem(&address.host) {
            Some(problem) => Err(usage(format!("give --address: {:?}: {problem}", address.host))),
            None => Ok(address),
        }
    }
}

fn of_url(url: &Url) -> Option<HostPort> {
    let host = match url.host()? {
        Host::Domain(name) => name.to_owned(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    };
    Some(HostPort { host, port: url.port_or_known_default() })
}

/// Whether `host` means nothing, or something else, on another host.
fn is_this_host(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(address) => {
            let address = address.to_canonical();
            address.is_loopback() || address.is_unspecified()
        }
        Err(_) => {
            let name = host.trim_end_matches('.').to_ascii_lowercase();
            name == "localhost" || name.ends_with(".localhost")
        }
    }
}

fn usage(message: impl Into<String>) -> Failure {
    Failure::Usage(message.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopbacks_are_known() {
        for host in [
            "localhost",
            "LOCALHOST.",
            "a.localhost",
            "127.1.2.3",
            "::1",
            "0.0.0.0",
            "::ffff:127.0.0.1",
        ] {
            assert!(is_this_host(host), "{host}");
        }
        for host in ["10.0.0.1", "example.org", "localhost.example.org", "fe80::1"] {
            assert!(!is_this_host(host), "{host}");
        }
    }

    #[test]
    fn the_address_is_that_of_the_url() {
        let of = |url: &str| of_url(&Url::parse(url).unwrap()).unwrap().to_string();
        assert_eq!(of("http://web-1/health"), "web-1:80");
        assert_eq!(of("https://u:p@[fe80::1]:8443/"), "[fe80::1]:8443");
    }
}
