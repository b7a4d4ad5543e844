//! The one form in which a failure is told: what, why, and what to do.

use std::fmt;

/// Why the machine cannot start, for a person before its console.
#[derive(Debug)]
pub(crate) struct Failure {
    what: String,
    why: String,
    remedy: String,
}

impl Failure {
    /// `what` states the fact, `why` its cause with the values involved, `remedy` the next thing to try.
    pub(crate) fn new(what: impl Into<String>, why: impl fmt::Display, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.to_string(), remedy: remedy.into() }
    }

    /// Another fact about the same failure, put before the cause that was known: what was found by looking closer.
    pub(crate) fn caused_by(self, deeper: Self) -> Self {
        let why = format!("{}\n{}: {}", deeper.why, self.what, self.why);
        Self { why, ..deeper }
    }
}

impl fmt::Display for Failure {
    /// Several lines; those after the first of a part are indented.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let indent = |text: &str| text.trim().replace('\n', "\n    ");
        writeln!(f, "NodeZero cannot start: {}", indent(&self.what))?;
        writeln!(f, "  why: {}", indent(&self.why))?;
        write!(f, "  what to do: {}", indent(&self.remedy))
    }
}

/// Turns an error into a [`Failure`], with its whole chain of causes as the reason.
pub(crate) trait OrFail<T> {
    /// See [`Failure::new`].
    ///
    /// # Errors
    /// The failure, where there was an error.
    fn or_fail(self, what: &str, remedy: &str) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrFail<T> for Result<T, E> {
    fn or_fail(self, what: &str, remedy: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(what, format!("{:#}", error.into()), remedy))
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_failure_says_what_why_and_what_to_do() {
        let broken: Result<(), _> = Err(std::io::Error::other("input/output error")).context("reading /dev/sda");
        let failure = broken.or_fail("no disk", "check the cable").expect_err("fails");
        assert_eq!(
            failure.to_string(),
            "NodeZero cannot start: no disk\n  why: reading /dev/sda: input/output error\n  what to do: check the cable"
        );
        let deeper = failure.caused_by(Failure::new("corrupted", "block 7", "write it again"));
        assert_eq!(
            deeper.to_string(),
            "NodeZero cannot start: corrupted\n  why: block 7\n    no disk: reading /dev/sda: input/output error\n  \
             what to do: write it again"
        );
    }
}
