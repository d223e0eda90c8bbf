//! What the tests start: a gate, or with `agent DIR` something that keeps one until it is killed.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;

use runtime::{Stop, Tasks};

fn main() -> ExitCode {
    if let Some(code) = gate::maybe_run() {
        return code;
    }
    let mut arguments = std::env::args_os().skip(1);
    match (arguments.next(), arguments.next()) {
        (Some(role), Some(dir)) if role == "agent" && agent(Path::new(&dir)).is_ok() => {
            ExitCode::SUCCESS
        }
        _ => ExitCode::FAILURE,
    }
}

fn agent(dir: &Path) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let options = gate::Options {
        dir: dir.to_owned(),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        program: std::env::current_exe()?,
        version: "1".to_owned(),
    };
    runtime.block_on(async {
        let tasks = Tasks::new(Stop::new());
        let gate = gate::Gate::open(options, &tasks).await.map_err(std::io::Error::other)?;
        writeln!(std::io::stdout(), "{}", gate.address())?;
        std::future::pending::<std::io::Result<()>>().await
    })
}
