//! What a project file says.

use std::collections::BTreeMap;

use hcl_edit::Span as _;
use hcl_edit::structure::{Block, Body};
use model::{MAX_INSTANCES, Name};

use crate::read::{Item, ManifestError, Source};

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
}

/// How an app runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeployFile {
    /// How many instances of `web`.
    pub instances: Option<u32>,
    /// Environment of every process.
    pub env: BTreeMap<String, String>,
    /// Memory of an instance in MiB.
    pub memory_mb: Option<u64>,
    /// Time between TERM and KILL, in milliseconds.
    pub stop_grace_ms: Option<u64>,
    /// The health check of `web`.
    pub check: Option<CheckFile>,
    /// Settings by process.
    pub processes: BTreeMap<Name, ProcessFile>,
}

/// A health check. Times in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckFile {
    /// An HTTP path; a TCP connection is tried when absent.
    pub path: Option<String>,
    /// Between two checks.
    pub interval_ms: Option<u64>,
    /// For one check.
    pub timeout_ms: Option<u64>,
    /// From start to the first success.
    pub start_timeout_ms: Option<u64>,
    /// Failures in a row.
    pub failures: Option<u32>,
}

/// Settings of one process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProcessFile {
    /// How many.
    pub instances: Option<u32>,
    /// What runs, instead of what the build found. No shell is involved.
    pub command: Option<Vec<String>>,
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

fn unlabelled(source: Source<'_>, it: &Block) -> Result<()> {
    if it.labels.is_empty() {
        return Ok(());
    }
    let message = format!("a `{}` block has no name", it.ident.as_str());
    Err(source.error(it.ident.span(), message))
}

fn build(source: Source<'_>, block: &Block) -> Result<BuildFile> {
    unlabelled(source, block)?;
    let mut build = BuildFile::default();
    source.each(&block.body, "in `build`", "`env` and `timeout`", |item| {
        let Item::Attribute(it) = item else { return Ok(false) };
        match it.key.as_str() {
            "env" => build.env = source.env(it)?,
            "timeout" => build.timeout_ms = Some(source.millis(it)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(build)
}

fn count(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn deploy(source: Source<'_>, block: &Block) -> Result<DeployFile> {
    unlabelled(source, block)?;
    let mut deploy = DeployFile::default();
    let allowed = "`instances`, `env`, `memory`, `stop_grace`, `check` and `process`";
    source.each(&block.body, "in `deploy`", allowed, |item| {
        match item {
            Item::Attribute(it) => match it.key.as_str() {
                "instances" => {
                    let number = source.number(it, 0..=u64::from(MAX_INSTANCES))?;
                    deploy.instances = Some(count(number));
                }
                "env" => deploy.env = source.process_env(it)?,
                "memory" => deploy.memory_mb = Some(source.number(it, 1..=1 << 20)?),
                "stop_grace" => deploy.stop_grace_ms = Some(source.millis(it)?),
                _ => return Ok(false),
            },
            Item::Block(it) => match it.ident.as_str() {
                "check" => deploy.check = Some(check(source, it)?),
                "process" => {
                    deploy.processes.insert(source.label(it)?, process(source, it)?);
                }
                _ => return Ok(false),
            },
        }
        Ok(true)
    })?;
    Ok(deploy)
}

fn check(source: Source<'_>, block: &Block) -> Result<CheckFile> {
    unlabelled(source, block)?;
    let mut check = CheckFile::default();
    let allowed = "`path`, `interval`, `timeout`, `start_timeout` and `failures`";
    source.each(&block.body, "in `check`", allowed, |item| {
        let Item::Attribute(it) = item else { return Ok(false) };
        match it.key.as_str() {
            "path" => check.path = Some(source.text(it)?),
            "interval" => check.interval_ms = Some(source.millis(it)?),
            "timeout" => check.timeout_ms = Some(source.millis(it)?),
            "start_timeout" => check.start_timeout_ms = Some(source.millis(it)?),
            "failures" => check.failures = Some(count(source.number(it, 1..=1_000)?)),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(check)
}

fn process(source: Source<'_>, block: &Block) -> Result<ProcessFile> {
    let mut process = ProcessFile::default();
    source.each(&block.body, "in `process`", "`instances` and `command`", |item| {
        let Item::Attribute(it) = item else { return Ok(false) };
        match it.key.as_str() {
            "instances" => {
                let number = source.number(it, 0..=u64::from(MAX_INSTANCES))?;
                process.instances = Some(count(number));
            }
            "command" => process.command = Some(source.texts(it)?),
            _ => return Ok(false),
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
    }
    process "worker" {
      instances = 2
      command   = ["python3", "worker.py"]
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
        ];
        let messages: Vec<String> =
            bad.iter().map(|text| parse(text).expect_err(text).to_string()).collect();
        insta::assert_snapshot!(messages.join("\n"));
    }
}
