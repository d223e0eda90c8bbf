//! Rust: a release build with cargo; the image has the programs and not the source.

mod mirror;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml_edit::DocumentMut;

use crate::buildpack::{
    AppFiles, BuildContext, Buildpack, Built, Command, DetectContext, Detected, Layer, LayerTypes,
    Process,
};
use crate::error::{BuildError, Context as _};
use crate::tool::{Call, require};
use crate::words::Line;

const MANIFEST: &str = "Cargo.toml";
const LOCK: &str = "Cargo.lock";
const PROGRAMS: &str = "programs";
/// Directories of the source that programs read when they run.
const ASSETS: [&str; 7] =
    ["assets", "config", "migrations", "public", "static", "templates", "views"];

/// The buildpack `rust`.
#[derive(Debug)]
pub(super) struct Rust;

impl Buildpack for Rust {
    fn id(&self) -> &'static str {
        "rust"
    }

    fn version(&self) -> &'static str {
        "1.0.0"
    }

    fn detect(&self, context: &DetectContext<'_>) -> Result<Detected, BuildError> {
        Ok(if context.has(MANIFEST) {
            Detected::pass()
        } else {
            Detected::fail(format!("no {MANIFEST}"))
        })
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Result<Built, BuildError> {
        let cargo = require("cargo", &context.env)?;
        let cache = context.cache_dir()?;
        let source = cache.join("source");
        // Cargo trusts paths and modification times, and an unpacked archive has neither: the
        // source is mirrored to one place where only what changed is written.
        let tree =
            mirror::mirror(&context.app(), &source).building("mirror the source to", &source)?;
        let manifest = context.read(MANIFEST)?.unwrap_or_default();
        let manifest: DocumentMut = manifest.parse().map_err(|error: toml_edit::TomlError| {
            BuildError::source_file(MANIFEST, error.to_string())
        })?;
        let key = context.key(&[&tree.to_string(), &toolchain(context, &cargo)]);
        let (layer, programs) = match reuse(context, &key) {
            Some(reused) => {
                context.note("The source is as in the last build")?;
                reused
            }
            None => compile(context, &cargo, &manifest, key)?,
        };
        let mut built = Built::new(processes(&programs, &manifest));
        built.layers = vec![layer];
        built.app = AppFiles::Only(shipped(context));
        Ok(built)
    }
}

/// The programs of the last build, kept with the key of their layer.
#[derive(Debug, Serialize, Deserialize)]
struct Programs {
    key: String,
    names: BTreeSet<String>,
}

fn programs_file(context: &BuildContext<'_>) -> Result<PathBuf, BuildError> {
    Ok(context.cache_dir()?.join("programs.json"))
}

fn reuse(context: &BuildContext<'_>, key: &str) -> Option<(Layer, BTreeSet<String>)> {
    let file = programs_file(context).ok()?;
    let programs: Programs = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    let layer = context.reuse(PROGRAMS, key).filter(|_| programs.key == key)?;
    Some((layer, programs.names))
}

/// What tells one toolchain from another without running it: a proxy of rustup is slow.
fn toolchain(context: &BuildContext<'_>, cargo: &Path) -> String {
    use std::os::unix::fs::MetadataExt as _;
    let identity = std::fs::metadata(cargo).map(|m| format!("{} {}", m.len(), m.mtime()));
    let home = context.env.get("HOME").map(|home| format!("{home}/.rustup"));
    let rustup = context.env.get("RUSTUP_HOME").cloned().or(home).unwrap_or_default();
    let settings = std::fs::read_to_string(Path::new(&rustup).join("settings.toml"));
    let mut text = format!(
        "{} {} {}",
        cargo.display(),
        identity.unwrap_or_default(),
        settings.unwrap_or_default()
    );
    // What the user says about the build changes it.
    for (name, value) in &context.env {
        if ["CARGO_", "RUST", "CC", "CFLAGS"].iter().any(|start| name.starts_with(start)) {
            text.extend(["\0", name, "=", value]);
        }
    }
    text
}

fn compile(
    context: &mut BuildContext<'_>,
    cargo: &Path,
    manifest: &DocumentMut,
    key: String,
) -> Result<(Layer, BTreeSet<String>), BuildError> {
    let cache = context.cache_dir()?;
    let (source, target) = (cache.join("source"), cache.join("target"));
    let mut env = context.env.clone();
    env.insert("CARGO_TARGET_DIR".to_owned(), target.to_string_lossy().into_owned());
    env.insert("CARGO_TERM_COLOR".to_owned(), "never".to_owned());
    // Crates that were fetched stay for the next build.
    let home = || cache.join("home").to_string_lossy().into_owned();
    env.entry("CARGO_HOME".to_owned()).or_insert_with(home);
    if manifest.get("profile").and_then(|profile| profile.get("release")).is_none() {
        env.entry("CARGO_PROFILE_RELEASE_STRIP".to_owned()).or_insert_with(|| "debuginfo".into());
    }
    let mut args = vec!["build", "--release", "--bins", "--message-format=json-render-diagnostics"];
    if source.join(LOCK).is_file() {
        args.push("--locked");
    }
    let messages = cache.join("messages");
    let hint = "if Cargo.lock must change, run `cargo build` and commit it; for a missing linker: \
                `apt install build-essential`";
    Call { program: cargo, args: &args, dir: &source, env: &env, hint }
        .run_into(&messages, context.out)?;
    let text = std::fs::read_to_string(&messages).building("read", &messages)?;
    let dir = context.layer_dir(PROGRAMS)?;
    let bin = dir.join("bin");
    std::fs::create_dir(&bin).building("make", &bin)?;
    let mut names = BTreeSet::new();
    for program in executables(&text) {
        let Some(name) = program.file_name() else { continue };
        std::fs::copy(&program, bin.join(name)).building("copy", &program)?;
        names.insert(name.to_string_lossy().into_owned());
    }
    if names.is_empty() {
        return Err(BuildError::source_file(MANIFEST, "it builds no program: add a `src/main.rs`"));
    }
    let programs = Programs { key: key.clone(), names };
    let file = programs_file(context)?;
    let text =
        serde_json::to_vec(&programs).map_err(std::io::Error::from).building("write", &file)?;
    std::fs::write(&file, text).building("write", &file)?;
    let layer = Layer {
        name: PROGRAMS.to_owned(),
        types: LayerTypes::LaunchCached,
        key: Some(key),
        reused: None,
    };
    Ok((layer, programs.names))
}

/// The executables in cargo's messages.
fn executables(messages: &str) -> Vec<PathBuf> {
    let executable = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message.get("executable")?.as_str().map(PathBuf::from)
    };
    messages.lines().filter_map(executable).collect()
}

/// A process type for each program; one of them is `web` too.
fn processes(programs: &BTreeSet<String>, manifest: &DocumentMut) -> Vec<Process> {
    let package = |field: &str| {
        let value = manifest.get("package").and_then(|package| package.get(field));
        value.and_then(|value| value.as_str()).filter(|name| programs.contains(*name))
    };
    let only = programs.first().filter(|_| programs.len() == 1).map(String::as_str);
    let web = only
        .or_else(|| programs.get("web").map(String::as_str))
        .or_else(|| package("default-run"))
        .or_else(|| package("name"));
    let argv = |name: &str| Command::Argv(vec![name.to_owned()]);
    let plain = |name: &&String| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        *name != "web" && only.is_none() && name.chars().all(allowed)
    };
    let mut processes: Vec<_> = programs
        .iter()
        .filter(plain)
        .map(|name| Process { name: name.clone(), command: argv(name), default: false, dir: None })
        .collect();
    processes.extend(web.map(|name| Process::web(argv(name))));
    processes
}

/// What of the source is part of the image: what programs usually read, and what the Procfile names.
fn shipped(context: &BuildContext<'_>) -> Vec<String> {
    let mut names: BTreeSet<String> = ASSETS.iter().map(|name| (*name).to_owned()).collect();
    for entry in context.procfile {
        let Ok(line) = Line::parse(&entry.line) else { continue };
        for word in line.plain_words() {
            let path = word.strip_prefix(&context.paths.workspace).unwrap_or(word);
            let top = path.split('/').find(|part| !part.is_empty() && *part != ".");
            names.extend(top.filter(|top| *top != "..").map(str::to_owned));
        }
    }
    let app = context.app();
    names.into_iter().filter(|name| app.join(name).exists()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_come_from_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null}\nnoise\n\
                        {\"reason\":\"compiler-artifact\",\"executable\":\"/t/release/web\"}";
        assert_eq!(executables(messages), [Path::new("/t/release/web")]);
    }

    #[test]
    fn one_program_is_web() {
        let table = |programs: &[&str], manifest: &str| {
            let programs = programs.iter().map(|name| (*name).to_owned()).collect();
            let processes = processes(&programs, &manifest.parse().expect("TOML"));
            let shown = |process: Process| match process.command {
                Command::Argv(argv) => format!("{}={}", process.name, argv.join(" ")),
                Command::Line(line) => line,
            };
            processes.into_iter().map(shown).collect::<Vec<_>>().join(",")
        };
        assert_eq!(table(&["a"], ""), "web=a");
        assert_eq!(table(&["a", "web"], ""), "a=a,web=web");
        assert_eq!(table(&["a", "b"], "[package]\nname='b'"), "a=a,b=b,web=b");
        let default = "[package]\nname='b'\ndefault-run='a'";
        assert_eq!(table(&["a", "b"], default), "a=a,b=b,web=a");
        assert_eq!(table(&["a", "b"], ""), "a=a,b=b");
    }
}
