//! The folder of `--out`: four files that change all at once.
//!
//! The files are in a folder of their own, `.servicekit-…`, which the link `.servicekit` points to; `key.pem` and the others are
//! links through that one. A new set is written beside the old one, and comes into force when `.servicekit` is replaced.
//! Whatever ends this process, the four files are all the old ones or all the new ones.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use servicekit::pki::{Certificate, Facts};

use crate::report::Failure;

/// A folder that no other process changes meanwhile.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    lock: File,
}

/// What is known of the set: tells whether the store was put back.
#[derive(Serialize, Deserialize)]
struct Known {
    #[serde(flatten)]
    facts: Facts,
    revision: u64,
}

const NAMES: [&str; 4] = ["key.pem", "cert.pem", "chain.pem", "ca.pem"];
const KNOWN: &str = "certificate.json";
const CURRENT: &str = ".servicekit";
const NEXT: &str = ".servicekit.next";
const SET: &str = ".servicekit-";

impl Folder {
    /// Makes the folder where it is missing, for its owner alone, and waits until no other process writes to it.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let failed = |error| cannot("written", path, &error);
        if let Err(error) = DirBuilder::new().recursive(true).mode(0o700).create(path) {
            return Err(cannot("made", path, &error));
        }
        let path = fs::canonicalize(path).map_err(failed)?;
        let lock = File::open(&path).map_err(failed)?;
        lock.lock().map_err(failed)?;
        let folder = Self { path, lock };
        folder.refuse_foreign()?;
        // Tells whether it can be written before anything is issued. One that was written before is left as it is: others may
        // watch it.
        if fs::read_link(folder.path.join(CURRENT)).is_err() {
            drop(folder.new_set().map_err(failed)?);
        }
        Ok(folder)
    }

    /// The files, in the order key, cert, chain, ca.
    pub(super) fn paths(&self) -> [String; 4] {
        NAMES.map(|name| self.path.join(name).to_string_lossy().into_owned())
    }

    /// Makes the files say what the certificate does; does nothing when they do already.
    pub(super) fn update(&self, certificate: &Certificate) -> Result<(), Failure> {
        self.refuse_older(certificate)?;
        let Certificate { key, cert, chain, ca, .. } = certificate;
        let files = [key.expose(), cert, chain, ca];
        if !self.has(files) {
            let known = Known { facts: certificate.facts.clone(), revision: certificate.revision };
            let replaced = self.replace(files, &known);
            replaced.map_err(|error| cannot("written", &self.path, &error))?;
        }
        self.remove_old_sets();
        Ok(())
    }

    fn has(&self, files: [&str; 4]) -> bool {
        let same = |(name, content): (&str, &str)| {
            fs::read(self.path.join(name)).is_ok_and(|found| found == content.as_bytes())
        };
        let mode = fs::metadata(self.path.join(NAMES[0])).map(|key| key.permissions().mode());
        mode.is_ok_and(|mode| mode & 0o777 == 0o600) && NAMES.into_iter().zip(files).all(same)
    }

    fn replace(&self, files: [&str; 4], known: &Known) -> io::Result<()> {
        let set = self.new_set()?;
        let modes = [0o600, 0o644, 0o644, 0o644];
        for ((name, content), mode) in NAMES.into_iter().zip(files).zip(modes) {
            write(&set.path().join(name), content.as_bytes(), mode)?;
        }
        write(&set.path().join(KNOWN), &serde_json::to_vec(known)?, 0o644)?;
        // Who may enter is up to the folder that it is in.
        fs::set_permissions(set.path(), Permissions::from_mode(0o755))?;
        File::open(set.path())?.sync_all()?;

        // These lead nowhere at first, so that all four appear at the same moment.
        for name in NAMES {
            match symlink(Path::new(CURRENT).join(name), self.path.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        let next = self.path.join(NEXT);
        let _ = fs::remove_file(&next);
        symlink(set.path().file_name().unwrap_or_default(), &next)?;
        fs::rename(next, self.path.join(CURRENT))?;
        // In force, and no longer to be removed.
        let _ = set.keep();
        self.lock.sync_all()
    }

    /// A folder for a set, which goes unless it is kept.
    fn new_set(&self) -> io::Result<tempfile::TempDir> {
        tempfile::Builder::new().prefix(SET).tempdir_in(&self.path)
    }

    /// Removes what earlier sets, and processes that were killed, have left. What cannot be removed is tried again next time.
    fn remove_old_sets(&self) {
        let Ok(current) = fs::read_link(self.path.join(CURRENT)) else { return };
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let is_set = entry.file_name().to_str().is_some_and(|name| name.starts_with(SET));
            if is_set && entry.file_name() != current.as_os_str() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// Refuses to replace a key that somebody else has put there.
    fn refuse_foreign(&self) -> Result<(), Failure> {
        for name in NAMES {
            let path = self.path.join(name);
            let ours = match fs::symlink_metadata(&path) {
                Ok(_) => fs::read_link(&path).is_ok_and(|to| to == Path::new(CURRENT).join(name)),
                Err(error) => error.kind() == io::ErrorKind::NotFound,
            };
            if !ours {
                return Err(Failure::Host(format!(
                    "{} was not written by servicekit; move it away, or name another folder (--out)",
                    path.display()
                )));
            }
        }
        Ok(())
    }

    /// Refuses a certificate of the same instance that is older than what is here: the store was put back.
    fn refuse_older(&self, certificate: &Certificate) -> Result<(), Failure> {
        let known = fs::read(self.path.join(CURRENT).join(KNOWN));
        let Some(here) = known.ok().and_then(|json| serde_json::from_slice::<Known>(&json).ok())
        else {
            return Ok(());
        };
        let (facts, revision) = (&certificate.facts, certificate.revision);
        let is_same =
            (&facts.label, &facts.service_id) == (&here.facts.label, &here.facts.service_id);
        let is_older = revision < here.revision
            || revision == here.revision && facts.serial != here.facts.serial;
        if is_same && is_older {
            return Err(Failure::Secret(format!(
                "the store was rolled back: it has certificate {revision} of {} {}, and {} has certificate {}, which is \
                 another; if this is another store on purpose, remove that folder",
                facts.label,
                facts.service_id,
                self.path.display(),
                here.revision,
            )));
        }
        Ok(())
    }
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // Not subject to the umask.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}

fn cannot(be: &str, folder: &Path, error: &io::Error) -> Failure {
    Failure::Host(format!("{} cannot be {be} (--out): {error}", folder.display()))
}
