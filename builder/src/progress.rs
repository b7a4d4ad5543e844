//! What the command says while it works: one line that changes on a terminal, plain lines elsewhere, on stderr.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;

/// The time that one stage of a build took.
#[derive(Clone, Debug, Serialize)]
pub struct StageTime {
    /// The stage's name.
    pub stage: &'static str,
    /// Wall-clock milliseconds.
    pub milliseconds: u128,
}

/// The voice of a command. Clones speak together.
#[derive(Clone)]
pub struct Progress {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    quiet: bool,
    terminal: bool,
    count: Option<(&'static str, u64, u64)>,
    drawn: Instant,
    stages: Vec<StageTime>,
    warnings: Vec<String>,
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}

impl Progress {
    /// A voice; `quiet` leaves warnings only.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        let inner = Inner {
            quiet,
            terminal: io::stderr().is_terminal(),
            count: None,
            drawn: Instant::now(),
            stages: Vec::new(),
            warnings: Vec::new(),
        };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    fn with<R>(&self, act: impl FnOnce(&mut Inner) -> R) -> R {
        act(&mut self.inner.lock().expect("nothing panics while it speaks"))
    }

    /// Runs a stage and keeps its time.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn stage<T, E>(&self, stage: &'static str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let start = Instant::now();
        self.with(|inner| inner.draw(stage));
        let result = work();
        let milliseconds = start.elapsed().as_millis();
        self.with(|inner| {
            inner.count = None;
            inner.clear();
            inner.stages.push(StageTime { stage, milliseconds });
        });
        result
    }

    /// Begins to count `total` bytes of `what`; 0 stands for a total that nobody knows.
    pub fn start_count(&self, what: &'static str, total: u64) {
        self.with(|inner| {
            if !inner.terminal && !inner.quiet && total > 0 {
                eprintln!("{what} {}", Size(total));
            }
            inner.count = Some((what, 0, total));
        });
    }

    /// Counts bytes.
    pub fn add(&self, bytes: u64) {
        self.with(|inner| {
            let Some((what, done, total)) = &mut inner.count else { return };
            *done += bytes;
            let line = match total {
                0 => format!("{what} {}", Size(*done)),
                total => format!("{what} {} of {}", Size(*done), Size(*total)),
            };
            if inner.drawn.elapsed() > Duration::from_millis(100) {
                inner.draw(&line);
            }
        });
    }

    /// Says one line.
    pub fn say(&self, line: &str) {
        self.with(|inner| {
            if !inner.quiet {
                inner.clear();
                eprintln!("{line}");
            }
        });
    }

    /// Warns, whatever else is quiet, and keeps the warning for the manifest.
    pub fn warn(&self, line: &str) {
        self.with(|inner| {
            inner.clear();
            eprintln!("warning: {line}");
            inner.warnings.push(line.to_owned());
        });
    }

    /// The times of all stages so far.
    #[must_use]
    pub fn stages(&self) -> Vec<StageTime> {
        self.with(|inner| inner.stages.clone())
    }

    /// The warnings so far.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.with(|inner| inner.warnings.clone())
    }
}

impl Inner {
    fn draw(&mut self, line: &str) {
        if self.terminal && !self.quiet {
            eprint!("\r\x1b[K{line} …");
            // A terminal that takes no more output is no reason to stop.
            let _ = io::stderr().flush();
            self.drawn = Instant::now();
        }
    }

    fn clear(&mut self) {
        if self.terminal && !self.quiet {
            eprint!("\r\x1b[K");
        }
    }
}

/// A size in bytes for people, in binary units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["KiB", "MiB", "GiB", "TiB"];
        if self.0 < 1024 {
            return write!(f, "{} bytes", self.0);
        }
        #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < units.len() {
            value /= 1024.0;
            unit += 1;
        }
        write!(f, "{value:.1} {}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        for (size, text) in
            [(0, "0 bytes"), (1023, "1023 bytes"), (1 << 20, "1.0 MiB"), (18_000_000_000_000, "16.4 TiB")]
        {
            assert_eq!(Size(size).to_string(), text);
        }
    }
}
