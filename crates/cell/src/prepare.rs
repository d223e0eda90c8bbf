//! Makes containers: image, platform programs, caches, volumes, environment, rules.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use drivers::{
    Ability, EgressRule, Isolation, LimitKind, Limits, Mount, Protocol, Publish, Root, User,
};
use model::{ContainerSpec, EgressProtocol, Name, PROGRAMS, VolumeId, parse_user};

use crate::actor::Actor;
use crate::error::{Context as _, Failure};
use crate::furnish::Furniture;
use crate::image::Image;
use crate::notes::Held;
use crate::options::DefaultLimits;
use crate::shared::Shared;

const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";
const DEFAULT_VARIABLES: [(&str, &str); 2] =
    [("CNB_LAYERS_DIR", "/layers"), ("CNB_APP_DIR", "/workspace")];
/// A CPU share is this part of a core.
const SHARES_OF_A_CORE: u64 = 1_024;

/// What a container is made from.
#[derive(Debug)]
pub(crate) struct Order<'a> {
    pub(crate) spec: &'a ContainerSpec,
    pub(crate) labels: &'a HashMap<String, String>,
    /// Which volumes are meant by the names in `spec`.
    pub(crate) volumes: &'a BTreeMap<Name, VolumeId>,
    /// Noted with it.
    pub(crate) properties: BTreeMap<String, String>,
    /// What the platform tells every process in it; wins over image and spec.
    pub(crate) env: BTreeMap<String, String>,
    /// Where an instance is asked to listen, unless image or spec say something else.
    pub(crate) host: Option<String>,
    /// How other machines reach it.
    pub(crate) publish: Option<Publish>,
}

/// Makes the container of an actor, and gives the directory its image wants processes to run in.
/// Whoever calls removes the container when this fails or is given up.
pub(crate) async fn container(actor: &Actor, order: Order<'_>) -> Result<Option<String>, Failure> {
    let Order { spec, labels, volumes, properties, env: own, host, publish } = order;
    let shared = &actor.shared;
    // Before anything that others wait for: whoever has one now may take a while to end.
    let volumes = volumes_of(actor, (spec, volumes), labels).await?;
    let image = match spec.image {
        Some(digest) => {
            shared.images.get(digest).await.context(|| format!("cannot get image {digest}"))?
        }
        None => Image::default(),
    };
    let _permit = shared.creates.acquire().await.map_err(Failure::new)?;
    let able = actor.driver.capabilities();
    let isolated = able.isolation != Isolation::None;
    let mut made = drivers::ContainerSpec::new(actor.handle.clone());
    let usual = usual_limits(shared.options.default_limits, &able.enforced);
    made.limits = limits(&spec.limits, usual, isolated);
    made.properties = actor.key.properties();
    made.properties.extend(properties);
    let held = Held {
        layers: image.layers.iter().map(|(digest, _)| *digest).collect(),
        caches: spec.caches.keys().cloned().collect(),
        volumes: volumes.held,
    };
    made.properties.extend(held.properties()?);
    made.env = environment(shared, &image, isolated);
    made.env.extend(spec.env.clone());
    if let Some(host) = host {
        made.env.entry("HOST".to_owned()).or_insert(host);
    }
    made.env.extend(own);
    made.user = spec.user.as_deref().and_then(user);
    let layers: Vec<PathBuf> = image.paths();
    let dir = image.dir.clone();
    actor.hold(image.layers.into_iter().map(|(_, slot)| slot).collect());
    let mut places = places(actor, spec).await?;
    places.extend(volumes.mounts);
    if able.can(Ability::LayOut) {
        let tmp_bytes = spec.tmp_mb.map(|mb| mb << 20);
        made.root = Root { layers, read_only: spec.read_only, tmp_bytes };
        made.mounts = programs(shared);
        made.mounts.extend(places);
        made.publish = publish.into_iter().collect();
        made.egress = openings(shared, spec)?;
        actor.driver.create(made).await?;
    } else {
        // They are links, which the driver follows and no others.
        made.mounts.clone_from(&places);
        actor.driver.create(made).await?;
        let furniture = Furniture::new(actor, layers, places)?;
        shared.tasks.blocking(move || furniture.put()).await?;
    }
    Ok(dir)
}

/// The programs of the platform, as every image finds them.
fn programs(shared: &Shared) -> Vec<Mount> {
    let mount = |program: &str| Mount {
        source: shared.options.platform_exe.clone(),
        target: program.to_owned(),
        read_only: true,
    };
    PROGRAMS.map(mount).into()
}

/// Volumes of a container.
#[derive(Debug, Default)]
struct Mounted {
    mounts: Vec<Mount>,
    /// Which they are, and whether the container writes to them.
    held: Vec<(VolumeId, bool)>,
}

/// The volumes of a container once it may have them. They are held from here on.
async fn volumes_of(
    actor: &Actor,
    (spec, ids): (&ContainerSpec, &BTreeMap<Name, VolumeId>),
    labels: &HashMap<String, String>,
) -> Result<Mounted, Failure> {
    let mut mounted = Mounted::default();
    let owner = spec.user.as_deref().and_then(user);
    // In the order of their names, so that no two wait for each other.
    for (name, volume) in &spec.volumes {
        let unknown = || Failure::new(format!("the server does not say which volume {name} is"));
        let (id, writes) = (*ids.get(name).ok_or_else(unknown)?, !volume.read_only);
        let hold = actor.shared.volumes.hold(id, writes).await;
        let source = hold.open((labels, name), owner);
        let source = source.context(|| format!("cannot open volume {name}"))?;
        actor.hold_volumes([hold]);
        let (target, read_only) = (volume.path.clone(), volume.read_only);
        mounted.mounts.push(Mount { source, target, read_only });
        mounted.held.push((id, writes));
    }
    Ok(mounted)
}

/// The caches of a container. They are held from here on.
async fn places(actor: &Actor, spec: &ContainerSpec) -> Result<Vec<Mount>, Failure> {
    let mut places = Vec::new();
    if !spec.caches.is_empty() {
        let room = actor.shared.caches.make_room().await;
        room.context(|| "cannot give it a cache".to_owned())?;
    }
    for (key, target) in &spec.caches {
        let source = made(&actor.hold_cache(key));
        let source = source.context(|| format!("cannot make cache {target}"))?;
        places.push(Mount { source, target: target.clone(), read_only: false });
    }
    Ok(places)
}

fn made(dir: &Path) -> std::io::Result<PathBuf> {
    fs::create_dir_all(dir)?;
    fs::canonicalize(dir)
}

/// Who `uid` or `uid:gid` is.
pub(crate) fn user(text: &str) -> Option<User> {
    parse_user(text).map(|(uid, gid)| User { uid, gid })
}

/// The connections of a container that would be refused otherwise. Whoever writes an app's manifest
/// must not open the machine, its neighbours or a private network: the machine's operator does.
fn openings(shared: &Shared, spec: &ContainerSpec) -> Result<Vec<EgressRule>, Failure> {
    let allowed = |rule: &EgressRule| {
        let mut networks = shared.options.allowed_networks.iter();
        networks.any(|network| network.holds((rule.network, rule.prefix)))
    };
    let rules: Vec<EgressRule> = spec.egress.iter().filter_map(egress).collect();
    match rules.iter().find(|rule| !allowed(rule)) {
        None => Ok(rules),
        Some(rule) => Err(Failure::new(format!(
            "egress to {}/{} is not allowed on this cell: its operator names networks with \
             `shore cell --allow-network`",
            rule.network, rule.prefix
        ))),
    }
}

fn egress(rule: &model::EgressRule) -> Option<EgressRule> {
    let (network, prefix) = rule.network()?;
    let protocol = match rule.protocol {
        Some(EgressProtocol::Tcp) => Protocol::Tcp,
        Some(EgressProtocol::Udp) => Protocol::Udp,
        Some(EgressProtocol::Icmp) => Protocol::Icmp,
        None => Protocol::All,
    };
    Some(EgressRule { network, prefix, protocol, ports: rule.ports })
}

/// The operator's limits for containers that name none: those a driver enforces.
fn usual_limits(told: DefaultLimits, enforced: &[LimitKind]) -> DefaultLimits {
    let where_it_holds = |limit: Option<u64>, kind| limit.filter(|_| enforced.contains(&kind));
    DefaultLimits {
        memory_mb: where_it_holds(told.memory_mb, LimitKind::Memory),
        disk_mb: where_it_holds(told.disk_mb, LimitKind::Disk),
    }
}

fn limits(limits: &model::Limits, usual: DefaultLimits, isolated: bool) -> Limits {
    let bytes = |megabytes: Option<u64>| megabytes.map(|mb| mb.saturating_mul(1 << 20));
    let millis = |shares: u64| (shares.saturating_mul(1_000) / SHARES_OF_A_CORE).max(1);
    Limits {
        memory_bytes: bytes(limits.memory_mb.or(usual.memory_mb)),
        disk_bytes: bytes(limits.disk_mb.or(usual.disk_mb)),
        cpu_millis: limits.cpu_shares.map(millis),
        // Without isolation the system counts everything its user runs.
        processes: limits.pids.filter(|_| isolated),
        open_files: limits.files,
        ..Limits::default()
    }
}

fn environment(shared: &Shared, image: &Image, isolated: bool) -> BTreeMap<String, String> {
    let mut env: BTreeMap<String, String> =
        DEFAULT_VARIABLES.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    env.extend(image.env.clone());
    let path = env.entry("PATH".to_owned()).or_insert_with(|| DEFAULT_PATH.to_owned());
    if !isolated && !shared.options.path.is_empty() {
        path.push(':');
        path.push_str(&shared.options.path);
    }
    if !isolated {
        for (name, value) in &shared.options.tools {
            env.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operator_limits_who_names_no_limit() {
        let told = DefaultLimits { memory_mb: Some(256), disk_mb: Some(1_024) };
        let usual = usual_limits(told, &[LimitKind::Memory, LimitKind::Cpu]);
        assert_eq!(usual, DefaultLimits { memory_mb: Some(256), disk_mb: None });
        let own = model::Limits { memory_mb: Some(512), ..model::Limits::default() };
        assert_eq!(limits(&own, told, true).memory_bytes, Some(512 << 20));
        assert_eq!(limits(&own, told, true).disk_bytes, Some(1 << 30));
        let none = model::Limits::default();
        assert_eq!(limits(&none, told, true).memory_bytes, Some(256 << 20));
        assert_eq!(limits(&none, DefaultLimits::default(), true).memory_bytes, None);
    }
}
