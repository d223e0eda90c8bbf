//! Which host goes where.

use crate::support::{Instance, Site, nowhere};
use router::Limits;

#[tokio::test]
async fn requests_go_by_host() {
    let site = Site::start();
    let a = Instance::echo(&site.tasks, "instance-a").await;
    let b = Instance::echo(&site.tasks, "instance-b").await;
    site.serve(1, &[("a.example", &[a.address]), ("b.example", &[b.address])]);
    for (host, wanted) in [
        ("a.example", "instance-a"),
        ("A.EXAMPLE", "instance-a"),
        ("a.example.", "instance-a"),
        ("a.example:8080", "instance-a"),
        ("b.example", "instance-b"),
    ] {
        let answer = site.get(host).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{host}: {answer}");
        assert!(answer.contains(wanted), "{host}: {answer}");
        assert!(answer.contains(&format!("\nhost: {host}\r\n")), "{host}: {answer}");
    }
}

#[tokio::test]
async fn hosts_that_are_not_ours_are_told_so() {
    let site = Site::start();
    let a = Instance::echo(&site.tasks, "instance-a").await;
    site.serve(1, &[("a.example", &[a.address]), ("away.example", &[])]);
    for host in ["other.example", "127.0.0.1", "admin", "[::1]:80", "a.example.other"] {
        let answer = site.get(host).await;
        assert!(answer.starts_with("HTTP/1.1 404 Not Found\r\n"), "{host}: {answer}");
    }
    let answer = site.get("Other.Example:1").await;
    assert!(answer.ends_with("No app answers at other.example. Check the address.\n"), "{answer}");
    let answer = site.get("away.example").await;
    assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
    assert!(answer.contains("retry-after: 2\r\n"), "{answer}");
    assert_eq!(a.requests(), 0);
    let stats = site.router.stats();
    assert_eq!((stats.requests, stats.unknown_hosts, stats.no_targets), (7, 6, 1));
}

#[tokio::test]
async fn a_request_names_exactly_one_host() {
    let site = Site::start();
    let a = Instance::echo(&site.tasks, "instance-a").await;
    site.serve(1, &[("a.example", &[a.address]), ("b.example", &[])]);
    for bad in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: \r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\nHost: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\nhost: b.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a%2eexample\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example/\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: user@a.example\r\n\r\n",
        "GET http://a.example/ HTTP/1.1\r\nHost: b.example\r\n\r\n",
        "GET http://a.example/ HTTP/1.1\r\n\r\n",
    ] {
        let answer = site.ask(bad).await;
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{bad:?}: {answer}");
        assert!(answer.contains("connection: close\r\n"), "{bad:?}: {answer}");
    }
    assert_eq!(a.requests(), 0);
    let whole =
        "GET http://A.example:80/path?q=1 HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
    let answer = site.ask(whole).await;
    assert!(answer.contains("\nGET /path?q=1 HTTP/1.1\r\n"), "{answer}");
    let connect =
        "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\nConnection: close\r\n\r\n";
    let answer = site.ask(connect).await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
}

#[tokio::test]
async fn a_refused_connection_goes_to_another_instance() {
    let site = Site::start();
    let alive = Instance::echo(&site.tasks, "alive").await;
    let (gone, away) = (nowhere().await, nowhere().await);
    site.serve(1, &[("a.example", &[gone, alive.address, away]), ("b.example", &[gone, away])]);
    for _ in 0..20 {
        let answer = site.get("a.example").await;
        assert!(answer.contains("alive"), "{answer}");
    }
    let answer = site.get("b.example").await;
    assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{answer}");
}

#[tokio::test]
async fn requests_spread_over_the_instances() {
    let site = Site::with(Limits::default());
    let mut instances = Vec::new();
    for _ in 0..3 {
        instances.push(Instance::echo(&site.tasks, "one").await);
    }
    let addresses: Vec<_> = instances.iter().map(|instance| instance.address).collect();
    site.serve(1, &[("a.example", &addresses)]);
    for _ in 0..300 {
        assert!(site.get("a.example").await.starts_with("HTTP/1.1 200"));
    }
    for instance in &instances {
        assert!((50..=150).contains(&instance.requests()), "{}", instance.requests());
    }
}
