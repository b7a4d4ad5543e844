//! A machine that is switched on: its process, its console and its monitor.
//!
//! QEMU ends with its [`Vm`], and with the test's process however that ends.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::accel::Accel;
use crate::console::{Console, Line};
use crate::firmware::Ovmf;
use crate::guest::{self, Report};
use crate::ignition::PROBE;
use crate::machine::{Boot, FirmwareKind, Host, Machine};
use crate::qmp::Qmp;
use crate::{spawn, tools};

/// How long a boot may take. Under translation on a busy machine a minute is usual.
pub const BOOT: Duration = Duration::from_secs(300);

/// How long an orderly end may take.
pub const SHUTDOWN: Duration = Duration::from_secs(120);

/// How long until the power button is pressed again.
const PRESS: Duration = Duration::from_secs(20);

/// How long QEMU may take until it connects.
const START: Duration = Duration::from_secs(30);

/// A running machine.
#[derive(Debug)]
pub struct Vm {
    name: String,
    child: Child,
    console: Console,
    qmp: Qmp,
}

/// Where a power-on of a machine leaves its files.
pub(crate) struct Power<'a> {
    /// The directory, which keeps the machine's firmware variables from one power-on to the next.
    pub(crate) dir: &'a Path,
    /// Names this power-on's console, arguments and messages.
    pub(crate) label: &'a str,
}

/// Switches `machine` on.
pub(crate) fn switch_on(machine: &Machine, accel: Accel, power: &Power<'_>) -> Result<Vm> {
    let file = |extension: &str| power.dir.join(format!("{}.{extension}", power.label));
    // The name of a socket must be short, and a scenario's directory may lie deep.
    let sockets = tempfile::Builder::new().prefix("nodezero-").tempdir().context("making a directory for sockets")?;
    let [console, qmp] = ["console", "qmp"].map(|name| sockets.path().join(name));
    let listen = |path: &Path| UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()));
    let (console_listener, qmp_listener) = (listen(&console)?, listen(&qmp)?);
    let boot = match machine.firmware() {
        FirmwareKind::Bios => Boot::Bios,
        FirmwareKind::Uefi => {
            let ovmf = Ovmf::find()?;
            let variables = ovmf.variables(&power.dir.join(format!("{}.vars", machine.name())))?;
            Boot::Uefi { code: ovmf.code, variables }
        }
    };
    let mut command = tools::command("qemu-system-x86_64")?;
    command.args(machine.args(&Host { accel, boot, console: &console, qmp: &qmp })?);
    fs::write(file("args"), format!("{command:?}\n")).context("writing QEMU's arguments")?;
    let messages = File::create(file("qemu.log")).context("creating QEMU's log")?;
    command.stdin(Stdio::null()).stdout(messages.try_clone()?).stderr(messages);
    let child = spawn::guarded(command).context("starting QEMU")?;
    // From here on an error must not leave QEMU behind.
    let mut guard = Guard(Some(child));
    let connected = guard.accept(&console_listener).and_then(|stream| {
        let console = Console::read(stream, &file("console.log")).context("reading the console")?;
        Ok((console, Qmp::handshake(guard.accept(&qmp_listener)?)?))
    });
    match connected {
        Ok((console, qmp)) => {
            let child = guard.0.take().expect("nothing else takes it");
            Ok(Vm { name: power.label.to_owned(), child, console, qmp })
        }
        Err(error) => {
            drop(guard);
            let said = fs::read_to_string(file("qemu.log")).unwrap_or_default();
            Err(error.context(format!("starting {}, where QEMU said {:?}", power.label, said.trim())))
        }
    }
}

impl Vm {
    /// The console of this power-on.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// QEMU's monitor.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// Waits for text on the console, as long as a boot may take.
    pub fn wait_for(&self, wanted: &str) -> Result<Line> {
        self.console.wait_for(wanted, BOOT).with_context(|| format!("booting {}", self.name))
    }

    /// Waits until the guest has nothing left to do.
    pub fn wait_ready(&self) -> Result<Line> {
        self.wait_for(guest::READY)
    }

    /// What the guest's probe says, a line each, once it is done; see [`crate::ignition::Config::probe`].
    pub fn probe(&self) -> Result<Vec<String>> {
        let done = format!("{PROBE}done");
        if self.console.find(&done).is_none() {
            self.wait_for(&done)?;
        }
        let lines = self.console.lines().into_iter();
        let said = lines.filter_map(|line| Some(line.text.split_once(PROBE)?.1.trim_end().to_owned()));
        Ok(said.filter(|line| line != "done").collect())
    }

    /// Waits until the guest says that it cannot go on, which must be for the reason `why`, and makes sure that it does
    /// not go on. Gives the summary.
    pub fn expect_refusal(&self, why: &str) -> Result<String> {
        self.console.expect(guest::SUMMARY);
        self.console.wait_for_any(&[guest::SUMMARY, guest::READY], BOOT)?;
        // The summary is printed at once, but a console is slow.
        self.console.wait_for("what to do:", SHUTDOWN)?;
        thread::sleep(Duration::from_secs(2));
        let lines = self.console.lines();
        let begin = lines.iter().position(|line| line.text.contains(guest::SUMMARY)).context("no summary")?;
        let summary: Vec<&str> = lines[begin..].iter().map(|line| line.text.as_str()).collect();
        let summary = summary.join("\n");
        ensure!(summary.contains(why), "the summary does not say {why:?}:\n{summary}");
        ensure!(self.console.find(guest::READY).is_none(), "the machine got ready:\n{summary}");
        Ok(summary)
    }

    /// Waits until the first-boot service says that it cannot go on with `step`, and gives what it says.
    pub fn expect_stopped(&self, step: &str) -> Result<String> {
        self.console.expect(guest::STOPPED);
        self.wait_for(guest::STOPPED)?;
        self.console.wait_for("what to do:", SHUTDOWN)?;
        thread::sleep(Duration::from_secs(2));
        let lines = self.console.lines();
        let begin = lines.iter().position(|line| line.text.contains(guest::STOPPED)).context("no summary")?;
        let summary: Vec<&str> = lines[begin..].iter().map(|line| line.text.as_str()).collect();
        let summary = summary.join("\n");
        ensure!(summary.contains(step), "the summary is not about {step:?}:\n{summary}");
        ensure!(self.console.find(guest::READY).is_none(), "the machine got ready:\n{summary}");
        Ok(summary)
    }

    /// What the guest has reported so far.
    pub fn report(&self) -> Result<Report> {
        Report::parse(&self.console.lines()).with_context(|| format!("reading the report of {}", self.name))
    }

    /// Presses the power button and waits until the guest has switched itself off, pressing again now and then: a guest
    /// that is not up yet does not notice. An error if it has said meanwhile that it is lost.
    pub fn power_off(mut self) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < SHUTDOWN {
            // QEMU may end while it is asked.
            let pressed = self.qmp.powerdown();
            if self.is_off_within(PRESS)? {
                return self.ended_well();
            }
            pressed?;
        }
        bail!("{} is still on {SHUTDOWN:?} after the power button was pressed", self.name)
    }

    /// Waits until the guest has switched itself off.
    pub fn wait_off(mut self, deadline: Duration) -> Result<()> {
        if self.is_off_within(deadline)? {
            return self.ended_well();
        }
        bail!("{} is still on after {deadline:?}", self.name)
    }

    /// Cuts the power: QEMU is killed, and what the guest has not written to its disks is lost.
    pub fn cut_power(mut self) -> Result<()> {
        self.child.kill().context("killing QEMU")?;
        self.child.wait().context("waiting for QEMU").map(drop)
    }

    /// The process id of QEMU.
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    fn is_off_within(&mut self, deadline: Duration) -> Result<bool> {
        let started = Instant::now();
        while self.child.try_wait().context("waiting for QEMU")?.is_none() {
            if started.elapsed() > deadline {
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(true)
    }

    fn ended_well(&self) -> Result<()> {
        match self.console.fatal() {
            Some(line) => bail!("{} went off, but said {:?}", self.name, line.text),
            None => Ok(()),
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A child that does not outlive this, unless it is taken out.
struct Guard(Option<Child>);

impl Guard {
    /// Waits until QEMU connects. That it ends instead is an error.
    fn accept(&mut self, listener: &UnixListener) -> Result<UnixStream> {
        listener.set_nonblocking(true)?;
        let started = Instant::now();
        let child = self.0.as_mut().expect("nothing has taken it");
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("waiting for QEMU to connect"),
            }
            if let Some(status) = child.try_wait().context("waiting for QEMU")? {
                bail!("QEMU ended with {status}")
            }
            if started.elapsed() > START {
                bail!("QEMU did not connect within {START:?}")
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child);
        }
    }
}

fn end(child: &mut Child) {
    // Both fail only if the child has ended already.
    let _ = child.kill();
    let _ = child.wait();
}
