//! The environment people set for an app.

use model::PLATFORM_ENV;
use state::{App, Command, Refusal};

use crate::bench::{APP, Bench, name};

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
