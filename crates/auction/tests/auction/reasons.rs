//! Why something has no place: a table of sentences.

use auction::{
    CellInfo, Cells, Item, Needs, Offers, PinnedWhy, Request, Room, Stage, Turn, Unplaced,
};
use model::CellId;
use std::sync::Arc;

use crate::{cell, cells, copy, needs, with, words};

fn why(cells: &mut Cells, request: &Request) -> String {
    cells.place(request).expect_err("nothing fits").to_string()
}

fn asks(memory_mb: u64, driver: &str, tags: &str) -> Request {
    Request { needs: Some(needs(driver, tags)), ..copy(1, memory_mb) }
}

#[test]
fn without_cells_there_is_one_reason() {
    assert_eq!(why(&mut Cells::default(), &copy(1, 1)), "no cell is connected");
    let mut gone = cells([cell("a", 100, 10)]);
    gone.hold(CellId(1), &copy(2, 1), Stage::Running);
    gone.remove_cell(CellId(1));
    assert_eq!(why(&mut gone, &copy(1, 1)), "no cell is connected");
    let draining = CellInfo { accepting: false, ..cell("a", 100, 10) };
    let mut draining = cells([draining]);
    assert_eq!(why(&mut draining, &copy(1, 1)), "no cell takes new work: all are draining");
}

#[test]
fn the_sentence_names_what_is_short_on_cells_that_would_do() {
    let oci = with(cell("a", 1_400, 10), "oci process", "gpu ssd");
    let plain = with(cell("b", 8_000, 10), "process", "");
    let small = Room { disk_mb: 50, cpu_shares: Some(100), pids: Some(64), ..plain.room };
    let mut cells = cells([oci, CellInfo { room: small, ..plain }]);
    let disk = |disk_mb| Request { disk_mb, ..copy(1, 1) };
    let cases = [
        (copy(1, 9_000), "needs 9000 MiB of memory, the freest cell has 8000 MiB"),
        (
            asks(2_048, "oci", ""),
            "needs 2048 MiB of memory, the freest cell with driver oci has 1400 MiB",
        ),
        (
            asks(2_048, "oci", "gpu ssd"),
            "needs 2048 MiB of memory, the freest cell with driver oci, tag gpu and tag ssd has \
             1400 MiB",
        ),
        (asks(1, "vm", ""), "no cell has driver vm"),
        (asks(1, "vm", "gpu"), "no cell has driver vm"),
        (asks(1, "", "arm"), "no cell has tag arm"),
        (asks(1, "oci", "arm"), "no cell has driver oci and tag arm"),
        (disk(1_500), "needs 1500 MiB of disk, the freest cell has 1400 MiB"),
        (
            Request { memory_mb: 2_000, disk_mb: 60, ..copy(1, 1) },
            "no single cell has enough memory, disk and container slots together",
        ),
        (
            Request { cpu_shares: 200, disk_mb: 10, ..copy(1, 2_000) },
            "no single cell has enough memory, disk and container slots together",
        ),
    ];
    for (request, sentence) in cases {
        assert_eq!(why(&mut cells, &request), sentence, "{request:?}");
    }
    cells.remove_cell(CellId(1));
    let cases = [
        (
            Request { cpu_shares: 200, ..copy(1, 1) },
            "needs 200 CPU shares, the freest cell has 100 CPU shares",
        ),
        (
            Request { pids: 65, ..copy(1, 1) },
            "needs 65 processes, the freest cell has 64 processes",
        ),
    ];
    for (request, sentence) in cases {
        assert_eq!(why(&mut cells, &request), sentence, "{request:?}");
    }
}

#[test]
fn volumes_are_named_before_tags() {
    let offers = Offers { volumes: words("local nfs"), ..Offers::default() };
    let mut cells = cells([CellInfo { offers, ..cell("a", 100, 10) }]);
    let asks = |volumes, tags| {
        let needs = Needs { volumes: words(volumes), tags: words(tags), driver: None };
        Request { needs: Some(Arc::new(needs)), ..copy(1, 1) }
    };
    assert_eq!(why(&mut cells, &asks("block", "gpu")), "no cell has volumes of kind block");
    assert_eq!(why(&mut cells, &asks("nfs", "gpu")), "no cell has volumes of kind nfs and tag gpu");
    assert_eq!(cells.place(&asks("nfs local", "")), Ok(CellId(1)));
}

#[test]
fn cells_may_be_kept_for_tags_that_were_not_asked_for() {
    let offers = Offers { required_tags: words("gpu"), ..Offers::default() };
    let mut cells = cells([with(CellInfo { offers, ..cell("a", 100, 10) }, "oci", "")]);
    assert_eq!(why(&mut cells, &copy(1, 1)), "every cell is kept for work with other tags");
    let sentence = "every cell with driver oci is kept for work with other tags";
    assert_eq!(why(&mut cells, &asks(1, "oci", "")), sentence);
    assert_eq!(cells.place(&asks(1, "oci", "gpu")), Ok(CellId(1)));
}

#[test]
fn container_slots_run_out_too() {
    let mut cells = cells([cell("a", 1_000, 2), with(cell("b", 100, 9), "oci", "")]);
    cells.hold(CellId(1), &copy(7, 1), Stage::Running);
    cells.hold(CellId(1), &copy(7, 1), Stage::Running);
    for _ in 0..9 {
        assert_eq!(cells.place(&copy(1, 1)), Ok(CellId(2)));
    }
    assert_eq!(why(&mut cells, &copy(1, 1)), "every cell holds as many containers as it may");
    let sentence = "every cell with driver oci holds as many containers as it may";
    assert_eq!(why(&mut cells, &asks(1, "oci", "")), sentence);
}

#[test]
fn something_pinned_says_what_its_cell_lacks() {
    let pinned = |cell, memory_mb| Request { pinned: Some(CellId(cell)), ..copy(1, memory_mb) };
    let mut cells = cells([
        cell("a", 1_000, 1),
        CellInfo { accepting: false, ..cell("a", 1_000, 10) },
        with(cell("a", 1_000, 10), "process", ""),
    ]);
    let at = |cell: u128| CellId(cell);
    let cases = [
        (pinned(9, 1), format!("its volume is on {}, which is not connected", at(9))),
        (
            pinned(2, 1),
            format!("its volume is on {}, which takes no new work: it is draining", at(2)),
        ),
        (
            pinned(1, 2_048),
            format!(
                "its volume is on {}, which has 1000 MiB of the 2048 MiB of memory it needs",
                at(1)
            ),
        ),
        (
            Request { needs: Some(needs("oci", "")), ..pinned(3, 1) },
            format!("its volume is on {}, which is not for work that needs driver oci", at(3)),
        ),
    ];
    for (request, sentence) in cases {
        assert_eq!(why(&mut cells, &request), sentence);
    }
    assert_eq!(cells.place(&pinned(1, 1)), Ok(CellId(1)));
    let full = format!("its volume is on {}, which holds as many containers as it may", at(1));
    assert_eq!(why(&mut cells, &pinned(1, 1)), full);
    cells.put_cell(
        CellId(3),
        CellInfo {
            offers: Offers { required_tags: words("gpu"), ..Offers::default() },
            ..cell("a", 1_000, 10)
        },
    );
    let kept = format!("its volume is on {}, which is kept for work with other tags", at(3));
    assert_eq!(why(&mut cells, &pinned(3, 1)), kept);
    cells.put_cell(CellId(3), cell("a", 1_000, 10));
    cells.hold(CellId(3), &copy(1, 1_001), Stage::Running);
    let over = format!("its volume is on {}, which holds more than it has room for", at(3));
    assert_eq!(why(&mut cells, &Request { disk_mb: 0, ..pinned(3, 0) }), over);
}

#[test]
fn what_ends_on_a_cell_counts_as_room() {
    let mut cells = cells([cell("a", 1_000, 1)]);
    let (at, old) = (CellId(1), copy(1, 600));
    cells.hold(at, &old, Stage::Running);
    assert!(matches!(cells.why_not_after(at, &copy(2, 600), &[]), Some(PinnedWhy::Short { .. })));
    assert_eq!(cells.why_not_after(at, &copy(2, 1_000), &[&old]), None);
    let why = cells.why_not_after(at, &copy(2, 1_001), &[&old]).expect("it does not fit");
    assert_eq!(why.to_string(), "which has 1000 MiB of the 1001 MiB of memory it needs");
    let why =
        cells.why_not_after(at, &asks(1, "vm", ""), &[&old]).expect("there is no such driver");
    assert_eq!(why.to_string(), "which is not for work that needs driver vm");
    assert_eq!(cells.why_not_after(CellId(9), &old, &[]), Some(PinnedWhy::Away));
}

#[test]
fn a_batch_gives_each_its_own_reason() {
    let mut cells = cells([cell("a", 100, 10)]);
    let item = |request| Item { request, turn: Turn::Instance(0) };
    let items = [copy(1, 60), copy(2, 50), asks(1, "vm", ""), copy(3, 500), copy(4, 40)];
    let places = cells.place_batch(&items.map(item));
    let said: Vec<String> = places
        .iter()
        .map(|place| place.as_ref().map_or_else(Unplaced::to_string, CellId::to_string))
        .collect();
    let one = CellId(1).to_string();
    assert_eq!(
        said,
        [
            &one,
            "needs 50 MiB of memory, the freest cell has 0 MiB",
            "no cell has driver vm",
            "needs 500 MiB of memory, the freest cell has 0 MiB",
            &one,
        ]
    );
}
