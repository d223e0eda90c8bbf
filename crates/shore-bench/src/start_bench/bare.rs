//! What starts cost without this product.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use runtime::mono_now;
use serde_json::{Value, json};

/// How long a program that does nothing takes from start to end: by `runc run`, or as a plain
/// process.
pub(super) fn start(driver: &str, dir: &Path, number: u128) -> Result<Duration, String> {
    let mut program = if driver == "process" {
        Command::new("/bin/true")
    } else {
        let bundle = dir.join(number.to_string());
        bundle_of(&bundle)?;
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(dir.join("state")).args(["run", "--bundle"]).arg(&bundle);
        runc.arg(format!("bare-{}-{number}", std::process::id()));
        runc
    };
    let began = mono_now();
    let status = program.stdin(Stdio::null()).status().map_err(|error| error.to_string())?;
    if status.success() { Ok(began.elapsed()) } else { Err(format!("the bare runtime: {status}")) }
}

/// The default bundle with the machine's programs.
fn bundle_of(bundle: &Path) -> Result<(), String> {
    let make = || {
        fs::create_dir_all(bundle.join("root/usr"))?;
        for link in ["bin", "lib", "lib64"] {
            std::os::unix::fs::symlink(format!("usr/{link}"), bundle.join("root").join(link))?;
        }
        Command::new("runc").arg("spec").current_dir(bundle).status()?;
        let file = bundle.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&file)?)?;
        let usr = json!({
            "destination": "/usr", "source": "/usr", "type": "bind", "options": ["rbind", "ro"],
        });
        if let Some(mounts) = config["mounts"].as_array_mut() {
            mounts.push(usr);
        }
        config["root"]["path"] = "root".into();
        config["process"]["terminal"] = false.into();
        config["process"]["args"] = json!(["/bin/true"]);
        fs::write(&file, config.to_string())
    };
    make().map_err(|error: std::io::Error| format!("a bundle for runc: {error}"))
}
