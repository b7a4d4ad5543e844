//! A TFTP client that reads one file.
//!
//! Specification: [RFC 1350](https://www.rfc-editor.org/rfc/rfc1350), options as in
//! [RFC 2347](https://www.rfc-editor.org/rfc/rfc2347) and the block size of
//! [RFC 2348](https://www.rfc-editor.org/rfc/rfc2348). Of the crates that there are, one is a server alone and the other
//! holds the whole file in memory, asks for no options and resolves names through the C library. Left out: writing,
//! other modes than `octet`, windows.

use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context;
use url::Url;

use super::names;

const READ_REQUEST: u16 = 1;
const DATA: u16 = 3;
const ACKNOWLEDGEMENT: u16 = 4;
const ERROR: u16 = 5;
const OPTIONS_ACKNOWLEDGEMENT: u16 = 6;
/// Error code: the transfer's port is not known.
const UNKNOWN_TRANSFER: u16 = 5;
/// Error code: the options are not liked.
const OPTIONS_REFUSED: u16 = 8;

const DEFAULT_PORT: u16 = 69;
const DEFAULT_BLOCK: usize = 512;
/// What fits into an Ethernet frame of 1500 bytes, with the headers of IPv6, UDP and TFTP and some room for tunnels.
const WANTED_BLOCK: usize = 1400;
/// How often a packet is sent that is not answered. Waits double from one second: 31 s in all.
const MOST_SENDS: u32 = 5;

/// A file that is being read.
#[derive(Debug)]
pub(super) struct Transfer {
    socket: UdpSocket,
    server: SocketAddr,
    /// What was sent last, and is sent again when nothing comes.
    last: Vec<u8>,
    /// The number of the block that comes next; it wraps around.
    expected: u16,
    block_size: usize,
    block: Vec<u8>,
    read: usize,
    ended: bool,
    deadline: Option<Instant>,
}

/// A packet that a server sends.
#[derive(Debug, PartialEq, Eq)]
enum Packet<'a> {
    Data { number: u16, content: &'a [u8] },
    Options { block_size: Option<usize> },
    Error { code: u16, message: String },
}

/// Asks a server for a file, and waits for the first of it.
///
/// # Errors
/// When the server is not known, does not answer, or refuses.
pub(super) fn open(url: &Url, deadline: Option<Instant>) -> anyhow::Result<Transfer> {
    let host = url.host_str().context("the URL names no server")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting tokio")?;
    let addresses = runtime.block_on(names::lookup(host)).map_err(|error| anyhow::anyhow!("{error}"))?;
    let path: Vec<u8> = percent_encoding::percent_decode_str(url.path()).collect();
    anyhow::ensure!(!path.contains(&0), "the path holds a NUL byte");
    let port = url.port().unwrap_or(DEFAULT_PORT);
    let mut last = anyhow::anyhow!("{host} has no address");
    for address in addresses {
        match start(SocketAddr::new(address, port), &path, deadline) {
            Ok(transfer) => return Ok(transfer),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn start(server: SocketAddr, path: &[u8], deadline: Option<Instant>) -> anyhow::Result<Transfer> {
    let begin = |options: bool| -> anyhow::Result<Transfer> {
        let any = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let mut transfer = Transfer {
            socket: UdpSocket::bind(SocketAddr::new(any, 0)).context("opening a socket")?,
            server,
            last: request(path, options),
            expected: 1,
            block_size: DEFAULT_BLOCK,
            block: Vec::new(),
            read: 0,
            ended: false,
            deadline,
        };
        transfer.receive(true)?;
        Ok(transfer)
    };
    let outcome = begin(true);
    match outcome {
        // A server that knows no options should pass over them; some answer so instead.
        Err(error) if error.downcast_ref::<Refused>().is_some_and(|refused| refused.code == OPTIONS_REFUSED) => {
            begin(false)
        }
        outcome => outcome,
    }
    .with_context(|| format!("asking {server}"))
}

/// What a server says instead of sending.
#[derive(Debug, thiserror::Error)]
#[error("the server answered error {code}: {message}")]
struct Refused {
    code: u16,
    message: String,
}

fn request(path: &[u8], options: bool) -> Vec<u8> {
    let mut packet = READ_REQUEST.to_be_bytes().to_vec();
    packet.extend_from_slice(path);
    packet.extend_from_slice(b"\0octet\0");
    if options {
        packet.extend_from_slice(format!("blksize\0{WANTED_BLOCK}\0").as_bytes());
    }
    packet
}

fn acknowledgement(number: u16) -> Vec<u8> {
    [ACKNOWLEDGEMENT.to_be_bytes(), number.to_be_bytes()].concat()
}

impl Transfer {
    /// Sends the last packet and waits for the next block.
    fn receive(&mut self, first: bool) -> anyhow::Result<()> {
        let mut first = first;
        let mut buffer = vec![0; 4 + WANTED_BLOCK.max(DEFAULT_BLOCK)];
        let mut sends = 0;
        let mut again_at = Instant::now();
        loop {
            let now = Instant::now();
            anyhow::ensure!(self.deadline.is_none_or(|deadline| now < deadline), "time is up");
            if now >= again_at {
                anyhow::ensure!(sends < MOST_SENDS, "the server does not answer");
                self.socket.send_to(&self.last, self.server).context("sending to the server")?;
                again_at = now + Duration::from_secs(1 << sends);
                sends += 1;
            }
            let until = self.deadline.map_or(again_at, |deadline| deadline.min(again_at));
            let wait = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(wait)).context("waiting for the server")?;
            let (length, from) = match self.socket.recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if is_transient(&error) => continue,
                Err(error) => return Err(error).context("receiving from the server"),
            };
            if !self.is_server(from, first) {
                self.turn_away(from);
                continue;
            }
            match parse(&buffer[..length]) {
                Some(Packet::Error { code, message }) => return Err(Refused { code, message }.into()),
                Some(Packet::Options { block_size }) if first => {
                    let size = block_size.unwrap_or(DEFAULT_BLOCK);
                    anyhow::ensure!((8..=WANTED_BLOCK).contains(&size), "the server wants blocks of {size} bytes");
                    self.block_size = size;
                    self.server = from;
                    self.last = acknowledgement(0);
                    first = false;
                    (sends, again_at) = (0, Instant::now());
                }
                Some(Packet::Data { number, content }) if number == self.expected => {
                    anyhow::ensure!(content.len() <= self.block_size, "the server sends too large a block");
                    self.server = from;
                    self.take(number, content);
                    return Ok(());
                }
                // An old block, whose acknowledgement was lost or is under way: nothing new is due to it, or the
                // two sides would go on doubling their packets (RFC 1123, section 4.2.3.1). The clock sends again.
                Some(Packet::Data { .. } | Packet::Options { .. }) | None => {}
            }
        }
    }

    fn take(&mut self, number: u16, content: &[u8]) {
        self.ended = content.len() < self.block_size;
        (self.block, self.read) = (content.to_vec(), 0);
        self.last = acknowledgement(number);
        self.expected = number.wrapping_add(1);
        if self.ended {
            // Should it be lost, the server sends its last block some more times, and gives up.
            let _ = self.socket.send_to(&self.last, self.server);
        }
    }

    /// A server answers from a port of its own choice, and from then on from that alone.
    fn is_server(&self, from: SocketAddr, first: bool) -> bool {
        from.ip() == self.server.ip() && (first || from.port() == self.server.port())
    }

    fn turn_away(&self, from: SocketAddr) {
        let packet = [&ERROR.to_be_bytes()[..], &UNKNOWN_TRANSFER.to_be_bytes(), b"unknown transfer\0"].concat();
        let _ = self.socket.send_to(&packet, from);
    }
}

impl Read for Transfer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.block.len() {
            if self.ended {
                return Ok(0);
            }
            self.receive(false).map_err(|error| io::Error::other(format!("{error:#}")))?;
        }
        let count = buffer.len().min(self.block.len() - self.read);
        buffer[..count].copy_from_slice(&self.block[self.read..self.read + count]);
        self.read += count;
        Ok(count)
    }
}

/// Nothing came in time, or a router said that nobody listens, which may change.
fn is_transient(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted | ConnectionRefused)
}

/// Reads a packet; `None` where it is none that a server sends.
fn parse(packet: &[u8]) -> Option<Packet<'_>> {
    let (code, rest) = packet.split_first_chunk::<2>()?;
    match u16::from_be_bytes(*code) {
        DATA => {
            let (number, content) = rest.split_first_chunk::<2>()?;
            Some(Packet::Data { number: u16::from_be_bytes(*number), content })
        }
        ERROR => {
            let (code, message) = rest.split_first_chunk::<2>()?;
            let message = message.split(|byte| *byte == 0).next().unwrap_or_default();
            let message = String::from_utf8_lossy(message).into_owned();
            Some(Packet::Error { code: u16::from_be_bytes(*code), message })
        }
        OPTIONS_ACKNOWLEDGEMENT => {
            let words: Vec<&[u8]> = rest.split(|byte| *byte == 0).collect();
            let (pairs, _) = words.as_chunks::<2>();
            let value = pairs.iter().find(|[name, _]| name.eq_ignore_ascii_case(b"blksize")).map(|[_, value]| value);
            let block_size = match value {
                Some(value) => Some(std::str::from_utf8(value).ok()?.parse().ok()?),
                None => None,
            };
            Some(Packet::Options { block_size })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read() {
        for (bytes, expected) in [
            (&b"\0\x03\0\x01abc"[..], Some(Packet::Data { number: 1, content: b"abc" })),
            (b"\0\x03\xff\xff", Some(Packet::Data { number: 65535, content: b"" })),
            (b"\0\x05\0\x01no such file\0", Some(Packet::Error { code: 1, message: "no such file".into() })),
            (b"\0\x05\0\x02", Some(Packet::Error { code: 2, message: String::new() })),
            (b"\0\x06blksize\x001400\0", Some(Packet::Options { block_size: Some(1400) })),
            (b"\0\x06tsize\x005\0BLKSIZE\x008\0", Some(Packet::Options { block_size: Some(8) })),
            (b"\0\x06", Some(Packet::Options { block_size: None })),
            (b"\0\x06blksize\0many\0", None),
            (b"\0\x01/file\0octet\0", None),
            (b"\0\x03\0", None),
            (b"\0", None),
            (b"", None),
        ] {
            assert_eq!(parse(bytes), expected, "{bytes:?}");
        }
        arbtest::arbtest(|input| {
            parse(input.arbitrary::<&[u8]>()?);
            Ok(())
        })
        .budget_ms(200);
    }

    #[test]
    fn a_request_is_as_the_specification_has_it() {
        assert_eq!(request(b"/a b", false), b"\0\x01/a b\0octet\0");
        assert_eq!(request(b"/x", true), b"\0\x01/x\0octet\0blksize\x001400\0");
    }
}
