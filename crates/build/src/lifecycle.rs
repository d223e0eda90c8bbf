//! The phases of a build: detect, restore, build, export.

mod cache;
mod export;

use std::io::Write;
use std::path::Path;

use model::Digest;
use serde::{Deserialize, Serialize};

use crate::buildpack::{BuildContext, Buildpack, Built, Command, DetectContext, Detected, Process};
use crate::error::{BuildError, Context as _, Exit};
use crate::metadata::{API, BuildpackRef, LaunchProcess, Metadata};
use crate::procfile::{self, Entry};
use crate::source::SourceError;
use crate::words::Line;
use crate::{Env, Paths, builtin};

pub(crate) use cache::LayerCache;

/// The file of the result in the export directory.
pub const RESULT_FILE: &str = "result.json";
/// The variable that chooses a buildpack.
pub const CHOICE: &str = "SHORE_BUILDPACK";

/// Variables of the machine that build tools get; the user's come on top.
const PASSED_ON: [&str; 24] = [
    "CARGO_HOME",
    "CPATH",
    "HOME",
    "HOSTNAME",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "LIBRARY_PATH",
    "NO_PROXY",
    "PATH",
    "PKG_CONFIG_PATH",
    "PYENV_ROOT",
    "PYENV_VERSION",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TMPDIR",
    "USER",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// What a build gives: also the content of `result.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildResult {
    /// The digest of the manifest.
    pub image: Digest,
    /// The process types, sorted by name.
    pub processes: Vec<ResultProcess>,
    /// The buildpack that made it.
    pub buildpack: ResultBuildpack,
    /// The layers, bottom first.
    pub layers: Vec<ResultLayer>,
    /// Whether every layer is one of an earlier build.
    pub cached: bool,
}

/// A process type as the platform starts it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultProcess {
    /// Its name.
    pub name: String,
    /// The program and its arguments, in container paths.
    pub argv: Vec<String>,
    /// The working directory, when it is not the app directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<String>,
    /// Whether it runs when none is named.
    pub default: bool,
}

/// The buildpack that made an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultBuildpack {
    /// Its id.
    pub id: String,
    /// Its version.
    pub version: String,
}

/// A layer of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultLayer {
    /// What is in it, for people.
    pub name: String,
    /// Of the compressed bytes: the name of the blob.
    pub digest: Digest,
    /// Of the compressed bytes.
    pub size: u64,
    /// Of the uncompressed bytes.
    pub diff_id: Digest,
    /// Whether it is one of an earlier build.
    pub cached: bool,
}

/// Makes an image of the source in `paths.workspace`. `env` is the machine's environment;
/// progress for people goes to `out`. The result is also in `<export>/result.json`.
pub fn create(paths: &Paths, env: &Env, out: &mut dyn Write) -> Result<BuildResult, BuildError> {
    let app = paths.workspace_dir();
    if !app.is_dir() {
        return Err(std::io::Error::from(std::io::ErrorKind::NotFound))
            .building("find the source in", &app);
    }
    crate::source::check_links(&app).map_err(|error| match error {
        SourceError::Io { context, source } => {
            BuildError::Io { context, exit: Exit::BuildOther, source }
        }
        other => BuildError::source_file("the source", other.to_string()),
    })?;
    let procfile = read_procfile(&app)?;
    let buildpack = detect(paths, &procfile, out)?;
    let cache_dir = paths.cache_dir();
    let waiting = || writeln!(out, "-----> Waiting for another build of this app");
    let lock = LayerCache::lock(&cache_dir, waiting).building("lock the cache", &cache_dir)?;
    let mut cache = LayerCache::open(&cache_dir.join("layers"));
    let mut context = BuildContext {
        paths,
        procfile: &procfile,
        env: tool_env(paths, env),
        id: buildpack.id(),
        version: buildpack.version(),
        cache: &cache,
        out,
    };
    let built = buildpack.build(&mut context)?;
    let processes = processes(&built, &procfile)?;
    let metadata = metadata(buildpack, &built, &processes);
    let result = export::export(paths, &built, &metadata, &mut cache, out);
    drop(lock);
    result
}

fn read_procfile(app: &Path) -> Result<Vec<Entry>, BuildError> {
    let Some(text) = crate::buildpack::read(app, procfile::FILE)? else { return Ok(Vec::new()) };
    procfile::parse(&text).map_err(|error| {
        BuildError::source_file(
            format!("{} line {}", procfile::FILE, error.line),
            error.fault.to_string(),
        )
    })
}

/// The machine's variables that build tools need, then the user's.
fn tool_env(paths: &Paths, env: &Env) -> Env {
    let mut tools: Env = PASSED_ON
        .iter()
        .filter_map(|name| env.get(*name).map(|value| ((*name).to_owned(), value.clone())))
        .collect();
    tools.extend(paths.platform_env.clone());
    tools
}

fn detect(
    paths: &Paths,
    procfile: &[Entry],
    out: &mut dyn Write,
) -> Result<&'static dyn Buildpack, BuildError> {
    let app = paths.workspace_dir();
    let context = DetectContext { app: &app, procfile };
    let choice = paths.platform_env.get(CHOICE).filter(|choice| !choice.is_empty());
    let candidates: Vec<_> = match choice {
        None => builtin::all().to_vec(),
        Some(given) => {
            let found = builtin::all().iter().copied().find(|b| b.id() == given);
            vec![found.ok_or_else(|| BuildError::UnknownBuildpack {
                given: given.chars().take(64).collect(),
                known: builtin::detection_order().join(", "),
            })?]
        }
    };
    let mut looked_for = Vec::new();
    for buildpack in candidates {
        match buildpack.detect(&context)? {
            Detected::Pass { plan: _ } => {
                let (id, version) = (buildpack.id(), buildpack.version());
                crate::buildpack::note(out, &format!("Buildpack {id} {version}"))?;
                return Ok(buildpack);
            }
            Detected::Fail(reason) => looked_for.push(format!("  {}: {reason}", buildpack.id())),
        }
    }
    Err(BuildError::NotDetected { looked_for: looked_for.join("\n") })
}

/// The buildpack's process types, with those of the Procfile on top, sorted by name.
fn processes(built: &Built, procfile: &[Entry]) -> Result<Vec<Process>, BuildError> {
    let mut processes: std::collections::BTreeMap<_, _> =
        built.processes.iter().map(|p| (p.name.clone(), p.clone())).collect();
    for entry in procfile {
        let process = Process {
            name: entry.process_type.clone(),
            command: Command::Line(entry.line.clone()),
            default: entry.process_type == model::WEB,
            dir: None,
        };
        processes.insert(entry.process_type.clone(), process);
    }
    if processes.is_empty() {
        return Err(BuildError::Unusable("there is no process to run".to_owned()));
    }
    for process in processes.values() {
        let name = &process.name;
        if let Command::Line(line) = &process.command {
            Line::parse(line)
                .map_err(|e| BuildError::Unusable(format!("process type {name}: {e}")))?;
        }
    }
    Ok(processes.into_values().collect())
}

fn metadata(buildpack: &dyn Buildpack, built: &Built, processes: &[Process]) -> Metadata {
    let default = processes.iter().rfind(|process| process.default);
    let launch = processes.iter().map(|process| {
        let (command, line) = match &process.command {
            Command::Argv(argv) => (argv.clone(), None),
            Command::Line(line) => (Vec::new(), Some(line.clone())),
        };
        LaunchProcess {
            r#type: process.name.clone(),
            command,
            line,
            args: Vec::new(),
            direct: true,
            default: process.default,
            buildpack_id: buildpack.id().to_owned(),
            working_dir: process.dir.clone(),
        }
    });
    Metadata {
        buildpack_default_process_type: default
            .map(|process| process.name.clone())
            .unwrap_or_default(),
        buildpacks: vec![BuildpackRef {
            id: buildpack.id().to_owned(),
            version: buildpack.version().to_owned(),
            api: API.to_owned(),
        }],
        processes: launch.collect(),
        labels: built.labels.clone(),
    }
}
