//! Running a program: an argument list, no shell, and a failure that shows both arguments and what it printed.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::sys;

/// The programs' search path, in an image and in any other Linux system.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// How much of a failed program's output is shown, in bytes from its end.
const TAIL: usize = 800;

/// A program that ended otherwise than it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// It could not be started.
    #[error("{command} could not be started")]
    Start {
        /// Program and arguments.
        command: String,
        /// The reason.
        source: io::Error,
    },
    /// It ended with a status that was not expected.
    #[error("{command} ended with {status}{output}")]
    Status {
        /// Program and arguments.
        command: String,
        /// Exit code or signal.
        status: std::process::ExitStatus,
        /// The end of what it printed.
        output: Tail,
    },
}

/// The end of a program's output, for an error message.
#[derive(Debug)]
pub(crate) struct Tail(String);

impl fmt::Display for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ":\n{}", self.0) }
    }
}

/// Runs a program with `root` as its root directory, and waits for it.
///
/// # Errors
/// When it does not start, or `accept` refuses its exit code; ending by a signal counts as refused.
pub(crate) fn run_in_root(
    root: &Path,
    program: &str,
    arguments: &[&str],
    accept: impl Fn(i32) -> bool,
) -> Result<Output, CommandError> {
    let shown = || [&[program], arguments].concat().join(" ");
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", PATH).env("LC_ALL", "C.UTF-8");
    let output = sys::run_in_root(&mut command, root)
        .and_then(|()| command.stdin(Stdio::null()).output())
        .map_err(|source| CommandError::Start { command: shown(), source })?;
    if output.status.code().is_some_and(&accept) {
        return Ok(output);
    }
    let output_tail = tail(&output);
    Err(CommandError::Status { command: shown(), status: output.status, output: output_tail })
}

/// Runs a program found in the caller's `PATH`, with the caller's environment, and waits for it. `input` is what it
/// reads from standard input: the way for secrets, which no argument may carry.
///
/// # Errors
/// As [`run_in_root`].
pub(crate) fn run(
    program: &str,
    arguments: &[&str],
    input: &[u8],
    accept: impl Fn(i32) -> bool,
) -> Result<Output, CommandError> {
    let shown = || [&[program], arguments].concat().join(" ");
    let start = |source| CommandError::Start { command: shown(), source };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(start)?;
    let mut stdin = child.stdin.take().expect("asked for");
    let output = std::thread::scope(|scope| {
        // A program that does not read its input ends well or not by what its status says.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output()
    });
    let output = output.map_err(start)?;
    if output.status.code().is_some_and(&accept) {
        return Ok(output);
    }
    let output_tail = tail(&output);
    Err(CommandError::Status { command: shown(), status: output.status, output: output_tail })
}

/// The end of standard output and standard error together.
fn tail(output: &Output) -> Tail {
    let all = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    let end = &all[all.len().saturating_sub(TAIL)..];
    Tail(String::from_utf8_lossy(end).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    #[test]
    fn a_failure_shows_arguments_and_the_end_of_the_output() {
        let output = Output {
            status: ExitStatus::from_raw(0x0800),
            stdout: vec![b'x'; 2 * TAIL],
            stderr: b"bad magic number\n".to_vec(),
        };
        let error = CommandError::Status {
            command: "e2fsck -p /dev/sda5".into(),
            status: output.status,
            output: tail(&output),
        };
        let text = error.to_string();
        assert!(text.starts_with("e2fsck -p /dev/sda5 ended with exit status: 8:\nxxx"), "{text}");
        assert!(text.ends_with("bad magic number") && text.len() < TAIL + 60, "{text}");
    }
}
