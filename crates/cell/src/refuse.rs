//! What a driver cannot do is refused before anything is made, never left out in silence.
//!
//! Two things are let through. Egress rules open what a driver closes, so one that closes nothing
//! needs none. Limits are enforced as far as the driver can; which those are is its documentation.

use drivers::{Ability, Capabilities, Network};
use model::{Action, Check, ContainerSpec, ProcessSpec, TaskSpec};

/// Why a driver cannot run an instance, if so.
pub(crate) fn instance(
    spec: &ProcessSpec,
    able: &Capabilities,
    network: Network,
) -> Option<String> {
    let checks = [&spec.check, &spec.startup, &spec.readiness];
    let port = checks.into_iter().flatten().find_map(|check: &Check| check.port);
    let lacks = |what: String| Some(format!("the {} driver {what}", able.name));
    match (port, network) {
        (Some(port), Network::Host) => lacks(format!(
            "gives instances no network of their own, so a check cannot ask port {port}"
        )),
        (Some(_), Network::Own(_)) | (None, _) => container(&spec.container, able),
    }
}

/// Why a driver cannot run a task, if so.
pub(crate) fn task(spec: &TaskSpec, able: &Capabilities) -> Option<String> {
    if !able.can(Ability::Users) && has_user(&spec.action) {
        return Some(format!("the {} driver runs nothing as another user", able.name));
    }
    container(&spec.container, able)
}

fn has_user(action: &Action) -> bool {
    let own = matches!(action, Action::Run { user: Some(_), .. });
    own || action.below().iter().any(has_user)
}

fn container(spec: &ContainerSpec, able: &Capabilities) -> Option<String> {
    let lays_out = able.can(Ability::LayOut);
    let read_only = spec.volumes.values().any(|volume| volume.read_only);
    let lacks = [
        (spec.user.is_some() && !able.can(Ability::Users), "runs nothing as another user"),
        (spec.read_only && !lays_out, "has no read-only containers"),
        (spec.tmp_mb.is_some() && !lays_out, "keeps no /tmp in memory"),
        (read_only && !lays_out, "has no read-only volumes"),
    ];
    let found = lacks.into_iter().find(|(lacks, _)| *lacks);
    found.map(|(_, what)| format!("the {} driver {what}", able.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use drivers::Isolation;

    #[test]
    fn what_is_not_possible_is_named() {
        let able = |abilities| Capabilities {
            name: "plain",
            isolation: Isolation::None,
            enforced: Vec::new(),
            abilities,
            unavailable: None,
        };
        let (poor, rich) = (able(Vec::new()), able(vec![Ability::LayOut, Ability::Users]));
        let own = Network::Own([10, 0, 0, 1].into());
        let refused = |change: fn(&mut ProcessSpec)| {
            let mut spec = ProcessSpec::new(["app"]);
            change(&mut spec);
            assert_eq!(instance(&spec, &rich, own), None);
            instance(&spec, &poor, Network::Host).expect("refused")
        };
        assert!(refused(|s| s.container.user = Some("1000".into())).contains("another user"));
        assert!(refused(|s| s.container.read_only = true).contains("read-only containers"));
        assert!(refused(|s| s.container.tmp_mb = Some(1)).contains("/tmp"));
        assert!(
            refused(|s| s.readiness = Some(Check { port: Some(22), ..Check::default() }))
                .contains("cannot ask port 22")
        );
        let mut run = Action::run(["id"]);
        if let Action::Run { user, .. } = &mut run {
            *user = Some("7".into());
        }
        let spec = TaskSpec::new(Action::Try { inner: Box::new(run) }, 1_000);
        assert!(task(&spec, &poor).is_some_and(|reason| reason.contains("another user")));
        assert_eq!(task(&spec, &rich), None);
    }
}
