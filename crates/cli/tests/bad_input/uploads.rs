//! Uploads that are too large.

use std::io::Write as _;
use std::net::{Shutdown, TcpStream};
use std::path::Path;

use testkit::{Alone, Failure, answer};

use crate::{holds, program, refused, told};

/// What the server takes here, in MiB.
const LIMIT_MB: usize = 8;
/// What is sent after all, in MiB.
const SENT_MB: usize = 64;
const TEN_GB: u64 = 10 << 30;
/// Memory that taking an upload may cost, in KiB.
const MEMORY: u64 = 24 << 10;

fn files_below(dir: &Path) -> Result<usize, Failure> {
    let mut count = 0;
    for entry in std::fs::read_dir(dir).map_err(told)? {
        let entry = entry.map_err(told)?;
        let is_dir = entry.file_type().map_err(told)?.is_dir();
        count += if is_dir { files_below(&entry.path())? } else { 1 };
    }
    Ok(count)
}

/// Nothing of an upload is on the disk; the lock is.
fn nothing_stayed(server: &Alone) -> Result<(), Failure> {
    match files_below(&server.data().join("blobs"))? {
        1 => Ok(()),
        count => Err(format!("{count} files are in the blob directory")),
    }
}

#[test]
fn what_is_too_large_is_refused_early_without_memory_or_disk() -> Result<(), Failure> {
    let server = Alone::start(program(), &["--max-blob-mb", &LIMIT_MB.to_string()])?;
    let before = server.peak_memory()?;
    let token = format!("Authorization: Bearer {}", server.token);
    let words = ["larger than 8388608 bytes", "--max-blob-mb", ".shoreignore"];
    // Announced: not a byte of it is waited for.
    let length = format!("Content-Length: {TEN_GB}");
    for extra in ["X-None: 1", "Expect: 100-continue"] {
        let page = server.call("POST /v1/blobs", &[&token, &length, extra], b"")?;
        holds(&page.body, &words)?;
        if page.status != 413 {
            return Err(format!("it was answered with {}", page.status));
        }
    }
    // Not announced: counted. The client that goes on sending gets the answer all the same.
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).map_err(told)?;
    let head = format!(
        "POST /v1/blobs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{token}\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).map_err(told)?;
    let mut chunk = b"100000\r\n".to_vec();
    chunk.resize(chunk.len() + (1 << 20), 0);
    chunk.extend(b"\r\n");
    for _ in 0..SENT_MB {
        stream.write_all(&chunk).map_err(told)?;
    }
    stream.shutdown(Shutdown::Write).map_err(told)?;
    let page = answer(&mut stream).map_err(told)?;
    holds(&page.body, &words)?;
    nothing_stayed(&server)?;
    let used = server.peak_memory()?.saturating_sub(before);
    if page.status != 413 || used > MEMORY {
        return Err(format!("it was answered with {} and cost {used} KiB", page.status));
    }
    server.shore(&["project", "list"])?.ok("the server goes on").map(|_| ())
}

#[test]
fn a_source_that_is_too_large_leaves_nothing_behind() -> Result<(), Failure> {
    let server = Alone::start(program(), &["--max-blob-mb", "1"])?;
    let dir = server.home().join("big");
    std::fs::create_dir(&dir).map_err(told)?;
    // Noise, which does not become smaller when it is packed.
    let mut seed = 1_u64;
    let noise = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 56) as u8
    });
    std::fs::write(dir.join("index.html"), noise.take(3 << 20).collect::<Vec<_>>())
        .map_err(told)?;
    let ran = server.shore(&["up", &dir.display().to_string()])?;
    refused(ran, 6, &["larger than 1048576 bytes", "hint: make it smaller"])?;
    nothing_stayed(&server)?;
    let projects = server.shore(&["project", "list"])?;
    holds(&projects.err, &["there are no projects yet"])
}
