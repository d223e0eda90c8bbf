//! The client's end of a session.

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::client::{Client, ClientError};
use crate::sessions::{FromClient, FromServer, MAX_SESSION_DATA, SUBPROTOCOL};

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// A session with a container, through the server: what is said, and what is heard. Both are to go on at
/// the same time.
#[derive(Debug)]
pub struct SessionSocket {
    /// What is said.
    pub sender: SessionSender,
    /// What is heard.
    pub receiver: SessionReceiver,
}

/// Sends frames.
#[derive(Debug)]
pub struct SessionSender {
    client: Client,
    socket: SplitSink<Socket, Message>,
}

/// Receives frames.
#[derive(Debug)]
pub struct SessionReceiver {
    client: Client,
    socket: SplitStream<Socket>,
}

/// What a request says that wants a WebSocket, and the answer that takes it.
pub(crate) fn upgrade_headers() -> (HeaderMap, String) {
    let key = generate_key();
    let accept = derive_accept_key(key.as_bytes());
    let mut headers = HeaderMap::new();
    let mut set = |name, value: &'static str| headers.insert(name, HeaderValue::from_static(value));
    set(header::CONNECTION, "Upgrade");
    set(header::UPGRADE, "websocket");
    set(header::SEC_WEBSOCKET_VERSION, "13");
    set(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
    if let Ok(key) = HeaderValue::from_str(&key) {
        headers.insert(header::SEC_WEBSOCKET_KEY, key);
    }
    (headers, accept)
}

/// Whether an answer takes a WebSocket of ours.
pub(crate) fn is_taken(status: StatusCode, headers: &HeaderMap, accept: &str) -> bool {
    let says = |name, wanted: &str| headers.get(name).is_some_and(|it| it == wanted);
    status == StatusCode::SWITCHING_PROTOCOLS
        && says(header::SEC_WEBSOCKET_ACCEPT, accept)
        && says(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL)
}

impl SessionSocket {
    pub(crate) async fn new(client: Client, upgraded: hyper::upgrade::Upgraded) -> Self {
        let most = Some(MAX_SESSION_DATA + 1);
        let config = WebSocketConfig::default().max_message_size(most).max_frame_size(most);
        let io = TokioIo::new(upgraded);
        let socket = WebSocketStream::from_raw_socket(io, Role::Client, Some(config)).await;
        let (sender, receiver) = socket.split();
        Self {
            sender: SessionSender { client: client.clone(), socket: sender },
            receiver: SessionReceiver { client, socket: receiver },
        }
    }
}

fn lost(client: &Client, error: &Error) -> ClientError {
    let reason = crate::joining::root_cause(error);
    ClientError::Unreachable { url: client.endpoint().shown(), reason }
}

impl SessionSender {
    /// Sends a frame.
    pub async fn send(&mut self, said: &FromClient) -> Result<(), ClientError> {
        let sent = self.socket.send(Message::Binary(said.frame())).await;
        sent.map_err(|error| lost(&self.client, &error))
    }

    /// Says good-bye.
    pub async fn close(&mut self) {
        // The server may have gone first.
        drop(self.socket.close().await);
    }
}

impl SessionReceiver {
    /// The next frame; `None` when the server closed without a last word. Nothing is lost when this
    /// is given up.
    pub async fn next(&mut self) -> Result<Option<FromServer>, ClientError> {
        loop {
            let frame: Bytes = match self.socket.next().await {
                Some(Ok(Message::Binary(frame))) => frame,
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Ok(Message::Close(_))) | None => return Ok(None),
                Some(Ok(Message::Text(_))) => return Err(senseless("it sent text")),
                Some(Err(error)) => return Err(lost(&self.client, &error)),
            };
            return FromServer::read(frame).map(Some).map_err(senseless);
        }
    }
}

fn senseless(reason: impl std::fmt::Display) -> ClientError {
    ClientError::Answer { call: "a session".to_owned(), reason: reason.to_string() }
}
