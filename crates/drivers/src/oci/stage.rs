//! Lays out the root of a container in a mount namespace of its own, then becomes the runtime.
//!
//! Nothing is ever mounted on the machine itself: the mounts belong to a helper process, the
//! container's first process inherits them, and they go away with it. An agent that is killed
//! leaves none behind. The helper is this executable, started again with a hidden argument, so it
//! has one thread and may make namespaces.

mod mounts;
mod users;

use std::fs::{self, File, Permissions};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use serde::{Deserialize, Serialize};

use crate::proc::Id;
use crate::shim;
use crate::spec::{Mount, PATH};

pub(super) use mounts::Root;

/// The argument that makes an executable this helper.
pub(crate) const ARGUMENT: &str = "__longshore_stage";
/// The longest plan.
const MAX_PLAN_BYTES: u64 = 4 << 20;
/// Where the root is on the stage.
pub(super) const ROOT: &str = "root";
/// Where the first process's program is on the stage.
pub(super) const IDLE: &str = "idle";
/// Where the container's user namespace is on the stage.
pub(super) const USERS: &str = "users";
/// Where a container's own files are on the stage.
const OWN: &str = "own";
/// Why it failed, in the container's directory.
pub(super) const COMPLAINT_FILE: &str = "stage.log";
/// Who makes the container.
const MAKER_FILE: &str = "maker.json";

/// What to lay out, and what to start then.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    /// An empty directory everybody may enter, where it is laid out.
    pub(super) stage: PathBuf,
    /// The container's directory.
    pub(super) container: PathBuf,
    /// The layers of its root, from the lowest to the highest.
    pub(super) layers: Vec<PathBuf>,
    /// A file with a file system for what the container writes; else its directory is used.
    pub(super) image: Option<PathBuf>,
    /// The user of the machine that user 0 is, in a user namespace.
    pub(super) first_user: Option<u32>,
    /// What of the machine it sees as the machine's: not even its root may read what not everybody
    /// may.
    pub(super) base: Vec<Mount>,
    pub(super) mounts: Vec<Mount>,
    /// Files below `/etc` with their text.
    pub(super) files: Vec<(String, String)>,
    /// Those of them that an image's own replace.
    pub(super) defaults: Vec<(String, String)>,
    /// The program of the first process.
    pub(super) idle: PathBuf,
    /// The runtime with its arguments.
    pub(super) runtime: Vec<String>,
}

/// Lays out what standard input asks for and becomes the runtime; returns only when that failed.
pub(crate) fn run() -> io::Error {
    let plan = match read_plan() {
        Ok(plan) => plan,
        Err(error) => return error,
    };
    let Err(error) = lay_out(&plan) else {
        return become_the_runtime(&plan.runtime);
    };
    // Nobody reads standard error; without this file the agent says less, but the same.
    drop(fs::write(plan.container.join(COMPLAINT_FILE), error.to_string()));
    error
}

/// Opens an executable through a mount of its own, attached nowhere and read-only: what a process of
/// a container could get hold of while it is this executable can never be written to.
pub(super) fn read_only(executable: &Path) -> io::Result<OwnedFd> {
    mounts::tree(executable, None, mounts::Access::Read)
}

/// Who makes a container, or made it: the helper's process is the runtime's.
pub(super) fn maker(container: &Path) -> Option<Id> {
    serde_json::from_slice(&fs::read(container.join(MAKER_FILE)).ok()?).ok()
}

fn read_plan() -> io::Result<Plan> {
    let mut text = Vec::new();
    io::stdin().lock().take(MAX_PLAN_BYTES).read_to_end(&mut text)?;
    let null = File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(serde_json::from_slice(&text)?)
}

fn become_the_runtime(argv: &[String]) -> io::Error {
    let Some((program, arguments)) = argv.split_first() else {
        return io::Error::other("no runtime");
    };
    shim::usual_signals();
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", PATH).stdin(Stdio::null()).exec()
}

/// Says what was being done.
fn doing<T, E: Into<io::Error>>(what: &str, result: Result<T, E>) -> io::Result<T> {
    result.map_err(|error| io::Error::other(format!("{what}: {}", error.into())))
}

fn lay_out(plan: &Plan) -> io::Result<()> {
    let own = Id::of(std::process::id().cast_signed());
    doing("write", shim::write_whole(&plan.container, MAKER_FILE, &own))?;
    doing("be as mortal as others", shim::usual_mortality())?;
    let users = plan.first_user.map(users::namespace).transpose();
    let users = doing("make a user namespace", users)?;
    doing("make a mount namespace", users::own_mounts())?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    doing("keep mounts apart", mount_change("/", private))?;
    let tmpfs = mount("tmpfs", &plan.stage, "tmpfs", MountFlags::NODEV, Some(c"mode=0755,size=1m"));
    doing("mount the stage", tmpfs)?;
    doing("enter the stage", std::env::set_current_dir(&plan.stage))?;
    if let Some(users) = &users {
        let shown = File::create(USERS).and_then(|_| mounts::bind_open(users, Path::new(USERS)));
        doing("show the user namespace to the runtime", shown)?;
    }
    let layers = bind_layers(plan, users.as_ref())?;
    own_files(plan)?;
    doing("mount the root", overlay(&layers))?;
    let owner = plan.first_user.unwrap_or(0);
    let root = Root::open(Path::new(ROOT), (owner, owner));
    let root = doing("open the root", root)?;
    let base = plan.base.iter().map(|wanted| (wanted, None));
    for (wanted, users) in base.chain(plan.mounts.iter().map(|wanted| (wanted, users.as_ref()))) {
        let put = root.put(wanted, users);
        doing(&format!("mount {} at {}", wanted.source.display(), wanted.target), put)?;
    }
    for (name, text) in &plan.files {
        doing(name, root.write(name, text, mounts::Existing::Replace))?;
    }
    for (name, text) in &plan.defaults {
        doing(name, root.write(name, text, mounts::Existing::Keep))?;
    }
    let idle = File::create(IDLE).and_then(|_| mounts::bind(&plan.idle, Path::new(IDLE)));
    doing("bind the first process", idle)
}

/// Brings the layers on the stage, under names that are short and belong to the container's users.
fn bind_layers(plan: &Plan, users: Option<&OwnedFd>) -> io::Result<String> {
    let mut names = Vec::new();
    for (number, layer) in plan.layers.iter().enumerate() {
        let name = number.to_string();
        let bound = fs::create_dir(&name).and_then(|()| {
            let tree = mounts::tree(layer, users, mounts::Access::Read)?;
            mounts::attach(&tree, Path::new(&name))
        });
        doing(&format!("bring layer {}", layer.display()), bound)?;
        names.push(name);
    }
    names.reverse();
    Ok(names.join(":"))
}

/// Brings the directory with what the container writes on the stage.
fn own_files(plan: &Plan) -> io::Result<()> {
    fs::create_dir(OWN)?;
    if let Some(image) = &plan.image {
        doing("mount the disk", mounts::image(image, Path::new(OWN)))?;
    } else {
        let own = plan.container.join(OWN);
        let bound = fs::create_dir(&own).and_then(|()| mounts::bind(&own, Path::new(OWN)));
        doing("bind the disk", bound)?;
    }
    let owner = plan.first_user.unwrap_or(0);
    for name in ["upper", "work"] {
        let dir = Path::new(OWN).join(name);
        fs::create_dir(&dir)?;
        fs::set_permissions(&dir, Permissions::from_mode(0o755))?;
        chown(&dir, Some(owner), Some(owner))?;
    }
    Ok(())
}

/// Mounts the root.
fn overlay(layers: &str) -> io::Result<()> {
    fs::create_dir(ROOT)?;
    let options = format!("lowerdir={layers},upperdir={OWN}/upper,workdir={OWN}/work");
    let options = std::ffi::CString::new(options)?;
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    Ok(mount("overlay", ROOT, "overlay", flags, Some(options.as_c_str()))?)
}
