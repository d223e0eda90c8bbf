//! Requests that two servers could read in two ways.

use crate::support::{Instance, Site};

/// What comes after each attempt, hidden in its body or behind it.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: a.example\r\n\r\n";

#[tokio::test]
async fn ambiguous_requests_are_refused_and_the_connection_closed() {
    let site = Site::start();
    let instance = Instance::echo(&site.tasks, "one").await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let post = "POST / HTTP/1.1\r\nHost: a.example\r\n";
    let length = HIDDEN.len();
    for bad in [
        format!("{post}Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("{post}Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n\r\n0\r\n\r\n"),
        format!("{post}transfer-encoding:chunked\r\ncontent-length:{length}\r\n\r\n0\r\n\r\n"),
        format!("{post}Content-Length: 0\r\nContent-Length: {length}\r\n\r\n"),
        format!("{post}Content-Length: {length}\r\nContent-Length: {length}\r\n\r\n"),
        format!("{post}Content-Length: {length}, {length}\r\n\r\n"),
        format!("{post}Content-Length: +{length}\r\n\r\n"),
        format!("{post}Content-Length: -1\r\n\r\n"),
        format!("{post}Content-Length: 0x10\r\n\r\n"),
        format!("{post}Content-Length: 99999999999999999999\r\n\r\n"),
        format!("{post}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        format!("{post}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        format!("{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n"),
        format!("{post}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        format!("{post}Transfer-Encoding\r\n : chunked\r\n\r\n0\r\n\r\n"),
        format!("{post}X: 1\r\n folded\r\n\r\n"),
        format!("{post}X: a\0b\r\n\r\n"),
        format!("{post}X: a\rb\r\n\r\n"),
        "POST / HTTP/1.0\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
        "GET / HTTP/1.1\nHost: a.example\n\n".into(),
        "GET / HTTP/1.1\r\nHost: a.example\nX: 1\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost: a.example\r\n\n".into(),
        "GET / HTTP/2.0\r\nHost: a.example\r\n\r\n".into(),
        "GET  / HTTP/1.1\r\nHost: a.example\r\n\r\n".into(),
        "GET /\x01 HTTP/1.1\r\nHost: a.example\r\n\r\n".into(),
        "G(T / HTTP/1.1\r\nHost: a.example\r\n\r\n".into(),
    ] {
        let answer = site.ask(format!("{bad}{HIDDEN}")).await;
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{bad:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{bad:?}: {answer}");
    }
    assert_eq!(instance.requests(), 0);
}

#[tokio::test]
async fn bad_chunks_end_the_connection_and_reach_nobody_as_a_request() {
    let site = Site::start();
    let instance = Instance::echo(&site.tasks, "one").await;
    site.serve(1, &[("a.example", &[instance.address])]);
    for chunks in [
        "zz\r\nabc\r\n0\r\n\r\n",
        "-1\r\nabc\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3;a\nb\r\nabc\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        "3 3\r\nabc\r\n0\r\n\r\n",
    ] {
        let head = "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n";
        let answer = site.ask(format!("{head}{chunks}{HIDDEN}")).await;
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{chunks:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{chunks:?}: {answer}");
    }
    assert_eq!(instance.requests(), 0);
}

#[tokio::test]
async fn pipelined_requests_are_answered_one_by_one() {
    let site = Site::start();
    let instance = Instance::echo(&site.tasks, "one").await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let get =
        |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n{more}\r\n");
    let chunked = "POST /c HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n";
    let all = [
        get("/a", ""),
        get("/b", ""),
        format!("{chunked}\r\n3\r\nabc\r\n0\r\n\r\n"),
        get("/d", "Connection: close\r\n"),
    ];
    let answer = site.ask(all.concat()).await;
    for path in ["GET /a ", "GET /b ", "POST /c ", "GET /d "] {
        assert_eq!(answer.matches(path).count(), 1, "{path}: {answer}");
    }
    // A second length hides as well in a request that others came before.
    let bad = format!("{chunked}Content-Length: 3\r\n\r\n0\r\n\r\n");
    let before = instance.requests();
    let answer = site.ask([get("/a", ""), bad.clone()].concat()).await;
    assert!(answer.contains("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    // And in one that comes behind a body, where its head was not seen.
    let body = "POST /b HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabc".to_owned();
    let answer = site.ask([body, bad].concat()).await;
    assert!(answer.contains("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    assert_eq!(instance.requests(), before + 2);
}
