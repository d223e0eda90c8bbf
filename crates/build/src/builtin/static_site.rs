//! A site that is only files.

use crate::buildpack::{
    AppFiles, BuildContext, Buildpack, Built, Command, DetectContext, Detected, Process,
};
use crate::error::BuildError;
use crate::launch::STATIC_SERVER;
use crate::procfile;

/// The file that marks a static site and may say `root: <dir>` and `pushstate: enabled`.
const MARK: &str = "Staticfile";

/// The buildpack `static`.
#[derive(Debug)]
pub(super) struct StaticSite;

impl Buildpack for StaticSite {
    fn id(&self) -> &'static str {
        "static"
    }

    fn version(&self) -> &'static str {
        "1.0.0"
    }

    fn detect(&self, context: &DetectContext<'_>) -> Result<Detected, BuildError> {
        let found = context.first(&[MARK, "public/index.html", "index.html"]).is_some();
        Ok(if found {
            Detected::pass()
        } else {
            Detected::fail("no Staticfile, public/index.html or index.html")
        })
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Result<Built, BuildError> {
        let app = context.app();
        let settings = Settings::parse(context.read(MARK)?.as_deref().unwrap_or_default())?;
        let root = match settings.root {
            Some(root) => root,
            None if app.join("public/index.html").is_file() => "public".to_owned(),
            None => ".".to_owned(),
        };
        if !app.join(&root).is_dir() {
            return Err(BuildError::source_file(MARK, format!("root {root:?} is no directory")));
        }
        let dir = match root.as_str() {
            "." => context.paths.workspace.clone(),
            root => format!("{}/{root}", context.paths.workspace),
        };
        let mut argv = vec![STATIC_SERVER.to_owned(), dir];
        if settings.pushstate {
            argv.push("--spa".to_owned());
        }
        context.note(&format!("Serving the files of {root}"))?;
        let mut built = Built::new(vec![Process::web(Command::Argv(argv))]);
        built.app = match root.split('/').next() {
            Some(top) if top != "." && context.procfile.is_empty() => {
                AppFiles::Only(vec![top.to_owned()])
            }
            Some(_) | None => AppFiles::AllBut(vec![MARK.to_owned(), procfile::FILE.to_owned()]),
        };
        Ok(built)
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Settings {
    root: Option<String>,
    pushstate: bool,
}

impl Settings {
    fn parse(text: &str) -> Result<Self, BuildError> {
        let mut settings = Self::default();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong =
                |reason: String| BuildError::source_file(format!("{MARK} line {}", at + 1), reason);
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| wrong("write it as `root: <dir>`".to_owned()))?;
            let value = value.trim().trim_matches(['"', '\'']);
            match name.trim() {
                "root" => settings.root = Some(directory(value).map_err(wrong)?),
                "pushstate" => settings.pushstate = matches!(value, "enabled" | "true"),
                other => return Err(wrong(format!("{other:?} is neither `root` nor `pushstate`"))),
            }
        }
        Ok(settings)
    }
}

fn directory(value: &str) -> Result<String, String> {
    let parts: Vec<_> = value.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if value.starts_with('/') || parts.contains(&"..") {
        return Err(format!("{value:?} leads out of the source"));
    }
    Ok(if parts.is_empty() { ".".to_owned() } else { parts.join("/") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_two_and_stay_inside() {
        let settings = Settings::parse("# x\n\nroot: ./dist/\npushstate: enabled\n");
        let wanted = Settings { root: Some("dist".into()), pushstate: true };
        assert_eq!(settings.expect("parses"), wanted);
        assert_eq!(Settings::parse("root: .").expect("parses").root.as_deref(), Some("."));
        for bad in ["root: /etc", "root: a/../..", "ssi: enabled", "nothing"] {
            let error = Settings::parse(bad).expect_err(bad).to_string();
            assert!(error.starts_with("Staticfile line 1: "), "{error}");
        }
    }
}
