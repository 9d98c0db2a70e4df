//! A command that is run on each change of the list.

use std::{
    future::pending,
    io,
    pin::pin,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use futures_util::future::{Either, select};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use servicekit::Env;
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
};

use crate::report::say;

/// Runs a command with the latest list on its standard input, one run at a time, until a run has succeeded with it.
#[derive(Debug)]
pub(super) struct Hook {
    lists: watch::Sender<Option<String>>,
    work: JoinHandle<()>,
}

/// Changes that come within this time are one.
const FOLD: Duration = Duration::from_millis(200);

/// Pauses before a command that failed runs again: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// After how long it is told that a command still runs; then again after twice as long, and so on.
const SLOW: Duration = Duration::from_secs(30);

/// How long a command that is asked to end may take.
const END_WITHIN: Duration = Duration::from_secs(5);

impl Hook {
    /// Runs `command` through `sh`, without those variables of this process's environment that are to be `hidden`.
    pub(super) fn new(command: String, hidden: Vec<&'static str>, env: Env) -> Self {
        let lists = watch::Sender::new(None);
        let (settled, retry) = (None, None);
        let worker = Worker { command, hidden, env, lists: lists.subscribe(), settled, retry };
        Self { lists, work: tokio::spawn(worker.run()) }
    }

    /// Takes the list as it is now.
    pub(super) fn take(&self, list: String) {
        self.lists.send_if_modified(|last| {
            let is_new = last.as_ref() != Some(&list);
            *last = Some(list);
            is_new
        });
    }

    /// Ends the command if it runs, with all of its process group, and returns when that is done.
    pub(super) async fn stop(self) {
        drop(self.lists);
        // It fails only when the worker does, and then there is nothing left to end.
        let _ = self.work.await;
    }
}

struct Worker {
    command: String,
    hidden: Vec<&'static str>,
    env: Env,
    lists: watch::Receiver<Option<String>>,
    /// The list with which the command has succeeded last, unless it has been begun with another one since.
    settled: Option<String>,
    /// How long to wait before the command runs again, where it has failed.
    retry: Option<Duration>,
}

impl Worker {
    async fn run(mut self) {
        while self.is_due().await {
            let list = self.lists.borrow_and_update().clone();
            let Some(list) = list.filter(|list| self.settled.as_ref() != Some(list)) else {
                self.retry = None;
                continue;
            };
            self.settled = None;
            match self.run_once(&list).await {
                None => return,
                Some(Ok(status)) if status.success() => {
                    self.settled = Some(list);
                    self.retry = None;
                }
                Some(ended) => self.failed(ended),
            }
        }
    }

    /// Waits for a change or for the next try; false when there will be none.
    async fn is_due(&mut self) -> bool {
        let clock = &self.env.clock;
        let pause = self.retry.map(|pause| self.env.random.jitter(pause, 0.1));
        tokio::select! {
            changed = self.lists.changed() => {
                self.retry = None;
                if changed.is_err() {
                    return false;
                }
                let fold = pin!(clock.sleep(FOLD));
                matches!(select(fold, pin!(ended(self.lists.clone()))).await, Either::Left(_))
            }
            () = async { match pause {
                Some(pause) => clock.sleep(pause).await,
                None => pending().await,
            } } => true,
        }
    }

    /// Runs the command to its end; `None` when it was asked to end before.
    async fn run_once(&self, list: &str) -> Option<io::Result<ExitStatus>> {
        let mut run = match Run::start(&self.command, &self.hidden) {
            Ok(run) => run,
            Err(error) => return Some(Err(error)),
        };
        let status = tokio::select! {
            biased;
            status = run.status(list) => Some(status),
            () = ended(self.lists.clone()) => None,
            () = self.tell_slowness() => None,
        };
        if status.is_none() {
            run.stop(&self.env).await;
        }
        status
    }

    /// Tells now and then that the command still runs, as it holds up all lists after its own. Does not return.
    async fn tell_slowness(&self) {
        let (mut time, mut pause) = (Duration::ZERO, SLOW);
        loop {
            self.env.clock.sleep(pause).await;
            time += pause;
            pause = time;
            say(format_args!(
                "the command of --exec still runs after {time:?}, and changes wait for its end"
            ));
        }
    }

    fn failed(&mut self, ended: io::Result<ExitStatus>) {
        let (first, longest) = RETRY;
        let pause = self.retry.map_or(first, |last| (last * 2).min(longest));
        self.retry = Some(pause);
        let how = match ended {
            Ok(status) => format!("ended with {status}"),
            Err(error) => format!("cannot be run: {error}"),
        };
        say(format_args!("the command of --exec {how}; again in {pause:?}, or on the next change"));
    }
}

/// Returns when nobody will send another list.
async fn ended(mut lists: watch::Receiver<Option<String>>) {
    while lists.changed().await.is_ok() {}
}

/// A command at work, in a process group of its own.
struct Run {
    child: Child,
    group: Option<Pid>,
}

impl Run {
    fn start(script: &str, hidden: &[&str]) -> io::Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", script]).process_group(0).stdin(Stdio::piped()).kill_on_drop(true);
        for variable in hidden {
            command.env_remove(variable);
        }
        let child = command.spawn()?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        Ok(Self { child, group })
    }

    /// Waits for its end. It need not read the list, and what it leaves in the background is its own.
    async fn status(&mut self, list: &str) -> io::Result<ExitStatus> {
        let stdin = self.child.stdin.take();
        let feed = async {
            if let Some(mut stdin) = stdin {
                // It has closed its end, then.
                let _ = stdin.write_all(list.as_bytes()).await;
            }
            pending().await
        };
        match select(pin!(self.child.wait()), pin!(feed)).await {
            Either::Left((status, _)) | Either::Right((status, _)) => status,
        }
    }

    /// Asks the whole group to end, and kills what is left of it after a while.
    async fn stop(&mut self, env: &Env) {
        let Some(group) = self.group else { return };
        let _ = kill_process_group(group, Signal::TERM);
        let deadline = env.clock.now() + END_WITHIN;
        while env.clock.now() < deadline {
            let _ = self.child.try_wait();
            if test_kill_process_group(group).is_err() {
                return;
            }
            env.clock.sleep(Duration::from_millis(10)).await;
        }
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.child.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::{Path, PathBuf},
    };

    use super::*;

    /// A hook that runs a script in which `$OUT` is a file.
    fn hook(out: &Path, script: &str) -> Hook {
        Hook::new(format!("OUT='{}'; {script}", out.display()), Vec::new(), Env::system())
    }

    async fn eventually(out: &Path, text: &str) {
        eventually_is(out, |said| said == text).await;
    }

    async fn eventually_is(out: &Path, condition: impl Fn(&str) -> bool) {
        let clock = Env::system().clock;
        let deadline = clock.now() + Duration::from_secs(60);
        loop {
            let said = fs::read_to_string(out).unwrap_or_default();
            if condition(&said) {
                return;
            }
            assert!(clock.now() < deadline, "{said:?}");
            clock.sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn changes_that_come_together_are_one() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let hook = hook(&out, "cat >> $OUT");
        for list in ["a\n", "b\n", "c\n"] {
            hook.take(list.into());
        }
        eventually(&out, "c\n").await;
        hook.take("d\n".into());
        eventually(&out, "c\nd\n").await;
        // There and back again is no change.
        hook.take("e\n".into());
        hook.take("d\n".into());
        Env::system().clock.sleep(3 * FOLD).await;
        hook.stop().await;
        eventually(&out, "c\nd\n").await;
    }

    #[tokio::test]
    async fn a_change_during_a_run_leads_to_one_more() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let hook =
            hook(&out, "cat >> $OUT; until [ -e $OUT.go ]; do sleep 0.02; done; echo . >> $OUT");
        hook.take("a\n".into());
        eventually(&out, "a\n").await;
        for list in ["b\n", "c\n", "d\n"] {
            hook.take(list.into());
            Env::system().clock.sleep(2 * FOLD).await;
        }
        eventually(&out, "a\n").await;
        fs::write(out.with_extension("go"), "").unwrap();
        eventually(&out, "a\n.\nd\n.\n").await;
        hook.stop().await;
    }

    #[tokio::test]
    async fn one_that_fails_is_tried_again_also_when_the_list_turns_back() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let hook = hook(&out, "read line; echo $line >> $OUT; [ $line = a ] || [ -e $OUT.fine ]");
        hook.take("a\n".into());
        eventually(&out, "a\n").await;
        // How often it was tried until the next list came depends on how busy this machine is.
        hook.take("b\n".into());
        eventually_is(&out, |said| said.ends_with("b\n")).await;
        // It may have done half of its work with b.
        hook.take("a\n".into());
        eventually_is(&out, |said| said.ends_with("b\na\n")).await;
        hook.take("c\n".into());
        eventually_is(&out, |said| said.ends_with("a\nc\n")).await;
        fs::write(out.with_extension("fine"), "").unwrap();
        eventually_is(&out, |said| said.ends_with("c\nc\n")).await;
        hook.stop().await;
    }

    #[tokio::test]
    async fn a_list_that_is_not_read_holds_up_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let hook = hook(&out, "echo . >> $OUT; exec <&-; sleep 0.1");
        hook.take("a".repeat(1 << 20));
        eventually(&out, ".\n").await;
        hook.take("b".repeat(1 << 20));
        eventually(&out, ".\n.\n").await;
        hook.stop().await;
    }

    #[tokio::test]
    async fn stopping_ends_the_whole_group_also_what_does_not_want_to() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let hook = hook(
            &out,
            "trap '' TERM; sleep 1000 & echo $! > $OUT.new; mv $OUT.new $OUT; wait; wait",
        );
        hook.take(String::new());
        eventually_is(&out, |said| said.ends_with('\n')).await;
        let sleeper = fs::read_to_string(&out).unwrap();
        let clock = Env::system().clock;
        let began = clock.now();
        hook.stop().await;
        assert!(clock.now().since(began) < END_WITHIN + Duration::from_secs(2));
        // It was killed, and ends when its turn on the processor comes; nobody may reap it then.
        let stat = PathBuf::from(format!("/proc/{}/stat", sleeper.trim()));
        eventually_is(&stat, |stat| stat.is_empty() || stat.contains(") Z ")).await;
    }
}
