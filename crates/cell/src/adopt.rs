//! What an agent finds when it starts.

use std::sync::Arc;

use api::proto::work::Kind;
use drivers::{ContainerInfo, Driver, Handle};
use futures_util::StreamExt as _;
use tokio::sync::oneshot;

use crate::actor;
use crate::error::CellError;
use crate::limits::{LEFTOVER_LIMIT, MAX_CREATES};
use crate::notes::{Held, Notes};
use crate::shared::Shared;
use crate::volumes::Hold;
use crate::work::Key;

/// An instance that an earlier agent started.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) key: Key,
    pub(crate) notes: Notes,
    pub(crate) held: Held,
    pub(crate) driver: Arc<dyn Driver>,
}

/// Finds the instances earlier agents started, and removes everything else: the actions of a task
/// cannot be taken up in the middle, and what was never started is started anew.
pub(crate) async fn adopt(shared: &Shared) -> Result<Vec<Found>, CellError> {
    let mut found = Vec::new();
    let mut leftovers: Vec<(Arc<dyn Driver>, Handle, Vec<Hold>)> = Vec::new();
    for driver in shared.drivers.all() {
        for container in driver.list().await? {
            let held = Held::from_properties(&container.properties);
            if let Some((key, notes)) = instance(&container) {
                found.push(Found { key, notes, held, driver: Arc::clone(driver) });
            } else {
                let volumes = held.volumes.into_iter();
                let volumes = volumes.map(|(id, writes)| shared.volumes.hold_on(id, writes));
                leftovers.push((Arc::clone(driver), container.handle, volumes.collect()));
            }
        }
    }
    futures_util::stream::iter(leftovers)
        .for_each_concurrent(MAX_CREATES, |(driver, handle, volumes)| async move {
            tracing::info!(%handle, "removing what an earlier agent left");
            let (gone, removed) = oneshot::channel();
            let stop = shared.tasks.stop().clone();
            shared.tasks.spawn_ok("remove a leftover", async move {
                stop.or_stop(actor::remove(driver.as_ref(), &handle)).await;
                drop(volumes);
                // The agent may have begun without it.
                gone.send(()).unwrap_or_default();
            });
            if runtime::timeout(LEFTOVER_LIMIT, removed).await.is_none() {
                tracing::warn!("beginning before everything is removed");
            }
        })
        .await;
    Ok(found)
}

fn instance(container: &ContainerInfo) -> Option<(Key, Notes)> {
    let key = Key::from_properties(&container.properties)?;
    let notes = Notes::from_properties(&container.properties)?;
    let started = container.processes.iter().any(|process| process.id == notes.process);
    let ours = key.kind == Kind::Instance && key.handle() == container.handle;
    (started && ours).then_some((key, notes))
}
