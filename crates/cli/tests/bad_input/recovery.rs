//! Ways back: to a server that moved to TLS, to one whose tokens are lost, to jobs of long ago, and
//! what is said of an app that no router serves.

use std::time::Duration;

use model::{JobId, ProjectId};
use state::{JOB_HISTORY, MAX_FINISHED_JOBS, history_key};
use store::sqlite::SqliteStore;
use store::{Batch, HistoryEntry, HistoryQuery, Kind, Store as _};
use testkit::{Alone, Cluster, Dev, Failure, Role, wait_for};

use crate::{holds, program, refused, told};

/// How long a change may take to be seen.
const LIMIT: Duration = Duration::from_secs(20);
const JOBS: Kind = Kind::new(JOB_HISTORY);

#[test]
fn tokens_made_on_loopback_work_after_the_move_to_tls() -> Result<(), Failure> {
    let mut server = Alone::start(program(), &[])?;
    let developer = server.make_token(&["--role", "developer"])?;
    server.stop()?;
    let listen = format!("0.0.0.0:{}", server.port);
    server.start_again(&["--listen", &listen, "--name", "127.0.0.1"])?;
    // The old context says what is wrong with it.
    let old = server.shore(&["project", "list"])?;
    refused(old, 6, &["this server speaks TLS", "hint: use https://"])?;
    let url = format!("https://127.0.0.1:{}", server.port);
    server.use_server(&url)?.ok("the first token over TLS")?;
    server.shore(&["project", "create", "moved"])?.ok("project create")?;
    let set = ["context", "set", "dev", "--server", &url, "--token", &developer];
    server.shore(&set)?.ok("another token over TLS")?;
    // A token from before there was an authority cannot know it.
    let bare: Vec<&str> = developer.split('_').take(3).collect();
    let set = ["context", "set", "old", "--server", &url, "--token", &bare.join("_")];
    let words = ["names no certificate authority", "shore token create --data DIR"];
    refused(server.shore(&set)?, 6, &words)
}

#[test]
fn who_lost_every_token_makes_one_in_the_data_of_a_stopped_server() -> Result<(), Failure> {
    let mut server = Alone::start(program(), &[])?;
    let data = server.data().display().to_string();
    let create = ["token", "create", "--role", "admin", "--data", &data];
    let running = format!("in use by process {}", server.pid()?);
    refused(server.shore(&create)?, 7, &[&running, "hint: stop the other process"])?;
    let nowhere = ["token", "create", "--data", "/nowhere"];
    refused(server.shore(&nowhere)?, 3, &["no server's data in /nowhere", "store.db"])?;
    server.stop()?;
    server.token = server.shore(&create)?.ok("token create --data")?.trim().to_owned();
    server.start_again(&["--listen", &format!("127.0.0.1:{}", server.port)])?;
    server.use_server(&format!("http://127.0.0.1:{}", server.port))?.ok("the new token")?;
    server.shore(&["token", "list"])?.ok("it is an administrator's").map(|_| ())
}

/// Lets so many other jobs end after the one that is there that the server does not hold it in memory.
fn bury(dev: &Dev, job: &str) -> Result<(), Failure> {
    let store = SqliteStore::open(&dev.data().join("server/store.db")).map_err(told)?;
    let epoch = store.acquire("embedded", 0, 1).map_err(told)?;
    let found = store.query_history(&HistoryQuery::newest(JOBS, 1)).map_err(told)?;
    let body = found.into_iter().next().map(|row| row.body).ok_or("no job has ended")?;
    let body = String::from_utf8(body).map_err(told)?;
    let row: serde_json::Value = serde_json::from_str(&body).map_err(told)?;
    let project = row["spec"]["project"].as_str().ok_or("a job has a project")?;
    let other = |number: usize| {
        let id = JobId(number as u128);
        let body = body.replace(job, &id.to_string());
        let body = body.replace(project, &ProjectId(1).to_string()).into_bytes();
        HistoryEntry { kind: JOBS, key: history_key(id.0), at_ms: 1, body }
    };
    let histories = (1..=MAX_FINISHED_JOBS).map(other).collect();
    store.commit(epoch, vec![Batch { records: Vec::new(), histories }]).map_err(told)
}

#[test]
fn a_job_of_long_ago_is_shown_with_its_log() -> Result<(), Failure> {
    let mut dev = Dev::start(program())?;
    let dir = dev.home().join("letters");
    std::fs::create_dir(&dir).map_err(told)?;
    std::fs::write(dir.join("letter.txt"), "Dear reader").map_err(told)?;
    let up = ["up", &dir.display().to_string()];
    dev.shore(&up)?.failed("nothing to build")?;
    let first = dev.json(&["job", "list"])?["id"].as_str().unwrap_or_default().to_owned();
    let shown = |dev: &Dev| dev.json(&["job", "show", &first]);
    let before = shown(&dev)?;
    let log = dev.shore(&["job", "attach", &first])?.failed("job attach")?;
    dev.stop()?;
    bury(&dev, &first)?;
    dev.launch()?;
    dev.shore(&up)?.failed("nothing to build")?;
    if shown(&dev)? != before {
        return Err(format!("it was {before}, and is {}", shown(&dev)?));
    }
    let again = dev.shore(&["job", "attach", &first])?.failed("job attach")?;
    holds(&again, &["no buildpack matches this source", "failed"])?;
    if again != log {
        return Err(format!("its log was\n{log}\nand is\n{again}"));
    }
    let list = |args: &[&str]| -> Result<bool, Failure> {
        let out = dev.shore(&[&["job", "list", "--json"], args].concat())?.ok("job list")?;
        Ok(out.contains(&first))
    };
    let project = ["--project", "letters", "--state", "failed"];
    // The newest are others; who asks for its project or its state finds it behind all of them.
    let found = [list(&project)?, list(&[])?, list(&["--state", "queued"])?];
    if found != [true, false, false] {
        return Err(format!("the lists are wrong: {found:?}"));
    }
    Ok(())
}

#[test]
fn an_app_has_a_url_only_while_a_router_is_connected() -> Result<(), Failure> {
    let mut cluster = Cluster::start(program())?;
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/static-site");
    cluster.shore(&["up", examples])?.ok("shore up")?;
    let status = ["status", "--project", "static-site"];
    let url = cluster.json(&status)?["url"].as_str().unwrap_or_default().to_owned();
    let wanted = format!("http://web.static-site.localhost:{}", cluster.ports.http);
    if url != wanted {
        return Err(format!("the URL is {url:?}, not {wanted:?}"));
    }
    cluster.kill(Role::Router)?;
    cluster.kill(Role::OtherRouter)?;
    wait_for("the URL to go", LIMIT, || {
        cluster.json(&status).ok().filter(|it| it["url"].is_null())
    })?;
    holds(&cluster.shore(&status)?.ok("status")?, &["no router is connected", "shore router"])?;
    cluster.launch(Role::Router)?;
    wait_for("the URL to come back", LIMIT, || {
        cluster.json(&status).ok().filter(|it| it["url"] == wanted.as_str())
    })
    .map(|_| ())
}
