//! What a machine says of its start on its serial console, and the table of it. Pure.
//!
//! `nodezero-firstboot` prints `nodezero: step NAME: TEXT` as steps go on, a summary that begins with `NodeZero cannot`
//! for one that fails, and `nodezero: ready` at last.

use std::time::Duration;

/// Where a machine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Firmware, loader or kernel.
    Starting,
    /// In a step.
    Step {
        /// Its name.
        name: String,
        /// What it said last.
        text: String,
    },
    /// A step failed, or the machine cannot start; it may try again.
    Failed(String),
    /// Nothing is left to do.
    Ready(Duration),
    /// It went off.
    Off,
}

/// A machine as its console tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Follower {
    /// The node's name.
    pub(super) name: String,
    /// Where it is.
    pub(super) stage: Stage,
}

impl Follower {
    /// A machine that was just switched on.
    #[must_use]
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), stage: Stage::Starting }
    }

    /// Takes a line of the console, `at` after power-on. Answers whether the stage is another one now.
    pub(super) fn take(&mut self, line: &str, at: Duration) -> bool {
        let Some(stage) = stage(line, at).filter(|stage| *stage != self.stage) else { return false };
        // What is said after the end of all steps is no step back.
        if matches!(self.stage, Stage::Ready(_)) {
            return false;
        }
        self.stage = stage;
        true
    }

    /// The machine went off.
    pub(super) fn end(&mut self) {
        self.stage = Stage::Off;
    }

    /// Whether nothing is left to do.
    #[must_use]
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Ready(_))
    }

    /// One line, `now` after power-on.
    #[must_use]
    pub(super) fn line(&self, now: Duration) -> String {
        let (time, text) = match &self.stage {
            Stage::Starting => (now, "starting".to_owned()),
            Stage::Step { name, text } => (now, format!("{name}: {text}")),
            Stage::Failed(text) => (now, text.clone()),
            Stage::Ready(at) => (*at, "ready".to_owned()),
            Stage::Off => (now, "went off".to_owned()),
        };
        format!("{:<12} {:>3}:{:02}  {text}", self.name, time.as_secs() / 60, time.as_secs() % 60)
    }
}

fn stage(line: &str, at: Duration) -> Option<Stage> {
    // A console carries what other programs print, too, and colours.
    let plain: String = line.chars().filter(|c| !c.is_control()).collect();
    if let Some(at) = plain.find("NodeZero cannot ") {
        return Some(Stage::Failed(plain[at..].trim_end().to_owned()));
    }
    let (_, said) = plain.split_once("nodezero: ")?;
    if said.trim_end() == "ready" {
        return Some(Stage::Ready(at));
    }
    let (name, text) = said.strip_prefix("step ")?.split_once(": ")?;
    Some(Stage::Step { name: name.to_owned(), text: text.trim_end().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_followed() {
        let mut machine = Follower::new("worker-1");
        let at = Duration::from_secs;
        for (line, changes, expected) in [
            ("Linux version 6.12", false, "worker-1       1:05  starting"),
            (
                "\u{1b}[0mnodezero: step mesh: joined at 100.64.0.2 (31 ms)\r",
                true,
                "worker-1       1:05  mesh: joined at 100.64.0.2 (31 ms)",
            ),
            (
                "nodezero: step mesh: joined at 100.64.0.2 (31 ms)",
                false,
                "worker-1       1:05  mesh: joined at 100.64.0.2 (31 ms)",
            ),
            ("nodezero: report role=worker", false, "worker-1       1:05  mesh: joined at 100.64.0.2 (31 ms)"),
            (
                "NodeZero cannot finish step cluster: no API",
                true,
                "worker-1       1:05  NodeZero cannot finish step cluster: no API",
            ),
            ("nodezero: ready", true, "worker-1       1:01  ready"),
            ("nodezero: step time: synchronised", false, "worker-1       1:01  ready"),
        ] {
            assert_eq!(machine.take(line, at(61)), changes, "{line}");
            assert_eq!(machine.line(at(65)), expected.replace("[0m", ""), "{line}");
        }
        assert!(machine.is_ready());
        machine.end();
        assert!(machine.line(at(3600)).ends_with("60:00  went off"));
    }
}
