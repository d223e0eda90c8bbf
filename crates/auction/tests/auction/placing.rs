//! The rule, one part at a time.

use auction::{CellInfo, Cells, Item, Offers, Request, Stage, Turn, Weights};
use model::CellId;

use crate::{app, cell, cells, copy, counts, needs, with, words};

/// Places copies of one group one after the other.
fn place(cells: &mut Cells, request: &Request, times: usize) -> Vec<u128> {
    (0..times).map(|_| cells.place(request).expect("it fits").0).collect()
}

#[test]
fn copies_of_one_app_spread_before_cells_balance() {
    let mut cells = cells([cell("a", 10_000, 10), cell("a", 1_000, 10)]);
    assert_eq!(place(&mut cells, &copy(7, 100), 4), [1, 2, 1, 2]);
}

#[test]
fn ties_go_to_the_lowest_identifier_whoever_came_first() {
    let mut cells = Cells::default();
    for id in [3, 1, 2] {
        cells.put_cell(CellId(id), cell("a", 1_000, 10));
    }
    let chosen: Vec<u128> =
        (0..6).map(|group| place(&mut cells, &copy(group, 100), 1)[0]).collect();
    assert_eq!(chosen, [1, 2, 3, 1, 2, 3]);
}

#[test]
fn what_a_cell_is_shortest_of_decides() {
    let mut cells = cells([cell("a", 1_000, 100), cell("a", 1_000, 100), cell("a", 1_000, 4)]);
    cells.hold(CellId(1), &Request { memory_mb: 600, ..Request::default() }, Stage::Running);
    cells.hold(
        CellId(2),
        &Request { group: 1, disk_mb: 500, ..Request::default() },
        Stage::Running,
    );
    for group in 2..5 {
        cells.hold(CellId(3), &Request { group, ..Request::default() }, Stage::Running);
    }
    assert_eq!(cells.choose(&copy(9, 10)), Ok(CellId(2)));
}

#[test]
fn the_same_container_fills_a_small_cell_more() {
    let mut cells = cells([cell("a", 1_000, 9_000), cell("a", 64_000, 9_000)]);
    cells.hold(CellId(2), &Request { memory_mb: 6_400, ..Request::default() }, Stage::Running);
    // A tenth of the large one is taken, nothing of the small one.
    assert_eq!(cells.choose(&copy(1, 500)), Ok(CellId(2)));
    assert_eq!(cells.choose(&copy(1, 10)), Ok(CellId(2)), "a hundred times its size counts");
    cells.hold(CellId(2), &Request { memory_mb: 57_000, ..Request::default() }, Stage::Running);
    assert_eq!(cells.choose(&copy(1, 500)), Ok(CellId(2)));
    assert_eq!(cells.choose(&copy(1, 900)), Ok(CellId(1)), "it is too large for the large one");
}

#[test]
fn zones_are_balanced_before_cells() {
    let mut cells = cells([cell("a", 1_000, 10), cell("b", 1_000, 10), cell("a", 1_000, 10)]);
    cells.hold(CellId(2), &copy(1, 500), Stage::Running);
    let chosen = place(&mut cells, &copy(7, 10), 6);
    assert_eq!(chosen.iter().filter(|id| **id == 2).count(), 3);
    assert_eq!(chosen.iter().filter(|id| **id == 1).count(), 2);
}

#[test]
fn tasks_do_not_balance_zones() {
    let mut cells = cells([cell("a", 1_000, 10), cell("b", 1_000, 10), cell("a", 1_000, 10)]);
    cells.hold(CellId(2), &copy(1, 500), Stage::Running);
    let task = Request { spread: false, ..copy(7, 10) };
    assert_eq!(place(&mut cells, &task, 2), [1, 3]);
}

#[test]
fn a_full_or_unfit_zone_is_passed_over() {
    let tagged = |zone| with(cell(zone, 1_000, 10), "", "ssd");
    let mut cells = cells([tagged("a"), tagged("a"), tagged("b"), cell("c", 1_000, 10)]);
    let request = Request { needs: Some(needs("", "ssd")), ..copy(7, 400) };
    assert_eq!(place(&mut cells, &request, 5), [1, 3, 2, 3, 1]);
    assert_eq!(place(&mut cells, &request, 1), [2], "zone b is full");
    assert!(cells.place(&request).is_err());
}

#[test]
fn copies_on_cells_that_take_nothing_do_not_count_for_their_zone() {
    let draining = CellInfo { accepting: false, ..cell("a", 1_000, 10) };
    let mut cells = cells([draining, cell("a", 1_000, 10), cell("b", 1_000, 10)]);
    cells.hold(CellId(1), &copy(7, 100), Stage::Running);
    assert_eq!(place(&mut cells, &copy(7, 100), 2), [2, 3]);
}

#[test]
fn plain_work_stays_away_from_cells_with_required_tags() {
    let offers = Offers { required_tags: words("gpu"), ..Offers::default() };
    let mut cells = cells([
        CellInfo { offers: offers.clone(), ..cell("a", 1_000, 10) },
        with(CellInfo { offers, ..cell("a", 1_000, 10) }, "", "ssd"),
        with(cell("a", 1_000, 10), "", "ssd"),
    ]);
    let tagged = |tags| Request { needs: Some(needs("", tags)), ..copy(7, 1) };
    assert_eq!(place(&mut cells, &copy(7, 1), 2), [3, 3]);
    assert_eq!(place(&mut cells, &tagged("gpu"), 3), [1, 2, 1]);
    assert_eq!(place(&mut cells, &tagged("gpu ssd"), 2), [2, 2]);
    assert_eq!(place(&mut cells, &tagged("ssd"), 2), [3, 3]);
    assert!(cells.place(&tagged("arm")).is_err());
}

#[test]
fn something_pinned_goes_to_its_cell_alone() {
    let mut cells = cells([cell("a", 1_000, 10), cell("b", 1_000, 10)]);
    let pinned = Request { pinned: Some(CellId(2)), ..copy(7, 500) };
    assert_eq!(place(&mut cells, &pinned, 2), [2, 2]);
    assert!(cells.place(&pinned).is_err());
}

#[test]
fn starting_work_spreads_over_cells_however_full() {
    let mut cells = cells([cell("a", 1_000, 100), cell("a", 1_000, 100)]);
    cells.hold(CellId(2), &copy(1, 500), Stage::Running);
    let first: Vec<u128> =
        (10..18).map(|group| place(&mut cells, &copy(group, 10), 1)[0]).collect();
    assert_eq!(first, [1, 2, 1, 2, 1, 2, 1, 2], "the empty cell is ahead by at most one");
    for (group, cell) in (10..18).zip(first) {
        cells.started(CellId(cell), &copy(group, 10));
    }
    // What runs counts once, so the next goes where there is most room.
    assert_eq!(place(&mut cells, &copy(30, 10), 1), [1]);
    cells.started(CellId(1), &copy(30, 10));
    assert_eq!(place(&mut cells, &copy(31, 10), 1), [1]);
}

#[test]
fn bin_packing_fills_one_cell_after_the_other() {
    let mut cells = Cells::new(Weights { starting: 0, bin_packing: 1_000 });
    for id in 1..=4 {
        cells.put_cell(CellId(id), cell("a", 100, 100));
    }
    let chosen: Vec<u128> = (0..8).map(|group| place(&mut cells, &copy(group, 10), 1)[0]).collect();
    assert_eq!(chosen, [1, 1, 1, 2, 1, 2, 1, 2]);
    cells.remove_cell(CellId(1));
    let chosen: Vec<u128> =
        (9..13).map(|group| place(&mut cells, &copy(group, 10), 1)[0]).collect();
    assert_eq!(chosen, [2, 3, 2, 3], "cells are numbered anew");
}

#[test]
fn first_copies_go_before_tasks_and_tasks_before_further_copies() {
    let mut cells = cells([cell("a", 30, 10)]);
    let task = Item { request: Request { spread: false, ..copy(9, 10) }, turn: Turn::Task };
    let mut items = [app(1, 3, 10), app(2, 1, 5)].concat();
    items.insert(0, task);
    let placed: Vec<bool> = cells.place_batch(&items).iter().map(Result::is_ok).collect();
    // The task, the app's first copy, none of its others, the other app.
    assert_eq!(placed, [true, true, false, false, true]);
}

#[test]
fn a_plan_takes_nothing() {
    let mut cells = cells((0..4).map(|_| cell("a", 100, 10)));
    let items = [app(1, 4, 10), app(2, 2, 30)].concat();
    let planned = cells.plan(&items);
    assert_eq!(cells.load(CellId(1)), Some(auction::Load::default()));
    assert_eq!(planned, cells.plan(&items));
    assert_eq!(planned, cells.place_batch(&items));
    assert_ne!(cells.load(CellId(1)), Some(auction::Load::default()));
}

#[test]
fn a_cell_keeps_what_it_holds_while_it_is_away() {
    let mut cells = cells([cell("a", 100, 10), cell("a", 100, 10)]);
    cells.remove_cell(CellId(2));
    cells.hold(CellId(2), &copy(1, 80), Stage::Starting);
    cells.hold(CellId(3), &copy(1, 60), Stage::Running);
    cells.put_cell(CellId(2), cell("a", 100, 10));
    cells.put_cell(CellId(3), cell("a", 100, 10));
    assert!(cells.place(&copy(2, 50)).is_ok_and(|cell| cell == CellId(1)));
    assert!(cells.place(&copy(3, 41)).is_ok_and(|cell| cell == CellId(1)));
    assert_eq!(cells.load(CellId(2)).map(|load| (load.memory_mb, load.starting)), Some((80, 1)));
    cells.started(CellId(2), &copy(1, 80));
    cells.release(CellId(2), &copy(1, 80), Stage::Running);
    cells.release(CellId(2), &copy(1, 80), Stage::Running);
    assert_eq!(cells.load(CellId(2)), Some(auction::Load::default()));
    cells.remove_cell(CellId(2));
    assert_eq!(cells.load(CellId(2)), None);
}

#[test]
fn a_cell_that_comes_back_makes_room() {
    let mut cells = cells([cell("a", 100, 10), cell("a", 100, 10)]);
    assert!(cells.place(&copy(1, 60)).is_ok());
    cells.remove_cell(CellId(2));
    assert!(cells.place(&copy(2, 60)).is_err());
    cells.put_cell(CellId(2), cell("a", 100, 10));
    assert_eq!(cells.place(&copy(2, 60)), Ok(CellId(2)));
    assert!(cells.place(&copy(3, 60)).is_err());
    cells.put_cell(CellId(2), cell("a", 120, 10));
    assert_eq!(cells.place(&copy(3, 60)), Ok(CellId(2)));
}

#[test]
fn a_cell_may_change_its_zone_and_size() {
    let mut cells = cells([cell("a", 100, 10), cell("b", 100, 10)]);
    assert_eq!(place(&mut cells, &copy(1, 10), 2), [1, 2]);
    cells.put_cell(CellId(2), cell("a", 4_000, 10));
    cells.put_cell(CellId(3), cell("b", 100, 10));
    assert_eq!(place(&mut cells, &copy(1, 10), 1), [3], "two copies are in zone a now");
    assert_eq!(place(&mut cells, &copy(2, 2_000), 1), [2]);
}

#[test]
fn a_tag_of_its_own_for_each_cell_does_no_harm() {
    let tagged = |id: u32| with(cell("a", 1_000, 100), "", &format!("host-{id}"));
    let mut cells = cells((1..=50).map(tagged));
    let places: Vec<_> = (0..100).map(|group| cells.place(&copy(group, 1))).collect();
    assert!(counts(&places, 50).iter().all(|count| *count == 2));
    for host in [7, 50, 1] {
        let request = Request { needs: Some(needs("", &format!("host-{host}"))), ..copy(200, 1) };
        assert_eq!(cells.place(&request), Ok(CellId(host)));
    }
}

#[test]
fn thousands_of_kinds_of_needs_are_forgotten_again() {
    let mut cells = cells((1..=3).map(|id| with(cell("a", 9_000, 9_000), "", &format!("t{id}"))));
    for round in 0..3_000_u128 {
        let tag = format!("t{round}");
        let request = Request { needs: Some(needs("", &tag)), ..copy(round, 1) };
        let expected = (1..=3).contains(&round);
        assert_eq!(cells.place(&request).is_ok(), expected, "{tag}");
    }
    let request = Request { needs: Some(needs("", "t2")), ..copy(9, 1) };
    assert_eq!(cells.place(&request), Ok(CellId(2)));
}
