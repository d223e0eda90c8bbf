//! A server whose disk is full.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use testkit::{Alone, Failure, Ran, wait_for};

use crate::{holds, program, refused, told};

/// A disk of its own, small enough to fill; a bit larger than what must stay free.
const OWN_DISK: &str = "mount -t tmpfs -o size=300m tmpfs \"$DISK\"";
/// Where no file system may be mounted, files that may not grow stand for a full disk.
const NO_SIGNAL: &str = "trap '' XFSZ";
/// The file that takes the room.
const FILL: &str = "fill";
const CHUNK: usize = 1 << 20;
/// Bytes of one variable, which a commit writes.
const BIG: usize = 100 << 10;
/// How long the server may take until it writes again.
const LIMIT: Duration = Duration::from_secs(20);
/// More of them than the files of a new store have room for.
const MANY: usize = 500;

/// How the disk is filled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Disk {
    /// A file system of the server's own.
    Own,
    /// A limit on the size of the server's files.
    Limit,
}

impl Disk {
    fn choose() -> Self {
        let allowed = Command::new("unshare").args(["-m", "true"]).output();
        let allowed = allowed.is_ok_and(|output| output.status.success());
        if allowed { Self::Own } else { Self::Limit }
    }

    fn start(self) -> Result<Alone, Failure> {
        let script = match self {
            // The shell starts itself again, in mounts that nobody else sees.
            Self::Own => format!(
                "[ -n \"$OWN\" ] || exec env OWN=1 unshare -m sh -c '{OWN_DISK} && exec \"$0\" \
                 \"$@\"' \"$0\" \"$@\""
            ),
            Self::Limit => NO_SIGNAL.to_owned(),
        };
        Alone::start_after(program(), &script, &[])
    }

    /// The disk as it is seen from here.
    fn seen(server: &Alone) -> Result<PathBuf, Failure> {
        let inside = server.disk();
        let inside = inside.strip_prefix("/").map_err(told)?;
        Ok(PathBuf::from(format!("/proc/{}/root", server.pid()?)).join(inside))
    }

    fn limit(server: &Alone, limit: &str) -> Result<(), Failure> {
        let (pid, limit) = (server.pid()?.to_string(), format!("--fsize={limit}:"));
        let status = Command::new("prlimit").args(["--pid", &pid, &limit]).status();
        if status.map_err(told)?.success() { Ok(()) } else { Err("prlimit failed".to_owned()) }
    }

    fn fill(self, server: &Alone) -> Result<(), Failure> {
        use std::io::Write as _;
        if self == Self::Limit {
            return Self::limit(server, "512");
        }
        let mut file = std::fs::File::create(Self::seen(server)?.join(FILL)).map_err(told)?;
        let mut size = CHUNK;
        while size > 0 {
            while file.write_all(&vec![0; size]).is_ok() {}
            size /= 16;
        }
        Ok(())
    }

    fn free(self, server: &Alone) -> Result<(), Failure> {
        match self {
            Self::Own => std::fs::remove_file(Self::seen(server)?.join(FILL)).map_err(told),
            Self::Limit => Self::limit(server, "unlimited"),
        }
    }
}

fn upload(server: &Alone, content: &[u8]) -> Result<(u16, String), Failure> {
    let token = format!("Authorization: Bearer {}", server.token);
    let length = format!("Content-Length: {}", content.len());
    let page = server.call("POST /v1/blobs", &[&token, &length], content)?;
    Ok((page.status, page.body))
}

/// Commits until one is refused: for a while there is room in the files that are there. The last that
/// was answered, and the refusal.
fn fill_the_store(server: &Alone) -> Result<(usize, Ran), Failure> {
    for number in 1..MANY {
        let (status, said) = set(server, number)?;
        if status != 200 {
            holds(&said, &["the server cannot write now", "hint"])?;
            let var = format!("BIG={}", value(number));
            let ran = server.shore(&["config", "set", "--project", "before", &var])?;
            return Ok((number - 1, ran));
        }
    }
    Err("the disk never became full".to_owned())
}

fn value(number: usize) -> String {
    format!("{number:04}{}", "x".repeat(BIG))
}

fn set(server: &Alone, number: usize) -> Result<(u16, String), Failure> {
    let body = serde_json::json!({ "vars": { "BIG": value(number) } }).to_string();
    json(server, "PATCH /v1/projects/before/apps/web/config", &body)
}

fn json(server: &Alone, line: &str, body: &str) -> Result<(u16, String), Failure> {
    let token = format!("Authorization: Bearer {}", server.token);
    let length = format!("Content-Length: {}", body.len());
    let headers = [token.as_str(), "Content-Type: application/json", length.as_str()];
    let page = server.call(line, &headers, body.as_bytes())?;
    Ok((page.status, page.body))
}

#[test]
fn a_full_disk_refuses_what_is_new_and_keeps_what_was() -> Result<(), Failure> {
    let disk = Disk::choose();
    let mut server = disk.start()?;
    server.shore(&["project", "create", "before"])?.ok("project create")?;
    let made = json(&server, "POST /v1/projects/before/apps", r#"{"name":"web"}"#)?;
    holds(&made.1, &["web"])?;
    set(&server, 0)?;
    let (status, kept) = upload(&server, &vec![1; CHUNK])?;
    if status != 200 {
        return Err(format!("a good upload was answered with {status}: {kept}"));
    }
    disk.fill(&server)?;
    let (status, said) = upload(&server, &vec![2; CHUNK])?;
    holds(&said, &["disk", "free space on the server's disk"])?;
    if status != 507 {
        return Err(format!("an upload to a full disk was answered with {status}: {said}"));
    }
    let (last, ran) = fill_the_store(&server)?;
    refused(ran, 7, &["the server cannot write now", "store.db", "hint: "])?;
    // It is alive, and knows what was answered and nothing else.
    let shown = server.shore(&["config", "list", "--project", "before", "--json"])?;
    holds(&shown.ok("config list while full")?, &[&format!("\"{last:04}x")])?;
    disk.free(&server)?;
    // It tries again a second after it was refused.
    wait_for("the server to write again", LIMIT, || {
        server.shore(&["project", "create", "after"]).ok().filter(|ran| ran.code == 0)
    })?;
    let (status, said) = upload(&server, &vec![2; CHUNK])?;
    if status != 200 || said == kept {
        return Err(format!("an upload with room again was answered with {status}: {said}"));
    }
    if disk == Disk::Own {
        // The file system ends with the server.
        return server.stop();
    }
    server.stop()?;
    server.start_again(&["--listen", &format!("127.0.0.1:{}", server.port)])?;
    let projects = server.shore(&["project", "list"])?.ok("project list after a restart")?;
    holds(&projects, &["before", "after"])
}
