//! A command that runs for as long as its lease can be kept.

use std::{ffi::OsString, io, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::FusedFuture as _};
use servicekit::{
    Backend, Error, Instant,
    lease::{Granted, Guard, Held, Loss, Ticket},
};
use tokio::sync::watch::Receiver;

use super::{AcquireLease, Healthy, obtain::within_reason};

use crate::{
    child::{self, Ending, LeaseFile, Standby, StartError, Supervisor},
    context::Context,
    exit::Exit,
    report::{Failure, chain, say},
    signals::Signals,
};

/// Runs the command, and gives the lease back when it has ended.
pub(super) async fn run(
    args: AcquireLease,
    standby: Standby,
    (backend, ticket, granted): (Backend, Ticket, Granted),
    healthy: Option<Healthy>,
    context: &Context,
    signals: &mut Signals,
) -> Result<Exit, Failure> {
    let lease_ends = granted.counted_from + args.lease_timeout;
    let guard = Guard::keep(backend.leases, ticket, granted, args.ttl(), context.env.clone());
    let started = start(&args, standby, &guard, context).await;
    let (supervisor, file) = match started {
        Ok(started) => started,
        Err(why) => {
            within_reason(context, guard.release()).await;
            return Ok(why.exit());
        }
    };
    let label = args.label.to_string();
    let kill_after = args.kill_after();
    let mut work =
        Work { label, supervisor, lease: Some((guard, file)), kill_after, is_away: false, context };
    let ending = work.run(health(healthy, lease_ends, context), signals).await;
    work.give_back().await;
    Ok(match ending {
        Ending::Exited(status) => Exit::child(status),
        Ending::Stopped => Exit::LEASE_LOST,
        Ending::GuardDied => {
            say("the process that guards the command was killed, so the command was stopped");
            Exit::FAILED
        }
    })
}

/// Why the command does not run.
#[derive(Debug)]
enum NotStarted {
    File(io::Error),
    Lost,
    Command(StartError),
}

async fn start(
    args: &AcquireLease,
    standby: Standby,
    guard: &Guard,
    context: &Context,
) -> Result<(Supervisor, LeaseFile), NotStarted> {
    let env = &context.env;
    let deadline = guard.deadline().ok_or(NotStarted::Lost)?;
    let file = LeaseFile::create(env, &args.label, guard.token(), deadline);
    let file = file.map_err(NotStarted::File)?;
    let variables: [(&str, OsString); 3] = [
        ("SERVICEKIT_LEASE_TOKEN", guard.token().to_string().into()),
        ("SERVICEKIT_LEASE_LABEL", args.label.as_str().into()),
        ("SERVICEKIT_LEASE_FILE", file.path().into()),
    ];
    let options = child::Options {
        command: args.command.clone(),
        env: variables.map(|(name, value)| (name.into(), value)).into(),
        deadline,
        kill_after: args.kill_after(),
    };
    let supervisor = standby.start(env.clock.clone(), options).await;
    Ok((supervisor.map_err(NotStarted::Command)?, file))
}

impl NotStarted {
    /// Says why, and returns the status for it.
    fn exit(self) -> Exit {
        match self {
            Self::File(error) => {
                say(format_args!("cannot write the lease file: {error}"));
                Exit::FAILED
            }
            Self::Lost => {
                say("the lease was lost before the command was started");
                Exit::LEASE_LOST
            }
            Self::Command(error) => {
                say(chain(&error));
                match error {
                    StartError::NotFound(..) => Exit::NOT_FOUND,
                    StartError::CannotExecute(..) => Exit::CANNOT_EXECUTE,
                    _ => Exit::FAILED,
                }
            }
        }
    }
}

/// A command at work.
struct Work<'a> {
    label: String,
    supervisor: Supervisor,
    /// `None` once it was given back.
    lease: Option<(Guard, LeaseFile)>,
    kill_after: Duration,
    /// Whether it was said that the lease is not being renewed.
    is_away: bool,
    context: &'a Context,
}

/// What happens while the command runs.
enum Event {
    Ended(Ending),
    Held(Held),
    /// Why the lease is not being renewed, or that it is again.
    Trouble(Option<Arc<Error>>),
    Told(i32),
    Healthy,
    /// Not healthy in time; what the last probe said.
    TooLate(String),
}

impl Work<'_> {
    async fn run(&mut self, health: impl Future<Output = Event>, signals: &mut Signals) -> Ending {
        let mut health = std::pin::pin!(health.fuse());
        let mut held = self.lease.as_ref().map(|(guard, _)| guard.follow());
        let mut trouble = self.lease.as_ref().map(|(guard, _)| guard.trouble());
        let mut is_stopping = false;
        loop {
            let event = tokio::select! {
                ending = self.supervisor.ended() => Event::Ended(ending),
                now = next(&mut held) => Event::Held(now.unwrap_or(Held::Lost(Loss::Ended))),
                Some(why) = next(&mut trouble), if held.is_some() => Event::Trouble(why),
                signal = signals.next() => Event::Told(signal.number()),
                event = &mut health, if held.is_some() && !health.is_terminated() => event,
            };
            match event {
                Event::Ended(ending) => {
                    // The guard process acts by itself, and may be faster than the news.
                    if ending == Ending::Stopped && !is_stopping {
                        self.say_lost("it could not be renewed in time; the command was stopped");
                    }
                    return ending;
                }
                Event::Held(Held::Until(deadline)) => self.renewed(deadline),
                Event::Trouble(why) => self.trouble(why.as_deref()),
                Event::Held(Held::Lost(loss)) => {
                    (held, is_stopping) = (None, true);
                    self.lost(loss);
                }
                // Also passed on when everything is being stopped already: it then changes nothing.
                Event::Told(signal) => self.supervisor.signal(signal),
                Event::Healthy => {
                    held = None;
                    // In this order: the command must not be stopped for a lease that it no longer needs.
                    self.supervisor.disarm();
                    self.give_back().await;
                    say(format_args!(
                        "healthy: {} was given back, and the command runs on",
                        self.label
                    ));
                }
                Event::TooLate(why) => {
                    say(format_args!(
                        "not healthy within --lease-timeout, stopping the command: {why}"
                    ));
                    is_stopping = true;
                    self.supervisor.stop();
                }
            }
        }
    }

    fn renewed(&mut self, deadline: Instant) {
        self.supervisor.arm(deadline);
        let Some((_, file)) = &self.lease else { return };
        if let Err(error) = file.renewed(deadline) {
            say(format_args!(
                "cannot rewrite the lease file, which now shows too early an end: {error}"
            ));
        }
    }

    /// Says once that the command is about to be stopped, and once that it is not.
    fn trouble(&mut self, why: Option<&Error>) {
        let deadline = self.lease.as_ref().and_then(|(guard, _)| guard.deadline());
        match (why, deadline) {
            (Some(why), Some(deadline)) if !self.is_away => {
                let left = deadline.since(self.context.env.clock.now() + self.kill_after);
                say(format_args!(
                    "the store is away, trying on: {}; the command will be stopped in {} s unless {} is renewed",
                    chain(why),
                    left.as_secs(),
                    self.label
                ));
                self.is_away = true;
            }
            (None, _) if self.is_away => {
                say(format_args!("the store is back, and {} renewed", self.label));
                self.is_away = false;
            }
            _ => {}
        }
    }

    fn lost(&mut self, loss: Loss) {
        let why = match loss {
            Loss::Unrenewed => "it could not be renewed in time; stopping the command",
            _ => "it has ended or was evicted; stopping the command",
        };
        self.say_lost(why);
        self.supervisor.stop();
    }

    fn say_lost(&self, why: &str) {
        say(format_args!("lost {}: {why}", self.label));
    }

    async fn give_back(&mut self) {
        if let Some((guard, _file)) = self.lease.take() {
            within_reason(self.context, guard.release()).await;
        }
    }
}

/// The next value; `None` when nobody sends any more. Never when nothing is followed.
async fn next<T: Clone + Send + Sync>(followed: &mut Option<Receiver<T>>) -> Option<T> {
    match followed {
        Some(followed) => match followed.changed().await {
            Ok(()) => Some(followed.borrow_and_update().clone()),
            Err(_) => None,
        },
        None => std::future::pending().await,
    }
}

/// Ends when the service is well or the time is over; never when nothing is waited for.
async fn health(healthy: Option<Healthy>, deadline: Instant, context: &Context) -> Event {
    let Some(healthy) = healthy else { return std::future::pending().await };
    match context.until(deadline, healthy.wait()).await {
        Some(()) => Event::Healthy,
        None => Event::TooLate(healthy.last()),
    }
}
