//! The commands, one file each: arguments in, one library call, output out.

mod acquire_lease;
mod cert;
mod completions;
mod doctor;
mod evict_lease;
mod hosts;
mod identity;
mod leases;
mod man;
mod release_lease;
mod resize_lease;
mod services;
mod version;
mod watch;
mod why;

use clap::builder::TypedValueParser;
use futures_util::FutureExt as _;
use servicekit::lease::MOST_SLOTS;

use crate::{
    args,
    context::{Context, unless_told},
    exit::Exit,
    report::Failure,
    signals::Signals,
};

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Watch(watch::Watch),
    Hosts(hosts::Hosts),
    Services(services::Services),
    Why(why::Why),
    AcquireLease(acquire_lease::AcquireLease),
    ReleaseLease(release_lease::ReleaseLease),
    Leases(leases::Leases),
    EvictLease(evict_lease::EvictLease),
    ResizeLease(resize_lease::ResizeLease),
    Cert(cert::Cert),
    Identity(identity::Identity),
    Doctor(doctor::Doctor),
    Completions(completions::Completions),
    Man(man::Man),
    Version(version::Version),
}

impl Command {
    /// Whether it runs a child, whose status is then its own.
    pub(crate) fn has_child(&self) -> bool {
        matches!(self, Self::AcquireLease(command) if command.has_child())
    }

    pub(crate) async fn run(
        self,
        context: &Context,
        signals: &mut Signals,
    ) -> Result<Exit, Failure> {
        let asking = match self {
            Self::Watch(command) => return command.run(context, signals).await,
            Self::Hosts(command) => return command.run(context, signals).await,
            Self::AcquireLease(command) => return command.run(context, signals).await,
            Self::Services(command) => command.run(context).boxed(),
            Self::Why(command) => command.run(context).boxed(),
            Self::ReleaseLease(command) => command.run(context).boxed(),
            Self::Leases(command) => command.run(context).boxed(),
            Self::EvictLease(command) => command.run(context).boxed(),
            Self::ResizeLease(command) => command.run(context).boxed(),
            Self::Cert(command) => command.run(context).boxed(),
            Self::Identity(command) => command.run(context).boxed(),
            Self::Doctor(command) => command.run(context).boxed(),
            Self::Completions(command) => command.run().boxed(),
            Self::Man(command) => command.run().boxed(),
            Self::Version(command) => command.run(&context.connector).boxed(),
        };
        match unless_told(signals, context.ask(asking)).await {
            Ok(answer) => answer,
            Err(signal) => Err(Failure::Interrupted(signal)),
        }
    }
}

/// The numbers of slots that a lease can have.
fn slots() -> impl TypedValueParser<Value = u32> {
    args::number(1..=MOST_SLOTS)
}
