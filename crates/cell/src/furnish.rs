//! Fills containers of drivers that do not lay out roots and mounts themselves.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use build::image::{Sharing, materialise};
use drivers::{Isolation, Mount, archive};
use model::{LIFECYCLE, PROGRAMS, program_name};
use rustix::fs::{AtFlags, CWD, linkat, symlinkat, unlinkat};
use rustix::io::Errno;

use crate::actor::Actor;
use crate::error::{Context as _, Failure};

/// Where image layers hold installed packages.
const PACKAGES: &str = "layers";

/// Everything that is put into a new container's root.
pub(crate) struct Furniture {
    root: PathBuf,
    layers: Vec<PathBuf>,
    platform: PathBuf,
    /// Whether paths of the machine mean something else inside.
    isolated: bool,
    /// Caches and volumes.
    places: Vec<Mount>,
}

impl Furniture {
    pub(crate) fn new(
        actor: &Actor,
        layers: Vec<PathBuf>,
        places: Vec<Mount>,
    ) -> Result<Self, Failure> {
        let unsupported = || Failure::new("this driver does not let the cell fill containers");
        Ok(Self {
            root: actor.driver.host_path(&actor.handle, "/").ok_or_else(unsupported)?,
            layers,
            platform: actor.shared.options.platform_exe.clone(),
            isolated: actor.driver.capabilities().isolation != Isolation::None,
            places,
        })
    }

    pub(crate) fn put(&self) -> Result<(), Failure> {
        materialise(&self.layers, &self.root, &self.sharing())
            .map_err(Failure::new)
            .context(|| "cannot copy the image".to_owned())?;
        let root = archive::open_root(&self.root)?;
        let lifecycle = archive::open_below(root.as_fd(), LIFECYCLE, true)?;
        for program in PROGRAMS {
            self.program(lifecycle.as_fd(), program_name(program))
                .context(|| format!("cannot make {program}"))?;
        }
        for Mount { source, target, .. } in &self.places {
            link(root.as_fd(), source, target).context(|| format!("cannot make {target}"))?;
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
