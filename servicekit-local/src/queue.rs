//! The queue of writers of all processes: who came first writes first.
//!
//! SQLite has no queue: who finds the lock taken sleeps for a while and tries again, longer each time, so that among
//! hundreds somebody starves. Here all but one sleep in the kernel, in the order in which they came (`flock` keeps it), and
//! only the one at the head tries for SQLite's lock, often. The queue makes it fair; SQLite's lock makes it right.

use std::{
    fs::{File, OpenOptions, Permissions, TryLockError},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use servicekit_core::Result;

use crate::{
    error::{busy, from_io},
    place::beside,
};

/// One handle's way into the queue. Its callers take turns.
#[derive(Debug)]
pub(crate) struct Queue {
    store: PathBuf,
    path: PathBuf,
    file: Mutex<Option<Arc<File>>>,
    turn: Arc<Turn>,
}

#[derive(Debug, Default)]
struct Turn {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Whether a thread stands in the kernel's queue, perhaps for somebody who gave up meanwhile.
    standing: bool,
    /// Whether anybody waits for that thread's turn; a turn must not lie about.
    wanted: bool,
    /// Whether its turn has come.
    granted: bool,
}

/// The head of the queue; dropping it lets the next one in.
#[derive(Debug)]
pub(crate) struct Head(Arc<File>);

impl Queue {
    /// The queue for the store in `path`; its file is made when somebody enters.
    pub(crate) fn new(path: &Path) -> Self {
        let (file, turn) = (Mutex::default(), Arc::default());
        Self { store: path.into(), path: beside(path, "-queue"), file, turn }
    }

    /// Waits, blocking, until all who came before are through.
    pub(crate) fn enter(&self, patience: Duration) -> Result<Head> {
        let file = self.file()?;
        let mut state = self.turn.lock();
        if !state.standing {
            match file.try_lock() {
                Ok(()) => return Ok(Head(file)),
                Err(TryLockError::WouldBlock) => stand(file.clone(), self.turn.clone()),
                Err(TryLockError::Error(error)) => Err(error),
            }
            .map_err(|error| from_io(error, "use the queue in", &self.path))?;
            state.standing = true;
        }
        state.wanted = true;
        let waited = self.turn.changed.wait_timeout_while(state, patience, |state| state.standing);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.wanted = false;
        if std::mem::take(&mut state.granted) { Ok(Head(file)) } else { Err(busy(&self.store)) }
    }

    fn file(&self) -> Result<Arc<File>> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*file {
            return Ok(file.clone());
        }
        let opened = open(&self.path, &self.store);
        let opened = opened.map_err(|error| from_io(error, "open", &self.path))?;
        Ok(file.insert(Arc::new(opened)).clone())
    }
}

impl Turn {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Head {
    fn drop(&mut self) {
        // Closing the file would do the same; nothing is left to tell anybody.
        let _ = self.0.unlock();
    }
}

/// Blocks a thread of its own in the kernel's queue: a wait for `flock` cannot be given a time-out.
fn stand(file: Arc<File>, turn: Arc<Turn>) -> io::Result<()> {
    let wait = move || {
        let locked = loop {
            match file.lock() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                locked => break locked.is_ok(),
            }
        };
        let mut state = turn.lock();
        state.standing = false;
        state.granted = locked && state.wanted;
        if locked && !state.granted {
            let _ = file.unlock();
        }
        turn.changed.notify_all();
    };
    let thread = thread::Builder::new().name("servicekit-queue".into()).stack_size(64 << 10);
    thread.spawn(wait).map(drop)
}

/// Opens the queue's file; who makes it gives it the store's owner and permissions.
fn open(path: &Path, store: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    let like = std::fs::metadata(store)?;
    let file = options.create(true).truncate(false).open(path)?;
    file.set_permissions(Permissions::from_mode(like.mode() & 0o666))?;
    if file.metadata()?.uid() != like.uid() {
        fchown(&file, Some(like.uid()), Some(like.gid()))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use servicekit_core::{Kind, Retry};

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    fn queues<const N: usize>() -> (tempfile::TempDir, [Queue; N]) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.db");
        std::fs::write(&path, "").unwrap();
        (folder, std::array::from_fn(|_| Queue::new(&path)))
    }

    #[test]
    fn one_is_at_the_head_and_the_next_follows_it() {
        let (_folder, [one, two]) = queues();
        let head = one.enter(LONG).unwrap();
        let second = thread::spawn(move || two.enter(LONG).map(drop));
        drop(head);
        second.join().unwrap().unwrap();
    }

    #[test]
    fn who_gives_up_takes_no_turn_from_others() {
        let (_folder, [one, two, three]) = queues();
        let head = one.enter(LONG).unwrap();
        let error = two.enter(Duration::from_millis(10)).unwrap_err();
        assert_eq!((error.kind(), error.retry()), (Kind::Timeout, Retry::Safe));
        drop(head);
        drop(three.enter(LONG).unwrap());
        drop(two.enter(LONG).unwrap());
        drop(one.enter(LONG).unwrap());
    }

    #[test]
    fn who_gave_up_and_tries_again_stands_there_once() {
        let (_folder, [one, two]) = queues();
        let head = one.enter(LONG).unwrap();
        for _ in 0..20 {
            two.enter(Duration::from_millis(1)).unwrap_err();
        }
        assert!(two.turn.lock().standing);
        let again = thread::spawn(move || two.enter(LONG).map(drop));
        drop(head);
        again.join().unwrap().unwrap();
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "waits in real time for threads that block")]
    fn many_get_through_in_the_order_in_which_they_came() {
        let (_folder, [first, queues @ ..]) = queues::<9>();
        let order = Arc::new(Mutex::new(Vec::new()));
        let head = first.enter(LONG).unwrap();
        let inode = std::fs::metadata(&first.path).unwrap().ino();
        let threads = queues.into_iter().enumerate().map(|(place, queue)| {
            let (order, turn) = (order.clone(), queue.turn.clone());
            let thread = thread::spawn(move || {
                let _head = queue.enter(LONG).unwrap();
                order.lock().unwrap().push(place);
            });
            while !turn.lock().standing {
                thread::yield_now();
            }
            while waiting(inode) < place + 1 {
                // Reading the list stops all locking on this host.
                thread::sleep(Duration::from_millis(2));
            }
            thread
        });
        let threads: Vec<_> = threads.collect();
        drop(head);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(*order.lock().unwrap(), (0..8).collect::<Vec<_>>());
    }

    /// How many wait for the `flock` of this file: `N: -> FLOCK … :INODE …`, one line each.
    fn waiting(inode: u64) -> usize {
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        let here = format!(":{inode} ");
        locks.lines().filter(|line| line.contains("-> FLOCK") && line.contains(&here)).count()
    }
}
