//! Rules of the house that a compiler does not hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn git_files() -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git lists the files");
    let text = String::from_utf8(output.stdout).expect("file names are text");
    text.lines().map(|line| root().join(line)).filter(|path| path.is_file()).collect()
}

fn rust_files() -> Vec<PathBuf> {
    let rust = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    git_files().into_iter().filter(rust).collect()
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Which crate of ours depends on which, without dev-dependencies.
fn layers() -> String {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo tells about the workspace");
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let name = |value: &serde_json::Value| value["name"].as_str().expect("a name").to_owned();
    let ours: BTreeSet<String> = packages.iter().map(name).collect();
    let edges: BTreeMap<String, BTreeSet<String>> = packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().expect("dependencies");
            let normal = dependencies.iter().filter(|it| it["kind"].is_null());
            (name(package), normal.map(name).filter(|name| ours.contains(name)).collect())
        })
        .collect();
    edges.iter().fold(String::new(), |mut text, (from, to)| {
        let to: Vec<&str> = to.iter().map(String::as_str).collect();
        writeln!(text, "{}", format!("{from}: {}", to.join(" ")).trim_end()).expect("a string");
        text
    })
}

#[test]
fn the_crate_graph_is_the_one_checked_in() {
    let path = root().join("docs/layers.txt");
    let found = layers();
    if std::env::var_os("UPDATE_LAYERS").is_some() {
        std::fs::write(&path, &found).expect("the file is written");
    }
    assert_eq!(
        text(&path),
        found,
        "the crate graph changed: if that is meant, run UPDATE_LAYERS=1 cargo test -p xtask"
    );
}

#[test]
fn every_file_says_what_it_is() {
    let silent: Vec<_> = rust_files()
        .into_iter()
        .filter(|path| !text(path).lines().take(3).any(|line| line.starts_with("//!")))
        .collect();
    assert!(silent.is_empty(), "these files do not begin with `//!`: {silent:#?}");
}

#[test]
fn files_stay_small() {
    let large: Vec<_> =
        rust_files().into_iter().filter(|path| text(path).lines().count() > 1_000).collect();
    assert!(large.is_empty(), "these files have more than 1000 lines: {large:#?}");
}

/// Calls that only the crate `runtime` may make. Lints hold this too; here it holds for tests that
/// switched a lint off, and says why.
#[test]
fn clocks_randomness_and_spawning_live_in_runtime() {
    let banned = [
        "SystemTime::now",
        "Instant::now",
        "tokio::spawn(",
        "getrandom::",
        "unbounded_channel",
        "thread::sleep",
    ];
    let mut found = Vec::new();
    for path in rust_files() {
        let inside = path.components().any(|part| part.as_os_str() == "runtime");
        let exempt = path.ends_with("tests/tidy.rs")
            || path.components().any(|part| part.as_os_str() == "examples")
            || path.components().any(|part| part.as_os_str() == "tests");
        if inside || exempt {
            continue;
        }
        for (number, line) in text(&path).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if banned.iter().any(|call| code.contains(call)) {
                found.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "these belong into runtime:\n{}", found.join("\n"));
}

#[test]
fn nothing_is_left_for_later() {
    let words = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["XX", "X:"].concat()];
    let mut found = Vec::new();
    for path in git_files().into_iter().filter(|path| !path.ends_with("Cargo.lock")) {
        for (number, line) in text(&path).lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                found.push(format!("{}:{}", path.display(), number + 1));
            }
        }
    }
    assert!(found.is_empty(), "an issue or nothing, but no reminder in the tree: {found:#?}");
}

#[test]
fn the_lock_file_stays_small() {
    let packages = text(&root().join("Cargo.lock")).matches("[[package]]").count();
    assert!(packages <= 700, "Cargo.lock has {packages} packages, 700 are the limit");
}

/// How many numbers each of the predecessor's test suites has in our list of its behaviours.
const NUMBERS: [(char, usize); 3] = [('I', 49), ('V', 39), ('C', 36)];

/// Every file and function that a page of `docs/parity` names, as in
/// `state/tests/rules/tasks.rs: cancelling_a_task`: below `crates/`, or at the root.
fn cited(page: &str) -> Vec<(String, &str)> {
    let spans = page.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    spans
        .filter_map(|span| span.split_once(".rs: "))
        .map(|(file, name)| (format!("{file}.rs"), name))
        .collect()
}

fn defines(file: &str, name: &str) -> bool {
    let heads = [format!("fn {name}("), format!("fn {name}<")];
    [root().join("crates").join(file), root().join(file)]
        .iter()
        .map(|path| text(path))
        .any(|source| heads.iter().any(|head| source.contains(head)))
}

#[test]
fn tests_that_parity_names_are_there() {
    let is_page = |path: &PathBuf| path.parent().is_some_and(|dir| dir.ends_with("docs/parity"));
    let pages: Vec<String> =
        git_files().iter().filter(|path| is_page(path)).map(|path| text(path)).collect();
    let cited: Vec<_> = pages.iter().flat_map(|page| cited(page)).collect();
    assert!(!cited.is_empty(), "docs/parity names no test, or names them in another form");
    let missing: Vec<_> = cited.iter().filter(|(file, name)| !defines(file, name)).collect();
    assert!(missing.is_empty(), "docs/parity names what is not there: {missing:#?}");
}

#[test]
fn parity_has_each_number_once() {
    let page = text(&root().join("docs/parity/diego.md"));
    let all = NUMBERS.into_iter().flat_map(|(suite, last)| {
        (1..=last).map(move |number| format!("\n| {suite}{number:02} |"))
    });
    let wrong: Vec<_> = all.filter(|row| page.matches(row.as_str()).count() != 1).collect();
    assert!(wrong.is_empty(), "these are not there exactly once: {wrong:#?}");
}
