//! The machine on the segment: smoltcp's interface and sockets, and what it serves.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::udp::UdpMetadata;
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant as Moment;
use smoltcp::wire::{
    DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress, IpAddress, IpCidr,
    IpEndpoint,
};

use super::{Host, MAC, Request, Response, Shared};

/// The longest frame without tag, in bytes.
const FRAME: usize = 1514;
/// How many guests' connections are served at once.
const CONNECTIONS: usize = 4;
/// A connection's buffers, and the longest request, in bytes.
const BUFFER: usize = 64 << 10;
/// How long the loop sleeps at most.
const NAP: Duration = Duration::from_millis(50);
/// How long a lease lasts, in seconds.
const LEASE: u32 = 3600;
const HTTP: u16 = 80;
const NTP: u16 = 123;
/// Length of an NTP packet without extensions, in bytes.
const NTP_LENGTH: usize = 48;
/// Seconds from 1900, where NTP begins, to 1970.
const NTP_EPOCH: u64 = 2_208_988_800;

/// Works until nobody can send any more, which is for ever.
pub(super) fn run(host: Host, frames: &Receiver<(usize, Vec<u8>)>, shared: &Mutex<Shared>) {
    let begun = Instant::now();
    let now = || Moment::from_micros(i64::try_from(begun.elapsed().as_micros()).expect("short"));
    let mut card = Card::default();
    let mut interface = Interface::new(Config::new(EthernetAddress(MAC).into()), &mut card, now());
    interface.update_ip_addrs(|addresses| {
        let own = [Some((host.address, host.prefix)), host.also.map(|address| (address, 32))];
        for (address, prefix) in own.into_iter().flatten() {
            addresses.push(IpCidr::new(IpAddress::Ipv4(address), prefix)).expect("there is room for two");
        }
    });
    let mut services = Services::new(host);
    loop {
        let nap = interface.poll_delay(now(), &services.sockets).map_or(NAP, |delay| NAP.min(delay.into()));
        match frames.recv_timeout(nap) {
            Ok((port, frame)) => {
                let taken = shared.lock().expect("no holder panics").take(services.host.vlan, port, &frame);
                card.received.extend(taken);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        interface.poll(now(), &mut card, &mut services.sockets);
        services.serve(shared);
        interface.poll(now(), &mut card, &mut services.sockets);
        let mut shared = shared.lock().expect("no holder panics");
        for frame in card.sent.drain(..) {
            shared.deliver(services.host.vlan, &frame);
        }
    }
}

/// The card of the machine.
#[derive(Debug, Default)]
struct Card {
    received: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

struct Incoming(Vec<u8>);
struct Outgoing<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut frame = vec![0; length];
        let result = write(&mut frame);
        self.0.push(frame);
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _now: Moment) -> Option<(Incoming, Outgoing<'_>)> {
        let frame = self.received.pop_front()?;
        Some((Incoming(frame), Outgoing(&mut self.sent)))
    }

    fn transmit(&mut self, _now: Moment) -> Option<Outgoing<'_>> {
        Some(Outgoing(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        capabilities
    }
}

/// What is served.
struct Services {
    host: Host,
    sockets: SocketSet<'static>,
    http: Vec<(SocketHandle, Connection)>,
    ntp: SocketHandle,
    dhcp: SocketHandle,
}

/// One HTTP connection.
#[derive(Debug, Default)]
struct Connection {
    request: Vec<u8>,
    /// What is still to be sent, once the request is complete.
    answer: Option<Vec<u8>>,
}

impl Services {
    fn new(host: Host) -> Self {
        let mut sockets = SocketSet::new(Vec::new());
        let bytes = || tcp::SocketBuffer::new(vec![0; BUFFER]);
        let http = (0..CONNECTIONS).map(|_| (sockets.add(tcp::Socket::new(bytes(), bytes())), Connection::default()));
        let http = http.collect();
        let packets = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 16], vec![0; BUFFER]);
        let [ntp, dhcp] = [NTP, DHCP_SERVER_PORT].map(|port| {
            let mut socket = udp::Socket::new(packets(), packets());
            socket.bind(port).expect("the port is free");
            sockets.add(socket)
        });
        Self { host, sockets, http, ntp, dhcp }
    }

    fn serve(&mut self, shared: &Mutex<Shared>) {
        for (handle, connection) in &mut self.http {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(*handle);
            if let Some(request) = connection.serve(socket, &mut self.host.answer) {
                shared.lock().expect("no holder panics").requests.push(request);
            }
        }
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(self.ntp);
        while let Ok((packet, from)) = socket.recv() {
            if let Some(answer) = time_answer(packet, SystemTime::now()) {
                shared.lock().expect("no holder panics").time_requests += 1;
                socket.send_slice(&answer, from).expect("there is room for a few");
            }
        }
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(self.dhcp);
        while let Ok((packet, _)) = socket.recv() {
            if let Some(answer) = lease_answer(packet, &self.host) {
                let all = IpEndpoint::new(IpAddress::Ipv4(Ipv4Addr::BROADCAST), DHCP_CLIENT_PORT);
                let to = UdpMetadata { local_address: Some(IpAddress::Ipv4(self.host.address)), ..all.into() };
                socket.send_slice(&answer, to).expect("there is room for a few");
            }
        }
    }
}

impl Connection {
    /// Goes on as far as the guest has come. Gives a request that has just become complete.
    fn serve(&mut self, socket: &mut tcp::Socket<'_>, answer: &mut dyn FnMut(&Request) -> Response) -> Option<Request> {
        if !socket.is_open() {
            *self = Self::default();
            socket.listen(HTTP).expect("it is closed");
        }
        let mut complete = None;
        if self.answer.is_none() && socket.can_recv() {
            let take = |bytes: &mut [u8]| (bytes.len(), bytes.to_vec());
            self.request.extend(socket.recv(take).expect("it can be read"));
            if let Some(request) = parse(&self.request) {
                let (status, body) = answer(&request);
                let length = body.len();
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
                self.answer = Some([head.as_bytes(), &body].concat());
                complete = Some(request);
            } else if self.request.len() > BUFFER {
                socket.abort();
            }
        }
        if let Some(left) = &mut self.answer {
            if socket.can_send() && !left.is_empty() {
                let sent = socket.send_slice(left).expect("it can be written");
                left.drain(..sent);
            }
            if left.is_empty() || !socket.may_send() {
                socket.close();
            }
        } else if !socket.is_listening() && !socket.may_recv() && socket.may_send() {
            // The guest has ended before it has asked.
            socket.close();
        }
        complete
    }
}

/// A request whose head is complete. None that is asked here has a body.
fn parse(bytes: &[u8]) -> Option<Request> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let first = lines.next()?;
    let line = first.rsplit_once(' ').map_or(first, |(line, _version)| line).to_owned();
    let fields = lines.filter_map(|line| line.split_once(':'));
    let headers = fields.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
    Some(Request { line, headers })
}

/// The answer of a time server of the first stratum ([RFC 5905](https://www.rfc-editor.org/rfc/rfc5905), figure 8).
/// `None` for what is no question of a client.
fn time_answer(question: &[u8], now: SystemTime) -> Option<Vec<u8>> {
    let first = *question.first().filter(|_| question.len() >= NTP_LENGTH)?;
    let (version, mode) = (first >> 3 & 7, first & 7);
    if mode != 3 {
        return None;
    }
    let since = now.duration_since(UNIX_EPOCH).ok()?;
    // The 32 bits of seconds begin anew in 2036; clients know.
    let seconds = u32::try_from((since.as_secs() + NTP_EPOCH) & 0xffff_ffff).ok()?;
    let fraction = u32::try_from((u64::from(since.subsec_nanos()) << 32) / 1_000_000_000).ok()?;
    let now = [seconds.to_be_bytes(), fraction.to_be_bytes()].concat();
    // No leap second, the client's version, mode 4; stratum 1; its poll interval; 2^-20 s.
    let mut answer = vec![version << 3 | 4, 1, question[2], 0xec];
    answer.extend([0; 8]);
    answer.extend(b"LOCL");
    answer.extend(&now);
    answer.extend(&question[40..48]);
    answer.extend([now.clone(), now].concat());
    Some(answer)
}

/// The answer of a DHCP server with one lease. `None` where there is none, or for what is no question to it.
fn lease_answer(question: &[u8], host: &Host) -> Option<Vec<u8>> {
    let lease = host.lease?;
    let packet = DhcpPacket::new_checked(question).ok()?;
    let asked = DhcpRepr::parse(&packet).ok()?;
    let message_type = match asked.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request if asked.requested_ip.is_none_or(|wanted| wanted == lease) => DhcpMessageType::Ack,
        DhcpMessageType::Request => DhcpMessageType::Nak,
        _ => return None,
    };
    let mask = u32::MAX.checked_shl(32 - u32::from(host.prefix)).unwrap_or(0);
    let answer = DhcpRepr {
        message_type,
        your_ip: lease,
        server_ip: host.address,
        router: Some(host.address),
        subnet_mask: Some(mask.into()),
        broadcast: true,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(host.address),
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: Some(LEASE),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
        ..asked
    };
    let mut bytes = vec![0; answer.buffer_len()];
    answer.emit(&mut DhcpPacket::new_unchecked(&mut bytes)).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_once_they_are_complete() {
        assert_eq!(parse(b"GET /a HTTP/1.1\r\nHost: h\r\n"), None);
        let request = parse(b"PUT /a%20b HTTP/1.1\r\nX-Token-TTL:  30 \r\nHost: h:80\r\n\r\n").unwrap();
        assert_eq!(request.line, "PUT /a%20b");
        assert_eq!((request.header("x-token-ttl"), request.header("host"), request.header("x")), ("30", "h:80", ""));
    }

    #[test]
    fn the_time_is_told_to_clients_alone() {
        let mut question = vec![0; NTP_LENGTH];
        question[0] = 4 << 3 | 3;
        question[40..48].copy_from_slice(b"theirown");
        let now = UNIX_EPOCH + Duration::from_millis(1_500);
        let answer = time_answer(&question, now).unwrap();
        assert_eq!(
            (answer.len(), answer[0], answer[1], &answer[24..32]),
            (NTP_LENGTH, 4 << 3 | 4, 1, &b"theirown"[..])
        );
        let stamp = [&2_208_988_801_u32.to_be_bytes()[..], &0x8000_0000_u32.to_be_bytes()].concat();
        assert_eq!((&answer[32..40], &answer[40..48]), (&stamp[..], &stamp[..]));
        question[0] = 4 << 3 | 4;
        assert_eq!(time_answer(&question, now), None);
        assert_eq!(time_answer(&question[..40], now), None);
    }
}
