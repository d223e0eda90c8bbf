//! Instances through the real apply loop and SQLite at `synchronous=FULL`: wanted, claimed and
//! started; listed; moved when a tenth of the cells is lost; looked at when nothing changed.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use model::{CellId, InstanceId, InstanceReport, InstanceState};
use runtime::{ManualClock, mono_now};
use serde_json::{Value, json};
use server::Loop;
use state::{CELL_LEASE, CellCommand, Command, Instance, Reply, SWEEP_SLICE, State};
use store::sqlite::SqliteStore;

use crate::jobs_bench::median_us;
use crate::options::Options;
use crate::{deploys, workload};

/// Room for an instance as JSON.
const ROW_BYTES: usize = 400;
/// How often the readings that change nothing are repeated.
const READINGS: usize = 21;
pub(crate) fn run(options: &Options) -> Result<Value, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(measure(options))
}

struct Bench {
    apply: Loop,
    clock: Arc<ManualClock>,
    cells: u32,
}

async fn measure(options: &Options) -> Result<Value, String> {
    let dir = tempfile::tempdir_in(".").map_err(|error| error.to_string())?;
    let store = SqliteStore::open(&dir.path().join("store.db")).map_err(|e| e.to_string())?;
    let clock = Arc::new(ManualClock::new(1_800_000_000_000));
    let apply = Loop::start(Arc::new(store), Arc::clone(&clock) as _, "localhost");
    let bench = Bench { apply: apply.map_err(|e| e.to_string())?, clock, cells: options.cells };
    bench.join().await?;
    let apps = workload::apps(options.seed, options.instances);
    let started = mono_now();
    deploys::all(&bench.apply, &apps).await?;
    let desired = started.elapsed();
    bench.start().await?;
    let running = started.elapsed();
    // Wanted, claimed and started, each of them durable; that its check passes is a fourth one.
    let transitions = f64::from(options.instances) * 3.0;
    println!("{} apps, {} instances run after {running:.2?}", apps.len(), options.instances);
    let list = bench.list_us(options.instances).await?;
    let (sweep, swept) = bench.sweep_us(options.instances).await?;
    let (loss, moved) = bench.lose().await?;
    Ok(json!({
        "bench": "processes",
        "instances": options.instances,
        "cells": options.cells,
        "transitions_per_s": (transitions / running.as_secs_f64()).round(),
        "desire_and_claim_s": desired.as_secs_f64(),
        "running_s": running.as_secs_f64(),
        "list_ms": list / 1e3,
        "sweep_ms": sweep / 1e3,
        "sweep_of_all_ms": swept / 1e3,
        "converge_loss_ms": loss.as_secs_f64() * 1e3,
        "moved": moved,
    }))
}

impl Bench {
    async fn ask(&self, command: Command) -> Result<Reply, String> {
        self.apply.apply(command).await.map_err(|error| error.to_string())
    }

    /// Runs several at once and wants all of them to succeed.
    async fn all<F>(&self, work: Vec<F>) -> Result<(), String>
    where
        F: Future<Output = Result<(), String>>,
    {
        futures_util::future::try_join_all(work).await.map(drop)
    }

    async fn join(&self) -> Result<(), String> {
        let join = |number: u32| async move {
            let spec = workload::cell(number)?;
            let online =
                CellCommand::Online { id: cell_id(number), spec, holds: Vec::new(), token: None };
            self.ask(Command::Cell(online)).await.map(drop)
        };
        self.all((0..self.cells).map(join).collect()).await
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&State) -> T + Send + 'static,
    ) -> Result<T, String> {
        self.apply.read(read).await.map_err(|error| error.to_string())
    }

    /// Every cell starts what it was given, one after the other, and all of it passes its check.
    async fn start(&self) -> Result<(), String> {
        self.all((0..self.cells).map(|number| self.start_on(number)).collect()).await
    }

    async fn start_on(&self, number: u32) -> Result<(), String> {
        let cell = cell_id(number);
        let claimed = move |state: &State| -> Vec<(InstanceId, u32)> {
            let rows = state.cell_work(cell).instances.into_iter();
            rows.map(|it| (it.row.id, it.copy.epoch)).collect()
        };
        for (port, (instance, epoch)) in (1_u16..).zip(self.read(claimed).await?) {
            let address = SocketAddr::from(([10, 0, 0, 1], port));
            for report in
                [InstanceReport::Started { address }, InstanceReport::Ready { ready: true }]
            {
                let report = CellCommand::Instance { cell, instance, epoch, report };
                self.ask(Command::Cell(report)).await?;
            }
        }
        Ok(())
    }

    /// Reads all instances and renders them, median.
    async fn list_us(&self, wanted: u32) -> Result<f64, String> {
        let mut times = Vec::new();
        for _ in 0..READINGS {
            let started = mono_now();
            let rows: Vec<Arc<Instance>> =
                self.read(|state| state.all::<Instance>().cloned().collect()).await?;
            let mut text = Vec::with_capacity(rows.len() * ROW_BYTES);
            serde_json::to_writer(&mut text, &rows).map_err(|error| error.to_string())?;
            times.push(started.elapsed());
            let ready = |row: &&Arc<Instance>| {
                matches!(row.state, InstanceState::Running { ready: true, .. })
            };
            let count = rows.iter().filter(ready).count();
            if count != wanted as usize || text.is_empty() {
                return Err(format!("{count} of {wanted} instances are ready"));
            }
        }
        Ok(median_us(times))
    }

    /// A sweep that finds nothing to do, median; and as many as look at every instance once.
    async fn sweep_us(&self, instances: u32) -> Result<(f64, f64), String> {
        let mut times = Vec::new();
        let slices = (instances as usize).div_ceil(SWEEP_SLICE);
        let began = mono_now();
        for _ in 0..slices {
            let started = mono_now();
            self.ask(Command::Sweep).await?;
            times.push(started.elapsed());
        }
        let all = began.elapsed().as_secs_f64() * 1e6;
        Ok((median_us(times), all))
    }

    /// A tenth of the cells is not heard of until its leases end: how long until everything that
    /// ran there has a place again, and how many instances that are.
    async fn lose(&self) -> Result<(Duration, usize), String> {
        let half = CELL_LEASE / 2;
        let lost: BTreeSet<CellId> =
            (0..self.cells).filter(|number| number % 10 == 0).map(cell_id).collect();
        for _ in 0..2 {
            let by = u64::try_from(half.as_millis()).unwrap_or(u64::MAX);
            self.clock.advance(by);
            let beat = |number| async move {
                let beat = CellCommand::Heartbeat { id: cell_id(number), epoch: 1 };
                self.ask(Command::Cell(beat)).await.map(drop)
            };
            let alive = (0..self.cells).filter(|number| number % 10 != 0);
            self.all(alive.map(beat).collect()).await?;
        }
        self.clock.advance(2);
        let started = mono_now();
        self.ask(Command::Tick).await?;
        let taken = started.elapsed();
        let placed = move |state: &State| {
            let claimed = |row: &&Arc<Instance>| matches!(&row.state, InstanceState::Claimed { cell } if !lost.contains(cell));
            let waiting =
                |row: &&Arc<Instance>| matches!(row.state, InstanceState::Unclaimed { .. });
            let count = state.all::<Instance>().filter(claimed).count();
            (count, state.all::<Instance>().filter(waiting).count())
        };
        match self.read(placed).await? {
            (0, _) => Err("no instance was moved".to_owned()),
            (moved, 0) => Ok((taken, moved)),
            (_, waiting) => Err(format!("{waiting} instances have no place")),
        }
    }
}

fn cell_id(number: u32) -> CellId {
    CellId(u128::from(number) + 1)
}
