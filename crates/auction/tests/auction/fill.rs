//! Clusters that are nearly full: nothing is left over that a first fit would place.

use auction::{CellInfo, Cells, Item, Request, Room, Turn};
use model::CellId;

use crate::{Numbers, cell, cells, copy};

/// Apps of few sizes, most of them small, with 1 to 50 instances.
pub(crate) fn workload(instances: usize, seed: u64) -> Vec<Item> {
    let mut numbers = Numbers(seed);
    let mut items = Vec::new();
    for group in 1.. {
        let copies = match numbers.below(100) {
            0..50 => 1,
            50..80 => 2,
            80..95 => 4,
            95..99 => 10,
            _ => 50,
        };
        let memory_mb = match numbers.below(100) {
            0..60 => 256,
            60..85 => 512,
            85..95 => 1_024,
            _ => 2_048,
        };
        let request = Request { disk_mb: 1_024, ..copy(group, memory_mb) };
        let left = instances - items.len();
        let item = |index| Item { request: request.clone(), turn: Turn::Instance(index) };
        items.extend((0..copies).map(item).take(left));
        if items.len() == instances {
            return items;
        }
    }
    items
}

/// Cells of 64 GiB in three zones.
pub(crate) fn cluster(count: u64) -> Cells {
    let info = |at: u64| CellInfo {
        zone: format!("zone-{}", at % 3),
        room: Room { memory_mb: 65_536, disk_mb: 524_288, containers: 250, ..Room::default() },
        ..cell("", 0, 0)
    };
    cells((0..count).map(info))
}

/// Whether each finds a place on the first cell with room, in the given order.
fn first_fit_places_all(cells: u64, items: &[Item]) -> bool {
    let mut free = vec![(65_536_u64, 524_288_u64, 250_u32); cells as usize];
    items.iter().all(|item| {
        let Request { memory_mb, disk_mb, .. } = item.request;
        let room = free.iter_mut().find(|(memory, disk, containers)| {
            *memory >= memory_mb && *disk >= disk_mb && *containers > 0
        });
        let Some((memory, disk, containers)) = room else { return false };
        (*memory, *disk, *containers) = (*memory - memory_mb, *disk - disk_mb, *containers - 1);
        true
    })
}

fn failed(cells: &mut Cells, items: &[Item]) -> usize {
    cells.place_batch(items).iter().filter(|place| place.is_err()).count()
}

fn memory(items: &[Item]) -> u64 {
    items.iter().map(|item| item.request.memory_mb).sum()
}

#[test]
fn the_workload_fits_on_cells_that_are_99_percent_full() {
    for seed in 1..=5 {
        let items = workload(10_000, seed);
        // As few cells as hold it with a hundredth to spare.
        let count = memory(&items).div_ceil(65_536 * 99 / 100);
        assert_eq!(failed(&mut cluster(count), &items), 0, "seed {seed}, {count} cells");
    }
}

#[test]
fn uneven_sizes_fit_on_cells_that_are_99_percent_full() {
    for seed in 1..=5 {
        let mut numbers = Numbers(seed);
        let mut items = Vec::new();
        let full = 40 * 65_536 * 99 / 100;
        while memory(&items) < full {
            let left = full - memory(&items);
            let memory_mb = (64 + numbers.below(4_000)).min(left.max(1));
            let request =
                Request { disk_mb: 1 + numbers.below(9_000), ..copy(numbers.0.into(), memory_mb) };
            items.push(Item { request, turn: Turn::Instance(numbers.below(2) as u32) });
        }
        assert_eq!(failed(&mut cluster(40), &items), 0, "seed {seed}");
    }
}

/// Many small first copies and two large further ones. Spread evenly, the small ones leave a little
/// on every cell, and no room for the large.
fn pebbles_and_boulders() -> Vec<Item> {
    let small = (0..1_280).flat_map(|group| crate::app(group, 1, 256));
    let large =
        (1..3).map(|index| Item { request: copy(9_999, 25_000), turn: Turn::Instance(index) });
    let mut items: Vec<Item> = small.chain(large).collect();
    for item in &mut items {
        item.request.disk_mb = 1;
    }
    items
}

#[test]
fn a_few_large_further_copies_find_room_among_many_small_first_ones() {
    let items = pebbles_and_boulders();
    let mut cells = cluster(6);
    assert!(first_fit_places_all(6, &items));
    let places = cells.place_batch(&items);
    assert!(places.iter().all(Result::is_ok));
    // A first fit puts both on the last cell.
    assert_ne!(places[1_280], places[1_281]);
}

#[test]
fn what_can_never_fit_does_not_spoil_it_for_the_rest() {
    let mut items = pebbles_and_boulders();
    items.insert(0, Item { request: copy(1, 2_000_000), turn: Turn::Instance(0) });
    assert_eq!(failed(&mut cluster(6), &items), 1);
}

#[test]
fn nothing_is_left_over_that_a_first_fit_would_place() {
    let mut hard = 0;
    for seed in 0..300 {
        let mut numbers = Numbers(seed);
        let count = 2 + numbers.below(5);
        let largest = 2_000 + numbers.below(40_000);
        let mut items: Vec<Item> = Vec::new();
        // As many as a first fit places, so that it is as tight as it can be.
        loop {
            let request = Request {
                disk_mb: numbers.below(100_000),
                ..copy(numbers.below(40).into(), 1 + numbers.below(largest))
            };
            let mut more = items.clone();
            more.push(Item { request, turn: Turn::Instance(numbers.below(3) as u32) });
            more.sort_by_key(|item| {
                let Turn::Instance(index) = item.turn else { return (2, 0, 0) };
                (u32::from(index > 0), u64::MAX - item.request.memory_mb, index)
            });
            if !first_fit_places_all(count, &more) {
                break;
            }
            items = more;
        }
        assert_eq!(failed(&mut cluster(count), &items), 0, "seed {seed}");
        let mut one_by_one = cluster(count);
        hard += usize::from(items.iter().any(|item| one_by_one.place(&item.request).is_err()));
    }
    assert!(hard > 30, "{hard} of 300 need more than one try");
}

#[test]
fn what_cannot_fit_does_not_keep_the_rest_from_being_spread() {
    let mut cells = cluster(30);
    let huge = Item { request: copy(1, 70_000), turn: Turn::Instance(0) };
    let items = [vec![huge], workload(300, 1)].concat();
    let places = cells.place_batch(&items);
    assert!(places[0].is_err());
    assert!(places[1..].iter().all(Result::is_ok));
    let most = (1..=30).filter_map(|id| cells.load(CellId(id))).map(|load| load.containers).max();
    assert!(most < Some(25), "spread, not packed: {most:?} containers on one cell");
}
