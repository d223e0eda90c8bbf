//! Anything that can run as it is, and says so in a Procfile.

use crate::buildpack::{BuildContext, Buildpack, Built, DetectContext, Detected};
use crate::error::BuildError;

/// The buildpack `procfile`.
#[derive(Debug)]
pub(super) struct ProcfileOnly;

impl Buildpack for ProcfileOnly {
    fn id(&self) -> &'static str {
        "procfile"
    }

    fn version(&self) -> &'static str {
        "1.0.0"
    }

    fn detect(&self, context: &DetectContext<'_>) -> Result<Detected, BuildError> {
        Ok(if context.procfile.is_empty() {
            Detected::fail("no Procfile with a process type")
        } else {
            Detected::pass()
        })
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Result<Built, BuildError> {
        context.check_procfile_programs()?;
        Ok(Built::new(Vec::new()))
    }
}
