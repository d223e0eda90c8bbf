//! Builds the first process of containers: a program of its own, without a C library.

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=idle/main.rs");
    let variable = |name: &str| env::var_os(name).ok_or_else(|| format!("no {name}"));
    let out = PathBuf::from(variable("OUT_DIR")?).join("idle");
    let mut rustc = Command::new(variable("RUSTC")?);
    rustc
        .args(["idle/main.rs", "--edition=2024", "--crate-name=idle", "--target"])
        .arg(variable("TARGET")?)
        .args(["-Copt-level=s", "-Cpanic=abort", "-Cstrip=symbols", "-Crelocation-model=static"])
        .args(["-Clink-arg=-nostartfiles", "-Clink-arg=-nostdlib", "-Clink-arg=-static"])
        .arg("-o")
        .arg(&out);
    // The linker cargo was told to use for this target.
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        rustc.arg("-C").arg(format!("linker={}", PathBuf::from(linker).display()));
    }
    if rustc.status()?.success() { Ok(()) } else { Err("the idle program does not build".into()) }
}
