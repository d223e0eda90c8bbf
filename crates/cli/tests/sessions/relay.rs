//! What ends a session, and what one costs that is not read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use api::sessions::{
    FromClient, FromServer, LEAST_COST, OpenSession, SESSION_WINDOW, SessionCommand, SessionWhat,
    cost,
};
use model::ExitStatus;
use testkit::{Cluster, Failure, Role, wait_for};

use crate::{LIMIT, Said, World, holds, runs, source, told};

/// A session that writes down its process number and stays.
struct Stays {
    child: Child,
    pid: PathBuf,
}

impl Stays {
    fn start(mut exec: Command, home: &Path) -> Result<Self, Failure> {
        let pid = home.join("stays");
        let script =
            format!("trap '' TERM HUP; echo $$ > {}; sleep 1000; sleep 1000", pid.display());
        exec.args(["--", "/bin/sh", "-c", &script]);
        exec.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let stays = Self { child: exec.spawn().map_err(told)?, pid };
        wait_for("its process", LIMIT, || runs(&stays.number()).then_some(()))?;
        Ok(stays)
    }

    fn number(&self) -> String {
        let text = std::fs::read_to_string(&self.pid).unwrap_or_default();
        if text.ends_with('\n') { text.trim().to_owned() } else { "none".to_owned() }
    }

    fn is_killed(&self) -> Result<(), Failure> {
        let number = self.number();
        wait_for("its process to be killed", LIMIT, || (!runs(&number)).then_some(()))
    }

    fn said(mut self) -> Result<(Said, PathBuf), Failure> {
        drop(self.child.stdin.take());
        Ok((Said::of(self.child.wait_with_output().map_err(told)?), self.pid))
    }
}

#[test]
fn what_runs_is_killed_when_its_client_is_gone() -> Result<(), Failure> {
    let world = World::start()?;
    let exec = || world.dev.command(&["exec", "shop/web"]);
    let mut stays = Stays::start(exec(), world.dev.home())?;
    stays.child.kill().map_err(told)?;
    stays.is_killed()?;
    stays.child.wait().map_err(told)?;
    // Ctrl-C of a command without a terminal ends it, too.
    let stays = Stays::start(exec(), world.dev.home())?;
    let interrupt = Command::new("kill").args(["-INT", &stays.child.id().to_string()]).status();
    assert!(interrupt.map_err(told)?.success());
    stays.is_killed()?;
    stays.said()?.0.refused(130, &["what it ran is killed"])
}

#[test]
fn a_session_ends_with_its_token() -> Result<(), Failure> {
    let world = World::start()?;
    let made = world.dev.json(&["token", "create", "--role", "developer"])?;
    let token = made["token"].as_str().ok_or("no token")?;
    let mut exec = world.dev.command(&["exec", "shop/web"]);
    exec.env("SHORE_TOKEN", token).env("SHORE_SERVER", world.address());
    let stays = Stays::start(exec, world.dev.home())?;
    let id = token.split('_').nth(1).ok_or("a token has an id")?;
    world.dev.shore(&["token", "revoke", &format!("tok_{id}")])?.ok("token revoke")?;
    stays.is_killed()?;
    stays.said()?.0.refused(1, &["the token was revoked"])?;
    Ok(())
}

#[test]
fn a_client_is_told_that_cell_or_server_went_and_works_with_the_next() -> Result<(), Failure> {
    let mut cluster = Cluster::start(crate::program())?;
    let site = source(cluster.home())?.display().to_string();
    cluster.shore(&["up", &site, "--project", "shop"])?.ok("shore up")?;
    let home = cluster.home().to_owned();
    let stays = Stays::start(cluster.command(&["exec", "shop/web"]), &home)?;
    cluster.kill(Role::Cell)?;
    stays.is_killed()?;
    stays.said()?.0.refused(1, &["the connection to the cell was lost"])?;
    // The instances outlive their agent; the next one lets people in.
    let again = ["exec", "shop/web", "--", "printenv", "SHORE_APP"];
    let away = cluster.shore(&again)?;
    holds(&away.err, &["the instance's cell is not connected"])?;
    cluster.launch(Role::Cell)?;
    let ran = wait_for("the cell", LIMIT, || cluster.shore(&again).ok().filter(|it| it.code == 0));
    assert_eq!(ran?.out, "web\n");
    // A server that stops says so; one that is killed cannot.
    let stays = Stays::start(cluster.command(&["exec", "shop/web"]), &home)?;
    let server = cluster.pid(Role::Server).ok_or("it runs")?.to_string();
    let asked = Command::new("kill").args(["-INT", &server]).status().map_err(told)?;
    assert!(asked.success());
    stays.is_killed()?;
    stays.said()?.0.refused(1, &["the server is stopping"])?;
    cluster.kill(Role::Server)?;
    cluster.launch(Role::Server)?;
    wait_for("the cell", LIMIT, || cluster.shore(&again).ok().filter(|it| it.code == 0))?;
    let stays = Stays::start(cluster.command(&["exec", "shop/web"]), &home)?;
    cluster.kill(Role::Server)?;
    stays.is_killed()?;
    stays.said()?.0.refused(7, &["the server"])?;
    cluster.launch(Role::Server)?;
    cluster.shore(&["destroy", "--yes", "--project", "shop"])?.ok("destroy").map(drop)
}

/// The most memory a process ever held, in KiB.
fn peak(pid: u32) -> Result<u64, Failure> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(told)?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    number.ok_or_else(|| format!("no peak in {text}"))
}

#[tokio::test]
async fn what_is_not_read_waits_where_it_is_made() -> Result<(), Failure> {
    const BYTES: u64 = 96 << 20;
    let world = World::start()?;
    let token = world.dev.token()?.parse().map_err(told)?;
    let client = api::Client::new(api::Endpoint::new(&world.address(), token).map_err(told)?);
    let path = "/v1/projects/shop/apps/web/exec";
    let mut session = client.map_err(told)?.session(path).await.map_err(told)?;
    let done = world.dev.home().join("done");
    let script = format!("head -c {BYTES} /dev/zero; echo > {}", done.display());
    let argv = ["/bin/sh", "-c", &script].map(str::to_owned).into();
    let command = SessionCommand { argv, env: BTreeMap::new(), dir: None, terminal: None };
    let open = OpenSession { credit: SESSION_WINDOW, what: SessionWhat::Exec(command) };
    let pid = world.dev.pid().ok_or("it runs")?;
    let before = peak(pid)?;
    session.sender.send(&FromClient::Open(open)).await.map_err(told)?;
    // As much as was granted comes, and no more. The least piece of standard error has its room.
    let (mut got, mut owed) = (0_u64, 0);
    while owed + 2 * LEAST_COST <= SESSION_WINDOW {
        match session.receiver.next().await.map_err(told)? {
            Some(FromServer::Output(bytes)) => {
                got += bytes.len() as u64;
                owed += cost(bytes.len());
            }
            Some(FromServer::Started(credit)) => assert!(credit > 0),
            other => return Err(format!("unexpected {other:?}")),
        }
    }
    assert!(owed <= SESSION_WINDOW, "{owed}");
    assert!(!done.exists(), "the command waits");
    // From here on everything is read.
    let mut exit = None;
    session.sender.send(&FromClient::Credit(owed)).await.map_err(told)?;
    while exit.is_none() {
        match session.receiver.next().await.map_err(told)? {
            Some(FromServer::Output(bytes)) => {
                got += bytes.len() as u64;
                let credit = FromClient::Credit(cost(bytes.len()));
                session.sender.send(&credit).await.map_err(told)?;
            }
            Some(FromServer::Ended(ended)) => exit = ended.exit,
            other => return Err(format!("unexpected {other:?}")),
        }
    }
    assert_eq!((got, exit), (BYTES, Some(ExitStatus::Code(0))));
    let grown = peak(pid)?.saturating_sub(before);
    assert!(grown < 24 << 10, "server, cell and all grew by {grown} KiB for {BYTES} bytes");
    Ok(())
}
