//! What instances are told of the client.

use crate::support::{Instance, Site};

/// The values of a field in an echoed request.
fn values<'a>(answer: &'a str, name: &str) -> Vec<&'a str> {
    let request = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let fields = request.lines().filter_map(|line| line.split_once(": "));
    fields.filter(|(it, _)| *it == name).map(|(_, value)| value).collect()
}

#[tokio::test]
async fn a_client_cannot_say_who_it_is() {
    let site = Site::start();
    let instance = Instance::echo(&site.tasks, "one").await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let answer = site
        .ask(
            "GET / HTTP/1.1\r\nHost: a.example:81\r\nConnection: close, X-Secret\r\n\
             X-Forwarded-For: 6.6.6.6\r\nx-forwarded-for: 6.6.6.7\r\nX-Forwarded-Proto: https\r\n\
             X-Forwarded-Host: evil\r\nX_Forwarded_For: 6.6.6.8\r\nX-Real-IP: 6.6.6.9\r\n\
             X_Real_IP: 6.6.6.9\r\nForwarded: for=6.6.6.6\r\nX-Longshore-Identity: admin\r\n\
             Proxy: evil\r\nX-Forwarded-Prefix: /evil\r\nX-Secret: 1\r\nKeep-Alive: 1\r\n\
             TE: gzip\r\nAccept: a\r\nAccept: b\r\n\r\n",
        )
        .await;
    assert_eq!(values(&answer, "x-forwarded-for"), ["127.0.0.1"], "{answer}");
    assert_eq!(values(&answer, "x-forwarded-proto"), ["http"]);
    assert_eq!(values(&answer, "x-forwarded-host"), ["a.example:81"]);
    assert_eq!(values(&answer, "forwarded"), ["for=127.0.0.1;proto=http;host=\"a.example:81\""]);
    assert_eq!(values(&answer, "accept"), ["a", "b"]);
    for gone in ["evil", "6.6.6", "admin", "x-secret", "keep-alive", "te: ", "\nconnection"] {
        let request = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        assert!(!request.contains(gone), "{gone}: {answer}");
    }
}

#[tokio::test]
async fn requests_have_an_id_of_their_own_or_keep_theirs() {
    let site = Site::start();
    let instance = Instance::echo(&site.tasks, "one").await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let answer = site.get("a.example").await;
        let ids = values(&answer, "x-request-id");
        assert_eq!(ids.len(), 1, "{answer}");
        assert!(ids[0].len() == 32 && ids[0].bytes().all(|it| it.is_ascii_hexdigit()), "{answer}");
        assert!(seen.insert(ids[0].to_owned()), "{answer}");
    }
    for (given, is_kept) in [("abc-123".to_owned(), true), ("x".repeat(129), false)] {
        let ask = format!(
            "GET / HTTP/1.1\r\nHost: a.example\r\nX-Request-Id: {given}\r\nConnection: close\r\n\r\n"
        );
        let answer = site.ask(ask).await;
        assert_eq!(values(&answer, "x-request-id") == [given.as_str()], is_kept, "{answer}");
    }
}

#[tokio::test]
async fn hop_by_hop_fields_of_a_response_stay_here() {
    let site = Site::start();
    let instance = Instance::saying(
        &site.tasks,
        b"HTTP/1.1 200 OK\r\nConnection: close, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\n\
          Upgrade: h2c\r\nX-Mine: 2\r\nX-Forwarded-For: kept\r\nContent-Length: 2\r\n\r\nok",
    )
    .await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let mut stream = site.connect().await;
    let ask = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, ask).await.expect("the router reads");
    let answer = crate::support::read_response(&mut stream).await.expect("an answer");
    for gone in ["connection:", "keep-alive", "x-hop", "upgrade", "via"] {
        assert!(!answer.contains(gone), "{gone}: {answer}");
    }
    assert!(answer.contains("x-mine: 2\r\n") && answer.contains("x-forwarded-for: kept\r\n"));
}
