//! The server over a real socket.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::thread::JoinHandle;

use super::*;

struct Running {
    dir: tempfile::TempDir,
    address: SocketAddr,
    stop: Stop,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Running {
    fn start(spa: bool) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in [
            ("site/index.html", "home"),
            ("site/about.html", "about"),
            ("site/a b.css", "css"),
            ("site/sub/index.html", "sub"),
            ("site/404.html", "custom"),
            ("site/.env", "secret"),
            ("secret", "secret"),
        ] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::write(path, text).expect("written");
        }
        let site = dir.path().join("site");
        symlink("../secret", site.join("out")).expect("linked");
        symlink("about.html", site.join("in.html")).expect("linked");
        std::fs::write(site.join("big.bin"), vec![7; 300_000]).expect("written");
        let site = Site::open(&site, spa).expect("a site");
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let stop = Stop::new();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(serve(listener, site, &stopped))
        });
        Self { dir, address, stop, thread: Some(thread) }
    }

    fn ask(&self, head: &str) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(self.address).expect("connected");
        let request = format!("{head}\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("answered");
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
        let status = head.split(' ').nth(1).expect("a status").parse().expect("a status");
        (status, head, answer[end + 4..].to_vec())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic").expect("served");
        }
    }
}

#[test]
fn files_directories_and_nothing_else() {
    let site = Running::start(false);
    for (path, status, body) in [
        ("/", 200, "home"),
        ("/index.html", 200, "home"),
        ("/about", 200, "about"),
        ("/in.html?x=1", 200, "about"),
        ("/a%20b.css", 200, "css"),
        ("/sub/", 200, "sub"),
        ("/none", 404, "custom"),
        ("/.env", 404, "custom"),
        ("/../secret", 404, "custom"),
        ("/%2e%2e/secret", 404, "custom"),
        ("/out", 404, "custom"),
        ("/about.html/x", 404, "custom"),
    ] {
        let (found, _, text) = site.ask(&format!("GET {path} HTTP/1.1"));
        assert_eq!((found, text), (status, body.as_bytes().to_vec()), "{path}");
    }
    let (status, head, _) = site.ask("GET //sub?a=b HTTP/1.1");
    assert_eq!(status, 301);
    assert!(head.contains("location: /sub/?a=b"), "{head}");
    let (status, head, _) = site.ask("POST / HTTP/1.1\r\nContent-Length: 0");
    assert_eq!(status, 405);
    assert!(head.contains("allow: get, head"), "{head}");
    let (_, head, _) = site.ask("GET /a%20b.css HTTP/1.1");
    assert!(head.contains("content-type: text/css; charset=utf-8"), "{head}");
}

#[test]
fn heads_tags_and_ranges() {
    let site = Running::start(false);
    let (status, head, body) = site.ask("HEAD / HTTP/1.1");
    assert_eq!((status, body.len()), (200, 0));
    assert!(head.contains("content-length: 4"), "{head}");
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).expect("a tag").to_owned();
    let (status, _, body) = site.ask(&format!("GET / HTTP/1.1\r\nIf-None-Match: \"x\", W/{tag}"));
    assert_eq!((status, body.len()), (304, 0));
    std::fs::write(site.dir.path().join("site/index.html"), "HOME").expect("written");
    let (status, _, body) = site.ask(&format!("GET / HTTP/1.1\r\nIf-None-Match: {tag}"));
    assert_eq!((status, &*body), (200, &b"HOME"[..]));
    for path in ["/", "/big.bin"] {
        let length = if path == "/" { 4 } else { 300_000 };
        let range = |range: &str| site.ask(&format!("GET {path} HTTP/1.1\r\nRange: {range}"));
        let (status, head, body) = range("bytes=1-2");
        assert_eq!((status, body.len()), (206, 2));
        assert!(head.contains(&format!("content-range: bytes 1-2/{length}")), "{head}");
        assert_eq!(range("bytes=-1").2.len(), 1);
        assert_eq!(range("bytes=3-").2.len(), length - 3);
        assert_eq!(range("bytes=0-9999999").2.len(), length);
        assert_eq!(range(&format!("bytes={length}-")).0, 416);
        for none in ["bytes=2-1", "bytes=0-0,2-2", "lines=1-2", "bytes=a-b", "bytes=-"] {
            let (status, _, body) = range(none);
            assert!(status == 200 || status == 416, "{none}: {status}");
            assert!(status == 416 || body.len() == length, "{none}");
        }
        let (status, ..) =
            site.ask(&format!("GET {path} HTTP/1.1\r\nRange: bytes=0-0\r\nIf-Range: \"x\""));
        assert_eq!(status, 200);
    }
}

#[test]
fn single_page_apps_answer_unknown_paths() {
    let site = Running::start(true);
    assert_eq!(site.ask("GET /deep/link HTTP/1.1").2, b"home");
    assert_eq!(site.ask("GET /missing.js HTTP/1.1").0, 404);
}

#[test]
fn a_stop_lets_a_request_finish() {
    let site = Running::start(false);
    let mut stream = TcpStream::connect(site.address).expect("connected");
    let mut bytes = vec![0; 200];
    stream.write_all(b"HEAD /none HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let read = stream.read(&mut bytes).expect("answered");
        answer.extend_from_slice(&bytes[..read]);
    }
    stream.write_all(b"GET /big.bin HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
    let first = stream.read(&mut bytes).expect("answered");
    site.stop.stop();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("the rest");
    assert!(first + rest.len() > 300_000, "{}", first + rest.len());
    stream.shutdown(Shutdown::Both).unwrap_or_default();
}
