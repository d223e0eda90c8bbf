//! What a project file says.

use std::collections::BTreeMap;

use hcl_edit::Span as _;
use hcl_edit::structure::{Attribute, Block, Body};
use model::{EgressRule, MAX_INSTANCES, Name};

use crate::read::{Item, ManifestError, Source};
use crate::run::{RunFile, WORDS, egress};

type Result<T> = std::result::Result<T, ManifestError>;

/// A whole file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProjectFile {
    /// The project's name.
    pub project: Option<Name>,
    /// Its apps by name.
    pub apps: BTreeMap<Name, AppFile>,
}

/// One app.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AppFile {
    /// How it is built.
    pub build: BuildFile,
    /// How it runs.
    pub deploy: DeployFile,
}

/// How an app is built.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BuildFile {
    /// Environment of the build.
    pub env: BTreeMap<String, String>,
    /// How long it may take, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// Private networks it reaches, such as that of a package registry.
    pub egress: Vec<EgressRule>,
}

/// How an app runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeployFile {
    /// How many instances of `web`.
    pub instances: Option<u32>,
    /// What holds for every process; the checks are for `web` only.
    pub run: RunFile,
    /// Settings by process.
    pub processes: BTreeMap<Name, ProcessFile>,
}

/// Settings of one process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProcessFile {
    /// How many.
    pub instances: Option<u32>,
    /// What runs, instead of what the build found. No shell is involved.
    pub command: Option<Vec<String>>,
    /// What holds for this process only.
    pub run: RunFile,
}

/// Reads a project file.
pub fn parse(text: &str) -> Result<ProjectFile> {
    let source = Source(text);
    let body = source.parse()?;
    let mut file = ProjectFile::default();
    source.each(&body, "at the top", "`project` and `app`", |item| {
        match item {
            Item::Attribute(it) if it.key.as_str() == "project" => {
                file.project = Some(source.name(it)?);
            }
            Item::Block(it) if it.ident.as_str() == "app" => {
                let name = source.label(it)?;
                let app = app(source, &it.body)?;
                if file.apps.insert(name.clone(), app).is_some() {
                    let message = format!("app \"{name}\" is there twice");
                    return Err(source.error(it.ident.span(), message));
                }
            }
            Item::Attribute(_) | Item::Block(_) => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(file)
}

fn app(source: Source<'_>, body: &Body) -> Result<AppFile> {
    let mut app = AppFile::default();
    source.each(body, "in an app", "`build` and `deploy`", |item| {
        match item {
            Item::Block(it) if it.ident.as_str() == "build" => app.build = build(source, it)?,
            Item::Block(it) if it.ident.as_str() == "deploy" => app.deploy = deploy(source, it)?,
            Item::Attribute(_) | Item::Block(_) => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(app)
}

pub(crate) fn unlabelled(source: Source<'_>, it: &Block) -> Result<()> {
    if it.labels.is_empty() {
        return Ok(());
    }
    let message = format!("a `{}` block has no name", it.ident.as_str());
    Err(source.error(it.ident.span(), message))
}

fn build(source: Source<'_>, block: &Block) -> Result<BuildFile> {
    unlabelled(source, block)?;
    let mut build = BuildFile::default();
    source.each(&block.body, "in `build`", "`env`, `timeout` and `egress`", |item| {
        match item {
            Item::Attribute(it) if it.key.as_str() == "env" => build.env = source.env(it)?,
            Item::Attribute(it) if it.key.as_str() == "timeout" => {
                build.timeout_ms = Some(source.millis(it)?);
            }
            Item::Block(it) if it.ident.as_str() == "egress" => {
                build.egress.push(egress(source, it)?);
            }
            Item::Attribute(_) | Item::Block(_) => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(build)
}

pub(crate) fn count(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn instances(source: Source<'_>, it: &Attribute) -> Result<Option<u32>> {
    source.number(it, 0..=u64::from(MAX_INSTANCES)).map(|number| Some(count(number)))
}

fn deploy(source: Source<'_>, block: &Block) -> Result<DeployFile> {
    unlabelled(source, block)?;
    let mut deploy = DeployFile::default();
    let mut places = Vec::new();
    let allowed = format!("`instances`, `process`, {WORDS}");
    source.each(&block.body, "in `deploy`", &allowed, |item| {
        match item {
            Item::Attribute(it) if it.key.as_str() == "instances" => {
                deploy.instances = instances(source, it)?;
            }
            Item::Block(it) if it.ident.as_str() == "process" => {
                let name = source.label(it)?;
                places.push((name.clone(), it.ident.span()));
                deploy.processes.insert(name, process(source, it)?);
            }
            Item::Attribute(_) | Item::Block(_) => return deploy.run.take(source, item),
        }
        Ok(true)
    })?;
    // A process has the volumes of `deploy`, too, and those may be written below it.
    for (name, at) in places {
        if let Some(process) = deploy.processes.get(&name) {
            process.run.over(&deploy.run).volumes_hold(source, at)?;
        }
    }
    Ok(deploy)
}

fn process(source: Source<'_>, block: &Block) -> Result<ProcessFile> {
    let mut process = ProcessFile::default();
    let allowed = format!("`instances`, `command`, {WORDS}");
    source.each(&block.body, "in `process`", &allowed, |item| {
        match item {
            Item::Attribute(it) if it.key.as_str() == "instances" => {
                process.instances = instances(source, it)?;
            }
            Item::Attribute(it) if it.key.as_str() == "command" => {
                process.command = Some(source.texts(it)?);
            }
            Item::Attribute(_) | Item::Block(_) => return process.run.take(source, item),
        }
        Ok(true)
    })?;
    Ok(process)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = r#"
project = "shop"

app "web" {
  build {
    env     = { NODE_ENV = "production" }
    timeout = "5m"
    egress {
      to = "10.2.0.0/16"
    }
  }
  deploy {
    instances  = 3
    memory     = 512
    stop_grace = "20s"
    env        = { GREETING = "hello" }
    check {
      path          = "/health"
      interval      = "500ms"
      timeout       = "1s"
      start_timeout = "2m"
      failures      = 5
      successes     = 2
      jitter        = 20
    }
    startup {
      tcp           = true
      port          = 9000
      start_timeout = "3m"
    }
    readiness {
      command = ["bin/ready", "--now"]
    }
    volume "files" {
      path = "/data"
    }
    egress {
      to       = "10.1.0.0/16"
      protocol = "tcp"
      ports    = "5432-5440"
    }
    process "worker" {
      instances   = 2
      command     = ["python3", "worker.py"]
      env         = { QUEUE = "low" }
      disk        = 1024
      cpu         = 0.5
      pids        = 100
      files       = 1024
      log_rate    = 64
      driver      = "oci"
      tags        = ["gpu", "fast"]
      user        = "1000:1000"
      read_only   = true
      tmp         = 64
      stop_signal = "SIGQUIT"
      pre_stop    = ["bin/drain"]
      volume "files" {
        path      = "/data"
        read_only = true
      }
      crash {
        immediate     = 1
        base          = "5s"
        cap           = "1m"
        reset_after   = "10m"
        give_up_after = 20
      }
    }
  }
}
"#;

    #[test]
    fn everything_there_is() {
        insta::assert_debug_snapshot!(parse(FULL).expect("a good file"));
        assert_eq!(parse("").expect("an empty file"), ProjectFile::default());
    }

    #[test]
    fn messages_name_the_place_and_what_is_allowed() {
        let bad = [
            "project = ",
            "project = 5",
            "project = \"My Shop\"",
            "projekt = \"a\"",
            "app {\n}",
            "app \"a\" {}\napp \"a\" {}",
            "app \"a\" {\n  deploy {\n    instances = 5000\n  }\n}",
            "app \"a\" {\n  deploy {\n    instances = \"two\"\n  }\n}",
            "app \"a\" {\n  deploy {\n    stop_grace = \"ten\"\n  }\n}",
            "app \"a\" {\n  deploy {\n    env = { \"A B\" = \"c\" }\n  }\n}",
            "app \"a\" {\n  deploy {\n    env = { PORT = \"1\" }\n  }\n}",
            "app \"a\" {\n  deploy {\n    env = [1]\n  }\n}",
            "app \"a\" {\n  build \"x\" {\n  }\n}",
            "app \"a\" {\n  deploy {\n    process \"w\" { command = \"run it\" }\n  }\n}",
            "app \"a\" {\n  deploy {\n    cpu = 0\n  }\n}",
            "app \"a\" {\n  deploy {\n    cpu = 256.001\n  }\n}",
            "app \"a\" {\n  deploy {\n    driver = \"qemu\"\n  }\n}",
            "app \"a\" {\n  deploy {\n    user = \"root\"\n  }\n}",
            "app \"a\" {\n  deploy {\n    driver = \"podman\"\n  }\n}",
            "app \"a\" {\n  deploy {\n    read_only = \"yes\"\n  }\n}",
            "app \"a\" {\n  deploy {\n    stop_signal = \"KILL\"\n  }\n}",
            "app \"a\" {\n  deploy {\n    pre_stop = []\n  }\n}",
            "app \"a\" {\n  deploy {\n    tags = [\"a b\"]\n  }\n}",
            "app \"a\" {\n  deploy {\n    volume \"v\" {\n    }\n  }\n}",
            "app \"a\" {\n  deploy {\n    volume \"v\" { path = \"/a/../b\" }\n  }\n}",
            "app \"a\" {\n  deploy {\n    volume \"v\" { path = \"/etc\" }\n  }\n}",
            "app \"a\" {\n  deploy {\n    volume \"v\" { path = \"/a\" }\n    volume \"w\" { path = \"/a/b\" }\n  }\n}",
            "app \"a\" {\n  deploy {\n    process \"w\" {\n      volume \"v\" { path = \"/a\" }\n    }\n    volume \"w\" { path = \"/a\" }\n  }\n}",
            "app \"a\" {\n  deploy {\n    egress { to = \"example.com\" }\n  }\n}",
            "app \"a\" {\n  deploy {\n    egress {\n      ports = \"9-8\"\n    }\n  }\n}",
            "app \"a\" {\n  deploy {\n    check {\n      path = \"up\"\n    }\n  }\n}",
            "app \"a\" {\n  deploy {\n    startup {\n      tcp = true\n      path = \"/\"\n    }\n  }\n}",
            "app \"a\" {\n  deploy {\n    readiness {\n      port = 0\n    }\n  }\n}",
            "app \"a\" {\n  deploy {\n    crash {\n      base = \"1h\"\n    }\n  }\n}",
            "app \"a\" {\n  deploy {\n    check \"x\" {\n    }\n  }\n}",
        ];
        let messages: Vec<String> =
            bad.iter().map(|text| parse(text).expect_err(text).to_string()).collect();
        insta::assert_snapshot!(messages.join("\n"));
    }
}
