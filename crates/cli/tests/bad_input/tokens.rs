//! Tokens that let nobody in, or not here.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use testkit::{Alone, Failure, wait_for};

use crate::{holds, program, refused, told};

/// How long a component may take to come or to go.
const LIMIT: Duration = Duration::from_secs(20);

/// A token that does not work, and what is said about it.
struct Bad {
    token: String,
    said: &'static str,
}

/// Tokens for `role`, each bad in another way.
fn bad(server: &Alone, role: &str) -> Result<[Bad; 4], Failure> {
    let expired = server.make_token(&["--role", role, "--hours", "0"])?;
    let revoked = server.make_token(&["--role", role])?;
    let id = revoked.split('_').nth(1).ok_or("a token has an id")?;
    server.shore(&["token", "revoke", &format!("tok_{id}")])?.ok("token revoke")?;
    // The same token with another secret.
    let good = server.make_token(&["--role", role])?;
    let mut parts: Vec<&str> = good.split('_').collect();
    let other = "0".repeat(64);
    parts[2] = &other;
    Ok([
        Bad { token: expired, said: "the token has expired" },
        Bad { token: revoked, said: "the token was revoked" },
        Bad { token: parts.join("_"), said: "this server does not know the token" },
        Bad { token: format!("{good}x"), said: "no token: `shore_<id>_<secret>` is wanted" },
    ])
}

#[test]
fn people_are_told_why_their_token_does_not_work() -> Result<(), Failure> {
    let server = Alone::start(program(), &[])?;
    server.shore(&["project", "create", "mine"])?.ok("project create")?;
    server.shore(&["project", "create", "other"])?.ok("project create")?;
    let call = |line: &str, token: &str| {
        server.call(line, &[&format!("Authorization: Bearer {token}"), "Content-Length: 0"], b"")
    };
    for bad in bad(&server, "developer")? {
        let page = call("GET /v1/info", &bad.token)?;
        holds(&page.body, &[bad.said, "\"hint\":\""])?;
        if page.status != 401 {
            return Err(format!("{} was answered with {}", bad.said, page.status));
        }
        let url = format!("http://127.0.0.1:{}", server.port);
        let set = ["context", "set", "bad", "--server", &url, "--token", &bad.token];
        let code = if bad.said.starts_with("no token") { 6 } else { 4 };
        refused(server.shore(&set)?, code, &[bad.said, "hint: "])?;
    }
    let page = server.call("GET /v1/info", &[], b"")?;
    holds(&page.body, &["none was sent", "Authorization: Bearer"])?;
    // A token of another role or project.
    let viewer = server.make_token(&["--role", "viewer"])?;
    let limited = server.make_token(&["--role", "developer", "--project", "mine"])?;
    let runner = server.make_token(&["--role", "runner"])?;
    let cases: [(&str, &str, u16, &str); 5] = [
        ("DELETE /v1/projects/mine", &viewer, 403, "a viewer token may not change apps"),
        ("GET /v1/tokens", &viewer, 403, "may not administer the server"),
        ("GET /v1/tokens", &limited, 403, "limited to one project may not administer"),
        ("DELETE /v1/projects/mine", &runner, 403, "a runner token may not change apps"),
        // To a token of another project it does not even exist.
        ("DELETE /v1/projects/other", &limited, 404, "there is no project other"),
    ];
    for (line, token, status, said) in cases {
        let page = call(line, token)?;
        holds(&page.body, &[said, "\"hint\":\""]).map_err(|it| format!("{line}: {it}"))?;
        if page.status != status {
            return Err(format!("{line} was answered with {}, not {status}", page.status));
        }
    }
    let all = server.shore(&["project", "list"])?.ok("project list")?;
    holds(&all, &["mine", "other"])
}

/// A component, started with a token.
fn component(server: &Alone, role: &str, token: &str) -> Result<Child, Failure> {
    let mut command = server.command(&[role, "--log", "error"]);
    let url = format!("http://127.0.0.1:{}", server.port);
    command.env("SHORE_SERVER", url).env("SHORE_TOKEN", token);
    if role == "router" {
        command.args(["--listen", "127.0.0.1:0"]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().map_err(told)
}

/// Waits until a component ended by itself; its exit code and what it said.
fn ended(mut child: Child) -> Result<(Option<i32>, String), Failure> {
    let status = wait_for("a component to end", LIMIT, || child.try_wait().ok().flatten());
    if status.is_err() {
        child.kill().map_err(told)?;
    }
    let output = child.wait_with_output().map_err(told)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    status.map_err(|late| format!("{late}:\n{said}")).map(|status| (status.code(), said))
}

#[test]
fn components_are_told_why_their_token_does_not_work() -> Result<(), Failure> {
    let server = Alone::start(program(), &[])?;
    for role in ["runner", "cell", "router"] {
        let make = format!("shore token create --role {role}");
        let wrong = Bad { token: server.token.clone(), said: "for the role admin, not" };
        for bad in bad(&server, role)?.into_iter().chain([wrong]) {
            let (code, said) = ended(component(&server, role, &bad.token)?)?;
            holds(&said, &[role, bad.said, &make]).map_err(|it| format!("{role}: {it}"))?;
            let wanted = if bad.said.starts_with("no token") { 6 } else { 4 };
            if code != Some(wanted) {
                return Err(format!("{role} ended with {code:?}, not {wanted}:\n{said}"));
            }
        }
    }
    server.shore(&["project", "list"])?.ok("the server goes on").map(|_| ())
}

#[test]
fn a_component_that_cannot_join_says_why_once() -> Result<(), Failure> {
    let home = tempfile::tempdir().map_err(told)?;
    let port = testkit::Ports::free()?.api;
    let token = format!("shore_01m7ymd78kq9tv2gfy4gv626qj_{}", "0".repeat(64));
    for role in ["runner", "cell", "router"] {
        let mut command = Command::new(program());
        command.arg(role).args(["--server", &format!("http://127.0.0.1:{port}")]);
        command.args(["--token", &token, "--data"]).arg(home.path().join(role));
        if role == "router" {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(told)?;
        let err = child.stderr.take().ok_or("it has standard error")?;
        // A cell says first that it isolates nothing.
        let mut lines = BufReader::new(err).lines().map_while(Result::ok);
        let said = lines.find(|line| line.contains("cannot reach")).unwrap_or_default();
        child.kill().map_err(told)?;
        child.wait().map_err(told)?;
        let sentence =
            format!("cannot reach http://127.0.0.1:{port}: connection refused; trying again");
        holds(&said, &["WARN", &sentence]).map_err(|it| format!("{role}: {it}"))?;
    }
    Ok(())
}

#[test]
fn a_token_that_is_revoked_ends_the_stream_it_opened() -> Result<(), Failure> {
    let server = Alone::start(program(), &[])?;
    let token = server.make_token(&["--role", "runner"])?;
    let runner = component(&server, "runner", &token)?;
    let admin = format!("Authorization: Bearer {}", server.token);
    wait_for("the runner to join", LIMIT, || {
        let page = server.call("GET /v1/runners", &[&admin], b"").ok()?;
        page.body.contains("\"online\":true").then_some(())
    })?;
    let id = token.split('_').nth(1).ok_or("a token has an id")?;
    server.shore(&["token", "revoke", &format!("tok_{id}")])?.ok("token revoke")?;
    let (code, said) = ended(runner)?;
    holds(&said, &["the server refused this runner", "the token was revoked"])?;
    if code == Some(4) { Ok(()) } else { Err(format!("it ended with {code:?}:\n{said}")) }
}

/// A runner whose job is the work of its token only, and whose place no other token takes.
#[test]
fn a_runner_belongs_to_the_token_it_joined_with() -> Result<(), Failure> {
    let server = Alone::start(program(), &[])?;
    server.shore(&["project", "create", "shop"])?.ok("project create")?;
    let (own, other) =
        (server.make_token(&["--role", "runner"])?, server.make_token(&["--role", "runner"])?);
    let admin = format!("Authorization: Bearer {}", server.token);
    let joined = || {
        let page = server.call("GET /v1/runners", &[&admin], b"").ok()?;
        page.body.contains("\"online\":true").then_some(())
    };
    let post = |path: &str, token: &str, body: &str| {
        let bearer = format!("Authorization: Bearer {token}");
        let length = format!("Content-Length: {}", body.len());
        let headers = [&*bearer, "Content-Type: application/json", &length];
        server.call(&format!("POST {path}"), &headers, body.as_bytes())
    };
    let mut runner = component(&server, "runner", &own)?;
    wait_for("the runner to join", LIMIT, joined)?;
    let kept = server.home().join("data/longshore/runner/token");
    wait_for("the token to be kept", LIMIT, || kept.exists().then_some(()))?;
    // It stands still, so it has the job for as long as this takes.
    let signal = |name: &str, child: &Child| {
        Command::new("kill").args([name, &child.id().to_string()]).status().map_err(told)
    };
    signal("-STOP", &runner)?;
    let job = r#"{"project":"shop","operation":{"op":"noop"}}"#;
    let job = post("/v1/jobs", &server.token, job)?.body;
    let job: serde_json::Value = serde_json::from_str(&job).map_err(told)?;
    let id = job["id"].as_str().ok_or_else(|| format!("no job: {job}"))?;
    wait_for("the job to be offered", LIMIT, || {
        let page = server.call(&format!("GET /v1/jobs/{id}"), &[&admin], b"").ok()?;
        page.body.contains("\"waiting\"").then_some(())
    })?;
    let attempt = format!(r#"{{"job":"{id}","epoch":1}}"#);
    let page = post("/v1/destroy", &other, &attempt)?;
    holds(&page.body, &["the work of a runner with another token"])?;
    assert_eq!(page.status, 403, "{}", page.body);
    let page = post("/v1/destroy", &own, &attempt)?;
    assert_ne!(page.status, 403, "it is its own: {}", page.body);
    runner.kill().map_err(told)?;
    runner.wait().map_err(told)?;
    let (_, said) = ended(component(&server, "runner", &other)?)?;
    holds(&said, &["belongs to another token", "revoke that one", "a directory of its own"])?;
    holds(&said, &["start it without a new one", "it keeps its own token in"])?;
    let id = own.split('_').nth(1).ok_or("a token has an id")?;
    server.shore(&["token", "revoke", &format!("tok_{id}")])?.ok("token revoke")?;
    let mut second = component(&server, "runner", &other)?;
    let taken = wait_for("the second runner to join", LIMIT, joined);
    second.kill().map_err(told)?;
    second.wait().map_err(told)?;
    taken
}

/// Starts a component; what it says once it is ready.
fn starts(
    server: &Alone,
    role: &str,
    data: &Path,
    token: Option<&str>,
) -> Result<(Child, String), Failure> {
    let url = format!("http://127.0.0.1:{}", server.port);
    let mut command = server.command(&[role, "--server", &url]);
    command.arg("--data").arg(data).envs(token.map(|token| ("SHORE_TOKEN", token)));
    match role {
        "router" => drop(command.args(["--listen", "127.0.0.1:0"])),
        "cell" => drop(command.args(["--driver", "process"])),
        _ => {}
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(told)?;
    let mut said = String::new();
    let out = child.stdout.take().ok_or("it has standard output")?;
    BufReader::new(out).read_line(&mut said).map_err(told)?;
    Ok((child, said))
}

#[test]
fn a_component_keeps_the_token_it_joined_with() -> Result<(), Failure> {
    let server = Alone::start(program(), &[])?;
    for role in ["runner", "cell", "router"] {
        let data = server.home().join(format!("own-{role}"));
        let mut command = server.command(&[role, "--data"]);
        let none = command.arg(&data).output().map_err(told)?;
        let said = String::from_utf8_lossy(&none.stderr);
        holds(&said, &["no token is given or kept in", &format!("token create --role {role}")])?;
        assert_eq!(none.status.code(), Some(2), "{said}");
        let token = server.make_token(&["--role", role])?;
        let kept = data.join("token");
        let (mut child, said) = starts(&server, role, &data, Some(&token))?;
        let waited = wait_for("the token to be kept", LIMIT, || {
            (std::fs::read_to_string(&kept).ok()? == token).then_some(())
        });
        child.kill().map_err(told)?;
        child.wait().map_err(told)?;
        waited.map_err(|late| format!("{late}: {said}"))?;
        assert_eq!(std::fs::metadata(&kept).map_err(told)?.permissions().mode() & 0o777, 0o600);
        let (mut child, said) = starts(&server, role, &data, None)?;
        child.kill().map_err(told)?;
        child.wait().map_err(told)?;
        holds(&said, &["ready"]).map_err(|it| format!("{role} without a token: {it}"))?;
    }
    Ok(())
}

#[test]
fn a_token_that_is_revoked_follows_nothing_more() -> Result<(), Failure> {
    let server = Alone::start(program(), &[])?;
    server.shore(&["project", "create", "shop"])?.ok("project create")?;
    let admin = format!("Authorization: Bearer {}", server.token);
    let json = "Content-Type: application/json";
    let body = br#"{"name":"web"}"#;
    let length = format!("Content-Length: {}", body.len());
    server.call("POST /v1/projects/shop/apps", &[&admin, json, &length], body)?;
    let token = server.make_token(&["--role", "viewer"])?;
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).map_err(told)?;
    // Shorter than the time between two signs of life of a stream that goes on.
    stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(told)?;
    let head = format!(
        "GET /v1/projects/shop/apps/web/logs HTTP/1.1\r\nHost: alone\r\nConnection: close\r\n\
         Authorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).map_err(told)?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).map_err(told)?;
    if answer != *b"HTTP/1.1 200" {
        return Err(format!("it is answered with {}", String::from_utf8_lossy(&answer)));
    }
    let id = token.split('_').nth(1).ok_or("a token has an id")?;
    server.shore(&["token", "revoke", &format!("tok_{id}")])?.ok("token revoke")?;
    let mut rest = Vec::new();
    let ended = stream.read_to_end(&mut rest);
    ended.map(|_| ()).map_err(|error| format!("the stream goes on: {error}"))
}
