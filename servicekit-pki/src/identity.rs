//! The key pair that opens sealed material: an age identity, in a file that only its owner can read.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use age::secrecy::ExposeSecret as _;
use aws_lc_rs::{hkdf, hmac};
use servicekit_core::{Error, Kind, Result, Timestamp};
use zeroize::Zeroizing;

/// An age identity (X25519). It opens what is sealed to its recipient, and tells what its owner has sealed from what
/// others have.
#[derive(Clone)]
pub struct Identity {
    pub(crate) age: age::x25519::Identity,
    /// Anybody can seal to a recipient; only who has the secret can also sign with this.
    pub(crate) signer: hmac::Key,
    /// Where it was read from or written to.
    file: Option<PathBuf>,
}

/// Far more than an identity file needs.
const LONGEST_FILE: u64 = 64 * 1024;

impl Identity {
    /// Draws a new one.
    ///
    /// # Errors
    ///
    /// None that are known; the library for cryptography could fail.
    pub fn generate() -> Result<Self> {
        Self::new(age::x25519::Identity::generate())
    }

    /// Reads the text of an identity file, as `age-keygen` writes it: one secret key, and comments.
    ///
    /// # Errors
    ///
    /// `Secret`: why it is none that can be used. The text is never in the message.
    pub fn parse(text: &str) -> Result<Self> {
        if text.starts_with("age-encryption.org/") || text.starts_with("-----BEGIN AGE ENCRYPTED") {
            return Err(secret(
                "is protected by a passphrase, which nobody could type for a service; open it with `age -d`, \
                 into a file of mode 0600",
            ));
        }
        let lines = text.lines().map(str::trim);
        let mut lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let (Some(line), None) = (lines.next(), lines.next()) else {
            return Err(secret(
                "is no identity file with one secret key; `servicekit identity new` makes one",
            ));
        };
        let parsed = line.parse().map_err(|_| {
            secret("has no secret key of the kind AGE-SECRET-KEY-1…; `servicekit identity new` makes one")
        });
        Self::new(parsed?)
    }

    /// Reads an identity file that only its owner can read.
    ///
    /// # Errors
    ///
    /// `Secret`: missing, unreadable, readable by others, protected by a passphrase, or no identity; with the way out.
    pub fn load(path: &Path) -> Result<Self> {
        let shown = path.display();
        let named = |error: Error| {
            Error::new(Kind::Secret, format!("the identity {shown} {}", error.message()))
        };
        let unreadable = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => named(secret(format!(
                "is missing; put it back, or, when nothing is sealed yet, make one with: servicekit identity new --out \
                 {shown}"
            ))),
            _ => named(secret("cannot be read")).because(error),
        };
        let file = File::open(path).map_err(unreadable)?;
        // Of the file that is open, not of one that takes its place meanwhile.
        let metadata = file.metadata().map_err(unreadable)?;
        if metadata.is_dir() {
            return Err(named(secret("is a folder; name the file")));
        }
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(named(secret(format!(
                "can be read by others (mode {mode:04o}); close it with: chmod 600 {shown}"
            ))));
        }
        // Sized for the longest, or growing would leave copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(LONGEST_FILE as usize + 1));
        file.take(LONGEST_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > LONGEST_FILE {
            return Err(named(secret("is too large for an identity file")));
        }
        // A file that age has encrypted need not be text.
        let text = match std::str::from_utf8(&bytes) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
        };
        let identity = Self::parse(text).map_err(named)?;
        Ok(Self { file: Some(path.to_owned()), ..identity })
    }

    /// Draws a new one into a new file of mode 0600, whole or not at all.
    ///
    /// # Errors
    ///
    /// `Conflict` when there is a file of that name, which stays as it is; `Secret` when it cannot be written.
    pub fn create(path: &Path, now: Timestamp) -> Result<Self> {
        let identity = Self::generate()?;
        match identity.write(path, now) {
            Ok(()) => Ok(Self { file: Some(path.to_owned()), ..identity }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let message =
                    format!("{} exists; an identity is never overwritten", path.display());
                Err(Error::new(Kind::Conflict, message))
            }
            Err(error) => {
                let message = format!("the identity {} cannot be written", path.display());
                Err(Error::new(Kind::Secret, message).because(error))
            }
        }
    }

    /// What others seal to: its public half, `age1…`.
    #[must_use]
    pub fn recipient(&self) -> String {
        self.age.to_public().to_string()
    }

    /// For messages: where it is from, and its public half.
    pub(crate) fn described(&self) -> String {
        match &self.file {
            Some(file) => format!("{} ({})", file.display(), self.recipient()),
            None => self.recipient(),
        }
    }

    fn new(age: age::x25519::Identity) -> Result<Self> {
        let secret = age.to_string();
        let derived = hkdf::Salt::new(hkdf::HKDF_SHA256, b"servicekit")
            .extract(secret.expose_secret().as_bytes());
        let signer = derived.expand(&[b"sealed records, version 1"], hmac::HMAC_SHA256);
        match signer {
            Ok(signer) => Ok(Self { age, signer: signer.into(), file: None }),
            Err(_) => Err(Error::new(Kind::Unexpected, "no key can be derived from the identity")),
        }
    }

    fn write(&self, path: &Path, now: Timestamp) -> io::Result<()> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let recipient = self.recipient();
        // Sized for all of it, or growing would leave copies behind.
        let mut text = Zeroizing::new(String::with_capacity(512));
        let secret = self.age.to_string();
        text.push_str(&format!("# created: {now}\n# public key: {recipient}\n"));
        text.push_str(secret.expose_secret());
        text.push('\n');
        // Under its name only when it is whole and on the disk. Such a file has mode 0600 from the beginning.
        let mut file = tempfile::Builder::new().prefix(".identity-").tempfile_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist_noclobber(path).map_err(|error| error.error)?;
        File::open(folder)?.sync_all()
    }
}

fn secret(message: impl Into<String>) -> Error {
    Error::new(Kind::Secret, message)
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.recipient())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_the_recipient_alone() {
        let identity = Identity::generate().unwrap();
        assert_eq!(format!("{identity:?}"), format!("Identity({})", identity.recipient()));
    }

    #[test]
    fn what_cannot_be_used_is_not_shown() {
        let secret = age::x25519::Identity::generate().to_string();
        let text = secret.expose_secret();
        assert!(Identity::parse(&format!("\n# a comment\r\n  {text}\r\n\n")).is_ok());
        for wrong in [format!("{text}Q"), format!("{text}\n{text}"), text[..40].to_owned()] {
            let error = Identity::parse(&wrong).unwrap_err();
            assert_eq!(error.kind(), Kind::Secret);
            assert!(!format!("{error:?}").contains(&text[18..30]), "{error:?}");
        }
    }

    #[test]
    fn of_many_who_make_it_one_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity");
        let make = || Identity::create(&path, Timestamp::from_millis(0));
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(make)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let made: Vec<_> = results.iter().flatten().collect();
        assert_eq!(made.len(), 1);
        assert_eq!(Identity::load(&path).unwrap().recipient(), made[0].recipient());
        let mut refused = results.iter().filter_map(|result| result.as_ref().err());
        assert!(refused.all(|error| error.kind() == Kind::Conflict));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }
}
