//! The buildpacks that are part of the binary, in the order they are asked:
//!
//! 1. `python`: `requirements.txt`, `pyproject.toml`, or a Python file to start
//! 2. `node`: `package.json`
//! 3. `rust`: `Cargo.toml`
//! 4. `static`: `Staticfile`, `public/index.html` or `index.html`
//! 5. `procfile`: anything with a `Procfile`
//!
//! The first that knows what to build *and* what to run takes the source. In all of them a
//! `Procfile` adds process types and replaces those of the same name. `SHORE_BUILDPACK` in the
//! build environment asks only the one it names.

mod node;
mod procfile_only;
mod python;
mod rust;
mod static_site;

use crate::Buildpack;

/// All of them, in order.
pub fn all() -> &'static [&'static dyn Buildpack] {
    &[
        &python::Python,
        &node::Node,
        &rust::Rust,
        &static_site::StaticSite,
        &procfile_only::ProcfileOnly,
    ]
}

/// Their ids, in order.
pub fn detection_order() -> Vec<&'static str> {
    all().iter().map(|buildpack| buildpack.id()).collect()
}
