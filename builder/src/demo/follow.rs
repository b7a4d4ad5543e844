//! What a machine says of its start on its serial console. Pure.
//!
//! `nodezero-firstboot` prints `nodezero: step NAME: TEXT` as steps go on, with the milliseconds that it took at the end
//! of one that is done; a block that begins with `NodeZero cannot` for one that fails; and `nodezero: ready` at last.

use std::time::Duration;

/// How long a machine may say nothing of its start before it is said to stand still. Emulated, a kernel needs a
/// minute, and Kubernetes several.
const STILL: Duration = Duration::from_secs(300);
/// The most lines of a failure that are kept.
const FAILURE_LINES: usize = 20;

/// Where a machine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Firmware, loader or kernel.
    Starting,
    /// In a step, or between two.
    Step {
        /// Its name.
        name: String,
        /// What it said last.
        text: String,
    },
    /// A step failed, or the machine cannot start; it may try again.
    Failed {
        /// The step, where it is one.
        step: Option<String>,
        /// The line that says so.
        title: String,
    },
    /// Nothing is left to do.
    Ready(Duration),
    /// It went off.
    Off,
}

/// A step that a machine came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Its name.
    pub(super) name: String,
    /// When it was done, after power-on.
    pub(super) done: Option<Duration>,
}

/// What a line of the console told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// The machine is elsewhere now.
    Moved,
    /// A failure that was not told before, all lines of it.
    Failure(Vec<String>),
}

/// A machine as its console tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Follower {
    /// The node's name.
    pub(super) name: String,
    /// Where it is.
    pub(super) stage: Stage,
    /// The steps that it came to, in order.
    pub(super) steps: Vec<Step>,
    /// When it moved last, after power-on.
    moved: Duration,
    /// The lines of a failure that is being told.
    telling: Option<Vec<String>>,
    /// The failure that was told last.
    told: Vec<String>,
}

impl Follower {
    /// A machine that was just switched on.
    #[must_use]
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            stage: Stage::Starting,
            steps: Vec::new(),
            moved: Duration::ZERO,
            telling: None,
            told: Vec::new(),
        }
    }

    /// Takes a line of the console, `at` after power-on.
    pub(super) fn take(&mut self, line: &str, at: Duration) -> Option<News> {
        // A console carries what other programs print, too, and colours.
        let plain: String = line.chars().filter(|c| !c.is_control()).collect();
        let plain = plain.trim_end();
        if let Some(lines) = &mut self.telling {
            if plain.starts_with("  ") && lines.len() < FAILURE_LINES {
                lines.push(plain.to_owned());
                return None;
            }
            if plain.starts_with("===") {
                return self.told();
            }
        }
        let stage = self.stage_of(plain, at)?;
        // What is said after the end of all steps is no step back.
        if matches!(self.stage, Stage::Ready(_)) || stage == self.stage {
            return None;
        }
        (self.stage, self.moved) = (stage, at);
        Some(News::Moved)
    }

    /// The block of a failure is whole.
    fn told(&mut self) -> Option<News> {
        let lines = self.telling.take()?;
        // What comes next changes with each attempt.
        let lasting = |lines: &[String]| -> Vec<String> {
            lines.iter().filter(|line| !line.starts_with("  next: ")).cloned().collect()
        };
        let is_news = lasting(&lines) != lasting(&self.told);
        self.told.clone_from(&lines);
        is_news.then_some(News::Failure(lines))
    }

    fn stage_of(&mut self, plain: &str, at: Duration) -> Option<Stage> {
        if let Some(found) = ["NodeZero cannot ", "Kernel panic - "].iter().find_map(|title| plain.find(title)) {
            let title = plain[found..].to_owned();
            let step = title.strip_prefix("NodeZero cannot finish step ").and_then(|rest| rest.split(':').next());
            let step = step.map(str::to_owned);
            self.telling = Some(vec![title.clone()]);
            return Some(Stage::Failed { step, title });
        }
        let (_, said) = plain.split_once("nodezero: ")?;
        if said == "ready" {
            return Some(Stage::Ready(at));
        }
        let (name, text) = said.strip_prefix("step ")?.split_once(": ")?;
        self.step(name, is_done(text).then_some(at))
            .then(|| Stage::Step { name: name.to_owned(), text: text.to_owned() })
    }

    /// Keeps how far a step is. Answers whether the machine is at it: of one that is done, more may be told later.
    fn step(&mut self, name: &str, done: Option<Duration>) -> bool {
        match self.steps.iter_mut().find(|step| step.name == name) {
            Some(Step { done: Some(_), .. }) => false,
            Some(step) => {
                step.done = done;
                true
            }
            None => {
                self.steps.push(Step { name: name.to_owned(), done });
                true
            }
        }
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

    /// Whether it failed, or has told nothing for long, `now` after power-on.
    #[must_use]
    pub(super) fn is_in_trouble(&self, now: Duration) -> bool {
        match self.stage {
            Stage::Failed { .. } | Stage::Off => true,
            Stage::Starting | Stage::Step { .. } | Stage::Ready(_) => self.stands_still(now).is_some(),
        }
    }

    /// For how long it has told nothing of its start, where that is long.
    #[must_use]
    pub(super) fn stands_still(&self, now: Duration) -> Option<Duration> {
        let still = Some(now.saturating_sub(self.moved)).filter(|still| *still >= STILL);
        match self.stage {
            Stage::Starting | Stage::Step { .. } => still,
            Stage::Failed { .. } | Stage::Ready(_) | Stage::Off => None,
        }
    }

    /// One line, `now` after power-on.
    #[must_use]
    pub(super) fn line(&self, now: Duration) -> String {
        let (at, text) = match &self.stage {
            Stage::Starting => (now, "starting".to_owned()),
            Stage::Step { name, text } => (now, format!("{name}: {text}")),
            Stage::Failed { title, .. } => (now, title.clone()),
            Stage::Ready(at) => (*at, "ready".to_owned()),
            Stage::Off => (now, "went off".to_owned()),
        };
        // It comes first: the end of a long line is cut off.
        let still = self.stands_still(now).map(|still| format!("nothing new for {} min after ", still.as_secs() / 60));
        format!("{:<12} {:>6}  {}{text}", self.name, clock(at), still.unwrap_or_default())
    }
}

/// Minutes and seconds.
pub(super) fn clock(time: Duration) -> String {
    format!("{}:{:02}", time.as_secs() / 60, time.as_secs() % 60)
}

/// Whether what a step says is its result: that ends with how long it took.
fn is_done(text: &str) -> bool {
    let took = text.strip_suffix(" ms)").and_then(|text| text.rsplit_once('('));
    took.is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A machine that said these lines, each a second after the one before.
    pub(crate) fn followed(name: &str, lines: &[&str]) -> Follower {
        let mut machine = Follower::new(name);
        for (line, second) in lines.iter().zip(1..) {
            machine.take(line, at(second));
        }
        machine
    }

    #[test]
    fn a_start_is_followed() {
        let mut machine = Follower::new("worker-1");
        let joined = "worker-1       1:05  mesh: joined at 100.64.0.2 (31 ms)";
        for (line, changes, expected) in [
            ("Linux version 6.12", false, "worker-1       1:05  starting"),
            ("nodezero: step mesh: waiting", true, "worker-1       1:05  mesh: waiting"),
            ("\u{1b}[0mnodezero: step mesh: joined at 100.64.0.2 (31 ms)\r", true, joined),
            ("nodezero: step mesh: joined at 100.64.0.2 (31 ms)", false, joined),
            ("nodezero: step mesh: it is in another network now", false, joined),
            ("nodezero: report role=worker", false, joined),
            (
                "NodeZero cannot finish step cluster: no API",
                true,
                "worker-1       1:05  NodeZero cannot finish step cluster: no API",
            ),
            ("nodezero: step cluster: joined (9 ms)", true, "worker-1       1:05  cluster: joined (9 ms)"),
            ("nodezero: ready", true, "worker-1       1:01  ready"),
            ("nodezero: step time: synchronised", false, "worker-1       1:01  ready"),
        ] {
            assert_eq!(machine.take(line, at(61)) == Some(News::Moved), changes, "{line}");
            assert_eq!(machine.line(at(65)), expected.replace("[0m", ""), "{line}");
        }
        assert!(machine.is_ready() && !machine.is_in_trouble(at(9999)));
        let done: Vec<(&str, bool)> = machine.steps.iter().map(|step| (&*step.name, step.done.is_some())).collect();
        assert_eq!(done, [("mesh", true), ("cluster", true), ("time", false)]);
        machine.end();
        assert!(machine.line(at(3600)).ends_with("60:00  went off") && machine.is_in_trouble(at(3600)));
    }

    #[test]
    fn a_failure_is_told_whole_and_once() {
        let mut machine = Follower::new("worker-1");
        let rule = "=".repeat(72);
        let mut tell = |why: &str, next: &str| -> Option<News> {
            let block = format!(
                "{rule}\nNodeZero cannot finish step data-disks: no disk\n[   12.3] a kernel's line\n  why: {why}\n    and \
                 more\n  what to do: look\n  next: {next}\n{rule}"
            );
            block.lines().fold(None, |news, line| match machine.take(line, at(1)) {
                Some(News::Failure(lines)) => Some(News::Failure(lines)),
                _ => news,
            })
        };
        let Some(News::Failure(lines)) = tell("1 of 2", "tried once") else { panic!("it is news") };
        assert_eq!(
            lines,
            [
                "NodeZero cannot finish step data-disks: no disk",
                "  why: 1 of 2",
                "    and more",
                "  what to do: look",
                "  next: tried once"
            ]
        );
        assert_eq!(tell("1 of 2", "tried twice"), None, "the same again");
        assert!(tell("0 of 2", "tried 3 times").is_some(), "another cause");
        let step = Some("data-disks".to_owned());
        assert!(matches!(&machine.stage, Stage::Failed { step: found, .. } if *found == step));
        assert!(machine.is_in_trouble(at(2)));
    }

    #[test]
    fn who_says_nothing_stands_still() {
        let mut machine = Follower::new("control-1");
        machine.take("nodezero: step mesh: waiting", at(100));
        for (now, still) in [(100, None), (399, None), (400, Some(300)), (1000, Some(900))] {
            assert_eq!(machine.stands_still(at(now)), still.map(at), "{now}");
            assert_eq!(machine.is_in_trouble(at(now)), still.is_some(), "{now}");
        }
        machine.take("a line of another program", at(1000));
        assert!(machine.stands_still(at(1000)).is_some(), "it told nothing of its start");
        machine.take("nodezero: step mesh: waiting still", at(1000));
        assert_eq!(machine.stands_still(at(1001)), None);
        assert_eq!(machine.line(at(1400)), "control-1     23:20  nothing new for 6 min after mesh: waiting still");
        machine.take("nodezero: ready", at(1002));
        assert_eq!(machine.stands_still(at(9000)), None);
    }

    #[test]
    fn a_step_is_done_when_it_says_how_long_it_took() {
        for (text, expected) in [
            ("joined (31 ms)", true),
            ("waiting (31 s)", false),
            ("joined (a ms)", false),
            ("( ms)", false),
            ("", false),
        ] {
            assert_eq!(is_done(text), expected, "{text}");
        }
    }
}
