//! Join, grant, leave on the embedded store against as many bare SQLite write transactions with the same settings.
//!
//! ```sh
//! cargo run --release -p servicekit-benches --bin lease_cycle
//! ```
//!
//! They take turns in rounds, so that a busy machine slows all. The figures are ratios of the rates: to transactions on
//! one's own thread, and to ones that are handed to a thread for blocking work, as every asynchronous program must.

use std::{error::Error, path::Path, time::Duration};

use rusqlite::Connection;
use servicekit::{
    Backend, Clock as _, Label,
    clock::SystemClock,
    lease::{Request, Standing, Term},
};
use tokio::task::spawn_blocking;

/// Write transactions of one cycle: the ticket, the head with the grant, the head without it, the ticket's end.
const WRITES: usize = 4;
const ROUNDS: usize = 20;
const CYCLES: usize = 100;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::Builder::new().prefix("lease-cycle-").tempdir_in(".")?;
    let url = format!("local:{}", folder.path().join("servicekit.db").display());
    let backend = servicekit::connect(&url).await?;
    let bare = bare(&folder.path().join("bare.db"))?;
    let clock = SystemClock;
    let mut handed = Some(self::bare(&folder.path().join("handed.db"))?);
    let (mut ours, mut theirs, mut over) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    for _ in 0..ROUNDS {
        let began = clock.now();
        for _ in 0..CYCLES {
            cycle(&backend).await?;
        }
        let between = clock.now();
        for i in 0..CYCLES * WRITES {
            write(&bare, i)?;
        }
        ours += between.since(began);
        let after = clock.now();
        for i in 0..CYCLES * WRITES {
            let conn = handed.take().ok_or("the connection was not handed back")?;
            let write = move || write(&conn, i).map(|()| conn);
            handed = Some(spawn_blocking(write).await??);
        }
        theirs += after.since(between);
        over += clock.now().since(after);
    }
    let cycles = (ROUNDS * CYCLES) as f64;
    println!("lease cycles:           {:8.0} a second", cycles / ours.as_secs_f64());
    println!("of bare transactions:   {:8.0} a second", cycles / theirs.as_secs_f64());
    println!("of handed over ones:    {:8.0} a second", cycles / over.as_secs_f64());
    println!("rate against bare:      {:8.2}", theirs.as_secs_f64() / ours.as_secs_f64());
    println!("against handed over:    {:8.2}", over.as_secs_f64() / ours.as_secs_f64());
    Ok(())
}

async fn cycle(backend: &Backend) -> Result<(), Box<dyn Error>> {
    let lease: Label = "bench".parse()?;
    let request = Request {
        holder: "bench".parse()?,
        term: Term::Attended { ttl: Duration::from_secs(30) },
        slots: 1,
        wait: None,
        note: String::new(),
    };
    match backend.leases.join(&lease, &request).await? {
        (ticket, Standing::Granted(_)) => Ok(backend.leases.leave(&ticket).await?),
        (_, standing) => Err(format!("not granted: {standing:?}").into()),
    }
}

/// A table like the store's own, written with the same durability.
fn bare(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection
        .execute("CREATE TABLE records (name TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID", [])?;
    Ok(connection)
}

fn write(connection: &Connection, i: usize) -> rusqlite::Result<()> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let sql = "INSERT INTO records VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    // Another value each time: SQLite writes nothing for one that is there already.
    connection.prepare_cached(sql)?.execute((format!("record-{}", i % 2), format!("{i:0>300}")))?;
    connection.execute_batch("COMMIT")
}
