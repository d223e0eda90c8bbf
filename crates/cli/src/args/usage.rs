//! What is said of a command line that makes no sense.

use std::ffi::OsString;

use crate::env;
use crate::error::{CliError, ErrorKind};

/// What is wrong with a command line that asks for JSON. What is wrong with any other, and help, is
/// printed as text and ends the process.
pub(super) fn told(error: &clap::Error, words: &[OsString]) -> CliError {
    if !(error.use_stderr() && wants_json(words)) {
        error.exit();
    }
    usage(error)
}

/// Whether a command line that makes no sense asks for JSON.
fn wants_json(words: &[OsString]) -> bool {
    let mut own = words.iter().take_while(|word| *word != "--");
    own.any(|word| word == "--json") || env::wants_json()
}

/// What is wrong with a command line, without what the parser says around it.
fn usage(error: &clap::Error) -> CliError {
    let text = error.render().to_string();
    let (message, hint) = match error.kind() {
        clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            ("the command line ends too early", text.trim())
        }
        _ => match text.split_once("\n\n") {
            Some((message, hint)) => (message, hint.trim()),
            None => (text.trim(), ""),
        },
    };
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let usage = CliError::new(ErrorKind::Usage, message);
    if hint.is_empty() { usage } else { usage.hint(hint) }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn what_is_wrong_is_one_sentence_and_the_rest_a_hint() {
        let wrong = |words: &[&str]| {
            let error = Cli::try_parse_from([&["shore"], words].concat()).expect_err("is refused");
            let usage = usage(&error);
            (usage.exit_code(), usage.message, usage.hint.unwrap_or_default())
        };
        let (code, message, hint) = wrong(&["scale", "--nonsense"]);
        assert_eq!((code, &*message), (2, "unexpected argument '--nonsense' found"));
        assert!(hint.contains("Usage: shore scale"), "{hint}");
        let (code, message, hint) = wrong(&["job"]);
        assert_eq!((code, &*message), (2, "the command line ends too early"));
        assert!(hint.contains("Usage: shore job"), "{hint}");
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        assert!(wants_json(&words(&["shore", "job", "--json", "--nonsense"])));
        assert!(!wants_json(&words(&["shore", "exec", "--", "--json"])));
    }
}
