//! Load by `wrk`, and CPU per request under it.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::{Listens, cpu_us};

/// Connections that load.
const CONNECTIONS: &str = "-c64";

/// One round's figures.
#[derive(Debug, Clone, Copy)]
pub(super) struct Figures {
    pub(super) cpu_us: f64,
    pub(super) rate: f64,
}

/// Loads a proxy and tells what each request cost it.
pub(super) fn round(
    proxy: &impl Listens,
    pids: &[u32],
    script: Option<&Path>,
) -> Result<Figures, String> {
    let url = format!("http://127.0.0.1:{}/", proxy.port());
    let mut command = Command::new("wrk");
    command.args(["-t1", CONNECTIONS, &format!("-d{}s", super::SECONDS)]);
    match script {
        Some(script) => command.arg("-s").arg(script),
        None => command.args(["-H", &format!("Host: {}", super::host(0))]),
    };
    let before = cpu_us(pids)?;
    let output = command
        .arg(url)
        .output()
        .map_err(|error| format!("wrk cannot be started (package wrk): {error}"))?;
    let used = cpu_us(pids)? - before;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        return Err(format!("requests failed: {text}"));
    }
    let requests =
        text.split(" requests in").next().and_then(|text| text.split_whitespace().last());
    let requests: f64 =
        requests.and_then(|text| text.parse().ok()).ok_or_else(|| format!("wrk said: {text}"))?;
    let rate = (requests / f64::from(super::SECONDS)).round();
    Ok(Figures { cpu_us: super::round(used / requests), rate })
}

/// The middle of several figures.
pub(super) fn middle(mut list: Vec<f64>) -> f64 {
    list.sort_by(f64::total_cmp);
    list.get(list.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The middle of several rounds.
pub(super) fn median(rounds: &[Figures]) -> Figures {
    Figures {
        cpu_us: middle(rounds.iter().map(|round| round.cpu_us).collect()),
        rate: middle(rounds.iter().map(|round| round.rate).collect()),
    }
}

/// A script that asks all hosts in turn.
pub(super) fn spread_script(dir: &Path, hosts: usize) -> Result<PathBuf, String> {
    let path = dir.join("spread.lua");
    let name = super::host(0).replace("h0", "h\" .. i .. \"");
    let script = format!(
        "local list = {{}}\nlocal at = 0\n\
         function init(args)\n for i = 0, {hosts} - 1 do\n\
         list[i] = wrk.format(\"GET\", \"/\", {{ Host = \"{name}\" }})\n end\nend\n\
         function request()\n at = (at + 1) % {hosts}\n return list[at]\nend\n"
    );
    std::fs::write(&path, script).map_err(|error| error.to_string())?;
    Ok(path)
}
