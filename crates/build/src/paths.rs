//! Where things are: container paths, and the private root they may be below.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::Env;

/// The variable that names the private root; unset or empty when container paths are real.
pub const ROOT_VARIABLE: &str = "SHORE_ROOT";
/// Where the source is, unless `CNB_APP_DIR` says otherwise.
pub const APP_DIR: &str = "/workspace";
/// Where layers are, unless `CNB_LAYERS_DIR` says otherwise.
pub const LAYERS_DIR: &str = "/layers";

/// A private root: the container path `/a` is really `<root>/a`. Without one, paths are real.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Root(Option<PathBuf>);

impl Root {
    /// A root at `path`; an empty path is no root.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path: PathBuf = path.into();
        let none = path.as_os_str().is_empty() || path == Path::new("/");
        Self((!none).then_some(path))
    }

    /// The root the environment names.
    pub fn from_env(env: &Env) -> Self {
        Self::new(env.get(ROOT_VARIABLE).map_or("", String::as_str))
    }

    /// The real path of a container path.
    pub fn real(&self, container: &str) -> PathBuf {
        match &self.0 {
            Some(root) => root.join(container.trim_start_matches('/')),
            None => PathBuf::from(container),
        }
    }

    /// Rewrites the parts of `text`, separated by `:`, that are container paths below one of
    /// `prefixes`. This is what makes values in layers the same on every machine.
    pub fn rewrite<'a>(&self, text: &'a str, prefixes: &[&str]) -> Cow<'a, str> {
        if self.0.is_none() || !prefixes.iter().any(|prefix| text.contains(prefix)) {
            return Cow::Borrowed(text);
        }
        let below = |part: &str, prefix: &str| {
            part.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let parts = text.split(':').map(|part| {
            if prefixes.iter().any(|prefix| below(part, prefix)) {
                self.real(part).to_string_lossy().into_owned()
            } else {
                part.to_owned()
            }
        });
        Cow::Owned(parts.collect::<Vec<_>>().join(":"))
    }
}

/// Where a build finds and leaves things. All but `root` are container paths.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The private root, if any.
    pub root: Root,
    /// The unpacked source: `/workspace`.
    pub workspace: String,
    /// The directory that lives on between builds of one app: `/cache`.
    pub cache: String,
    /// Where the image goes: `/export`.
    pub export: String,
    /// Where layers are built: `/layers`.
    pub layers: String,
    /// The user's build environment, given to build tools.
    pub platform_env: Env,
}

impl Paths {
    /// The usual places below `root`.
    pub fn new(root: Root) -> Self {
        Self {
            root,
            workspace: APP_DIR.to_owned(),
            cache: "/cache".to_owned(),
            export: "/export".to_owned(),
            layers: LAYERS_DIR.to_owned(),
            platform_env: Env::new(),
        }
    }

    /// The usual places, or what `SHORE_ROOT`, `CNB_APP_DIR`, `CNB_LAYERS_DIR`, `CNB_CACHE_DIR` and
    /// `SHORE_EXPORT_DIR` say. Every other variable that is not the machine's is the user's.
    pub fn from_env(env: &Env) -> Self {
        let mut paths = Self::new(Root::from_env(env));
        let places = [
            ("CNB_APP_DIR", &mut paths.workspace),
            ("CNB_CACHE_DIR", &mut paths.cache),
            ("SHORE_EXPORT_DIR", &mut paths.export),
            ("CNB_LAYERS_DIR", &mut paths.layers),
        ];
        for (variable, place) in places {
            if let Some(value) = env.get(variable).filter(|value| value.starts_with('/')) {
                place.clone_from(value);
            }
        }
        paths.platform_env = env
            .iter()
            .filter(|(name, _)| !name.starts_with("CNB_") && !MACHINE.contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        paths
    }

    /// The real path of the source.
    pub fn workspace_dir(&self) -> PathBuf {
        self.root.real(&self.workspace)
    }

    /// The real path of the cache.
    pub fn cache_dir(&self) -> PathBuf {
        self.root.real(&self.cache)
    }

    /// The real path of the export directory.
    pub fn export_dir(&self) -> PathBuf {
        self.root.real(&self.export)
    }

    /// The real path of the layers.
    pub fn layers_dir(&self) -> PathBuf {
        self.root.real(&self.layers)
    }

    /// `text` with container paths made real.
    pub fn rewrite<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.root.rewrite(text, &[&self.layers, &self.workspace])
    }
}

/// Variables of the shell or the platform that a build tool has no use for.
const MACHINE: [&str; 8] =
    ["_", "OLDPWD", "PWD", "SHLVL", ROOT_VARIABLE, "PORT", "HOST", "SHORE_EXPORT_DIR"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_paths_are_rewritten_part_by_part() {
        let prefixes = [LAYERS_DIR, APP_DIR];
        let root = Root::new("/r");
        let cases = [
            ("/layers/a/lib", "/r/layers/a/lib"),
            ("/layers", "/r/layers"),
            ("/layersx/a", "/layersx/a"),
            ("/usr/lib:/workspace/b:rel", "/usr/lib:/r/workspace/b:rel"),
            ("http://host/layers/x", "http://host/layers/x"),
            ("", ""),
        ];
        for (text, wanted) in cases {
            assert_eq!(root.rewrite(text, &prefixes), wanted);
            assert_eq!(Root::default().rewrite(text, &prefixes), text);
        }
        assert_eq!(root.real("/a/b"), Path::new("/r/a/b"));
        assert_eq!(Root::new("").real("/a/b"), Path::new("/a/b"));
    }

    #[test]
    fn places_come_from_the_environment() {
        let env = [("SHORE_ROOT", "/r"), ("CNB_CACHE_DIR", "/c"), ("CNB_APP_DIR", "relative")];
        let env: Env = env.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let paths = Paths::from_env(&env);
        assert_eq!(paths.cache_dir(), Path::new("/r/c"));
        assert_eq!(paths.workspace_dir(), Path::new("/r/workspace"));
        assert!(paths.platform_env.is_empty());
    }
}
