//! Node: packages with npm into one layer, started from the source as it is.

use std::path::Path;

use serde_json::Value;

use crate::buildpack::{
    BuildContext, Buildpack, Built, Command, DetectContext, Detected, Layer, LayerTypes, Process,
    write,
};
use crate::error::{BuildError, Context as _};
use crate::tool::{Call, require};
use crate::words::Line;

const PACKAGE: &str = "package.json";
const LOCKS: [&str; 2] = ["npm-shrinkwrap.json", "package-lock.json"];
const FOREIGN_LOCKS: [&str; 3] = ["yarn.lock", "pnpm-lock.yaml", "bun.lock"];
/// Files that are started when nothing else says what to start.
const STARTS: [&str; 4] = ["server.js", "index.js", "app.js", "main.js"];
/// Scripts that npm runs while it installs: they may look at anything.
const INSTALL_SCRIPTS: [&str; 5] =
    ["preinstall", "install", "postinstall", "prepare", "dependencies"];
const DEFAULTS: &str = "defaults";
const MODULES: &str = "modules";
const FOLDER: &str = "node_modules";
/// What helps when npm prints one of these.
const HINTS: [(&str, &str); 2] = [("ETARGET", NO_VERSION), ("E404", NO_VERSION)];
const NO_VERSION: &str =
    "check the package's name and version in package.json: the registry has no such one";

/// The buildpack `node`.
#[derive(Debug)]
pub(super) struct Node;

impl Buildpack for Node {
    fn id(&self) -> &'static str {
        "node"
    }

    fn version(&self) -> &'static str {
        "1.0.0"
    }

    fn detect(&self, context: &DetectContext<'_>) -> Result<Detected, BuildError> {
        let Some(text) = context.read(PACKAGE)? else {
            return Ok(Detected::fail(format!("no {PACKAGE}")));
        };
        let package = Package::parse(&text)?;
        Ok(if package.start(context.app).is_some() || context.procfile_web() {
            Detected::pass()
        } else {
            Detected::fail(format!(
                "there is a {PACKAGE}, but nothing to start: no `web` in a Procfile, no \
                 `scripts.start`, no `main` that exists and no {}",
                STARTS.join(", ")
            ))
        })
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Result<Built, BuildError> {
        let node = require("node", &context.env)?;
        let package = Package::parse(&context.read(PACKAGE)?.unwrap_or_default())?;
        let mut layers = vec![defaults(context)?];
        layers.extend(modules(context, &package, &node)?);
        if package.script("build").is_some() {
            let npm = require("npm", &context.env)?;
            let app = context.app();
            let args = ["run", "build"];
            Call { program: &npm, args: &args, dir: &app, env: &context.env, hint: "" }
                .run(context.out)?;
        }
        let start = package.start(&context.app());
        let mut built = Built::new(start.map(Process::web).into_iter().collect());
        built.layers = layers;
        Ok(built)
    }
}

fn defaults(context: &BuildContext<'_>) -> Result<Layer, BuildError> {
    let dir = context.layer_dir(DEFAULTS)?;
    write(&dir, "env/NODE_ENV.default", "production")?;
    Ok(Layer { name: DEFAULTS.to_owned(), types: LayerTypes::Launch, key: None, reused: None })
}

/// A `package.json`.
#[derive(Debug)]
struct Package(Value);

impl Package {
    fn parse(text: &str) -> Result<Self, BuildError> {
        match serde_json::from_str(text) {
            Ok(value @ Value::Object(_)) => Ok(Self(value)),
            Ok(_) => Err(BuildError::source_file(PACKAGE, "it is no object")),
            Err(error) => Err(BuildError::source_file(PACKAGE, error.to_string())),
        }
    }

    fn script(&self, name: &str) -> Option<&str> {
        self.0.get("scripts")?.get(name)?.as_str().filter(|script| !script.trim().is_empty())
    }

    fn has_any(&self, table: &str) -> bool {
        self.0.get(table).and_then(Value::as_object).is_some_and(|table| !table.is_empty())
    }

    /// Whether parts of the source are packages of their own.
    fn has_local(&self) -> bool {
        self.0.get("workspaces").is_some()
            || self.versions().any(|version| is_path(version) && !is_archive(version))
    }

    /// Whether some packages are archives in the source.
    fn has_archives(&self) -> bool {
        self.versions().any(|version| is_path(version) && is_archive(version))
    }

    fn versions(&self) -> impl Iterator<Item = &str> {
        let tables = ["dependencies", "devDependencies", "optionalDependencies"];
        let tables = tables.into_iter().filter_map(|table| self.0.get(table)?.as_object());
        tables.flat_map(|table| table.values().filter_map(Value::as_str))
    }

    /// How the web process is started.
    fn start(&self, app: &Path) -> Option<Command> {
        if let Some(script) = self.script("start") {
            let alone = self.script("prestart").is_none() && self.script("poststart").is_none();
            return Some(if alone && Line::parse(script).is_ok() {
                Command::Line(script.to_owned())
            } else {
                Command::Argv(vec!["npm".to_owned(), "start".to_owned()])
            });
        }
        let main = self.0.get("main").and_then(Value::as_str);
        let main = main.filter(|main| {
            let file = app.join(main);
            file.exists() || file.with_extension("js").exists()
        });
        let file = main.or_else(|| STARTS.into_iter().find(|file| app.join(file).is_file()))?;
        Some(Command::Argv(vec!["node".to_owned(), file.to_owned()]))
    }
}

fn is_path(version: &str) -> bool {
    let starts = ["file:", "link:", "workspace:", "./", "../"];
    starts.iter().any(|start| version.starts_with(start))
}

fn is_archive(version: &str) -> bool {
    Path::new(version).extension().is_some_and(|extension| extension == "tgz")
}

/// The layer of installed packages, if there is anything to install.
fn modules(
    context: &mut BuildContext<'_>,
    package: &Package,
    node: &Path,
) -> Result<Option<Layer>, BuildError> {
    let app = context.app();
    let building = package.script("build").is_some();
    let wanted = ["dependencies", "optionalDependencies"].iter().any(|t| package.has_any(t))
        || (building && package.has_any("devDependencies"));
    if !wanted {
        return Ok(None);
    }
    if app.join(FOLDER).exists() {
        context.note("Using the node_modules of the source; leave it out to have npm install")?;
        return Ok(None);
    }
    let npm = require("npm", &context.env)?;
    if package.has_local() {
        // Their links only work from inside the source.
        install(context, &npm, building)?;
        return Ok(None);
    }
    let key = key(context, package, node)?;
    if let Some(layer) = key.as_ref().and_then(|key| context.reuse(MODULES, key)) {
        context.note("Packages are as in the last build")?;
        if let Some(cached) = layer.reused.as_ref().filter(|_| building) {
            context.restore(cached)?;
        }
        link(context)?;
        return Ok(Some(layer));
    }
    install(context, &npm, building)?;
    if !app.join(FOLDER).is_dir() {
        return Ok(None);
    }
    let dir = context.layer_dir(MODULES)?;
    let (from, to) = (app.join(FOLDER), dir.join(FOLDER));
    std::fs::rename(&from, &to).building("move", &from)?;
    if to.join(".bin").is_dir() {
        let bin = dir.join("bin");
        std::os::unix::fs::symlink(format!("{FOLDER}/.bin"), &bin).building("link", &bin)?;
    }
    link(context)?;
    Ok(Some(Layer { name: MODULES.to_owned(), types: LayerTypes::LaunchCached, key, reused: None }))
}

/// What installed packages depend on; nothing when that cannot be known.
fn key(
    context: &BuildContext<'_>,
    package: &Package,
    node: &Path,
) -> Result<Option<String>, BuildError> {
    let locked = LOCKS.iter().any(|file| context.app().join(file).is_file());
    let scripts = INSTALL_SCRIPTS.iter().any(|script| package.script(script).is_some());
    if scripts || (package.has_archives() && !locked) {
        return Ok(None);
    }
    let version = context.version_of(node, &["--version"])?;
    let mut parts = vec![version, package.script("build").map_or("", |_| "dev").to_owned()];
    for file in LOCKS.into_iter().chain([".npmrc"]) {
        parts.push(context.read(file)?.unwrap_or_default());
    }
    for table in ["dependencies", "devDependencies", "optionalDependencies", "overrides"] {
        parts.push(package.0.get(table).map(Value::to_string).unwrap_or_default());
    }
    let parts: Vec<_> = parts.iter().map(String::as_str).collect();
    Ok(Some(context.key(&parts)))
}

fn install(context: &mut BuildContext<'_>, npm: &Path, dev: bool) -> Result<(), BuildError> {
    let app = context.app();
    let locked = LOCKS.iter().any(|file| app.join(file).is_file());
    if !locked {
        if let Some(foreign) = FOREIGN_LOCKS.iter().find(|file| app.join(file).is_file()) {
            context.note(&format!("{foreign} is not read: npm chooses the versions"))?;
        }
        context.note("There is no package-lock.json: versions may differ between builds")?;
    }
    let mut args = if locked { vec!["ci"] } else { vec!["install", "--no-package-lock"] };
    args.push(if dev { "--include=dev" } else { "--omit=dev" });
    args.extend(["--no-audit", "--no-fund", "--prefer-offline", "--loglevel=error"]);
    let mut env = context.env.clone();
    let cache = context.cache_dir()?.join("npm");
    env.insert("npm_config_cache".to_owned(), cache.to_string_lossy().into_owned());
    env.insert("npm_config_update_notifier".to_owned(), "false".to_owned());
    let hint = "if package.json and package-lock.json differ, run `npm install` and commit both";
    let call = Call { program: npm, args: &args, dir: &app, env: &env, hint };
    call.run_hinted(context.out, &HINTS)
}

/// Makes `node_modules` of the source a link into the layer, which works below any root.
fn link(context: &BuildContext<'_>) -> Result<(), BuildError> {
    let up = context.paths.workspace.split('/').filter(|part| !part.is_empty()).count();
    let layer = context.layer_path(MODULES);
    let target = format!("{}{}/{FOLDER}", "../".repeat(up), layer.trim_start_matches('/'));
    let link = context.app().join(FOLDER);
    std::os::unix::fs::symlink(target, &link).building("link", &link)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(text: &str, files: &[&str]) -> Option<Command> {
        let dir = tempfile::tempdir().expect("a directory");
        for file in files {
            write(dir.path(), file, "").expect("written");
        }
        Package::parse(text).expect("parses").start(dir.path())
    }

    fn argv(words: &[&str]) -> Command {
        Command::Argv(words.iter().map(|word| (*word).to_owned()).collect())
    }

    #[test]
    fn the_start_is_the_script_or_the_main_file() {
        let script = start(r#"{"scripts": {"start": "node a.js --port $PORT"}}"#, &[]);
        assert_eq!(script, Some(Command::Line("node a.js --port $PORT".to_owned())));
        let npm = Some(argv(&["npm", "start"]));
        assert_eq!(start(r#"{"scripts": {"start": "a && b"}}"#, &[]), npm);
        assert_eq!(start(r#"{"scripts": {"start": "a", "prestart": "b"}}"#, &[]), npm);
        assert_eq!(start(r#"{"main": "lib/x"}"#, &["lib/x.js"]), Some(argv(&["node", "lib/x"])));
        assert_eq!(start(r#"{"main": "gone.js"}"#, &["app.js"]), Some(argv(&["node", "app.js"])));
        assert_eq!(start("{}", &[]), None);
    }

    #[test]
    fn local_packages_are_known() {
        for (text, local) in [
            (r#"{"workspaces": ["a"]}"#, true),
            (r#"{"dependencies": {"a": "file:../a"}}"#, true),
            (r#"{"dependencies": {"a": "file:./a.tgz"}}"#, false),
            (r#"{"dependencies": {"a": "^1"}}"#, false),
        ] {
            assert_eq!(Package::parse(text).expect("parses").has_local(), local, "{text}");
        }
        for bad in ["[]", "{", ""] {
            let error = Package::parse(bad).expect_err(bad).to_string();
            assert!(error.starts_with("package.json: "), "{error}");
        }
    }
}
