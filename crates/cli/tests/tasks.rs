//! Tasks that people make, the stream of what changes, and metrics, through the real program.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use testkit::{Alone, Dev, Failure, Page};

/// The program under test.
fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_shore"))
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

/// Sends JSON as the bearer of a token.
fn post(server: &Alone, token: &str, path: &str, body: &str) -> Result<Page, Failure> {
    let length = format!("Content-Length: {}", body.len());
    let headers = [&*bearer(token), "Content-Type: application/json", &length];
    server.call(&format!("POST {path}"), &headers, body.as_bytes())
}

fn get(server: &Alone, token: &str, path: &str) -> Result<Page, Failure> {
    server.call(&format!("GET {path}"), &[&bearer(token)], b"")
}

fn spec() -> Value {
    json!({
        "container": {}, "action": { "action": "run", "argv": ["/bin/true"] },
        "result_file": null, "timeout_ms": 1_000
    })
}

/// What is told of a change: kind, id, operation.
fn changes(page: &Page) -> Vec<(String, String, String)> {
    let data = page.body.lines().filter_map(|line| line.strip_prefix("data: "));
    let changes = data.filter_map(|data| serde_json::from_str::<Value>(data).ok());
    let word = |change: &Value, key: &str| Some(change[key].as_str()?.to_owned());
    let three =
        |change: Value| Some((word(&change, "kind")?, word(&change, "id")?, word(&change, "op")?));
    changes.filter_map(three).collect()
}

#[test]
fn senseless_tasks_are_refused_with_the_fields_name() -> Result<(), Failure> {
    let server = Alone::start(program(), &[])?;
    server.shore(&["project", "create", "shop"])?.ok("project create")?;
    let path = "/v1/projects/shop/tasks";
    let with = |pointer: &str, value: Value| {
        let mut body = json!({ "spec": spec() });
        let (parent, key) = pointer.rsplit_once('/').unwrap_or(("", pointer));
        if let Some(parent) = body.pointer_mut(parent) {
            parent[key] = value;
        }
        body.to_string()
    };
    let deep = format!(
        "{{\"spec\":{{\"container\":{{}},\"timeout_ms\":1,\"result_file\":null,\"action\":{}{}{}}}}}",
        "{\"action\":\"try\",\"inner\":".repeat(10_000),
        "{\"action\":\"run\",\"argv\":[\"x\"]}",
        "}".repeat(10_000)
    );
    let cases = [
        (with("/spec/timeout_ms", json!(-1)), "timeout_ms"),
        (with("/spec/timeout_ms", json!(0)), "timeout_ms"),
        (with("/spec/timeout_ms", json!(u64::MAX)), "timeout_ms"),
        (with("/spec/container/limits", json!({ "memory_mb": 0 })), "memory_mb"),
        (with("/spec/container/limits", json!({ "memory_mb": -5 })), "memory_mb"),
        (with("/spec/container/limits", json!({ "memory_mb": 1_u64 << 40 })), "memory_mb"),
        (with("/spec/container/limits", json!({ "pids": 0 })), "pids"),
        (with("/spec/container/limits", json!({ "pids": -1 })), "pids"),
        (with("/spec/container/driver", json!("warp")), "driver"),
        (with("/spec/container/egress", json!([{ "to": "10.0.0.0/99" }])), "egress"),
        (with("/spec/container/privileged", json!(true)), "privileged"),
        (with("/spec/callback", json!("gopher://example.com/")), "callback"),
        (with("/spec/callback", json!("http://127.0.0.1:8080/done")), "--callback-allow"),
        (with("/spec/callback", json!("http://[fd00::1]/done")), "not a public address"),
        (with("/spec/callback", json!("https://169.254.169.254/")), "not a public address"),
        (with("/spec/result_file", json!("../../etc/passwd")), "result_file"),
        (with("/spec/retry", json!({ "attempts": 1_000_000, "pause_ms": 1 })), "retry attempts"),
        (with("/idempotency_key", json!("x".repeat(300))), "idempotency_key"),
        (deep, "deep"),
    ];
    for (body, word) in cases {
        let page = post(&server, &server.token, path, &body)?;
        let short: String = body.chars().take(200).collect();
        assert_eq!(page.status, 422, "{short}: {}", page.body);
        assert!(page.body.contains(word), "{short}: {}", page.body);
    }
    let body = json!({ "id": model::TaskId(7), "spec": spec() });
    assert_eq!(post(&server, &server.token, path, &body.to_string())?.status, 200);
    assert_eq!(post(&server, &server.token, path, &body.to_string())?.status, 200, "the same");
    let other = json!({ "id": model::TaskId(7), "idempotency_key": "k", "spec": spec() });
    assert_eq!(post(&server, &server.token, path, &other.to_string())?.status, 409);
    let viewer = server.make_token(&["--role", "viewer"])?;
    assert_eq!(post(&server, &viewer, path, &body.to_string())?.status, 403);
    server.shore(&["project", "create", "other"])?.ok("project create")?;
    let stranger = server.make_token(&["--role", "developer", "--project", "other"])?;
    assert_eq!(post(&server, &stranger, path, &body.to_string())?.status, 404);
    let task = format!("/v1/tasks/{}", model::TaskId(7));
    assert_eq!(get(&server, &stranger, &task)?.status, 404);
    assert_eq!(get(&server, &stranger, "/v1/tasks")?.body, "[]");
    assert_eq!(get(&server, &server.token, "/v1/tasks?project=other")?.body, "[]");
    let of_shop = get(&server, &server.token, "/v1/tasks?project=shop")?.body;
    assert!(of_shop.contains(&model::TaskId(7).to_string()), "{of_shop}");
    let secret = "/v1/projects/shop/callback-secret";
    let developer = server.make_token(&["--role", "developer"])?;
    assert_eq!(get(&server, &developer, secret)?.status, 403);
    assert!(get(&server, &server.token, secret)?.body.contains("secret"));
    Ok(())
}

#[test]
fn a_list_and_the_events_after_it_tell_everything_one_may_see() -> Result<(), Failure> {
    let server = Alone::start(program(), &[])?;
    for name in ["mine", "theirs"] {
        server.shore(&["project", "create", name])?.ok("project create")?;
    }
    let viewer = server.make_token(&["--role", "viewer", "--project", "mine"])?;
    let list = get(&server, &viewer, "/v1/tasks")?;
    let revision = list.header("shore-revision").ok_or("the list has no revision")?.to_owned();
    for (number, project) in [(1, "mine"), (2, "theirs")] {
        let body = json!({ "id": model::TaskId(number), "spec": spec() }).to_string();
        post(&server, &server.token, &format!("/v1/projects/{project}/tasks"), &body)?;
        let task = format!("DELETE /v1/tasks/{}", model::TaskId(number));
        assert_eq!(server.call(&task, &[&bearer(&server.token)], b"")?.status, 200);
    }
    let after = format!("/v1/events?follow=false&after={revision}");
    let (mine, theirs) = (model::TaskId(1).to_string(), model::TaskId(2).to_string());
    let seen = changes(&get(&server, &viewer, &after)?);
    assert!(seen.iter().any(|(kind, id, _)| (&**kind, id) == ("task", &mine)), "{seen:?}");
    assert!(!seen.iter().any(|(_, id, _)| *id == theirs), "{seen:?}");
    assert!(!seen.iter().any(|(kind, ..)| kind == "token"), "{seen:?}");
    let all = changes(&get(&server, &server.token, &after)?);
    assert!(all.iter().any(|(_, id, _)| *id == theirs), "{all:?}");
    let some = get(&server, &server.token, &format!("{after}&kind=app,job"))?;
    assert!(changes(&some).is_empty(), "{}", some.body);
    assert_eq!(get(&server, &viewer, "/v1/events?project=theirs")?.status, 404);
    assert_eq!(get(&server, &viewer, "/v1/events?kind=nonsense")?.status, 422);
    let long_ago = get(&server, &viewer, "/v1/events?follow=false&after=1")?;
    assert!(long_ago.body.contains("event: resync"), "{}", long_ago.body);
    let shown = server.shore(&["events", "--kind", "task"])?.ok("events")?;
    assert!(shown.contains(&mine) && shown.contains("cancelled"), "{shown}");
    Ok(())
}

#[test]
fn metrics_are_for_those_who_may_look() -> Result<(), Failure> {
    let server = Alone::start(program(), &[])?;
    server.shore(&["project", "create", "shop"])?.ok("project create")?;
    let viewer = server.make_token(&["--role", "viewer"])?;
    let limited = server.make_token(&["--role", "viewer", "--project", "shop"])?;
    let body = json!({ "spec": spec() }).to_string();
    post(&server, &server.token, "/v1/projects/shop/tasks", &body)?;
    assert_eq!(server.call("GET /metrics", &[], b"")?.status, 401);
    assert_eq!(get(&server, &limited, "/metrics")?.status, 403);
    let page = get(&server, &viewer, "/metrics")?;
    assert_eq!(page.status, 200, "{}", page.body);
    for line in [
        "shore_tasks{state=\"pending\"} 1",
        "shore_cells{state=\"connected\"} 0",
        "# TYPE shore_commit_seconds histogram",
        "shore_auction_failed_total",
        "process_resident_memory_bytes",
    ] {
        assert!(page.body.contains(line), "{line}: {}", page.body);
    }
    let open = Alone::start(program(), &["--metrics-open"])?;
    assert_eq!(open.call("GET /metrics", &[], b"")?.status, 200);
    Ok(())
}

#[test]
fn a_task_that_waits_says_why() -> Result<(), Failure> {
    let server = Alone::start(program(), &[])?;
    server.shore(&["project", "create", "shop"])?.ok("project create")?;
    let mut run = server.command(&["task", "run", "-p", "shop", "--", "/bin/true"]);
    let mut run = run.stderr(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
    let mut said = String::new();
    let err = run.stderr.take().ok_or("it has standard error")?;
    // There is no cell, so this is the only line that comes.
    BufReader::new(err).read_line(&mut said).map_err(|error| error.to_string())?;
    run.kill().map_err(|error| error.to_string())?;
    run.wait().map_err(|error| error.to_string())?;
    assert!(said.starts_with("task ") && said.contains("waits for a cell: no cell"), "{said}");
    Ok(())
}

#[test]
fn a_task_runs_and_one_that_fails_is_tried_again() -> Result<(), Failure> {
    let dev = Dev::start(program())?;
    dev.shore(&["project", "create", "shop"])?.ok("project create")?;
    let run = ["task", "run", "-p", "shop"];
    let done = dev.shore(&[&run[..], &["--", "/bin/echo", "hello"]].concat())?;
    assert!(done.out == "hello\n" && done.err.contains("succeeded"), "{done:?}");
    let tried = ["--attempts", "2", "--retry-pause", "1", "--", "/bin/false"];
    let failed = dev.shore(&[&run[..], &tried].concat())?;
    assert_eq!(failed.code, 1);
    assert!(failed.err.contains("attempt 2 of 2 follows"), "{}", failed.err);
    let list = dev.shore(&["task", "list"])?.ok("task list")?;
    assert!(list.contains("2/2") && list.contains("1/2"), "{list}");
    Ok(())
}

#[test]
fn a_large_result_that_is_no_text_can_be_read_also_after_a_crash() -> Result<(), Failure> {
    let mut dev = Dev::start(program())?;
    dev.shore(&["project", "create", "shop"])?.ok("project create")?;
    let script =
        "head -c 5242880 /dev/urandom > \"$SHORE_ROOT/out\"; sha256sum < \"$SHORE_ROOT/out\"";
    let run = |words: &[&str]| -> Result<(String, Value), Failure> {
        let said = dev.shore(&[&["task", "run", "-p", "shop", "--json"], words].concat())?;
        let said = said.ok("task run")?;
        let task = said.lines().last().ok_or("nothing was said")?;
        let task = serde_json::from_str(task).map_err(|error| error.to_string())?;
        Ok((said, task))
    };
    let keep = ["--result-file", "/out", "--", "/bin/sh", "-c"];
    let (said, task) = run(&[&keep[..], &[script]].concat())?;
    let (_, short) = run(&[&keep[..], &["printf text > \"$SHORE_ROOT/out\""]].concat())?;
    let (_, none) = run(&["--", "/bin/true"])?;
    let digest = task["artifact"].as_str().ok_or_else(|| format!("no artifact: {task}"))?;
    assert_eq!(task["result"], Value::Null);
    let wrote = said.contains(digest.trim_start_matches("sha256:"));
    assert!(wrote, "the task wrote something else: {said}");
    let id = task["id"].as_str().ok_or("no id")?.to_owned();
    let file = dev.home().join("out").display().to_string();
    let read = |dev: &Dev| -> Result<(), Failure> {
        dev.shore(&["task", "result", &id, "-o", &file])?.ok("task result")?;
        let bytes = std::fs::read(&file).map_err(|error| error.to_string())?;
        assert_eq!((bytes.len(), model::Digest::of(&bytes).to_string()), (5 << 20, digest.into()));
        Ok(())
    };
    read(&dev)?;
    dev.kill()?;
    dev.launch()?;
    read(&dev)?;
    assert_eq!((&short["result"], &short["artifact"]), (&"text".into(), &Value::Null));
    let short = dev.shore(&["task", "result", short["id"].as_str().unwrap_or_default()])?;
    assert_eq!(short.ok("task result")?, "text");
    let none = dev.shore(&["task", "result", none["id"].as_str().unwrap_or_default()])?;
    let none = none.failed("there is none")?;
    assert!(none.contains("left no result") && none.contains("--result-file"), "{none}");
    Ok(())
}
