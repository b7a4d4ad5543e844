//! Modules that every machine needs, loaded while the own disk is looked for.
//!
//! Loading a module is work for a processor, probing a device is waiting for it: the two go on at once. Each stage until
//! the configuration asks for what it needs, which mostly is there by then. A driver may never finish. So the threads
//! are waited for with a bound, and not at all where something else has failed: its summary must not be held back.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::summary::Failure;

/// How long all of them may take. A controller with many ports that nothing is attached to takes a minute.
const PATIENCE: Duration = Duration::from_secs(180);

/// Threads that work on a list.
#[derive(Debug)]
pub(super) struct Listed {
    begun: Instant,
    list: Arc<List>,
    /// Disconnected when the last thread has ended.
    ended: Receiver<Infallible>,
}

/// What is left to do.
#[derive(Debug, Default)]
pub(super) struct List(Mutex<Names>);

#[derive(Debug, Default)]
struct Names {
    left: VecDeque<String>,
    taken: Vec<String>,
}

impl List {
    /// Takes one name after the other, until there is none.
    pub(super) fn each(&self, mut load: impl FnMut(&str)) {
        let names = || self.0.lock().expect("a panic ends the program");
        loop {
            let Some(name) = names().left.pop_front() else { return };
            names().taken.push(name.clone());
            load(&name);
            names().taken.retain(|taken| *taken != name);
        }
    }
}

impl Listed {
    /// Begins `work` on the list, in so many threads.
    pub(super) fn begin(
        names: VecDeque<String>,
        threads: usize,
        work: impl Fn(&List) + Clone + Send + 'static,
    ) -> Self {
        let list = Arc::new(List(Mutex::new(Names { left: names, taken: Vec::new() })));
        let (sender, ended) = channel();
        for _ in 0..threads {
            let (list, work, sender) = (Arc::clone(&list), work.clone(), sender.clone());
            thread::spawn(move || {
                work(&list);
                drop(sender);
            });
        }
        Self { begun: Instant::now(), list, ended }
    }

    /// Waits until all is loaded.
    ///
    /// # Errors
    /// When something takes longer than any driver should: the switch to the root would wait for it without a word.
    pub(super) fn wait(&self) -> Result<(), Failure> {
        self.wait_until(self.begun + PATIENCE)
    }

    fn wait_until(&self, end: Instant) -> Result<(), Failure> {
        match self.ended.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(never) => match never {},
            Err(RecvTimeoutError::Disconnected) => Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                let taken = self.list.0.lock().expect("a panic ends the program").taken.join(", ");
                let seconds = self.begun.elapsed().as_secs();
                Err(Failure::new(
                    "a driver does not finish loading",
                    format!("still loading after {seconds} s: {taken}"),
                    "a device may be broken: start without it, or with module_blacklist=NAME on the kernel command line",
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> VecDeque<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn every_name_is_taken_once() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        let work = move |list: &List| list.each(|name| noted.lock().expect("whole").push(name.to_owned()));
        let listed = Listed::begin(names(&["a", "b", "c"]), 2, work);
        listed.wait().expect("all are done");
        let mut seen = seen.lock().expect("whole").clone();
        seen.sort();
        assert_eq!(seen, ["a", "b", "c"]);
    }

    #[test]
    fn what_does_not_finish_is_named_and_not_waited_for() {
        let (release, held) = channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let work = move |list: &List| {
            list.each(|name| {
                if name == "stuck" {
                    let _ = held.lock().expect("whole").recv_timeout(Duration::from_secs(60));
                }
            });
        };
        let listed = Listed::begin(names(&["a", "stuck", "b"]), 2, work);
        let failure = listed.wait_until(Instant::now() + Duration::from_millis(200)).expect_err("it is stuck");
        let text = format!("{failure:?}");
        assert!(text.contains("still loading after 0 s: stuck\""), "{text}");
        drop(release);
        listed.wait_until(Instant::now() + Duration::from_secs(60)).expect("it was released");
    }
}
