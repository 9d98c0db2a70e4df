//! The guard: the process between servicekit and the child, which ends the child when servicekit cannot.

use std::{
    io::{self, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitStatus, kill_process, kill_process_group};
use servicekit::{Clock, Env, Instant};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    PAUSE, WITH_CGROUP, asks_to_end,
    cgroup::Cgroup,
    tree::Tree,
    until,
    wire::{Link, Order, Report, Task},
};

/// Runs the guard until the child, and all that it started, has ended. `main` calls this, before anything else, in a process
/// whose first argument is [`super::GUARD`].
#[must_use]
pub fn guard_main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(run())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "servicekit: the guard of the child failed: {error}");
            ExitCode::from(125)
        }
    }
}

async fn run() -> io::Result<()> {
    // Not "servicekit", so that whoever kills all of that name leaves this to do its work.
    rustix::thread::set_name(c"sk-guard")?;
    // A service manager sends these to every process of a service; here they come from the parent.
    let _deaf = [SignalKind::interrupt(), SignalKind::quit(), SignalKind::terminate()].map(signal);
    let mut child_ended = signal(SignalKind::child())?;
    let tree = Tree::of_this_process()?;
    let link = Link::new(io::stdin().as_fd().try_clone_to_owned()?)?;
    let clock = Env::system().clock;
    let cgroup = wants_cgroup().then(|| Cgroup::enter(&*clock).ok()).flatten();
    let Some((task, stdin)) = link.receive_task().await? else {
        cgroup.into_iter().for_each(Cgroup::remove);
        return Ok(());
    };

    let Some(mut guard) = Guard::start(&task, stdin, tree, cgroup, &*clock, &link) else {
        return Ok(());
    };
    let mut link = Some(link);
    while !guard.is_done() {
        tokio::select! {
            biased;
            order = receive(link.as_ref()) => match order {
                Some(order) => guard.obey(order, clock.now()),
                None => {
                    link = None;
                    guard.parent_is_gone(clock.now());
                }
            },
            () = until(&*clock, guard.due()) => {
                // A renewal that has arrived counts, however late this process comes to run.
                while let Some(order) = link.as_ref().and_then(Link::arrived) {
                    guard.obey(order, clock.now());
                }
                guard.on_time(clock.now());
            }
            _ = child_ended.recv() => guard.reap(clock.now()),
        }
    }
    if let Some(link) = &link {
        tell(link, &guard.report());
    }
    // What takes the kernel its time comes last: the parent need not wait for it.
    guard.cgroup.into_iter().for_each(Cgroup::remove);
    Ok(())
}

fn wants_cgroup() -> bool {
    std::env::args_os().nth(2).is_some_and(|argument| argument == WITH_CGROUP)
}

/// The next order; `None`, once, when the parent is gone, or speaks another language, which is no parent either.
async fn receive(link: Option<&Link>) -> Option<Order> {
    match link {
        Some(link) => link.receive().await.ok().flatten(),
        None => std::future::pending().await,
    }
}

/// A parent that is gone needs no report; that it is gone shows when its next order is awaited.
fn tell(link: &Link, report: &Report) {
    let _ = link.send(report);
}

struct Guard {
    tree: Tree,
    cgroup: Option<Cgroup>,
    child: Pid,
    kill_after: Duration,
    /// Until when the lease stands; `None` when it was given back, and no longer concerns the child.
    deadline: Option<Instant>,
    /// From when on everything is killed; `None` while nothing has to end.
    kill_at: Option<Instant>,
    /// Whether it ends because the lease does.
    stopped: bool,
    /// How the child itself has ended.
    code: Option<u8>,
}

impl Guard {
    /// Starts the child, and tells the parent; `None` when there is none to watch.
    fn start(
        task: &Task,
        stdin: OwnedFd,
        tree: Tree,
        mut cgroup: Option<Cgroup>,
        clock: &dyn Clock,
        link: &Link,
    ) -> Option<Self> {
        let deadline = Instant::from(task.deadline);
        let spawned = (clock.now() < deadline - task.kill_after).then(|| spawn(task, stdin));
        cgroup.iter_mut().for_each(Cgroup::leave);
        let child = match spawned {
            Some(Ok(child)) => child,
            not_spawned => {
                let cannot = |error: io::Error| Report::CannotStart { errno: error.raw_os_error() };
                let failed = not_spawned.and_then(Result::err);
                tell(link, &failed.map_or(Report::Stopped, cannot));
                cgroup.into_iter().for_each(Cgroup::remove);
                return None;
            }
        };
        tell(link, &Report::Started { pid: child.as_raw_pid().unsigned_abs() });
        Some(Self {
            tree,
            cgroup,
            child,
            kill_after: task.kill_after,
            deadline: Some(deadline),
            kill_at: None,
            stopped: false,
            code: None,
        })
    }

    /// When there is something to do though nothing happens.
    fn due(&self) -> Option<Instant> {
        self.kill_at.or_else(|| Some(self.deadline? - self.kill_after))
    }

    fn on_time(&mut self, now: Instant) {
        if self.due().is_none_or(|due| now < due) {
            return;
        }
        if self.kill_at.is_none() {
            self.stop(now);
            return;
        }
        if let Some(cgroup) = &self.cgroup {
            let _ = cgroup.kill();
        }
        self.tree.kill();
        self.reap(now);
        self.kill_at = Some(now + PAUSE);
    }

    fn obey(&mut self, order: Order, now: Instant) {
        match order {
            Order::Arm(deadline) if self.deadline.is_some() => {
                self.deadline = Some(deadline.into());
            }
            Order::Arm(_) => {}
            Order::Signal(number) => {
                self.pass_on(number);
                if asks_to_end(number) {
                    self.end(now);
                }
            }
            Order::Stop => self.stop(now),
            // What was asked to end already is no longer what the parent wants to keep.
            Order::Disarm if self.kill_at.is_none() => {
                self.deadline = None;
                if let Some(cgroup) = self.cgroup.take() {
                    cgroup.release();
                }
            }
            Order::Disarm => {}
        }
    }

    fn parent_is_gone(&mut self, now: Instant) {
        if self.deadline.is_some() {
            self.stop(now);
        }
    }

    fn reap(&mut self, now: Instant) {
        for (pid, status) in self.tree.reap() {
            if pid == self.child {
                self.code = Some(code(status));
            }
        }
        // What the child left running would outlive the lease, which is given back when the child has ended.
        if self.code.is_some() && !self.lets_go() && !self.tree.is_gone() {
            self.end(now);
            self.tree.terminate();
        }
    }

    fn is_done(&self) -> bool {
        self.code.is_some() && (self.lets_go() || self.tree.is_gone())
    }

    /// Whether what runs may run on.
    fn lets_go(&self) -> bool {
        self.deadline.is_none() && self.kill_at.is_none()
    }

    fn report(&self) -> Report {
        match self.code {
            Some(code) if !self.stopped => Report::Exited { code },
            _ => Report::Stopped,
        }
    }

    fn stop(&mut self, now: Instant) {
        self.stopped = true;
        // Who was asked to end by a signal is not asked again.
        if self.kill_at.is_none() {
            self.end(now);
            self.tree.terminate();
        }
    }

    /// Fixes the moment from which on everything is killed; a later deadline does not move it.
    fn end(&mut self, now: Instant) {
        let latest = now + self.kill_after;
        let kill_at = self.deadline.map_or(latest, |deadline| latest.min(deadline));
        self.kill_at.get_or_insert(kill_at);
    }

    /// A key on the terminal is for the whole process group, as if it were in the foreground; anything else for the child.
    fn pass_on(&self, number: i32) {
        // Once the child is reaped, its number may be another's.
        if self.code.is_some() {
            return;
        }
        if let Some(signal) = Signal::from_named_raw(number) {
            let key = matches!(signal, Signal::INT | Signal::QUIT);
            // A child that has left its group is told alone.
            if !key || kill_process_group(self.child, signal).is_err() {
                let _ = kill_process(self.child, signal);
            }
        }
    }
}

fn spawn(task: &Task, stdin: OwnedFd) -> io::Result<Pid> {
    let mut words = task.command.iter();
    let program = words.next().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    // A group of its own: the keys of a terminal reach the parent, and through it the child, once.
    command.args(words).envs(task.env.iter().cloned()).stdin(stdin).process_group(0);
    let child = command.spawn()?;
    Pid::from_raw(child.id().cast_signed()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn code(status: WaitStatus) -> u8 {
    let code = match status.terminating_signal() {
        Some(signal) => 128 + signal,
        None => status.exit_status().unwrap_or(125),
    };
    u8::try_from(code).unwrap_or(125)
}
