//! One parent, its guard and its child, as a test sees them from outside.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{Timespec, nanosleep},
};
use servicekit::{Env, Instant};
use tempfile::TempDir;

use crate::parent::{SCRIPT, Script};

const MARK: &str = "SERVICEKIT_TEST_MARK";
/// Far longer than anything takes, on any machine.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// Everything that one test starts: marked by a variable that all its processes inherit.
pub(crate) struct World {
    pub(crate) env: Env,
    pub(crate) folder: TempDir,
    mark: String,
    pub(crate) parent: Child,
}

/// A process of the test.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    pub(crate) state: String,
    pub(crate) is_guard: bool,
}

impl World {
    /// A parent that runs `sh -c code` under a lease, in an empty folder.
    pub(crate) fn new(script: &Script, code: &str) -> Self {
        Self::with(script, &["sh", "-c", code], |_| {})
    }

    pub(crate) fn with(
        script: &Script,
        command: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        let mut parent = Command::new(std::env::current_exe().unwrap());
        parent.arg("parent").args(command);
        Self::of(script, parent, prepare)
    }

    /// Whatever `parent` is, with the surroundings that it needs.
    pub(crate) fn of(
        script: &Script,
        mut parent: Command,
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        let env = Env::system();
        let folder = tempfile::tempdir().unwrap();
        let mark = env.random.id();
        parent
            .current_dir(folder.path())
            .env(SCRIPT, serde_json::to_string(script).unwrap())
            .env(MARK, &mark)
            .stdin(Stdio::null());
        prepare(&mut parent);
        let parent = parent.spawn().unwrap();
        Self { env, folder, mark, parent }
    }

    pub(crate) fn now(&self) -> Instant {
        self.env.clock.now()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    pub(crate) fn parent_pid(&self) -> Pid {
        Pid::from_raw(self.parent.id().cast_signed()).unwrap()
    }

    /// Every process that is left, but the parent; those that have ended and only wait to be seen do not count.
    pub(crate) fn left(&self) -> Vec<Process> {
        let mark = format!("{MARK}={}", self.mark);
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let processes = pids.filter_map(|pid: i32| {
            let folder = PathBuf::from(format!("/proc/{pid}"));
            let environ = fs::read(folder.join("environ")).ok()?;
            let marked = environ.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes());
            let status = fs::read_to_string(folder.join("status")).ok()?;
            let field =
                |name| status.lines().find_map(|line| Some(line.strip_prefix(name)?.trim()));
            let process = Process {
                pid: Pid::from_raw(pid)?,
                state: field("State:")?.to_owned(),
                is_guard: field("Name:")? == "sk-guard",
            };
            (marked && process.pid != self.parent_pid() && !process.state.starts_with('Z'))
                .then_some(process)
        });
        processes.collect()
    }

    pub(crate) fn guard(&self) -> Option<Pid> {
        self.left().iter().find(|process| process.is_guard).map(|process| process.pid)
    }

    /// How many of the child's own processes are left.
    pub(crate) fn children(&self) -> usize {
        self.left().iter().filter(|process| !process.is_guard).count()
    }

    pub(crate) fn signal_parent(&self, signal: Signal) {
        kill_process(self.parent_pid(), signal).unwrap();
    }

    pub(crate) async fn wait_for(&self, what: &str, condition: impl FnMut() -> bool) {
        self.wait_within(LONG, what, condition).await;
    }

    pub(crate) async fn wait_within(
        &self,
        limit: Duration,
        what: &str,
        mut condition: impl FnMut() -> bool,
    ) {
        let limit = self.now() + limit;
        while !condition() {
            assert!(self.now() < limit, "{what}: not in time; left are {:?}", self.left());
            self.pause().await;
        }
    }

    /// Waits until the child has made the file `ready`.
    pub(crate) async fn ready(&self) {
        let ready = self.path("ready");
        self.wait_for("the child is ready", || ready.exists()).await;
    }

    /// Waits until nobody is left, and stays away: a process that just executes a program shows no mark for a moment.
    pub(crate) async fn nobody_is_left(&self, limit: Duration) {
        let mut looks = 0;
        let gone = || {
            looks = if self.left().is_empty() { looks + 1 } else { 0 };
            looks == 10
        };
        self.wait_within(limit, "nobody is left", gone).await;
    }

    /// The status that the parent ends with; everything must be gone by then.
    pub(crate) async fn ends(&mut self) -> i32 {
        let limit = self.now() + LONG;
        loop {
            if let Some(status) = self.parent.try_wait().unwrap() {
                self.nobody_is_left(Duration::from_secs(2)).await;
                return status.code().expect("the parent ended by itself");
            }
            assert!(self.now() < limit, "the parent did not end; left are {:?}", self.left());
            self.pause().await;
        }
    }

    pub(crate) async fn kill_parent(&mut self) {
        self.parent.kill().unwrap();
        self.parent.wait().unwrap();
    }

    pub(crate) async fn pause(&self) {
        self.env.clock.sleep(Duration::from_millis(10)).await;
    }

    /// The cgroup of the guard, if there is one.
    pub(crate) fn cgroup(&self) -> Option<PathBuf> {
        let guard = self.guard()?.as_raw_pid();
        let entries = fs::read_dir(home_cgroup()?).ok()?.flatten().map(|entry| entry.path());
        let prefix = format!("servicekit-{guard}-");
        let ours =
            |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(&prefix);
        entries.into_iter().find(ours)
    }
}

/// Whatever went wrong, a test leaves nothing running. A guard is given time to do that itself.
impl Drop for World {
    fn drop(&mut self) {
        let _ = self.parent.kill();
        let _ = self.parent.wait();
        let patience = self.now() + Duration::from_secs(5);
        loop {
            let left = self.left();
            if left.is_empty() {
                return;
            }
            if self.now() > patience || !left.iter().any(|process| process.is_guard) {
                for process in left {
                    let _ = kill_process(process.pid, Signal::KILL);
                }
            }
            let pause = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
            let _ = nanosleep(&pause);
        }
    }
}

/// Where this process's cgroup is, if others can be made below it.
pub(crate) fn home_cgroup() -> Option<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    let home = Path::new(mount.split(' ').nth(4)?).join(path);
    let probe = home.join(format!("probe-{}", Env::system().random.id()));
    fs::create_dir(&probe).ok()?;
    let usable = probe.join("cgroup.kill").exists();
    fs::remove_dir(&probe).ok()?;
    usable.then_some(home)
}
