//! The phases of a build and the launcher, on their own.
//!
//! The name it is called by, or else the first argument, says what it does: `creator`, `launcher`,
//! `static-server`, `pack <dir> <archive>`, `unpack <archive> <dir>`,
//! `image <layout> <digest> <root>`.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use build::image::{Layout, Limits, Sharing, materialise, unpack};
use build::{Env, Paths, launch, lifecycle, source};

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().collect();
    let called = args.first().and_then(|name| name.rsplit('/').next()).unwrap_or_default();
    if matches!(called, "creator" | "launcher" | launch::STATIC_SERVER) {
        args[0] = String::from(called);
    } else {
        args.remove(0);
    }
    let env: Env = std::env::vars().collect();
    let Some((what, args)) = args.split_first() else { return usage() };
    let result = match (what.as_str(), args) {
        ("creator", []) => return create(&env),
        ("launcher", args) => return launch_process(args, &env),
        (launch::STATIC_SERVER, args) => {
            build::staticserver::main(args, &env, Path::new(".")).map_err(|e| e.to_string())
        }
        ("pack", [dir, archive]) => pack(Path::new(dir), Path::new(archive)),
        ("unpack", [archive, dir]) => unpack_into(Path::new(archive), Path::new(dir)),
        ("image", [layout, digest, root]) => image(Path::new(layout), digest, Path::new(root)),
        _ => return usage(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, build::Exit::Other),
    }
}

fn fail(error: &dyn std::fmt::Display, exit: build::Exit) -> ExitCode {
    let text = error.to_string().replace('\n', "\n !     ");
    // There is nobody to tell when the standard error cannot be written.
    writeln!(std::io::stderr(), " !     {text}").unwrap_or_default();
    ExitCode::from(exit as u8)
}

fn usage() -> ExitCode {
    let text = "use creator, launcher [<process type>|-- <command>], static-server <dir>, \
                pack <dir> <archive>, unpack <archive> <dir> or image <layout> <digest> <root>";
    fail(&text, build::Exit::Other)
}

fn create(env: &Env) -> ExitCode {
    match lifecycle::create(&Paths::from_env(env), env, &mut std::io::stdout()) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => fail(&error, error.exit()),
    }
}

fn launch_process(args: &[String], env: &Env) -> ExitCode {
    match launch::prepare(args, env).and_then(launch::exec) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, error.exit()),
    }
}

fn pack(dir: &Path, archive: &Path) -> Result<(), String> {
    let file = std::fs::File::create(archive).map_err(|e| e.to_string())?;
    source::pack(dir, file, source::MAX).map_err(|e| e.to_string()).map(|_| ())
}

fn unpack_into(archive: &Path, dir: &Path) -> Result<(), String> {
    let file = std::fs::File::open(archive).map_err(|e| e.to_string())?;
    std::fs::create_dir_all(dir).map_err(|e| e.to_string())?;
    source::unpack(file, dir, source::MAX).map_err(|e| e.to_string()).map(|_| ())
}

fn image(layout: &Path, digest: &str, root: &Path) -> Result<(), String> {
    let layout = Layout::open(layout);
    let digest = digest.parse().map_err(|e: model::DigestError| e.to_string())?;
    let manifest = layout.manifest(&digest).map_err(|e| e.to_string())?;
    let mut layers = Vec::new();
    for (at, layer) in manifest.layers.iter().enumerate() {
        let dir = root.join(format!(".layer-{at}"));
        std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
        let blob = std::fs::File::open(layout.blob(&layer.digest)).map_err(|e| e.to_string())?;
        unpack(blob, &dir, Limits::default()).map_err(|e| e.to_string())?;
        layers.push(dir);
    }
    materialise(&layers, root, &Sharing::Copy).map_err(|e| e.to_string())?;
    layers.iter().try_for_each(std::fs::remove_dir_all).map_err(|e| e.to_string())
}
