//! What a doctor sees of the file: the only place that reads all of it.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::join;
use rusqlite::Connection;
use servicekit_core::{Doctor, Finding, Kind, Result, clock::timeout, store::Limits};

use crate::{
    alarm::Alarm,
    connect::SCHEMA,
    error::{Fault, busy},
    locks::Holder,
    place::{beside, file_system},
    records,
    store::{Local, off_thread},
};

/// Examines the file, and then what core examines of every store.
#[derive(Debug)]
pub(crate) struct FileDoctor {
    local: Local,
    next: Arc<dyn Doctor>,
    limits: Limits,
}

/// A log of this size is not being folded into the file.
const LARGE_LOG: u64 = 64 << 20;

/// Below this, the disk is about to be full.
const LITTLE_SPACE: u64 = 64 << 20;

impl FileDoctor {
    pub(crate) fn new(local: Local, next: Arc<dyn Doctor>, limits: Limits) -> Self {
        Self { local, next, limits }
    }

    /// Takes the way that every write takes.
    async fn write_lock(&self) -> Finding {
        let Local(inner) = &self.local;
        let path = &inner.place.path;
        let tried = timeout(&*inner.env.clock, self.limits.attempt, self.local.write(|_| Ok(())));
        match tried.await.unwrap_or_else(|_| Err(busy(path))) {
            Ok(()) => Finding::fine("write lock", "free"),
            Err(error) => {
                let remedy = match (error.kind(), Holder::of(path)) {
                    (Kind::Timeout, Some(Holder { process, what })) => format!(
                        "process {process} ({what}) holds it: let it go on (kill -CONT {process}), or end it"
                    ),
                    (Kind::Timeout, None) => {
                        format!("look at the processes that use it: fuser {}", path.display())
                    }
                    _ => "as the message says; until then nothing can be written".into(),
                };
                Finding::problem("write lock", error.message(), remedy)
            }
        }
    }

    async fn content(&self) -> Finding {
        let remedy =
            "stop what uses the file, then restore a backup, or move it away to begin anew";
        let Local(inner) = self.local.clone();
        let limit = self.limits.total;
        let clock = inner.env.clock.clone();
        let reading = off_thread(move || inner.with_connection(read_all));
        match timeout(&*clock, limit, reading).await {
            Ok(Ok((count, damage))) if damage.is_empty() => {
                Finding::fine("content", format!("{count} records, all whole"))
            }
            Ok(Ok((_, damage))) => Finding::problem("content", damage.join("; "), remedy),
            Ok(Err(error)) => Finding::problem("content", error.message(), remedy),
            Err(_) => Finding::warning(
                "content",
                format!("not read to its end within {limit:?}"),
                "give it more time, with a longer time-out for the store",
            ),
        }
    }
}

#[async_trait]
impl Doctor for FileDoctor {
    /// All at once, each within its own limit: what cannot be had keeps nothing else from being told.
    async fn examine(&self) -> Vec<Finding> {
        let local = self.local.clone();
        let around = off_thread(move || Ok(around(&local)));
        let (around, lock, content, more) =
            join!(around, self.write_lock(), self.content(), self.next.examine());
        let mut findings = around.unwrap_or_else(|error| {
            vec![Finding::problem("file", error.to_string(), "report this to servicekit's authors")]
        });
        findings.extend([lock, content]);
        findings.extend(more);
        findings
    }

    async fn set_up(&self) -> Vec<Finding> {
        self.next.set_up().await
    }
}

/// What can be told without the locks of the file.
fn around(local: &Local) -> Vec<Finding> {
    let path = local.path();
    vec![
        file(local, path),
        permissions(path),
        machine(local),
        clock(local),
        log(path),
        space(path),
        waking(path),
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

fn waking(path: &Path) -> Finding {
    match Alarm::set(path) {
        Ok(_) => Finding::fine("waking", "who waits sleeps until the file is written"),
        Err(error) => Finding::warning(
            "waking",
            format!("who waits has to look 25 times a second: {error}"),
            "raise the limit of this user: sysctl fs.inotify.max_user_instances=1024",
        ),
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
    fn sizes_are_readable() {
        for (count, text) in
            [(0, "0 bytes"), (4096, "4 KiB"), (5 << 20, "5 MiB"), (79 << 30, "79 GiB")]
        {
            assert_eq!(bytes(count), text);
        }
    }
}
