//! `servicekit watch`: keeps services registered, and tells whether they are well.

mod config;
mod monitored;

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use futures_util::future::{Either, select};
use servicekit::{
    agent::{Agent, Options, Outcome, Report, Service, probe::Clients},
    registry::InstanceKey,
};
use tokio::sync::oneshot;

use self::monitored::Monitored;
use crate::{
    args,
    context::{Context, Outage, unless_told},
    exit::Exit,
    report::{Failure, say},
    signals::Signals,
};

/// Probe a service, and keep it registered until told to stop
///
/// Every change of state is a line on stderr. On SIGTERM and SIGINT the instance is deregistered at once; if the store is
/// away then, that is said, and readers see the instance as lost within --detect-within. An unattended lease
/// of the same label and service id is released as soon as the service is well. Ends with 5 when another process has taken
/// the service id over.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  servicekit watch --label web --monitor-url http://127.0.0.1:8080/health
  servicekit watch --label db --monitor-tcp 10.0.0.1:5432 --service-info a=b
  servicekit watch --label mq --monitor-exec 'mq-ping -q' --address mq-1:5672
  servicekit watch --config /etc/servicekit/watch.toml

A configuration file has a [[service]] for each service; its keys are the flags above:
  detect-within = \"15s\"
  [[service]]
  label = \"web\"
  monitor-url = \"http://127.0.0.1:8080/health\"
  interval = \"2s\"
  service-info = { version = \"1.2\" }")]
pub(crate) struct Watch {
    /// Watch all services of this TOML file, in one process
    #[arg(long, value_name = "FILE", conflicts_with = "Monitored")]
    config: Option<PathBuf>,
    /// Within this long readers no longer see an instance as up after its process, its watcher or its host died
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = args::positive)]
    detect_within: Duration,
    #[command(flatten)]
    service: Monitored,
}

/// What is to be watched, and how fast.
struct Plan {
    detect_within: Duration,
    services: Vec<Service>,
}

/// A session must end so much earlier than its readers are to see it, for what lies between.
const SESSION_SHARE: f64 = 0.8;

impl Watch {
    pub(crate) async fn run(
        self,
        context: &Context,
        signals: &mut Signals,
    ) -> Result<Exit, Failure> {
        let Plan { detect_within, services } = self.plan(context)?;
        let Ok(backend) = unless_told(signals, context.connect_by(None)).await else {
            return Ok(Exit::DONE);
        };
        let backend = backend?;
        let ttl = detect_within.mul_f64(SESSION_SHARE);
        let least = backend.registry.capabilities().min_ttl;
        if ttl < least {
            let least = least.div_f64(SESSION_SHARE);
            return Err(Failure::Usage(format!(
                "--detect-within {detect_within:?} is below the {least:?} that this store can keep"
            )));
        }
        let options = Options { node: args::hostname(), ttl };
        let agent = Agent::new(backend.registry, backend.leases, context.env.clone(), options);
        let (refuse, refused) = oneshot::channel();
        let (mut outage, mut refuse) = (Outage::default(), Some(refuse));
        let mut refusal = None;
        let mut left = None;
        let stop = async {
            let told = std::pin::pin!(signals.next());
            let refused = std::pin::pin!(refused);
            if let Either::Right((Ok(error), _)) = select(told, refused).await {
                refusal = Some(error);
            }
        };
        let report = |report| match report {
            Report::StoreAway(error) if error.is_refusal() => {
                if let Some(refuse) = refuse.take() {
                    // Nobody listens any longer when it is stopping already.
                    let _ = refuse.send(error);
                }
            }
            Report::Left { instances, lost_within } => left = Some((instances, lost_within)),
            report => tell(report, &mut outage),
        };
        let outcome = agent.run(services, stop, report).await;
        if let (Some((instances, lost_within)), None) = (left, &refusal) {
            say(not_deregistered(&instances, lost_within));
        }
        match (outcome, refusal) {
            (Outcome::Stopped, Some(error)) => Err(Failure::Store(error)),
            (Outcome::Stopped, None) => Ok(Exit::DONE),
            (Outcome::Superseded, _) => Ok(Exit::SUPERSEDED),
        }
    }

    fn plan(self, context: &Context) -> Result<Plan, Failure> {
        let Self { config, detect_within, service } = self;
        let mut clients = Clients::default();
        let plan = match config {
            Some(file) => config::read(&file, detect_within, &mut clients, context)?,
            None => {
                let services = vec![service.service(detect_within, &mut clients, context)?];
                Plan { detect_within, services }
            }
        };
        let mut seen = BTreeSet::new();
        for Service { label, service_id, .. } in &plan.services {
            if !seen.insert((label, service_id)) {
                return Err(Failure::Usage(format!("{label} {service_id} is there twice")));
            }
        }
        Ok(plan)
    }
}

/// What it means for readers that the store did not take the removal.
fn not_deregistered(instances: &[InstanceKey], lost_within: Duration) -> String {
    let named = instances.iter().take(NAMED).map(|key| format!("{} {}", key.label, key.service_id));
    let mut names = named.collect::<Vec<_>>().join(", ");
    if let Some(more @ 1..) = instances.len().checked_sub(NAMED) {
        names += &format!(" and {more} more");
    }
    let when = match lost_within {
        Duration::ZERO => "now".into(),
        time => format!("within {time:?}"),
    };
    format!("could not deregister {names}: the store is away; readers take that for lost {when}")
}

/// How many instances fit on a line.
const NAMED: usize = 3;

fn tell(report: Report, outage: &mut Outage) {
    match report {
        Report::Changed { label, service_id, from, to, reason } => {
            say(format_args!("{label} {service_id}: {from} -> {to}: {reason}"));
        }
        Report::StoreAway(error) => outage.away(&error),
        Report::StoreBack => outage.back(),
        Report::SessionLost => say("the session had ended; registering again"),
        Report::Superseded { label, service_id } => {
            say(format_args!(
                "{label} {service_id}: superseded, another process has taken it over"
            ));
        }
        Report::LeaseReleased { label, service_id, token } => {
            say(format_args!(
                "{label} {service_id}: healthy, released the lease {label}, token {token}"
            ));
        }
        _ => {}
    }
}
