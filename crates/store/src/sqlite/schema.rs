//! The format of the file: who made it, how new it is, and how an older one becomes current.

use rusqlite::{Connection, TransactionBehavior};

/// `lngs` in the file's header, so that `file(1)` and this program know whose it is.
pub(super) const APPLICATION_ID: u32 = 0x6c6e_6773;

/// How an empty file becomes the newest format, one step per format. Steps are only ever added.
pub(super) const MIGRATIONS: &[&str] = &["
    CREATE TABLE records (
        kind TEXT NOT NULL,
        id   BLOB NOT NULL,
        body TEXT NOT NULL,
        sum  INTEGER,
        PRIMARY KEY (kind, id)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE histories (
        kind  TEXT NOT NULL,
        seq   INTEGER NOT NULL,
        key   TEXT NOT NULL,
        at_ms INTEGER NOT NULL,
        body  TEXT NOT NULL,
        sum   INTEGER,
        PRIMARY KEY (kind, seq)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX histories_by_key ON histories (kind, key, seq);

    CREATE TABLE history_heads (kind TEXT PRIMARY KEY, seq INTEGER NOT NULL) STRICT, WITHOUT ROWID;

    CREATE TABLE lease (
        one      INTEGER PRIMARY KEY CHECK (one = 1),
        epoch    INTEGER NOT NULL,
        holder   TEXT NOT NULL,
        until_ms INTEGER NOT NULL
    ) STRICT;
    INSERT INTO lease VALUES (1, 0, '', 0);
"];

/// The newest format known here.
#[expect(clippy::cast_possible_truncation, reason = "there are a handful of migrations")]
pub const FORMAT: u32 = MIGRATIONS.len() as u32;

/// Brings the file from the format `from` to [`FORMAT`], each step in its own transaction.
pub(super) fn migrate(connection: &mut Connection, from: u32) -> rusqlite::Result<()> {
    for (number, step) in (1_u32..).zip(MIGRATIONS).filter(|(number, _)| *number > from) {
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute_batch(step)?;
        tx.pragma_update(None, "user_version", number)?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.commit()?;
    }
    Ok(())
}
