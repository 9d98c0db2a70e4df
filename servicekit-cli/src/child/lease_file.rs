//! The file that tells the child its token and how long the lease stands.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use serde::Serialize;
use servicekit::{Env, Instant, Label, Timestamp, lease::Token};

use super::wire::Deadline;

const PREFIX: &str = "servicekit-lease-";

/// `SERVICEKIT_LEASE_FILE`: a JSON object `{"label","token","deadline","deadline_boottime_ns"}`, in a folder that only this
/// user can enter.
///
/// `deadline` is RFC 3339 by the wall clock, for people; `deadline_boottime_ns` is nanoseconds of `CLOCK_BOOTTIME`, for programs.
/// Readers see a whole file, the old or the new. Dropping it removes it.
#[derive(Debug)]
pub struct LeaseFile {
    env: Env,
    label: Label,
    token: Token,
    folder: PathBuf,
    path: PathBuf,
    /// Tells from a folder whose process was killed.
    _lock: File,
}

#[derive(Serialize)]
struct Content<'a> {
    label: &'a Label,
    token: Token,
    deadline: Timestamp,
    #[serde(rename = "deadline_boottime_ns")]
    boottime: Deadline,
}

impl LeaseFile {
    /// Writes the file for a lease that stands until `deadline`: below `/run/servicekit` for root, else below
    /// `XDG_RUNTIME_DIR`, else below the folder for temporary files. Files that killed processes left there are removed.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn create(env: &Env, label: &Label, token: Token, deadline: Instant) -> io::Result<Self> {
        Self::create_in(&base()?, env, label, token, deadline)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the deadline, after a renewal.
    ///
    /// # Errors
    ///
    /// Those of the file system; the file then stays as it was.
    pub fn renewed(&self, deadline: Instant) -> io::Result<()> {
        let clock = &self.env.clock;
        let content = Content {
            label: &self.label,
            token: self.token,
            deadline: clock.wall() + deadline.since(clock.now()),
            boottime: deadline.into(),
        };
        let new = self.folder.join("new");
        let mut file =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        let mut line = serde_json::to_vec(&content)?;
        line.push(b'\n');
        file.write_all(&line)?;
        fs::rename(new, &self.path)
    }

    fn create_in(
        base: &Path,
        env: &Env,
        label: &Label,
        token: Token,
        deadline: Instant,
    ) -> io::Result<Self> {
        remove_abandoned(base);
        let folder = base.join(format!("{PREFIX}{}", env.random.id()));
        DirBuilder::new().mode(0o700).create(&folder)?;
        let lock = File::open(&folder)?;
        // Waits at most for one who looks whether this folder is abandoned.
        lock.lock()?;
        let path = folder.join("lease.json");
        let (env, label) = (env.clone(), label.clone());
        let file = Self { env, label, token, folder, path, _lock: lock };
        file.renewed(deadline)?;
        Ok(file)
    }
}

impl Drop for LeaseFile {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn base() -> io::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        let folder = PathBuf::from("/run/servicekit");
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        return Ok(folder);
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    Ok(runtime.filter(|folder| folder.is_dir()).unwrap_or_else(std::env::temp_dir))
}

fn remove_abandoned(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        if !entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX)) {
            continue;
        }
        // Others may put anything under such a name where all may write: a pipe would be waited for.
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let mut options = File::options();
        let options = options.read(true).custom_flags(flags.bits().cast_signed());
        let Ok(lock) = options.open(entry.path()) else { continue };
        // One that is just being made is not locked yet; but then it is empty yet.
        if lock.try_lock().is_ok() && entry.path().join("lease.json").exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, time::Duration};

    use super::*;

    fn file_in(base: &Path) -> LeaseFile {
        let env = Env::system();
        let deadline = env.clock.now() + Duration::from_secs(60);
        LeaseFile::create_in(base, &env, &"web".parse().unwrap(), Token(7), deadline).unwrap()
    }

    fn read(file: &LeaseFile) -> serde_json::Value {
        serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap()
    }

    #[test]
    fn it_tells_label_token_and_deadline_on_both_clocks() {
        let base = tempfile::tempdir().unwrap();
        let file = file_in(base.path());
        let content = read(&file);
        assert_eq!(content["label"], "web");
        assert_eq!(content["token"], 7);
        let deadline: Timestamp = serde_json::from_value(content["deadline"].clone()).unwrap();
        let ahead = deadline.since(file.env.clock.wall());
        assert!(Duration::from_secs(50) < ahead && ahead <= Duration::from_secs(61), "{ahead:?}");

        let renewed = file.env.clock.now() + Duration::from_secs(90);
        file.renewed(renewed).unwrap();
        let boottime = u128::from(read(&file)["deadline_boottime_ns"].as_u64().unwrap());
        assert_eq!(boottime, renewed.since_boot().as_nanos());
    }

    #[test]
    fn only_its_owner_can_read_it_and_nothing_stays() {
        let base = tempfile::tempdir().unwrap();
        let file = file_in(base.path());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(file.path()), 0o600);
        assert_eq!(mode(&file.folder), 0o700);
        drop(file);
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_stands_is_not() {
        let base = tempfile::tempdir().unwrap();
        let standing = file_in(base.path());
        let left = base.path().join(format!("{PREFIX}left"));
        fs::create_dir(&left).unwrap();
        fs::write(left.join("lease.json"), "{}").unwrap();
        let other = base.path().join("other");
        fs::create_dir(&other).unwrap();
        let _second = file_in(base.path());
        assert!(!left.exists());
        assert!(other.exists());
        assert!(standing.path().exists());
    }

    #[test]
    fn what_others_put_there_is_not_waited_for() {
        let base = tempfile::tempdir().unwrap();
        let pipe = base.path().join(format!("{PREFIX}pipe"));
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).unwrap();
        let file = file_in(base.path());
        assert!(file.path().exists() && pipe.exists());
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error() {
        let env = Env::system();
        let nowhere = Path::new("/nonexistent");
        let label = "web".parse().unwrap();
        assert!(LeaseFile::create_in(nowhere, &env, &label, Token(1), env.clock.now()).is_err());
    }
}
