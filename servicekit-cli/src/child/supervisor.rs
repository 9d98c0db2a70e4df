//! The parent's side: starts the guard, tells it what happens to the lease, and takes over when it fails.

use std::{
    error::Error, ffi::OsString, fmt, io, os::fd::AsFd as _, process::Stdio, sync::Arc,
    time::Duration,
};

use servicekit::{Clock, Instant, clock::timeout};
use tokio::process::{Child, Command};

use super::{
    GUARD, WITH_CGROUP, asks_to_end, end_leftovers,
    tree::Tree,
    until,
    wire::{Link, Order, Report, Task},
};

/// How much later than the guard the parent acts: time enough for the guard to do it first.
const GRACE: Duration = Duration::from_millis(200);

/// How long the guard may take to end everything while the lease stands, beyond the time that the child is given.
const PATIENCE: Duration = Duration::from_secs(2);

/// What to run, and how.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "made by callers")]
pub struct Options {
    /// The program, looked for in `PATH`, and its arguments.
    pub command: Vec<OsString>,
    /// Variables that the child gets besides those of this process.
    pub env: Vec<(OsString, OsString)>,
    /// Until when the lease stands, unless [`Supervisor::arm`] tells a later moment.
    pub deadline: Instant,
    /// The time between SIGTERM and SIGKILL.
    pub kill_after: Duration,
}

/// Why there is no child.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// There is no such program.
    NotFound(OsString, io::Error),
    /// It cannot be executed.
    CannotExecute(OsString, io::Error),
    /// The guard could not be started, or failed before it had started the child.
    Guard(io::Error),
}

/// How it ended. Nothing that the child started is left then, unless [`Supervisor::disarm`] was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a caller has to handle each")]
pub enum Ending {
    /// The child ended by itself, or by a signal that was passed on: its status, or 128 and the number of the signal.
    Exited(u8),
    /// It was stopped: the deadline came, or [`Supervisor::stop`] was called.
    Stopped,
    /// Its guard was killed, so it was stopped.
    GuardDied,
}

/// A guard without a child yet: it can be started while the lease is asked for, which takes as long. Dropping it ends it.
#[derive(Debug)]
pub struct Standby {
    tree: Tree,
    link: Link,
    guard: Child,
    cgroup: bool,
}

/// A child that ends, with all that it started, at a deadline: also when this process is killed, stopped or hangs.
///
/// One at a time in a process, which must not start others meanwhile: should the guard die, everything below this process
/// that was not there before is ended. Dropping it ends the child as [`Supervisor::stop`] does, without waiting for it.
#[derive(Debug)]
pub struct Supervisor {
    clock: Arc<dyn Clock>,
    tree: Tree,
    link: Link,
    guard: Child,
    pid: Option<u32>,
    kill_after: Duration,
    /// By when the guard must have ended everything; `None` when there is no such moment.
    limit: Option<Instant>,
    /// Whether the limit is fixed, because everything was asked to end.
    ending: bool,
    /// From when on this process kills everything; `None` while that is left to the guard.
    kill_at: Option<Instant>,
    /// How it ended, as soon as that is known.
    result: Option<Ending>,
}

/// What became of the guard.
enum News {
    Report(Report),
    Died,
    /// It should have ended everything by now: it is stopped, or hangs.
    Late,
}

impl Standby {
    /// Starts a guard; where `cgroup` is asked for and can be had, its child will have one of its own.
    ///
    /// # Errors
    ///
    /// [`StartError::Guard`].
    pub fn new(cgroup: bool) -> Result<Self, StartError> {
        let started = || {
            let (link, theirs) = Link::pair()?;
            let tree = Tree::of_this_process()?;
            let mut guard = Command::new("/proc/self/exe");
            guard.arg0("sk-guard").arg(GUARD).args(cgroup.then_some(WITH_CGROUP));
            let guard = guard.stdin(Stdio::from(theirs)).process_group(0).spawn()?;
            Ok(Self { tree, link, guard, cgroup })
        };
        started().map_err(StartError::Guard)
    }

    /// Ends what earlier guards left behind ([`end_leftovers`]), then starts the child, which gets the standard streams of
    /// this process, default signal handling and a process group of its own.
    ///
    /// # Errors
    ///
    /// [`StartError`]. Nothing runs then.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends what was started.
    pub async fn start(
        mut self,
        clock: Arc<dyn Clock>,
        options: Options,
    ) -> Result<Supervisor, StartError> {
        end_leftovers(&*clock).await;
        // Somebody may have killed it meanwhile.
        if self.guard.try_wait().map_err(StartError::Guard)?.is_some() {
            self = Self::new(self.cgroup)?;
        }
        let program = options.command.first().cloned().unwrap_or_default();
        let task = Task {
            command: options.command,
            env: options.env,
            deadline: options.deadline.into(),
            kill_after: options.kill_after,
        };
        let Self { tree, link, guard, .. } = self;
        link.send_task(&task, io::stdin().as_fd()).map_err(StartError::Guard)?;
        let mut supervisor = Supervisor {
            clock,
            tree,
            link,
            guard,
            pid: None,
            kill_after: options.kill_after,
            limit: Some(options.deadline),
            ending: false,
            kill_at: None,
            result: None,
        };
        supervisor.started(program).await?;
        Ok(supervisor)
    }
}

impl Supervisor {
    /// The number of the child; `None` when the deadline came before it was started.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// The lease was renewed: it stands until `deadline`.
    pub fn arm(&mut self, deadline: Instant) {
        self.tell(&Order::Arm(deadline.into()));
        if self.limit.is_some() && !self.ending {
            self.limit = Some(deadline);
        }
    }

    /// Passes a signal on, by its number, once: SIGINT and SIGQUIT to the process group of the child, as a terminal would;
    /// any other to the child alone.
    ///
    /// SIGINT, SIGQUIT and SIGTERM ask to end: what is left after `kill_after` is killed.
    pub fn signal(&mut self, number: i32) {
        self.tell(&Order::Signal(number));
        if asks_to_end(number) {
            self.expect_end();
        }
    }

    /// The lease is lost: SIGTERM to all that the child started, and SIGKILL after `kill_after`, no later than at the
    /// deadline.
    pub fn stop(&mut self) {
        self.tell(&Order::Stop);
        self.expect_end();
    }

    /// The lease was given back and the child runs on: no deadline ends it any more, nor does the end of this process.
    ///
    /// Does nothing once the child was asked to end.
    pub fn disarm(&mut self) {
        self.tell(&Order::Disarm);
        if !self.ending {
            self.limit = None;
        }
    }

    /// Waits until the child, and all that it started, has ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing; call it again.
    pub async fn ended(&mut self) -> Ending {
        let result = match self.result {
            Some(result) => result,
            None => self.result().await,
        };
        self.result = Some(result);
        if let Some(kill_at) = self.kill_at {
            self.take_over(kill_at).await;
            self.kill_at = None;
        }
        result
    }

    async fn started(&mut self, program: OsString) -> Result<(), StartError> {
        let error = match self.news().await {
            News::Report(Report::Started { pid }) => {
                self.pid = Some(pid);
                return Ok(());
            }
            News::Report(Report::Stopped) => {
                self.result = Some(Ending::Stopped);
                return Ok(());
            }
            News::Report(Report::CannotStart { errno }) => {
                let error = match errno {
                    Some(errno) => io::Error::from_raw_os_error(errno),
                    None => io::ErrorKind::InvalidInput.into(),
                };
                return Err(match error.kind() {
                    io::ErrorKind::NotFound => StartError::NotFound(program, error),
                    _ => StartError::CannotExecute(program, error),
                });
            }
            News::Report(Report::Exited { .. }) | News::Died => "it ended too early",
            News::Late => "it did not answer",
        };
        // It may have started the child nevertheless.
        self.take_over(self.clock.now()).await;
        Err(StartError::Guard(io::Error::other(error)))
    }

    async fn result(&mut self) -> Ending {
        let now = || self.clock.now();
        match self.news().await {
            News::Report(Report::Exited { code }) => Ending::Exited(code),
            News::Report(Report::Stopped) => Ending::Stopped,
            News::Late => {
                self.kill_at = Some(now());
                Ending::Stopped
            }
            News::Died | News::Report(_) => {
                let latest = now() + self.kill_after;
                self.kill_at = Some(self.limit.map_or(latest, |limit| latest.min(limit)));
                Ending::GuardDied
            }
        }
    }

    async fn news(&self) -> News {
        let late = self.limit.map(|limit| limit + GRACE);
        tokio::select! {
            biased;
            report = self.link.receive() => report.ok().flatten().map_or(News::Died, News::Report),
            () = until(&*self.clock, late) => self.link.arrived().map_or(News::Late, News::Report),
        }
    }

    /// Ends everything below this process, in place of the guard.
    async fn take_over(&mut self, kill_at: Instant) {
        let clock = &*self.clock;
        let _ = self.guard.start_kill();
        // Only then has all that was below the guard become a child of this process; but one that hangs may never be gone.
        let _ = timeout(clock, kill_at.since(clock.now()), self.guard.wait()).await;
        if clock.now() < kill_at {
            self.tree.terminate();
            self.tree.gone(clock, kill_at).await;
        }
        self.tree.kill();
        end_leftovers(clock).await;
        self.tree.end(clock).await;
    }

    fn expect_end(&mut self) {
        if !self.ending {
            self.ending = true;
            let latest = self.clock.now() + self.kill_after + PATIENCE;
            self.limit = Some(self.limit.map_or(latest, |limit| latest.min(limit)));
        }
    }

    /// A guard that is dead or stopped hears nothing; [`Supervisor::ended`] deals with that.
    fn tell(&self, order: &Order) {
        let _ = self.link.send(order);
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound(program, _) => write!(f, "{}: not found", program.display()),
            Self::CannotExecute(program, _) => {
                write!(f, "{}: cannot be executed", program.display())
            }
            Self::Guard(_) => f.write_str("the guard of the child failed"),
        }
    }
}

impl Error for StartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let (Self::NotFound(_, error) | Self::CannotExecute(_, error) | Self::Guard(error)) = self;
        Some(error)
    }
}
