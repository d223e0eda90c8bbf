//! Placement of a whole cluster: cold, after a tenth of the cells failed, and one large app more.
//!
//! `auction --cells C --instances N --seed S [--constraints]`
#![expect(clippy::cast_possible_truncation, reason = "cells and instances are few")]

mod items;
mod peer;
mod quality;

use std::collections::BTreeSet;

use auction::{CellInfo, Cells, Item, Room, Stage, Unplaced};
use model::CellId;
use runtime::mono_now;
use serde_json::{Value, json};

use crate::options::Options;
use quality::Quality;

/// The cold cluster is placed so often that about so many instances are; the median counts.
const PLACED: usize = 2_000_000;
/// One cell of this many fails.
const FAILING: usize = 10;
/// The linear scan is measured up to so many cells times instances.
const PEER_LIMIT: u64 = 1_000_000_000;
/// It is repeated until it has looked at about so many cells.
const PEER_LOOKS: u64 = 100_000_000;

/// Where each instance is, in the order of the items.
type Places = Vec<Result<CellId, Unplaced>>;

pub(crate) fn run(options: &Options) -> Result<Value, String> {
    let constraints = options.constraints == Some(true);
    let needs = items::Choosy::new()?;
    let items = items::items(options, &needs);
    let infos: Vec<CellInfo> =
        (0..options.cells as usize).map(|at| needs.info(at, constraints)).collect();
    println!("placing {} instances on {} cells", items.len(), infos.len());
    let mut times = Times::default();
    let (cells, places) = times.round(&infos, &items)?;
    let mut cluster = Cluster { cells, items, places };
    cluster.all_run();
    let cold = cluster.quality(&infos);
    println!("cold: {:.4} s, {cold:?}", times.wall[0]);

    let (fail_seconds, moved) = cluster.fail(infos.len());
    let left: Vec<CellInfo> = infos.iter().enumerate().map(survivor).collect();
    let fail = cluster.quality(&left);
    println!("fail: {fail_seconds:.4} s, {moved} instances placed again, {fail:?}");

    let (app, started) = (items::large_app(), mono_now());
    let places = cluster.cells.place_batch(&app);
    let scale_seconds = started.elapsed().as_secs_f64();
    let rss_mb = peak_mb()?;
    cluster.items.extend(app);
    cluster.places.extend(places);
    let scale = cluster.quality(&left);
    println!("scale: {scale_seconds:.4} s, {scale:?}");

    let Cluster { mut items, .. } = cluster;
    items.truncate(options.instances as usize);
    let rounds = (PLACED / items.len()).clamp(5, 200);
    println!("{rounds} rounds of the cold cluster");
    while times.wall.len() < rounds {
        times.round(&infos, &items)?;
    }
    let looks = u64::from(options.cells) * u64::from(options.instances);
    let cpu = times.cpu / rounds as f64;
    let peer = if looks <= PEER_LIMIT && !constraints {
        let peer = peer::cold(&infos, &items, (PEER_LOOKS / looks).clamp(1, 50))?;
        json!({ "ratio": (peer.cpu / cpu * 10.0).round() / 10.0, "cpu_seconds": peer.cpu, "quality": peer.quality.json() })
    } else {
        Value::Null
    };
    let figures = json!({
        "bench": "auction",
        "cells": options.cells,
        "instances": options.instances,
        "seed": options.seed,
        "constraints": constraints,
        "seconds": times.median(),
        "best_seconds": times.best(),
        "cpu_seconds": cpu,
        "rounds": rounds,
        "rss_mb": rss_mb,
        "fail_seconds": fail_seconds,
        "fail_moved": moved,
        "fail": fail.json(),
        "scale_seconds": scale_seconds,
        "scale": scale.json(),
        "peer": peer,
    });
    Ok(merged(figures, cold.json()))
}

fn merged(mut figures: Value, more: Value) -> Value {
    if let (Value::Object(figures), Value::Object(more)) = (&mut figures, more) {
        figures.extend(more);
    }
    figures
}

fn id(at: usize) -> CellId {
    CellId(at as u128 + 1)
}

/// A cell as it is after the failure: those that are gone have no room.
fn survivor((at, info): (usize, &CellInfo)) -> CellInfo {
    let room = if at.is_multiple_of(FAILING) { Room::default() } else { info.room };
    CellInfo { room, ..info.clone() }
}

/// The cells, and what was placed on them.
struct Cluster {
    cells: Cells,
    items: Vec<Item>,
    places: Places,
}

/// How long the cold cluster took.
#[derive(Default)]
struct Times {
    wall: Vec<f64>,
    /// On the processor, all rounds together: the kernel counts in steps of milliseconds.
    cpu: f64,
}

impl Times {
    /// Places everything on empty cells.
    fn round(&mut self, infos: &[CellInfo], items: &[Item]) -> Result<(Cells, Places), String> {
        let mut cells = Cells::default();
        for (at, info) in infos.iter().enumerate() {
            cells.put_cell(id(at), info.clone());
        }
        let (started, on_processor) = (mono_now(), cpu_seconds()?);
        let places = cells.place_batch(items);
        self.wall.push(started.elapsed().as_secs_f64());
        self.cpu += cpu_seconds()? - on_processor;
        Ok((cells, places))
    }

    fn median(&self) -> f64 {
        let mut wall = self.wall.clone();
        wall.sort_unstable_by(f64::total_cmp);
        wall[wall.len() / 2]
    }

    fn best(&self) -> f64 {
        self.wall.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

impl Cluster {
    fn quality(&self, infos: &[CellInfo]) -> Quality {
        Quality::of(infos, &self.items, &self.places)
    }

    /// Whatever was placed runs now.
    fn all_run(&mut self) {
        for (item, place) in self.items.iter().zip(&self.places) {
            if let Ok(cell) = place {
                self.cells.started(*cell, &item.request);
            }
        }
    }

    /// Takes a tenth of the cells away and places again what was there; how long it took, and how
    /// much that was.
    fn fail(&mut self, count: usize) -> (f64, usize) {
        let gone: BTreeSet<CellId> = (0..count).step_by(FAILING).map(id).collect();
        let started = mono_now();
        for cell in &gone {
            self.cells.remove_cell(*cell);
        }
        let mut numbers = Vec::new();
        let mut again = Vec::new();
        for (number, (item, place)) in self.items.iter().zip(&self.places).enumerate() {
            if let Ok(cell) = place
                && gone.contains(cell)
            {
                self.cells.release(*cell, &item.request, Stage::Running);
                numbers.push(number);
                again.push(item.clone());
            }
        }
        let places = self.cells.place_batch(&again);
        let seconds = started.elapsed().as_secs_f64();
        for ((number, place), item) in numbers.iter().zip(places).zip(&again) {
            if let Ok(cell) = &place {
                self.cells.started(*cell, &item.request);
            }
            self.places[*number] = place;
        }
        (seconds, numbers.len())
    }
}

/// How long this thread has been on a processor.
fn cpu_seconds() -> Result<f64, String> {
    let path = "/proc/thread-self/schedstat";
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let nanoseconds = text.split_whitespace().next().and_then(|text| text.parse::<f64>().ok());
    nanoseconds.map(|time| time / 1e9).ok_or_else(|| format!("{path} is empty"))
}

/// The most memory this process ever had.
fn peak_mb() -> Result<f64, String> {
    let path = "/proc/self/status";
    let status = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    let kb: f64 = line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0.0);
    Ok((kb / 102.4).round() / 10.0)
}
