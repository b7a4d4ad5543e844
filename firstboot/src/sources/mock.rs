//! A server on loopback that answers as a test tells it to.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a connection is kept at most.
const BOUND: Duration = Duration::from_secs(10);

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// `GET /path`.
    pub(crate) line: String,
    /// By name in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    /// The port that it came from.
    pub(crate) port: u16,
}

impl Seen {
    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// What to do with a request.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// Answer with a status and a body.
    Say(u16, Vec<u8>),
    /// Say nothing, and keep the connection.
    Hang,
    /// Promise a body, send one byte of it, and keep the connection.
    HangInBody,
    /// End the connection.
    Close,
    /// Answer with something that is no HTTP.
    Rubbish,
}

type Answers = dyn Fn(&Seen) -> Answer + Send + Sync;

/// The server. It ends with this.
pub(crate) struct Mock {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    is_over: Arc<AtomicBool>,
    listening: Option<JoinHandle<()>>,
}

impl Mock {
    /// Starts one.
    pub(crate) fn start(answer: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
        let address = listener.local_addr().expect("bound");
        let (seen, is_over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let answer: Arc<Answers> = Arc::new(answer);
        let (log, over) = (Arc::clone(&seen), Arc::clone(&is_over));
        let listening = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let (log, over, answer) = (Arc::clone(&log), Arc::clone(&over), Arc::clone(&answer));
                std::thread::spawn(move || serve(stream, &log, &over, &*answer));
            }
        });
        Self { address, seen, is_over, listening: Some(listening) }
    }

    /// What came so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no test panics within").clone()
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if TcpStream::connect(self.address).is_ok() {
            let _ = self.listening.take().map(JoinHandle::join);
        }
    }
}

/// Reads one request and answers it. What goes wrong shows on the other side.
fn serve(stream: TcpStream, log: &Mutex<Vec<Seen>>, is_over: &AtomicBool, answer: &Answers) {
    let _ = stream.set_read_timeout(Some(BOUND));
    let (Ok(peer), Ok(mut writer)) = (stream.peer_addr(), stream.try_clone()) else { return };
    let mut lines = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let Some(line) = lines.next() else { return };
    let headers = lines
        .filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect();
    let line = line.trim_end_matches(" HTTP/1.1").to_owned();
    let seen = Seen { line, headers, port: peer.port() };
    let answer = answer(&seen);
    log.lock().expect("no test panics within").push(seen);
    let keep = || {
        let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
        let until = Instant::now() + BOUND;
        while Instant::now() < until && !is_over.load(Ordering::Relaxed) {
            // The end of the stream is the other side's; a timeout is not.
            if (&stream).read(&mut [0; 64]).is_ok_and(|read| read == 0) {
                return;
            }
        }
    };
    let _ = match answer {
        Answer::Say(status, body) => {
            let head = format!("HTTP/1.1 {status} Mock\r\ncontent-length: {}\r\n\r\n", body.len());
            writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&body))
        }
        Answer::Hang => {
            keep();
            Ok(())
        }
        Answer::HangInBody => {
            let sent = writer.write_all(b"HTTP/1.1 200 Mock\r\ncontent-length: 100\r\n\r\n{");
            keep();
            sent
        }
        Answer::Close => Ok(()),
        Answer::Rubbish => writer.write_all(b"220 mail.example ESMTP\r\n"),
    };
}
