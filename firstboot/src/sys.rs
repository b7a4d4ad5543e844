//! The few calls into the kernel and the C library that `rustix` and `std` do not wrap.
//!
//! This is the only module of the crate with unsafe code. Each function here is a safe wrapper that states what
//! it relies on; nothing in it decides anything.

#![expect(
    unsafe_code,
    reason = "ioctl, getifaddrs, the clock, signals and a chroot between fork and exec have no safe wrapper"
)]

use std::ffi::{CStr, CString};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

/// `_IO(0x12, 95)` of `linux/fs.h`: read the partition table of a disk again.
const BLKRRPART: libc::c_ulong = 0x125f;

/// `_IO(0x12, 97)` of `linux/fs.h`: write back and forget what is cached of a block device.
const BLKFLSBUF: libc::c_ulong = 0x1261;

/// `_IOWR(0xfd, 0, struct dm_ioctl)` of `linux/dm-ioctl.h`; the command's number is added to it.
const DM_IOCTL_BASE: libc::c_ulong = 0xc138_fd00;

/// Size of `struct dm_ioctl`, the header of every device-mapper call, in bytes.
pub(crate) const DM_HEADER_LEN: usize = 312;

/// Makes the kernel read the partition table of `disk` again.
///
/// # Errors
/// `EBUSY` when a partition of the disk is in use.
pub(crate) fn reread_partition_table(disk: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: BLKRRPART takes no argument, and the descriptor is open for the length of the call.
    check(unsafe { libc::ioctl(disk.as_raw_fd(), BLKRRPART) })
}

/// Makes the kernel write back and forget what it has cached of a block device. Disk and partitions are cached apart, so
/// that without it what was written through one may not be seen through the other.
///
/// # Errors
/// `EACCES` without privilege, `ENOTTY` for what is no block device.
pub(crate) fn flush_buffers(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: BLKFLSBUF takes no argument, and the descriptor is open for the length of the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKFLSBUF, 0) })
}

/// Sends one device-mapper command; the kernel's answer overwrites `buffer`.
///
/// # Errors
/// `InvalidInput` when the buffer is shorter than the header, or its own size field lies about its length; else what
/// the kernel answers.
pub(crate) fn device_mapper(control: BorrowedFd<'_>, command: u8, buffer: &mut [u8]) -> io::Result<()> {
    let claimed = buffer.get(12..16).and_then(|size| size.try_into().ok()).map(u32::from_le_bytes);
    if buffer.len() < DM_HEADER_LEN || claimed.map(|size| size as usize) != Some(buffer.len()) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let request = DM_IOCTL_BASE + libc::c_ulong::from(command);
    // SAFETY: the kernel reads and writes at most the `data_size` bytes that the header names, and it was just
    // checked that this is the length of the buffer.
    check(unsafe { libc::ioctl(control.as_raw_fd(), request, buffer.as_mut_ptr()) })
}

/// Makes `command` run with `root` as its root directory and working directory.
///
/// # Errors
/// `InvalidInput` when the path holds a NUL byte.
pub(crate) fn run_in_root(command: &mut Command, root: &Path) -> io::Result<()> {
    let root = CString::new(root.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the closure runs between fork and exec. It only makes two system calls on a string that was
    // allocated before, which is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            check(libc::chroot(root.as_ptr()))?;
            check(libc::chdir(c"/".as_ptr()))
        });
    }
    Ok(())
}

/// One address of one network interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InterfaceAddress {
    /// The interface's name.
    pub(crate) interface: String,
    /// The address.
    pub(crate) address: IpAddr,
    /// Length of the network's prefix, in bits.
    pub(crate) prefix: u8,
}

/// The addresses of all interfaces that are up, loopback left out, sorted.
///
/// # Errors
/// What `getifaddrs` answers.
pub(crate) fn interface_addresses() -> io::Result<Vec<InterfaceAddress>> {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: getifaddrs writes one pointer, which is given back to freeifaddrs below.
    check(unsafe { libc::getifaddrs(&raw mut list) })?;
    let mut found = Vec::new();
    let mut next = list;
    // SAFETY: the list is a chain of valid entries that ends in null, and lives until freeifaddrs.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        let flags = entry.ifa_flags as libc::c_int;
        if flags & libc::IFF_UP == 0 || flags & libc::IFF_LOOPBACK != 0 {
            continue;
        }
        // SAFETY: address and netmask are null or point to a sockaddr of the family that they name.
        let (address, mask) = unsafe { (ip_address(entry.ifa_addr), ip_address(entry.ifa_netmask)) };
        if let Some(address) = address {
            // SAFETY: the name is a NUL-terminated string that lives as long as the entry.
            let interface = unsafe { CStr::from_ptr(entry.ifa_name) }.to_string_lossy().into_owned();
            found.push(InterfaceAddress { interface, address, prefix: mask.map_or(0, prefix_length) });
        }
    }
    // SAFETY: the list comes from getifaddrs, and nothing points into it any more.
    unsafe { libc::freeifaddrs(list) };
    found.sort();
    Ok(found)
}

/// Reads the address out of a socket address, when it is an IP one.
///
/// # Safety
/// The pointer is null, or points to a valid socket address of the family that it names.
unsafe fn ip_address(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: by the contract above; every socket address begins with its family.
    let family = libc::c_int::from(unsafe { address.as_ref() }?.sa_family);
    match family {
        libc::AF_INET => {
            // SAFETY: the family says that this is a sockaddr_in; it may lie unaligned for its own type.
            let v4 = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(IpAddr::V4(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for sockaddr_in6.
            let v6 = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(IpAddr::V6(Ipv6Addr::from(v6.sin6_addr.s6_addr)))
        }
        _ => None,
    }
}

/// Counts the leading ones of a netmask.
fn prefix_length(mask: IpAddr) -> u8 {
    let ones = match mask {
        IpAddr::V4(mask) => u32::from(mask).leading_ones(),
        IpAddr::V6(mask) => u128::from(mask).leading_ones(),
    };
    u8::try_from(ones).expect("at most 128 bits")
}

/// Sets the system's clock.
///
/// # Errors
/// What `clock_settime` answers; `InvalidInput` for a time before 1970.
pub(crate) fn set_clock(time: SystemTime) -> io::Result<()> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| io::ErrorKind::InvalidInput)?;
    let seconds = libc::time_t::try_from(since.as_secs()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let time = libc::timespec { tv_sec: seconds, tv_nsec: since.subsec_nanos().into() };
    // SAFETY: the kernel reads one timespec, which lives for the length of the call.
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) })
}

/// Whether the kernel calls its clock synchronised: `STA_UNSYNC` of adjtimex(2) is not set.
///
/// # Errors
/// What `adjtimex` answers.
pub(crate) fn clock_is_synchronised() -> io::Result<bool> {
    // SAFETY: a timex is made of integers, for which zeros are valid; with `modes` at zero nothing is changed.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one timex.
    check(unsafe { libc::adjtimex(&raw mut timex) })?;
    Ok(timex.status & libc::STA_UNSYNC == 0)
}

/// Whether SIGTERM has come since [`watch_sigterm`].
static TERMINATED: AtomicBool = AtomicBool::new(false);

/// From now on SIGTERM does not end the program; [`is_terminated`] tells that it came.
///
/// # Errors
/// What `sigaction` answers.
pub(crate) fn watch_sigterm() -> io::Result<()> {
    extern "C" fn note(_signal: libc::c_int) {
        TERMINATED.store(true, Ordering::SeqCst);
    }
    // SAFETY: a sigaction is made of integers and an optional function, for which zeros are valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = note as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // System calls go on: who waits looks at the flag often enough.
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler stores to an atomic, which is async-signal-safe; the old action is not asked for.
    check(unsafe { libc::sigaction(libc::SIGTERM, &raw const action, std::ptr::null_mut()) })
}

/// Whether SIGTERM has come.
pub(crate) fn is_terminated() -> bool {
    TERMINATED.load(Ordering::SeqCst)
}

/// Turns a C return value into a result.
fn check(returned: libc::c_int) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn netmasks_become_prefixes() {
        for (mask, prefix) in [("255.255.255.0", 24), ("0.0.0.0", 0), ("255.255.255.255", 32), ("ffff:ffff::", 32)] {
            assert_eq!(prefix_length(mask.parse().expect(mask)), prefix, "{mask}");
        }
    }

    #[test]
    fn addresses_can_be_listed_without_loopback() {
        let addresses = interface_addresses().expect("getifaddrs");
        assert!(addresses.iter().all(|found| !found.address.is_loopback()), "{addresses:?}");
    }

    #[test]
    fn sigterm_is_noted_and_the_clock_is_asked() {
        watch_sigterm().expect("sigaction");
        assert!(!is_terminated());
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).expect("kill");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !is_terminated() {
            assert!(std::time::Instant::now() < deadline, "the signal did not come");
            std::thread::yield_now();
        }
        clock_is_synchronised().expect("adjtimex");
        assert!(set_clock(SystemTime::UNIX_EPOCH - std::time::Duration::from_secs(1)).is_err(), "before 1970");
    }

    #[test]
    fn a_device_mapper_buffer_that_lies_about_its_length_is_refused() {
        let null = File::open("/dev/null").expect("/dev/null");
        let mut short = vec![0; 100];
        let mut liar = vec![0; DM_HEADER_LEN];
        liar[12..16].copy_from_slice(&4096_u32.to_le_bytes());
        for buffer in [&mut short, &mut liar] {
            let error = device_mapper(null.as_fd(), 0, buffer).expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }
}
