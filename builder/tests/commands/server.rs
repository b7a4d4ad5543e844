//! An HTTP server on the loopback for known paths, with faults on demand.
//!
//! It is the proxy of the commands under test too, so that it sees, and answers, whatever they ask of other hosts.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use crate::loopback::{Head, Loopback, lock};

/// The most that an endless answer sends, so that a client that swallows it fails its test and does not hang it.
const ENDLESS: usize = 64 << 20;

/// What goes wrong with an answer.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// This status without content.
    Status(u16),
    /// The content is over there.
    Redirect(String),
    /// Half of the content that was announced, then the connection ends.
    Cut,
    /// Content of no announced length that does not end by itself.
    Endless,
    /// A part of the content, then nothing more for longer than a test waits.
    Stall,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    files: BTreeMap<String, Vec<u8>>,
    faults: BTreeMap<String, (usize, Fault)>,
    requests: Vec<String>,
    ranges: Vec<String>,
    tags: BTreeMap<String, String>,
    endless: usize,
}

/// A server that runs until the test ends.
#[derive(Clone, Debug)]
pub(crate) struct Server(Loopback<State>);

impl Server {
    pub(crate) fn start() -> Self {
        Self(Loopback::start(answer))
    }

    /// Its address without a slash at the end.
    pub(crate) fn url(&self) -> String {
        self.0.url()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state()
    }

    /// Serves `bytes` at `path`, which begins with a slash, or with a host when it is asked for as a proxy.
    pub(crate) fn put(&self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.state().files.insert(path.to_owned(), bytes.into());
    }

    /// Serves nothing any more.
    pub(crate) fn clear(&self) {
        self.state().files.clear();
    }

    /// The paths that contain `part`.
    pub(crate) fn paths(&self, part: &str) -> Vec<String> {
        let paths: Vec<String> = self.state().files.keys().filter(|path| path.contains(part)).cloned().collect();
        assert!(!paths.is_empty(), "nothing is served whose path contains {part}");
        paths
    }

    /// What is served at the one path that contains `part`.
    pub(crate) fn content(&self, part: &str) -> Vec<u8> {
        let [path] = &self.paths(part)[..] else { panic!("{part} stands in more than one path") };
        self.state().files[path].clone()
    }

    /// Changes what is served at all paths that contain `part`.
    pub(crate) fn change(&self, part: &str, change: impl Fn(&mut Vec<u8>)) {
        for path in self.paths(part) {
            change(self.state().files.get_mut(&path).expect("it was found"));
        }
    }

    /// Answers the next `times` requests of every path that contains `part` with a fault.
    pub(crate) fn fail(&self, part: &str, times: usize, fault: &Fault) {
        for path in self.paths(part) {
            self.state().faults.insert(path, (times, fault.clone()));
        }
    }

    /// Serves the content of every path that contains `part` from elsewhere on this server, and says so when asked.
    pub(crate) fn move_away(&self, part: &str) {
        for path in self.paths(part) {
            let bytes = self.state().files[&path].clone();
            self.put(&format!("/elsewhere{path}"), bytes);
            let fault = Fault::Redirect(format!("{}/elsewhere{path}", self.url()));
            self.state().faults.insert(path, (usize::MAX, fault));
        }
    }

    /// Gives every path that contains `part` this entity tag, and from then on serves parts of its content to those who
    /// ask for them with the same tag.
    pub(crate) fn tag(&self, part: &str, tag: &str) {
        for path in self.paths(part) {
            self.state().tags.insert(path, format!("\"{tag}\""));
        }
    }

    /// The parts that were asked for until now; forgets them.
    pub(crate) fn take_ranges(&self) -> Vec<String> {
        std::mem::take(&mut self.state().ranges)
    }

    /// The paths that were asked for until now; forgets them.
    pub(crate) fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state().requests)
    }

    /// Bytes of endless answers that a client took.
    pub(crate) fn endless_bytes(&self) -> usize {
        self.state().endless
    }
}

fn answer(stream: &TcpStream, state: &Mutex<State>) -> io::Result<()> {
    let Head { method, target, mut headers } = Head::read(&mut BufReader::new(stream))?;
    let (range, if_range) = (headers.remove("range"), headers.remove("if-range"));
    if method != "GET" {
        return head(stream, 405, Some(0), "");
    }
    // A proxy is asked for a whole address.
    let path = target.strip_prefix("http://").unwrap_or(&target).to_owned();
    let (fault, content, tag) = {
        let mut state = lock(state);
        state.requests.push(path.clone());
        let fault = match state.faults.get_mut(&path) {
            Some((times, fault)) if *times > 0 => {
                *times -= 1;
                Some(fault.clone())
            }
            _ => None,
        };
        state.ranges.extend(range.clone());
        (fault, state.files.get(&path).cloned(), state.tags.get(&path).cloned())
    };
    let mut out = stream;
    let (status, content, more) = part(content, tag, range, if_range);
    match (fault, content) {
        (Some(Fault::Status(status)), _) => head(out, status, Some(0), "")?,
        (Some(Fault::Redirect(to)), _) => head(out, 302, Some(0), &format!("Location: {to}\r\n"))?,
        (Some(Fault::Cut), Some(content)) => {
            head(out, status, Some(content.len()), &more)?;
            out.write_all(&content[..content.len() / 2])?;
        }
        (Some(Fault::Stall), Some(content)) => {
            head(out, status, Some(content.len()), &more)?;
            out.write_all(&content[..content.len() / 2])?;
            out.flush()?;
            thread::sleep(Duration::from_secs(5));
        }
        (Some(Fault::Endless), Some(content)) => {
            head(out, 200, None, "")?;
            let filler = vec![b'\n'; 1 << 16];
            let mut next = content;
            for _ in 0..ENDLESS / filler.len() {
                out.write_all(&next)?;
                lock(state).endless += next.len();
                next.clone_from(&filler);
            }
        }
        (None, Some(content)) => {
            head(out, status, Some(content.len()), &more)?;
            out.write_all(&content)?;
        }
        (_, None) => head(out, 404, Some(0), "")?,
    }
    out.flush()?;
    stream.shutdown(Shutdown::Write)
}

/// What is sent of `content`, with which status and headers.
fn part(
    content: Option<Vec<u8>>,
    tag: Option<String>,
    range: Option<String>,
    if_range: Option<String>,
) -> (u16, Option<Vec<u8>>, String) {
    let (Some(content), Some(tag)) = (&content, &tag) else { return (200, content, String::new()) };
    let first = range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match first.filter(|first| *first < content.len() && if_range.as_ref() == Some(tag)) {
        None => (200, Some(content.clone()), format!("ETag: {tag}\r\n")),
        Some(first) => {
            let (last, length) = (content.len() - 1, content.len());
            let more = format!("ETag: {tag}\r\nContent-Range: bytes {first}-{last}/{length}\r\n");
            (206, Some(content[first..].to_vec()), more)
        }
    }
}

fn head(mut out: &TcpStream, status: u16, length: Option<usize>, more: &str) -> io::Result<()> {
    let length = length.map(|length| format!("Content-Length: {length}\r\n")).unwrap_or_default();
    write!(out, "HTTP/1.1 {status} Test\r\n{length}{more}Connection: close\r\n\r\n")
}
