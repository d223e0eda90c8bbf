//! What is wrong with what people give is said in a sentence with a hint, and nothing is lost by it.
//! Everything here drives the real program.

mod connections;
mod disk;
mod files;
mod names;
mod ports;
mod push;
mod recovery;
mod sources;
mod tokens;
mod uploads;
mod versions;

use std::path::Path;

use testkit::{Failure, Ran};

/// The program under test.
fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_shore"))
}

/// Every word is in what was said.
fn holds(said: &str, words: &[&str]) -> Result<(), Failure> {
    match words.iter().find(|word| !said.contains(**word)) {
        None => Ok(()),
        Some(word) => Err(format!("`{word}` is missing in:\n{said}")),
    }
}

/// A command ended with this code and said these words.
fn refused(ran: Ran, code: i32, words: &[&str]) -> Result<(), Failure> {
    let said = ran.out + &ran.err;
    if ran.code != code {
        return Err(format!("it ended with {}, not {code}:\n{said}", ran.code));
    }
    holds(&said, words)
}

/// An error of the system as a failure.
fn told(error: impl std::fmt::Display) -> Failure {
    error.to_string()
}
