//! What a command ends with.

use std::process::ExitCode;

/// The status of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit(u8);

impl Exit {
    /// It is done.
    pub(crate) const DONE: Self = Self(0);
    /// The answer is no: timed out, not granted, none found.
    pub(crate) const NO: Self = Self(1);
    /// Wrong usage.
    pub(crate) const USAGE: Self = Self(2);
    /// The store could not be reached, or refused.
    pub(crate) const STORE: Self = Self(3);
    /// A secret is missing, cannot be read, or opens nothing.
    pub(crate) const SECRET: Self = Self(4);
    /// Another process has taken over this service id.
    pub(crate) const SUPERSEDED: Self = Self(5);
    /// With a child: the lease was lost, and the child stopped.
    pub(crate) const LEASE_LOST: Self = Self(123);
    /// With a child: timed out waiting for the lease.
    pub(crate) const TIMED_OUT: Self = Self(124);
    /// servicekit itself failed; with a child also when the store is away.
    pub(crate) const FAILED: Self = Self(125);

    /// With a child: the command cannot be executed.
    pub(crate) const CANNOT_EXECUTE: Self = Self(126);
    /// With a child: there is no such command.
    pub(crate) const NOT_FOUND: Self = Self(127);

    /// Ended by a signal, or as a child that was.
    pub(crate) fn signal(number: i32) -> Self {
        Self(u8::try_from(128 + number).unwrap_or(u8::MAX))
    }

    /// The status of a child that ended by itself.
    pub(crate) fn child(status: u8) -> Self {
        Self(status)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.0.into()
    }
}
