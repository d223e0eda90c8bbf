//! `shore volume list` and `remove`.

use api::http_types::{ProjectView, VolumeView};
use model::{Name, Time};
use serde::Serialize;

use super::Shell;
use super::access::now;
use super::apps::{Which, unconfirmed};
use crate::args::{VolumeCommand, VolumeRemoveArgs};
use crate::error::{CliError, ErrorKind, Result};
use crate::output::ago;

pub(super) async fn volume(shell: &Shell, command: VolumeCommand) -> Result<()> {
    match command {
        VolumeCommand::List { project } => list(shell, project).await,
        VolumeCommand::Remove(args) => remove(shell, args).await,
    }
}

/// A volume with its project.
#[derive(Debug, Serialize)]
struct Listed {
    project: Name,
    #[serde(flatten)]
    view: VolumeView,
}

async fn list(shell: &Shell, project: Option<Name>) -> Result<()> {
    let client = shell.client()?;
    let projects = if let Some(name) = project {
        vec![name]
    } else {
        let all: Vec<ProjectView> = client.get("/v1/projects").await?;
        all.into_iter().map(|it| it.name).collect()
    };
    let mut all: Vec<Listed> = Vec::new();
    for name in projects {
        let own: Vec<VolumeView> = client.get(&format!("/v1/projects/{name}/volumes")).await?;
        all.extend(own.into_iter().map(|view| Listed { project: name.clone(), view }));
    }
    all.sort_by(|one, other| {
        let (a, b) = (&one.view, &other.view);
        (&one.project, &a.app, &a.workspace, &a.name).cmp(&(
            &other.project,
            &b.app,
            &b.workspace,
            &b.name,
        ))
    });
    let now = now();
    let header = ["project", "app", "workspace", "volume", "cell", "state", "made"];
    let empty =
        "there are no volumes: `volume \"data\" { path = \"/data\" }` in shore.hcl makes some";
    shell.output.table(&all, &header, empty, |it| row(now, &it.project, &it.view));
    Ok(())
}

fn row(now: Time, project: &Name, view: &VolumeView) -> Vec<String> {
    let cell = view.cell_name.as_ref().map_or_else(|| view.cell.to_string(), Name::to_string);
    let away = if view.cell_online { "" } else { " (away)" };
    vec![
        project.to_string(),
        view.app.to_string(),
        view.workspace.to_string(),
        view.name.clone(),
        format!("{cell}{away}"),
        state(now, view),
        ago(now, view.created_at),
    ]
}

/// `attached`, `detached, deleted in 6 days` or `deleting`.
fn state(now: Time, view: &VolumeView) -> String {
    let Some(at) = view.delete_at else { return view.state.clone() };
    let hours = at.since(now).as_secs().div_ceil(3_600);
    let left = if hours >= 48 { format!("{} days", hours / 24) } else { format!("{hours} h") };
    format!("{}, deleted in {left}", view.state)
}

async fn remove(shell: &Shell, args: VolumeRemoveArgs) -> Result<()> {
    let client = shell.client()?;
    let which = Which::find(&args.app, None)?;
    let all: Vec<VolumeView> =
        client.get(&format!("/v1/projects/{}/volumes", which.project)).await?;
    let found = find(&all, (&which.app, &args.app.workspace), &args.volume).ok_or_else(|| {
        let (project, app) = (&which.project, &which.app);
        let message =
            format!("{project}/{app} has no volume {} in {}", args.volume, args.app.workspace);
        CliError::new(ErrorKind::NotFound, message).hint("`shore volume list` shows what there is")
    })?;
    if !args.yes {
        let cell = found.cell_name.as_ref().map_or_else(|| found.cell.to_string(), Name::to_string);
        let message = format!(
            "this deletes volume {} of {}/{} in {} on cell {cell} and everything in it, for good",
            found.name, which.project, found.app, found.workspace
        );
        return Err(unconfirmed(message));
    }
    let path = format!("/v1/projects/{}/volumes/{}", which.project, found.id);
    client.delete(&format!("{path}?force={}", args.force)).await?;
    let later = if found.cell_online { "" } else { " once its cell is back" };
    let removing =
        serde_json::json!({ "event": "removing", "volume": found.id, "name": found.name });
    shell.output.done(&removing, &format!("volume {} is being deleted{later}", found.name));
    Ok(())
}

/// The volume of this id, or of this name in an app and workspace: one that is not being deleted
/// comes first.
fn find<'a>(
    all: &'a [VolumeView],
    (app, workspace): (&Name, &Name),
    wanted: &str,
) -> Option<&'a VolumeView> {
    let named = || {
        all.iter()
            .filter(|view| view.name == wanted && view.app == *app && view.workspace == *workspace)
    };
    let by_id = all.iter().find(|view| view.id.to_string() == wanted);
    by_id.or_else(|| named().find(|view| view.state != "deleting")).or_else(|| named().next())
}

#[cfg(test)]
mod tests {
    use model::{CellId, VolumeId};

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    fn view(id: u128, volume: &str, state: &str) -> VolumeView {
        VolumeView {
            id: VolumeId(id),
            name: volume.to_owned(),
            app: name("web"),
            workspace: name("production"),
            cell: CellId(1),
            cell_name: Some(name("one")),
            cell_online: false,
            state: state.to_owned(),
            created_at: Time(0),
            delete_at: None,
        }
    }

    #[test]
    fn a_volume_is_found_by_name_and_by_id() {
        let all = [view(1, "web.0.data", "deleting"), view(2, "web.0.data", "attached")];
        let place = (&name("web"), &name("production"));
        let found = |wanted: &str| find(&all, place, wanted).map(|view| view.id.0);
        assert_eq!(found("web.0.data"), Some(2));
        assert_eq!(found(&VolumeId(1).to_string()), Some(1));
        assert_eq!(found("web.1.data"), None);
        assert!(find(&all, (&name("web"), &name("staging")), "web.0.data").is_none());
    }

    #[test]
    fn a_row_says_where_it_is_and_how_long_it_is_kept() {
        let mut it = view(1, "web.0.data", "detached");
        it.delete_at = Some(Time(7 * 86_400_000));
        let cells = row(Time(0), &name("shop"), &it);
        assert_eq!(cells[4..6], ["one (away)", "detached, deleted in 7 days"]);
        assert_eq!(state(Time(6 * 86_400_000), &it), "detached, deleted in 24 h");
    }
}
