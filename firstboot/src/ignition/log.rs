//! The stages' log: one line a message, its level first.
//!
//! It goes to standard output where that is asked for, else to the kernel's log, which is there in the initrd and is
//! taken up by the journal. A line of level `CRITICAL` stands in it only when the stage fails.

use std::fmt::Display;
use std::io::Write;

use super::config::Report;
use crate::console;

/// How much a message matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// For finding errors in this program.
    Debug,
    /// What is done.
    Info,
    /// What the operator should look at.
    Warning,
    /// What went wrong, and may be tried again.
    Error,
    /// Why the stage fails.
    Critical,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warning => "WARNING",
            Self::Error => "ERROR",
            Self::Critical => "CRITICAL",
        }
    }
}

/// Where messages go. Secrets are never given to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Log {
    /// Standard output.
    Stdout,
    /// The kernel's log.
    Kernel,
}

impl Log {
    /// Writes a message, each of its lines with the level.
    pub(crate) fn write(self, level: Level, message: impl Display) {
        let message = message.to_string();
        for line in message.lines() {
            let line = format!("{:<9}: {line}", level.name());
            match self {
                // Whoever reads may have gone; a stage does not fail for that.
                Self::Stdout => drop(writeln!(std::io::stdout().lock(), "{line}")),
                Self::Kernel => console::to_kernel_log(&format!("ignition: {line}")),
            }
        }
    }

    /// See [`Level::Debug`].
    pub(crate) fn debug(self, message: impl Display) {
        self.write(Level::Debug, message);
    }

    /// See [`Level::Info`].
    pub(crate) fn info(self, message: impl Display) {
        self.write(Level::Info, message);
    }

    /// See [`Level::Warning`].
    pub(crate) fn warning(self, message: impl Display) {
        self.write(Level::Warning, message);
    }

    /// See [`Level::Error`].
    pub(crate) fn error(self, message: impl Display) {
        self.write(Level::Error, message);
    }

    /// See [`Level::Critical`].
    pub(crate) fn critical(self, message: impl Display) {
        self.write(Level::Critical, message);
    }

    /// Writes what was found in a config: what it is refused for as critical, the rest as warnings.
    pub(crate) fn report(self, report: &Report) {
        for entry in &report.entries {
            let level = if entry.fatal { Level::Critical } else { Level::Warning };
            let place = match entry.position {
                Some((line, column)) => format!("{}, line {line} col {column}", entry.path),
                None => entry.path.clone(),
            };
            self.write(level, format!("at {place}: {}", entry.message));
        }
    }
}
