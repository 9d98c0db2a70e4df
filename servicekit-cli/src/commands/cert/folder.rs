//! The folder of `--out`: four files that change all at once.
//!
//! The files are in a folder of their own, `.servicekit-…`, which the link `.servicekit` points to; `key.pem` and the others are
//! links through that one. A new set is written beside the old one, and comes into force when `.servicekit` is replaced.
//! Whatever ends this process, the four files are all the old ones or all the new ones. What a process that was killed has left
//! is removed by the next one, before it does anything else.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use servicekit::pki::{Certificate, Facts, Request};
use zeroize::Zeroizing;

use crate::report::Failure;

/// A folder that no other process changes meanwhile.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    lock: File,
}

/// What is known of the set: tells whose it is, and whether the store was put back.
#[derive(Serialize, Deserialize)]
struct Known {
    #[serde(flatten)]
    facts: Facts,
    revision: u64,
    ca: String,
}

const NAMES: [&str; 4] = ["key.pem", "cert.pem", "chain.pem", "ca.pem"];
const KNOWN: &str = "certificate.json";
const CURRENT: &str = ".servicekit";
const NEXT: &str = ".servicekit.next";
const SET: &str = ".servicekit-";

impl Folder {
    /// Makes the folder where it is missing, for its owner alone, and waits until no other process writes to it. One that is
    /// somebody else's is refused.
    pub(super) fn open(path: &Path, request: &Request) -> Result<Self, Failure> {
        let failed = |error| cannot("written", path, &error);
        if let Err(error) = DirBuilder::new().recursive(true).mode(0o700).create(path) {
            return Err(cannot("made", path, &error));
        }
        let path = fs::canonicalize(path).map_err(failed)?;
        let lock = File::open(&path).map_err(failed)?;
        lock.lock().map_err(failed)?;
        let folder = Self { path, lock };
        folder.refuse_foreign()?;
        folder.clean();
        folder.refuse_other(request)?;
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
        let Certificate { facts, revision, key, cert, chain, ca, .. } = certificate;
        let known = Known { facts: facts.clone(), revision: *revision, ca: ca.clone() };
        let failed = |error| cannot("written", &self.path, &error);
        let known = serde_json::to_string(&known).map_err(|error| failed(error.into()))?;
        let files = [key.expose(), cert, chain, ca];
        if !self.has(files, &known) {
            self.replace(files, &known).map_err(failed)?;
            self.clean();
        }
        Ok(())
    }

    fn has(&self, files: [&str; 4], known: &str) -> bool {
        let is = |path: PathBuf, content: &str| {
            // One of them is the key.
            let found = fs::read(path).map(Zeroizing::new);
            found.is_ok_and(|found| *found == content.as_bytes())
        };
        let mode = fs::metadata(self.path.join(NAMES[0])).map(|key| key.permissions().mode());
        mode.is_ok_and(|mode| mode & 0o777 == 0o600)
            && NAMES.into_iter().zip(files).all(|(name, content)| is(self.path.join(name), content))
            && is(self.path.join(CURRENT).join(KNOWN), known)
    }

    fn replace(&self, files: [&str; 4], known: &str) -> io::Result<()> {
        let set = self.new_set()?;
        let modes = [0o600, 0o644, 0o644, 0o644];
        for ((name, content), mode) in NAMES.into_iter().zip(files).zip(modes) {
            write(&set.path().join(name), content.as_bytes(), mode)?;
        }
        write(&set.path().join(KNOWN), known.as_bytes(), 0o644)?;
        // Who may enter is up to the folder that it is in.
        fs::set_permissions(set.path(), Permissions::from_mode(0o755))?;
        File::open(set.path())?.sync_all()?;

        // These lead nowhere at first, so that all four appear at the same moment: made later, they would appear one by one.
        for name in NAMES {
            match symlink(Path::new(CURRENT).join(name), self.path.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        let next = self.path.join(NEXT);
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

    /// Removes old sets, and what processes that were killed have left. Nothing is touched where there is nothing of that; what
    /// cannot be removed is tried again next time.
    fn clean(&self) {
        let _ = fs::remove_file(self.path.join(NEXT));
        let is_there = |name| fs::symlink_metadata(self.path.join(name)).is_ok();
        if !NAMES.into_iter().any(is_there) {
            // Who has emptied the folder has missed what is hidden in it.
            let _ = fs::remove_file(self.path.join(CURRENT));
        }
        let current = fs::read_link(self.path.join(CURRENT)).unwrap_or_default();
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let is_set = entry.file_name().to_str().is_some_and(|name| name.starts_with(SET));
            if is_set && entry.file_name() != current.as_os_str() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        if !self.path.join(CURRENT).exists() {
            // They are ours, and lead nowhere.
            for name in NAMES {
                let _ = fs::remove_file(self.path.join(name));
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
                return Err(Failure::Usage(format!(
                    "{} was not written by servicekit; move it away, or name another folder (--out)",
                    path.display()
                )));
            }
        }
        Ok(())
    }

    /// Refuses to replace the certificate of another instance: who has it would go on with a name that is not theirs.
    fn refuse_other(&self, request: &Request) -> Result<(), Failure> {
        let Some(Known { facts: Facts { label, service_id, .. }, .. }) = self.known() else {
            return Ok(());
        };
        if (&label, &service_id) == (&request.label, &request.service_id) {
            return Ok(());
        }
        Err(Failure::Usage(format!(
            "{} has the certificate of {label} {service_id}, not of {} {}; name another folder (--out), or empty that one \
             to replace it",
            self.path.display(),
            request.label,
            request.service_id,
        )))
    }

    /// Refuses a certificate of another CA, which nobody would accept who trusts the one that is here; and one that is older
    /// than what is here: the store was put back.
    fn refuse_older(&self, certificate: &Certificate) -> Result<(), Failure> {
        let Some(here) = self.known() else { return Ok(()) };
        let (path, Facts { label, service_id, serial, .. }) =
            (self.path.display(), &certificate.facts);
        // Revisions of another CA's certificates say nothing about these.
        if here.ca != certificate.ca {
            return Err(Failure::Usage(format!(
                "{path} has a certificate of another CA than that of this store and namespace; name another folder (--out), \
                 or, when the CA was made anew or the store is another on purpose, empty that one to replace it"
            )));
        }
        let revision = certificate.revision;
        if revision < here.revision || revision == here.revision && *serial != here.facts.serial {
            return Err(Failure::Secret(format!(
                "the store was rolled back: it has certificate {revision} of {label} {service_id}, and {path} has certificate \
                 {}, which is another; to take the older one on purpose, empty that folder",
                here.revision,
            )));
        }
        Ok(())
    }

    /// What is known of the set in force. One that cannot be read is mended as any other file.
    fn known(&self) -> Option<Known> {
        let json = fs::read(self.path.join(CURRENT).join(KNOWN)).ok()?;
        serde_json::from_slice(&json).ok()
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
