//! What a buildpack is: it says whether it wants a source, and builds layers and process types.

use std::io::{ErrorKind, Read as _, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::error::{BuildError, Context as _, if_there};
use crate::image::{Limits, unpack};
use crate::lifecycle::LayerCache;
use crate::procfile::Entry;
use crate::tool::{Call, require};
use crate::words::Line;
use crate::{Env, Paths, find_program};

/// Makes an app of a kind of source.
pub trait Buildpack {
    /// Its id, a short word.
    fn id(&self) -> &'static str;

    /// Its version. A new one makes the layers it cached stale.
    fn version(&self) -> &'static str;

    /// Whether it wants the source. Reads only.
    fn detect(&self, context: &DetectContext<'_>) -> Result<Detected, BuildError>;

    /// Builds layers and names process types.
    fn build(&self, context: &mut BuildContext<'_>) -> Result<Built, BuildError>;
}

/// What detection sees.
#[derive(Debug)]
pub struct DetectContext<'a> {
    /// The source.
    pub app: &'a Path,
    /// The process types of its Procfile.
    pub procfile: &'a [Entry],
}

impl DetectContext<'_> {
    /// Whether the source has this file.
    pub fn has(&self, file: &str) -> bool {
        self.app.join(file).is_file()
    }

    /// The first of `files` the source has.
    pub fn first<'f>(&self, files: &[&'f str]) -> Option<&'f str> {
        files.iter().copied().find(|file| self.has(file))
    }

    /// Whether the Procfile says how to run the web process.
    pub fn procfile_web(&self) -> bool {
        self.procfile.iter().any(|entry| entry.process_type == model::WEB)
    }

    /// The text of a file of the source, if it is there.
    pub fn read(&self, file: &str) -> Result<Option<String>, BuildError> {
        read(self.app, file)
    }
}

/// Most bytes of a file of the source that a buildpack reads.
const MAX_SOURCE_FILE: u64 = 16 << 20;

pub(crate) fn read(app: &Path, file: &str) -> Result<Option<String>, BuildError> {
    let path = app.join(file);
    match std::fs::metadata(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Ok(metadata) if metadata.len() > MAX_SOURCE_FILE => {
            return Err(BuildError::source_file(file, "more than 16 MiB"));
        }
        Ok(_) | Err(_) => {}
    }
    let bytes = std::fs::read(&path).building("read", &path)?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(BuildError::source_file(file, "it is not UTF-8 text")),
    }
}

/// What detection says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detected {
    /// The source is for this buildpack.
    Pass {
        /// What it brings and needs.
        plan: Plan,
    },
    /// It is not, and why, for people.
    Fail(String),
}

impl Detected {
    /// A pass with the plan of a buildpack that needs nobody else.
    pub fn pass() -> Self {
        Self::Pass { plan: Plan::default() }
    }

    /// A fail.
    pub fn fail(reason: impl Into<String>) -> Self {
        Self::Fail(reason.into())
    }
}

/// What a buildpack brings to others and needs of others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// What it brings.
    pub provides: Vec<String>,
    /// What it needs.
    pub requires: Vec<String>,
}

/// What a layer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerTypes {
    /// It is part of the image.
    Launch,
    /// It is part of the image, and its blob is kept for the next build.
    LaunchCached,
    /// Later build tools see it.
    Build,
}

/// A layer in `<layers>/<buildpack>/<name>`.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub types: LayerTypes,
    /// What it was made from: with the same key it need not be made again.
    pub key: Option<String>,
    /// The blob of an earlier build, when that is used instead of the directory.
    pub reused: Option<Cached>,
}

/// A layer's blob of an earlier build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// What is in it, uncompressed.
    pub diff_id: model::Digest,
}

/// How a process is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// The program and its arguments as they are.
    Argv(Vec<String>),
    /// A line that is split when the environment is known.
    Line(String),
}

/// A process type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its name.
    pub name: String,
    /// How it is started.
    pub command: Command,
    /// Whether it runs when none is named.
    pub default: bool,
    /// The working directory, when it is not the app directory.
    pub dir: Option<String>,
}

impl Process {
    /// The `web` process, which is the default one.
    pub fn web(command: Command) -> Self {
        Self { name: model::WEB.to_owned(), command, default: true, dir: None }
    }
}

/// Which files of the source are part of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppFiles {
    /// All but these names at the top.
    AllBut(Vec<String>),
    /// Only these names at the top.
    Only(Vec<String>),
}

/// What a build leaves.
#[derive(Debug)]
pub struct Built {
    /// Its layers.
    pub layers: Vec<Layer>,
    /// Its process types; those of the Procfile replace them.
    pub processes: Vec<Process>,
    /// Labels of the image.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Which files of the source are part of the image.
    pub app: AppFiles,
}

impl Built {
    /// No layers, these processes and all files.
    pub fn new(processes: Vec<Process>) -> Self {
        Self {
            layers: Vec::new(),
            processes,
            labels: std::collections::BTreeMap::new(),
            app: AppFiles::AllBut(Vec::new()),
        }
    }
}

/// What a build works with.
pub struct BuildContext<'a> {
    /// Where things are.
    pub paths: &'a Paths,
    /// The process types of the Procfile.
    pub procfile: &'a [Entry],
    /// The environment of build tools.
    pub env: Env,
    pub(crate) id: &'static str,
    pub(crate) version: &'static str,
    pub(crate) cache: &'a LayerCache,
    pub(crate) out: &'a mut dyn Write,
}

impl std::fmt::Debug for BuildContext<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BuildContext").field("paths", &self.paths).finish_non_exhaustive()
    }
}

impl BuildContext<'_> {
    /// The source.
    pub fn app(&self) -> PathBuf {
        self.paths.workspace_dir()
    }

    /// The text of a file of the source, if it is there.
    pub fn read(&self, file: &str) -> Result<Option<String>, BuildError> {
        read(&self.app(), file)
    }

    /// A directory of this buildpack that lives on between builds.
    pub fn cache_dir(&self) -> Result<PathBuf, BuildError> {
        let dir = self.paths.cache_dir().join(self.id);
        std::fs::create_dir_all(&dir).building("make", &dir)?;
        // Behind a link its real path is the same in every build, which is what tools key on.
        dir.canonicalize().building("find", &dir)
    }

    /// Tells the person who waits.
    pub fn note(&mut self, line: &str) -> Result<(), BuildError> {
        note(self.out, line)
    }

    /// The container path of a layer.
    pub fn layer_path(&self, name: &str) -> String {
        format!("{}/{}/{name}", self.paths.layers, self.id)
    }

    /// A fresh, empty directory for a layer.
    pub fn layer_dir(&self, name: &str) -> Result<PathBuf, BuildError> {
        let dir = self.paths.root.real(&self.layer_path(name));
        if_there(std::fs::remove_dir_all(&dir)).building("empty", &dir)?;
        std::fs::create_dir_all(&dir).building("make", &dir)?;
        Ok(dir)
    }

    /// The full key of a layer of this buildpack.
    pub fn key(&self, parts: &[&str]) -> String {
        let mut text = format!("{}\0{}\0{}", self.id, self.version, std::env::consts::ARCH);
        for part in parts {
            text.push('\0');
            text.push_str(part);
        }
        model::Digest::of(text.as_bytes()).to_string()
    }

    /// The layer of an earlier build that was made with the same key.
    pub fn reuse(&self, name: &str, key: &str) -> Option<Layer> {
        let reused = self.cache.find(&format!("{}/{name}", self.id), key)?;
        Some(Layer {
            name: name.to_owned(),
            types: LayerTypes::LaunchCached,
            key: Some(key.to_owned()),
            reused: Some(reused),
        })
    }

    /// What `program` says its version is. The answer is kept until the program's file changes;
    /// a script may say something else each time, so it is always asked.
    pub(crate) fn version_of(&self, program: &Path, args: &[&str]) -> Result<String, BuildError> {
        let real = program.canonicalize().building("find", program)?;
        let metadata = std::fs::metadata(&real).building("read", &real)?;
        let mut start = [0; 2];
        let script = std::fs::File::open(&real).and_then(|mut file| file.read_exact(&mut start));
        let script = script.is_err() || start == *b"#!";
        let (size, seconds) = (metadata.len(), metadata.mtime());
        let identity = format!("{} {size} {seconds}.{}", real.display(), metadata.mtime_nsec());
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let kept = self.cache_dir()?.join(format!("{name}.version"));
        if !script
            && let Ok(text) = std::fs::read_to_string(&kept)
            && let Some((known, version)) = text.split_once('\n')
            && known == identity
        {
            return Ok(version.to_owned());
        }
        let app = self.app();
        let version = Call { program, args, dir: &app, env: &self.env, hint: "" }.ask()?;
        std::fs::write(&kept, format!("{identity}\n{version}")).building("write", &kept)?;
        Ok(version)
    }

    /// Puts the files of a layer of an earlier build where they were.
    pub(crate) fn restore(&self, cached: &Cached) -> Result<(), BuildError> {
        let root = self.paths.root.real("/");
        let blob = self.cache.read(&cached.diff_id).building("read a cached layer for", &root)?;
        unpack(blob, &root, Limits::default())
            .map_err(std::io::Error::other)
            .building("unpack a cached layer in", &root)
            .map(|_| ())
    }

    /// Checks that the programs the Procfile names by path are there, and, as nothing is
    /// installed, that those it names without one are on the machine.
    pub fn check_procfile_programs(&self) -> Result<(), BuildError> {
        for entry in self.procfile {
            let line = Line::parse(&entry.line);
            let line = line.map_err(|error| BuildError::Unusable(error.to_string()))?;
            let Some(program) = line.program() else { continue };
            let wrong = |reason: String| {
                let what = format!("{} ({})", crate::procfile::FILE, entry.process_type);
                Err(BuildError::source_file(what, reason))
            };
            let file = self.app().join(program);
            if program.contains('/') {
                let real = self.paths.rewrite(program).into_owned();
                if find_program(&real, "", &self.app()).is_some() {
                    continue;
                }
                return wrong(if file.is_file() {
                    format!(
                        "{program} is not executable: run `chmod +x {program}` (with git: \
                         `git update-index --chmod=+x {program}`)"
                    )
                } else {
                    format!("{program} is not in the source")
                });
            }
            if let Err(missing) = require(program, &self.env) {
                if file.is_file() {
                    return wrong(format!("to run the file {program}, write `./{program}`"));
                }
                return Err(missing);
            }
        }
        Ok(())
    }
}

/// Writes a file into a layer's directory.
pub(crate) fn write(dir: &Path, file: &str, text: &str) -> Result<(), BuildError> {
    let path = dir.join(file);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).building("make", parent)?;
    }
    std::fs::write(&path, text).building("write", &path)
}

/// Writes one progress line.
pub(crate) fn note(out: &mut dyn Write, line: &str) -> Result<(), BuildError> {
    writeln!(out, "-----> {line}").building("write progress", Path::new(""))
}
