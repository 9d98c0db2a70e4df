//! A cgroup (version 2) around the child: what is in it can be ended also when its guard and the guard's parent are dead.
//!
//! The guard keeps its cgroup's folder locked. Who finds such a folder and gets the lock knows that its guard is dead, whatever
//! process numbers mean in this container.

use std::{
    ffi::OsStr,
    fs::{self, File, TryLockError},
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use servicekit::Clock;

use super::PAUSE;

const PREFIX: &str = "servicekit-";
/// How deep cgroups are looked for.
const DEPTH: usize = 16;
/// How long the processes of one dead guard may take to end; one that hangs in the kernel must not hold up the next.
const PATIENCE: Duration = Duration::from_secs(2);

/// The cgroup of one guard.
#[derive(Debug)]
pub(super) struct Cgroup {
    folder: PathBuf,
    home: PathBuf,
    /// Whether this process is in it.
    inside: bool,
    _lock: File,
}

/// Ends what earlier guards of this host left behind: those that were killed together with their parent, where a writable
/// cgroup v2 was there. Returns how many there were.
///
/// Waits until their processes have ended, or for two seconds each. What it may not see or end, it leaves.
///
/// # Cancel safety
///
/// Dropping the future leaves some for the next call.
pub async fn end_leftovers(clock: &dyn Clock) -> usize {
    let mut ended = 0;
    for folder in mount().map(|mount| groups(&mount.point)).unwrap_or_default() {
        let Ok(Some(_lock)) = lock(&folder) else { continue };
        if kill(&folder).is_err() {
            continue;
        }
        let limit = clock.now() + PATIENCE;
        while remove(&folder).is_err() && clock.now() < limit {
            clock.sleep(PAUSE).await;
        }
        ended += 1;
    }
    ended
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
            let now = clock.now().since_boot().as_nanos();
            let folder = home.join(format!("{PREFIX}{}-{now}", std::process::id()));
            fs::create_dir(&folder)?;
            let lock = lock(&folder);
            if let Ok(Some(lock)) = lock
                && folder.join("cgroup.kill").exists()
                && join(&folder, b"0").is_ok()
            {
                return Ok(Self { folder, home, inside: true, _lock: lock });
            }
            let _ = remove(&folder);
        }
        // Linux before 5.14 cannot end a cgroup as one.
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Moves this process out again; what it has started stays.
    pub(super) fn leave(&mut self) {
        // Where this fails, the guard ends with what it guards; and its parent sees to the rest.
        self.inside = self.inside && join(&self.home, b"0").is_err();
    }

    pub(super) fn kill(&self) -> io::Result<()> {
        kill(&self.folder)
    }

    /// Lets go of the processes in it, and removes it.
    pub(super) fn release(self) {
        // One that starts another just then may leave a new one behind; a cgroup with processes cannot be removed.
        for _ in 0..100 {
            let members = fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default();
            for pid in members.lines() {
                let _ = join(&self.home, pid.as_bytes());
            }
            if remove(&self.folder).is_ok() {
                return;
            }
        }
    }

    /// Removes it when nobody else is in it.
    pub(super) fn remove(mut self) {
        self.leave();
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

/// The cgroups of guards, at any depth.
fn groups(top: &Path) -> Vec<PathBuf> {
    let mut groups = Vec::new();
    let mut level = vec![top.to_owned()];
    for _ in 0..DEPTH {
        let below: Vec<PathBuf> = level.iter().flat_map(|folder| folders(folder)).collect();
        let ours = |folder: &&PathBuf| {
            folder.file_name().is_some_and(|name| name.as_bytes().starts_with(PREFIX.as_bytes()))
        };
        groups.extend(below.iter().filter(ours).cloned());
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
    fn the_own_cgroup_is_the_line_of_version_2() {
        let path = parse_path(b"8:pids:/x\n0::/user.slice/a b\n").unwrap();
        assert_eq!(path, Path::new("/user.slice/a b"));
        assert_eq!(parse_path(b"8:pids:/x\n"), None);
    }
}
