//! `servicekit acquire-lease`: one at a time, in order.

mod attended;
mod healthy;
mod obtain;

use std::{ffi::OsString, time::Duration};

use serde::Serialize;
use servicekit::{
    Backend, Label, ServiceId, Timestamp,
    lease::{Granted, Obtained, Request, Term, Ticket, Token},
};

use self::{healthy::Healthy, obtain::obtain};
use super::slots;
use crate::{
    args::{self, Patience},
    child::Standby,
    context::{Context, unless_told},
    exit::Exit,
    output::{self, Output},
    report::{Failure, chain},
    signals::Signals,
};

/// Wait for a lease, and take it
///
/// Without a command the lease is unattended: it stands for --lease-timeout, or until `release-lease` or `watch` frees it.
/// With a command it is kept while the command runs. The command finds SERVICEKIT_LEASE_TOKEN, SERVICEKIT_LEASE_LABEL and
/// SERVICEKIT_LEASE_FILE in its environment, and it is stopped when the lease cannot be kept. It cannot read from a terminal
/// (the terminal would stop it): give it a pipe, a file or </dev/null.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  servicekit acquire-lease --label web --service-id web-1 -o json
  servicekit acquire-lease --label backup --acquire-timeout 0 -- backup --full
  servicekit acquire-lease --label web --until-healthy http://10.0.0.1/ -- web
  servicekit acquire-lease --label build --slots 4 -- make

Exit status with a command:
  its own, 128 + N when signal N ended it
  123  the lease was lost and the command stopped
  124  timed out waiting for the lease
  125  servicekit failed, or the store is away
  126  the command cannot be executed
  127  the command was not found")]
pub(crate) struct AcquireLease {
    /// The lease
    #[arg(long)]
    label: Label,
    /// Who takes it; without a command, one's own lease is taken again under an id given here [default: <label>-<hostname>]
    #[arg(long, value_name = "ID")]
    service_id: Option<ServiceId>,
    /// How long an unattended lease stands, or how long --until-healthy may take
    #[arg(long, value_name = "DURATION", default_value = "240s", value_parser = args::positive)]
    lease_timeout: Duration,
    /// How long to wait for the lease; 0 tries once, `forever` never gives up
    #[arg(long, value_name = "DURATION", default_value = "360s", value_parser = args::patience)]
    acquire_timeout: Patience,
    /// How many may hold the lease at a time; the same for all who ask for it
    #[arg(long, value_name = "N", default_value = "1", value_parser = slots())]
    slots: u32,
    /// Give the lease back as soon as a GET of this URL is answered with 2xx
    #[arg(long, value_name = "URL")]
    until_healthy: Option<String>,
    /// With a command: how long the lease stands without renewal [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = args::positive)]
    ttl: Option<Duration>,
    /// With a command: the time between SIGTERM and SIGKILL when it has to stop [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = args::positive)]
    kill_after: Option<Duration>,
    /// How to print the grant; text prints nothing
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// What to run while the lease is held
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// What `-o json` prints.
#[derive(Serialize)]
struct Taken<'a> {
    label: &'a Label,
    service_id: &'a ServiceId,
    token: Token,
    slot: u32,
    expires_at: Option<Timestamp>,
}

/// The defaults; not clap's, for they are wrong usage without a command.
const TTL: Duration = Duration::from_secs(30);
const KILL_AFTER: Duration = Duration::from_secs(5);

impl AcquireLease {
    pub(crate) fn has_child(&self) -> bool {
        !self.command.is_empty()
    }

    fn ttl(&self) -> Duration {
        self.ttl.unwrap_or(TTL)
    }

    fn kill_after(&self) -> Duration {
        self.kill_after.unwrap_or(KILL_AFTER)
    }

    pub(crate) async fn run(
        self,
        context: &Context,
        signals: &mut Signals,
    ) -> Result<Exit, Failure> {
        let (ttl, kill_after) = (self.ttl(), self.kill_after());
        // As from `-- $CMD` with nothing in it: a lease for nobody's work would keep all others out.
        if !self.has_child() && std::env::args_os().next_back().is_some_and(|last| last == "--") {
            return Err(Failure::Usage("there is no command after --".into()));
        }
        if !self.has_child() && (self.ttl.is_some() || self.kill_after.is_some()) {
            return Err(Failure::Usage(
                "--ttl and --kill-after are for a lease that is kept while a command runs: put the command after --; \
                 a lease without one stands for --lease-timeout"
                    .into(),
            ));
        }
        if self.has_child() && ttl < kill_after * 3 {
            return Err(Failure::Usage(format!(
                "--ttl {ttl:?} is less than three times --kill-after {kill_after:?}: there would be no time to stop the command"
            )));
        }
        let healthy = self.until_healthy.as_deref().map(|url| Healthy::new(url, context));
        let healthy = healthy.transpose()?;
        let holder = match &self.service_id {
            Some(id) => id.clone(),
            None => args::default_service_id(&self.label).map_err(Failure::Usage)?,
        };
        let term = if self.has_child() {
            Term::Attended { ttl }
        } else {
            Term::Unattended { time: self.lease_timeout, reuse: self.service_id.is_some() }
        };
        let request = Request {
            holder,
            term,
            slots: self.slots,
            wait: self.acquire_timeout.limit(),
            note: obtain::note(context),
        };

        // It starts while the lease is asked for, and stands by while it is waited for.
        let standby = self.has_child().then(|| Standby::new(true)).transpose();
        let standby = standby.map_err(|error| Failure::Host(chain(&error)))?;
        let (backend, obtained) = obtain(&self.label, &request, context, signals).await?;
        let (ticket, granted) = match obtained {
            Obtained::Granted(ticket, granted) => (ticket, granted),
            Obtained::NotGranted { holders } => {
                let held = obtain::describe(&holders);
                let label = &self.label;
                return Err(Failure::No(match self.acquire_timeout {
                    Patience::For(time) => {
                        format!("{label} was not granted within {time:?}: {held}")
                    }
                    _ => format!("{label} is not free: {held}"),
                }));
            }
        };
        if self.output == Output::Json {
            let end = self.end(&granted, context);
            let taken = self.taken(&request.holder, &granted, end)?;
            let printed = unless_told(signals, output::print(taken)).await;
            if let Err(failure) = printed.unwrap_or_else(|signal| Err(Failure::Interrupted(signal)))
            {
                // Nobody knows of it.
                obtain::within_reason(context, backend.leases.leave(&ticket)).await;
                return Err(match failure {
                    Failure::Stdout(error) => Failure::Host(format!(
                        "{} was given back: cannot write to stdout: {error}",
                        self.label
                    )),
                    failure => failure,
                });
            }
        }
        if let Some(standby) = standby {
            let lease = (backend, ticket, granted);
            return attended::run(self, standby, lease, healthy, context, signals).await;
        }
        match healthy {
            Some(healthy) => {
                self.hold(&backend, &ticket, &granted, healthy, context, signals).await
            }
            None => Ok(Exit::DONE),
        }
    }

    /// Keeps an unattended lease until the service is well.
    async fn hold(
        &self,
        backend: &Backend,
        ticket: &Ticket,
        granted: &Granted,
        healthy: Healthy,
        context: &Context,
        signals: &mut Signals,
    ) -> Result<Exit, Failure> {
        let clock = &context.env.clock;
        // A grant that was used again has an end of its own, whatever is asked for now.
        let end = granted.expires_at.map(|end| clock.now() + end.since(clock.wall()));
        let deadline = end.unwrap_or(granted.counted_from + self.lease_timeout);
        let waited = unless_told(signals, context.until(deadline, healthy.wait())).await;
        let leaving = backend.leases.leave(ticket);
        match waited {
            Ok(Some(())) => {
                leaving.await?;
                Ok(Exit::DONE)
            }
            Ok(None) => Err(Failure::No(format!(
                "not healthy before the lease ended (--lease-timeout); {} is free again: {}",
                self.label,
                healthy.last()
            ))),
            Err(signal) => {
                obtain::within_reason(context, leaving).await;
                Err(Failure::Interrupted(signal))
            }
        }
    }

    /// When the grant is over, for people.
    fn end(&self, granted: &Granted, context: &Context) -> Option<Timestamp> {
        let clock = &context.env.clock;
        let attended = || clock.wall() + (granted.counted_from + self.ttl()).since(clock.now());
        granted.expires_at.or_else(|| self.has_child().then(attended))
    }

    fn taken(
        &self,
        service_id: &ServiceId,
        granted: &Granted,
        expires_at: Option<Timestamp>,
    ) -> Result<String, Failure> {
        let Granted { token, slot, .. } = *granted;
        output::json(&Taken { label: &self.label, service_id, token, slot, expires_at })
    }
}
