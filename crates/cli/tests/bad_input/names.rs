//! Names that are not allowed, and names of things that are not there.

use testkit::{Alone, Failure};

use crate::{holds, program, refused};

const NO_JOB: &str = "job_01m7ymd78kq9tv2gfy4gv626qj";
const NO_DEPLOYMENT: &str = "dpl_01m7ymd78kq9tv2gfy4gv626qj";

fn server() -> Result<Alone, Failure> {
    let server = Alone::start(program(), &[])?;
    server.shore(&["project", "create", "shop"])?.ok("project create")?;
    let body = br#"{"name":"web"}"#;
    let page = api(&server, "POST /v1/projects/shop/apps", body)?;
    holds(&page.1, &["\"name\":\"web\""])?;
    Ok(server)
}

/// An authenticated call; status and body.
fn api(server: &Alone, line: &str, body: &[u8]) -> Result<(u16, String), Failure> {
    let token = format!("Authorization: Bearer {}", server.token);
    let length = format!("Content-Length: {}", body.len());
    let headers = [token.as_str(), "Content-Type: application/json", length.as_str()];
    let page = server.call(line, &headers, body)?;
    Ok((page.status, page.body))
}

#[test]
fn what_is_not_there_is_named_and_the_nearest_is_offered() -> Result<(), Failure> {
    let server = server()?;
    let cases: [(&[&str], &[&str]); 13] = [
        (&["status", "-p", "shopp"], &["no project shopp", "did you mean `shop`?"]),
        (&["status", "-p", "warehouse"], &["no project warehouse", "shore project list"]),
        (&["status", "-p", "shop", "-a", "wep"], &["no app wep in project shop", "`web`?"]),
        (&["deploy", "-p", "shop", "-a", "api"], &["no app api in project shop", "shore up"]),
        (&["restart", "-p", "shop", "-a", "api"], &["no app api"]),
        (&["destroy", "--yes", "-p", "shop", "-a", "api"], &["no app api"]),
        (&["config", "set", "-p", "shop", "-a", "api", "A=1"], &["no app api", "hint: "]),
        (&["logs", "-p", "shop", "-a", "api"], &["no app api", "hint: "]),
        (&["release", "-p", "shop", "3"], &["no deployment 3 of shop/web", "shore up"]),
        (&["job", "show", NO_JOB], &["no job job_", "shore job list"]),
        (&["job", "cancel", NO_JOB], &["no job job_", "shore job list"]),
        (&["job", "attach", NO_JOB], &["no job job_"]),
        (&["key", "add", "/nowhere"], &["cannot read /nowhere", "hint: check the path"]),
    ];
    for (args, words) in cases {
        refused(server.shore(args)?, 3, words).map_err(|it| format!("{args:?}: {it}"))?;
    }
    let calls: [(&str, u16, &[&str]); 9] = [
        ("GET /v1/projects/shpo", 404, &["no project shpo", "did you mean `shop`?"]),
        ("GET /v1/projects/shop/apps/wbe", 404, &["no app wbe", "did you mean `web`?"]),
        (&format!("GET /v1/jobs/{NO_JOB}"), 404, &["no job", "shore job list"]),
        ("GET /v1/jobs/mine", 422, &["`mine` is not a job id", "`job_`"]),
        (&format!("GET /v1/deployments/{NO_DEPLOYMENT}"), 404, &["no deployment", "status --all"]),
        ("GET /v1/jobs?limit=many", 400, &["the query cannot be read: limit", "hint"]),
        ("GET /v1/jobs/%ff", 400, &["the path cannot be read", "hint"]),
        ("DELETE /v1/info", 405, &["DELETE cannot be done on /v1/info", "hint"]),
        ("GET /v2/jobs", 404, &["no path /v2/jobs", "hint"]),
    ];
    for (line, status, words) in calls {
        let (found, body) = api(&server, line, b"")?;
        holds(&body, words).map_err(|failure| format!("{line}: {failure}"))?;
        if found != status {
            return Err(format!("{line} was answered with {found}, not {status}"));
        }
    }
    // Nothing was made by asking for it.
    let apps = server.shore(&["app", "list"])?.ok("app list")?;
    if apps.contains("api") { Err(format!("an app was made:\n{apps}")) } else { Ok(()) }
}

#[test]
fn names_that_are_not_allowed_are_refused_wherever_they_enter() -> Result<(), Failure> {
    let server = server()?;
    let long = "a".repeat(300);
    let rule = "a-z, 0-9 and `-`";
    for bad in ["a b", "$(id)", "a;id", "`id`", "../up", "\u{fc}ber", "A", "", "-a", "a\nb", &long]
    {
        let flagged = [format!("--project={bad}"), format!("--app={bad}")];
        for args in [
            vec!["project", "create", "--", bad],
            vec!["status", flagged[0].as_str()],
            vec!["status", "--project=shop", flagged[1].as_str()],
            vec!["context", "set", "--server=http://127.0.0.1:1", "--token=x", "--", bad],
        ] {
            refused(server.shore(&args)?, 2, &[rule]).map_err(|it| format!("{args:?}: {it}"))?;
        }
        let body = serde_json::json!({ "name": bad }).to_string();
        for line in ["POST /v1/projects", "POST /v1/projects/shop/apps"] {
            let (status, said) = api(&server, line, body.as_bytes())?;
            if status != 422 {
                return Err(format!("{line} took {bad:?}: {status} {said}"));
            }
            holds(&said, &[rule])?;
        }
        // Labels are text for people: everything but control characters, to a length.
        let label = server.shore(&["token", "create", &format!("--label={bad}")])?;
        if bad.contains('\n') || bad.len() > 200 {
            refused(label, 6, &["a label has at most 200 characters"])?;
        } else {
            label.ok("token create")?;
        }
    }
    let config = |var: &str| server.shore(&["config", "set", "--project=shop", "--", var]);
    for bad in ["A B=1", "$(id)=1", "1A=1", "\u{dc}=1", &format!("{long}=1")] {
        refused(config(bad)?, 6, &["environment variable", "use A-Z, a-z, 0-9 and `_`"])?;
    }
    let big = "x".repeat(100 << 10);
    let (one, two) = (format!("ONE={big}"), format!("TWO={big}"));
    let unset = server.shore(&["config", "unset", "--project=shop", "NOT_THERE"])?;
    refused(unset, 0, &["NOT_THERE: not set, so nothing has changed"])?;
    let both = server.shore(&["config", "set", "--project=shop", &one, &two])?;
    refused(both, 6, &["the environment is too large", "131072 bytes"])?;
    config("GOOD=$(id); \"\u{fc}\"")?.ok("config set")?;
    let vars = server.shore(&["config", "list", "--project=shop", "--json"])?.ok("config list")?;
    holds(&vars, &["[\"GOOD\",\"$(id); \\\"\u{fc}\\\"\"]"])?;
    for flag in ["--domain=a b", "--domain=$(id)", "--name=a b", "--name=*", "--max-blob-mb=0"] {
        refused(server.shore(&["server", flag])?, 2, &["invalid value", "error: "])?;
    }
    Ok(())
}
