//! The launcher: from a process type to a running program, without a shell.
//!
//! It reads `<layers>/config/metadata.toml`, applies what the layers add to the environment,
//! splits and fills in the command line, goes to the working directory and becomes the program.
//! A process that is the built-in static file server is served by the launcher itself.

use std::convert::Infallible;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};

use crate::metadata::{LaunchProcess, Metadata};
use crate::paths::{APP_DIR, LAYERS_DIR, Root};
use crate::tool::find_entry;
use crate::words::{Line, WordsError};
use crate::{Env, Exit, Phase, apply_layer, find_program};

/// The command of a process that is served by the launcher itself.
pub const STATIC_SERVER: &str = "static-server";
/// The `PATH` of a process whose environment has none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variables that are the launcher's business and not the app's.
const OWN: [&str; 5] = [
    "CNB_LAYERS_DIR",
    "CNB_APP_DIR",
    "CNB_PROCESS_TYPE",
    "CNB_PLATFORM_API",
    "CNB_DEPRECATION_MODE",
];
/// Places that are the launcher's business and not the app's.
const OWN_PATHS: [&str; 2] = ["/cnb/process", "/cnb/lifecycle"];

/// Why a process was not started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The build's metadata is missing or wrong.
    #[error("cannot read {path}: {reason}; was this image made by a build?")]
    Metadata {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Nothing was named and there is no default.
    #[error("no process type is the default one: name one of {known}, or a command after `--`")]
    NoDefault {
        /// What there is.
        known: String,
    },
    /// The command line cannot be used.
    #[error("process type {process_type}: {error}")]
    Line {
        /// The process type.
        process_type: String,
        /// What is wrong.
        error: WordsError,
    },
    /// The program does not exist.
    #[error("{program} was not found; looked in {looked_in}; {hint}")]
    Missing {
        /// What was looked for.
        program: String,
        /// Where.
        looked_in: String,
        /// What may help.
        hint: &'static str,
    },
    /// The program cannot be executed.
    #[error("{path} is no executable file; `chmod +x` makes one of a program")]
    NotExecutable {
        /// What was found.
        path: PathBuf,
    },
    /// The system refused to start the program.
    #[error("start {path}: {source}{hint}")]
    Start {
        /// The program.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
        /// What that means here, or nothing.
        hint: &'static str,
    },
    /// A layer wants something that is not supported.
    #[error("layer {0} has an exec.d directory, which is not supported")]
    ExecD(PathBuf),
    /// The operating system refused.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The system's answer.
        source: io::Error,
    },
}

impl LaunchError {
    /// The exit code for this error.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Missing { .. } => Exit::NotFound,
            Self::Start { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Exit::NotFound
            }
            Self::NotExecutable { .. } | Self::Start { .. } => Exit::NotExecutable,
            Self::Metadata { .. }
            | Self::NoDefault { .. }
            | Self::Line { .. }
            | Self::ExecD(_)
            | Self::Io { .. } => Exit::LaunchFailed,
        }
    }
}

fn io_error(what: &str, path: &Path, source: io::Error) -> LaunchError {
    LaunchError::Io { context: format!("{what} {}", path.display()), source }
}

/// A process ready to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// What it is.
    pub program: Program,
    /// Its whole environment.
    pub env: Env,
    /// Its working directory.
    pub dir: PathBuf,
}

/// What is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// A file to execute, and its arguments with the name it is called by.
    File {
        /// The file.
        path: PathBuf,
        /// The arguments.
        argv: Vec<String>,
    },
    /// The built-in static file server, with its arguments.
    StaticServer(Vec<String>),
}

/// Where the image is: container paths made real.
#[derive(Debug)]
struct Places {
    root: Root,
    layers: String,
    app: String,
}

impl Places {
    fn new(env: &Env) -> Self {
        let place = |name: &str, usual: &str| {
            env.get(name).filter(|value| value.starts_with('/')).map_or(usual, |v| v).to_owned()
        };
        Self {
            root: Root::from_env(env),
            layers: place("CNB_LAYERS_DIR", LAYERS_DIR),
            app: place("CNB_APP_DIR", APP_DIR),
        }
    }

    fn rewrite(&self, text: &str) -> String {
        self.root.rewrite(text, &[&self.layers, &self.app]).into_owned()
    }
}

/// Works out what `args` mean: nothing (the default process type), a process type and arguments
/// that replace its own, or `--` and a command. `env` is the environment of the launcher.
pub fn prepare(args: &[String], env: &Env) -> Result<Prepared, LaunchError> {
    let places = Places::new(env);
    let metadata = read_metadata(&places)?;
    let find = |name: &str| metadata.processes.iter().find(|process| process.r#type == name);
    let default = metadata.buildpack_default_process_type.as_str();
    let (process, extra) = match args.split_first() {
        Some((first, rest)) if first == "--" && !rest.is_empty() => (None, rest),
        Some((first, rest)) if find(first).is_some() => (find(first), rest),
        None => (Some(find(default).ok_or_else(|| no_default(&metadata))?), args),
        Some((first, _)) if first == "--" => return Err(no_default(&metadata)),
        Some(_) => (None, args),
    };
    let mut env = process_env(&places, &metadata, process, env)?;
    let command = match process {
        Some(process) => command_of(process, extra, &mut env)?,
        None => extra.to_vec(),
    };
    let command: Vec<_> = command.iter().map(|word| places.rewrite(word)).collect();
    let app = places.root.real(&places.app);
    let dir = match process.and_then(|process| process.working_dir.as_deref()) {
        Some(dir) if dir.starts_with('/') => places.root.real(dir),
        Some(dir) => app.join(dir),
        None => app,
    };
    let program = find_argv(command, &env, &dir)?;
    Ok(Prepared { program, env, dir })
}

fn no_default(metadata: &Metadata) -> LaunchError {
    let known = metadata.processes.iter().map(|process| process.r#type.as_str());
    LaunchError::NoDefault { known: known.collect::<Vec<_>>().join(", ") }
}

fn read_metadata(places: &Places) -> Result<Metadata, LaunchError> {
    let path = places.root.real(&places.layers).join("config/metadata.toml");
    let wrong = |reason: String| LaunchError::Metadata { path: path.clone(), reason };
    let text = std::fs::read_to_string(&path).map_err(|error| wrong(error.to_string()))?;
    Metadata::from_toml(&text).map_err(|error| wrong(error.to_string()))
}

fn process_env(
    places: &Places,
    metadata: &Metadata,
    process: Option<&LaunchProcess>,
    given: &Env,
) -> Result<Env, LaunchError> {
    let mut env: Env = given
        .iter()
        .filter(|(name, _)| !OWN.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let path = env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
    let path: Vec<_> = path.split(':').filter(|part| !OWN_PATHS.contains(part)).collect();
    env.insert("PATH".to_owned(), path.join(":"));
    let phase = Phase::Launch(process.map(|process| process.r#type.as_str()));
    for buildpack in &metadata.buildpacks {
        let dir = places.root.real(&places.layers).join(buildpack.id.replace('/', "_"));
        for layer in layers(&dir)? {
            if layer.join("exec.d").is_dir() {
                return Err(LaunchError::ExecD(layer));
            }
            apply_layer(&layer, phase, &mut env, |value| places.rewrite(value))
                .map_err(|error| io_error("read the environment of", &layer, error))?;
        }
    }
    Ok(env)
}

fn layers(dir: &Path) -> Result<Vec<PathBuf>, LaunchError> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| io_error("read", dir, error))?,
    };
    let mut layers = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| io_error("read", dir, error))?.path();
        if path.is_dir() {
            layers.push(path);
        }
    }
    layers.sort_unstable();
    Ok(layers)
}

fn command_of(
    process: &LaunchProcess,
    extra: &[String],
    env: &mut Env,
) -> Result<Vec<String>, LaunchError> {
    let mut argv = match &process.line {
        None => process.command.clone(),
        Some(line) => {
            let wrong = |error| LaunchError::Line { process_type: process.r#type.clone(), error };
            let expanded = Line::parse(line).and_then(|line| line.expand(env)).map_err(wrong)?;
            env.extend(expanded.env);
            expanded.argv
        }
    };
    argv.extend_from_slice(if extra.is_empty() { &process.args } else { extra });
    Ok(argv)
}

fn find_argv(argv: Vec<String>, env: &Env, dir: &Path) -> Result<Program, LaunchError> {
    let name = argv.first().map_or("", String::as_str);
    if name == STATIC_SERVER {
        return Ok(Program::StaticServer(argv.into_iter().skip(1).collect()));
    }
    let path = env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
    if let Some(path) = find_program(name, path, dir) {
        return Ok(Program::File { path, argv });
    }
    if let Some(path) = find_entry(name, path, dir) {
        return Err(LaunchError::NotExecutable { path });
    }
    Err(LaunchError::Missing {
        program: name.to_owned(),
        looked_in: if name.contains('/') { dir.display().to_string() } else { path.to_owned() },
        hint: crate::tool::hint(name),
    })
}

/// Becomes the process: returns only when that fails, or when a static server has ended.
pub fn exec(prepared: Prepared) -> Result<(), LaunchError> {
    let Prepared { program, env, dir } = prepared;
    match program {
        Program::File { path, argv } => {
            let never: Infallible = replace(&path, &argv, &env, &dir)?;
            match never {}
        }
        Program::StaticServer(args) => crate::staticserver::main(&args, &env, &dir)
            .map_err(|error| io_error("serve", &dir, error)),
    }
}

fn replace(path: &Path, argv: &[String], env: &Env, dir: &Path) -> Result<Infallible, LaunchError> {
    let mut command = std::process::Command::new(path);
    if let Some((name, args)) = argv.split_first() {
        command.arg0(name).args(args);
    }
    let source = command.current_dir(dir).env_clear().envs(env).exec();
    let hint = match source.kind() {
        _ if !dir.is_dir() => return Err(io_error("enter", dir, source)),
        io::ErrorKind::NotFound => "; the interpreter its first line names is missing",
        _ => "",
    };
    Err(LaunchError::Start { path: path.to_owned(), source, hint })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const METADATA: &str = r#"
        buildpack-default-process-type = "web"
        [[buildpacks]]
        id = "x"
        version = "1"
        [[processes]]
        type = "web"
        line = "V=1 tool $PORT $A"
        [[processes]]
        type = "job"
        command = ["tool"]
        args = ["usual"]
        working-dir = "sub"
        [[processes]]
        type = "files"
        command = ["static-server", "/workspace/public"]
    "#;

    fn root() -> (tempfile::TempDir, Env) {
        let root = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::write(path, text).expect("written");
        };
        write("layers/config/metadata.toml", METADATA);
        write("layers/x/one/bin/tool", "");
        write("layers/x/one/env.launch/A", "/layers/x/one/a");
        write("workspace/sub/x", "");
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(root.path().join("layers/x/one/bin/tool"), executable)
            .expect("set");
        let place = root.path().display().to_string();
        let env = [
            ("SHORE_ROOT", place.as_str()),
            ("PORT", "80"),
            ("PATH", "/cnb/process:/usr/bin"),
            ("CNB_APP_DIR", "/workspace"),
        ];
        (root, env.map(|(k, v)| (k.to_owned(), v.to_owned())).into())
    }

    fn argv(prepared: &Prepared) -> Vec<String> {
        match &prepared.program {
            Program::File { argv, .. } => argv.clone(),
            Program::StaticServer(args) => args.clone(),
        }
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn process_types_get_the_environment_of_layers() {
        let (root, env) = root();
        let at = |path: &str| root.path().join(path).display().to_string();
        let web = prepare(&[], &env).expect("prepared");
        assert_eq!(argv(&web), ["tool", "80", &at("layers/x/one/a")]);
        assert_eq!(web.env["V"], "1");
        assert_eq!(web.env["PATH"], format!("{}:/usr/bin", at("layers/x/one/bin")));
        assert!(!web.env.contains_key("CNB_APP_DIR"));
        assert_eq!(web, prepare(&strings(&["web"]), &env).expect("prepared"));
        let job = prepare(&strings(&["job"]), &env).expect("prepared");
        assert_eq!(argv(&job), ["tool", "usual"]);
        assert_eq!(job.dir, root.path().join("workspace/sub"));
        let job = prepare(&strings(&["job", "a", "b"]), &env).expect("prepared");
        assert_eq!(argv(&job), ["tool", "a", "b"]);
        let files = prepare(&strings(&["files"]), &env).expect("prepared");
        assert_eq!(files.program, Program::StaticServer(vec![at("workspace/public")]));
    }

    #[test]
    fn what_cannot_be_executed_has_the_codes_of_shells() {
        let (root, env) = root();
        let write = |name: &str, text: &str, mode| {
            let path = root.path().join("workspace").join(name);
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("set");
        };
        write("plain", "", 0o644);
        write("orphan", "#!/no/such/interpreter\n", 0o755);
        let exit = |command: &str| {
            let launched = prepare(&strings(&["--", command]), &env).and_then(exec);
            let error = launched.expect_err("it cannot run");
            (error.exit() as u8, error.to_string())
        };
        for (command, code, told) in [
            ("none", 127, "none was not found; looked in"),
            ("./none", 127, "./none was not found"),
            ("./plain", 126, "is no executable file"),
            ("./sub", 126, "is no executable file"),
            ("./orphan", 127, "its first line names is missing"),
        ] {
            let (found, text) = exit(command);
            assert_eq!(found, code, "{command}: {text}");
            assert!(text.contains(told), "{command}: {text}");
        }
    }

    #[test]
    fn commands_run_as_they_are() {
        let (_root, env) = root();
        for args in [&["--", "tool", "$PORT"][..], &["tool", "$PORT"]] {
            let prepared = prepare(&strings(args), &env).expect("prepared");
            assert_eq!(argv(&prepared), ["tool", "$PORT"]);
        }
        let error = prepare(&strings(&["none"]), &env).expect_err("there is none");
        assert!(error.to_string().starts_with("none was not found"), "{error}");
        assert_eq!(error.exit() as u8, 127);
        let error = prepare(&strings(&["--"]), &env).expect_err("nothing to run");
        assert!(error.to_string().contains("web, job, files"), "{error}");
        let error = prepare(&[], &Env::new()).expect_err("no image");
        assert!(matches!(error, LaunchError::Metadata { .. }), "{error}");
    }
}
