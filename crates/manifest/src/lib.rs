//! The project file, `shore.hcl`: text in, what to build and deploy out.
//!
//! It touches no file and no network. Every message names the line and column it is about and says
//! what is allowed there.

mod check;
mod project;
mod read;
mod run;

pub use check::CheckFile;
pub use project::{AppFile, BuildFile, DeployFile, ProcessFile, ProjectFile, parse};
pub use read::{MAX_FILE, ManifestError};
pub use run::RunFile;

/// The name of the project file.
pub const FILE_NAME: &str = "shore.hcl";
