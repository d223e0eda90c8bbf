//! Who is let through, and to whom.

use std::io::Read as _;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use testkit::{ROUTER, Validity};

use crate::support::{App, Site, authority, echo, name, soon};

#[tokio::test]
async fn an_instance_is_reached_by_its_name() {
    let site = Site::start().await;
    let (one, two) = (App::start().await, App::start().await);
    site.put(&name(1, 1), one.address).await;
    site.put(&name(2, 1), two.address).await;
    let router = site.router();
    let mut stream = site.dial(&router, &name(1, 1)).await.expect("a connection");
    echo(&mut stream, "to the first").await.expect("an echo");
    let mut stream = site.dial(&router, &name(2, 1)).await.expect("a connection");
    let long = "to the second".repeat(40_000);
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let mut back = vec![0; long.len()];
    let (there, back_again) = tokio::join!(
        async {
            write.write_all(long.as_bytes()).await?;
            write.flush().await
        },
        read.read_exact(&mut back)
    );
    there.expect("it takes all");
    back_again.expect("it gives all back");
    assert!(back == long.as_bytes());
    assert_eq!((one.bytes(), two.bytes()), (12, long.len()));
}

#[tokio::test]
async fn an_address_that_another_instance_has_now_gets_nothing() {
    let site = Site::start().await;
    let first = App::start().await;
    let address = first.address;
    site.put(&name(1, 1), address).await;
    let router = site.router();
    let mut kept = site.dial(&router, &name(1, 1)).await.expect("a connection");
    echo(&mut kept, "hello").await.expect("an echo");
    site.gate.remove(&name(1, 1)).await.expect("it forgets");
    drop(kept);
    first.stop().await;
    let second = App::at(address).await;
    site.put(&name(2, 1), address).await;
    for _ in 0..20 {
        let refusal = site.refusal(&router, &name(1, 1)).await;
        assert!(refusal.contains("AccessDenied"), "{refusal}");
    }
    assert_eq!(second.bytes(), 0);
    let mut stream = site.dial(&router, &name(2, 1)).await.expect("a connection");
    echo(&mut stream, "hello").await.expect("an echo");
    assert_eq!(second.bytes(), 5);
}

#[tokio::test]
async fn another_epoch_and_an_unknown_name_are_refused() {
    let site = Site::start().await;
    let app = App::start().await;
    site.put(&name(1, 2), app.address).await;
    let router = site.router();
    for wrong in [name(1, 1), name(1, 3), name(2, 2), "instance.internal".to_owned()] {
        let refusal = site.refusal(&router, &wrong).await;
        assert!(refusal.contains("AccessDenied"), "{wrong}: {refusal}");
    }
    assert_eq!(app.bytes(), 0);
}

/// A gate that has the wrong certificate for a name, by mistake or on purpose.
#[tokio::test]
async fn a_certificate_must_be_the_right_one() {
    let site = Site::start().await;
    let (app, other) = (App::start().await, authority());
    let router = site.router();
    let (one, two) = (name(1, 1), name(2, 1));
    let cases = [
        (site.authority.identity(&two, Validity::Good), "NotValidForName"),
        (site.authority.identity(&one, Validity::Expired), "expired"),
        (other.identity(&one, Validity::Good), "UnknownIssuer"),
    ];
    for (identity, reason) in cases {
        site.put_as(&one, app.address, identity.expect("an identity")).await;
        let refusal = site.refusal(&router, &one).await;
        assert!(refusal.contains(reason) || refusal.contains("not valid for name"), "{refusal}");
    }
    assert_eq!(app.bytes(), 0);
}

#[tokio::test]
async fn only_routers_are_let_in() {
    let site = Site::start().await;
    let (app, one) = (App::start().await, name(1, 1));
    site.put(&one, app.address).await;
    let (ours, theirs) = (&site.authority, authority());
    let not_routers = [
        // An instance has a certificate of the same authority.
        (ours.identity(&name(2, 1), Validity::Good), "BadCertificate"),
        (ours.identity(ROUTER, Validity::Expired), "CertificateExpired"),
        (theirs.identity(ROUTER, Validity::Good), "UnknownCA"),
    ];
    for (identity, reason) in not_routers {
        let dialer = ours.dialer(&identity.expect("an identity")).expect("a dialer");
        let refusal = site.refusal(&dialer, &one).await;
        assert!(refusal.contains(reason), "{refusal} is not {reason}");
    }
    assert!(site.dial(&site.router(), &one).await.is_ok());
    assert_eq!(app.bytes(), 0);
}

#[tokio::test]
async fn without_a_certificate_nothing_gets_through() {
    let site = Site::start().await;
    let (app, one) = (App::start().await, name(1, 1));
    site.put(&one, app.address).await;
    let (gate, pem) = (site.gate.address(), site.authority.pem.clone());
    let answer = runtime::blocking(move || {
        use rustls::pki_types::{CertificateDer, pem::PemObject as _};
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
        roots.add(root).expect("a root");
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let peer = ServerName::try_from(name(1, 1)).expect("a name");
        let mut tls = rustls::ClientConnection::new(Arc::new(config), peer).expect("TLS");
        let mut tcp = std::net::TcpStream::connect(gate).expect("a connection");
        let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
        let sent = std::io::Write::write_all(&mut stream, b"let me in");
        sent.and_then(|()| stream.read(&mut [0; 10]))
    });
    let refusal = soon("an answer", answer).await.expect_err("refused").to_string();
    assert!(refusal.contains("CertificateRequired"), "{refusal}");
    assert_eq!(app.bytes(), 0);
}

#[tokio::test]
async fn the_next_connection_to_the_same_instance_is_cheaper() {
    let site = Site::start().await;
    let (app, one) = (App::start().await, name(1, 1));
    site.put(&one, app.address).await;
    let router = site.router();
    assert!(!site.dial(&router, &one).await.expect("a connection").is_resumed());
    for _ in 0..5 {
        assert!(site.dial(&router, &one).await.expect("a connection").is_resumed());
    }
    // What is known of an instance opens no way to another one, nor to one that is gone.
    site.put(&name(2, 1), app.address).await;
    assert!(!site.dial(&router, &name(2, 1)).await.expect("a connection").is_resumed());
    site.gate.remove(&one).await.expect("it forgets");
    assert!(site.refusal(&router, &one).await.contains("AccessDenied"));
}

#[tokio::test]
async fn an_instance_that_takes_no_connection_is_told_apart_before_anything_is_sent() {
    let site = Site::start().await;
    let app = App::start().await;
    site.put(&name(1, 1), app.address).await;
    app.stop().await;
    assert!(site.dial(&site.router(), &name(1, 1)).await.is_err());
}

#[tokio::test]
async fn a_kept_connection_goes_on_elsewhere() {
    let site = Site::start().await;
    let (app, one) = (App::start().await, name(1, 1));
    site.put(&one, app.address).await;
    let mut stream = site.dial(&site.router(), &one).await.expect("a connection");
    echo(&mut stream, "first").await.expect("an echo");
    let parked = stream.park().expect("nothing is under way");
    let peeked = parked.socket().peek(&mut [0]).expect_err("nothing came");
    assert_eq!(peeked.kind(), std::io::ErrorKind::WouldBlock);
    let mut stream = parked.resume().expect("it goes on");
    echo(&mut stream, "second").await.expect("an echo");
    app.stop().await;
    assert_eq!(soon("the end", stream.read(&mut [0; 8])).await.expect("a farewell"), 0);
}
