//! Random clusters and random histories, compared with the naive form of the rule.

use auction::{CellInfo, Cells, Item, Offers, Request, Room, Stage, Turn};
use model::CellId;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::naive::Naive;
use crate::{needs, words};

/// Something that happens to a cluster.
#[derive(Debug, Clone)]
enum Step {
    Put(u128, CellInfo),
    Remove(u128),
    Hold(u128, Request, Stage),
    /// Each of these is about one of the things held.
    Release(usize),
    Started(usize),
    Place(Request),
    Batch(Vec<Item>),
}

const CELLS: u128 = 9;

fn info() -> impl Strategy<Value = CellInfo> {
    let room =
        (0_u32..3, 1_u64..6, 0_u32..9, 0_u64..4).prop_map(|(size, disk, containers, cpu)| Room {
            memory_mb: (1_000 << size) + 24,
            disk_mb: disk * 400,
            containers,
            cpu_shares: (cpu > 0).then_some(cpu * 100),
            pids: (cpu == 2).then_some(50),
        });
    let tags = || prop_oneof![Just(""), Just("ssd"), Just("ssd gpu")];
    let drivers = prop_oneof![Just("process"), Just("oci process")];
    let required = prop_oneof![4 => Just(""), 1 => Just("gpu")];
    let zone = prop_oneof![Just("a"), Just("b"), Just("c")];
    (zone, room, tags(), drivers, required, any::<u8>()).prop_map(
        |(zone, room, optional, drivers, required, accepting)| CellInfo {
            zone: zone.to_owned(),
            room,
            offers: Offers {
                required_tags: words(required),
                optional_tags: words(optional),
                drivers: words(drivers),
                ..Offers::default()
            },
            accepting: accepting > 30,
        },
    )
}

/// Copies of one group are alike, as the instances of a process are.
fn request() -> impl Strategy<Value = Request> {
    (0_u128..12, 0_u128..20).prop_map(|(group, pinned)| {
        let number = group as u64;
        Request {
            group,
            memory_mb: 30 + number * 37,
            disk_mb: number * 29 % 200,
            cpu_shares: number % 4 * 20,
            pids: number % 3 * 5,
            needs: match group % 6 {
                1 => Some(needs("oci", "")),
                2 => Some(needs("", "ssd")),
                3 => Some(needs("", "gpu")),
                4 => Some(needs("process", "ssd gpu")),
                _ => None,
            },
            pinned: (group == 11).then_some(CellId(pinned % CELLS)),
            spread: group % 4 != 0,
            stays: group % 5 == 4,
        }
    })
}

fn item() -> impl Strategy<Value = Item> {
    (request(), 0_u32..4).prop_map(|(request, index)| {
        let turn = if request.spread { Turn::Instance(index) } else { Turn::Task };
        Item { request, turn }
    })
}

fn stage() -> impl Strategy<Value = Stage> {
    prop_oneof![Just(Stage::Starting), Just(Stage::Running)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..CELLS, info()).prop_map(|(cell, info)| Step::Put(cell, info)),
        1 => (0..CELLS).prop_map(Step::Remove),
        2 => (0..CELLS, request(), stage()).prop_map(|(cell, it, stage)| Step::Hold(cell, it, stage)),
        3 => any::<usize>().prop_map(Step::Release),
        2 => any::<usize>().prop_map(Step::Started),
        8 => request().prop_map(Step::Place),
        1 => vec(item(), 0..20).prop_map(Step::Batch),
    ]
}

fn cluster() -> impl Strategy<Value = Vec<CellInfo>> {
    vec(info(), 1..CELLS as usize)
}

/// The index and the plain list, which must agree.
#[derive(Default)]
struct Both {
    index: Cells,
    naive: Naive,
}

impl Both {
    fn put(&mut self, cell: u128, info: &CellInfo) {
        self.index.put_cell(CellId(cell), info.clone());
        self.naive.cells.insert(CellId(cell), info.clone());
    }

    fn of(infos: &[CellInfo]) -> Self {
        let mut both = Self::default();
        for (cell, info) in (0..).zip(infos) {
            both.put(cell, info);
        }
        both
    }

    fn step(&mut self, step: Step) {
        let Self { index, naive } = self;
        match step {
            Step::Put(cell, info) => self.put(cell, &info),
            Step::Remove(cell) => {
                index.remove_cell(CellId(cell));
                naive.cells.remove(&CellId(cell));
            }
            Step::Hold(cell, request, stage) => {
                index.hold(CellId(cell), &request, stage);
                naive.held.push((CellId(cell), request, stage));
            }
            Step::Release(number) if !naive.held.is_empty() => {
                let (cell, request, stage) = naive.held.remove(number % naive.held.len());
                index.release(cell, &request, stage);
            }
            Step::Started(number) if !naive.held.is_empty() => {
                let number = number % naive.held.len();
                let (cell, request, stage) = &mut naive.held[number];
                if *stage == Stage::Starting {
                    *stage = Stage::Running;
                    index.started(*cell, request);
                }
            }
            Step::Release(_) | Step::Started(_) => {}
            Step::Place(request) => {
                let expected = naive.choose(&request);
                assert_eq!(index.choose(&request).ok(), expected, "{request:?} in {naive:?}");
                let placed = index.place(&request);
                assert_eq!(placed.as_ref().ok(), expected.as_ref());
                naive.held.extend(expected.map(|cell| (cell, request, Stage::Starting)));
            }
            Step::Batch(items) => self.batch(&items),
        }
    }

    /// A batch places what the rule places, or all that can be placed at all.
    fn batch(&mut self, items: &[Item]) {
        let empty = self.naive.clone();
        let expected = self.naive.place_batch(items);
        let places = self.index.place_batch(items);
        let found: Vec<Option<CellId>> =
            places.iter().map(|place| place.as_ref().ok().copied()).collect();
        if found == expected {
            return;
        }
        let count = |places: &[Option<CellId>]| places.iter().flatten().count();
        assert!(count(&found) > count(&expected), "{found:?} is no better than {expected:?}");
        self.naive = empty.clone();
        for (item, cell) in items.iter().zip(&found) {
            match cell {
                Some(cell) => {
                    assert!(self.naive.will_do(*cell, &item.request));
                    assert!(self.naive.fits(*cell, &item.request), "overcommitted");
                    self.naive.held.push((*cell, item.request.clone(), Stage::Starting));
                }
                None => assert_eq!(empty.choose(&item.request), None, "{item:?}"),
            }
        }
    }

    /// The same cells with the same work, put together in another order.
    fn rebuilt(&self) -> Cells {
        let mut cells = Cells::default();
        for (cell, request, stage) in self.naive.held.iter().rev() {
            cells.hold(*cell, request, *stage);
        }
        for (id, info) in self.naive.cells.iter().rev() {
            cells.put_cell(*id, info.clone());
        }
        cells
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn every_choice_is_that_of_the_naive_rule(
        infos in cluster(),
        steps in vec(step(), 1..60),
    ) {
        let mut both = Both::of(&infos);
        for step in steps {
            both.step(step);
        }
    }

    #[test]
    fn an_index_that_was_kept_up_is_one_that_was_made_anew(
        infos in cluster(),
        steps in vec(step(), 1..40),
        items in vec(item(), 1..30),
    ) {
        let mut both = Both::of(&infos);
        for step in steps {
            both.step(step);
        }
        let mut rebuilt = both.rebuilt();
        for cell in (0..CELLS).map(CellId) {
            let load = |cells: &Cells| cells.load(cell).unwrap_or_default();
            prop_assert_eq!(load(&both.index), load(&rebuilt));
        }
        let places = rebuilt.place_batch(&items);
        prop_assert_eq!(&places, &both.index.plan(&items));
        prop_assert_eq!(places, both.index.place_batch(&items));
    }

    #[test]
    fn a_batch_never_overcommits_and_leaves_no_more_over_than_the_rule(
        infos in cluster(),
        items in vec(item(), 1..80),
    ) {
        Both::of(&infos).batch(&items);
    }
}
