//! A server on the loopback that runs until its test ends, and the head of an HTTP request. What is answered is the
//! test's own.

use std::collections::BTreeMap;
use std::io::{self, BufRead};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

/// How long a client may take to send a request.
const REQUEST: Duration = Duration::from_secs(10);

/// A server, and what it knows. Clones are the same server.
#[derive(Debug)]
pub(crate) struct Loopback<S> {
    port: u16,
    state: Arc<Mutex<S>>,
}

impl<S> Clone for Loopback<S> {
    fn clone(&self) -> Self {
        Self { port: self.port, state: self.state.clone() }
    }
}

impl<S: Default + Send + 'static> Loopback<S> {
    /// Starts it: each connection is a thread that runs `answer`, whose error is the client's business. One that hangs up
    /// early is what some tests are about.
    pub(crate) fn start(answer: fn(&TcpStream, &Mutex<S>) -> io::Result<()>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("the loopback has a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let state = Arc::new(Mutex::new(S::default()));
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                thread::spawn(move || stream.set_read_timeout(Some(REQUEST)).and_then(|()| answer(&stream, &state)));
            }
        });
        Self { port, state }
    }

    /// Its address without a slash at the end.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What it knows.
    pub(crate) fn state(&self) -> MutexGuard<'_, S> {
        lock(&self.state)
    }
}

/// What a server knows, for a thread that answers.
pub(crate) fn lock<S>(state: &Mutex<S>) -> MutexGuard<'_, S> {
    state.lock().expect("no thread panics while it holds the state")
}

/// The head of a request.
#[derive(Debug, Default)]
pub(crate) struct Head {
    /// GET and so on.
    pub(crate) method: String,
    /// What is asked for, as it stands in the request.
    pub(crate) target: String,
    /// Headers by their names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
}

impl Head {
    /// Reads it, up to the empty line behind it.
    pub(crate) fn read(reader: &mut impl BufRead) -> io::Result<Self> {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut headers = BTreeMap::new();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim().split_once(':') else {
                return Ok(Self { method, target, headers });
            };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
    }
}
