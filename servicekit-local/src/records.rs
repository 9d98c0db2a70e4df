//! The records: what each operation reads and writes inside a transaction.

use std::{collections::BTreeSet, time::Duration};

use rusqlite::{CachedStatement, Connection, OptionalExtension as _, Row, params};
use servicekit_core::{
    Error, Instant, Kind, Name, Namespace, Timestamp,
    store::{Expect, Group, Keep, Key, Life, Put, Record, Version, WriteId},
};

use crate::{error::Fault, host::Host};

type Result<T> = std::result::Result<T, Fault>;

/// Reads one snapshot of the file.
#[derive(Debug)]
pub(crate) struct View<'c> {
    pub(crate) conn: &'c Connection,
    /// Only records of this boot live.
    pub(crate) boot: &'c str,
    /// A moment *before* the snapshot: what had ended by then was never prolonged, since nobody prolongs what has ended.
    pub(crate) now: Instant,
}

/// All records of a group, at one moment.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) records: Vec<Record>,
    pub(crate) change: i64,
    /// What is left of the records counts from here.
    pub(crate) at: Instant,
}

impl View<'_> {
    pub(crate) fn get(&self, key: &Key) -> Result<Option<Record>> {
        const SQL: &str = "SELECT name, version, write_id, ttl, ends, sum, value FROM records \
             WHERE grp = ?1 AND name = ?2 \
             AND (ends IS NULL OR (ends > ?3 AND ?4 = (SELECT boot FROM store)))";
        let mut statement = self.conn.prepare_cached(SQL)?;
        let parameters =
            params![key.group.as_str(), key.name.as_str(), nanos(self.now.since_boot()), self.boot];
        let stored = statement.query_row(parameters, Stored::read).optional()?;
        stored
            .map(|stored| {
                stored.check_name(key)?;
                stored.record(&key.group, self.now)
            })
            .transpose()
    }

    pub(crate) fn list(&self, groups: &[Group]) -> Result<Vec<Record>> {
        self.snapshot(|| {
            let mut records = Vec::new();
            for group in BTreeSet::from_iter(groups) {
                self.read_group(group, &mut records)?;
            }
            Ok(records)
        })
    }

    /// A group with the version of its last change, to be compared with [`changed`] later.
    pub(crate) fn group(&self, group: &Group) -> Result<Listing> {
        self.snapshot(|| {
            let mut records = Vec::new();
            self.read_group(group, &mut records)?;
            Ok(Listing { records, change: changed(self.conn, group)?, at: self.now })
        })
    }

    /// The namespaces that have a record. What no group of ours is called is in none.
    pub(crate) fn namespaces(&self) -> Result<Vec<Namespace>> {
        const SQL: &str =
            "SELECT DISTINCT substr(grp, 1, instr(grp, '/') - 1) FROM records ORDER BY 1";
        let mut statement = self.conn.prepare_cached(SQL)?;
        let names: rusqlite::Result<Vec<String>> =
            statement.query_map([], |row| row.get(0))?.collect();
        Ok(names?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    fn read_group(&self, group: &Group, records: &mut Vec<Record>) -> Result<()> {
        const SQL: &str = "SELECT name, version, write_id, ttl, ends, sum, value FROM records \
             WHERE grp = ?1 AND (ends IS NULL OR (ends > ?2 AND ?3 = (SELECT boot FROM store))) \
             ORDER BY name";
        let mut statement = self.conn.prepare_cached(SQL)?;
        let parameters = params![group.as_str(), nanos(self.now.since_boot()), self.boot];
        let first = records.len();
        for stored in statement.query_map(parameters, Stored::read)? {
            let record = stored?.record(group, self.now)?;
            if records[first..].last().is_some_and(|last| last.key.name >= record.key.name) {
                return Err(Fault::Damaged(format!("the records of {group} are out of order")));
            }
            records.push(record);
        }
        Ok(())
    }

    fn snapshot<T>(&self, read: impl FnOnce() -> Result<T>) -> Result<T> {
        run(self.conn, "BEGIN")?;
        let result = read();
        // Nothing was written, so that nothing can fail here that matters; a connection left open is not used again.
        let _ = run(self.conn, "COMMIT");
        result
    }
}

/// The version of the last put or delete in a group; 0 when there was none. Touches and endings do not count.
pub(crate) fn changed(conn: &Connection, group: &Group) -> Result<i64> {
    let mut statement = conn.prepare_cached("SELECT version FROM changes WHERE grp = ?1")?;
    let version = statement.query_row([group.as_str()], |row| row.get(0)).optional()?;
    Ok(version.unwrap_or(0))
}

/// Runs a statement that needs and gives nothing.
pub(crate) fn run(conn: &Connection, sql: &str) -> rusqlite::Result<()> {
    conn.prepare_cached(sql)?.execute([]).map(drop)
}

/// Changes the file, inside a transaction that holds the write lock.
#[derive(Debug)]
pub(crate) struct Edit<'c> {
    conn: &'c Connection,
    now: Instant,
    wall: Timestamp,
    /// What was prolonged or rewritten, and when it would have ended otherwise.
    pub(crate) prolonged: Option<Prolonged>,
}

/// A record that lives on because of an edit.
///
/// Until the edit is committed, others see the record end at its old time. If the commit came later than that, somebody may
/// have acted on it, and the edit must be withdrawn.
#[derive(Clone, Debug)]
pub(crate) struct Prolonged {
    key: Key,
    version: i64,
    ends: Option<i64>,
    /// The moment until which the commit had to be there.
    pub(crate) until: Instant,
    /// What the caller is told when it was not.
    pub(crate) late: Kind,
}

/// How many records each put looks at, for some that have ended: more than it can make, so that these cannot add up.
const SWEPT: i64 = 8;

impl<'c> Edit<'c> {
    /// Begins to work on `conn`, which holds the write lock; `replaceable` is the boot that the file was last used in.
    pub(crate) fn new(
        conn: &'c Connection,
        host: &Host,
        replaceable: &str,
        now: Instant,
        wall: Timestamp,
    ) -> Result<Self> {
        let edit = Self { conn, now, wall, prolonged: None };
        edit.settle_boot(host, replaceable)?;
        Ok(edit)
    }

    /// After a reboot, ends all that was ephemeral.
    fn settle_boot(&self, host: &Host, replaceable: &str) -> Result<()> {
        let mut statement = self.prepare("SELECT boot FROM store")?;
        let boot: String = statement.query_row([], |row| row.get(0))?;
        if boot == host.boot {
            return Ok(());
        }
        if boot != replaceable {
            let message = "another machine, or another kernel on this one, has begun to use this file; it belongs to one \
                           host at a time. Give each its own file, or use a shared store";
            return Err(Error::new(Kind::Unsupported, message).into());
        }
        self.prepare("DELETE FROM records WHERE ends IS NOT NULL")?.execute([])?;
        self.prepare("UPDATE store SET boot = ?1, machine = coalesce(?2, machine)")?
            .execute(params![host.boot, host.machine])?;
        Ok(())
    }

    pub(crate) fn put(&mut self, put: &Put) -> Result<Version> {
        let Put { key, value, expect, keep, write } = put;
        let before = self.find(key)?;
        let met = match (expect, &before) {
            (Expect::Absent, None) => true,
            (Expect::At(version), Some(found)) => version.as_str() == found.version.to_string(),
            _ => false,
        };
        if !met {
            return Err(refused(Kind::Conflict, "the record is not as expected"));
        }
        let (ttl, ends) = match (keep, &before) {
            (Keep::Durable, _) => (None, None),
            (Keep::Ephemeral(ttl), _) => {
                (Some(nanos(*ttl)), Some(nanos((self.now + *ttl).since_boot())))
            }
            (Keep::Unchanged, Some(found)) => (found.ttl, found.ends),
            (Keep::Unchanged, None) => {
                return Err(refused(Kind::Invalid, "there is no life to leave unchanged"));
            }
        };
        let version = self.draw_version(&key.group)?;
        let (name, write_id) = (key.name.as_str().to_owned(), write.as_str().to_owned());
        let stored = Stored { name, version, write_id, ttl, ends, sum: 0, value: value.to_vec() };
        let sum = stored.checksum(&key.group);
        // One that has ended may still be there.
        self.prepare(
            "REPLACE INTO records (grp, name, version, write_id, ttl, ends, sum, value) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            key.group.as_str(),
            stored.name,
            version,
            stored.write_id,
            ttl,
            ends,
            sum,
            stored.value
        ])?;
        self.note_prolonged(Kind::Conflict, key, before.as_ref(), version, ends);
        Ok(shown(version))
    }

    pub(crate) fn touch(&mut self, key: &Key, write: &WriteId) -> Result<Version> {
        let Some(mut stored) = self.find(key)? else {
            return Err(refused(Kind::Lost, "the record is gone"));
        };
        if stored.write_id != write.as_str() {
            return Err(refused(Kind::Conflict, "the record has another value"));
        }
        let Some(ttl) = stored.ttl else {
            return Err(refused(Kind::Invalid, "a durable record needs no touch"));
        };
        let before = Stored { value: Vec::new(), ..stored.clone() };
        stored.ends = Some(nanos(self.now.since_boot()).saturating_add(ttl));
        // The version stays: the file ends records itself, so that nobody has to observe a touch.
        self.prepare("UPDATE records SET ends = ?3, sum = ?4 WHERE grp = ?1 AND name = ?2")?
            .execute(params![
                key.group.as_str(),
                stored.name,
                stored.ends,
                stored.checksum(&key.group)
            ])?;
        self.note_prolonged(Kind::Lost, key, Some(&before), stored.version, stored.ends);
        Ok(shown(stored.version))
    }

    pub(crate) fn delete(&mut self, key: &Key, version: &Version) -> Result<()> {
        let Some(found) = self.find(key)? else {
            return Err(refused(Kind::NotFound, "there is no such record"));
        };
        if version.as_str() != found.version.to_string() {
            return Err(refused(Kind::Conflict, "the record is not as expected"));
        }
        self.prepare("DELETE FROM records WHERE grp = ?1 AND name = ?2")?
            .execute([key.group.as_str(), key.name.as_str()])?;
        self.draw_version(&key.group).map(drop)
    }

    /// Takes back an edit that was committed too late, unless it was edited again since.
    pub(crate) fn withdraw(&mut self, prolonged: &Prolonged) -> Result<()> {
        let Prolonged { key, version, ends, .. } = prolonged;
        self.prepare(
            "DELETE FROM records WHERE grp = ?1 AND name = ?2 AND version = ?3 AND ends IS ?4",
        )?
        .execute(params![key.group.as_str(), key.name.as_str(), version, ends])?;
        self.draw_version(&key.group).map(drop)
    }

    fn find(&self, key: &Key) -> Result<Option<Stored>> {
        const SQL: &str = "SELECT name, version, write_id, ttl, ends, sum, value FROM records \
             WHERE grp = ?1 AND name = ?2 AND (ends IS NULL OR ends > ?3)";
        let parameters =
            params![key.group.as_str(), key.name.as_str(), nanos(self.now.since_boot())];
        let stored = self.prepare(SQL)?.query_row(parameters, Stored::read).optional()?;
        if let Some(stored) = &stored {
            stored.check_name(key)?;
            stored.check(&key.group)?;
        }
        Ok(stored)
    }

    /// Draws from the file's one counter, and notes it as the last change of this group.
    fn draw_version(&self, group: &Group) -> Result<i64> {
        // No RETURNING and no upsert here: SQLite makes a temporary table for each, which costs more than all the rest.
        let (last, swept): (i64, String) = self
            .prepare("SELECT version, swept FROM changes WHERE grp = ''")?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        // Not below the time, so that a file that was restored from a backup gives no version again.
        let floor = i64::try_from(self.wall.as_millis()).unwrap_or(0).saturating_mul(1000);
        let version = last.saturating_add(1).max(floor.clamp(1, i64::MAX / 2));
        self.prepare("UPDATE changes SET version = ?1, swept = ?2 WHERE grp = ''")?
            .execute(params![version, self.sweep(&swept)?])?;
        let noted = self
            .prepare("UPDATE changes SET version = ?2 WHERE grp = ?1")?
            .execute(params![group.as_str(), version])?;
        if noted == 0 {
            self.prepare("INSERT INTO changes (grp, version) VALUES (?1, ?2)")?
                .execute(params![group.as_str(), version])?;
        }
        Ok(version)
    }

    /// Deletes what has ended among the next few records, and tells how far it came; then it begins again.
    ///
    /// An index on the ends would cost every beat and renewal a page more to write.
    fn sweep(&self, after: &str) -> Result<String> {
        const NEXT: &str = "SELECT grp, name, ends FROM records WHERE (grp, name) > (?1, ?2) \
             ORDER BY grp, name LIMIT ?3";
        let (group, name) = after.rsplit_once('/').unwrap_or_default();
        let mut statement = self.prepare(NEXT)?;
        let rows = statement.query_map(params![group, name, SWEPT], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, Option<i64>>(2)?))
        })?;
        let rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
        let now = nanos(self.now.since_boot());
        for (group, name, _) in
            rows.iter().filter(|(.., ends)| ends.is_some_and(|ends| ends <= now))
        {
            self.prepare("DELETE FROM records WHERE grp = ?1 AND name = ?2")?
                .execute([group, name])?;
        }
        let last = rows.last().filter(|_| rows.len() as i64 == SWEPT);
        Ok(last.map(|(group, name, _)| format!("{group}/{name}")).unwrap_or_default())
    }

    fn note_prolonged(
        &mut self,
        late: Kind,
        key: &Key,
        before: Option<&Stored>,
        version: i64,
        ends: Option<i64>,
    ) {
        self.prolonged = before.and_then(|before| before.ends).map(|before| Prolonged {
            key: key.clone(),
            version,
            ends,
            until: Instant::from_boot(duration(before)),
            late,
        });
    }

    fn prepare(&self, sql: &str) -> rusqlite::Result<CachedStatement<'c>> {
        self.conn.prepare_cached(sql)
    }
}

/// Reads every record, ended or not, and tells how many there are and which are damaged.
pub(crate) fn inspect(conn: &Connection) -> Result<(usize, Vec<String>)> {
    const SQL: &str = "SELECT name, version, write_id, ttl, ends, sum, value, grp FROM records";
    let mut statement = conn.prepare(SQL)?;
    let mut rows = statement.query([])?;
    let (mut count, mut damaged) = (0, Vec::new());
    while let Some(row) = rows.next()? {
        let (stored, group) = (Stored::read(row)?, row.get::<_, String>(7)?);
        count += 1;
        if stored.sum != stored.checksum_in(&group) {
            damaged.push(format!("{group}/{}", stored.name));
        }
    }
    Ok((count, damaged))
}

/// A row, as it is in the file.
#[derive(Clone, Debug)]
struct Stored {
    name: String,
    version: i64,
    write_id: String,
    ttl: Option<i64>,
    ends: Option<i64>,
    sum: u32,
    value: Vec<u8>,
}

impl Stored {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            name: row.get(0)?,
            version: row.get(1)?,
            write_id: row.get(2)?,
            ttl: row.get(3)?,
            ends: row.get(4)?,
            sum: row.get(5)?,
            value: row.get(6)?,
        })
    }

    fn record(self, group: &Group, now: Instant) -> Result<Record> {
        self.check(group)?;
        let name: Name = self.name.parse().map_err(|_| self.damage(group))?;
        let life = match (self.ttl, self.ends) {
            (Some(ttl), Some(ends)) => Life::Ephemeral {
                ttl: duration(ttl),
                left: Some(Instant::from_boot(duration(ends)).since(now)),
            },
            _ => Life::Durable,
        };
        Ok(Record {
            key: group.key(name),
            value: self.value.into(),
            version: shown(self.version),
            write: WriteId::new(self.write_id),
            life,
        })
    }

    /// SQLite notices a damaged page only where its structure breaks; a wrong token would pass.
    fn check(&self, group: &Group) -> Result<()> {
        if self.sum == self.checksum(group) { Ok(()) } else { Err(self.damage(group)) }
    }

    /// In a damaged page, looking for one record may find another.
    fn check_name(&self, key: &Key) -> Result<()> {
        if self.name == key.name.as_str() { Ok(()) } else { Err(self.damage(&key.group)) }
    }

    fn damage(&self, group: &Group) -> Fault {
        Fault::Damaged(format!("the record {group}/{} is not what was written", self.name))
    }

    fn checksum(&self, group: &Group) -> u32 {
        self.checksum_in(group.as_str())
    }

    /// CRC-32 of group, name and write id, each with a zero byte after it, the numbers (-1 for none), and the value.
    fn checksum_in(&self, group: &str) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        for text in [group, &self.name, &self.write_id] {
            hasher.update(text.as_bytes());
            hasher.update(&[0]);
        }
        for number in [self.version, self.ttl.unwrap_or(-1), self.ends.unwrap_or(-1)] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(&self.value);
        hasher.finalize()
    }
}

fn refused(kind: Kind, message: &str) -> Fault {
    Error::new(kind, message).into()
}

fn shown(version: i64) -> Version {
    Version::new(version.to_string())
}

/// Nanoseconds as SQLite keeps them; 292 years are for ever.
fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

fn duration(nanos: i64) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}
