//! The file on disk: made in one step, recognised before it is touched, copied while in use.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::schema::{APPLICATION_ID, FORMAT, migrate};
use crate::error::{StoreError, if_there};

const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const HEADER_BYTES: usize = 100;
const APPLICATION_ID_AT: usize = 68;

/// Rows are a few hundred bytes and those that change together lie together. Measured with 256
/// callers, 16 KiB cost the least per row: 37 us a job against 40 (8 KiB), 41 (32 KiB), 49 (4 KiB).
const PAGE_BYTES: u32 = 16 << 10;
/// The log is copied into the file whenever it has grown by this many pages (16 MiB).
const CHECKPOINT_PAGES: u32 = 1_024;
/// And cut back to this size afterwards.
const LOG_BYTES: u32 = 64 << 20;
/// The log has this size from the start, a bit more than it grows to before it is used again from
/// its beginning: a write inside a file is durable in half the time of one that makes it longer.
const LOG_ROOM_BYTES: u64 = 17 << 20;
/// The room is written in pieces of this size.
const ROOM_PIECE_BYTES: usize = 1 << 20;
/// Pages the writer keeps in memory, in KiB.
const CACHE_KIB: i32 = 64 << 10;
/// Statements kept prepared per connection.
const STATEMENTS: usize = 32;
/// Nobody else may write, so a wait can only be for a checkpoint or a backup.
const BUSY: Duration = Duration::from_secs(5);
/// Files up to this size have every page checked at each start; larger ones only by `verify`.
const CHECKED_AT_START_BYTES: u64 = 64 << 20;

/// Leaves a current, healthy store at `path` or refuses without having touched it.
pub(super) fn prepare(path: &Path) -> Result<(), StoreError> {
    match fs::metadata(path) {
        Ok(found) if found.len() > 0 => upgrade(path, inspect(path, found.len())?),
        Ok(_) => create(path),
        Err(error) if error.kind() == ErrorKind::NotFound => create(path),
        Err(error) => Err(StoreError::io("open", path, &error)),
    }
}

/// Makes a new store under another name and renames it, so that a store is whole or absent.
fn create(path: &Path) -> Result<(), StoreError> {
    let log = suffixed(path, "-wal");
    if log.exists() {
        let detail = format!("it is missing, yet its log {} is there", log.display());
        return Err(StoreError::Foreign { path: path.to_owned(), detail });
    }
    let draft = suffixed(path, ".new");
    for leftover in ["", "-wal", "-shm", "-journal"] {
        remove_if_there(&suffixed(&draft, leftover))?;
    }
    private_file(&draft)?;
    let mut connection = connect_writer(&draft)?;
    migrate(&mut connection, 0).map_err(|error| classify("create", path, &error))?;
    close(connection, &draft)?;
    publish(&draft, path)
}

/// Reads who made the file and how new it is, without changing a byte; returns its format.
fn inspect(path: &Path, len: u64) -> Result<u32, StoreError> {
    recognise(path)?;
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    // Closing the last connection would move the log into the file.
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .map_err(|error| classify("open", path, &error))?;
    let format: u32 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|error| classify("open", path, &error))?;
    if format > FORMAT {
        return Err(StoreError::Newer { path: path.to_owned(), found: format, known: FORMAT });
    }
    let check = if len <= CHECKED_AT_START_BYTES {
        "PRAGMA quick_check(1)"
    } else {
        "PRAGMA schema_version"
    };
    self::check(&connection, check, path)?;
    Ok(format)
}

/// Looks at the header with plain reads.
fn recognise(path: &Path) -> Result<(), StoreError> {
    let foreign =
        |detail: &str| StoreError::Foreign { path: path.to_owned(), detail: detail.to_owned() };
    let mut header = Vec::with_capacity(HEADER_BYTES);
    File::open(path)
        .and_then(|file| file.take(HEADER_BYTES as u64).read_to_end(&mut header))
        .map_err(|error| StoreError::io("open", path, &error))?;
    if header.len() < HEADER_BYTES || !header.starts_with(MAGIC) {
        return Err(foreign("it is not a SQLite file, or its beginning is damaged"));
    }
    if header[APPLICATION_ID_AT..APPLICATION_ID_AT + 4] != APPLICATION_ID.to_be_bytes() {
        return Err(foreign("it is a SQLite file of another program"));
    }
    Ok(())
}

fn upgrade(path: &Path, format: u32) -> Result<(), StoreError> {
    if format == FORMAT {
        return Ok(());
    }
    let mut connection = connect_writer(path)?;
    migrate(&mut connection, format).map_err(|error| classify("upgrade", path, &error))?;
    close(connection, path)
}

/// Runs a checking pragma: its first answer is `ok`, a number, or what is wrong.
pub(super) fn check(connection: &Connection, pragma: &str, path: &Path) -> Result<(), StoreError> {
    let answer: rusqlite::Result<rusqlite::types::Value> =
        connection.query_row(pragma, [], |row| row.get(0));
    match answer {
        Ok(rusqlite::types::Value::Text(wrong)) if wrong != "ok" => {
            Err(StoreError::Corrupt { attempt: "open", path: path.to_owned(), detail: wrong })
        }
        Ok(_) => Ok(()),
        Err(error) => Err(classify("open", path, &error)),
    }
}

/// The one connection that writes.
pub(super) fn connect_writer(path: &Path) -> Result<Connection, StoreError> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let settings = || -> rusqlite::Result<()> {
        // Before the first table; a file that has pages keeps their size.
        connection.pragma_update(None, "page_size", PAGE_BYTES)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        connection.pragma_update(None, "journal_size_limit", LOG_BYTES)?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)
    };
    settings().map_err(|error| classify("open", path, &error))?;
    Ok(connection)
}

/// Gives the log of an open store its room. Behind its last frame SQLite reads nothing that does
/// not continue that frame's checksum, so zeros there say nothing. Without room on the disk the log
/// grows as it always would.
pub(super) fn make_room(path: &Path) {
    let log = suffixed(path, "-wal");
    let extend = |file: &File, from: u64| {
        let zeros = vec![0; ROOM_PIECE_BYTES];
        let mut at = from;
        while at < LOG_ROOM_BYTES {
            let missing = usize::try_from(LOG_ROOM_BYTES - at).unwrap_or(ROOM_PIECE_BYTES);
            let piece = zeros.get(..missing.min(ROOM_PIECE_BYTES)).unwrap_or(&zeros);
            file.write_all_at(piece, at)?;
            at += piece.len() as u64;
        }
        file.sync_all()
    };
    let room = OpenOptions::new().write(true).open(&log).and_then(|file| {
        let len = file.metadata()?.len();
        extend(&file, len).or_else(|error| file.set_len(len).and(Err(error)))
    });
    if let Err(error) = room {
        tracing::debug!(%error, log = %log.display(), "the log gets no room in advance");
    }
}

/// A connection that cannot write, for loads and history queries.
pub(super) fn connect_reader(path: &Path) -> Result<Connection, StoreError> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection
        .pragma_update(None, "query_only", true)
        .map_err(|error| classify("open", path, &error))?;
    Ok(connection)
}

fn connect(path: &Path, mode: OpenFlags) -> Result<Connection, StoreError> {
    let connect = || {
        let flags = mode | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        Ok(connection)
    };
    connect().map_err(|error| classify("open", path, &error))
}

/// Copies the store at `path` to `to` through a name of its own, so that a copy is whole or absent.
pub(super) fn backup(path: &Path, to: &Path) -> Result<(), StoreError> {
    if to.exists() {
        let error = std::io::Error::from(ErrorKind::AlreadyExists);
        return Err(StoreError::io("back up to", to, &error));
    }
    let draft = suffixed(to, ".new");
    remove_if_there(&draft)?;
    private_file(&draft)?;
    let name = draft.to_str().ok_or_else(|| {
        StoreError::io("back up to", to, &std::io::Error::from(ErrorKind::InvalidFilename))
    })?;
    connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?
        .execute("VACUUM INTO ?1", [name])
        .map_err(|error| classify("back up to", to, &error))?;
    publish(&draft, to)
}

/// Makes the finished file at `draft` durable under the name `path`.
fn publish(draft: &Path, path: &Path) -> Result<(), StoreError> {
    let publish = || {
        File::open(draft)?.sync_all()?;
        fs::rename(draft, path)?;
        File::open(parent(path))?.sync_all()
    };
    publish().map_err(|error| StoreError::io("create", path, &error))
}

fn close(connection: Connection, path: &Path) -> Result<(), StoreError> {
    connection.close().map_err(|(_, error)| classify("close", path, &error))
}

fn private_file(path: &Path) -> Result<(), StoreError> {
    let options = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    options.map(|_| ()).map_err(|error| StoreError::io("create", path, &error))
}

fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    if_there(fs::remove_file(path)).map_err(|error| StoreError::io("remove", path, &error))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Tells a full disk, a failing disk and a damaged file apart.
pub(super) fn classify(attempt: &'static str, path: &Path, error: &rusqlite::Error) -> StoreError {
    let (path, detail) = (path.to_owned(), error.to_string());
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full { attempt, path, detail },
        Some(
            ErrorCode::SystemIoFailure
            | ErrorCode::CannotOpen
            | ErrorCode::PermissionDenied
            | ErrorCode::ReadOnly
            | ErrorCode::NoLargeFileSupport,
        ) => StoreError::Io { attempt, path, detail },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Corrupt { attempt, path, detail }
        }
        _ => StoreError::Database { attempt, path, detail },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlite_codes_become_distinct_errors() {
        use rusqlite::ffi;
        let table: [(i32, &str); 6] = [
            (ffi::SQLITE_FULL, "full"),
            (ffi::SQLITE_IOERR_FSYNC, "io"),
            (ffi::SQLITE_CANTOPEN, "io"),
            (ffi::SQLITE_CORRUPT, "corrupt"),
            (ffi::SQLITE_NOTADB, "corrupt"),
            (ffi::SQLITE_BUSY, "database"),
        ];
        for (code, want) in table {
            let source = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
            let error = classify("commit to", Path::new("/data/x.db"), &source);
            let got = match error {
                StoreError::Full { .. } => "full",
                StoreError::Io { .. } => "io",
                StoreError::Corrupt { .. } => "corrupt",
                StoreError::Database { .. } => "database",
                ref other => panic!("{other}"),
            };
            assert_eq!(got, want, "code {code}");
            assert!(error.to_string().starts_with("cannot commit to /data/x.db"), "{error}");
        }
    }
}
