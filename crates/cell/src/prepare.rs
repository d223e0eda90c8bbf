//! Makes containers: image, platform programs, caches, environment.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use build::image::{Sharing, materialise};
use drivers::{Driver, Handle, Isolation, Limits, User, archive};
use model::{ContainerSpec, LIFECYCLE, PROGRAMS, parse_user, program_name};
use rustix::fs::{AtFlags, CWD, linkat, symlinkat, unlinkat};
use rustix::io::Errno;

use crate::caches::Cache;
use crate::error::{Context as _, Failure};
use crate::image::Image;
use crate::shared::Shared;
use crate::work::Key;

/// Where image layers hold installed packages.
const PACKAGES: &str = "layers";
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";
const DEFAULT_VARIABLES: [(&str, &str); 2] =
    [("CNB_LAYERS_DIR", "/layers"), ("CNB_APP_DIR", "/workspace")];

/// A container that is ready to run something.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// What every process in it gets.
    pub(crate) env: BTreeMap<String, String>,
    /// Where processes run unless they say otherwise.
    pub(crate) dir: Option<String>,
    /// The caches it uses, to be released when it is gone.
    pub(crate) caches: Vec<Cache>,
}

/// Makes the container of `key`. Whoever calls removes it when this fails or is given up.
pub(crate) async fn container(
    shared: &Shared,
    driver: &Arc<dyn Driver>,
    key: Key,
    (spec, properties): (&ContainerSpec, BTreeMap<String, String>),
) -> Result<Prepared, Failure> {
    let image = match spec.image {
        Some(digest) => {
            shared.images.get(digest).await.context(|| format!("cannot get image {digest}"))?
        }
        None => Image::default(),
    };
    let _permit = shared.creates.acquire().await.map_err(Failure::new)?;
    let handle = key.handle();
    let isolated = driver.capabilities().isolation != Isolation::None;
    let mut made = drivers::ContainerSpec::new(handle.clone());
    made.limits = limits(&spec.limits, isolated);
    made.properties = key.properties();
    made.properties.extend(properties);
    driver.create(made).await?;
    let env = environment(shared, &image, isolated);
    let dir = image.dir.clone();
    let caches: Vec<Cache> = spec.caches.keys().map(|key| shared.caches.hold(key)).collect();
    let places = caches.iter().map(Cache::path).zip(spec.caches.values().cloned()).collect();
    let furniture = Furniture::new(shared, driver.as_ref(), &handle, (image, places))?;
    shared.tasks.blocking(move || furniture.put()).await?;
    Ok(Prepared { env: env.into_iter().chain(spec.env.clone()).collect(), dir, caches })
}

/// Who `uid` or `uid:gid` is.
pub(crate) fn user(text: &str) -> Option<User> {
    parse_user(text).map(|(uid, gid)| User { uid, gid })
}

fn limits(limits: &model::Limits, isolated: bool) -> Limits {
    let bytes = |megabytes: Option<u64>| megabytes.map(|mb| mb.saturating_mul(1 << 20));
    Limits {
        memory_bytes: bytes(limits.memory_mb),
        disk_bytes: bytes(limits.disk_mb),
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

/// Everything that is put into a new container's root.
struct Furniture {
    root: PathBuf,
    image: Image,
    platform: PathBuf,
    /// Whether paths of the machine mean the same inside.
    isolated: bool,
    /// Where a cache is on this machine and in the container.
    caches: Vec<(PathBuf, String)>,
}

impl Furniture {
    fn new(
        shared: &Shared,
        driver: &dyn Driver,
        handle: &Handle,
        (image, caches): (Image, Vec<(PathBuf, String)>),
    ) -> Result<Self, Failure> {
        let unsupported = || Failure::new("this driver does not let the cell fill containers");
        Ok(Self {
            root: driver.host_path(handle, "/").ok_or_else(unsupported)?,
            image,
            platform: shared.options.platform_exe.clone(),
            isolated: driver.capabilities().isolation != Isolation::None,
            caches,
        })
    }

    fn put(&self) -> Result<(), Failure> {
        let layers = self.image.layers.iter();
        let paths = layers.filter_map(|layer| layer.path().map(Path::to_owned));
        materialise(&paths.collect::<Vec<_>>(), &self.root, &self.sharing())
            .map_err(Failure::new)
            .context(|| "cannot copy the image".to_owned())?;
        let root = archive::open_root(&self.root)?;
        let lifecycle = archive::open_below(root.as_fd(), LIFECYCLE, true)?;
        for program in PROGRAMS {
            self.program(lifecycle.as_fd(), program_name(program))
                .context(|| format!("cannot make {program}"))?;
        }
        for (at, path) in &self.caches {
            fs::create_dir_all(at)
                .and_then(|()| fs::canonicalize(at))
                .map_err(Failure::from)
                .and_then(|at| link(root.as_fd(), &at, path))
                .context(|| format!("cannot make cache {path}"))?;
        }
        Ok(())
    }

    /// Installed packages are not written to in place, so they need no copy where nothing keeps
    /// containers apart anyway. An app's own files are always its own.
    fn sharing(&self) -> Sharing {
        if self.isolated { Sharing::Copy } else { Sharing::LinkBelow(vec![PACKAGES.into()]) }
    }

    fn program(&self, dir: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        replace(dir, name)?;
        if !self.isolated {
            return Ok(symlinkat(&self.platform, dir, name)?);
        }
        match linkat(CWD, &self.platform, dir, name, AtFlags::SYMLINK_FOLLOW) {
            Err(Errno::XDEV | Errno::PERM | Errno::MLINK) => {
                let to = self.root.join(LIFECYCLE.trim_start_matches('/')).join(name);
                fs::copy(&self.platform, to).map(|_| ())
            }
            other => Ok(other?),
        }
    }
}

/// Makes `path` in the container lead to a directory of the machine.
fn link(root: BorrowedFd<'_>, at: &Path, path: &str) -> Result<(), Failure> {
    let (parent, name) = path.trim_end_matches('/').rsplit_once('/').unwrap_or(("", path));
    if name.is_empty() {
        return Err(Failure::new("it cannot be the root"));
    }
    let parent = archive::open_below(root, parent, true)?;
    replace(parent.as_fd(), name)?;
    Ok(symlinkat(at, &parent, name).map_err(io::Error::from)?)
}

/// Removes what has the name: a file, a link or an empty directory.
fn replace(dir: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => Ok(unlinkat(dir, name, AtFlags::REMOVEDIR)?),
        Err(error) => Err(error.into()),
    }
}
