//! What a doctor sees of the file: the only place that reads all of it.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use rusqlite::Connection;
use servicekit_core::{Doctor, Finding, Result};

use crate::{
    alarm::Alarm,
    connect::SCHEMA,
    error::Fault,
    place::{beside, file_system},
    records,
    store::{Local, off_thread},
};

/// Examines the file, and then what core examines of every store.
#[derive(Debug)]
pub(crate) struct FileDoctor {
    local: Local,
    next: Arc<dyn Doctor>,
}

/// A log of this size is not being folded into the file.
const LARGE_LOG: u64 = 64 << 20;

/// Below this, the disk is about to be full.
const LITTLE_SPACE: u64 = 64 << 20;

impl FileDoctor {
    pub(crate) fn new(local: Local, next: Arc<dyn Doctor>) -> Self {
        Self { local, next }
    }
}

#[async_trait]
impl Doctor for FileDoctor {
    async fn examine(&self) -> Vec<Finding> {
        let local = self.local.clone();
        let examined = off_thread(move || Ok(examine(&local))).await;
        let mut findings = examined.unwrap_or_else(|error| {
            vec![Finding::problem("file", error.to_string(), "report this to servicekit's authors")]
        });
        findings.extend(self.next.examine().await);
        findings
    }
}

fn examine(local: &Local) -> Vec<Finding> {
    let path = local.path();
    vec![
        file(local, path),
        permissions(path),
        machine(local),
        clock(local),
        log(path),
        space(path),
        writable(local, path),
        waking(path),
        content(local),
    ]
}

fn file(local: &Local, path: &Path) -> Finding {
    if let Err(error) = local.0.place.check() {
        return Finding::problem(
            "file",
            error.message(),
            "stop every process that uses it, then start them again",
        );
    }
    let (name, size) = (path.display(), size(path));
    let kind = file_system(path);
    Finding::fine("file", format!("{name}, {}, layout {SCHEMA}, on {kind}", bytes(size)))
}

fn permissions(path: &Path) -> Finding {
    match fs::metadata(path).map(|file| file.mode() & 0o777) {
        Ok(mode) if mode & 0o077 == 0 => Finding::fine("permissions", format!("{mode:04o}")),
        Ok(mode) => Finding::warning(
            "permissions",
            format!("{mode:04o}: other users can read or change the store"),
            format!("chmod 600 {0} {0}-*", path.display()),
        ),
        Err(error) => Finding::problem("permissions", error.to_string(), "put the file back"),
    }
}

fn machine(local: &Local) -> Finding {
    match &local.0.host.machine {
        Some(machine) => Finding::fine("machine", machine.as_str()),
        None => Finding::warning(
            "machine",
            "nothing tells which machine this is, so that a file of another one would not be noticed",
            "give the container the host's /etc/machine-id, read-only",
        ),
    }
}

fn clock(local: &Local) -> Finding {
    let up = local.0.env.clock.now().since_boot();
    let up = Duration::from_secs(up.as_secs());
    Finding::fine("clock", format!("the host's boot clock, at {up:?}, boot {}", local.0.host.boot))
}

fn log(path: &Path) -> Finding {
    let size = size(&beside(path, "-wal"));
    if size < LARGE_LOG {
        return Finding::fine("log", bytes(size));
    }
    Finding::warning(
        "log",
        format!(
            "{}: somebody has been reading the file for long, and keeps it from shrinking",
            bytes(size)
        ),
        format!("find and end who does: fuser {}", path.display()),
    )
}

fn space(path: &Path) -> Finding {
    match rustix::fs::statvfs(path.parent().unwrap_or(path)) {
        Ok(disk) => {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            let detail = format!("{} free", bytes(free));
            if free < LITTLE_SPACE {
                let remedy = "make room on this disk; a full one stops every write";
                return Finding::warning("disk", detail, remedy);
            }
            Finding::fine("disk", detail)
        }
        Err(error) => Finding::problem("disk", error.to_string(), "look into the kernel's log"),
    }
}

fn writable(local: &Local, path: &Path) -> Finding {
    let tried = local.0.with_connection(|conn| {
        records::run(conn, "BEGIN IMMEDIATE")?;
        Ok(records::run(conn, "ROLLBACK")?)
    });
    match tried {
        Ok(()) => Finding::fine("write lock", "free"),
        Err(error) => Finding::problem("write lock", error.message(), lock_remedy(path)),
    }
}

fn lock_remedy(path: &Path) -> String {
    let holder = fs::metadata(beside(path, "-shm")).ok().and_then(|shared| {
        let locks = fs::read_to_string("/proc/locks").ok()?;
        holder(&locks, shared.ino())
    });
    match holder {
        Some(process) => format!("look at process {process}, which holds it: ps -fp {process}"),
        None => format!("look at the processes that use it: fuser {}", path.display()),
    }
}

/// The process that holds SQLite's write lock: byte 120 of the shared memory.
fn holder(locks: &str, inode: u64) -> Option<String> {
    let inode = format!(":{inode}");
    locks.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let [_, "POSIX", _, "WRITE", process, file, "120", _] = words[..] else { return None };
        file.ends_with(&inode).then(|| process.to_owned())
    })
}

fn waking(path: &Path) -> Finding {
    match Alarm::set(path) {
        Ok(_) => Finding::fine("waking", "who waits sleeps until the file is written"),
        Err(error) => Finding::warning(
            "waking",
            format!("who waits has to look 50 times a second: {error}"),
            "raise the limit of this user: sysctl fs.inotify.max_user_instances=1024",
        ),
    }
}

fn content(local: &Local) -> Finding {
    let remedy = "stop what uses the file, then restore a backup, or move it away to begin anew";
    match local.0.with_connection(read_all) {
        Ok((count, damage)) if damage.is_empty() => {
            Finding::fine("content", format!("{count} records, all whole"))
        }
        Ok((_, damage)) => Finding::problem("content", damage.join("; "), remedy),
        Err(error) => Finding::problem("content", error.message(), remedy),
    }
}

fn read_all(conn: &Connection) -> Result<(usize, Vec<String>), Fault> {
    let mut check = conn.prepare("PRAGMA quick_check(5)")?;
    let said = check.query_map([], |row| row.get::<_, String>(0))?;
    let mut damage = said.collect::<rusqlite::Result<Vec<_>>>()?;
    damage.retain(|line| line != "ok");
    let (count, records) = records::inspect(conn)?;
    damage
        .extend(records.into_iter().take(5).map(|name| format!("{name} is not what was written")));
    Ok((count, damage))
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

fn bytes(count: u64) -> String {
    match count {
        0..1024 => format!("{count} bytes"),
        1024..0x10_0000 => format!("{} KiB", count >> 10),
        0x10_0000..0x4000_0000 => format!("{} MiB", count >> 20),
        _ => format!("{} GiB", count >> 30),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_the_write_lock_is_found() {
        let locks = "1: POSIX  ADVISORY  READ  700 fe:00:4711 124 124\n\
                     2: POSIX  ADVISORY  WRITE 801 fe:00:4711 120 120\n\
                     2: -> POSIX  ADVISORY  WRITE 802 fe:00:4711 120 120\n\
                     3: POSIX  ADVISORY  WRITE 900 fe:00:14711 120 120\n";
        assert_eq!(holder(locks, 4711).as_deref(), Some("801"));
        assert_eq!(holder(locks, 1), None);
        assert_eq!(holder("", 4711), None);
    }

    #[test]
    fn sizes_are_readable() {
        for (count, text) in
            [(0, "0 bytes"), (4096, "4 KiB"), (5 << 20, "5 MiB"), (79 << 30, "79 GiB")]
        {
            assert_eq!(bytes(count), text);
        }
    }
}
