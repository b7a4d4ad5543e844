//! Telling systemd how the service is: the datagrams of [sd_notify(3)], and the watchdog's.
//!
//! The watchdog is no clockwork: it pings only while the service shows life. That is a beat of the main loop, or work
//! that moved since the last look: time on a processor, or bytes read and written, of any thread of the service but the
//! watchdog's own, or of any program that it runs. So an mkfs may take as long as it takes, and what hangs for
//! [`PATIENCE`] is ended by systemd and started again.
//!
//! [sd_notify(3)]: https://www.freedesktop.org/software/systemd/man/sd_notify.html

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;

/// How long the service may show no life. A disk that is about to fail holds up whoever reads it for minutes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);
/// How deep programs are looked for below the service: it runs a program, which runs another.
const DEPTH: usize = 4;

/// The way to systemd; none where the service was started by hand.
#[derive(Debug)]
pub(crate) struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
}

impl Notifier {
    /// By `$NOTIFY_SOCKET`: a path, or `@` and an abstract name.
    ///
    /// # Errors
    /// When it is neither, or no socket can be made.
    pub(crate) fn new(address: Option<&OsStr>) -> anyhow::Result<Self> {
        let Some(address) = address.filter(|address| !address.is_empty()) else { return Ok(Self { socket: None }) };
        let open = || -> io::Result<(UnixDatagram, SocketAddr)> {
            let to = match address.as_bytes() {
                [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
                _ => SocketAddr::from_pathname(address)?,
            };
            let socket = UnixDatagram::unbound()?;
            // A manager that does not read must not hold up the node.
            socket.set_nonblocking(true)?;
            Ok((socket, to))
        };
        let socket = open().with_context(|| format!("opening NOTIFY_SOCKET={}", address.to_string_lossy()))?;
        Ok(Self { socket: Some(socket) })
    }

    /// Sends assignments, one on a line. What does not arrive is told by the watchdog, or is not missed.
    pub(crate) fn send(&self, assignments: &str) {
        if let Some((socket, to)) = &self.socket {
            let _ = socket.send_to_addr(assignments.as_bytes(), to);
        }
    }

    /// One line for `systemctl status`.
    pub(crate) fn status(&self, line: &str) {
        self.send(&format!("STATUS={}", line.replace(['\n', '\r'], " ")));
    }
}

/// The heart of the main loop.
#[derive(Debug)]
pub(crate) struct Pulse {
    origin: Instant,
    last_ms: AtomicU64,
}

impl Pulse {
    /// Begins with a beat.
    pub(crate) fn new() -> Self {
        Self { origin: Instant::now(), last_ms: AtomicU64::new(0) }
    }

    /// One beat.
    pub(crate) fn beat(&self) {
        self.last_ms.store(self.at(Instant::now()), Ordering::Relaxed);
    }

    fn at(&self, now: Instant) -> u64 {
        u64::try_from(now.duration_since(self.origin).as_millis()).unwrap_or(u64::MAX)
    }
}

/// Decides whether the service shows life.
pub(crate) struct Watchdog {
    pulse: Arc<Pulse>,
    work: Box<dyn FnMut() -> u64 + Send>,
    last_work: u64,
    last_life_ms: u64,
}

impl Watchdog {
    /// `work` gives a number that changes when the service, or what it runs, has worked.
    pub(crate) fn new(pulse: Arc<Pulse>, work: impl FnMut() -> u64 + Send + 'static) -> Self {
        Self { pulse, work: Box::new(work), last_work: 0, last_life_ms: 0 }
    }

    fn is_alive(&mut self, now: Instant) -> bool {
        let now = self.pulse.at(now);
        let work = (self.work)();
        if work != self.last_work {
            (self.last_work, self.last_life_ms) = (work, now);
        }
        let last = self.last_life_ms.max(self.pulse.last_ms.load(Ordering::Relaxed));
        now.saturating_sub(last) < u64::try_from(PATIENCE.as_millis()).expect("it is short")
    }

    /// Pings at `now` if the service shows life.
    fn look(&mut self, now: Instant, notifier: &Notifier) {
        if self.is_alive(now) {
            notifier.send("WATCHDOG=1");
        }
    }

    /// Looks three times in the time that systemd gives, `$WATCHDOG_USEC` in microseconds, in a thread that ends with
    /// the program. Without that variable nobody waits for a ping.
    pub(crate) fn start(mut self, microseconds: Option<&OsStr>, notifier: Arc<Notifier>) {
        let Some(time) = microseconds.and_then(|text| text.to_str()?.parse().ok()).map(Duration::from_micros) else {
            return;
        };
        std::thread::spawn(move || {
            loop {
                self.look(Instant::now(), &notifier);
                std::thread::sleep(time / 3);
            }
        });
    }
}

/// A number that changes when a thread of this process other than the caller's, or a program below one, has worked.
pub(crate) fn work_of_others() -> u64 {
    let own = rustix::thread::gettid().as_raw_nonzero().to_string();
    work_of(Path::new("/proc/self"), Some(&own), DEPTH)
}

/// The work of a process without one of its threads, and that of its children.
fn work_of(process: &Path, without: Option<&str>, depth: usize) -> u64 {
    let tasks = fs::read_dir(process.join("task")).into_iter().flatten().flatten();
    tasks.filter(|task| without.is_none_or(|without| task.file_name() != *without)).fold(0_u64, |sum, task| {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let mut sum = sum.wrapping_add(processor_time(&read("stat"))).wrapping_add(bytes_moved(&read("io")));
        if depth > 0 {
            for child in read("children").split_whitespace() {
                // A program that begins or ends is life, too.
                sum = sum.wrapping_add(1).wrapping_add(work_of(&Path::new("/proc").join(child), None, depth - 1));
            }
        }
        sum
    })
}

/// Fields 14 and 15 of proc_pid_stat(5): ticks in user mode and in the kernel. The second field may hold anything.
fn processor_time(stat: &str) -> u64 {
    let Some((_, fields)) = stat.rsplit_once(')') else { return 0 };
    fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}

/// The sum of all counters of proc_pid_io(5).
fn bytes_moved(io: &str) -> u64 {
    io.lines().filter_map(|line| line.split_once(": ")?.1.parse::<u64>().ok()).fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// A socket like systemd's, at a path.
    fn manager() -> (tempfile::TempDir, UnixDatagram, Notifier) {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("bound");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("bounded");
        let notifier = Notifier::new(Some(path.as_os_str())).expect("opened");
        (directory, socket, notifier)
    }

    fn received(socket: &UnixDatagram) -> Option<String> {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    #[test]
    fn assignments_arrive_at_paths_and_abstract_names() {
        let (_directory, socket, notifier) = manager();
        notifier.send("READY=1");
        assert_eq!(received(&socket).as_deref(), Some("READY=1"));
        notifier.status("two\nlines");
        assert_eq!(received(&socket).as_deref(), Some("STATUS=two lines"));
        let name = format!("nodezero-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let socket = UnixDatagram::bind_addr(&address).expect("bound");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("bounded");
        Notifier::new(Some(OsStr::new(&format!("@{name}")))).expect("opened").send("STOPPING=1");
        assert_eq!(received(&socket).as_deref(), Some("STOPPING=1"));
    }

    #[test]
    fn without_a_manager_nothing_is_sent() {
        for address in [None, Some(OsStr::new("")), Some(OsStr::new("/does/not/exist"))] {
            Notifier::new(address).expect("no reason to stop").send("READY=1");
        }
    }

    #[test]
    fn the_watchdog_pings_while_there_is_life() {
        let (_directory, socket, notifier) = manager();
        socket.set_nonblocking(true).expect("not blocking");
        let pulse = Arc::new(Pulse::new());
        let work = Arc::new(AtomicU64::new(7));
        let counter = Arc::clone(&work);
        let mut watchdog = Watchdog::new(Arc::clone(&pulse), move || counter.load(Ordering::Relaxed));
        let start = pulse.origin;
        for (case, minute, works, beats, expected) in [
            ("just begun", 0, false, false, true),
            ("quiet for a while", 9, false, false, true),
            ("for too long", 11, false, false, false),
            ("a program works", 12, true, false, true),
            ("and still does", 60, true, false, true),
            ("quiet again", 69, false, false, true),
            ("for too long again", 71, false, false, false),
            ("the main loop beats", 72, false, true, true),
            ("nothing more", 83, false, false, false),
        ] {
            if works {
                work.fetch_add(1, Ordering::Relaxed);
            }
            if beats {
                pulse.last_ms.store(minute * 60_000, Ordering::Relaxed);
            }
            watchdog.look(start + Duration::from_secs(minute * 60), &notifier);
            assert_eq!(received(&socket).as_deref(), expected.then_some("WATCHDOG=1"), "{case}");
        }
    }

    #[test]
    fn the_thread_pings_in_time() {
        let (_directory, socket, notifier) = manager();
        let notifier = Arc::new(notifier);
        let dead = Watchdog::new(Arc::new(Pulse::new()), || 0);
        dead.start(None, Arc::clone(&notifier));
        let begin = Instant::now();
        Watchdog::new(Arc::new(Pulse::new()), || 0).start(Some(OsStr::new("300000")), notifier);
        for _ in 0..3 {
            assert_eq!(received(&socket).as_deref(), Some("WATCHDOG=1"));
        }
        assert!(begin.elapsed() >= Duration::from_millis(190), "{:?}", begin.elapsed());
    }

    #[test]
    fn the_work_of_a_program_is_seen() {
        let worker = std::thread::spawn(work_of_others);
        worker.join().expect("no panic");
        let mut busy = Command::new("dd");
        busy.args(["if=/dev/zero", "of=/dev/null"]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = busy.spawn().expect("dd runs");
        let process = Path::new("/proc").join(child.id().to_string());
        let before = work_of(&process, None, 0);
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut moved = false;
        while !moved && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            moved = work_of(&process, None, 0) != before;
        }
        child.kill().and_then(|()| child.wait()).expect("ended");
        assert!(moved, "dd copies, and nobody sees it");
    }

    #[test]
    fn records_of_processes_are_read() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 12 30 5 5 20 0 1 0 100 0 0";
        assert_eq!(processor_time(stat), 42);
        assert_eq!(processor_time(""), 0);
        assert_eq!(bytes_moved("rchar: 5\nwchar: 6\nsyscr: x\n"), 11);
    }
}
