//! Source archives that try to get out of their directory, or to become very large.

use std::path::Path;
use std::sync::LazyLock;

use model::Digest;
use tar::{Builder, EntryType, Header};
use testkit::{Dev, Failure, exchange};

use crate::{holds, program, told};

/// Where the archives try to write.
static OUTSIDE: LazyLock<String> =
    LazyLock::new(|| format!("/tmp/shore-escaped-{}", std::process::id()));
/// More than an archive may unpack to.
const HUGE: u64 = 9 << 30;

/// An archive that would build, but for the entries added to it.
struct Source(Builder<Vec<u8>>);

impl Source {
    fn new() -> Result<Self, Failure> {
        let source = Self(Builder::new(Vec::new()));
        source.entry(EntryType::Regular, "index.html", "", b"<h1>hello</h1>")
    }

    /// An entry with a name that is not checked.
    fn entry(
        mut self,
        kind: EntryType,
        name: &str,
        link: &str,
        data: &[u8],
    ) -> Result<Self, Failure> {
        let mut header = header(kind, name, link);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.0.append(&header, data).map_err(told)?;
        Ok(self)
    }

    fn done(self) -> Result<Vec<u8>, Failure> {
        self.0.into_inner().map_err(told)
    }
}

fn header(kind: EntryType, name: &str, link: &str) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    let old = header.as_old_mut();
    old.name[..name.len()].copy_from_slice(name.as_bytes());
    old.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header
}

/// A name for people, the archive, and why it is refused.
type Attack = (&'static str, Vec<u8>, &'static str);

fn attacks() -> Result<Vec<Attack>, Failure> {
    use EntryType::{Char, Fifo, Link, Regular, Symlink};
    let outside = OUTSIDE.as_str();
    let one = |kind, name: &str, link: &str, data: &[u8]| {
        Source::new()?.entry(kind, name, link, data)?.done()
    };
    let climbing = format!("../../../../../../../../..{outside}");
    let through =
        Source::new()?.entry(Symlink, "way", "/tmp", b"")?.entry(Regular, "way/x", "", b"x")?;
    let mut bomb = Source::new()?.done()?;
    // In front of the two empty blocks that end an archive.
    bomb.truncate(bomb.len() - 1_024);
    let mut huge = header(Regular, "zeros", "");
    huge.set_size(HUGE);
    huge.set_cksum();
    bomb.extend(huge.as_bytes());
    Ok(vec![
        ("a way up", one(Regular, &climbing, "", b"x")?, "the name contains '..'"),
        ("an absolute name", one(Regular, outside, "", b"x")?, "the name is absolute"),
        ("a way through a link", through.done()?, "symbolic links are not followed"),
        ("a link out", one(Symlink, "passwd", "/etc/passwd", b"")?, "passwd is a symbolic link to"),
        ("a hard link out", one(Link, "passwd", "/etc/passwd", b"")?, "leads out of the archive"),
        ("a device", one(Char, "null", "", b"")?, "a device node"),
        ("a pipe", one(Fifo, "pipe", "", b"")?, "a pipe"),
        ("a bomb", bomb, "it unpacks to more than 8589934592 bytes"),
        ("no archive", b"these are no files at all".repeat(100), "cannot be read"),
    ])
}

fn call(dev: &Dev, line: &str, kind: &str, body: &[u8]) -> Result<String, Failure> {
    let head = format!(
        "{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
         Content-Type: {kind}\r\nContent-Length: {}",
        dev.token()?,
        body.len()
    );
    let page = exchange(dev.ports.api, &head, body).map_err(told)?;
    if page.status == 200 { Ok(page.body) } else { Err(format!("{line}: {page:?}")) }
}

/// Uploads an archive as a script would, and queues its build and deployment; the job's id.
fn bring_up(dev: &Dev, archive: &[u8]) -> Result<String, Failure> {
    let digest = Digest::of(archive);
    let bytes = "application/octet-stream";
    call(dev, &format!("PUT /v1/blobs/{digest}"), bytes, archive)?;
    let job = serde_json::json!({
        "project": "trap", "app": "web", "operation": { "op": "up", "source": digest },
    });
    let job = call(dev, "POST /v1/jobs", "application/json", job.to_string().as_bytes())?;
    let job: serde_json::Value = serde_json::from_str(&job).map_err(told)?;
    job["id"].as_str().map(str::to_owned).ok_or_else(|| format!("no job: {job}"))
}

#[test]
fn archives_that_try_to_get_out_fail_their_build_and_write_nothing() -> Result<(), Failure> {
    let dev = Dev::start(program())?;
    dev.shore(&["project", "create", "trap"])?.ok("project create")?;
    for (name, archive, reason) in attacks()? {
        let job = bring_up(&dev, &archive).map_err(|it| format!("{name}: {it}"))?;
        let said = dev.shore(&["job", "attach", &job])?.failed(name)?;
        holds(&said, &["(up) failed: ", reason, "hint: "]).map_err(|it| format!("{name}: {it}"))?;
    }
    for path in [OUTSIDE.as_str(), "/tmp/x"] {
        if Path::new(path).exists() {
            return Err(format!("{path} was written"));
        }
    }
    // The server goes on: what is good is built and released.
    let job = bring_up(&dev, &Source::new()?.done()?)?;
    dev.shore(&["job", "attach", &job])?.ok("a good source")?;
    let page = testkit::get(dev.ports.http, "web.trap.localhost", "/").map_err(told)?;
    holds(&page.body, &["hello"])
}
