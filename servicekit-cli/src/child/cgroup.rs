//! A cgroup (version 2) around the child: what is in it can be ended also when its guard and the guard's parent are dead.
//!
//! The guard keeps its cgroup's folder locked. Who finds such a folder and gets the lock knows that its guard is dead, whatever
//! process numbers mean in this container.

use std::{
    ffi::OsStr,
    fs::{self, File, Permissions, TryLockError},
    io,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
    time::Duration,
};

use servicekit::Clock;

use super::PAUSE;

const PREFIX: &str = "servicekit-";
/// The sticky bit means nothing in this file system. Here it says that a folder's processes run on: its guard let go of them.
const RELEASED: u32 = 0o1000;
/// How deep cgroups are looked for.
const DEPTH: usize = 16;
/// How long the processes of dead guards may take to end; one that hangs in the kernel must not hold up the next.
const PATIENCE: Duration = Duration::from_secs(2);

/// The cgroup of one guard.
#[derive(Debug)]
pub(super) struct Cgroup {
    folder: PathBuf,
    home: PathBuf,
    /// What moves this process out of it, once that has begun.
    leaving: Option<JoinHandle<()>>,
    _lock: File,
}

/// Ends what earlier guards of this host left behind: those that were killed together with their parent, where a writable
/// cgroup v2 was there. Returns how many there were.
///
/// Waits until their processes have ended, or for two seconds. What it may not see or end, it leaves.
///
/// # Cancel safety
///
/// Dropping the future leaves some for the next call.
pub async fn end_leftovers(clock: &dyn Clock) -> usize {
    let folders = mount().map(|mount| groups(&mount.point)).unwrap_or_default();
    let mut ending: Vec<_> = folders.into_iter().filter_map(end_leftover).collect();
    let ended = ending.len();
    let limit = clock.now() + PATIENCE;
    loop {
        ending.retain(|(folder, _lock)| remove(folder).is_err());
        if ending.is_empty() || clock.now() >= limit {
            return ended;
        }
        clock.sleep(PAUSE).await;
    }
}

/// Kills what is in a folder whose guard is dead, and keeps it locked.
fn end_leftover(folder: PathBuf) -> Option<(PathBuf, File)> {
    let lock = lock(&folder).ok()??;
    if is_released(&folder) {
        if is_empty(&folder) {
            let _ = remove(&folder);
        }
        return None;
    }
    kill(&folder).ok()?;
    Some((folder, lock))
}

impl Cgroup {
    /// A new cgroup below that of this process, and this process in it, so that what it starts begins there. Any error
    /// means: do without.
    ///
    /// Moving takes the kernel some milliseconds, for as long as it waits for all processors.
    pub(super) fn enter(clock: &dyn Clock) -> io::Result<Self> {
        let home = home().ok_or(io::ErrorKind::Unsupported)?;
        // Who ends leftovers may take one that is not locked yet for such, and remove it.
        for _ in 0..10 {
            let folder = home.join(name(clock));
            fs::create_dir(&folder)?;
            let lock = lock(&folder);
            if let Ok(Some(lock)) = lock
                && folder.join("cgroup.kill").exists()
                && join(&folder, b"0").is_ok()
            {
                return Ok(Self { folder, home, leaving: None, _lock: lock });
            }
            let _ = remove(&folder);
        }
        // Linux before 5.14 cannot end a cgroup as one.
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Begins to move this process out again, beside what else it does; what it has started stays.
    pub(super) fn leave(&mut self) {
        let home = self.home.clone();
        // Until it is done, and where it fails, the guard ends with what it guards; and its parent sees to the rest.
        let leave = thread::Builder::new().spawn(move || drop(join(&home, b"0")));
        self.leaving = leave.ok();
    }

    pub(super) fn kill(&self) -> io::Result<()> {
        kill(&self.folder)
    }

    /// Lets go of the processes in it, and removes it, unless the child has made others below it, which it keeps.
    pub(super) fn release(self) {
        if fs::set_permissions(&self.folder, Permissions::from_mode(0o755 | RELEASED)).is_err() {
            tracing::debug!(folder = %self.folder.display(), "cannot be marked");
        }
        // One that starts another just then may leave a new one behind; a cgroup with processes cannot be removed.
        for _ in 0..100 {
            let members = fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default();
            for pid in members.lines() {
                let _ = join(&self.home, pid.as_bytes());
            }
            if fs::remove_dir(&self.folder).is_ok() || !folders(&self.folder).is_empty() {
                return;
            }
        }
    }

    /// Removes it when nobody else is in it.
    pub(super) fn remove(mut self) {
        if self.leaving.is_none() {
            self.leave();
        }
        let _ = self.leaving.map(JoinHandle::join);
        let _ = remove(&self.folder);
    }
}

fn join(folder: &Path, pid: &[u8]) -> io::Result<()> {
    fs::write(folder.join("cgroup.procs"), pid)
}

fn kill(folder: &Path) -> io::Result<()> {
    fs::write(folder.join("cgroup.kill"), b"1")
}

/// `None` when somebody else has it.
fn lock(folder: &Path) -> io::Result<Option<File>> {
    let file = File::open(folder)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// With those below it: the child may have made some of its own.
fn remove(folder: &Path) -> io::Result<()> {
    for below in folders(folder) {
        remove(&below)?;
    }
    fs::remove_dir(folder)
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.path()).collect()
}

fn is_released(folder: &Path) -> bool {
    fs::metadata(folder).is_ok_and(|of| of.permissions().mode() & RELEASED != 0)
}

/// Whether no process is in it, nor below it.
fn is_empty(folder: &Path) -> bool {
    let events = fs::read_to_string(folder.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "populated 0")
}

/// A name that only a guard gives.
fn name(clock: &dyn Clock) -> String {
    format!("{PREFIX}{}-{}", std::process::id(), clock.now().since_boot().as_nanos())
}

/// Whether it is such a name. A unit of systemd may be called servicekit-something, too: what is in that is not ours to end.
fn is_ours(name: &OsStr) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let numbers = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split_once('-'));
    numbers.is_some_and(|(id, time)| number(id) && number(time))
}

/// The cgroups of guards, at any depth.
fn groups(top: &Path) -> Vec<PathBuf> {
    let mut groups = Vec::new();
    let mut level = vec![top.to_owned()];
    for _ in 0..DEPTH {
        let below: Vec<PathBuf> = level.iter().flat_map(|folder| folders(folder)).collect();
        groups
            .extend(below.iter().filter(|folder| folder.file_name().is_some_and(is_ours)).cloned());
        level = below;
    }
    groups
}

/// Where version 2 is mounted, and which part of the hierarchy is seen there.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    root: PathBuf,
    point: PathBuf,
}

fn mount() -> Option<Mount> {
    parse_mount(&fs::read("/proc/self/mountinfo").ok()?)
}

/// The folder of this process's own cgroup.
fn home() -> Option<PathBuf> {
    let mount = mount()?;
    let path = parse_path(&fs::read("/proc/self/cgroup").ok()?)?;
    Some(mount.point.join(path.strip_prefix(mount.root).ok()?))
}

/// The line of version 2 is `0::/path`.
fn parse_path(cgroup: &[u8]) -> Option<PathBuf> {
    let line = cgroup.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::"))?;
    Some(PathBuf::from(OsStr::from_bytes(line)))
}

/// A line is `36 35 98:0 /root /point options [optional …] - type source options`.
fn parse_mount(mountinfo: &[u8]) -> Option<Mount> {
    mountinfo.split(|byte| *byte == b'\n').find_map(|line| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let dash = fields.iter().position(|field| *field == b"-")?;
        (*fields.get(dash + 1)? == b"cgroup2").then_some(())?;
        let path = |index: usize| Some(PathBuf::from(OsStr::from_bytes(fields.get(index)?)));
        Some(Mount { root: path(3)?, point: path(4)? })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_among_others() {
        let hybrid = b"31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            32 31 0:29 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:10 master:2 - cgroup2 cgroup2 rw\n";
        let found = parse_mount(hybrid).unwrap();
        assert_eq!(found.point, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(found.root, Path::new("/"));
        assert_eq!(parse_mount(b"31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"), None);
        assert_eq!(parse_mount(b"- cgroup2"), None);
        assert_eq!(parse_mount(b""), None);
    }

    #[test]
    fn only_what_a_guard_has_named_is_ours() {
        let env = servicekit::Env::system();
        assert!(is_ours(OsStr::new(&name(&*env.clock))));
        for other in [
            "servicekit-watch.service",
            "servicekit-hosts@7.service",
            "servicekit-1-2.service",
            "servicekit-1-2.scope",
            "servicekit-1",
            "servicekit-1-",
            "servicekit--1",
            "servicekit-1-2-3",
            "servicekit",
            "x-servicekit-1-2",
        ] {
            assert!(!is_ours(OsStr::new(other)), "{other}");
        }
    }

    #[test]
    fn the_own_cgroup_is_the_line_of_version_2() {
        let path = parse_path(b"8:pids:/x\n0::/user.slice/a b\n").unwrap();
        assert_eq!(path, Path::new("/user.slice/a b"));
        assert_eq!(parse_path(b"8:pids:/x\n"), None);
    }
}
