//! Being woken when somebody writes to the log, so that nobody who waits has to ask all the time.

use std::{io, os::fd::OwnedFd, path::Path};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::{Interest, unix::AsyncFd};

/// Rings when somebody writes to a file; the commit that this belongs to may show only later.
#[derive(Debug)]
pub(crate) struct Alarm(AsyncFd<OwnedFd>);

impl Alarm {
    /// Watches a file that is there. The system allows a user only so many alarms (128, mostly).
    // Its replacement is `unsafe`, for types that may close their descriptor meanwhile; an `OwnedFd` does not.
    #[expect(deprecated, reason = "sound for an OwnedFd, and the replacement is unsafe")]
    pub(crate) fn set(path: &Path) -> io::Result<Self> {
        let notices = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        inotify::add_watch(&notices, path, WatchFlags::MODIFY)?;
        Ok(Self(AsyncFd::with_interest(notices, Interest::READABLE)?))
    }

    /// Waits until it rings.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn ring(&self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }

    /// Whether it rang since this was asked last.
    pub(crate) fn rang(&self) -> bool {
        let mut buffer = [0; 4096];
        let mut rang = false;
        while self.0.try_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut buffer)?)).is_ok()
        {
            rang = true;
        }
        rang
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::OpenOptions, os::unix::fs::FileExt as _};

    use super::*;

    #[tokio::test]
    async fn it_rings_for_each_write_and_not_without_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let Ok(alarm) = Alarm::set(file.path()) else {
            return eprintln!(
                "SKIPPED: other programs of this user have set all the alarms there are"
            );
        };
        assert!(!alarm.rang());
        let writer = OpenOptions::new().write(true).open(file.path()).unwrap();
        for _ in 0..3 {
            writer.write_at(b"x", 0).unwrap();
            alarm.ring().await.unwrap();
            assert!(alarm.rang());
            assert!(!alarm.rang());
        }
    }

    #[tokio::test]
    async fn a_file_that_is_not_there_has_none() {
        assert!(Alarm::set(Path::new("/nowhere/at/all")).is_err());
    }
}
