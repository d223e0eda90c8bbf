//! What can go wrong in a build, in words its author can act on, and the exit codes for it.

use std::io;
use std::path::Path;

/// The exit codes of the Cloud Native Buildpacks lifecycle that are used here, and for programs that
/// cannot be started those of shells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Anything that has no code of its own.
    Other = 1,
    /// No buildpack matches the source.
    NotDetected = 20,
    /// Detection itself failed.
    DetectFailed = 21,
    /// The cache could not be used.
    RestoreFailed = 42,
    /// The buildpack or one of its tools failed.
    BuildFailed = 51,
    /// The build failed outside the buildpack.
    BuildOther = 52,
    /// The image could not be written.
    ExportFailed = 62,
    /// A process could not be started.
    LaunchFailed = 82,
    /// Its program is there, and cannot be executed.
    NotExecutable = 126,
    /// Its program, or the interpreter of its program, is not there.
    NotFound = 127,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No buildpack wants this source.
    #[error(
        "no buildpack matches this source\n{looked_for}\nTo choose one, set SHORE_BUILDPACK to \
         its name; to say what to run, add a file named Procfile: `web: <command>`"
    )]
    NotDetected {
        /// One line for each buildpack, in order, with the reason.
        looked_for: String,
    },
    /// The buildpack that was asked for does not exist.
    #[error("SHORE_BUILDPACK is {given:?}, which is no buildpack; there are: {known}")]
    UnknownBuildpack {
        /// What was asked for.
        given: String,
        /// What there is.
        known: String,
    },
    /// A file of the source is wrong.
    #[error("{file}: {reason}")]
    Source {
        /// Which file, with its line where known.
        file: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// The machine lacks a tool.
    #[error("{tool} was not found on the cell: {hint}\nlooked in: {path}")]
    MissingTool {
        /// The program.
        tool: String,
        /// How to get it.
        hint: String,
        /// Where it was looked for.
        path: String,
    },
    /// A tool ran and failed.
    #[error("`{command}` failed with {status}{hint}")]
    Tool {
        /// The command, for people.
        command: String,
        /// How it ended.
        status: String,
        /// What may help, with a leading line break, or nothing.
        hint: String,
    },
    /// The build worked but leaves nothing usable.
    #[error("{0}")]
    Unusable(String),
    /// The operating system refused.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// Which phase it was, as an exit code.
        exit: Exit,
        /// The system's answer.
        source: io::Error,
    },
}

impl BuildError {
    /// The exit code of the lifecycle for this error.
    pub const fn exit(&self) -> Exit {
        match self {
            Self::NotDetected { .. } => Exit::NotDetected,
            Self::UnknownBuildpack { .. } => Exit::DetectFailed,
            Self::Source { .. }
            | Self::MissingTool { .. }
            | Self::Tool { .. }
            | Self::Unusable(_) => Exit::BuildFailed,
            Self::Io { exit, .. } => *exit,
        }
    }

    pub(crate) fn source_file(file: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Source { file: file.into(), reason: reason.into() }
    }
}

/// Adds what was being done to an I/O error.
pub(crate) trait Context<T> {
    /// While building.
    fn building(self, what: &str, path: &Path) -> Result<T, BuildError>;
    /// While exporting.
    fn exporting(self, what: &str, path: &Path) -> Result<T, BuildError>;
}

impl<T> Context<T> for io::Result<T> {
    fn building(self, what: &str, path: &Path) -> Result<T, BuildError> {
        self.map_err(|source| with(Exit::BuildOther, what, path, source))
    }

    fn exporting(self, what: &str, path: &Path) -> Result<T, BuildError> {
        self.map_err(|source| with(Exit::ExportFailed, what, path, source))
    }
}

fn with(exit: Exit, what: &str, path: &Path, source: io::Error) -> BuildError {
    BuildError::Io { context: format!("{what} {}", path.display()), exit, source }
}

/// Takes the removal of what is not there for done.
pub(crate) fn if_there(removed: io::Result<()>) -> io::Result<()> {
    let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    removed.or_else(|error| if absent(&error) { Ok(()) } else { Err(error) })
}
