//! Child processes that end with this one, however it ends: panic, Ctrl-C or `SIGKILL`.
//!
//! Linux sends the signal that `PR_SET_PDEATHSIG` names when the *thread* that started the child ends (`prctl(2)`).
//! Tests start machines from threads that may end before the machine does, so one thread that lives as long as the
//! process starts them all.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::thread;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

type Order = (Command, Sender<io::Result<Child>>);

/// Starts `command`; the kernel kills it when this process ends.
pub(crate) fn guarded(mut command: Command) -> io::Result<Child> {
    let parent = rustix::process::getpid();
    let die_with_parent = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have ended before the call above.
        if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    #[expect(unsafe_code, reason = "std has no safe way to set the signal; the closure makes two system calls only")]
    // SAFETY: between fork and exec the closure neither allocates nor takes a lock, it makes prctl and getppid calls.
    unsafe {
        command.pre_exec(die_with_parent);
    }
    let (answer, child) = channel();
    launcher().lock().expect("no holder of the launcher panics").send((command, answer)).map_err(io::Error::other)?;
    child.recv().map_err(io::Error::other)?
}

fn launcher() -> &'static Mutex<Sender<Order>> {
    static LAUNCHER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    LAUNCHER.get_or_init(|| {
        let (orders, incoming) = channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in incoming {
                // Whoever asked has gone if this fails, and then the child goes with the message.
                if let Err(unheard) = answer.send(command.spawn())
                    && let Ok(mut child) = unheard.0
                {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        });
        Mutex::new(orders)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it() {
        let mut command = Command::new("sleep");
        command.arg("600");
        let mut child = thread::spawn(move || guarded(command)).join().unwrap().unwrap();
        thread::sleep(Duration::from_millis(200));
        assert_eq!(child.try_wait().unwrap(), None, "killed with the asking thread");
        let status = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        assert!(status.contains("(sleep)"), "{status}");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_program_that_does_not_exist_is_an_error() {
        assert_eq!(guarded(Command::new("/no/such/program")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
