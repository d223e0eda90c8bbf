//! Ignore files in the syntax of git.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// The rules of the ignore files of a directory and those above it; the last match counts.
#[derive(Debug, Clone, Default)]
pub struct Rules(Vec<Rule>);

#[derive(Debug, Clone)]
struct Rule {
    base: PathBuf,
    segments: Vec<Vec<u8>>,
    negated: bool,
    directories_only: bool,
}

impl Rules {
    /// Adds the rules of an ignore file in the directory `base`.
    pub fn add(&mut self, base: &Path, text: &str) {
        let text = text.trim_start_matches('\u{feff}');
        self.0.extend(text.lines().filter_map(|line| Rule::parse(base, line)));
    }

    /// How many rules there are.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no rules.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets all but the first `len` rules.
    pub fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }

    /// Whether `path` stays out. What is below an ignored directory is not asked for.
    pub fn ignores(&self, path: &Path, directory: bool) -> bool {
        let last = self.0.iter().rev().find(|rule| {
            (directory || !rule.directories_only)
                && path.strip_prefix(&rule.base).is_ok_and(|below| rule.matches(below))
        });
        last.is_some_and(|rule| !rule.negated)
    }
}

impl Rule {
    fn parse(base: &Path, line: &str) -> Option<Self> {
        let line = strip_blanks(line.trim_end_matches('\r'));
        if line.starts_with('#') {
            return None;
        }
        let (negated, line) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest));
        let (directories_only, line) =
            line.strip_suffix('/').map_or((false, line), |rest| (true, rest));
        if line.is_empty() {
            return None;
        }
        let mut segments: Vec<Vec<u8>> =
            line.trim_start_matches('/').split('/').map(|part| part.as_bytes().to_vec()).collect();
        if !line.contains('/') {
            segments.insert(0, b"**".to_vec());
        }
        Some(Self { base: base.to_owned(), segments, negated, directories_only })
    }

    fn matches(&self, path: &Path) -> bool {
        let parts: Vec<&[u8]> = path.components().map(|part| part.as_os_str().as_bytes()).collect();
        match_path(&self.segments, &parts)
    }
}

/// The line without trailing blanks that are not escaped.
fn strip_blanks(line: &str) -> &str {
    let kept = line.trim_end_matches(' ');
    let escapes = kept.bytes().rev().take_while(|byte| *byte == b'\\').count();
    if escapes % 2 == 1 && kept.len() < line.len() {
        line.get(..=kept.len()).unwrap_or(kept)
    } else {
        kept
    }
}

/// Whether `pattern` matches all of `path`; `**` stands for any number of names.
fn match_path(pattern: &[Vec<u8>], path: &[&[u8]]) -> bool {
    // `reach[n]`: the pattern so far matches the first n names.
    let mut reach = vec![false; path.len() + 1];
    reach[0] = true;
    for (at, segment) in pattern.iter().enumerate() {
        let mut next = vec![false; path.len() + 1];
        if segment == b"**" {
            // At the end it stands for everything below, but not for the directory itself.
            let last = at + 1 == pattern.len() && at > 0;
            let mut open = false;
            for (n, slot) in next.iter_mut().enumerate() {
                *slot = open || (reach[n] && !last);
                open |= reach[n];
            }
        } else {
            for (n, name) in path.iter().enumerate() {
                next[n + 1] = reach[n] && match_name(segment, name);
            }
        }
        reach = next;
    }
    reach[path.len()]
}

/// Whether a pattern without `/` matches a name.
fn match_name(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where to go on when what follows the last `*` does not match.
    let mut retry = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            retry = Some((p + 1, n));
            p += 1;
        } else if let Some(length) = match_one(&pattern[p..], name[n]) {
            p += length;
            n += 1;
        } else if let Some((star, from)) = retry {
            retry = Some((star, from + 1));
            (p, n) = (star, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// How many bytes of the pattern match this byte of a name, if they do.
fn match_one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [b'[', rest @ ..] => match class(rest, byte) {
            Some((matches, length)) => matches.then_some(length + 1),
            None => (byte == b'[').then_some(1),
        },
        [plain, ..] => (*plain == byte).then_some(1),
    }
}

/// Whether a class (after its `[`) has the byte, and how long it is; nothing if it never ends.
fn class(pattern: &[u8], byte: u8) -> Option<(bool, usize)> {
    let negated = matches!(pattern.first(), Some(b'!' | b'^'));
    let start = usize::from(negated);
    let mut at = start;
    let mut found = false;
    loop {
        let mut low = *pattern.get(at)?;
        if low == b']' && at > start {
            return Some((found != negated, at + 1));
        }
        if low == b'\\' {
            at += 1;
            low = *pattern.get(at)?;
        }
        at += 1;
        let mut high = low;
        if pattern.get(at) == Some(&b'-') && pattern.get(at + 1).is_some_and(|end| *end != b']') {
            high = pattern[at + 1];
            at += 2;
        }
        found |= (low..=high).contains(&byte);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ignores(rules: &str, path: &str) -> bool {
        let mut all = Rules::default();
        all.add(Path::new(""), rules);
        all.ignores(Path::new(path.trim_end_matches('/')), path.ends_with('/'))
    }

    #[test]
    fn patterns_mean_what_they_mean_to_git() {
        let cases: [(&str, &[&str], &[&str]); 19] = [
            ("a", &["a", "b/a", "a/"], &["aa", "ab"]),
            ("/a", &["a"], &["b/a"]),
            ("a/", &["a/", "b/a/"], &["a"]),
            ("b/a", &["b/a"], &["c/b/a", "a"]),
            ("*.log", &["x.log", "d/.log"], &["x.logs"]),
            ("a*b*c", &["abc", "axbxbxc"], &["ab", "abcd"]),
            ("a?c", &["abc"], &["ac", "abbc"]),
            ("[a-c]x", &["ax", "cx"], &["dx"]),
            ("[!a]x", &["bx"], &["ax"]),
            ("[]x]", &["]", "x"], &["["]),
            ("[x", &["[x"], &["x"]),
            ("**/a", &["a", "b/a", "b/c/a"], &["ab"]),
            ("a/**", &["a/b", "a/b/c"], &["a", "a/"]),
            ("a/**/b", &["a/b", "a/x/b", "a/x/y/b"], &["a/bx", "b"]),
            ("*\n!keep", &["a", "b/a"], &["keep", "b/keep"]),
            ("# a\n\\#b\n\n\\!c", &["#b", "!c"], &["a", "b", "c", "# a"]),
            ("a  \nb\\ ", &["a", "b "], &["a  ", "b"]),
            ("d/*.x", &["d/a.x"], &["d/e/a.x"]),
            ("a\\*", &["a*"], &["ab"]),
        ];
        for (rules, ignored, kept) in cases {
            for path in ignored {
                assert!(ignores(rules, path), "{rules:?} should ignore {path:?}");
            }
            for path in kept {
                assert!(!ignores(rules, path), "{rules:?} should keep {path:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_set_of_rules(rules in "[ -~\n]{0,40}", path in "[a-c*\\[/]{1,12}") {
            let _answer = ignores(&rules, &path);
        }

        #[test]
        fn an_escaped_name_matches_itself(name in "[ -.0-~]{1,12}") {
            let escaped: String = name.chars().flat_map(|c| ['\\', c]).collect();
            prop_assert!(match_name(escaped.as_bytes(), name.as_bytes()));
        }
    }
}
