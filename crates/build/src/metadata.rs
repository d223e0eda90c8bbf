//! `<layers>/config/metadata.toml`: what the build tells the launcher.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The buildpack API whose shape is followed.
pub(crate) const API: &str = "0.10";

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Metadata {
    /// The process type that runs when none is named.
    #[serde(default)]
    pub buildpack_default_process_type: String,
    /// The buildpacks in the order they ran.
    #[serde(default)]
    pub buildpacks: Vec<BuildpackRef>,
    /// The process types, sorted.
    #[serde(default)]
    pub processes: Vec<LaunchProcess>,
    /// Labels of the image.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A buildpack that took part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildpackRef {
    /// Its id.
    pub id: String,
    /// Its version.
    pub version: String,
    /// Its buildpack API.
    #[serde(default)]
    pub api: String,
}

/// One process type. It has either a `command` or a `line`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LaunchProcess {
    /// Its name.
    pub r#type: String,
    /// The program and arguments that are always there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// A command line that the launcher splits after the environment is known (see `words`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
    /// Arguments that arguments given at the start replace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Always true: there is no shell.
    #[serde(default)]
    pub direct: bool,
    /// Whether it runs when none is named.
    #[serde(default)]
    pub default: bool,
    /// Which buildpack defined it.
    #[serde(default)]
    pub buildpack_id: String,
    /// The working directory, relative to the app directory or absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
}

impl Metadata {
    /// The text of the file.
    pub fn to_toml(&self) -> Result<String, toml_edit::ser::Error> {
        toml_edit::ser::to_string_pretty(self)
    }

    /// Reads the file.
    pub fn from_toml(text: &str) -> Result<Self, toml_edit::de::Error> {
        toml_edit::de::from_str(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_round_trips_and_reads_foreign_files() {
        let foreign = r#"
            buildpack-default-process-type = "web"
            [[buildpacks]]
            id = "a/b"
            version = "1"
            homepage = "x"
            [[processes]]
            type = "web"
            command = ["a"]
            args = ["b"]
            direct = true
            working-dir = "/w"
            [[slices]]
            paths = ["x"]
        "#;
        let metadata = Metadata::from_toml(foreign).expect("reads");
        assert_eq!(metadata.processes[0].args, ["b"]);
        assert_eq!(metadata.processes[0].working_dir.as_deref(), Some("/w"));
        let text = metadata.to_toml().expect("writes");
        assert_eq!(Metadata::from_toml(&text), Ok(metadata));
    }
}
