//! Opening: what is refused, and what a file is made of.

use std::{fs, path::Path};

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, config::DbConfig};
use servicekit_core::{Error, Kind, Result};

use crate::{
    error::{FOREIGN, Fault, Phase, from_io},
    host::Host,
    place::Place,
    queue::Queue,
    records::run,
    store::PATIENCE,
};

/// The layout that this version writes and reads, in `PRAGMA user_version`.
pub(crate) const SCHEMA: i64 = 1;

/// Marks a file as ours, in `PRAGMA application_id`: "skit".
const APPLICATION: i64 = 0x736b_6974;

/// The layout; `docs/backends/local.md` explains it.
const TABLES: &str = "
CREATE TABLE store (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    machine  TEXT,
    boot     TEXT NOT NULL
) STRICT;
CREATE TABLE changes (
    grp      TEXT PRIMARY KEY,
    version  INTEGER NOT NULL,
    swept    TEXT
) STRICT, WITHOUT ROWID;
CREATE TABLE records (
    grp      TEXT NOT NULL,
    name     TEXT NOT NULL,
    version  INTEGER NOT NULL,
    write_id TEXT NOT NULL,
    ttl      INTEGER,
    ends     INTEGER,
    sum      INTEGER NOT NULL,
    value    BLOB NOT NULL,
    PRIMARY KEY (grp, name)
) STRICT, WITHOUT ROWID;
INSERT INTO changes (grp, version, swept) VALUES ('', 0, '');
PRAGMA application_id = 0x736b6974;
PRAGMA user_version = 1;
";

/// Opens a connection; whether the file is ours is not yet known.
pub(crate) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(PATIENCE)?;
    conn.set_prepared_statement_cache_capacity(32);
    // Or SQLite plans a statement anew for each value that is bound to it, which costs more than running it.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    // A commit is on the disk before it is acknowledged. Half a megabyte of cache is enough for what is read again.
    conn.execute_batch(
        "PRAGMA synchronous = FULL; PRAGMA cache_size = -512; PRAGMA trusted_schema = OFF",
    )?;
    Ok(conn)
}

/// Makes sure that the file is ours to use, makes it where it is empty, and returns the boot that it was last used in.
pub(crate) fn admit(
    conn: &Connection,
    place: &Place,
    queue: &Queue,
    host: &Host,
) -> Result<String> {
    let failed = |error: rusqlite::Error| Fault::from(error).explain(Phase::Before, &place.path);
    if recognize(conn, place)? == Content::Empty {
        let _head = queue.enter(PATIENCE)?;
        // Somebody else may have been faster.
        if recognize(conn, place)? == Content::Empty {
            found(conn, host).map_err(failed)?;
        }
    }
    if !has_log(conn).map_err(failed)? {
        // Restored by a tool that makes plain files, such as `VACUUM INTO`.
        let _head = queue.enter(PATIENCE)?;
        use_log(conn).map_err(failed)?;
    }
    check_machine(conn, place, host)
}

#[derive(Debug, PartialEq, Eq)]
enum Content {
    Empty,
    Ours,
}

/// Tells a store from an empty file, and refuses everything else, untouched.
fn recognize(conn: &Connection, place: &Place) -> Result<Content> {
    let read = || -> rusqlite::Result<_> {
        let number = |pragma| conn.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
        let (application, schema) = (number("application_id")?, number("user_version")?);
        let is_empty = application == 0
            && schema == 0
            && conn
                .query_row("SELECT 1 FROM sqlite_schema LIMIT 1", [], |_| Ok(()))
                .optional()?
                .is_none();
        Ok((application, schema, is_empty))
    };
    // One snapshot: somebody else may be making the tables between one answer and the next.
    let snapshot = || {
        run(conn, "BEGIN")?;
        let content = read();
        let ended = run(conn, "COMMIT");
        content.and_then(|content| ended.map(|()| content))
    };
    let path = place.path.display();
    match snapshot().map_err(|error| Fault::from(error).explain(Phase::Before, &place.path))? {
        (.., true) if is_blank(place)? => Ok(Content::Empty),
        (APPLICATION, SCHEMA, _) => Ok(Content::Ours),
        (APPLICATION, schema, _) if schema > SCHEMA => {
            let message = format!(
                "{path} has layout {schema}; this servicekit knows layouts up to {SCHEMA}. Use the newer servicekit"
            );
            Err(Error::new(Kind::Unsupported, message))
        }
        _ => Err(Error::new(Kind::Invalid, format!("{path}: {FOREIGN}"))),
    }
}

/// SQLite takes a file that is shorter than its smallest page for an empty one, and would write over it.
fn is_blank(place: &Place) -> Result<bool> {
    let file = fs::metadata(&place.path);
    let length = file.map_err(|error| from_io(error, "look at", &place.path))?.len();
    Ok(!(1..512).contains(&length))
}

/// Makes the tables.
fn found(conn: &Connection, host: &Host) -> rusqlite::Result<()> {
    // Not possible inside the transaction; a file that got no further is still an empty one.
    use_log(conn)?;
    run(conn, "BEGIN IMMEDIATE")?;
    let made = conn.execute_batch(TABLES).and_then(|()| {
        let sql = "INSERT INTO store (one, machine, boot) VALUES (1, ?1, ?2)";
        conn.execute(sql, (&host.machine, &host.boot))
    });
    match made.and_then(|_| run(conn, "COMMIT")) {
        Ok(()) => Ok(()),
        Err(error) => {
            // The first error tells more than this one could.
            let _ = run(conn, "ROLLBACK");
            Err(error)
        }
    }
}

fn has_log(conn: &Connection) -> rusqlite::Result<bool> {
    conn.pragma_query_value(None, "journal_mode", |row| Ok(row.get::<_, String>(0)? == "wal"))
}

fn use_log(conn: &Connection) -> rusqlite::Result<()> {
    conn.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))
}

/// Refuses the file of another machine: its deadlines are on another clock, and it may still be in use there.
fn check_machine(conn: &Connection, place: &Place, host: &Host) -> Result<String> {
    let row = conn.query_row("SELECT machine, boot FROM store", [], |row| {
        Ok((row.get::<_, Option<String>>(0)?, row.get::<_, String>(1)?))
    });
    let (machine, boot) =
        row.map_err(|error| Fault::from(error).explain(Phase::Before, &place.path))?;
    // The same run of a kernel is the same machine, whatever a container thinks that it is called.
    if boot == host.boot || machine.is_none() || machine == host.machine {
        return Ok(boot);
    }
    let me = match &host.machine {
        Some(machine) => format!("this is {machine}"),
        None => {
            "this one does not say which it is (no /etc/machine-id; give a container the host's)"
                .into()
        }
    };
    let message = format!(
        "{} belongs to machine {}, and {me}. Several machines need a shared store (etcd, DynamoDB, CouchDB); if this one \
         took the file over for good, run: sqlite3 {} 'UPDATE store SET machine = NULL'",
        place.path.display(),
        machine.unwrap_or_default(),
        place.path.display(),
    );
    Err(Error::new(Kind::Unsupported, message))
}
