//! What layers add to the environment of later build tools and of processes.
//!
//! First the directories a layer has (`bin` to `PATH`, `lib` to `LD_LIBRARY_PATH`, ...), then the
//! files in `env/`, then those in `env.build/` or `env.launch/`. A file's name is the variable and,
//! after the first dot, what to do: nothing or `override`, `default`, `append`, `prepend`; the
//! text between old and new is in `<variable>.delim`.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::Path;

use crate::Env;

/// Most bytes of one variable's file.
const MAX_VALUE: u64 = 128 * 1024;

/// Whose environment it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase<'a> {
    /// A later build tool's.
    Build,
    /// A process's, of this type if it has one.
    Launch(Option<&'a str>),
}

const BUILD_DIRS: [(&str, &str); 5] = [
    ("bin", "PATH"),
    ("lib", "LD_LIBRARY_PATH"),
    ("lib", "LIBRARY_PATH"),
    ("include", "CPATH"),
    ("pkgconfig", "PKG_CONFIG_PATH"),
];
const LAUNCH_DIRS: [(&str, &str); 2] = [("bin", "PATH"), ("lib", "LD_LIBRARY_PATH")];

/// Applies the layer in `dir`; `rewrite` makes container paths in its values real.
pub fn apply_layer(
    dir: &Path,
    phase: Phase<'_>,
    env: &mut Env,
    rewrite: impl Fn(&str) -> String,
) -> io::Result<()> {
    let dirs: &[_] = if phase == Phase::Build { &BUILD_DIRS } else { &LAUNCH_DIRS };
    for (name, variable) in dirs {
        let below = dir.join(name);
        if below.is_dir() {
            combine(env, variable, &below.to_string_lossy(), ":", Place::Before);
        }
    }
    let mut files = vec![dir.join("env")];
    match phase {
        Phase::Build => files.push(dir.join("env.build")),
        Phase::Launch(process_type) => {
            files.push(dir.join("env.launch"));
            files.extend(process_type.map(|name| dir.join("env.launch").join(name)));
        }
    }
    for dir in files {
        let mut values = read_values(&dir)?;
        for value in values.values_mut() {
            *value = rewrite(value);
        }
        apply_values(env, &values);
    }
    Ok(())
}

fn read_values(dir: &Path) -> io::Result<BTreeMap<String, String>> {
    let mut values = BTreeMap::new();
    let entries = match std::fs::read_dir(dir) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(values);
        }
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let metadata = std::fs::metadata(entry.path())?;
        if !metadata.is_file() {
            continue;
        }
        if metadata.len() > MAX_VALUE {
            let path = entry.path();
            let reason = format!("{} has more than {MAX_VALUE} bytes", path.display());
            return Err(io::Error::new(ErrorKind::InvalidData, reason));
        }
        values.insert(name, std::fs::read_to_string(entry.path())?);
    }
    Ok(values)
}

enum Place {
    Before,
    After,
}

fn combine(env: &mut Env, variable: &str, value: &str, delimiter: &str, place: Place) {
    let old = env.get(variable).filter(|old| !old.is_empty());
    let new = match (old, place) {
        (None, _) => value.to_owned(),
        (Some(old), Place::Before) => format!("{value}{delimiter}{old}"),
        (Some(old), Place::After) => format!("{old}{delimiter}{value}"),
    };
    env.insert(variable.to_owned(), new);
}

/// Applies the files of one `env` directory, given as file name to content.
pub fn apply_values(env: &mut Env, files: &BTreeMap<String, String>) {
    for (file, value) in files {
        let (variable, action) = file.split_once('.').unwrap_or((file, "override"));
        let delimiter = files.get(&format!("{variable}.delim")).map_or("", String::as_str);
        match action {
            "override" => {
                env.insert(variable.to_owned(), value.clone());
            }
            "default" if env.get(variable).is_none_or(String::is_empty) => {
                env.insert(variable.to_owned(), value.clone());
            }
            "append" => combine(env, variable, value, delimiter, Place::After),
            "prepend" => combine(env, variable, value, delimiter, Place::Before),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> Env {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn suffixes_say_what_happens() {
        type Pairs<'a> = &'a [(&'a str, &'a str)];
        let cases: [(Pairs<'_>, Pairs<'_>, Pairs<'_>); 11] = [
            (&[("A", "1")], &[("A", "2")], &[("A", "2")]),
            (&[("A", "1")], &[("A.override", "2\n")], &[("A", "2\n")]),
            (&[("A", "1")], &[("A.default", "2")], &[("A", "1")]),
            (&[("A", "")], &[("A.default", "2")], &[("A", "2")]),
            (&[], &[("A.default", "2")], &[("A", "2")]),
            (&[("A", "1")], &[("A.append", "2")], &[("A", "12")]),
            (&[("A", "1")], &[("A.append", "2"), ("A.delim", ":")], &[("A", "1:2")]),
            (&[("A", "1")], &[("A.prepend", "2"), ("A.delim", ":")], &[("A", "2:1")]),
            (&[], &[("A.prepend", "2"), ("A.delim", ":")], &[("A", "2")]),
            (&[("A", "1")], &[("A.unknown", "2"), ("A.delim", ":")], &[("A", "1")]),
            (&[], &[("A.append", "2"), ("A.default", "3")], &[("A", "2")]),
        ];
        for (before, files, after) in cases {
            let mut env = map(before);
            apply_values(&mut env, &map(files));
            assert_eq!(env, map(after), "{files:?}");
        }
    }

    #[test]
    fn layers_add_directories_and_files_in_order() {
        let layer = tempfile::tempdir().expect("a directory");
        let dir = layer.path();
        for (file, value) in [
            ("bin/x", ""),
            ("include/x", ""),
            ("env/A", "all"),
            ("env/P.append", "/layers/x"),
            ("env.launch/A", "launch"),
            ("env.launch/web/A", "web"),
            ("env.build/A", "build"),
        ] {
            let path = dir.join(file);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::write(path, value).expect("written");
        }
        let bin = dir.join("bin").display().to_string();
        let apply = |phase| {
            let mut env = map(&[("PATH", "/usr/bin")]);
            apply_layer(dir, phase, &mut env, |value| value.replace("/layers", "/r/layers"))
                .expect("applied");
            env
        };
        let launch = apply(Phase::Launch(Some("web")));
        let path = format!("{bin}:/usr/bin");
        assert_eq!(launch, map(&[("PATH", &path), ("A", "web"), ("P", "/r/layers/x")]));
        assert_eq!(apply(Phase::Launch(Some("worker")))["A"], "launch");
        let build = apply(Phase::Build);
        assert_eq!(build["A"], "build");
        assert_eq!(build["CPATH"], dir.join("include").display().to_string());
    }
}
