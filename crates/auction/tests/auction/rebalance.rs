//! Moves: they even out, stay within their budget and bring no copies together.

use auction::{Budget, CellInfo, Cells, Move, Request, Stage};
use model::CellId;

use crate::naive::Naive;
use crate::{Numbers, cell, cells, copy, needs, with};

const BUDGET: Budget = Budget { moves: 100, tolerance: 5 };

fn moves(cells: &Cells) -> Vec<(u128, u128, u128)> {
    let short = |Move { group, from, to }| (group, from.0, to.0);
    cells.rebalance(BUDGET).into_iter().map(short).collect()
}

#[test]
fn a_new_cell_gets_its_share() {
    let mut cells = cells([cell("a", 100, 100), cell("a", 100, 100)]);
    for group in 0..8 {
        cells.hold(CellId(1), &copy(group, 10), Stage::Running);
    }
    let all = [(0, 1, 2), (1, 1, 2), (2, 1, 2), (3, 1, 2)];
    assert_eq!(moves(&cells), all);
    let few = Budget { moves: 2, ..BUDGET };
    assert_eq!(cells.rebalance(few).len(), 2);
    assert_eq!(cells.rebalance(Budget { moves: 0, ..BUDGET }), []);
    assert_eq!(cells.rebalance(Budget { tolerance: 80, ..BUDGET }), []);
}

#[test]
fn what_may_not_move_stays() {
    let mut cells = cells([
        with(cell("a", 100, 100), "oci", ""),
        cell("a", 100, 100),
        CellInfo { accepting: false, ..with(cell("a", 100, 100), "oci", "") },
        with(cell("b", 100, 100), "oci", ""),
    ]);
    let task = Request { spread: false, ..copy(1, 20) };
    let pinned = Request { pinned: Some(CellId(1)), ..copy(2, 20) };
    let choosy = Request { needs: Some(needs("oci", "")), ..copy(3, 20) };
    let bound = Request { stays: true, ..copy(5, 1) };
    for request in [&task, &pinned, &choosy, &bound, &copy(4, 20)] {
        cells.hold(CellId(1), request, Stage::Running);
    }
    cells.hold(CellId(2), &copy(4, 1), Stage::Running);
    cells.hold(CellId(4), &copy(9, 70), Stage::Running);
    assert_eq!(moves(&cells), [], "a copy of 4 is on cell 2, zone b is full");
    cells.release(CellId(2), &copy(4, 1), Stage::Running);
    assert_eq!(moves(&cells), [(4, 1, 2)]);
    cells.release(CellId(4), &copy(9, 70), Stage::Running);
    assert_eq!(moves(&cells), [(3, 1, 4), (4, 1, 2)]);
}

#[test]
fn zones_stay_balanced() {
    let mut cells = cells([cell("a", 100, 100), cell("b", 100, 100), cell("b", 100, 100)]);
    for (on, group) in [(1, 1), (2, 1), (1, 2), (1, 3), (2, 3)] {
        cells.hold(CellId(on), &copy(group, 20), Stage::Running);
    }
    // Groups 1 and 3 have a copy in each zone: only within zone b may one move.
    assert_eq!(moves(&cells), [(2, 1, 3)]);
    cells.release(CellId(1), &copy(2, 20), Stage::Running);
    assert_eq!(moves(&cells), [(1, 2, 3)]);
}

#[test]
fn moves_make_any_cluster_more_even_and_nothing_worse() {
    for seed in 0..200 {
        let mut numbers = Numbers(seed);
        let mut naive = Naive::default();
        let mut cells = Cells::default();
        for id in 0..2 + u128::from(numbers.below(8)) {
            let zone = ["a", "b"][numbers.below(2) as usize];
            let info = cell(zone, 1_000 + numbers.below(3) * 500, 40);
            cells.put_cell(CellId(id), info.clone());
            naive.cells.insert(CellId(id), info);
        }
        for _ in 0..numbers.below(60) {
            let group = u128::from(numbers.below(30));
            let request = copy(group, 20 + group as u64 * 5);
            let at = CellId(u128::from(numbers.below(naive.cells.len() as u64 / 2 + 1)));
            if naive.fits(at, &request) {
                cells.hold(at, &request, Stage::Running);
                naive.held.push((at, request, Stage::Running));
            }
        }
        check(&cells, naive);
    }
}

fn check(cells: &Cells, mut naive: Naive) {
    let full = |naive: &Naive, id: CellId| {
        let on = naive.held.iter().filter(|(on, ..)| *on == id);
        let used: u64 = on.map(|(_, request, _)| request.memory_mb).sum();
        used * 1_000 / naive.cells[&id].room.memory_mb
    };
    let moves = cells.rebalance(BUDGET);
    let mut seen = std::collections::BTreeSet::new();
    for Move { group, from, to } in moves {
        assert!(seen.insert(group), "one copy of a group at a time");
        let at =
            naive.held.iter().position(|(on, request, _)| *on == from && request.group == group);
        let (_, request, stage) = naive.held.remove(at.expect("it is there"));
        let left = full(&naive, from);
        assert!(naive.fits(to, &request) && naive.will_do(to, &request));
        assert!(naive.copies(to, group) <= naive.copies(from, group));
        let (old, new) = (&naive.cells[&from].zone, &naive.cells[&to].zone);
        assert!(old == new || naive.in_zone(new, group) <= naive.in_zone(old, group));
        naive.held.push((to, request, stage));
        let containers = |id| naive.held.iter().filter(|(on, ..)| *on == id).count() * 1_000 / 40;
        assert!(full(&naive, to) <= left.max(containers(from) as u64) + 1);
    }
}
