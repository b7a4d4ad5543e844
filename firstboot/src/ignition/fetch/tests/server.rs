//! Servers on loopback that answer as a test tells them, and remember what they were asked.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// How long a connection waits for its other end.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was asked.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Method and target.
    pub(crate) line: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// The values of a header, whose name is in lower case.
    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// What is answered.
pub(crate) enum Reply {
    /// A status, headers and contents, with their length.
    Full(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// These bytes, and the end.
    Raw(Vec<u8>),
    /// These bytes, and then nothing, for as long as a connection waits.
    Hang(Vec<u8>),
    /// "200", and TLS from then on, as a proxy does.
    Tunnel(Arc<ServerConfig>),
}

impl Reply {
    /// Contents that are found.
    pub(crate) fn ok(content: impl Into<Vec<u8>>) -> Self {
        Self::Full(200, Vec::new(), content.into())
    }

    /// A status without contents.
    pub(crate) fn status(status: u16) -> Self {
        Self::Full(status, Vec::new(), Vec::new())
    }

    /// A redirect.
    pub(crate) fn redirect(status: u16, location: impl Into<String>) -> Self {
        Self::Full(status, vec![("Location", location.into())], Vec::new())
    }
}

type Answer = dyn Fn(&Request, usize) -> Reply + Send + Sync;

/// A server; its threads end with the test.
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Serves HTTP. `answer` is given the request, and its number from 0.
    pub(crate) fn http(answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::start(None, Arc::new(answer))
    }

    /// Serves HTTPS.
    pub(crate) fn https(
        config: Arc<ServerConfig>,
        answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::start(Some(config), Arc::new(answer))
    }

    fn start(tls: Option<Arc<ServerConfig>>, answer: Arc<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("bound");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&requests);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (tls, answer, kept) = (tls.clone(), Arc::clone(&answer), Arc::clone(&kept));
                // A client that goes away is the client's test.
                thread::spawn(move || drop(connection(stream, tls, &*answer, &kept)));
            }
        });
        Self { address, requests }
    }

    /// What was asked so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no panic").clone()
    }

    /// A URL of plain HTTP.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

fn connection(
    stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    answer: &Answer,
    requests: &Mutex<Vec<Request>>,
) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    match tls {
        None => exchange(stream, answer, requests),
        Some(config) => {
            let connection = ServerConnection::new(config).map_err(io::Error::other)?;
            exchange(StreamOwned::new(connection, stream), answer, requests)
        }
    }
}

fn exchange(mut stream: impl Read + Write, answer: &Answer, requests: &Mutex<Vec<Request>>) -> io::Result<()> {
    let request = read_request(&mut stream)?;
    let number = {
        let mut requests = requests.lock().expect("no panic");
        requests.push(request.clone());
        requests.len() - 1
    };
    match answer(&request, number) {
        Reply::Full(status, headers, content) => {
            let mut head = format!("HTTP/1.1 {status} Status\r\nContent-Length: {}\r\n", content.len());
            headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
            stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())?;
            stream.write_all(&content)?;
        }
        Reply::Raw(bytes) => stream.write_all(&bytes)?,
        Reply::Hang(bytes) => {
            stream.write_all(&bytes)?;
            stream.flush()?;
            let _ = stream.read(&mut [0]);
        }
        Reply::Tunnel(config) => {
            stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
            let connection = ServerConnection::new(config).map_err(io::Error::other)?;
            let mut inner = StreamOwned::new(connection, stream);
            let request = read_request(&mut inner)?;
            requests.lock().expect("no panic").push(request);
            inner.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\ntunneled")?;
            inner.flush()?;
            return Ok(());
        }
    }
    stream.flush()
}

fn read_request(stream: &mut impl Read) -> io::Result<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head);
    let mut lines = head.lines();
    let line = lines.next().unwrap_or_default().trim_end_matches(" HTTP/1.1").to_owned();
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    Ok(Request { line, headers })
}
