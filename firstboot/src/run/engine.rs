//! Runs steps in order: check, apply, verify, with the journal written before the next begins.
//!
//! A step that is found done is not applied. One that fails is tried again: when its failure says that this may help,
//! after a pause that doubles up to ten minutes; in any case as soon as disks or addresses change. Its failure is shown
//! on the consoles each time, and a lasting one again and again, so that whoever comes sees it. No later step begins
//! before it is done. Between steps, and in every pause, the service can be ended.
//!
//! What the engine needs of the world is a [`World`], so that all of this is tested without one.

use std::time::{Duration, Instant};

use super::journal::{Journal, State};
use super::step::{Check, Step};
use crate::summary::{Failure, OrFail};

/// The first pause before a failed step is tried again, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// The first pause before a lasting failure is shown again.
const FIRST_REMINDER: Duration = Duration::from_secs(60);

/// How a pause ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    /// It is over.
    Over,
    /// The machine's disks or addresses changed meanwhile.
    Changed,
    /// The service is to end.
    Stopped,
}

/// What happened to a step.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// It does what its check found needed.
    Needed(&'a str),
    /// It goes on.
    Progress(&'a str),
    /// It is done.
    Done {
        /// One line.
        result: &'a str,
        /// How long it took.
        took: Duration,
        /// What is not as it should be although it is done.
        warnings: Vec<String>,
    },
    /// It failed.
    Failed {
        /// Why.
        failure: &'a Failure,
        /// How often it was tried so far by this run.
        attempts: u64,
        /// How long until it is tried again, or shown again where that would not help.
        pause: Duration,
    },
}

/// What the engine needs.
pub(crate) trait World {
    /// Takes what happened to a step.
    fn tell(&mut self, step: &'static str, event: Event<'_>);

    /// Whether the service is to end.
    fn is_stopped(&self) -> bool;

    /// Lets time pass.
    fn pause(&mut self, duration: Duration) -> Pause;
}

/// How the steps ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All are done.
    Complete,
    /// The service is to end.
    Stopped,
}

/// Runs the steps in order.
pub(crate) fn run(steps: &mut [Box<dyn Step>], journal: &mut Journal, world: &mut dyn World) -> Outcome {
    for step in steps {
        let name = step.name();
        if insist(world, name, |world| attempt(step.as_mut(), journal, world)).is_none() {
            return Outcome::Stopped;
        }
    }
    Outcome::Complete
}

/// Tries until it succeeds. `None` when the service is to end; that is looked for before each attempt, so that no step
/// begins after it.
pub(crate) fn insist<T>(
    world: &mut dyn World,
    name: &'static str,
    mut attempt: impl FnMut(&mut dyn World) -> Result<T, Failure>,
) -> Option<T> {
    let mut attempts = 0;
    let mut pause = None;
    loop {
        if world.is_stopped() {
            return None;
        }
        let failure = match attempt(world) {
            Ok(value) => return Some(value),
            Err(failure) => failure,
        };
        attempts += 1;
        loop {
            // A step that was ended is no failed one.
            if world.is_stopped() {
                return None;
            }
            let first = if failure.is_retried() { FIRST_PAUSE } else { FIRST_REMINDER };
            let this: Duration = pause.unwrap_or(first).clamp(first, LONGEST_PAUSE);
            pause = Some(this * 2);
            world.tell(name, Event::Failed { failure: &failure, attempts, pause: this });
            match world.pause(this) {
                Pause::Stopped => return None,
                Pause::Over if !failure.is_retried() => {}
                Pause::Over | Pause::Changed => break,
            }
        }
    }
}

/// Runs a step once.
fn attempt(step: &mut dyn Step, journal: &mut Journal, world: &mut dyn World) -> Result<(), Failure> {
    let name = step.name();
    let begin = Instant::now();
    let outcome = check_apply_verify(step, journal, world);
    let took = begin.elapsed();
    match outcome {
        Ok(result) => {
            journal.end(name, State::Done, &result, took).map_err(unwritten)?;
            world.tell(name, Event::Done { result: &result, took, warnings: step.warnings() });
            Ok(())
        }
        // A step that was ended is a cut one, and no failed one.
        Err(failure) if world.is_stopped() => Err(failure),
        Err(failure) => {
            let result = format!("{}: {}", failure.what(), failure.why());
            match journal.end(name, State::Failed, &result, took).map_err(unwritten) {
                Ok(()) => Err(failure),
                Err(unwritten) if unwritten.why() == failure.why() => Err(unwritten),
                // Both are told; whether a retry helps is for the step's own to say.
                Err(unwritten) => Err(unwritten.caused_by(failure)),
            }
        }
    }
}

fn check_apply_verify(step: &mut dyn Step, journal: &mut Journal, world: &mut dyn World) -> Result<String, Failure> {
    let name = step.name();
    match step.check(journal)? {
        Check::Done(result) => Ok(result),
        Check::Needed(what) => {
            journal.begin(name, &what).map_err(unwritten)?;
            world.tell(name, Event::Needed(&what));
            step.apply(journal, &mut |line| world.tell(name, Event::Progress(line)))?;
            step.verify(journal)
        }
    }
}

/// The failure of a journal that cannot be written.
pub(crate) fn unwritten(error: anyhow::Error) -> Failure {
    let failed: Result<(), Failure> = Err(error).or_fail(
        "the journal of the steps cannot be written",
        "look whether `state` is full (free space below /var) or its disk fails",
    );
    failed.expect_err("it was an error").retrying()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::rc::Rc;

    use super::*;

    /// What a fake machine has, and what was done to it.
    #[derive(Default)]
    struct Machine {
        applied: Vec<&'static str>,
        log: Vec<String>,
    }

    type Shared = Rc<RefCell<Machine>>;

    /// A step that is needed until it is applied; `failures` are what attempts at it end with first.
    struct Fake {
        name: &'static str,
        machine: Shared,
        failures: VecDeque<(&'static str, Failure)>,
        warning: Option<&'static str>,
    }

    impl Fake {
        fn fail(&mut self, part: &str) -> Result<(), Failure> {
            match self.failures.front() {
                Some((at, _)) if *at == part => Err(self.failures.pop_front().expect("there is one").1),
                _ => Ok(()),
            }
        }
    }

    impl Step for Fake {
        fn name(&self) -> &'static str {
            self.name
        }

        fn check(&mut self, _journal: &Journal) -> Result<Check, Failure> {
            self.machine.borrow_mut().log.push(format!("{} check", self.name));
            self.fail("check")?;
            let done = self.machine.borrow().applied.contains(&self.name);
            Ok(if done { Check::Done("as it shall be".into()) } else { Check::Needed("something".into()) })
        }

        fn apply(&mut self, _journal: &mut Journal, progress: &mut dyn FnMut(&str)) -> Result<(), Failure> {
            self.machine.borrow_mut().log.push(format!("{} apply", self.name));
            progress("half of it");
            self.fail("apply")?;
            self.machine.borrow_mut().applied.push(self.name);
            self.fail("cut")
        }

        fn verify(&mut self, _journal: &Journal) -> Result<String, Failure> {
            self.fail("verify")?;
            Ok("made".into())
        }

        fn warnings(&self) -> Vec<String> {
            self.warning.iter().map(|warning| (*warning).to_owned()).collect()
        }
    }

    /// Notes what is told, and ends each pause as given; over, when nothing is given.
    struct Notes {
        machine: Shared,
        pauses: VecDeque<Pause>,
        stopped: bool,
    }

    impl World for Notes {
        fn tell(&mut self, step: &'static str, event: Event<'_>) {
            let text = match event {
                Event::Needed(what) => format!("needed {what}"),
                Event::Progress(line) => format!("progress {line}"),
                Event::Done { result, warnings, .. } => format!("done {result} {}", warnings.join(",")),
                Event::Failed { failure, attempts, pause } => {
                    format!("failed {} attempt {attempts} pause {}", failure.what(), pause.as_secs())
                }
            };
            self.machine.borrow_mut().log.push(format!("{step} {}", text.trim()));
        }

        fn is_stopped(&self) -> bool {
            self.stopped
        }

        fn pause(&mut self, _duration: Duration) -> Pause {
            let pause = self.pauses.pop_front().unwrap_or(Pause::Over);
            self.stopped |= pause == Pause::Stopped;
            pause
        }
    }

    struct Rig {
        directory: tempfile::TempDir,
        machine: Shared,
    }

    impl Rig {
        fn new() -> Self {
            Self { directory: tempfile::tempdir().expect("tempdir"), machine: Shared::default() }
        }

        fn step(&self, name: &'static str, failures: Vec<(&'static str, Failure)>) -> Box<dyn Step> {
            let machine = Rc::clone(&self.machine);
            Box::new(Fake { name, machine, failures: failures.into(), warning: None })
        }

        fn journal(&self) -> Journal {
            Journal::open(self.directory.path(), "a").expect("opened")
        }

        fn run(&self, steps: &mut [Box<dyn Step>], pauses: &[Pause]) -> (Outcome, Vec<String>) {
            self.run_with(&mut self.journal(), steps, pauses)
        }

        fn run_with(
            &self,
            journal: &mut Journal,
            steps: &mut [Box<dyn Step>],
            pauses: &[Pause],
        ) -> (Outcome, Vec<String>) {
            self.machine.borrow_mut().log.clear();
            let machine = Rc::clone(&self.machine);
            let mut world = Notes { machine, pauses: pauses.iter().copied().collect(), stopped: false };
            let outcome = run(steps, journal, &mut world);
            (outcome, self.machine.borrow().log.clone())
        }

        fn state(&self, step: &str) -> Option<State> {
            self.journal().record(step).map(|record| record.state)
        }
    }

    fn failure(what: &str) -> Failure {
        Failure::new(what, "a reason", "a remedy")
    }

    #[test]
    fn what_is_needed_is_applied_and_a_second_run_changes_nothing() {
        let rig = Rig::new();
        let steps = || [rig.step("one", vec![]), rig.step("two", vec![])];
        let (outcome, log) = rig.run(&mut steps(), &[]);
        assert_eq!(outcome, Outcome::Complete);
        let one = ["one check", "one needed something", "one apply", "one progress half of it", "one done made"];
        let two: Vec<String> = one.iter().map(|line| line.replacen("one", "two", 1)).collect();
        assert_eq!(log, [one.map(str::to_owned).to_vec(), two].concat());
        let (_, log) = rig.run(&mut steps(), &[]);
        assert_eq!(log, ["one check", "one done as it shall be", "two check", "two done as it shall be"]);
        let before = std::fs::read(rig.directory.path().join("state.json")).expect("there");
        rig.run(&mut steps(), &[]);
        assert_eq!(std::fs::read(rig.directory.path().join("state.json")).expect("there"), before, "a third run");
    }

    #[test]
    fn a_failing_step_is_tried_again_until_it_is_well() {
        for part in ["check", "apply", "verify"] {
            let rig = Rig::new();
            let failures = (0..3).map(|_| (part, failure("busy").retrying())).collect();
            let (outcome, log) = rig.run(&mut [rig.step("one", failures), rig.step("two", vec![])], &[]);
            assert_eq!(outcome, Outcome::Complete, "{part}");
            let failed: Vec<&String> = log.iter().filter(|line| line.contains("failed")).collect();
            let expected: &[&str] = match part {
                // Once applied, the next check finds it done: the truth counts, not the record.
                "verify" => &["one failed busy attempt 1 pause 5"],
                _ => &[
                    "one failed busy attempt 1 pause 5",
                    "one failed busy attempt 2 pause 10",
                    "one failed busy attempt 3 pause 20",
                ],
            };
            assert_eq!(failed, expected, "{part}");
            assert_eq!((rig.state("one"), rig.state("two")), (Some(State::Done), Some(State::Done)), "{part}");
        }
    }

    #[test]
    fn pauses_grow_to_ten_minutes() {
        let rig = Rig::new();
        let failures = (0..12).map(|_| ("apply", failure("busy").retrying())).collect();
        let (_, log) = rig.run(&mut [rig.step("one", failures)], &[]);
        let pauses: Vec<&str> =
            log.iter().filter_map(|line| line.split_once("pause ").map(|(_, pause)| pause)).collect();
        assert_eq!(pauses, ["5", "10", "20", "40", "80", "160", "320", "600", "600", "600", "600", "600"]);
    }

    #[test]
    fn a_lasting_failure_is_shown_again_and_nothing_later_begins() {
        let rig = Rig::new();
        let mut steps = [rig.step("one", vec![("check", failure("no disk"))]), rig.step("two", vec![])];
        let (outcome, log) = rig.run(&mut steps, &[Pause::Over, Pause::Over, Pause::Stopped]);
        assert_eq!(outcome, Outcome::Stopped);
        let failed = |pause| format!("one failed no disk attempt 1 pause {pause}");
        assert_eq!(log, ["one check".to_owned(), failed(60), failed(120), failed(240)], "checked once");
        assert_eq!((rig.state("one"), rig.state("two")), (Some(State::Failed), None));
        let mut steps = [rig.step("one", vec![("check", failure("no disk"))]), rig.step("two", vec![])];
        let (outcome, log) = rig.run(&mut steps, &[Pause::Over, Pause::Changed]);
        assert_eq!(outcome, Outcome::Complete, "a disk was put in");
        assert_eq!(log.iter().filter(|line| *line == "one check").count(), 2);
    }

    #[test]
    fn a_cut_after_apply_and_before_the_journal_ends_in_the_same_state() {
        let rig = Rig::new();
        // The failure stands for the power: nothing after it happens, the journal says that it runs.
        let mut cut = rig.step("one", vec![]);
        let mut journal = rig.journal();
        journal.begin("one", "something").expect("begun");
        cut.apply(&mut journal, &mut |_| ()).expect("applied");
        drop((cut, journal));
        assert_eq!(rig.state("one"), Some(State::Running));
        let mut journal = Journal::open(rig.directory.path(), "b").expect("opened");
        let (outcome, log) = rig.run_with(&mut journal, &mut [rig.step("one", vec![])], &[]);
        assert_eq!((outcome, rig.machine.borrow().applied.len()), (Outcome::Complete, 1), "applied once");
        assert_eq!(log, ["one check", "one done as it shall be"]);
        assert_eq!(rig.state("one"), Some(State::Done));
    }

    #[test]
    fn a_stop_comes_between_steps() {
        let rig = Rig::new();
        let machine = Rc::clone(&rig.machine);
        let mut world = Notes { machine, pauses: VecDeque::new(), stopped: true };
        assert_eq!(run(&mut [rig.step("one", vec![])], &mut rig.journal(), &mut world), Outcome::Stopped);
        assert!(rig.machine.borrow().log.is_empty());
    }

    #[test]
    fn a_step_that_was_ended_is_no_failed_one() {
        let rig = Rig::new();
        let mut journal = rig.journal();
        let mut world = Notes { machine: Rc::clone(&rig.machine), pauses: VecDeque::new(), stopped: true };
        let mut step = rig.step("one", vec![("apply", failure("the wait was ended"))]);
        assert!(attempt(step.as_mut(), &mut journal, &mut world).is_err());
        assert_eq!(rig.state("one"), Some(State::Running));
    }

    #[test]
    fn a_step_does_not_begin_without_its_record() {
        let rig = Rig::new();
        let mut journal = rig.journal();
        std::fs::create_dir(rig.directory.path().join("state.json.new")).expect("in the way");
        let pauses = [Pause::Over, Pause::Stopped];
        let (outcome, log) = rig.run_with(&mut journal, &mut [rig.step("one", vec![])], &pauses);
        assert_eq!((outcome, rig.machine.borrow().applied.len()), (Outcome::Stopped, 0));
        let failed = |attempt, pause| {
            format!("one failed the journal of the steps cannot be written attempt {attempt} pause {pause}")
        };
        assert_eq!(log, ["one check".to_owned(), failed(1, 5), "one check".to_owned(), failed(2, 10)]);
    }

    #[test]
    fn warnings_are_told_with_the_result() {
        let rig = Rig::new();
        let machine = Rc::clone(&rig.machine);
        let step = Fake { name: "one", machine, failures: VecDeque::new(), warning: Some("not synchronised") };
        let (outcome, log) = rig.run(&mut [Box::new(step)], &[]);
        assert_eq!(
            (outcome, log.last().map(String::as_str)),
            (Outcome::Complete, Some("one done made not synchronised"))
        );
    }
}
