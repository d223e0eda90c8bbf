//! Python: packages with pip into one layer, started from the source as it is.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::buildpack::{
    BuildContext, Buildpack, Built, Command, DetectContext, Detected, Layer, LayerTypes, Process,
    write,
};
use crate::error::{BuildError, Context as _};
use crate::tool::{Call, require};

const REQUIREMENTS: &str = "requirements.txt";
const PYPROJECT: &str = "pyproject.toml";
/// Files that are started when nothing else says what to start.
const STARTS: [&str; 5] = ["app.py", "main.py", "server.py", "web.py", "wsgi.py"];
const DEFAULTS: &str = "defaults";
const PACKAGES: &str = "packages";
/// What helps when pip prints one of these.
const HINTS: [(&str, &str); 2] = [
    ("No matching distribution", NO_VERSION),
    ("ResolutionImpossible", "the versions asked for contradict each other: loosen one of them"),
];
const NO_VERSION: &str =
    "check the name and the version: there is no such package for this version of Python";

/// The buildpack `python`.
#[derive(Debug)]
pub(super) struct Python;

impl Buildpack for Python {
    fn id(&self) -> &'static str {
        "python"
    }

    fn version(&self) -> &'static str {
        "1.0.0"
    }

    fn detect(&self, context: &DetectContext<'_>) -> Result<Detected, BuildError> {
        let start = context.first(&STARTS);
        if context.first(&[REQUIREMENTS, PYPROJECT]).is_none() && start.is_none() {
            let starts = STARTS.join(", ");
            return Ok(Detected::fail(format!("no {REQUIREMENTS}, {PYPROJECT}, {starts}")));
        }
        Ok(if start.is_some() || context.procfile_web() {
            Detected::pass()
        } else {
            Detected::fail(format!(
                "there is Python, but nothing to start: no `web` in a Procfile and no {}",
                STARTS.join(", ")
            ))
        })
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Result<Built, BuildError> {
        let python = require("python3", &context.env)?;
        let mut layers = vec![defaults(context)?];
        if let Some(requirements) = requirements(context)? {
            layers.push(packages(context, &python, &requirements)?);
        }
        let app = context.app();
        let start = STARTS.iter().find(|file| app.join(file).is_file());
        let argv = start.map(|file| vec!["python3".to_owned(), (*file).to_owned()]);
        let mut built =
            Built::new(argv.map(|argv| Process::web(Command::Argv(argv))).into_iter().collect());
        built.layers = layers;
        Ok(built)
    }
}

/// Output must reach the log when it is written, not when a buffer is full.
fn defaults(context: &BuildContext<'_>) -> Result<Layer, BuildError> {
    let dir = context.layer_dir(DEFAULTS)?;
    write(&dir, "env/PYTHONUNBUFFERED.default", "1")?;
    Ok(Layer { name: DEFAULTS.to_owned(), types: LayerTypes::Launch, key: None, reused: None })
}

/// What pip is asked to install, as the text of a requirements file; nothing when that is empty.
fn requirements(context: &BuildContext<'_>) -> Result<Option<String>, BuildError> {
    let text = match (context.read(REQUIREMENTS)?, context.read(PYPROJECT)?) {
        (Some(text), _) => text,
        (None, Some(text)) => project_dependencies(&text)?,
        (None, None) => return Ok(None),
    };
    let entry = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with('#');
    Ok(text.lines().any(|line| entry(&line)).then_some(text))
}

/// `project.dependencies` as lines.
fn project_dependencies(text: &str) -> Result<String, BuildError> {
    let wrong = |reason: String| BuildError::source_file(PYPROJECT, reason);
    let document: toml_edit::DocumentMut =
        text.parse().map_err(|error: toml_edit::TomlError| wrong(error.to_string()))?;
    let poetry = document.get("tool").and_then(|tool| tool.get("poetry"));
    let dependencies = document.get("project").and_then(|project| project.get("dependencies"));
    let Some(dependencies) = dependencies else {
        return match poetry.and_then(|poetry| poetry.get("dependencies")) {
            Some(_) => Err(wrong(format!(
                "its dependencies are in Poetry's own table: run `poetry export -o {REQUIREMENTS}`"
            ))),
            None => Ok(String::new()),
        };
    };
    let list = dependencies.as_array().ok_or_else(|| wrong("`dependencies` is no list".into()))?;
    let mut lines = String::new();
    for item in list {
        let line = item
            .as_str()
            .filter(|line| !line.starts_with('-') && !line.contains(['\n', '\r']))
            .ok_or_else(|| wrong(format!("{item} is no dependency")))?;
        lines.push_str(line);
        lines.push('\n');
    }
    Ok(lines)
}

fn packages(
    context: &mut BuildContext<'_>,
    python: &Path,
    requirements: &str,
) -> Result<Layer, BuildError> {
    let app = context.app();
    let call = |args, hint| Call { program: python, args, dir: &app, env: &context.env, hint };
    let version = context.version_of(python, &["-VV"])?;
    let included = included(&app, requirements)?;
    // What is installed from the source itself changes with it.
    let local = [requirements, &included].iter().any(|text| has_local(text));
    let key = (!local).then(|| context.key(&[&version, requirements, &included]));
    if let Some(layer) = key.as_ref().and_then(|key| context.reuse(PACKAGES, key)) {
        context.note("Packages are as in the last build")?;
        return Ok(layer);
    }
    call(&["-m", "pip", "--version"], "").ask().map_err(|_| BuildError::MissingTool {
        tool: "pip".to_owned(),
        hint: crate::tool::hint("pip").to_owned(),
        path: format!("the modules of {}", python.display()),
    })?;
    context
        .note(&format!("Installing packages with {}", version.lines().next().unwrap_or("pip")))?;
    let dir = context.layer_dir(PACKAGES)?;
    let lib = dir.join("site-packages");
    install(context, python, requirements, &lib)?;
    if lib.join("bin").is_dir() {
        scripts(&lib.join("bin"), &dir.join("bin"))?;
    }
    compile(context, python, &dir)?;
    let path = format!("{}/site-packages", context.layer_path(PACKAGES));
    write(&dir, "env/PYTHONPATH.prepend", &path)?;
    write(&dir, "env/PYTHONPATH.delim", ":")?;
    Ok(Layer { name: PACKAGES.to_owned(), types: LayerTypes::LaunchCached, key, reused: None })
}

/// The texts of files that a requirements file points at, as they belong to its key.
fn included(app: &Path, requirements: &str) -> Result<String, BuildError> {
    let mut texts = String::new();
    let mut waiting: Vec<String> = files_in(requirements);
    let mut seen = Vec::new();
    while let Some(file) = waiting.pop() {
        if seen.contains(&file) {
            continue;
        }
        if let Some(text) = crate::buildpack::read(app, &file)? {
            waiting.extend(files_in(&text));
            texts.push_str(&text);
            texts.push('\0');
        }
        seen.push(file);
    }
    Ok(texts)
}

/// Whether a requirement is a path.
fn has_local(requirements: &str) -> bool {
    requirements.lines().map(str::trim).any(|line| {
        ["-e", "--editable", ".", "/", "file:"].iter().any(|start| line.starts_with(start))
            || line.contains("@ file:")
    })
}

fn files_in(requirements: &str) -> Vec<String> {
    let options = ["-r", "--requirement", "-c", "--constraint"];
    let file = |line: &str| {
        let line = line.trim();
        let rest = options.iter().find_map(|option| line.strip_prefix(option))?;
        Some(rest.trim_start_matches(['=', ' ', '\t']).to_owned())
    };
    requirements.lines().filter_map(file).collect()
}

fn install(
    context: &mut BuildContext<'_>,
    python: &Path,
    requirements: &str,
    lib: &Path,
) -> Result<(), BuildError> {
    let app = context.app();
    let cache = context.cache_dir()?;
    let mut file = app.join(REQUIREMENTS);
    if !file.is_file() {
        file = cache.join(REQUIREMENTS);
        std::fs::write(&file, requirements).building("write", &file)?;
    }
    let (lib, file) = (lib.to_string_lossy(), file.to_string_lossy());
    let args = [
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
        "--no-compile",
        "--no-warn-script-location",
        "--root-user-action=ignore",
        "--quiet",
        "--target",
        &lib,
        "-r",
        &file,
    ];
    let mut env = context.env.clone();
    env.insert("PIP_CACHE_DIR".to_owned(), cache.join("pip").to_string_lossy().into_owned());
    let hint = "a package without a wheel for this machine needs a compiler: \
                `apt install build-essential python3-dev`";
    let call = Call { program: python, args: &args, dir: &app, env: &env, hint };
    call.run_hinted(context.out, &HINTS)
}

/// Moves console scripts to where `PATH` finds them, to start with whatever `python3` is there.
fn scripts(from: &Path, to: &Path) -> Result<(), BuildError> {
    std::fs::rename(from, to).building("move", from)?;
    for entry in std::fs::read_dir(to).building("read", to)? {
        let path: PathBuf = entry.building("read", to)?.path();
        let bytes = std::fs::read(&path).building("read", &path)?;
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(0);
        let first = String::from_utf8_lossy(&bytes[..end]);
        if first.starts_with("#!") && first.contains("python") {
            let mut new = b"#!/usr/bin/env python3".to_vec();
            new.extend_from_slice(&bytes[end..]);
            std::fs::write(&path, new).building("write", &path)?;
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(&path, mode).building("write", &path)?;
        }
    }
    Ok(())
}

/// Compiles to bytecode that does not depend on modification times, which layers do not keep.
fn compile(context: &mut BuildContext<'_>, python: &Path, layer: &Path) -> Result<(), BuildError> {
    let path = context.layer_path(PACKAGES);
    let (real, dir) = (layer.to_string_lossy(), layer.join("site-packages"));
    let dir = dir.to_string_lossy();
    let args = [
        "-m",
        "compileall",
        "-q",
        "-j",
        "0",
        "--invalidation-mode",
        "unchecked-hash",
        "-s",
        &real,
        "-p",
        &path,
        &dir,
    ];
    let app = context.app();
    let call = Call { program: python, args: &args, dir: &app, env: &context.env, hint: "" };
    // Packages may hold templates that are not valid Python: they are left as they are.
    call.ask().map(|_| ()).or(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_of_a_project_are_lines() {
        let text = "[project]\nname = 'x'\ndependencies = ['a>1', 'b ; python_version > \"3\"']";
        let lines = project_dependencies(text).expect("reads");
        assert_eq!(lines, "a>1\nb ; python_version > \"3\"\n");
        assert_eq!(project_dependencies("[build-system]").expect("reads"), "");
        for bad in [
            "[tool.poetry.dependencies]\na = '1'",
            "[project]\ndependencies = ['--index-url=x']",
            "[project]\ndependencies = 'a'",
            "[project",
        ] {
            let error = project_dependencies(bad).expect_err(bad).to_string();
            assert!(error.starts_with("pyproject.toml: "), "{error}");
        }
    }

    #[test]
    fn files_a_requirements_file_points_at_are_found() {
        let text = "-r base.txt\n--constraint=c.txt\nflask\n -c  d.txt";
        assert_eq!(files_in(text), ["base.txt", "c.txt", "d.txt"]);
        assert!(!has_local(text));
        for local in ["-e .", "./lib", "a\nb @ file:///x", "../x"] {
            assert!(has_local(local), "{local}");
        }
    }
}
