//! What SQLite and the operating system say, as servicekit's one error: one table, and tests that hold it.

use std::{io, path::Path};

use rusqlite::ffi::ErrorCode;
use servicekit_core::{Error, Kind, Retry};

/// What went wrong in a piece of work on the file.
#[derive(Debug)]
pub(crate) enum Fault {
    /// SQLite failed.
    Sqlite(rusqlite::Error),
    /// SQLite reads it, and it is not what we wrote.
    Damaged(String),
    /// The work itself says no; nothing is wrong with the file.
    Refused(Error),
}

/// When SQLite failed: it decides whether a write may have been applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Before the commit was asked for.
    Before,
    /// While it was committing.
    Commit,
}

impl Fault {
    /// Says what it means for the caller.
    pub(crate) fn explain(self, phase: Phase, path: &Path) -> Error {
        match self {
            Self::Sqlite(error) => from_sqlite(error, phase, path),
            Self::Damaged(what) => {
                Error::new(Kind::Unexpected, format!("{}: {what}; {DAMAGED}", path.display()))
            }
            Self::Refused(error) => error,
        }
    }

    /// Whether the connection that it came from can be used again.
    pub(crate) fn spares_the_connection(&self) -> bool {
        match self {
            Self::Damaged(_) | Self::Refused(_) => true,
            Self::Sqlite(error) => error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy),
        }
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

/// The error for a failed system call on `path`.
pub(crate) fn from_io(error: io::Error, doing: &str, path: &Path) -> Error {
    use io::ErrorKind::{
        NotADirectory, NotFound, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull,
    };
    let (kind, advice) = match error.kind() {
        PermissionDenied => (Kind::Denied, NOT_ALLOWED),
        ReadOnlyFilesystem => (Kind::Denied, "the file system is read-only; use another place"),
        NotFound => (Kind::Unavailable, "it is not there; was it moved or removed?"),
        NotADirectory => (Kind::Invalid, "a part of the path is no folder"),
        StorageFull | QuotaExceeded => (Kind::Unavailable, DISK_FULL),
        _ => (Kind::Unavailable, "see the cause"),
    };
    Error::new(kind, format!("cannot {doing} {}: {advice}", path.display())).because(error)
}

/// The error for a lock that was not to be had in time.
pub(crate) fn busy(path: &Path) -> Error {
    Error::new(Kind::Timeout, format!("{}: {LOCKED}", path.display())).retry_as(Retry::Safe)
}

fn from_sqlite(error: rusqlite::Error, phase: Phase, path: &Path) -> Error {
    let (kind, retry, advice) = match error.sqlite_error_code() {
        Some(code) => classify(code, phase),
        // Not SQLite but the reading of its answer failed: a column has a type that we never write.
        None => (Kind::Unexpected, Retry::Never, DAMAGED),
    };
    Error::new(kind, format!("{}: {advice}", path.display())).retry_as(retry).because(error)
}

/// The table: kind, whether to send the request again, and what to say.
fn classify(code: ErrorCode, phase: Phase) -> (Kind, Retry, &'static str) {
    // A commit that failed half-way may be in the log, and may be found there by whoever opens the file next.
    let unsettled = match phase {
        Phase::Before => Retry::Safe,
        Phase::Commit => Retry::Unknown,
    };
    match code {
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => (Kind::Timeout, Retry::Safe, LOCKED),
        ErrorCode::FileLockingProtocolFailed => (Kind::Timeout, Retry::Safe, LOCKED),
        // SQLite has rolled back by itself; it would be full again.
        ErrorCode::DiskFull => (Kind::Unavailable, Retry::Never, DISK_FULL),
        ErrorCode::SystemIoFailure => (Kind::Unavailable, unsettled, DISK_FAILS),
        ErrorCode::OutOfMemory => (Kind::Unavailable, unsettled, "there is no memory left"),
        ErrorCode::CannotOpen => (Kind::Unavailable, Retry::Never, CANNOT_OPEN),
        ErrorCode::ReadOnly => (Kind::Denied, Retry::Never, READ_ONLY),
        ErrorCode::PermissionDenied => (Kind::Denied, Retry::Never, NOT_ALLOWED),
        ErrorCode::AuthorizationForStatementDenied => (Kind::Denied, Retry::Never, NOT_ALLOWED),
        ErrorCode::DatabaseCorrupt => (Kind::Unexpected, Retry::Never, DAMAGED),
        ErrorCode::NotADatabase => (Kind::Invalid, Retry::Never, FOREIGN),
        ErrorCode::TooBig => (Kind::Invalid, Retry::Never, "the value is too large"),
        ErrorCode::Unknown | ErrorCode::SchemaChanged => (Kind::Unexpected, Retry::Never, DAMAGED),
        ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch => {
            (Kind::Unexpected, Retry::Never, DAMAGED)
        }
        _ => (
            Kind::Unexpected,
            unsettled,
            "SQLite failed in a way that it should not; see the cause",
        ),
    }
}

pub(crate) const FOREIGN: &str =
    "this file is not a store of servicekit; it was left alone. Name another file";
const LOCKED: &str = "another process kept it locked for too long; try again, and look for one that is stopped in the \
                      middle of a write";
const DISK_FULL: &str = "the disk is full; make room, nothing was lost";
const DISK_FAILS: &str =
    "the disk does not read or write as it should; look into the kernel's log (dmesg)";
const CANNOT_OPEN: &str = "it cannot be opened; are the file and its folder there, may this user write to both, and are \
                           there file descriptors left?";
const READ_ONLY: &str =
    "it is read-only for this user; the file, its folder and the files beside it must be writable";
const NOT_ALLOWED: &str = "this user may not; run as the owner, or name a file of your own";
const DAMAGED: &str = "the file is damaged; stop what uses it, and restore a backup, or move it away to begin anew \
                       (services register again by themselves)";

#[cfg(test)]
mod tests {
    use rusqlite::ffi;
    use std::error::Error as _;

    use super::*;

    fn explained(code: i32, phase: Phase) -> Error {
        let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some("native".into()));
        Fault::from(error).explain(phase, Path::new("/x/store.db"))
    }

    #[test]
    fn each_code_of_sqlite_has_its_kind_and_retry_before_and_during_the_commit() {
        use Kind::{Denied, Invalid, Timeout, Unavailable, Unexpected};
        use Retry::{Never, Safe, Unknown};
        #[rustfmt::skip]
        let table = [
            (ffi::SQLITE_BUSY,              Timeout,     Safe,  Safe),
            (ffi::SQLITE_BUSY_RECOVERY,     Timeout,     Safe,  Safe),
            (ffi::SQLITE_BUSY_SNAPSHOT,     Timeout,     Safe,  Safe),
            (ffi::SQLITE_LOCKED,            Timeout,     Safe,  Safe),
            (ffi::SQLITE_PROTOCOL,          Timeout,     Safe,  Safe),
            (ffi::SQLITE_FULL,              Unavailable, Never, Never),
            (ffi::SQLITE_IOERR,             Unavailable, Safe,  Unknown),
            (ffi::SQLITE_IOERR_FSYNC,       Unavailable, Safe,  Unknown),
            (ffi::SQLITE_IOERR_WRITE,       Unavailable, Safe,  Unknown),
            (ffi::SQLITE_IOERR_SHMSIZE,     Unavailable, Safe,  Unknown),
            (ffi::SQLITE_NOMEM,             Unavailable, Safe,  Unknown),
            (ffi::SQLITE_CANTOPEN,          Unavailable, Never, Never),
            (ffi::SQLITE_READONLY,          Denied,      Never, Never),
            (ffi::SQLITE_READONLY_CANTLOCK, Denied,      Never, Never),
            (ffi::SQLITE_READONLY_DIRECTORY,Denied,      Never, Never),
            (ffi::SQLITE_PERM,              Denied,      Never, Never),
            (ffi::SQLITE_CORRUPT,           Unexpected,  Never, Never),
            (ffi::SQLITE_NOTADB,            Invalid,     Never, Never),
            (ffi::SQLITE_TOOBIG,            Invalid,     Never, Never),
            (ffi::SQLITE_CONSTRAINT,        Unexpected,  Never, Never),
            (ffi::SQLITE_ERROR,             Unexpected,  Never, Never),
            (ffi::SQLITE_INTERRUPT,         Unexpected,  Safe,  Unknown),
        ];
        for (code, kind, before, commit) in table {
            for (phase, retry) in [(Phase::Before, before), (Phase::Commit, commit)] {
                let error = explained(code, phase);
                assert_eq!((error.kind(), error.retry()), (kind, retry), "{code} {phase:?}");
                assert!(error.message().starts_with("/x/store.db: "), "{error}");
                assert!(!error.to_string().contains("native"), "the source is not repeated");
                assert!(error.source().is_some());
            }
        }
    }

    #[test]
    fn each_failed_system_call_has_its_kind() {
        for (io, kind) in [
            (io::ErrorKind::PermissionDenied, Kind::Denied),
            (io::ErrorKind::ReadOnlyFilesystem, Kind::Denied),
            (io::ErrorKind::NotFound, Kind::Unavailable),
            (io::ErrorKind::NotADirectory, Kind::Invalid),
            (io::ErrorKind::StorageFull, Kind::Unavailable),
            (io::ErrorKind::Other, Kind::Unavailable),
        ] {
            let error = from_io(io.into(), "open", Path::new("/x"));
            assert_eq!((error.kind(), error.retry()), (kind, Retry::Never), "{io:?}");
            assert!(error.message().starts_with("cannot open /x: "));
        }
    }

    #[test]
    fn a_column_of_a_wrong_type_is_damage() {
        let error = rusqlite::Error::InvalidColumnType(0, "x".into(), rusqlite::types::Type::Null);
        let error = Fault::from(error).explain(Phase::Before, Path::new("/x"));
        assert_eq!(error.kind(), Kind::Unexpected);
        assert!(error.message().contains("damaged"));
    }
}
