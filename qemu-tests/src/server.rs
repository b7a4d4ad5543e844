//! A small HTTP server on the host's loopback, which guests reach at [`GUEST_SEES`], or at [`GUEST_SEES6`].
//!
//! It answers `GET` with what it was given and closes the connection; anything else and any other path is refused.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

/// The host's loopback, as QEMU's user network shows it to guests.
pub const GUEST_SEES: &str = "10.0.2.2";

/// The host's loopback of IPv6, as QEMU's user network shows it to guests.
pub const GUEST_SEES6: &str = "[fec0::2]";

/// How long a guest may take to send its request.
const PATIENCE: Duration = Duration::from_secs(30);

/// The server. It answers until the test's process ends.
#[derive(Debug)]
pub struct Server {
    host: &'static str,
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Serves `pages`, by path, at a free port.
    ///
    /// # Errors
    /// When there is no free port.
    pub fn start(pages: BTreeMap<String, Vec<u8>>) -> Result<Server> {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), GUEST_SEES, pages)
    }

    /// Like [`Server::start`], by IPv6.
    ///
    /// # Errors
    /// When there is no free port, or no IPv6.
    pub fn start6(pages: BTreeMap<String, Vec<u8>>) -> Result<Server> {
        Self::start_at(Ipv6Addr::LOCALHOST.into(), GUEST_SEES6, pages)
    }

    fn start_at(address: IpAddr, host: &'static str, pages: BTreeMap<String, Vec<u8>>) -> Result<Server> {
        let listener = TcpListener::bind((address, 0)).with_context(|| format!("listening on {address}"))?;
        let port = listener.local_addr()?.port();
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&requests);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A guest that goes away in the middle is its own affair.
                let _ = answer(stream, &pages, &seen);
            }
        });
        Ok(Server { host, port, requests })
    }

    /// The URL of a page, as guests reach it.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}:{}{path}", self.host, self.port)
    }

    /// The paths that were asked for so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no holder panics").clone()
    }
}

fn answer(stream: TcpStream, pages: &BTreeMap<String, Vec<u8>>, seen: &Mutex<Vec<String>>) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(&stream);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 && !line.trim().is_empty() {
        line.clear();
    }
    let path = request.strip_prefix("GET ").and_then(|rest| rest.split(' ').next()).unwrap_or_default();
    seen.lock().expect("no holder panics").push(path.to_owned());
    let (status, body) = match pages.get(path) {
        Some(body) => ("200 OK", body.as_slice()),
        None => ("404 Not Found", &[][..]),
    };
    let mut out = &stream;
    write!(out, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    Ok(out.write_all(body)?)
}
