//! Who keeps others waiting: what the kernel tells about the locks on a store.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use crate::place::beside;

/// A process that holds a lock which others wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) process: u32,
    /// The program and what it does, such as `servicekit, stopped`; not its arguments, which may have a password.
    pub(crate) what: String,
}

impl Holder {
    /// Who keeps writers of this store waiting at this moment; `None` when nobody does, or nothing tells, as of a process
    /// in another container.
    ///
    /// For a doctor alone: while the kernel lists its locks, nobody on this host gets one, so that hundreds who ask
    /// bring it to a halt.
    pub(crate) fn of(store: &Path) -> Option<Self> {
        let locks = fs::read_to_string("/proc/locks").ok()?;
        let inode = |path: &Path| fs::metadata(path).ok().map(|file| file.ino());
        // The whole file, SQLite's write lock (byte 120 of the shared memory), the head of the queue.
        let process = inode(store)
            .and_then(|inode| find(&locks, "POSIX", inode, None))
            .or_else(|| find(&locks, "POSIX", inode(&beside(store, "-shm"))?, Some(120)))
            .or_else(|| find(&locks, "FLOCK", inode(&beside(store, "-queue"))?, None))?;
        // A lock may outlive the process that took it, in a child that inherited the file; that one nobody names.
        describe(process).map(|what| Self { process, what })
    }
}

/// The process that holds a lock of a kind for writing, on one byte or on any.
fn find(locks: &str, kind: &str, inode: u64, byte: Option<u64>) -> Option<u32> {
    let inode = format!(":{inode}");
    locks.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        // Who waits has an arrow before the kind.
        let [_, found, _, "WRITE", process, file, first, last] = words[..] else { return None };
        let last = last.parse().unwrap_or(u64::MAX);
        let covers = byte.is_none_or(|byte| (first.parse().unwrap_or(0)..=last).contains(&byte));
        if found == kind && file.ends_with(&inode) && covers { process.parse().ok() } else { None }
    })
}

fn describe(process: u32) -> Option<String> {
    let read = |what| fs::read_to_string(format!("/proc/{process}/{what}")).ok();
    let program = read("comm")?.trim().replace(char::is_control, "?");
    // The state comes after the program's name, which may have anything in it.
    Some(match read("stat")?.rsplit(')').next().and_then(|rest| rest.trim().chars().next()) {
        Some('T' | 't') => format!("{program}, stopped"),
        Some('D') => format!("{program}, waiting for the disk"),
        _ => program,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_found() {
        let locks = "1: POSIX  ADVISORY  READ  700 fe:00:4711 124 124\n\
                     1: -> POSIX  ADVISORY  WRITE  701 fe:00:4711 120 120\n\
                     2: POSIX  ADVISORY  WRITE 801 fe:00:4711 120 121\n\
                     3: POSIX  ADVISORY  WRITE 802 fe:00:14711 120 120\n\
                     4: FLOCK  ADVISORY  WRITE 803 fe:00:4712 0 EOF\n";
        assert_eq!(find(locks, "POSIX", 4711, Some(120)), Some(801));
        assert_eq!(find(locks, "POSIX", 4711, Some(122)), None);
        assert_eq!(find(locks, "POSIX", 4711, None), Some(801));
        assert_eq!(find(locks, "POSIX", 4712, None), None);
        assert_eq!(find(locks, "FLOCK", 4712, None), Some(803));
    }

    #[test]
    fn nobody_holds_what_is_not_there() {
        assert_eq!(Holder::of(Path::new("/nowhere/at/all.db")), None);
        assert_eq!(describe(0), None);
        assert!(!describe(std::process::id()).unwrap().is_empty());
    }
}
