//! Command lines without a shell.
//!
//! A line is split the way `sh` splits it: blanks separate words, quotes and backslashes work,
//! `$NAME`, `${NAME}` and `${NAME:-default}` are filled in from the environment, leading
//! `NAME=value` words are environment, a leading `exec` is dropped, ` # ...` is a comment. An
//! unquoted variable is split at blanks, a quoted one is not. Everything that needs a shell, such
//! as `|`, `&&`, `;`, `>` or `$(...)`, is refused; nothing is ever passed to one.

use std::iter::Peekable;
use std::str::Chars;

use crate::Env;

/// Most bytes of one line.
pub const MAX_LINE: usize = 16 * 1024;

/// Why a line cannot be run without a shell.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WordsError {
    /// It uses what only a shell has.
    #[error(
        "`{0}` needs a shell, and commands run without one: put the command in a script file \
         (first line `#!/bin/sh`), make it executable and name it here; quote `{0}` if it is \
         meant as it stands"
    )]
    NeedsShell(String),
    /// A quote or brace is open at the end.
    #[error("`{0}` is never closed")]
    Open(char),
    /// There is no command.
    #[error("there is no command")]
    Empty,
    /// A NUL byte or a line break.
    #[error("a command is one line of text without NUL bytes")]
    Control,
    /// Too long.
    #[error("a command has at most {MAX_LINE} bytes")]
    TooLong,
}

/// A part of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Variable { name: String, default: String, quoted: bool },
}

type Word = Vec<Piece>;

/// A line, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    assignments: Vec<(String, Word)>,
    words: Vec<Word>,
}

/// A line with its variables filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expanded {
    /// Environment set by the line itself.
    pub env: Vec<(String, String)>,
    /// The program and its arguments.
    pub argv: Vec<String>,
}

/// Words only a shell understands when they come first.
const SHELL_WORDS: [&str; 18] = [
    "cd", "source", ".", "export", "eval", "set", "unset", "if", "for", "while", "until", "case",
    "trap", "ulimit", "umask", "alias", "{", "!",
];

impl Line {
    /// Takes `text` apart.
    pub fn parse(text: &str) -> Result<Self, WordsError> {
        if text.len() > MAX_LINE {
            return Err(WordsError::TooLong);
        }
        if text.contains(['\0', '\n', '\r']) {
            return Err(WordsError::Control);
        }
        let mut parser = Parser { rest: text.chars().peekable(), words: Vec::new(), word: None };
        parser.run()?;
        let mut assignments = Vec::new();
        let mut words = Vec::new();
        for word in parser.words {
            match word.name.clone() {
                Some(name) if words.is_empty() => {
                    let value = word.value(&name);
                    assignments.push((name, value));
                }
                _ => words.push(word.pieces),
            }
        }
        if plain(words.first()) == Some("exec") {
            words.remove(0);
        }
        match plain(words.first()) {
            Some(word) if SHELL_WORDS.contains(&word) => {
                Err(WordsError::NeedsShell(word.to_owned()))
            }
            _ if words.is_empty() => Err(WordsError::Empty),
            _ => Ok(Self { assignments, words }),
        }
    }

    /// The program, when it does not depend on a variable.
    pub fn program(&self) -> Option<&str> {
        plain(self.words.first())
    }

    /// Every word that does not depend on a variable.
    pub fn plain_words(&self) -> impl Iterator<Item = &str> {
        self.words.iter().filter_map(|word| plain(Some(word)))
    }

    /// Fills in variables from `env`; the line's own assignments come first.
    pub fn expand(&self, env: &Env) -> Result<Expanded, WordsError> {
        let mut all = env.clone();
        let mut own = Vec::new();
        for (name, word) in &self.assignments {
            let value: String = word.iter().map(|piece| piece.value(&all)).collect();
            all.insert(name.clone(), value.clone());
            own.push((name.clone(), value));
        }
        let mut argv = Vec::new();
        for word in &self.words {
            expand_word(word, &all, &mut argv);
        }
        if argv.first().is_none_or(String::is_empty) {
            return Err(WordsError::Empty);
        }
        Ok(Expanded { env: own, argv })
    }
}

fn plain(word: Option<&Word>) -> Option<&str> {
    match word?.as_slice() {
        [Piece::Text(text)] => Some(text),
        _ => None,
    }
}

impl Piece {
    fn value(&self, env: &Env) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Variable { name, default, .. } => {
                env.get(name).filter(|value| !value.is_empty()).unwrap_or(default).clone()
            }
        }
    }
}

fn expand_word(word: &Word, env: &Env, argv: &mut Vec<String>) {
    let mut field: Option<String> = None;
    for piece in word {
        let value = piece.value(env);
        if !matches!(piece, Piece::Variable { quoted: false, .. }) {
            field.get_or_insert_default().push_str(&value);
            continue;
        }
        if value.starts_with(char::is_whitespace) {
            argv.extend(field.take());
        }
        for (at, part) in value.split_whitespace().enumerate() {
            if at > 0 {
                argv.extend(field.take());
            }
            field.get_or_insert_default().push_str(part);
        }
        if value.ends_with(char::is_whitespace) {
            argv.extend(field.take());
        }
    }
    argv.extend(field);
}

/// A word that is being read.
#[derive(Default)]
struct Reading {
    pieces: Word,
    /// Set once the word has read `NAME=` without quotes.
    name: Option<String>,
    /// Whether some of it was quoted.
    quoted: bool,
}

impl Reading {
    fn push(&mut self, c: char) {
        if c == '='
            && !self.quoted
            && self.name.is_none()
            && let [Piece::Text(text)] = self.pieces.as_slice()
            && is_name(text)
        {
            self.name = Some(text.clone());
        }
        self.text().push(c);
    }

    fn text(&mut self) -> &mut String {
        if !matches!(self.pieces.last(), Some(Piece::Text(_))) {
            self.pieces.push(Piece::Text(String::new()));
        }
        let Some(Piece::Text(text)) = self.pieces.last_mut() else {
            unreachable!("a text piece was just made sure of")
        };
        text
    }

    /// What comes after `NAME=`.
    fn value(mut self, name: &str) -> Word {
        if let Some(Piece::Text(text)) = self.pieces.first_mut() {
            text.drain(..=name.len());
        }
        self.pieces
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

struct Parser<'a> {
    rest: Peekable<Chars<'a>>,
    words: Vec<Reading>,
    word: Option<Reading>,
}

impl Parser<'_> {
    fn run(&mut self) -> Result<(), WordsError> {
        while let Some(c) = self.rest.next() {
            match c {
                ' ' | '\t' => self.words.extend(self.word.take()),
                '#' if self.word.is_none() => break,
                '~' if self.word.is_none() => return Err(WordsError::NeedsShell("~".to_owned())),
                '\'' => self.single()?,
                '"' => self.double()?,
                '\\' => {
                    let next = self.rest.next().ok_or(WordsError::Open('\\'))?;
                    self.quoted().text().push(next);
                }
                '$' => self.variable(false)?,
                '|' | '&' | ';' | '<' | '>' | '`' | '(' | ')' | '*' => {
                    return Err(WordsError::NeedsShell(self.operator(c)));
                }
                _ => self.word.get_or_insert_default().push(c),
            }
        }
        self.words.extend(self.word.take());
        Ok(())
    }

    /// The operator that starts with `first`, for the message.
    fn operator(&mut self, first: char) -> String {
        let mut operator = String::from(first);
        if matches!(first, '|' | '&' | '<' | '>') && self.rest.peek() == Some(&first) {
            operator.push(first);
        }
        operator
    }

    fn quoted(&mut self) -> &mut Reading {
        let word = self.word.get_or_insert_default();
        word.quoted = true;
        word
    }

    fn single(&mut self) -> Result<(), WordsError> {
        self.quoted().text();
        loop {
            match self.rest.next() {
                Some('\'') => return Ok(()),
                Some(c) => self.quoted().text().push(c),
                None => return Err(WordsError::Open('\'')),
            }
        }
    }

    fn double(&mut self) -> Result<(), WordsError> {
        self.quoted().text();
        loop {
            match self.rest.next().ok_or(WordsError::Open('"'))? {
                '"' => return Ok(()),
                '`' => return Err(WordsError::NeedsShell("`".to_owned())),
                '$' => self.variable(true)?,
                '\\' => {
                    let next = self.rest.next().ok_or(WordsError::Open('"'))?;
                    let text = self.quoted().text();
                    if !matches!(next, '$' | '`' | '"' | '\\') {
                        text.push('\\');
                    }
                    text.push(next);
                }
                c => self.quoted().text().push(c),
            }
        }
    }

    /// What follows a `$`.
    fn variable(&mut self, quoted: bool) -> Result<(), WordsError> {
        let needs_shell = |text: &str| Err(WordsError::NeedsShell(text.to_owned()));
        let (name, default) = match self.rest.peek().copied() {
            Some('{') => {
                self.rest.next();
                self.braced()?
            }
            Some(c) if c.is_ascii_alphabetic() || c == '_' => (self.name(), String::new()),
            Some('(') => return needs_shell("$("),
            Some(c) if c.is_ascii_digit() || "@*#?$!-'\"".contains(c) && !(quoted && c == '"') => {
                return needs_shell(&format!("${c}"));
            }
            _ => {
                self.word.get_or_insert_default().text().push('$');
                return Ok(());
            }
        };
        let word = self.word.get_or_insert_default();
        word.pieces.push(Piece::Variable { name, default, quoted });
        Ok(())
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) = self.rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
            name.push(c);
        }
        name
    }

    fn braced(&mut self) -> Result<(String, String), WordsError> {
        let name = self.name();
        let mut after = String::new();
        loop {
            match self.rest.next().ok_or(WordsError::Open('{'))? {
                '}' => break,
                c => after.push(c),
            }
        }
        let needs_shell = || WordsError::NeedsShell(format!("${{{name}{after}}}"));
        let default = match after.strip_prefix(":-") {
            _ if after.is_empty() => "",
            Some(default) if !default.contains(['$', '`', '\'', '"', '\\', '{']) => default,
            _ => return Err(needs_shell()),
        };
        if !is_name(&name) {
            return Err(needs_shell());
        }
        Ok((name, default.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn env() -> Env {
        [("PORT", "80"), ("ARGS", " -a  b "), ("EMPTY", ""), ("HOME", "/h")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into()
    }

    #[test]
    fn lines_are_split_as_sh_splits_them() {
        let cases: [(&str, &[&str]); 21] = [
            ("python3 app.py --port $PORT", &["python3", "app.py", "--port", "80"]),
            ("a\t b   c", &["a", "b", "c"]),
            ("a 'b  $PORT' c", &["a", "b  $PORT", "c"]),
            ("a \"b  $PORT\"c", &["a", "b  80c"]),
            ("a ${PORT}1 $PORT1", &["a", "801"]),
            ("a ${NONE:-5000} ${PORT:-1} ${EMPTY:-x}", &["a", "5000", "80", "x"]),
            ("a $EMPTY b", &["a", "b"]),
            ("a \"$EMPTY\" '' b", &["a", "", "", "b"]),
            ("a $ARGS c", &["a", "-a", "b", "c"]),
            ("a x${ARGS}y", &["a", "x", "-a", "b", "y"]),
            ("a \"x${ARGS}y\"", &["a", "x -a  b y"]),
            (r"a b\ c \$PORT \'", &["a", "b c", "$PORT", "'"]),
            (r#"a "\$PORT \n \"" "#, &["a", r#"$PORT \n ""#]),
            ("a '|' \"&&\" \\; '>' '*'", &["a", "|", "&&", ";", ">", "*"]),
            ("exec a b", &["a", "b"]),
            ("a b # c | d", &["a", "b"]),
            ("a b#c 1$ $", &["a", "b#c", "1$", "$"]),
            ("a --x=$PORT HOME=1", &["a", "--x=80", "HOME=1"]),
            ("X=1 a", &["a"]),
            ("a 'it''s'", &["a", "its"]),
            ("ä \"ö ü\"", &["ä", "ö ü"]),
        ];
        for (line, wanted) in cases {
            let expanded = Line::parse(line).and_then(|line| line.expand(&env()));
            assert_eq!(expanded.map(|e| e.argv), Ok(wanted.iter().map(|s| (*s).into()).collect()));
        }
    }

    #[test]
    fn assignments_are_environment() {
        let line = Line::parse("A=1 B=\"x $A\" C= exec prog $B").expect("parses");
        let expanded = line.expand(&env()).expect("expands");
        let pairs = [("A", "1"), ("B", "x 1"), ("C", "")];
        assert_eq!(expanded.env, pairs.map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert_eq!(expanded.argv, ["prog", "x", "1"]);
        assert_eq!(line.program(), Some("prog"));
    }

    #[test]
    fn what_needs_a_shell_is_refused() {
        let cases = [
            ("a | b", "|"),
            ("a||b", "||"),
            ("a && b", "&&"),
            ("a &", "&"),
            ("a; b", ";"),
            ("a > f", ">"),
            ("a 2>> f", ">>"),
            ("a < f", "<"),
            ("a `b`", "`"),
            ("a \"`b`\"", "`"),
            ("a $(b)", "$("),
            ("a \"$(b)\"", "$("),
            ("(a)", "("),
            ("a *.py", "*"),
            ("~/a", "~"),
            ("a $1", "$1"),
            ("a $?", "$?"),
            ("a $'b'", "$'"),
            ("a ${B%c}", "${B%c}"),
            ("a ${B:-$C}", "${B:-$C}"),
            ("cd x", "cd"),
            (". x", "."),
            ("export A=1", "export"),
        ];
        for (line, found) in cases {
            assert_eq!(Line::parse(line), Err(WordsError::NeedsShell(found.into())), "{line}");
        }
    }

    #[test]
    fn broken_lines_are_refused() {
        for (line, error) in [
            ("", WordsError::Empty),
            ("  # c", WordsError::Empty),
            ("A=1", WordsError::Empty),
            ("exec", WordsError::Empty),
            ("a 'b", WordsError::Open('\'')),
            ("a \"b", WordsError::Open('"')),
            ("a ${b", WordsError::Open('{')),
            ("a\\", WordsError::Open('\\')),
            ("a\nb", WordsError::Control),
            ("a\0b", WordsError::Control),
        ] {
            assert_eq!(Line::parse(line), Err(error), "{line:?}");
        }
        assert_eq!(Line::parse(&"x".repeat(MAX_LINE + 1)), Err(WordsError::TooLong));
        let line = Line::parse("$EMPTY").expect("parses");
        assert_eq!(line.expand(&env()), Err(WordsError::Empty));
    }

    proptest! {
        #[test]
        fn any_text_is_split_or_refused(text in "[ -~äö\t]{0,60}") {
            if let Ok(line) = Line::parse(&text) {
                let _expanded = line.expand(&env());
            }
        }

        #[test]
        fn quoted_words_come_back_as_they_were(words in prop::collection::vec("[ -~]{0,12}", 1..6)) {
            let quoted = words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''")));
            let line = format!("prog {}", quoted.collect::<Vec<_>>().join(" "));
            let argv = Line::parse(&line).and_then(|line| line.expand(&Env::new())).map(|e| e.argv);
            let wanted = std::iter::once("prog".to_owned()).chain(words).collect::<Vec<_>>();
            prop_assert_eq!(argv, Ok(wanted));
        }
    }
}
