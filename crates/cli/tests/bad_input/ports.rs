//! Ports somebody else has.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use testkit::{Failure, Ports};

use crate::{holds, program, told};

const TOKEN: &str = "shore_01m7ymd78kq9tv2gfy4gv626qj_\
                     ed7ae0ded4f9cbdba1a037ed9f674dcc68f91f575e30b8cb6d1e9032d5d824f0";

#[test]
fn a_used_port_is_named_with_its_user_and_the_flag_to_choose() -> Result<(), Failure> {
    let home = tempfile::tempdir().map_err(told)?;
    let code = home.path().join("code");
    std::fs::create_dir(&code).map_err(told)?;
    std::fs::write(code.join("index.html"), "<h1>hello</h1>").map_err(told)?;
    let held = TcpListener::bind("127.0.0.1:0").map_err(told)?;
    let used = held.local_addr().map_err(told)?.port();
    let free = Ports::free()?;
    let (api, http, ssh) = (free.api.to_string(), free.http.to_string(), free.ssh.to_string());
    let (port, address) = (used.to_string(), format!("127.0.0.1:{used}"));
    let all = ["--port", &api, "--http-port", &http, "--ssh-port", &ssh];
    let with = |command: &'static str, flag: &'static str| {
        let mut args = vec![command.to_owned()];
        args.extend(all.iter().map(|&word| word.to_owned()));
        if let Some(at) = args.iter().position(|word| word == flag) {
            args[at + 1].clone_from(&port);
        }
        (args, flag)
    };
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let other = "127.0.0.1:0";
    for (args, flag) in [
        with("dev", "--port"),
        with("dev", "--http-port"),
        with("dev", "--ssh-port"),
        with("up", "--port"),
        with("up", "--http-port"),
        with("up", "--ssh-port"),
        (words(&["server", "--listen", &address, "--ssh", other]), "--listen"),
        (words(&["server", "--ssh", &address, "--listen", other]), "--ssh"),
        (words(&["router", "--listen", &address, "--token", TOKEN]), "--listen"),
    ] {
        let output = Command::new(program())
            .args(&args)
            .env("XDG_DATA_HOME", home.path().join("data"))
            .env("XDG_CONFIG_HOME", home.path().join("config"))
            .env("NO_COLOR", "1")
            .current_dir(&code)
            .stdin(Stdio::null())
            .output()
            .map_err(told)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let holder = format!("hint: process {} (", std::process::id());
        let flag = format!("choose another with `{flag}`");
        holds(&said, &[&format!("cannot listen on {address}"), &holder, &flag])
            .map_err(|failure| format!("{args:?}: {failure}"))?;
        if output.status.code() != Some(7) {
            return Err(format!("{args:?} ended with {}:\n{said}", output.status));
        }
    }
    // All of that came before anything was made.
    if home.path().join("data/longshore/server/store.db").exists() {
        return Err("a server was started for nothing".to_owned());
    }
    Ok(())
}
