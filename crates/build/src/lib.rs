//! Source to image, and image to running process.
//!
//! [`source`] packs a directory into an archive. [`lifecycle`] turns an unpacked archive into an
//! OCI image: a [`Buildpack`] is detected, builds layers, and the result is
//! exported as an [`image`] layout. [`launch`] starts a process type of such an image, and
//! [`staticserver`] is the process of a site that is only files.
//!
//! The shape is that of Cloud Native Buildpacks (detect, build, export, launch; `/workspace`,
//! `/layers`, `metadata.toml`, layer environment), but the buildpacks are part of the binary.
//! No text from a user ever reaches a shell: command lines are split by [`words`].

mod buildpack;
mod builtin;
mod error;
pub mod image;
pub mod launch;
mod layer_env;
pub mod lifecycle;
mod metadata;
mod paths;
pub mod procfile;
pub mod source;
pub mod staticserver;
mod tool;
pub mod words;

pub use buildpack::{
    AppFiles, BuildContext, Buildpack, Built, Cached, Command, DetectContext, Detected, Layer,
    LayerTypes, Plan, Process,
};
pub use builtin::{all, detection_order};
pub use error::{BuildError, Exit};
pub use layer_env::{Phase, apply_layer, apply_values};
pub use metadata::Metadata;
pub use paths::{APP_DIR, LAYERS_DIR, Paths, ROOT_VARIABLE, Root};
pub use tool::find_program;

/// The environment of a process, as a value.
pub type Env = std::collections::BTreeMap<String, String>;
