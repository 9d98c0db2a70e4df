use std::{io, os::fd::OwnedFd, process::Stdio, sync::Arc, time::Duration};

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process_group};
use servicekit_core::{
    Clock,
    clock::timeout,
    health::{Probe, Verdict},
};
use tokio::{io::AsyncReadExt as _, net::unix::pipe, process::Child, process::Command};

use super::{MOST_BYTES, last_line};

/// Runs a command through `sh -c`, and passes when it ends with 0.
///
/// The command has a process group of its own, which is killed when the command ends, at the time-out, and when the probe is
/// dropped: what it leaves in the background does not outlive the probe, unless it left the group (`setsid`). Its standard
/// input is empty. The last line that it writes, to standard output or error, is what it said.
#[derive(Debug)]
pub struct Exec {
    command: String,
    hidden: Vec<&'static str>,
    timeout: Duration,
    clock: Arc<dyn Clock>,
}

impl Exec {
    /// Probes by running `command` for at most `timeout`.
    pub fn new(command: impl Into<String>, timeout: Duration, clock: Arc<dyn Clock>) -> Self {
        Self { command: command.into(), hidden: Vec::new(), timeout, clock }
    }

    /// Hides variables of this process's environment from the command, such as those with secrets.
    #[must_use]
    pub fn without_variables(self, hidden: Vec<&'static str>) -> Self {
        Self { hidden, ..self }
    }

    fn start(&self) -> io::Result<(pipe::Receiver, Group)> {
        // One pipe for both, so that the last line is the one that was written last.
        let (output, input) = io::pipe()?;
        let mut command = Command::new("sh");
        command.args(["-c", &self.command]).process_group(0).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input);
        for variable in &self.hidden {
            command.env_remove(variable);
        }
        let group = Group::of(command.spawn()?)?;
        Ok((pipe::Receiver::from_owned_fd(OwnedFd::from(output))?, group))
    }

    async fn run(&self, said: &mut Said) -> io::Result<Result<(), String>> {
        let (mut output, mut group) = self.start()?;
        let ended = tokio::select! {
            ended = group.child.wait() => ended?,
            Err(error) = said.follow(&mut output) => return Err(error),
        };
        drop(group);
        said.take_rest(&output)?;
        Ok(if ended.success() { Ok(()) } else { Err(ended.to_string()) })
    }
}

#[async_trait]
impl Probe for Exec {
    async fn check(&self) -> Verdict {
        let mut said = Said::default();
        let result = timeout(&*self.clock, self.timeout, self.run(&mut said)).await;
        let problem = match result {
            Ok(Ok(Ok(()))) => return Verdict::Pass(said.about("exec: exit status: 0")),
            Ok(Ok(Err(status))) => format!("exec: {status}"),
            Ok(Err(error)) => format!("exec: {error}"),
            Err(_) => format!("exec: not done within {:?}, killed", self.timeout),
        };
        Verdict::Fail(said.about(&problem))
    }
}

/// A child that leads a process group; dropping it kills the group, and the runtime reaps the child.
struct Group {
    child: Child,
    id: Pid,
}

impl Group {
    fn of(child: Child) -> io::Result<Self> {
        let id = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        Ok(Self { child, id: id.ok_or_else(|| io::Error::other("a process without an id"))? })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // While a member lives, the group's id belongs to it, also when the child is reaped. An error says that none lives.
        let _ = kill_process_group(self.id, Signal::KILL);
    }
}

/// What a command wrote: how much, and the end of it.
#[derive(Default)]
struct Said {
    bytes: usize,
    end: Vec<u8>,
}

/// How much of the end is kept.
const KEPT: usize = 1024;

impl Said {
    /// Reads until there is too much; a closed pipe is waited at for ever, because it says nothing about the command.
    async fn follow(&mut self, output: &mut pipe::Receiver) -> io::Result<()> {
        let mut buffer = [0; KEPT];
        loop {
            match output.read(&mut buffer).await? {
                0 => std::future::pending().await,
                read => self.take(&buffer[..read])?,
            }
        }
    }

    /// Reads what is there already; a process that left the group may hold the pipe open.
    fn take_rest(&mut self, output: &pipe::Receiver) -> io::Result<()> {
        let mut buffer = [0; KEPT];
        loop {
            match output.try_read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => self.take(&buffer[..read])?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn take(&mut self, more: &[u8]) -> io::Result<()> {
        self.bytes += more.len();
        self.end.extend_from_slice(more);
        self.end.drain(..self.end.len().saturating_sub(KEPT));
        if self.bytes > MOST_BYTES {
            let message = format!("wrote more than {} KiB, killed", MOST_BYTES >> 10);
            return Err(io::Error::other(message));
        }
        Ok(())
    }

    fn about(&self, what: &str) -> String {
        let line = last_line(&self.end);
        if line.is_empty() { what.into() } else { format!("{what}: {line}") }
    }
}
