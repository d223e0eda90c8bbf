//! What every backend must do, as a suite it is put through.
//!
//! A backend is given as a function that makes fresh, empty places; a place can be opened again
//! after the store in it was dropped. A broken promise ends in a failed assertion that names it.

use std::fmt::{Debug, Formatter};
use std::sync::Arc;

use crate::{
    Batch, Epoch, HistoryEntry, HistoryQuery, HistoryRow, Kind, Order, Record, Store, StoreError,
    Writer, WriterLimits,
};

const JOB: Kind = Kind::new("job");
const CELL: Kind = Kind::new("cell");
const AUDIT: Kind = Kind::new("audit");
const DONE: Kind = Kind::new("finished_job");

type Answer = Result<(), StoreError>;
type Case = fn(&Place) -> Answer;

/// Somewhere a store lives; opening it again finds what was committed.
pub struct Place {
    open: Box<dyn Fn() -> Result<Arc<dyn Store>, StoreError>>,
}

impl Place {
    /// A place that is opened by `open`.
    pub fn new(open: impl Fn() -> Result<Arc<dyn Store>, StoreError> + 'static) -> Self {
        Self { open: Box::new(open) }
    }

    fn open(&self) -> Result<Arc<dyn Store>, StoreError> {
        (self.open)()
    }
}

impl Debug for Place {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str("Place")
    }
}

/// Runs every case, each in a fresh place. The error names the case that failed.
pub fn all(fresh: impl Fn() -> Place) -> Result<(), String> {
    let cases: [(&str, Case); 11] = [
        ("records come back in order", records_come_back_in_order),
        ("the later change wins", the_later_change_wins),
        ("reopening finds everything", reopening_finds_everything),
        ("a batch is kept whole or not at all", a_batch_is_whole),
        ("a deposed epoch is refused", a_deposed_epoch_is_refused),
        ("the lease passes on when it runs out", the_lease_passes_on),
        ("a released lease is free at once", a_released_lease_is_free),
        ("histories are filtered and paged", histories_are_filtered),
        ("pruned numbers are not reused", pruned_numbers_are_not_reused),
        ("a visitor can end a load", a_visitor_can_end_a_load),
        ("a writer keeps the order", a_writer_keeps_the_order),
    ];
    for (name, case) in cases {
        case(&fresh()).map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}

fn put(kind: Kind, id: u128, body: &str) -> Record {
    Record::put(kind, id, body.as_bytes().to_vec())
}

fn line(kind: Kind, key: &str, at_ms: u64) -> HistoryEntry {
    let body = format!("{{\"at\":{at_ms}}}").into_bytes();
    HistoryEntry { kind, key: key.to_owned(), at_ms, body }
}

fn dump(store: &dyn Store) -> Result<Vec<(String, u128, String)>, StoreError> {
    let mut rows = Vec::new();
    let loaded = store.load(&mut |kind, id, body| {
        rows.push((kind.to_owned(), id, String::from_utf8_lossy(body).into_owned()));
        Ok(())
    })?;
    assert_eq!(loaded.records, rows.len() as u64, "the count of a load is what it handed out");
    let bytes: usize = rows.iter().map(|(_, _, body)| body.len()).sum();
    assert_eq!(loaded.bytes, bytes as u64, "the bytes of a load are what it handed out");
    Ok(rows)
}

fn row(kind: Kind, id: u128, body: &str) -> (String, u128, String) {
    (kind.to_string(), id, body.to_owned())
}

fn seqs(rows: &[HistoryRow]) -> Vec<u64> {
    rows.iter().map(|row| row.seq).collect()
}

fn records_come_back_in_order(place: &Place) -> Answer {
    let store = place.open()?;
    let epoch = store.acquire("a", 0, 1_000)?;
    let records = vec![
        put(JOB, u128::MAX, "{\"n\":\"\u{fc}ber\"}"),
        put(JOB, 7, "{}"),
        put(CELL, 9, "[]"),
        put(JOB, 1 << 64, "1"),
    ];
    store.commit(epoch, vec![Batch::of(records)])?;
    let want = [
        row(CELL, 9, "[]"),
        row(JOB, 7, "{}"),
        row(JOB, 1 << 64, "1"),
        row(JOB, u128::MAX, "{\"n\":\"\u{fc}ber\"}"),
    ];
    assert_eq!(dump(&*store)?, want, "by kind, then by identifier");
    Ok(())
}

fn the_later_change_wins(place: &Place) -> Answer {
    let store = place.open()?;
    let epoch = store.acquire("a", 0, 1_000)?;
    let first = vec![put(JOB, 1, "1"), put(JOB, 2, "1"), Record::delete(JOB, 3), put(JOB, 3, "1")];
    let second = vec![put(JOB, 1, "2"), Record::delete(JOB, 2), Record::delete(JOB, 99)];
    store.commit(epoch, vec![Batch::of(first), Batch::of(second)])?;
    assert_eq!(dump(&*store)?, [row(JOB, 1, "2"), row(JOB, 3, "1")], "within one commit");
    store.commit(epoch, vec![Batch::of(vec![Record::delete(JOB, 1), put(JOB, 3, "3")])])?;
    assert_eq!(dump(&*store)?, [row(JOB, 3, "3")], "across commits");
    store.commit(epoch, Vec::new())?;
    Ok(())
}

fn reopening_finds_everything(place: &Place) -> Answer {
    let store = place.open()?;
    let epoch = store.acquire("a", 0, 1_000)?;
    let batch = Batch { records: vec![put(JOB, 1, "{}")], histories: vec![line(AUDIT, "u", 5)] };
    store.commit(epoch, vec![batch])?;
    drop(store);
    let store = place.open()?;
    assert_eq!(dump(&*store)?, [row(JOB, 1, "{}")], "records survive");
    assert_eq!(seqs(&store.query_history(&HistoryQuery::new(AUDIT, 9))?), [1], "so do histories");
    let held = store.acquire("b", 10, 1_000);
    assert!(matches!(held, Err(StoreError::Held { .. })), "so does the lease: {held:?}");
    let next = store.acquire("a", 10, 1_000)?;
    assert!(next > epoch, "the same holder gets it back under a greater epoch");
    let refused = store.commit(epoch, vec![Batch::of(vec![put(JOB, 2, "{}")])]);
    assert!(matches!(refused, Err(StoreError::Deposed { .. })), "its former self is deposed");
    Ok(())
}

fn a_batch_is_whole(place: &Place) -> Answer {
    let store = place.open()?;
    let epoch = store.acquire("a", 0, 1_000)?;
    let bad = Record::put(JOB, 2, vec![b'"', 0xff, b'"']);
    let good = Batch { records: vec![put(JOB, 1, "{}")], histories: vec![line(AUDIT, "u", 5)] };
    let refused = store.commit(epoch, vec![good.clone(), Batch::of(vec![bad])]);
    assert!(matches!(refused, Err(StoreError::BadRecord { .. })), "not text: {refused:?}");
    assert!(dump(&*store)?.is_empty(), "nothing of a refused commit is kept");
    store.commit(epoch, vec![good])?;
    assert_eq!(
        seqs(&store.query_history(&HistoryQuery::new(AUDIT, 9))?),
        [1],
        "a refused commit uses no sequence number"
    );
    Ok(())
}

fn a_deposed_epoch_is_refused(place: &Place) -> Answer {
    let store = place.open()?;
    let old = store.acquire("a", 0, 10)?;
    let new = store.acquire("b", 11, 10)?;
    let want = StoreError::Deposed { epoch: old.0, current: new.0 };
    let batch = vec![Batch::of(vec![put(JOB, 1, "{}")])];
    assert_eq!(store.commit(old, batch.clone()), Err(want.clone()), "commit");
    assert_eq!(store.commit(old, Vec::new()), Err(want.clone()), "even an empty commit");
    assert_eq!(store.renew(old, 12, 10), Err(want.clone()), "renew");
    assert_eq!(store.release(old), Err(want.clone()), "release");
    assert_eq!(store.prune_history(old, AUDIT, 9, 9), Err(want), "prune");
    let future = Epoch(new.0 + 1);
    assert!(store.commit(future, batch.clone()).is_err(), "an epoch nobody was given");
    store.commit(new, batch)?;
    assert_eq!(dump(&*store)?.len(), 1, "only the current epoch wrote");
    assert_eq!(store.load(&mut |_, _, _| Ok(()))?.epoch, new, "a load tells the epoch");
    Ok(())
}

fn the_lease_passes_on(place: &Place) -> Answer {
    let store = place.open()?;
    let first = store.acquire("a", 100, 50)?;
    let held = StoreError::Held { holder: "a".to_owned(), until_ms: 150 };
    assert_eq!(store.acquire("b", 149, 50), Err(held), "not before it runs out");
    store.renew(first, 140, 50)?;
    assert!(store.acquire("b", 150, 50).is_err(), "a renewal counts");
    let second = store.acquire("b", 190, 50)?;
    assert!(second > first, "epochs grow");
    store.commit(second, Vec::new())
}

fn a_released_lease_is_free(place: &Place) -> Answer {
    let store = place.open()?;
    let first = store.acquire("a", 100, 50)?;
    store.release(first)?;
    let refused = store.commit(first, Vec::new());
    assert!(matches!(refused, Err(StoreError::Deposed { .. })), "released is deposed");
    assert!(store.acquire("b", 101, 50)? > first, "free at once");
    Ok(())
}

fn histories_are_filtered(place: &Place) -> Answer {
    let store = place.open()?;
    let epoch = store.acquire("a", 0, 1_000)?;
    for chunk in 0..4 {
        let keys = ["x", "y", "x"];
        let mut histories: Vec<_> =
            (0..).zip(keys).map(|(n, key)| line(AUDIT, key, chunk * 10 + n)).collect();
        histories.push(line(DONE, "x", chunk));
        store.commit(epoch, vec![Batch { records: Vec::new(), histories }])?;
    }
    let all = HistoryQuery::new(AUDIT, 100);
    let ask = |query: &HistoryQuery| store.query_history(query).map(|rows| seqs(&rows));
    assert_eq!(ask(&all)?, (1..=12).collect::<Vec<u64>>(), "each history counts for itself");
    assert_eq!(ask(&HistoryQuery::new(DONE, 100))?, [1, 2, 3, 4], "and so does the other");
    assert_eq!(ask(&HistoryQuery { after: Some(3), limit: 2, ..all.clone() })?, [4, 5], "after");
    assert_eq!(ask(&HistoryQuery { before: Some(3), ..all.clone() })?, [1, 2], "before");
    let window = HistoryQuery { after: Some(2), before: Some(5), ..all.clone() };
    assert_eq!(ask(&window)?, [3, 4], "both ends are excluded");
    assert_eq!(ask(&HistoryQuery::newest(AUDIT, 2))?, [12, 11], "newest first");
    let of_y = HistoryQuery { key: Some("y".to_owned()), ..all.clone() };
    assert_eq!(ask(&of_y)?, [2, 5, 8, 11], "by key");
    let last_y = HistoryQuery { order: Order::NewestFirst, limit: 1, ..of_y };
    assert_eq!(ask(&last_y)?, [11], "by key, newest first");
    assert_eq!(ask(&HistoryQuery { since_ms: Some(31), ..all.clone() })?, [11, 12], "since");
    assert_eq!(ask(&HistoryQuery { limit: 0, ..all.clone() })?, Vec::<u64>::new(), "none asked");
    assert_eq!(ask(&HistoryQuery { after: Some(u64::MAX), ..all })?, Vec::<u64>::new(), "past");
    let rows = store.query_history(&HistoryQuery::newest(AUDIT, 1))?;
    let body = b"{\"at\":32}".to_vec();
    assert_eq!(rows, [HistoryRow { seq: 12, key: "x".to_owned(), at_ms: 32, body }], "whole");
    Ok(())
}

fn pruned_numbers_are_not_reused(place: &Place) -> Answer {
    let store = place.open()?;
    let epoch = store.acquire("a", 0, 1_000)?;
    let append = |count: u64| {
        let histories = (0..count).map(|n| line(AUDIT, "k", n)).collect();
        store.commit(epoch, vec![Batch { records: Vec::new(), histories }])
    };
    append(5)?;
    assert_eq!(store.prune_history(epoch, AUDIT, 5, 3)?, 3, "at most the limit");
    let all = HistoryQuery::new(AUDIT, 100);
    assert_eq!(seqs(&store.query_history(&all)?), [4, 5], "the oldest go first");
    assert_eq!(store.prune_history(epoch, AUDIT, 100, 100)?, 2, "all of them");
    assert_eq!(store.prune_history(epoch, DONE, 100, 100)?, 0, "an empty history");
    append(1)?;
    assert_eq!(seqs(&store.query_history(&all)?), [6], "numbering goes on");
    Ok(())
}

fn a_visitor_can_end_a_load(place: &Place) -> Answer {
    let store = place.open()?;
    let epoch = store.acquire("a", 0, 1_000)?;
    store.commit(epoch, vec![Batch::of(vec![put(JOB, 1, "{}"), put(JOB, 2, "{}")])])?;
    let mut seen = 0;
    let ended = store.load(&mut |_, _, _| {
        seen += 1;
        Err("unknown field".to_owned())
    });
    let detail = "unknown field".to_owned();
    let want = StoreError::BadRecord { kind: "job".to_owned(), id: 1, detail };
    assert_eq!(ended, Err(want), "the refusal names the record");
    assert_eq!(seen, 1, "and no further record is handed out");
    assert_eq!(dump(&*store)?.len(), 2, "a load can be tried again");
    Ok(())
}

fn a_writer_keeps_the_order(place: &Place) -> Answer {
    let store = place.open()?;
    let epoch = store.acquire("a", 0, 1_000)?;
    let writer = Writer::start(Arc::clone(&store), epoch, WriterLimits::default())?;
    let completions: Result<Vec<_>, _> = (0..100_u128)
        .map(|n| {
            let body = n.to_string();
            writer.submit(Batch::of(vec![put(JOB, 0, &body), put(JOB, 1 + n, &body)]))
        })
        .collect();
    for completion in completions? {
        completion.wait()?;
    }
    let rows = dump(&*store)?;
    assert_eq!(rows.len(), 101, "every batch is there");
    assert_eq!(rows.first(), Some(&row(JOB, 0, "99")), "the last one wrote last");
    Ok(())
}
