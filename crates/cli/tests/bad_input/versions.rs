//! Clients, components and servers of other versions.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::pin::Pin;

use api::proto::components_client::ComponentsClient;
use api::proto::components_server::{Components, ComponentsServer};
use api::proto::{
    CellDown, CellHello, CellUp, RouterDown, RouterHello, RouterUp, RunnerDown, RunnerHello,
    RunnerUp, Welcome, cell_down, cell_up, hello, router_down, router_up, runner_down, runner_up,
};
use testkit::{Alone, Failure};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use crate::{holds, program, refused, told};

/// A protocol that nobody speaks yet.
const NEXT: u32 = 9;

#[test]
fn clients_and_servers_of_other_versions_refuse_each_other_in_a_sentence() -> Result<(), Failure> {
    let server = Alone::start(program(), &[])?;
    let token = format!("Authorization: Bearer {}", server.token);
    for (range, status, words) in [
        ("0-0", 426, ["this client speaks protocol 0 to 0", "update the client"]),
        ("8-9", 426, ["the server speaks protocol 1 to 1", "update the server"]),
        ("new", 400, ["\\\"new\\\" is no range of protocols", "hint"]),
        ("1-9", 200, ["\"protocol_current\":1", "\"role\":\"admin\""]),
    ] {
        let header = format!("{}: {range}", api::PROTOCOL_HEADER);
        let page = server.call("GET /v1/info", &[&token, &header], b"")?;
        holds(&page.body, &words)?;
        if page.status != status {
            return Err(format!("{range} was answered with {}", page.status));
        }
    }
    // A server that says it speaks something else, whatever it answers.
    let listener = TcpListener::bind("127.0.0.1:0").map_err(told)?;
    let url = format!("http://{}", listener.local_addr().map_err(told)?);
    for (range, words) in [
        ("0-0", ["the server speaks protocol 0 to 0", "update the server"]),
        ("8-9", ["this client speaks protocol 1 to 1", "update the client"]),
    ] {
        let set = ["context", "set", "other", "--server", &url, "--token", &server.token];
        let asked = std::thread::scope(|scope| {
            let asked = scope.spawn(|| server.shore(&set));
            answer_one(&listener, range)?;
            asked.join().unwrap_or_else(|_| Err("the client broke".to_owned()))
        })?;
        refused(asked, 7, &words)?;
    }
    Ok(())
}

/// Answers one request as a server of another version would.
fn answer_one(listener: &TcpListener, range: &str) -> Result<(), Failure> {
    let (mut stream, _) = listener.accept().map_err(told)?;
    let head = BufReader::new(stream.try_clone().map_err(told)?).lines();
    head.map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
    let answer = format!(
        "HTTP/1.1 200 OK\r\n{}: {range}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}",
        api::PROTOCOL_HEADER
    );
    stream.write_all(answer.as_bytes()).map_err(told)
}

fn bearing<T>(message: T, token: &str) -> Result<Request<tokio_stream::Once<T>>, Failure> {
    let mut request = Request::new(tokio_stream::once(message));
    let bearer = format!("Bearer {token}").parse().map_err(told)?;
    request.metadata_mut().insert("authorization", bearer);
    Ok(request)
}

/// The refusal of a stream, whether it comes at once or as its first message.
async fn refusal<T: std::fmt::Debug>(
    opened: Result<Response<Streaming<T>>, Status>,
) -> Result<Status, Failure> {
    let first = match opened {
        Ok(stream) => stream.into_inner().message().await,
        Err(status) => Err(status),
    };
    match first {
        Err(status) => Ok(status),
        Ok(message) => Err(format!("it was let in: {message:?}")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn components_of_other_versions_are_refused_in_a_sentence() -> Result<(), Failure> {
    let server = Alone::start(program(), &[])?;
    let url = format!("http://127.0.0.1:{}", server.port);
    for (min, current, words) in [
        (0, 0, ["this client speaks protocol 0 to 0", "update the client (client 0.0.1, server"]),
        (8, NEXT, ["the server speaks protocol 1 to 1", "update the server (client 0.0.1, server"]),
    ] {
        let mut hello = hello(7, "other");
        (hello.protocol_min, hello.protocol_current) = (min, current);
        "0.0.1".clone_into(&mut hello.version);
        let hello = Some(hello);
        let mut client = ComponentsClient::connect(url.clone()).await.map_err(told)?;
        let runner = RunnerHello { hello: hello.clone(), ..RunnerHello::default() };
        let runner = RunnerUp { message: Some(runner_up::Message::Hello(runner)) };
        let cell = CellHello { hello: hello.clone(), ..CellHello::default() };
        let cell = CellUp { message: Some(cell_up::Message::Hello(cell)) };
        let router = RouterHello { hello, ..RouterHello::default() };
        let router = RouterUp { message: Some(router_up::Message::Hello(router)) };
        let token = |role: &str| server.make_token(&["--role", role]);
        for status in [
            refusal(client.runner(bearing(runner, &token("runner")?)?).await).await?,
            refusal(client.cell(bearing(cell, &token("cell")?)?).await).await?,
            refusal(client.router(bearing(router, &token("router")?)?).await).await?,
        ] {
            holds(status.message(), &words)?;
        }
    }
    server.shore(&["project", "list"])?.ok("the server goes on").map(|_| ())
}

/// A server that welcomes everybody, in a protocol nobody else speaks.
struct Later;

type Down<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn welcome() -> Welcome {
    Welcome { version: "9.9.9".to_owned(), protocol: NEXT, certificates: false }
}

fn once<T: Send + 'static>(message: T) -> Response<Down<T>> {
    Response::new(Box::pin(tokio_stream::once(Ok(message))))
}

#[tonic::async_trait]
impl Components for Later {
    type RunnerStream = Down<RunnerDown>;
    type CellStream = Down<CellDown>;
    type RouterStream = Down<RouterDown>;

    async fn runner(
        &self,
        _: Request<Streaming<RunnerUp>>,
    ) -> Result<Response<Down<RunnerDown>>, Status> {
        Ok(once(RunnerDown { message: Some(runner_down::Message::Welcome(welcome())) }))
    }

    async fn cell(
        &self,
        _: Request<Streaming<CellUp>>,
    ) -> Result<Response<Down<CellDown>>, Status> {
        Ok(once(CellDown { message: Some(cell_down::Message::Welcome(welcome())) }))
    }

    async fn router(
        &self,
        _: Request<Streaming<RouterUp>>,
    ) -> Result<Response<Down<RouterDown>>, Status> {
        Ok(once(RouterDown { message: Some(router_down::Message::Welcome(welcome())) }))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn components_refuse_a_server_of_another_version_in_a_sentence() -> Result<(), Failure> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.map_err(told)?;
    let url = format!("http://{}", listener.local_addr().map_err(told)?);
    let tasks = runtime::Tasks::default();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let later = tonic::transport::Server::builder()
        .add_service(ComponentsServer::new(Later))
        .serve_with_incoming_shutdown(incoming, {
            let stop = tasks.stop().clone();
            async move { stop.stopped().await }
        });
    tasks.spawn(runtime::Kind::Ordinary, "later server", later);
    let home = tempfile::tempdir().map_err(told)?;
    let secret = "ab".repeat(32);
    let token = format!("shore_01m7ymd78kq9tv2gfy4gv626qj_{secret}");
    for role in ["runner", "cell", "router"] {
        let mut command = tokio::process::Command::new(program());
        command.arg(role).args(["--server", &url, "--token", &token]).arg("--data");
        command.arg(home.path().join(role)).env("NO_COLOR", "1");
        if role == "router" {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        let output = command.kill_on_drop(true).output().await.map_err(told)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let refused = format!("the server refused this {role}");
        holds(&said, &[&refused, "(version 9.9.9) chose protocol 9", "speaks 1 to 1: update"])?;
        if output.status.code() != Some(4) {
            return Err(format!("{role} ended with {}:\n{said}", output.status));
        }
    }
    tasks.shutdown(std::time::Duration::from_secs(5)).await;
    Ok(())
}
