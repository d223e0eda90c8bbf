//! The environment people set for an app.

use model::{AppId, PLATFORM_ENV, ProjectId};
use state::{App, Command, MAX_APPS_PER_PROJECT, Refusal};

use crate::bench::{APP, Bench, PROJECT, name};

fn set(bench: &mut Bench, variable: &str, value: Option<&str>) -> Result<(), Refusal> {
    let vars = [(variable.to_owned(), value.map(str::to_owned))].into();
    let command = Command::SetConfig { app: APP, workspace: name("production"), vars };
    bench.try_apply(command).map(|_| ())
}

#[test]
fn what_the_platform_sets_is_refused_in_a_sentence() {
    let mut bench = Bench::ready();
    for variable in PLATFORM_ENV {
        let Err(Refusal::Invalid(message)) = set(&mut bench, variable, Some("1")) else {
            panic!("{variable} is taken")
        };
        assert!(message.starts_with(&format!("cannot set {variable}: ")), "{message}");
        set(&mut bench, variable, None).expect("what was set before can go");
    }
    for variable in ["HOST", "SHORE_TOKEN", "PORT_2"] {
        set(&mut bench, variable, Some("1")).expect("this is no name of the platform");
    }
    let app = bench.state.all::<App>().find(|app| app.id == APP).expect("there");
    assert_eq!(app.config[&name("production")].len(), 3);
}

#[test]
fn a_project_has_its_share_of_apps() {
    let mut bench = Bench::new();
    let app = |id: u128, project| Command::EnsureApp {
        id: AppId(1_000_000 + id),
        project,
        name: name(&format!("app-{id}")),
    };
    for id in 1..MAX_APPS_PER_PROJECT as u128 {
        bench.ok(app(id, PROJECT));
    }
    let refusal = bench.try_apply(app(0, PROJECT)).expect_err("there are as many as may be");
    assert!(refusal.to_string().contains("1000 apps already"), "{refusal}");
    bench.ok(app(1, PROJECT));
    let other = ProjectId(2);
    bench.ok(Command::CreateProject { id: other, name: name("other") });
    bench.ok(app(5_000, other));
    bench.ok(Command::DeleteApp(AppId(1_000_001)));
    bench.ok(app(0, PROJECT));
}
