//! `shore cell list`, `show`, `drain` and `undrain`.

use std::time::Duration;

use api::Client;
use api::http_types::{CellView, DrainCell, DrainView};
use model::Name;

use super::Shell;
use crate::args::CellCommand;
use crate::error::Result;

/// How often the progress of a drain is asked for.
const LOOK: Duration = Duration::from_secs(1);

pub(super) async fn cell(shell: &Shell, command: CellCommand) -> Result<()> {
    let client = shell.client()?;
    match command {
        CellCommand::List => {
            let mut list: Vec<CellView> = client.get("/v1/cells").await?;
            list.sort_by(|one, other| (&one.spec.name, one.id).cmp(&(&other.spec.name, other.id)));
            let header = [
                "name",
                "zone",
                "drivers",
                "tags",
                "memory free",
                "of",
                "instances",
                "tasks",
                "state",
            ];
            let empty = "there are no cells: start one with `shore cell`";
            shell.output.table(&list, &header, empty, row);
        }
        CellCommand::Show { cell } => {
            let view: CellView = client.get(&path(&cell)).await?;
            shell.output.value(&view, || described(&view));
        }
        CellCommand::Drain { cell, timeout, no_wait } => {
            let drain = DrainCell { timeout_ms: Some(timeout.saturating_mul(1_000)) };
            let view = client.post(&format!("{}/drain", path(&cell)), &drain).await?;
            drained(shell, &client, view, no_wait).await?;
        }
        CellCommand::Undrain { cell } => {
            client.delete(&format!("{}/drain", path(&cell))).await?;
            let view: CellView = client.get(&path(&cell)).await?;
            shell.output.done(&view, &format!("cell {cell} takes work again"));
        }
    }
    Ok(())
}

/// The path of a cell.
fn path(cell: &str) -> String {
    format!("/v1/cells/{cell}")
}

fn words<'a>(names: impl IntoIterator<Item = &'a Name>) -> String {
    names.into_iter().map(Name::as_str).collect::<Vec<_>>().join(", ")
}

/// How a cell is.
pub(super) fn state(cell: &CellView) -> String {
    match &cell.drain {
        Some(_) if !cell.online => "away, takes nothing new when back".to_owned(),
        None if !cell.online => "away: not heard of".to_owned(),
        None if !cell.spec.has_driver() => "no driver works".to_owned(),
        None => "ready".to_owned(),
        Some(drain) if drain.leaving => "shutting down".to_owned(),
        Some(drain) if !drain.finished => format!("draining, {} left", drain.moving),
        Some(drain) => match drain.stays.as_slice() {
            [] => "drained, takes nothing new".to_owned(),
            [only] => format!("draining, 1 stays: {}", only.reason),
            [first, ..] => format!("draining, {} stay: {}", drain.stays.len(), first.reason),
        },
    }
}

/// What it runs containers with; marked is what does not work at the moment.
fn drivers(cell: &CellView) -> String {
    let failing = cell.spec.unavailable.keys().map(|name| format!("{name} (fails)"));
    let working = cell.spec.drivers.iter().map(Name::to_string);
    working.chain(failing).collect::<Vec<_>>().join(", ")
}

fn tags(cell: &CellView) -> String {
    words(cell.spec.required_tags.iter().chain(&cell.spec.tags))
}

fn row(cell: &CellView) -> Vec<String> {
    let total = cell.spec.memory_mb;
    vec![
        cell.spec.name.to_string(),
        cell.spec.zone.clone(),
        drivers(cell),
        tags(cell),
        format!("{} MiB", total.saturating_sub(cell.memory_used_mb)),
        format!("{total} MiB"),
        cell.instances.to_string(),
        cell.tasks.to_string(),
        state(cell),
    ]
}

fn described(cell: &CellView) -> String {
    let spec = &cell.spec;
    let free = |total: u64, used| format!("{} of {total} MiB free", total.saturating_sub(used));
    let fields = [
        ("cell", format!("{} ({})", spec.name, cell.id)),
        ("state", state(cell)),
        ("zone", spec.zone.clone()),
        ("drivers", drivers(cell)),
        ("tags", words(&spec.tags)),
        ("only for tags", words(&spec.required_tags)),
        ("memory", free(spec.memory_mb, cell.memory_used_mb)),
        ("disk", free(spec.disk_mb, cell.disk_used_mb)),
        ("containers", format!("{} of {}", cell.instances + cell.tasks, spec.containers)),
    ];
    let known = fields.iter().filter(|(_, value)| !value.is_empty());
    let lines = known.map(|(name, value)| format!("{name:<14}{value}"));
    let failing = spec.unavailable.iter();
    let failing = failing.map(|(name, reason)| format!("driver {name} does not work: {reason}"));
    let lines = lines.chain(failing);
    let stays = cell.drain.iter().flat_map(|drain| &drain.stays);
    let stays = stays.map(|it| format!("stays: {}: {}", it.what, it.reason));
    lines.chain(stays).collect::<Vec<_>>().join("\n")
}

/// Follows a drain until nothing is left that can move.
async fn drained(shell: &Shell, client: &Client, first: CellView, no_wait: bool) -> Result<()> {
    let (name, path) = (first.spec.name.clone(), path(&first.id.to_string()));
    let mut view = first;
    let mut said = None;
    while let Some(drain) = &view.drain {
        if drain.finished || no_wait {
            break;
        }
        let now = (drain.moved, drain.moving);
        if said.replace(now) != Some(now) {
            shell.output.say(&format!("{} moved, {} on their way", drain.moved, drain.moving));
        }
        runtime::sleep(LOOK).await;
        view = client.get(&path).await?;
    }
    shell.output.value(&view, || match &view.drain {
        None => format!("cell {name} is not drained any more: somebody took it back"),
        Some(drain) => ended(&name, drain),
    });
    Ok(())
}

fn ended(name: &Name, drain: &DrainView) -> String {
    let mut lines = Vec::new();
    if drain.finished {
        lines.push(format!("cell {name} is drained: {} moved", drain.moved));
    } else {
        lines.push(format!("cell {name} is being drained: {} on their way", drain.moving));
    }
    if drain.tasks > 0 {
        lines.push(format!("{} tasks run on until the time is up", drain.tasks));
    }
    lines.extend(drain.stays.iter().map(|it| format!("{} stays: {}", it.what, it.reason)));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use api::http_types::StaysView;
    use model::Time;

    use super::*;

    #[test]
    fn a_cell_with_what_cannot_move_is_not_said_to_be_empty() {
        let cell = |moving: usize, stays: usize| -> CellView {
            let spec = serde_json::json!({
                "name": "one", "zone": "a", "drivers": ["process"], "memory_mb": 1, "disk_mb": 1,
                "containers": 1
            });
            let stay =
                serde_json::json!({ "what": "web.0 of shop/web", "reason": "no other cell" });
            let drain = serde_json::json!({
                "since": 0, "deadline": null, "leaving": false, "moved": 0, "moving": moving,
                "stays": vec![stay; stays], "tasks": 0, "finished": moving == 0
            });
            let view = serde_json::json!({
                "id": model::CellId(1), "spec": spec, "online": true, "instances": 0, "tasks": 0,
                "memory_used_mb": 0, "disk_used_mb": 0, "drain": drain
            });
            serde_json::from_value(view).expect("is a view")
        };
        let table = [
            (0, 0, "drained, takes nothing new"),
            (2, 1, "draining, 2 left"),
            (0, 1, "draining, 1 stays: no other cell"),
            (0, 3, "draining, 3 stay: no other cell"),
        ];
        for (moving, stays, wanted) in table {
            assert_eq!(state(&cell(moving, stays)), wanted);
        }
    }

    #[test]
    fn the_end_of_a_drain_says_what_stays_and_why() {
        let stays = StaysView {
            what: "web.0 of shop/web".to_owned(),
            reason: "no cell has driver oci".to_owned(),
        };
        let drain = DrainView {
            since: Time(0),
            deadline: None,
            leaving: false,
            moved: 3,
            moving: 0,
            stays: vec![stays],
            tasks: 1,
            finished: true,
        };
        let name = "one".parse().expect("a name");
        assert_eq!(
            ended(&name, &drain),
            "cell one is drained: 3 moved\n1 tasks run on until the time is up\n\
             web.0 of shop/web stays: no cell has driver oci"
        );
    }
}
