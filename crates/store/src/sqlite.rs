//! One SQLite file: write-ahead log, `synchronous=FULL`, one writer connection, one for reading.
//!
//! Rows are JSON text, so `sqlite3 longshore.db "select body->>'state' from records where
//! kind='job'"` answers an operator. Each row carries a checksum of its body that is verified when
//! it is read; a row repaired by hand may have `NULL` there.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::types::Value;
use rusqlite::{
    Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior, named_params,
};

use crate::contract::{
    Batch, Epoch, HistoryEntry, HistoryQuery, HistoryRow, Kind, Loaded, Order, Record, RowVisitor,
    Store,
};
use crate::error::StoreError;
use crate::lock::Lock;
use crate::memory::check_text;

mod files;
mod schema;
mod sql;

pub use schema::FORMAT;

use files::{classify, connect_reader, connect_writer};

/// Rows in one SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    // `None` after an I/O error: what the connection believes about the file is then unproven, so
    // the next write reads it afresh.
    writer: Mutex<Option<Connection>>,
    reader: Mutex<Connection>,
    _lock: Lock,
}

/// What can go wrong inside a transaction.
enum Failure {
    Sql(rusqlite::Error),
    Store(StoreError),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Failure {
    fn at(self, attempt: &'static str, path: &Path) -> StoreError {
        match self {
            Self::Sql(error) => classify(attempt, path, &error),
            Self::Store(error) => error,
        }
    }
}

impl SqliteStore {
    /// Opens the store at `path`, making or upgrading it as needed.
    ///
    /// A file that is damaged, of a later format, or not a store at all is refused and left as it
    /// is. So is one that another process has open.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let lock = Lock::take(path, &Lock::beside(path))?;
        files::prepare(path)?;
        let writer = connect_writer(path)?;
        let reader = connect_reader(path)?;
        // Reading opens the log.
        lease(&writer).map_err(|error| classify("open", path, &error))?;
        files::make_room(path);
        Ok(Self {
            path: path.to_owned(),
            writer: Mutex::new(Some(writer)),
            reader: Mutex::new(reader),
            _lock: lock,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a consistent copy to `to`, which must not exist, while the store goes on working.
    pub fn backup(&self, to: &Path) -> Result<(), StoreError> {
        files::backup(&self.path, to)
    }

    /// Reads every page and row of the file and checks that they fit together.
    pub fn verify(&self) -> Result<(), StoreError> {
        files::check(&self.reader(), "PRAGMA integrity_check(1)", &self.path)?;
        self.load(&mut |_, _, _| Ok(())).map(|_| ())
    }

    fn reader(&self) -> MutexGuard<'_, Connection> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` in one transaction; what it returns as `Ok` is durable.
    fn write<T>(
        &self,
        attempt: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let mut slot = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut connection = match slot.take() {
            Some(connection) => connection,
            None => connect_writer(&self.path)?,
        };
        let result =
            transact(&mut connection, work).map_err(|failure| failure.at(attempt, &self.path));
        if !matches!(result, Err(StoreError::Io { .. } | StoreError::Corrupt { .. })) {
            *slot = Some(connection);
        }
        result
    }

    /// Like [`Self::write`], for the current epoch only.
    fn write_as<T>(
        &self,
        epoch: Epoch,
        attempt: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        self.write(attempt, |tx| {
            let current = lease(tx)?.epoch;
            if current != epoch.0 {
                return Err(StoreError::Deposed { epoch: epoch.0, current }.into());
            }
            work(tx)
        })
    }
}

fn transact<T>(
    connection: &mut Connection,
    work: impl FnOnce(&Transaction<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let output = work(&tx)?;
    tx.commit()?;
    Ok(output)
}

struct Lease {
    epoch: u64,
    holder: String,
    until_ms: u64,
}

fn lease(connection: &Connection) -> rusqlite::Result<Lease> {
    connection.prepare_cached(sql::LEASE)?.query_row([], |row| {
        Ok(Lease { epoch: unsigned(row, 0)?, holder: row.get(1)?, until_ms: unsigned(row, 2)? })
    })
}

fn set_lease(tx: &Transaction<'_>, lease: &Lease) -> Result<(), Failure> {
    tx.prepare_cached(sql::SET_LEASE)?.execute((
        clamp(lease.epoch),
        &lease.holder,
        clamp(lease.until_ms),
    ))?;
    Ok(())
}

/// SQLite's integers end at `i64::MAX`; no time or limit of ours needs more.
fn clamp(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}

/// The last change to each row, in the order of the rows on disk: neighbours share pages.
fn last_changes(batches: &[Batch]) -> Vec<&Record> {
    let mut changes: Vec<&Record> = batches.iter().flat_map(|batch| &batch.records).collect();
    // Stable, so that of several changes to one row the last stays last.
    changes.sort_by_key(|record| (record.kind, record.id));
    let mut kept: Vec<&Record> = Vec::with_capacity(changes.len());
    for change in changes {
        match kept.last_mut() {
            Some(last) if (last.kind, last.id) == (change.kind, change.id) => *last = change,
            Some(_) | None => kept.push(change),
        }
    }
    kept
}

fn write_records(tx: &Transaction<'_>, records: &[&Record]) -> Result<(), Failure> {
    let mut put = tx.prepare_cached(sql::PUT_RECORD)?;
    let mut delete = tx.prepare_cached(sql::DELETE_RECORD)?;
    for record in records {
        let (kind, id) = (record.kind, record.id.to_be_bytes());
        match &record.body {
            Some(body) => {
                let text = check_text(kind, record.id, body)?;
                put.execute((kind.as_str(), &id, text, crc32fast::hash(body)))?
            }
            None => delete.execute((kind.as_str(), &id))?,
        };
    }
    Ok(())
}

/// Appends lines to their histories; each history's last number is read and written once.
fn append_histories<'e>(
    tx: &Transaction<'_>,
    entries: impl Iterator<Item = &'e HistoryEntry>,
) -> Result<(), Failure> {
    let mut heads: BTreeMap<Kind, i64> = BTreeMap::new();
    let mut append = tx.prepare_cached(sql::APPEND_HISTORY)?;
    for entry in entries {
        let text = check_text(entry.kind, 0, &entry.body)?;
        let kind = entry.kind.as_str();
        let head = match heads.entry(entry.kind) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(history_head(tx, kind)?),
        };
        *head += 1;
        let sum = crc32fast::hash(&entry.body);
        append.execute((kind, *head, &entry.key, clamp(entry.at_ms), text, sum))?;
    }
    for (kind, head) in heads {
        tx.prepare_cached(sql::SET_HISTORY_HEAD)?.execute((kind.as_str(), head))?;
    }
    Ok(())
}

/// The number of a history's last line, 0 before the first.
fn history_head(tx: &Transaction<'_>, kind: &str) -> rusqlite::Result<i64> {
    let mut statement = tx.prepare_cached(sql::HISTORY_HEAD)?;
    Ok(statement.query_row([kind], |row| row.get(0)).optional()?.unwrap_or(0))
}

/// The body in the column `body`, once it fits the checksum in the next column.
fn checked_body<'r>(
    row: &'r Row<'_>,
    body: usize,
    path: &Path,
    name: impl FnOnce() -> String,
) -> Result<&'r [u8], Failure> {
    let bytes = row.get_ref(body)?.as_bytes().map_err(rusqlite::Error::from)?;
    let sum: Option<u32> = row.get(body + 1)?;
    if sum.is_some_and(|sum| sum != crc32fast::hash(bytes)) {
        return Err(StoreError::Corrupt {
            attempt: "read",
            path: path.to_owned(),
            detail: format!("{} does not fit its checksum", name()),
        }
        .into());
    }
    Ok(bytes)
}

fn load_rows(
    connection: &Connection,
    path: &Path,
    each: &mut RowVisitor<'_>,
) -> Result<Loaded, Failure> {
    let tx = connection.unchecked_transaction()?;
    let epoch = Epoch(lease(&tx)?.epoch);
    let mut loaded = Loaded { records: 0, bytes: 0, epoch, format: FORMAT };
    let mut statement = tx.prepare_cached(sql::LOAD)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let kind = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
        let id = u128::from_be_bytes(row.get(1)?);
        let body = checked_body(row, 2, path, || format!("record {kind}/{id:032x}"))?;
        each(kind, id, body).map_err(|detail| StoreError::BadRecord {
            kind: kind.to_owned(),
            id,
            detail,
        })?;
        loaded.records += 1;
        loaded.bytes += body.len() as u64;
    }
    Ok(loaded)
}

fn history_row(kind: Kind, row: &Row<'_>, path: &Path) -> Result<HistoryRow, Failure> {
    let seq = unsigned(row, 0)?;
    Ok(HistoryRow {
        seq,
        key: row.get(1)?,
        at_ms: unsigned(row, 2)?,
        body: checked_body(row, 3, path, || format!("line {seq} of history {kind}"))?.to_vec(),
    })
}

fn history_rows(
    connection: &Connection,
    path: &Path,
    query: &HistoryQuery,
) -> Result<Vec<HistoryRow>, Failure> {
    let text = match (&query.key, query.order) {
        (None, Order::OldestFirst) => sql::HISTORY_OLDEST,
        (None, Order::NewestFirst) => sql::HISTORY_NEWEST,
        (Some(_), Order::OldestFirst) => sql::HISTORY_OF_KEY_OLDEST,
        (Some(_), Order::NewestFirst) => sql::HISTORY_OF_KEY_NEWEST,
    };
    let mut statement = connection.prepare_cached(text)?;
    let bounds = named_params! {
        ":kind": query.kind.as_str(),
        ":after": clamp(query.after.unwrap_or(0)),
        ":before": query.before.map_or(i64::MAX, clamp),
        ":since": clamp(query.since_ms.unwrap_or(0)),
        ":limit": query.page(),
    };
    for (name, value) in bounds {
        statement.raw_bind_parameter(*name, *value)?;
    }
    if let Some(key) = &query.key {
        statement.raw_bind_parameter(":key", Value::from(key.clone()))?;
    }
    let mut found = Vec::new();
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next()? {
        found.push(history_row(query.kind, row, path)?);
    }
    Ok(found)
}

impl Store for SqliteStore {
    fn load(&self, each: &mut RowVisitor<'_>) -> Result<Loaded, StoreError> {
        load_rows(&self.reader(), &self.path, each)
            .map_err(|failure| failure.at("load", &self.path))
    }

    fn commit(&self, epoch: Epoch, batches: Vec<Batch>) -> Result<(), StoreError> {
        self.write_as(epoch, "commit to", |tx| {
            write_records(tx, &last_changes(&batches))?;
            append_histories(tx, batches.iter().flat_map(|batch| &batch.histories))
        })
    }

    fn acquire(&self, holder: &str, now_ms: u64, ttl_ms: u64) -> Result<Epoch, StoreError> {
        self.write("take the lease of", |tx| {
            let held = lease(tx)?;
            if held.holder != holder && held.until_ms > now_ms {
                let (holder, until_ms) = (held.holder, held.until_ms);
                return Err(StoreError::Held { holder, until_ms }.into());
            }
            let epoch = held.epoch + 1;
            let until_ms = now_ms.saturating_add(ttl_ms);
            set_lease(tx, &Lease { epoch, holder: holder.to_owned(), until_ms })?;
            Ok(Epoch(epoch))
        })
    }

    fn renew(&self, epoch: Epoch, now_ms: u64, ttl_ms: u64) -> Result<(), StoreError> {
        self.write_as(epoch, "renew the lease of", |tx| {
            let held = lease(tx)?;
            set_lease(tx, &Lease { until_ms: now_ms.saturating_add(ttl_ms), ..held })
        })
    }

    fn release(&self, epoch: Epoch) -> Result<(), StoreError> {
        self.write_as(epoch, "release the lease of", |tx| {
            let next = Lease { epoch: epoch.0 + 1, holder: String::new(), until_ms: 0 };
            set_lease(tx, &next)
        })
    }

    fn query_history(&self, query: &HistoryQuery) -> Result<Vec<HistoryRow>, StoreError> {
        history_rows(&self.reader(), &self.path, query)
            .map_err(|failure| failure.at("read a history of", &self.path))
    }

    fn prune_history(
        &self,
        epoch: Epoch,
        kind: Kind,
        before: u64,
        limit: u32,
    ) -> Result<u64, StoreError> {
        self.write_as(epoch, "prune a history of", |tx| {
            let mut statement = tx.prepare_cached(sql::PRUNE_HISTORY)?;
            Ok(statement.execute((kind.as_str(), clamp(before), limit))? as u64)
        })
    }
}
