//! The file itself: refusals that leave it alone, upgrades, damage, a full disk, backups.
#![expect(clippy::unwrap_used, reason = "a test ends where an expectation is not met")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::Connection;
use store::sqlite::{FORMAT, SqliteStore};
use store::{
    Batch, HistoryEntry, HistoryQuery, Kind, Record, Store, StoreError, Writer, WriterLimits,
};
use tempfile::TempDir;

const JOB: Kind = Kind::new("job");
const AUDIT: Kind = Kind::new("audit");

fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("longshore.db");
    (dir, path)
}

fn filled(path: &Path, rows: u128) {
    let store = SqliteStore::open(path).unwrap();
    let epoch = store.acquire("a", 0, 1).unwrap();
    let body = format!("{{\"state\":\"queued\",\"pad\":\"{}\"}}", "x".repeat(400)).into_bytes();
    let records = (0..rows).map(|id| Record::put(JOB, id, body.clone())).collect();
    let line = HistoryEntry { kind: AUDIT, key: "u".to_owned(), at_ms: 1, body };
    store.commit(epoch, vec![Batch { records, histories: vec![line] }]).unwrap();
}

fn count(store: &dyn Store) -> u64 {
    store.load(&mut |_, _, _| Ok(())).unwrap().records
}

/// Every file of the directory but the lock and the shared-memory index, with its bytes.
fn bytes(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            !path.extension().is_some_and(|ext| ext == "lock" || ext == "db-shm")
                // An empty log holds nothing.
                && fs::metadata(path).unwrap().len() > 0
        })
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

/// Opens, expects a refusal, and expects that not a byte was touched.
fn refused(path: &Path) -> StoreError {
    let dir = path.parent().unwrap();
    let before = bytes(dir);
    let error = SqliteStore::open(path).unwrap_err();
    assert!(bytes(dir) == before, "the refused file was changed: {error}");
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    assert!(!error.hint().is_empty());
    error
}

#[test]
fn files_of_others_are_refused() {
    let (_dir, path) = place();
    fs::write(&path, "dear diary").unwrap();
    assert!(matches!(refused(&path), StoreError::Foreign { .. }));
    fs::remove_file(&path).unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE cats (name)").unwrap();
    other.close().unwrap();
    assert!(matches!(refused(&path), StoreError::Foreign { .. }));
}

#[test]
fn a_newer_format_is_refused() {
    let (_dir, path) = place();
    filled(&path, 10);
    let later = Connection::open(&path).unwrap();
    later.pragma_update(None, "user_version", FORMAT + 1).unwrap();
    later.close().unwrap();
    let want = StoreError::Newer { path: path.clone(), found: FORMAT + 1, known: FORMAT };
    assert_eq!(refused(&path), want);
}

#[test]
fn a_newer_format_that_is_only_in_the_log_is_refused() {
    let (_dir, path) = place();
    filled(&path, 10);
    let later = Connection::open(&path).unwrap();
    later.pragma_update(None, "user_version", FORMAT + 1).unwrap();
    // As if the later release had been killed: its log was never copied into the file.
    let copy = path.with_extension("copy");
    fs::copy(&path, &copy).unwrap();
    let log = fs::read(path.with_extension("db-wal")).unwrap();
    later.close().unwrap();
    fs::rename(&copy, &path).unwrap();
    fs::write(path.with_extension("db-wal"), log).unwrap();
    assert!(matches!(refused(&path), StoreError::Newer { .. }));
}

#[test]
fn damaged_files_are_refused() {
    for (name, from, len) in [("header", 0, 16), ("schema page", 100, 3_000), ("cut", 8_192, 0)] {
        let (_dir, path) = place();
        filled(&path, 500);
        let mut content = fs::read(&path).unwrap();
        if len == 0 {
            content.truncate(from);
        } else {
            content[from..from + len].fill(0xa5);
        }
        fs::write(&path, content).unwrap();
        let error = refused(&path);
        let told = matches!(error, StoreError::Corrupt { .. } | StoreError::Foreign { .. });
        assert!(told, "{name}: {error}");
    }
}

#[test]
fn a_log_without_its_file_is_refused() {
    let (_dir, path) = place();
    fs::write(path.with_extension("db-wal"), "left over").unwrap();
    assert!(matches!(refused(&path), StoreError::Foreign { .. }));
}

#[test]
fn a_flipped_bit_in_a_body_is_found_when_it_is_read() {
    let (_dir, path) = place();
    filled(&path, 3);
    let by_hand = Connection::open(&path).unwrap();
    by_hand
        .execute_batch(
            "UPDATE records SET body = replace(body, 'queued', 'queuee') WHERE id = x'00000000000000000000000000000001';
             UPDATE histories SET body = replace(body, 'queued', 'queuee')",
        )
        .unwrap();
    by_hand.close().unwrap();
    let store = SqliteStore::open(&path).unwrap();
    let error = store.load(&mut |_, _, _| Ok(())).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("record job/00000000000000000000000000000001"), "{error}");
    let error = store.query_history(&HistoryQuery::new(AUDIT, 9)).unwrap_err();
    assert!(error.to_string().contains("line 1 of history audit"), "{error}");
    assert!(store.verify().is_err());
    drop(store);
    let by_hand = Connection::open(&path).unwrap();
    by_hand.execute_batch("UPDATE records SET sum = NULL").unwrap();
    by_hand.close().unwrap();
    assert_eq!(count(&SqliteStore::open(&path).unwrap()), 3, "a repaired row needs no checksum");
}

#[test]
fn an_older_format_is_brought_up_and_a_half_made_file_is_made_again() {
    let (_dir, path) = place();
    fs::write(&path, "").unwrap();
    fs::write(path.with_extension("db.new"), "half").unwrap();
    filled(&path, 1);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!path.with_extension("db.new").exists());
    // A file of format 0 is one whose first migration never ran.
    let (_dir, old) = place();
    let connection = Connection::open(&old).unwrap();
    connection
        .execute_batch("PRAGMA journal_mode=WAL; PRAGMA application_id=0x6c6e6773; VACUUM")
        .unwrap();
    connection.close().unwrap();
    filled(&old, 2);
    let store = SqliteStore::open(&old).unwrap();
    assert_eq!(store.load(&mut |_, _, _| Ok(())).unwrap().format, FORMAT);
}

#[test]
fn operators_can_query_bodies_as_json() {
    let (_dir, path) = place();
    filled(&path, 7);
    let connection = Connection::open(&path).unwrap();
    let queued: u32 = connection
        .query_row("SELECT count(*) FROM records WHERE body->>'state' = 'queued'", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert_eq!(queued, 7);
}

#[test]
fn a_backup_is_a_store_of_its_own() {
    let (dir, path) = place();
    filled(&path, 9);
    let store = SqliteStore::open(&path).unwrap();
    let copy = dir.path().join("backup.db");
    store.backup(&copy).unwrap();
    store.verify().unwrap();
    assert!(store.backup(&copy).is_err(), "an existing file is not overwritten");
    let epoch = store.acquire("a", 0, 1).unwrap();
    store.commit(epoch, vec![Batch::of(vec![Record::delete(JOB, 0)])]).unwrap();
    let copied = SqliteStore::open(&copy).unwrap();
    assert_eq!((count(&copied), count(&store)), (9, 8));
}

/// A small file system of its own, for as long as the value lives.
struct Tmpfs(TempDir);

impl Tmpfs {
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let option = format!("size={size}");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &option, "tmpfs"])
            .arg(dir.path())
            .output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(dir))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

#[test]
fn a_full_disk_is_told_and_nothing_acknowledged_is_lost() {
    // Without the right to mount there is only the unit test of the mapping.
    let Some(disk) = Tmpfs::mount("2m") else { return };
    let path = disk.0.path().join("longshore.db");
    let store = Arc::new(SqliteStore::open(&path).unwrap());
    let epoch = store.acquire("a", 0, 1).unwrap();
    let writer = Writer::start(store.clone(), epoch, WriterLimits::default()).unwrap();
    let mut acknowledged = 0;
    let error = loop {
        let row = Record::put(JOB, acknowledged, vec![b'1'; 10_000]);
        match writer.submit(Batch::of(vec![row])).unwrap().wait() {
            Ok(()) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert!(error.hint().contains("free space"));
    assert!(acknowledged > 10);
    drop(writer);
    drop(store);
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(u128::from(count(&store)), acknowledged);
    drop(store);
}
