//! What people rely on every day: who may read what, whose rights a command has, what a push deploys.
//! Everything here drives the real program.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use testkit::{Alone, Dev, Failure, Ran, Repo};

/// The program under test.
fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_shore"))
}

/// An error of the system as a failure.
fn told(error: impl std::fmt::Display) -> Failure {
    error.to_string()
}

/// Every word is in what was said.
fn holds(said: &str, words: &[&str]) -> Result<(), Failure> {
    match words.iter().find(|word| !said.contains(**word)) {
        None => Ok(()),
        Some(word) => Err(format!("`{word}` is missing in:\n{said}")),
    }
}

/// Runs `shore ARGS` with variables.
fn with(server: &Alone, vars: &[(&str, &str)], args: &[&str]) -> Result<Ran, Failure> {
    let output = server.command(args).envs(vars.iter().copied()).output().map_err(told)?;
    Ok(Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

#[test]
fn a_token_of_the_environment_has_its_own_rights() -> Result<(), Failure> {
    let server = Alone::start(program(), &[])?;
    let viewer = server.make_token(&["--role", "viewer"])?;
    let url = format!("http://127.0.0.1:{}", server.port);
    let create = ["project", "create", "shop"];
    let denied = with(&server, &[("SHORE_TOKEN", &viewer)], &create)?.failed("a viewer")?;
    holds(&denied, &["a viewer token may not change apps"])?;
    // The context's name in the environment chooses the address only.
    let vars = [("SHORE_TOKEN", viewer.as_str()), ("SHORE_CONTEXT", "alone")];
    with(&server, &vars, &create)?.failed("a viewer of a context")?;
    with(&server, &vars, &["project", "list"])?.ok("a viewer may look")?;
    // Named on the command line, it is the context that counts.
    let typed = [&create[..], &["--context", "alone"]].concat();
    with(&server, &vars, &typed)?.ok("the context's token")?;
    // Without a context, both together are enough, and one alone is not.
    let empty = server.home().join("empty").display().to_string();
    let bare = ("XDG_CONFIG_HOME", empty.as_str());
    let list = ["project", "list"];
    let both = [bare, ("SHORE_SERVER", &url), ("SHORE_TOKEN", &viewer)];
    holds(&with(&server, &both, &list)?.ok("both")?, &["shop"])?;
    let said = with(&server, &[bare, ("SHORE_TOKEN", &viewer)], &list)?.failed("no address")?;
    holds(&said, &["cannot use SHORE_TOKEN", "set SHORE_SERVER"])?;
    let said = with(&server, &[bare, ("SHORE_SERVER", &url)], &list)?.failed("no token")?;
    holds(&said, &["cannot use SHORE_SERVER", "set SHORE_TOKEN"])
}

/// After `destroy` there is a way back, and after `app remove --yes` there is none.
fn an_app_goes_when_it_is_confirmed(dev: &Dev) -> Result<(), Failure> {
    let app = ["--project", "shop", "--app", "admin"];
    let run = |words: &[&str]| dev.shore(&[words, &app[..]].concat());
    run(&["destroy", "--yes"])?.ok("destroy")?;
    let said = run(&["rollback"])?.failed("nothing is released")?;
    holds(&said, &["nothing is released", "`shore release 1` brings it back"])?;
    run(&["release", "1"])?.ok("the hint works")?;
    run(&["destroy", "--yes"])?.ok("destroy again")?;
    let said = run(&["app", "remove"])?.failed("not confirmed")?;
    holds(&said, &["removes shop/admin with its history", "say `--yes`"])?;
    // `destroy` waited until nothing runs.
    run(&["app", "remove", "--yes"])?.ok("app remove").map(drop)
}

/// The directory can be entered by its owner only.
fn private(dir: &Path) -> Result<(), Failure> {
    let mode = std::fs::metadata(dir).map_err(told)?.permissions().mode() & 0o777;
    if mode == 0o700 { Ok(()) } else { Err(format!("{} is {mode:o}", dir.display())) }
}

#[test]
fn the_same_commit_pushed_to_two_apps_deploys_both() -> Result<(), Failure> {
    let dev = Dev::start(program())?;
    for part in ["server", "runner", "cell", "router"] {
        private(&dev.data().join(part))?;
    }
    let public = Repo::public_key(&dev, "owner")?;
    dev.shore(&["key", "add", &public.display().to_string()])?.ok("key add")?;
    dev.shore(&["project", "create", "shop"])?.ok("project create")?;
    let examples = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let repo = Repo::new(&dev, "shop", &examples.join("static-site"), "owner")?;
    repo.push()?.ok("a push to the default app")?;
    repo.point_to(&format!("ssh://git@127.0.0.1:{}/shop/admin", dev.ports.ssh))?;
    repo.push()?.ok("the same commit to another app")?;
    for host in ["web.shop.localhost", "admin.shop.localhost"] {
        let page = testkit::get(dev.ports.http, host, "/").map_err(told)?;
        if page.status != 200 {
            return Err(format!("{host}: {page:?}"));
        }
    }
    an_app_goes_when_it_is_confirmed(&dev)?;
    Ok(())
}

#[test]
fn a_log_that_is_no_terminal_has_no_colours() -> Result<(), Failure> {
    let server = Alone::start(program(), &[])?;
    let url = format!("http://127.0.0.1:{}", server.port);
    let args = ["router", "--log", "debug", "--listen", "127.0.0.1:0", "--server", &url];
    let mut command = server.command(&args);
    command.args(["--token", &server.token]).env_remove("NO_COLOR");
    let said = command.output().map_err(told)?.stderr;
    let said = String::from_utf8_lossy(&said);
    holds(&said, &["DEBUG", "the server refused this router"])?;
    if said.contains('\u{1b}') { Err(format!("this has colours:\n{said}")) } else { Ok(()) }
}

#[test]
fn every_command_answers_with_an_object() -> Result<(), Failure> {
    let server = Alone::start(program(), &[])?;
    let token = server.make_token(&["--role", "viewer"])?;
    let id = format!("tok_{}", token.split('_').nth(1).ok_or("a token has an id")?);
    server.shore(&["project", "create", "shop"])?.ok("project create")?;
    let run = ["task", "run", "-p", "shop", "-d", "--", "/bin/true"];
    let task = server.shore(&run)?.ok("task run")?.trim().to_owned();
    for (words, key, value) in [
        (&["task", "cancel", &task][..], "id", &*task),
        (&["token", "revoke", &id], "token", &id),
        (&["project", "remove", "shop", "--yes"], "project", "shop"),
        (&["context", "use", "alone"], "context", "alone"),
    ] {
        let said = server.shore(&[words, &["--json"]].concat())?.ok("answers")?;
        let said: serde_json::Value = serde_json::from_str(&said).map_err(told)?;
        assert_eq!(said[key], value, "{words:?}: {said}");
    }
    for words in [&["scale", "--json", "web"][..], &["--json", "nonsense"], &["job", "--json"]] {
        let ran = server.shore(words)?;
        assert_eq!((ran.code, &*ran.out), (2, ""), "{words:?}");
        let said: serde_json::Value = serde_json::from_str(&ran.err).map_err(told)?;
        assert_eq!(said["error"]["kind"], "usage", "{words:?}: {said}");
    }
    Ok(())
}

#[test]
fn what_has_ended_is_not_cancelled_and_an_address_has_a_scheme() -> Result<(), Failure> {
    let server = Alone::start(program(), &[])?;
    server.shore(&["project", "create", "shop"])?.ok("project create")?;
    let body = br#"{"project":"shop","operation":{"op":"noop"}}"#;
    let bearer = format!("Authorization: Bearer {}", server.token);
    let length = format!("Content-Length: {}", body.len());
    let headers = [&*bearer, "Content-Type: application/json", &length];
    let job = server.call("POST /v1/jobs", &headers, body)?.body;
    let job: serde_json::Value = serde_json::from_str(&job).map_err(told)?;
    let id = job["id"].as_str().ok_or_else(|| format!("no job: {job}"))?;
    // No runner has it, so it ends at once.
    server.shore(&["job", "cancel", id])?.ok("job cancel")?;
    let again = server.shore(&["job", "cancel", id])?;
    assert_eq!(again.code, 5, "{again:?}");
    holds(&again.err, &["it has ended already", "it is cancelled"])?;
    let bare = format!("127.0.0.1:{}", server.port);
    for vars in [&[("SHORE_SERVER", &*bare)][..], &[("SHORE_SERVER", &bare), ("SHORE_TOKEN", "x")]]
    {
        let said = with(&server, vars, &["project", "list"])?.failed("no scheme")?;
        holds(&said, &["cannot use SHORE_SERVER", "http:// or https://", &bare])?;
    }
    Ok(())
}
