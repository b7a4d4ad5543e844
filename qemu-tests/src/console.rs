//! What a guest writes to its serial console, line by line with times, and waiting for it with deadlines.
//!
//! Control sequences (ECMA-48) are taken out; those that move the cursor end a line, because firmware and boot loaders
//! draw on the screen without line breaks. A line that says that the guest is lost ends every wait at once.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// No scenario goes on after one of these, unless it expects it.
const FATAL: [&str; 7] = [
    "Kernel panic",
    "NodeZero cannot start",
    "NodeZero cannot finish step",
    "emergency mode",
    "emergency.target",
    "Oops",
    "BUG:",
];

/// Signs of a host that is too busy rather than of a guest that is broken, although they look like [`FATAL`] ones.
const SLOW: [&str; 4] = ["soft lockup", "self-detected stall", "detected stalls", "workqueue lockup"];

/// Longer lines are broken: a guest gone wild must not take the memory of the test.
const LONGEST_LINE: usize = 16 * 1024;

/// One line of the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Time since the machine was switched on, when the line began.
    pub at: Duration,
    /// The text, without control sequences.
    pub text: String,
}

/// Why waiting came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The time is over.
    #[error("no {wanted:?} on the console within {deadline:?}")]
    Deadline {
        /// What was waited for.
        wanted: String,
        /// How long.
        deadline: Duration,
    },
    /// A line says that the guest is lost.
    #[error("the console says {line:?}, {at:?} after power-on, while waiting for {wanted:?}")]
    Fatal {
        /// What was waited for.
        wanted: String,
        /// The line.
        line: String,
        /// When it came.
        at: Duration,
    },
    /// The machine is off.
    #[error("the machine went off while waiting for {wanted:?}")]
    Closed {
        /// What was waited for.
        wanted: String,
    },
}

/// The console of one power-on of a machine. Clones share it.
#[derive(Debug, Clone)]
pub struct Console {
    shared: Arc<Shared>,
    writer: Arc<UnixStream>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Console {
    /// Reads `stream` in a thread of its own until its end, and writes what comes to `log` as well.
    pub fn read(stream: UnixStream, log: &Path) -> io::Result<Console> {
        let mut file = File::create(log)?;
        let mut reader = stream.try_clone()?;
        let shared = Arc::new(Shared { state: Mutex::new(State::default()), changed: Condvar::new() });
        let console = Console { shared: Arc::clone(&shared), writer: Arc::new(stream) };
        let switched_on = Instant::now();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                // A reset connection is how a killed QEMU ends.
                let read = reader.read(&mut buffer).unwrap_or(0);
                let now = switched_on.elapsed();
                let mut state = shared.lock();
                let from = state.lines.len();
                if read == 0 {
                    state.end_line();
                    state.closed = true;
                } else {
                    state.write(&buffer[..read], now);
                }
                for line in &state.lines[from..] {
                    // The log is for people; a full disk fails a test elsewhere.
                    let _ = writeln!(file, "[{:9.3}] {}", line.at.as_secs_f64(), line.text);
                }
                drop(state);
                shared.changed.notify_all();
                if read == 0 {
                    return;
                }
            }
        });
        Ok(console)
    }

    /// Waits for text that contains `wanted`, in what no earlier wait has passed, be its line complete or not.
    pub fn wait_for(&self, wanted: &str, deadline: Duration) -> Result<Line, Error> {
        self.wait_for_any(&[wanted], deadline)
    }

    /// Like [`Console::wait_for`], for the first of several texts.
    pub fn wait_for_any(&self, wanted: &[&str], deadline: Duration) -> Result<Line, Error> {
        let started = Instant::now();
        let mut state = self.shared.lock();
        loop {
            if let Some(line) = state.next_with(wanted) {
                return Ok(line);
            }
            let wanted = || wanted.join("\" or \"");
            if let Some(line) = state.fatal() {
                return Err(Error::Fatal { wanted: wanted(), line: line.text, at: line.at });
            }
            if state.closed {
                return Err(Error::Closed { wanted: wanted() });
            }
            let Some(left) = deadline.checked_sub(started.elapsed()) else {
                return Err(Error::Deadline { wanted: wanted(), deadline });
            };
            state = self.shared.changed.wait_timeout(state, left).expect("no holder of the console panics").0;
        }
    }

    /// From now on `pattern`, one of the patterns that say that a guest is lost, does not end a wait.
    pub fn expect(&self, pattern: &str) {
        self.shared.lock().expected.push(pattern.to_owned());
    }

    /// The first line so far that says that the guest is lost and that nobody expects.
    pub fn fatal(&self) -> Option<Line> {
        self.shared.lock().fatal()
    }

    /// All lines so far, the last one complete or not.
    pub fn lines(&self) -> Vec<Line> {
        let state = self.shared.lock();
        state.lines.iter().chain(&state.partial).cloned().collect()
    }

    /// The first line so far that contains `text`.
    pub fn find(&self, text: &str) -> Option<Line> {
        self.lines().into_iter().find(|line| line.text.contains(text))
    }

    /// The last `count` lines, for people.
    pub fn tail(&self, count: usize) -> String {
        let lines = self.lines();
        let tail = &lines[lines.len().saturating_sub(count)..];
        tail.iter().map(|line| format!("[{:9.3}] {}\n", line.at.as_secs_f64(), line.text)).collect()
    }

    /// Types `text` on the console.
    pub fn type_in(&self, text: &str) -> io::Result<()> {
        (&*self.writer).write_all(text.as_bytes())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the console panics")
    }
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<Line>,
    /// The line that has no end yet.
    partial: Option<Line>,
    escape: Escape,
    /// Bytes of a UTF-8 sequence that is not complete yet.
    pending: Vec<u8>,
    /// The number of lines that waits have passed.
    passed: usize,
    expected: Vec<String>,
    closed: bool,
}

/// Where in a control sequence the input is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    /// After ESC.
    Begun,
    /// After ESC and intermediate bytes, before the final one.
    Designating,
    /// After ESC and `[`, before the final byte.
    Control,
    /// Within a string that BEL or ESC `\` ends, such as a window title.
    String,
    /// Within such a string, after an ESC.
    Closing,
}

impl State {
    fn write(&mut self, bytes: &[u8], now: Duration) {
        for &byte in bytes {
            self.escape = match (self.escape, byte) {
                (Escape::None, 0x1b) => Escape::Begun,
                (Escape::None, b'\n') => {
                    self.begin_line(now);
                    self.end_line();
                    Escape::None
                }
                (Escape::None, 0..0x20 | 0x7f) if byte != b'\t' => Escape::None,
                (Escape::None, _) => {
                    self.push(byte, now);
                    Escape::None
                }
                (Escape::Begun, b'[') => Escape::Control,
                (Escape::Begun, b']' | b'P' | b'X' | b'^' | b'_') => Escape::String,
                (Escape::Begun | Escape::Designating, 0x20..0x30) => Escape::Designating,
                (Escape::Begun | Escape::Designating, _) => Escape::None,
                (Escape::Control, b'A'..=b'H' | b'J' | b'd' | b'f') => {
                    self.end_line();
                    Escape::None
                }
                (Escape::Control, 0x40..0x7f) => Escape::None,
                (Escape::Control, _) => Escape::Control,
                (Escape::String, 0x07) => Escape::None,
                (Escape::String, 0x1b) => Escape::Closing,
                (Escape::String, _) => Escape::String,
                (Escape::Closing, b'\\') => Escape::None,
                (Escape::Closing, _) => Escape::String,
            };
        }
    }

    fn push(&mut self, byte: u8, now: Duration) {
        self.begin_line(now);
        self.pending.push(byte);
        match std::str::from_utf8(&self.pending) {
            Ok(text) => self.partial.as_mut().expect("begun above").text.push_str(text),
            Err(error) if error.error_len().is_none() => return,
            Err(_) => self.partial.as_mut().expect("begun above").text.push(char::REPLACEMENT_CHARACTER),
        }
        self.pending.clear();
        if self.partial.as_ref().is_some_and(|line| line.text.len() >= LONGEST_LINE) {
            self.end_line();
        }
    }

    fn begin_line(&mut self, now: Duration) {
        self.partial.get_or_insert(Line { at: now, text: String::new() });
    }

    fn end_line(&mut self) {
        self.pending.clear();
        self.lines.extend(self.partial.take());
    }

    /// The first line not passed yet that contains one of `wanted`, which is passed with this.
    fn next_with(&mut self, wanted: &[&str]) -> Option<Line> {
        let mut fresh = self.lines.iter().chain(&self.partial).enumerate().skip(self.passed);
        let (number, line) = fresh.find(|(_, line)| wanted.iter().any(|wanted| line.text.contains(wanted)))?;
        let line = line.clone();
        self.passed = number + 1;
        Some(line)
    }

    fn fatal(&self) -> Option<Line> {
        let fatal = |line: &&Line| {
            FATAL.iter().any(|fatal| line.text.contains(fatal))
                && !SLOW.iter().any(|slow| line.text.contains(slow))
                && !self.expected.iter().any(|expected| line.text.contains(expected))
        };
        self.lines.iter().chain(&self.partial).find(fatal).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(bytes: &[u8]) -> Vec<String> {
        let mut state = State::default();
        // Sequences may be cut anywhere, so each byte comes alone.
        for byte in bytes {
            state.write(&[*byte], Duration::ZERO);
        }
        state.end_line();
        state.lines.into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn control_sequences_are_taken_out() {
        let cases: [(&[u8], &[&str]); 11] = [
            (b"one\r\ntwo\n", &["one", "two"]),
            (b"one\n\ntwo", &["one", "", "two"]),
            (b"\x1b[0;32m  OK  \x1b[0m Started", &["  OK   Started"]),
            (b"BdsDxe\x1b[2J\x1b[01;01Hloading", &["BdsDxe", "loading"]),
            (b"\x1b[=3h\x1b[?25lboot", &["boot"]),
            (b"\x1b]0;title\x07name", &["name"]),
            (b"\x1b]8;;link\x1b\\name", &["name"]),
            (b"\x1bcreset\x1b(Bset", &["resetset"]),
            ("Zürich \u{1f600}".as_bytes(), &["Zürich \u{1f600}"]),
            (b"bad \xff byte\x00", &["bad \u{fffd} byte"]),
            (b"", &[]),
        ];
        for (bytes, expected) in cases {
            assert_eq!(text_of(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
        let long = text_of(&vec![b'x'; LONGEST_LINE + 1]);
        assert_eq!(long.iter().map(String::len).collect::<Vec<_>>(), [LONGEST_LINE, 1]);
    }

    #[test]
    fn fatal_lines() {
        let cases = [
            ("[    1.2] Kernel panic - not syncing: VFS", true),
            ("You are in emergency mode.", true),
            ("BUG: kernel NULL pointer dereference", true),
            ("watchdog: BUG: soft lockup - CPU#0 stuck for 22s!", false),
            ("rcu: INFO: rcu_preempt self-detected stall on CPU", false),
            ("nodezero: ready", false),
            ("systemd: debugging", false),
        ];
        for (line, fatal) in cases {
            let mut state = State::default();
            state.write(line.as_bytes(), Duration::ZERO);
            assert_eq!(state.fatal().is_some(), fatal, "{line}");
            state.expected.push(line[..5].to_owned());
            assert_eq!(state.fatal(), None, "{line} expected");
        }
    }

    fn console() -> (Console, UnixStream, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let (guest, host) = UnixStream::pair().unwrap();
        (Console::read(host, &dir.path().join("console.log")).unwrap(), guest, dir)
    }

    const SOON: Duration = Duration::from_secs(20);
    const NOW: Duration = Duration::from_millis(50);

    #[test]
    fn waiting_passes_what_was_found() {
        let (console, mut guest, dir) = console();
        guest.write_all(b"first ready\nlogin: ").unwrap();
        assert_eq!(console.wait_for("ready", SOON).unwrap().text, "first ready");
        assert_eq!(console.wait_for("login:", SOON).unwrap().text, "login: ", "a line without its end");
        let error = console.wait_for("ready", NOW).unwrap_err();
        assert!(matches!(error, Error::Deadline { .. }), "{error}");
        guest.write_all(b"root\r\nagain ready").unwrap();
        assert_eq!(console.wait_for_any(&["never", "ready"], SOON).unwrap().text, "again ready");
        assert_eq!(console.find("root").unwrap().text, "login: root");
        drop(guest);
        let error = console.wait_for("ready", SOON).unwrap_err();
        assert!(matches!(error, Error::Closed { .. }), "{error}");
        assert!(console.tail(1).ends_with("] again ready\n"));
        let log = std::fs::read_to_string(dir.path().join("console.log")).unwrap();
        assert_eq!(
            log.lines().map(|line| line.split_once("] ").unwrap().1).collect::<Vec<_>>(),
            ["first ready", "login: root", "again ready"]
        );
    }

    #[test]
    fn a_lost_guest_ends_waiting_unless_expected() {
        let (console, mut guest, _dir) = console();
        guest.write_all(b"Kernel panic - not syncing\n").unwrap();
        let error = console.wait_for("ready", SOON).unwrap_err();
        assert!(matches!(error, Error::Fatal { .. }), "{error}");
        console.expect("Kernel panic");
        let error = console.wait_for("ready", NOW).unwrap_err();
        assert!(matches!(error, Error::Deadline { .. }), "{error}");
    }

    #[test]
    fn typing_reaches_the_guest() {
        let (console, mut guest, _dir) = console();
        console.type_in("root\n").unwrap();
        let mut typed = [0; 5];
        guest.read_exact(&mut typed).unwrap();
        assert_eq!(&typed, b"root\n");
    }
}
