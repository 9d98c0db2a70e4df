//! The processes below this one: finding them, signalling them, and ending every one.
//!
//! This process has to be a child subreaper: whatever loses its parent then becomes a child of this one, so that a process
//! cannot leave the tree, and having no children proves that nobody is left.

use std::{collections::HashSet, fs, io};

use rustix::{
    io::Errno,
    process::{
        self as sys, Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus,
    },
};
use servicekit::{Clock, Instant};

use super::PAUSE;

/// Everything below this process, except what was there when it was made.
#[derive(Debug)]
pub(super) struct Tree {
    root: i32,
    spared: HashSet<Process>,
    terminated: bool,
}

/// A process, told from a later one with the same number by the time of its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Process {
    pid: i32,
    born: u64,
}

struct Stat {
    process: Process,
    parent: i32,
    stopped: bool,
}

impl Tree {
    /// Makes this process a child subreaper.
    pub(super) fn of_this_process() -> io::Result<Self> {
        let this = sys::getpid();
        sys::set_child_subreaper(Some(this))?;
        let root = this.as_raw_pid();
        let mut tree = Self { root, spared: HashSet::new(), terminated: false };
        // Who has no child has nobody below: nearly always, and looking at every process of the host takes its time.
        if !has_no_child() {
            let mut present = HashSet::new();
            tree.visit(&mut |stat| {
                present.insert(stat.process);
            });
            tree.spared = present;
        }
        Ok(tree)
    }

    /// Asks every process to end: SIGTERM, once each; those that are stopped are continued, so that they can.
    /// Does so only once, so that a process that takes its time is not disturbed again.
    pub(super) fn terminate(&mut self) {
        if std::mem::replace(&mut self.terminated, true) {
            return;
        }
        let mut told = HashSet::new();
        // Again for those that were started meanwhile, but not until there are none: there may always be.
        for _ in 0..3 {
            self.visit(&mut |stat| {
                if told.insert(stat.process) {
                    stat.send(Signal::TERM);
                }
            });
        }
    }

    /// Kills every process that it finds. One that started another just then has left a new one: reap, and try again.
    pub(super) fn kill(&self) {
        self.visit(&mut |stat| stat.send(Signal::KILL));
    }

    /// How each child of this process ended that has ended.
    pub(super) fn reap(&self) -> impl Iterator<Item = (Pid, WaitStatus)> {
        std::iter::from_fn(|| sys::wait(WaitOptions::NOHANG).ok().flatten())
    }

    /// Whether no process is left.
    pub(super) fn is_gone(&self) -> bool {
        if has_no_child() {
            return true;
        }
        // Where others are spared there are always children, and only looking tells.
        let mut any = false;
        if !self.spared.is_empty() {
            self.visit(&mut |_| any = true);
        }
        !self.spared.is_empty() && !any
    }

    /// Waits until no process is left, or until `limit`.
    pub(super) async fn gone(&self, clock: &dyn Clock, limit: Instant) {
        while !self.is_gone() && clock.now() < limit {
            clock.sleep(PAUSE).await;
            self.reap().for_each(drop);
        }
    }

    /// Kills until no process is left.
    pub(super) async fn end(&self, clock: &dyn Clock) {
        while !self.is_gone() {
            self.kill();
            self.gone(clock, clock.now() + PAUSE).await;
        }
    }

    /// Calls `f` for each process of the tree as soon as it is found: one that starts another and ends, again and again, is
    /// only met in the moment after it was seen.
    fn visit(&self, f: &mut dyn FnMut(&Stat)) {
        let mut inside = HashSet::from([self.root]);
        let mut belongs = |stat: &Stat| {
            let found = inside.contains(&stat.parent) && !self.spared.contains(&stat.process);
            if found {
                inside.insert(stat.process.pid);
                f(stat);
            }
            found
        };
        // Numbers rise until they start again from below, so that nearly every parent comes before its children.
        let mut others: Vec<Stat> = processes().filter(|stat| !belongs(stat)).collect();
        let mut left = usize::MAX;
        while others.len() < left {
            left = others.len();
            others.retain(|stat| !belongs(stat));
        }
    }
}

impl Stat {
    fn of(pid: i32) -> Option<Self> {
        Self::parse(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name of the program comes first, in brackets; it may hold anything, also brackets.
    fn parse(pid: i32, line: &[u8]) -> Option<Self> {
        let after = line.iter().rposition(|byte| *byte == b')')? + 1;
        let mut fields = std::str::from_utf8(line.get(after..)?).ok()?.split_ascii_whitespace();
        let stopped = matches!(fields.next()?, "T");
        let parent = fields.next()?.parse().ok()?;
        let born = fields.nth(17)?.parse().ok()?;
        Some(Self { process: Process { pid, born }, parent, stopped })
    }

    /// A process that has ended meanwhile, or that may not be signalled, is no error: who calls looks again.
    fn send(&self, signal: Signal) {
        let Some(pid) = Pid::from_raw(self.process.pid) else { return };
        let handle = sys::pidfd_open(pid, PidfdFlags::empty());
        // With the handle open, the number can no longer pass to another process unseen.
        if Self::of(self.process.pid).is_none_or(|now| now.process != self.process) {
            return;
        }
        let send = |signal| match &handle {
            Ok(handle) => sys::pidfd_send_signal(handle, signal),
            // Linux before 5.3 has no handles.
            Err(_) => sys::kill_process(pid, signal),
        };
        if send(signal).is_ok() && self.stopped && signal != Signal::KILL {
            let _ = send(Signal::CONT);
        }
    }
}

/// Whether this process has no child, neither a living one nor one that waits to be reaped.
fn has_no_child() -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(sys::waitid(WaitId::All, options), Err(Errno::CHILD))
}

/// Every process that can be seen, by rising number.
fn processes() -> impl Iterator<Item = Stat> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Stat::of(entry.file_name().to_str()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_is_skipped() {
        let fields = "7 9 9 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 0 0";
        let line = format!("42 (a) S 1 (\u{1f980}) T {fields}");
        let stat = Stat::parse(42, line.as_bytes()).unwrap();
        assert_eq!(stat.process, Process { pid: 42, born: 12345 });
        assert_eq!(stat.parent, 7);
        assert!(stat.stopped);
    }

    #[test]
    fn what_is_cut_off_is_no_process() {
        assert!(Stat::parse(42, b"").is_none());
        assert!(Stat::parse(42, b"42 (sh) S 1 2 3").is_none());
        assert!(Stat::parse(42, b"42 (sh").is_none());
    }

    #[test]
    fn this_process_is_found_with_its_parent() {
        let this = processes().find(|stat| stat.process.pid == sys::getpid().as_raw_pid()).unwrap();
        assert_eq!(Some(this.parent), sys::getppid().map(Pid::as_raw_pid));
        assert!(!this.stopped);
    }
}
