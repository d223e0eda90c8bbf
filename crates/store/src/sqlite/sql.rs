//! Every statement, in one place; a test prepares them all.

pub(super) const LEASE: &str = "SELECT epoch, holder, until_ms FROM lease";

pub(super) const SET_LEASE: &str = "UPDATE lease SET epoch = ?1, holder = ?2, until_ms = ?3";

pub(super) const PUT_RECORD: &str = "INSERT INTO records (kind, id, body, sum)
     VALUES (?1, ?2, ?3, ?4)
     ON CONFLICT (kind, id) DO UPDATE SET body = excluded.body, sum = excluded.sum";

pub(super) const DELETE_RECORD: &str = "DELETE FROM records WHERE kind = ?1 AND id = ?2";

pub(super) const LOAD: &str = "SELECT kind, id, body, sum FROM records ORDER BY kind, id";

pub(super) const HISTORY_HEAD: &str = "SELECT seq FROM history_heads WHERE kind = ?1";

pub(super) const SET_HISTORY_HEAD: &str = "INSERT INTO history_heads (kind, seq) VALUES (?1, ?2)
     ON CONFLICT (kind) DO UPDATE SET seq = excluded.seq";

pub(super) const APPEND_HISTORY: &str =
    "INSERT INTO histories (kind, seq, key, at_ms, body, sum) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";

pub(super) const HISTORY_OLDEST: &str = "SELECT seq, key, at_ms, body, sum FROM histories
     WHERE kind = :kind AND seq > :after AND seq < :before AND at_ms >= :since
     ORDER BY seq LIMIT :limit";

pub(super) const HISTORY_NEWEST: &str = "SELECT seq, key, at_ms, body, sum FROM histories
     WHERE kind = :kind AND seq > :after AND seq < :before AND at_ms >= :since
     ORDER BY seq DESC LIMIT :limit";

pub(super) const HISTORY_OF_KEY_OLDEST: &str = "SELECT seq, key, at_ms, body, sum FROM histories
     WHERE kind = :kind AND key = :key AND seq > :after AND seq < :before AND at_ms >= :since
     ORDER BY seq LIMIT :limit";

pub(super) const HISTORY_OF_KEY_NEWEST: &str = "SELECT seq, key, at_ms, body, sum FROM histories
     WHERE kind = :kind AND key = :key AND seq > :after AND seq < :before AND at_ms >= :since
     ORDER BY seq DESC LIMIT :limit";

pub(super) const PRUNE_HISTORY: &str = "DELETE FROM histories WHERE kind = ?1 AND seq IN
     (SELECT seq FROM histories WHERE kind = ?1 AND seq < ?2 ORDER BY seq LIMIT ?3)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_statement_prepares_and_the_reading_ones_use_an_index() {
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        for migration in super::super::schema::MIGRATIONS {
            connection.execute_batch(migration).unwrap();
        }
        let reading = [
            HISTORY_OLDEST,
            HISTORY_NEWEST,
            HISTORY_OF_KEY_OLDEST,
            HISTORY_OF_KEY_NEWEST,
            PRUNE_HISTORY,
        ];
        for statement in reading {
            let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {statement}")).unwrap();
            let mut rows = plan.raw_query();
            while let Some(row) = rows.next().unwrap() {
                let step: String = row.get(3).unwrap();
                let bad = step.contains("SCAN histories") || step.contains("TEMP B-TREE");
                assert!(!bad, "{statement}: {step}");
            }
        }
        let others = [
            LEASE,
            SET_LEASE,
            PUT_RECORD,
            DELETE_RECORD,
            LOAD,
            HISTORY_HEAD,
            SET_HISTORY_HEAD,
            APPEND_HISTORY,
        ];
        for statement in others {
            connection.prepare(statement).unwrap();
        }
    }
}
