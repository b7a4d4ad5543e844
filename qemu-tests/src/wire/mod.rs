//! An Ethernet segment for the cards of guests, and a machine on it that serves HTTP, time and leases.
//!
//! QEMU's user network knows no VLAN, no second cable and no address of another's choice. So cards are plugged into
//! sockets of this process. What is on the segment belongs to one VLAN, tagged by
//! [IEEE 802.1Q](https://standards.ieee.org/ieee/802.1Q/10323/), or to none; whatever else guests send is counted as
//! [`Wire::strays`] and goes nowhere. The machine's TCP/IP is smoltcp's. Nothing of the host's network is touched, and
//! no privilege is needed. QEMU has `stream` since 7.2.
//!
//! Left out: guests that speak to each other, IPv6.
//!
//! [`Link`] is another way: the user network itself, but slow and lossy.

mod cable;
mod link;
mod peer;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

pub use link::{Link, Quality, Traffic};

/// The machine's hardware address, which is locally administered.
const MAC: [u8; 6] = [0x02, 0x4e, 0x5a, 0, 0, 1];
/// Ethernet types.
const TYPE_ARP: [u8; 2] = [0x08, 0x06];
const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
const TYPE_VLAN: [u8; 2] = [0x81, 0x00];
/// The addresses at the beginning of a frame, and an 802.1Q tag, in bytes.
const ADDRESSES: usize = 12;
const TAG: usize = 4;

/// What the machine on the segment is.
pub struct Host {
    /// Its address, and the gateway's of leases.
    pub address: Ipv4Addr,
    /// The length of the network's prefix.
    pub prefix: u8,
    /// Another address at which it answers, of another network.
    pub also: Option<Ipv4Addr>,
    /// The VLAN that the segment's frames belong to.
    pub vlan: Option<u16>,
    /// The one address that it leases by DHCP.
    pub lease: Option<Ipv4Addr>,
    /// Answers HTTP requests on port 80.
    pub answer: Box<dyn FnMut(&Request) -> Response + Send>,
}

/// An HTTP request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Method and path: `GET /config.ign`.
    pub line: String,
    /// Header fields; names in lower case.
    pub headers: BTreeMap<String, String>,
}

impl Request {
    /// A header's value; empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// An HTTP answer: its status, such as `200 OK`, and its body.
pub type Response = (&'static str, Vec<u8>);

/// The answer for a path that nothing is at.
pub fn not_found() -> Response {
    ("404 Not Found", Vec::new())
}

/// The segment. It works until the test's process ends.
pub struct Wire {
    ports: Vec<PathBuf>,
    /// Where the ports are.
    _sockets: tempfile::TempDir,
    asker: Asker,
    shared: Arc<Mutex<Shared>>,
}

/// What is known of the segment.
#[derive(Debug, Default)]
struct Shared {
    cables: Vec<Option<UnixStream>>,
    /// Frames of the segment's VLAN that came, by port.
    frames: Vec<usize>,
    strays: Vec<String>,
    requests: Vec<Request>,
    time_requests: usize,
    /// The port at which an address answered last that [`Wire::find`] asked for.
    answers: BTreeMap<Ipv4Addr, usize>,
    /// Where hardware addresses were seen.
    places: BTreeMap<[u8; 6], usize>,
}

impl Wire {
    /// A segment with so many ports, and `host` on it.
    pub fn start(ports: usize, host: Host) -> Result<Wire> {
        let (sockets, paths) = cable::sockets((0..ports).map(|port| format!("port{port}")))?;
        let cables = (0..ports).map(|_| None).collect();
        let shared = Arc::new(Mutex::new(Shared { cables, frames: vec![0; ports], ..Shared::default() }));
        let (sender, receiver) = channel();
        for (port, path) in paths.iter().enumerate() {
            let (shared, sender) = (Arc::clone(&shared), sender.clone());
            let plug = move |stream| shared.lock().expect("no holder panics").cables[port] = Some(stream);
            cable::listen(path, plug, move |frame| sender.send((port, frame)).is_ok())?;
        }
        let asker = Asker { address: host.address, vlan: host.vlan };
        let theirs = Arc::clone(&shared);
        thread::spawn(move || peer::run(host, &receiver, &theirs));
        Ok(Wire { ports: paths, _sockets: sockets, asker, shared })
    }

    /// The socket of a port, for a card.
    pub fn port(&self, port: usize) -> &Path {
        &self.ports[port]
    }

    /// The HTTP requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.lock().requests.clone()
    }

    /// How often the time was asked for.
    pub fn time_requests(&self) -> usize {
        self.lock().time_requests
    }

    /// How many frames of the segment's VLAN came in at a port.
    pub fn frames(&self, port: usize) -> usize {
        self.lock().frames[port]
    }

    /// IPv4 and ARP frames that did not belong to the segment's VLAN.
    pub fn strays(&self) -> Vec<String> {
        self.lock().strays.clone()
    }

    /// Asks by ARP who has an address, until an answer comes in at `port`.
    pub fn find(&self, address: Ipv4Addr, port: usize, deadline: Duration) -> Result<()> {
        let started = Instant::now();
        self.lock().answers.remove(&address);
        while started.elapsed() < deadline {
            self.lock().send(None, &who_has(address, self.asker));
            thread::sleep(Duration::from_millis(200));
            if self.lock().answers.get(&address) == Some(&port) {
                return Ok(());
            }
        }
        bail!("{address} did not answer at port {port} within {deadline:?}, but at {:?}", self.lock().answers)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("no holder panics")
    }
}

/// Who asks in [`Wire::find`].
#[derive(Debug, Clone, Copy)]
struct Asker {
    address: Ipv4Addr,
    vlan: Option<u16>,
}

impl Shared {
    /// Sends a frame to a port, or to all.
    fn send(&mut self, port: Option<usize>, frame: &[u8]) {
        for (number, cable) in self.cables.iter_mut().enumerate() {
            if port.is_none_or(|port| port == number)
                && let Some(stream) = cable
                && cable::write(stream, frame).is_err()
            {
                *cable = None;
            }
        }
    }

    /// Sends a frame of the host to where its receiver was seen last.
    fn deliver(&mut self, vlan: Option<u16>, frame: &[u8]) {
        let receiver: Option<[u8; 6]> = frame.get(..6).and_then(|mac| mac.try_into().ok());
        let port = receiver.and_then(|mac| self.places.get(&mac).copied());
        self.send(port, &tagged(vlan, frame));
    }

    /// Takes note of a frame. Gives it without its tag where it belongs to the segment's VLAN.
    fn take(&mut self, vlan: Option<u16>, port: usize, frame: &[u8]) -> Option<Vec<u8>> {
        let (found, plain) = untagged(frame)?;
        let kind: [u8; 2] = plain.get(ADDRESSES..ADDRESSES + 2)?.try_into().ok()?;
        if found != vlan {
            if [TYPE_ARP, TYPE_IPV4].contains(&kind) {
                self.strays.push(format!("port {port}, VLAN {found:?}: {:02x?}", &plain[..plain.len().min(42)]));
            }
            return None;
        }
        self.frames[port] += 1;
        self.places.insert(plain[6..12].try_into().expect("six bytes"), port);
        if let Some(address) = arp_answer(&plain) {
            self.answers.insert(address, port);
        }
        Some(plain)
    }
}

/// A frame with a tag, if it is to have one.
fn tagged(vlan: Option<u16>, frame: &[u8]) -> Vec<u8> {
    match (vlan, frame.split_at_checked(ADDRESSES)) {
        (Some(vlan), Some((addresses, rest))) => [addresses, &TYPE_VLAN, &vlan.to_be_bytes(), rest].concat(),
        _ => frame.to_vec(),
    }
}

/// The VLAN of a frame, and the frame without the tag. `None` for what is too short.
fn untagged(frame: &[u8]) -> Option<(Option<u16>, Vec<u8>)> {
    let (addresses, rest) = frame.split_at_checked(ADDRESSES)?;
    if !rest.starts_with(&TYPE_VLAN) {
        return Some((None, frame.to_vec()));
    }
    // The upper four bits are a priority.
    let vlan = u16::from_be_bytes(rest.get(2..TAG)?.try_into().ok()?) & 0x0fff;
    Some((Some(vlan), [addresses, &rest[TAG..]].concat()))
}

/// Who answers, when this is an answer by ARP ([RFC 826](https://www.rfc-editor.org/rfc/rfc826)).
fn arp_answer(frame: &[u8]) -> Option<Ipv4Addr> {
    let packet = frame.get(ADDRESSES..)?.strip_prefix(&TYPE_ARP)?;
    if packet.get(6..8)? != [0, 2] {
        return None;
    }
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(14..18)?).ok()?))
}

/// A question by ARP, to all.
fn who_has(address: Ipv4Addr, from: Asker) -> Vec<u8> {
    let mut frame = [[0xff; 6], MAC].concat();
    frame.extend(TYPE_ARP);
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend([&MAC[..], &from.address.octets(), &[0; 6], &address.octets()].concat());
    tagged(from.vlan, &frame)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn frame(kind: [u8; 2], rest: &[u8]) -> Vec<u8> {
        [&[1; 6][..], &[2; 6], &kind, rest].concat()
    }

    #[test]
    fn tags_come_and_go() {
        let plain = frame(TYPE_IPV4, b"payload");
        assert_eq!(untagged(&tagged(Some(5), &plain)), Some((Some(5), plain.clone())));
        assert_eq!(untagged(&tagged(None, &plain)), Some((None, plain.clone())));
        let prioritised = frame(TYPE_VLAN, &[&[0xe0, 5], &TYPE_IPV4[..], b"payload"].concat());
        assert_eq!(untagged(&prioritised), Some((Some(5), plain)));
        for short in [&[][..], &[0; 11], &frame(TYPE_VLAN, &[0])] {
            assert_eq!(untagged(short), None, "{short:?}");
        }
    }

    #[test]
    fn frames_of_another_vlan_are_strays() {
        let mut shared = Shared { frames: vec![0; 2], ..Shared::default() };
        let plain = frame(TYPE_IPV4, b"x");
        for (case, sent, taken, strays) in [
            ("of the VLAN", tagged(Some(5), &plain), true, 0),
            ("of another", tagged(Some(6), &plain), false, 1),
            ("of none", plain.clone(), false, 2),
            ("of none, but IPv6", frame([0x86, 0xdd], b"x"), false, 2),
            ("too short", vec![0; 3], false, 2),
        ] {
            assert_eq!(shared.take(Some(5), 1, &sent).is_some(), taken, "{case}");
            assert_eq!(shared.strays.len(), strays, "{case}");
        }
        assert_eq!((shared.frames[1], shared.places.get(&[2; 6])), (1, Some(&1)));
    }

    #[test]
    fn answers_by_arp_are_known() {
        let from = Asker { address: Ipv4Addr::new(192, 0, 2, 1), vlan: None };
        let mut question = who_has(Ipv4Addr::new(192, 0, 2, 5), from);
        assert_eq!(arp_answer(&question), None);
        question[21] = 2;
        assert_eq!(arp_answer(&question), Some(from.address));
    }

    #[test]
    fn an_answer_goes_where_the_guest_is() {
        let host = Host {
            address: Ipv4Addr::new(192, 0, 2, 1),
            prefix: 24,
            also: None,
            vlan: Some(5),
            lease: None,
            answer: Box::new(|_| not_found()),
        };
        let wire = Wire::start(2, host).unwrap();
        let cables: Vec<UnixStream> = (0..2).map(|port| UnixStream::connect(wire.port(port)).unwrap()).collect();
        cables[0].set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        cables[1].set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let guest = Asker { address: Ipv4Addr::new(192, 0, 2, 5), vlan: Some(5) };
        let mut question = who_has(Ipv4Addr::new(192, 0, 2, 1), guest);
        question[6..12].copy_from_slice(&[2; 6]);
        question[26..32].copy_from_slice(&[2; 6]);
        (&cables[1]).write_all(&[&46_u32.to_be_bytes()[..], &question].concat()).unwrap();
        let mut answer = [0; 4 + 46];
        (&cables[1]).read_exact(&mut answer).unwrap();
        let (vlan, plain) = untagged(&answer[4..]).unwrap();
        assert_eq!((vlan, arp_answer(&plain)), (Some(5), Some(Ipv4Addr::new(192, 0, 2, 1))));
        assert!((&cables[0]).read(&mut answer).is_err(), "the other port gets nothing");
        assert_eq!((wire.frames(0), wire.frames(1)), (0, 1));
    }
}
