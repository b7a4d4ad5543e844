//! A DHCPv4 client for as long as the first stage lasts ([RFC 2131](https://www.rfc-editor.org/rfc/rfc2131)).
//!
//! Discover, offer, request, acknowledgement, each sent again with growing pauses; no renewing, for the running system
//! asks anew. The client identifier is the hardware address, as systemd-networkd sends with `ClientIdentifier=mac`, so
//! that it gets the same lease. Taken are address, prefix, routers, classless routes
//! ([RFC 3442](https://www.rfc-editor.org/rfc/rfc3442)), DNS servers and MTU; the host name is ignored.
//!
//! Packets go through a UDP socket that is bound to the link, with the broadcast flag set. The source address is
//! therefore 0.0.0.0 only until another link has an address; servers do not look at it. Left out: options in the fields
//! for file and server names (option 52), which nobody sends who is not short of room.

mod packet;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dhcproto::v4::{CLIENT_PORT, MessageType, SERVER_PORT};
use socket2::{Domain, Protocol, Socket, Type};

pub(super) use self::packet::Lease;
use self::packet::{Answer, Client};
use super::types::MacAddress;

/// The largest packet that is taken, in bytes.
const PACKET_LIMIT: usize = 1500;
/// How often the socket looks whether it is to stop.
const SLICE: Duration = Duration::from_millis(100);
/// The longest pause between two packets.
const LONGEST_PAUSE: Duration = Duration::from_secs(64);
/// How often a request is sent before another server is looked for.
const REQUESTS: u32 = 3;

/// How long to wait for answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pauses {
    /// Before the first repetition; each further pause is twice as long.
    pub(super) first: Duration,
    /// A pause is up to this much shorter or longer, so that machines that start together do not speak together.
    pub(super) jitter: Duration,
}

impl Pauses {
    /// As RFC 2131 section 4.1 has them.
    pub(super) const STANDARD: Self = Self { first: Duration::from_secs(4), jitter: Duration::from_secs(1) };

    fn nth(self, nth: u32) -> Duration {
        let pause = self.first.saturating_mul(1 << nth.min(10)).min(LONGEST_PAUSE);
        let spread = u64::try_from(2 * self.jitter.as_millis()).unwrap_or(0) + 1;
        (pause + Duration::from_millis(u64::from(random()) % spread)).saturating_sub(self.jitter)
    }
}

/// Asks for a lease on a link until `until`, or until `stop` is set.
///
/// # Errors
/// In one line, what was tried and what came of it.
pub(super) fn acquire(
    link: &str,
    mac: MacAddress,
    until: Instant,
    pauses: Pauses,
    stop: &AtomicBool,
) -> Result<Lease, String> {
    let socket = open(link).map_err(|error| format!("opening a socket for DHCP: {error}"))?;
    let mut exchange = Exchange {
        socket,
        client: Client { mac, exchange: random() },
        since: Instant::now(),
        until,
        stop,
        sent: 0,
        ignored: None,
        send_error: None,
        refusals: 0,
        offered: None,
    };
    exchange.run(pauses).ok_or_else(|| exchange.failure())
}

/// The state of asking.
struct Exchange<'a> {
    socket: UdpSocket,
    client: Client,
    since: Instant,
    until: Instant,
    stop: &'a AtomicBool,
    sent: u32,
    /// Why the last packet for us was ignored.
    ignored: Option<String>,
    send_error: Option<String>,
    refusals: u32,
    /// The last server that offered.
    offered: Option<Ipv4Addr>,
}

impl Exchange<'_> {
    fn run(&mut self, pauses: Pauses) -> Option<Lease> {
        let mut nth = 0;
        while self.goes_on() {
            self.send(MessageType::Discover, None);
            let pause = pauses.nth(nth);
            nth += 1;
            let offer = self.wait(pause, |answer| match answer {
                Answer::Offer(lease) => Some(lease),
                Answer::Acknowledged(_) | Answer::Refused => None,
            });
            let Some(offer) = offer else { continue };
            self.offered = Some(offer.server);
            match self.request(&offer, pauses) {
                Some(Answer::Acknowledged(lease)) => return Some(lease),
                Some(Answer::Refused) => {
                    self.refusals += 1;
                    self.wait(pauses.first / 4, |_| None::<()>);
                    self.client.exchange = random();
                }
                Some(Answer::Offer(_)) | None => {}
            }
        }
        None
    }

    /// Takes an offer. `None` when its server does not answer.
    fn request(&mut self, offer: &Lease, pauses: Pauses) -> Option<Answer> {
        (0..REQUESTS).find_map(|nth| {
            if !self.goes_on() {
                return None;
            }
            self.send(MessageType::Request, Some(offer));
            self.wait(pauses.nth(nth), |answer| match answer {
                Answer::Offer(_) => None,
                answer @ (Answer::Acknowledged(_) | Answer::Refused) => Some(answer),
            })
        })
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.until && !self.stop.load(Ordering::Relaxed)
    }

    fn send(&mut self, kind: MessageType, offer: Option<&Lease>) {
        let seconds = u16::try_from(self.since.elapsed().as_secs()).unwrap_or(u16::MAX);
        let packet = self.client.packet(kind, offer, seconds);
        self.sent += 1;
        let to = SocketAddr::from((Ipv4Addr::BROADCAST, SERVER_PORT));
        // A link that has just come up may refuse a packet; the next one counts.
        self.send_error = self.socket.send_to(&packet, to).err().map(|error| error.to_string());
    }

    /// Reads packets until one is what is waited for, or the pause is over.
    fn wait<T>(&mut self, pause: Duration, mut wanted: impl FnMut(Answer) -> Option<T>) -> Option<T> {
        let end = self.until.min(Instant::now() + pause);
        let mut buffer = [0; PACKET_LIMIT];
        while Instant::now() < end && !self.stop.load(Ordering::Relaxed) {
            let packet = match self.socket.recv(&mut buffer) {
                Ok(length) => &buffer[..length],
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
                Err(_) => {
                    std::thread::sleep(SLICE);
                    continue;
                }
            };
            match self.client.read(packet) {
                Ok(Some(answer)) => {
                    if let Some(found) = wanted(answer) {
                        return Some(found);
                    }
                }
                Ok(None) => {}
                Err(reason) => self.ignored = Some(reason),
            }
        }
        None
    }

    fn failure(&self) -> String {
        if self.stop.load(Ordering::Relaxed) {
            return "another link was there first".to_owned();
        }
        let waited = self.since.elapsed().as_secs();
        let mut text = match self.offered {
            None => format!("no DHCP answer in {waited} s, {} packets sent", self.sent),
            Some(server) => format!("no DHCP lease in {waited} s: {server} offered one, and did not confirm it"),
        };
        if self.refusals > 0 {
            text += &format!(", {} refusals", self.refusals);
        }
        if let Some(ignored) = &self.ignored {
            text += &format!(", the last answer could not be used: {ignored}");
        }
        if let Some(error) = &self.send_error {
            text += &format!(", the last packet could not be sent: {error}");
        }
        text
    }
}

/// A UDP socket that sends and receives through one link only.
fn open(link: &str) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.bind_device(Some(link.as_bytes()))?;
    socket.set_broadcast(true)?;
    socket.set_read_timeout(Some(SLICE))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, CLIENT_PORT)).into())?;
    Ok(socket.into())
}

/// A number that others do not guess: the seed of a hash map, which the kernel gives without waiting for entropy.
fn random() -> u32 {
    let seed = RandomState::new().build_hasher().finish();
    u32::try_from(seed & u64::from(u32::MAX)).expect("32 bits")
}
