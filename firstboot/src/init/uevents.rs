//! Waiting for devices: the kernel announces each one on a netlink socket.
//!
//! What is announced is not parsed: after any event everything is looked at again, which a missed event could not
//! spoil. Without the socket a growing pause does the same, more slowly.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

/// The longest wait without looking again.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// After an event, others that belong to it follow at once.
const SETTLE: Duration = Duration::from_millis(2);

/// Announcements of the kernel.
#[derive(Debug)]
pub(crate) struct Uevents {
    socket: Option<OwnedFd>,
    pause: Duration,
}

impl Uevents {
    /// Begins to listen.
    pub(crate) fn listen() -> Self {
        let open = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
            // Group 1 is the kernel's own; group 2 is udev's.
            bind(&socket, &SocketAddrNetlink::new(0, 1))?;
            Ok::<_, rustix::io::Errno>(socket)
        };
        Self { socket: open().ok(), pause: Duration::from_millis(10) }
    }

    /// Waits until something was announced, or for a pause that grows with each call, but not past `deadline`.
    pub(crate) fn wait(&mut self, deadline: Instant) {
        let pause = self.pause.min(deadline.saturating_duration_since(Instant::now()));
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        let Some(socket) = &self.socket else {
            std::thread::sleep(pause);
            return;
        };
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(pause.subsec_nanos()) };
        let announced = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout));
        if announced.is_ok_and(|ready| ready > 0) {
            std::thread::sleep(SETTLE);
            let mut buffer = [0_u8; 8192];
            while recv(socket, &mut buffer[..], RecvFlags::DONTWAIT).is_ok() {}
        }
    }
}
