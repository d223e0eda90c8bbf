//! Programs of the machine: finding them, running them, saying how to get them.

use std::io::{self, BufRead as _, BufReader, Read as _, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Env;
use crate::error::{BuildError, Context as _};

/// The most bytes of one line of a tool's output that are shown in one piece.
const MAX_LINE: u64 = 16 * 1024;

/// How to get the tools that are looked for.
const HINTS: [(&str, &str); 6] = [
    ("python3", "install it with `apt install python3` (or from https://www.python.org)"),
    ("pip", "install it with `apt install python3-pip`"),
    ("node", "install it with `apt install nodejs` (or from https://nodejs.org)"),
    ("npm", "install it with `apt install npm`"),
    ("cargo", "install it with `curl https://sh.rustup.rs -sSf | sh` (see https://rustup.rs)"),
    ("", "install it, or correct the name"),
];

/// How to get `program`.
pub(crate) fn hint(program: &str) -> &'static str {
    let known = HINTS.iter().find(|(name, _)| *name == program || name.is_empty());
    known.map_or("install it", |(_, hint)| hint)
}

/// The executable that `program` means: as `execvp` finds it, in `path` unless it has a `/`.
pub fn find_program(program: &str, path: &str, dir: &Path) -> Option<PathBuf> {
    let executable = |file: &Path| {
        std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    find(program, path, dir, executable)
}

/// What has the name of `program` where that is looked for, whatever it is.
pub(crate) fn find_entry(program: &str, path: &str, dir: &Path) -> Option<PathBuf> {
    find(program, path, dir, Path::exists)
}

fn find(program: &str, path: &str, dir: &Path, accept: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    if program.contains('/') {
        let file = dir.join(program);
        return accept(&file).then_some(file);
    }
    if program.is_empty() {
        return None;
    }
    path.split(':').map(|part| dir.join(part).join(program)).find(|file| accept(file))
}

/// The tool in the `PATH` of `env`, or an error that says how to get it.
pub(crate) fn require(program: &str, env: &Env) -> Result<PathBuf, BuildError> {
    let path = env.get("PATH").map_or("", String::as_str);
    find_program(program, path, Path::new("/")).ok_or_else(|| BuildError::MissingTool {
        tool: program.to_owned(),
        hint: hint(program).to_owned(),
        path: if path.is_empty() { "nowhere: PATH is empty".to_owned() } else { path.to_owned() },
    })
}

/// One call of a tool.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) program: &'a Path,
    pub(crate) args: &'a [&'a str],
    pub(crate) dir: &'a Path,
    pub(crate) env: &'a Env,
    /// What may help when it fails.
    pub(crate) hint: &'a str,
}

impl Call<'_> {
    fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        command.args(self.args).current_dir(self.dir).env_clear().envs(self.env);
        command.stdin(Stdio::null());
        command
    }

    fn shown(&self) -> String {
        let program = self.program.file_name().unwrap_or_default().to_string_lossy();
        std::iter::once(&*program).chain(self.args.iter().copied()).collect::<Vec<_>>().join(" ")
    }

    fn failed(&self, status: std::process::ExitStatus, hint: &str) -> BuildError {
        let hint = if hint.is_empty() { String::new() } else { format!("\n{hint}") };
        BuildError::Tool { command: self.shown(), status: status.to_string(), hint }
    }

    /// Runs it; its output goes to `out`, line by line.
    pub(crate) fn run(&self, out: &mut dyn Write) -> Result<(), BuildError> {
        self.run_hinted(out, &[])
    }

    /// The same; when it fails and printed one of these words, the hint that goes with it is given
    /// instead of the usual one.
    pub(crate) fn run_hinted(
        &self,
        out: &mut dyn Write,
        hints: &[(&str, &str)],
    ) -> Result<(), BuildError> {
        let (reader, writer) = io::pipe().building("start", self.program)?;
        let mut command = self.command();
        command.stdout(writer.try_clone().building("start", self.program)?).stderr(writer);
        self.wait(command, reader, out, hints)
    }

    /// Runs it; errors go to `out`, and what it prints goes to `file`.
    pub(crate) fn run_into(&self, file: &Path, out: &mut dyn Write) -> Result<(), BuildError> {
        let printed = std::fs::File::create(file).building("make", file)?;
        let (reader, writer) = io::pipe().building("start", self.program)?;
        let mut command = self.command();
        command.stdout(printed).stderr(writer);
        self.wait(command, reader, out, &[])
    }

    fn wait(
        &self,
        mut command: Command,
        reader: io::PipeReader,
        out: &mut dyn Write,
        hints: &[(&str, &str)],
    ) -> Result<(), BuildError> {
        let mut hint = self.hint;
        writeln!(out, "       $ {}", self.shown()).building("write progress", Path::new(""))?;
        let mut child = command.spawn().building("start", self.program)?;
        // The command holds our copies of the writing end: the pipe ends when the child ends.
        drop(command);
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line);
            if read.building("read the output of", self.program)? == 0 {
                break;
            }
            let text = String::from_utf8_lossy(&line);
            let known = hints.iter().find(|(word, _)| text.contains(word));
            hint = known.map_or(hint, |(_, better)| better);
            writeln!(out, "       {}", text.trim_end())
                .building("write progress", Path::new(""))?;
        }
        let status = child.wait().building("wait for", self.program)?;
        if status.success() { Ok(()) } else { Err(self.failed(status, hint)) }
    }

    /// Runs it and gives back what it prints, trimmed.
    pub(crate) fn ask(&self) -> Result<String, BuildError> {
        let output = self.command().output().building("start", self.program)?;
        if !output.status.success() {
            return Err(self.failed(output.status, self.hint));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_says_how_to_get_it() {
        let env: Env = [("PATH".to_owned(), "/nowhere".to_owned())].into();
        let error = require("python3", &env).expect_err("there is none");
        assert_eq!(error.exit() as u8, 51);
        let text = error.to_string();
        assert!(text.contains("python3 was not found on the cell: install it with `apt install"));
        assert!(text.contains("looked in: /nowhere"));
    }

    #[test]
    fn output_is_shown_and_failure_is_told() {
        let env: Env = [("A".to_owned(), "x".to_owned())].into();
        let call = |args: &[&str]| {
            let mut out = Vec::new();
            let call = Call {
                program: Path::new("/bin/sh"),
                args,
                dir: Path::new("/"),
                env: &env,
                hint: "try again",
            };
            let hints = [("E404", "check the name")];
            let result = call.run_hinted(&mut out, &hints).map_err(|error| error.to_string());
            (result, String::from_utf8(out).expect("text"))
        };
        let (result, out) = call(&["-c", "echo $A; echo err >&2; printf end"]);
        assert_eq!(result, Ok(()));
        assert!(out.ends_with("       x\n       err\n       end\n"), "{out}");
        let (result, _) = call(&["-c", "exit 3"]);
        let error = result.expect_err("failed");
        assert_eq!(error, "`sh -c exit 3` failed with exit status: 3\ntry again");
        let (result, _) = call(&["-c", "echo error E404; echo end; exit 3"]);
        let error = result.expect_err("failed");
        assert!(error.ends_with("exit status: 3\ncheck the name"), "{error}");
    }
}
