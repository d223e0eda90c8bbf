//! Builds the programs that are the first process of containers: each a program of its own that
//! needs nothing of the container's files.

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

/// Only idles, without a C library.
const IDLE: &[&str] =
    &["idle/main.rs", "-Clink-arg=-nostartfiles", "-Clink-arg=-nostdlib", "-Clink-arg=-static"];
/// Starts the processes of a container as well, linked statically. The half of what it shares with
/// the driver that it does not use is no fault of it.
const INIT: &[&str] = &[
    "inside/init.rs",
    "--cfg=alone",
    "--cap-lints=allow",
    "-Ctarget-feature=+crt-static",
    "-Clto=fat",
    "-Ccodegen-units=1",
];

fn main() -> Result<(), Box<dyn Error>> {
    for path in ["build.rs", "idle", "inside"] {
        println!("cargo::rerun-if-changed={path}");
    }
    println!("cargo::rustc-check-cfg=cfg(alone)");
    build("idle", IDLE)?;
    build("init", INIT).map_err(|error| {
        format!("{error}; linking needs libc.a (Debian: apt install libc6-dev)")
    })?;
    Ok(())
}

fn build(name: &str, arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    let variable = |name: &str| env::var_os(name).ok_or_else(|| format!("no {name}"));
    let out = PathBuf::from(variable("OUT_DIR")?).join(name);
    let mut rustc = Command::new(variable("RUSTC")?);
    rustc
        .args(["--edition=2024", "--crate-type=bin", "--crate-name", name, "--target"])
        .arg(variable("TARGET")?)
        .args(["-Copt-level=s", "-Cpanic=abort", "-Cstrip=symbols", "-Crelocation-model=static"])
        .args(arguments)
        .arg("-o")
        .arg(&out);
    // The linker cargo was told to use for this target.
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        rustc.arg("-C").arg(format!("linker={}", PathBuf::from(linker).display()));
    }
    if rustc.status()?.success() { Ok(()) } else { Err(format!("{name} does not build").into()) }
}
