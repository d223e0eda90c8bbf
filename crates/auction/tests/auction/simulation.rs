//! Whole clusters, as Diego's simulation suite has them, with what it expects of them.

use std::collections::BTreeMap;

use auction::{Cells, Item, Request, Stage, Weights};
use model::CellId;

use crate::{app, cell, copy, counts};

/// As many cells as that, of 100 each of everything, in two zones.
fn cluster(count: u128, weights: Weights) -> Cells {
    let mut cells = Cells::new(weights);
    for id in 1..=count {
        cells.put_cell(CellId(id), cell(zone(id), 100, 100));
    }
    cells
}

const fn zone(id: u128) -> &'static str {
    if id % 2 == 1 { "Z0" } else { "Z1" }
}

/// Something that runs already.
fn preload(cells: &mut Cells, cell: u128, containers: u128) {
    for number in 0..containers {
        cells.hold(CellId(cell), &copy(1_000_000 + cell * 1_000 + number, 1), Stage::Running);
    }
}

/// Apps of one instance each.
fn single(groups: std::ops::Range<u128>, memory_mb: u64) -> Vec<Item> {
    groups.flat_map(|group| app(group, 1, memory_mb)).collect()
}

/// Places everything; how many there are on each cell.
fn run(cells: &mut Cells, items: &[Item], count: u128) -> Vec<usize> {
    let places = cells.place_batch(items);
    assert!(places.iter().all(Result::is_ok), "everything fits");
    counts(&places, count)
}

#[track_caller]
fn within(counts: &[usize], tolerance: f64) {
    let mean = counts.iter().sum::<usize>() as f64 / counts.len() as f64;
    let far = |count: &&usize| (**count as f64 - mean).abs() > tolerance;
    assert_eq!(counts.iter().find(far), None, "mean {mean}: {counts:?}");
}

#[test]
fn a_small_cold_start_is_even() {
    for (count, apps) in [(4, 8), (10, 40), (20, 200), (40, 800)] {
        let counts = run(&mut cluster(count, Weights::default()), &single(0..apps, 1), count);
        within(&counts, 1.0);
    }
}

#[test]
fn bin_packing_prefers_the_first_cells_of_each_zone() {
    for bin_packing in [250, 500, 750] {
        let weights = Weights { bin_packing, ..Weights::default() };
        for (count, apps) in [(4, 8), (10, 40), (20, 200), (40, 800)] {
            let on = run(&mut cluster(count, weights), &single(0..apps, 1), count);
            let zones = [0, 1].map(|zone| on.iter().skip(zone).step_by(2).copied());
            for zone in zones.clone() {
                assert!(zone.is_sorted_by(|first, second| first >= second), "{on:?}");
            }
            let [first, second] = zones.map(Iterator::sum::<usize>);
            assert!(first.abs_diff(second) <= 1, "{bin_packing} {count} {apps}: {on:?}");
            let copies = run(&mut cluster(count, weights), &app(1, apps as u32, 1), count);
            within(&copies, 1.0);
        }
    }
}

#[test]
fn a_large_cold_start_of_mixed_sizes_is_about_even() {
    for (count, sizes) in [(25, [1_800, 200, 50]), (100, [7_200, 800, 200])] {
        let mut items = Vec::new();
        for (size, total) in [1_u64, 2, 4].into_iter().zip(sizes) {
            let base = u128::from(size) * 100_000;
            items.extend(single(base..base + total / 2, size));
            for shade in 0..4 {
                items.extend(app(shade, (total / 8) as u32, size));
            }
        }
        let counts = run(&mut cluster(count, Weights::default()), &items, count);
        within(&counts, 10.0);
    }
}

#[test]
fn new_work_does_not_pile_up_on_empty_cells() {
    for (empty, apps) in [(5, 500), (1, 100), (1, 500)] {
        let mut cells = cluster(100, Weights::default());
        for cell in empty + 1..=100 {
            preload(&mut cells, cell, 50);
        }
        let counts = run(&mut cells, &single(0..apps, 1), 100);
        within(&counts, 1.0);
    }
}

#[test]
fn a_lone_cell_gets_the_share_of_its_zone() {
    let mut cells = Cells::default();
    for (id, zone) in [(1, "Z0"), (2, "Z1"), (3, "Z0")] {
        cells.put_cell(CellId(id), cell(zone, 100, 100));
    }
    preload(&mut cells, 2, 50);
    assert_eq!(run(&mut cells, &app(1, 40, 1), 3), [10, 20, 10]);
}

#[test]
fn one_large_app_spreads_over_a_full_cluster() {
    for (count, instances) in [(10, 80), (30, 200), (100, 400)] {
        let mut cells = cluster(count, Weights::default());
        for cell in 1..=count {
            preload(&mut cells, cell, 78 + cell % 3);
        }
        within(&run(&mut cells, &app(1, instances, 1), count), 1.0);
    }
}

#[test]
fn boulders_and_pebbles_share_a_cell_in_turn() {
    let mut cells = cluster(1, Weights::default());
    let items = [single(10..90, 1), app(1, 2, 50)].concat();
    let places = cells.place_batch(&items);
    assert_eq!(places.iter().filter(|place| place.is_ok()).count(), 51);
    assert!(places[80].is_ok(), "the first boulder wins");
    assert!(places[81].is_err(), "the second loses");
}

#[test]
fn a_cold_cluster_is_balanced_to_a_quarter_of_a_percent() {
    for seed in 1..=3 {
        let items = crate::fill::workload(10_000, seed);
        let mut cells = crate::fill::cluster(100);
        let places = cells.place_batch(&items);
        assert!(places.iter().all(Result::is_ok));
        let used = |id| cells.load(CellId(id)).map_or(0, |load| load.memory_mb) as f64;
        let shares: Vec<f64> = (1..=100).map(|id| used(id) * 100.0 / 65_536.0).collect();
        let mean = shares.iter().sum::<f64>() / 100.0;
        let variance = shares.iter().map(|share| (share - mean).powi(2)).sum::<f64>() / 100.0;
        assert!(variance.sqrt() <= 0.25, "seed {seed}: {} points", variance.sqrt());
    }
}

#[test]
fn a_lost_tenth_is_placed_again_without_copies_together() {
    let items = crate::fill::workload(5_000, 1);
    let mut cells = crate::fill::cluster(60);
    let places = cells.place_batch(&items);
    let gone = |place: &Result<CellId, _>| place.as_ref().is_ok_and(|cell| cell.0 % 10 == 0);
    let mut again: Vec<Item> = Vec::new();
    let mut copies: BTreeMap<(u128, CellId), u32> = BTreeMap::new();
    for (item, place) in items.iter().zip(&places) {
        let cell = *place.as_ref().expect("it fits");
        cells.started(cell, &item.request);
        if gone(place) {
            cells.release(cell, &item.request, Stage::Running);
            again.push(item.clone());
        } else {
            *copies.entry((item.request.group, cell)).or_default() += 1;
        }
    }
    for cell in (10..=60).step_by(10) {
        cells.remove_cell(CellId(cell));
    }
    for (item, place) in again.iter().zip(cells.place_batch(&again)) {
        *copies.entry((item.request.group, place.expect("it fits"))).or_default() += 1;
    }
    assert!(copies.values().all(|count| *count == 1), "no two copies share a cell");
}

#[test]
fn work_that_few_cells_take_is_balanced_too() {
    let mut cells = Cells::default();
    for id in 1..=30 {
        let tags = if id % 3 == 0 { "ssd" } else { "" };
        cells.put_cell(CellId(id), crate::with(cell(zone(id), 10_000, 1_000), "", tags));
    }
    let tagged = |items: Vec<Item>| {
        let needs = Some(crate::needs("", "ssd"));
        let tag = |item: Item| Item {
            request: Request { needs: needs.clone(), ..item.request },
            turn: item.turn,
        };
        items.into_iter().map(tag).collect::<Vec<_>>()
    };
    let items = [single(0..2_000, 100), tagged(single(3_000..3_400, 100))].concat();
    let counts = run(&mut cells, &items, 30);
    assert!(counts.iter().all(|count| *count == 80), "{counts:?}");
}
