//! Programs that end with this one, however it ends.
//!
//! Linux sends a process the signal it asked for when its parent ends (`PR_SET_PDEATHSIG`, prctl(2)), also when that is
//! killed. A process can only ask for itself. So the program is started through this command, which asks and then
//! becomes the program; the wish outlives `execve`. The parent is the thread that starts it: start it from one that
//! lives as long.

use std::ffi::OsString;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// A program to become.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The process that it is to end with
    #[arg(long)]
    parent: u32,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Becomes the program.
///
/// # Errors
/// When it cannot be started, or the parent has ended already.
pub fn run(arguments: &Arguments) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("asking to end with the parent")?;
    // It may have ended before the call above.
    if getppid().map(Pid::as_raw_pid) != i32::try_from(arguments.parent).ok() {
        bail!("the process {} has ended", arguments.parent);
    }
    let [program, rest @ ..] = &arguments.command[..] else { bail!("no program is named") };
    Err(Command::new(program).args(rest).exec()).with_context(|| format!("running {}", program.display()))
}

/// `command` as one that ends with this process. What it has for its standard streams must be set after this.
///
/// # Errors
/// When the running program cannot be found.
pub fn guarded(command: &Command) -> Result<Command> {
    let own = std::env::current_exe().context("finding the running program")?;
    let mut guarded = Command::new(own);
    guarded.args(["guarded", "--parent", &std::process::id().to_string(), "--"]);
    guarded.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => guarded.env(name, value),
            None => guarded.env_remove(name),
        };
    }
    // A Ctrl-C is for this process, which ends the others in order.
    guarded.process_group(0);
    if let Some(dir) = command.get_current_dir() {
        guarded.current_dir(dir);
    }
    Ok(guarded)
}

/// A child that is killed when this is dropped.
#[derive(Debug)]
pub struct Owned(pub Child);

impl Owned {
    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        command.spawn().map(Self)
    }
}

impl Deref for Owned {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Owned {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
