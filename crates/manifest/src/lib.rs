//! The project file, `shore.hcl`: text in, what to build and deploy out.
//!
//! It touches no file and no network. Every message names the line and column it is about and says
//! what is allowed there.

mod project;
mod read;

pub use project::{AppFile, BuildFile, CheckFile, DeployFile, ProcessFile, ProjectFile, parse};
pub use read::{MAX_FILE, ManifestError};

/// The name of the project file.
pub const FILE_NAME: &str = "shore.hcl";
