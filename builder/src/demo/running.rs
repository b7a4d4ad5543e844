//! A machine of the demo that is on: QEMU, its console, and what that tells.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::follow::{Follower, News, clock};
use super::guard::{self, Owned};
use crate::machine::Machine;
use crate::tools::Tools;

/// What a machine's console is kept in, in its directory.
const CONSOLE: &str = "console.log";
/// What QEMU itself says.
const QEMU: &str = "qemu.log";
/// How much of it is told when it ends, in lines.
const QEMU_LINES: usize = 5;

/// A machine that is on.
pub(super) struct Running {
    /// What its console tells.
    pub(super) follower: Follower,
    lines: Receiver<String>,
    on: Instant,
    dir: PathBuf,
    _qemu: Owned,
}

impl Running {
    /// Switches a machine on whose disks and logs lie in `dir`.
    ///
    /// # Errors
    /// When QEMU cannot be had or started, or a file cannot be made.
    pub(super) fn switch_on(name: &str, machine: &Machine<'_>, tools: &Tools, dir: &Path) -> Result<Self> {
        let command = machine.command(tools, dir)?;
        let create = |file: &str| {
            let path = dir.join(file);
            File::create(&path).with_context(|| format!("creating {}", path.display()))
        };
        let mut command = guard::guarded(&command)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(create(QEMU)?);
        let mut qemu = Owned::start(&mut command).context("starting QEMU")?;
        let lines = lines_of(&mut qemu, Some(create(CONSOLE)?))?;
        Ok(Self { follower: Follower::new(name), lines, on: Instant::now(), dir: dir.to_owned(), _qemu: qemu })
    }

    /// The time since it was switched on.
    pub(super) fn since(&self) -> Duration {
        self.on.elapsed()
    }

    /// Where its console is kept.
    pub(super) fn console(&self) -> PathBuf {
        self.dir.join(CONSOLE)
    }

    /// Takes what the console has said.
    ///
    /// # Errors
    /// When the machine went off.
    pub(super) fn follow(&mut self) -> Result<Vec<News>> {
        let mut news = Vec::new();
        loop {
            match self.lines.try_recv() {
                Ok(line) => news.extend(self.follower.take(&line, self.on.elapsed())),
                Err(TryRecvError::Empty) => return Ok(news),
                Err(TryRecvError::Disconnected) => {
                    self.follower.end();
                    let (name, after) = (&self.follower.name, clock(self.on.elapsed()));
                    bail!("{name} went off {after} after power-on{}", last_words(&self.dir.join(QEMU)));
                }
            }
        }
    }
}

/// The end of what QEMU said, if it said anything.
fn last_words(log: &Path) -> String {
    let said = fs::read(log).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    match &lines[lines.len().saturating_sub(QEMU_LINES)..] {
        [] => String::new(),
        last => format!("; QEMU said: {}", last.join("; ")),
    }
}

/// What a program writes to its standard output, line by line, from a thread that ends with it. All of it goes to `log`
/// as it comes, too.
///
/// # Errors
/// When the program's output is no pipe.
pub(super) fn lines_of(program: &mut Owned, mut log: Option<File>) -> Result<Receiver<String>> {
    let stdout = program.stdout.take().context("a program's output is a pipe")?;
    let (sender, lines): (Sender<String>, _) = channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut line = Vec::new();
        // A console carries any bytes.
        while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            // A disk that is full is no reason to stop the machine.
            log = log.filter(|file| (&*file).write_all(&line).is_ok());
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A machine whose QEMU is a shell.
    fn machine(dir: &Path, script: &str) -> Running {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).stdout(Stdio::piped());
        shell.stderr(File::create(dir.join(QEMU)).expect("it can be made"));
        let mut qemu = Owned::start(&mut shell).expect("there is a shell");
        let log = File::create(dir.join(CONSOLE)).expect("it can be made");
        let lines = lines_of(&mut qemu, Some(log)).expect("its output is a pipe");
        Running { follower: Follower::new("worker-1"), lines, on: Instant::now(), dir: dir.to_owned(), _qemu: qemu }
    }

    #[test]
    fn a_console_is_followed_and_kept() {
        let dir = tempfile::tempdir().expect("tempdir");
        let script = r"printf 'UEFI \377\nnodezero: step mesh: joined (1 ms)\nnodezero: ready\n'; echo no KVM >&2";
        let mut machine = machine(dir.path(), script);
        let begin = Instant::now();
        let error = loop {
            match machine.follow() {
                Ok(_) => assert!(begin.elapsed() < Duration::from_secs(20), "it ends"),
                Err(error) => break error.to_string(),
            }
            thread::sleep(Duration::from_millis(10));
        };
        assert!(
            error.starts_with("worker-1 went off 0:") && error.ends_with(" after power-on; QEMU said: no KVM"),
            "{error}"
        );
        assert_eq!(machine.follower.steps.len(), 1, "what it said before was taken");
        let kept = fs::read(machine.console()).expect("it was kept");
        assert_eq!(kept, b"UEFI \xff\nnodezero: step mesh: joined (1 ms)\nnodezero: ready\n");
    }
}
