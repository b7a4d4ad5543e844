//! The one form in which a failure is told: what, why, what to do, and where the log is.

use std::fmt;

/// Where the log of the first stage is: no disk has it.
const FIRST_STAGE_LOG: &str = "this console, and the kernel's log until the machine is switched off";

/// Why the machine cannot start, or go on, for a person before its console.
#[derive(Debug)]
pub(crate) struct Failure {
    what: String,
    why: String,
    remedy: String,
    retried: bool,
}

impl Failure {
    /// `what` states the fact, `why` its cause with the values involved, `remedy` the next thing to try.
    ///
    /// A failure is lasting unless [`Self::retrying`] says otherwise: doing the same again ends in the same.
    pub(crate) fn new(what: impl Into<String>, why: impl fmt::Display, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.to_string(), remedy: remedy.into(), retried: false }
    }

    /// The same failure, of which the cause may go away by itself: it is worth doing the same again later.
    pub(crate) fn retrying(self) -> Self {
        Self { retried: true, ..self }
    }

    /// Whether doing the same again later may succeed.
    pub(crate) fn is_retried(&self) -> bool {
        self.retried
    }

    /// What is the matter.
    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    /// Its cause, with the values involved.
    pub(crate) fn why(&self) -> &str {
        &self.why
    }

    /// The next thing to try.
    pub(crate) fn remedy(&self) -> &str {
        &self.remedy
    }

    /// Another fact about the same failure, put before the cause that was known: what was found by looking closer.
    pub(crate) fn caused_by(self, deeper: Self) -> Self {
        let why = format!("{}\n{}: {}", deeper.why, self.what, self.why);
        Self { why, ..deeper }
    }

    /// The whole of it in several lines, under a title that says what cannot be done; those after the first of a part
    /// are indented. `log` says where the log is.
    pub(crate) fn told(&self, title: &str, log: &str) -> String {
        let indent = |text: &str| text.trim().replace('\n', "\n    ");
        let (what, why, remedy) = (indent(&self.what), indent(&self.why), indent(&self.remedy));
        format!("{title}: {what}\n  why: {why}\n  what to do: {remedy}\n  log: {log}")
    }
}

impl fmt::Display for Failure {
    /// As the first stage tells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.told("NodeZero cannot start", FIRST_STAGE_LOG))
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
    fn a_failure_says_what_why_what_to_do_and_where_the_log_is() {
        let broken: Result<(), _> = Err(std::io::Error::other("input/output error")).context("reading /dev/sda");
        let failure = broken.or_fail("no disk", "check the cable").expect_err("fails");
        let log = format!("  log: {FIRST_STAGE_LOG}");
        assert_eq!(
            failure.to_string(),
            format!(
                "NodeZero cannot start: no disk\n  why: reading /dev/sda: input/output error\n  \
                 what to do: check the cable\n{log}"
            )
        );
        assert_eq!(failure.told("T", "L").lines().last(), Some("  log: L"));
        let deeper = failure.caused_by(Failure::new("corrupted", "block 7", "write it again"));
        assert_eq!(
            deeper.to_string(),
            format!(
                "NodeZero cannot start: corrupted\n  why: block 7\n    no disk: reading /dev/sda: input/output error\n  \
                 what to do: write it again\n{log}"
            )
        );
    }

    #[test]
    fn a_failure_lasts_unless_it_says_otherwise() {
        let failure = || Failure::new("a", "b", "c");
        assert!(!failure().is_retried() && failure().retrying().is_retried());
        assert!(!failure().retrying().caused_by(failure()).is_retried(), "the deeper cause decides");
    }
}
