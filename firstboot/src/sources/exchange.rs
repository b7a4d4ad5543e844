//! One question to a metadata service, and its answer: HTTP/1.1 over a fresh connection.
//!
//! These services are at addresses, not names, without TLS, proxies and redirects, and one of them wants questions to
//! come from a port that is root's, which `reqwest` cannot be told. So this uses `hyper`, the client below it.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;

use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream};

/// The ports that are root's and not mostly taken: those that `rresvport` takes, too.
const LOW_PORTS: std::ops::RangeInclusive<u16> = 512..=1023;

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    /// `GET` or `PUT`, which is sent without a body.
    pub(crate) method: Method,
    /// The path.
    pub(crate) path: &'static str,
    /// Headers beside the usual ones.
    pub(crate) headers: Vec<(&'static str, HeaderValue)>,
    /// Whether to ask from a port that is root's.
    pub(crate) from_low_port: bool,
}

/// What is answered.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// The connection could not be made.
    #[error("connecting")]
    Connect(#[source] io::Error),
    /// It broke, or what came was no HTTP.
    #[error("exchanging a message")]
    Exchange(#[from] hyper::Error),
    /// No low port can be had.
    #[error("taking a port below 1024")]
    LowPort(#[source] io::Error),
    /// More came than is wanted.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(u64),
    /// The question is none.
    #[error("making the request")]
    Request(#[from] hyper::http::Error),
}

/// Asks. It takes as long as the other side likes: who calls sets the bound.
///
/// # Errors
/// See [`AskError`].
pub(crate) async fn ask(address: SocketAddr, question: &Question, limit: u64) -> Result<Reply, AskError> {
    let stream = connect(address, question.from_low_port).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // What goes wrong there is also told to the sender.
    let connection = tokio::spawn(connection);
    let host = match address.port() {
        80 => SocketAddr::new(address.ip(), 0).to_string().trim_end_matches(":0").to_owned(),
        _ => address.to_string(),
    };
    let mut request = Request::builder()
        .method(&question.method)
        .uri(question.path)
        .header(HOST, host)
        .header(USER_AGENT, concat!("NodeZero/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close");
    if question.method != Method::GET {
        request = request.header(CONTENT_LENGTH, "0");
    }
    for (name, value) in &question.headers {
        request = request.header(*name, value);
    }
    let response = sender.send_request(request.body(String::new())?).await?;
    let status = response.status();
    let body = read_body(response.into_body(), limit).await;
    connection.abort();
    Ok(Reply { status, body: body? })
}

async fn connect(address: SocketAddr, from_low_port: bool) -> Result<TcpStream, AskError> {
    let socket = || match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    };
    if !from_low_port {
        return socket().map_err(AskError::Connect)?.connect(address).await.map_err(AskError::Connect);
    }
    let any = match address {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    // A port of a connection that has just ended is refused as taken, too: the next one is tried.
    for port in LOW_PORTS.rev() {
        let socket = socket().map_err(AskError::Connect)?;
        match socket.bind(SocketAddr::new(any, port)) {
            Ok(()) => return socket.connect(address).await.map_err(AskError::Connect),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
            Err(error) => return Err(AskError::LowPort(error)),
        }
    }
    Err(AskError::LowPort(last))
}

async fn read_body(mut body: Incoming, limit: u64) -> Result<Vec<u8>, AskError> {
    let mut content = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        if let Ok(data) = frame?.into_data() {
            if (content.len() + data.len()) as u64 > limit {
                return Err(AskError::TooLarge(limit));
            }
            content.extend_from_slice(&data);
        }
    }
    Ok(content)
}
