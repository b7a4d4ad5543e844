//! The step `time`: never earlier than the image, and synchronised before anything checks a certificate.
//!
//! [`not_before`] is the first stage's part: the clock of a machine whose battery is empty is set to the time that the
//! image was made at, which all of its files carry. systemd does the same by `/usr/lib/clock-epoch`. Then it is set to the
//! time that a synchronised clock saved last ([`kept`]). The rest is systemd-timesyncd's work: the servers of node.json are a drop-in below `/run`, it is restarted when that changes, and
//! waited for with a bound. Without synchronisation the node goes on and says so, until synchronisation comes.
//!
//! Whether the clock is synchronised the kernel knows (`STA_UNSYNC` of adjtimex(2)), whoever did it; timesyncd leaves a
//! file, too. How far the clock jumped is seen against the time since the kernel started, from the moment at which the
//! first stage wrote its record.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;

use super::journal::Journal;
use super::step::{Check, Later, Step};
use crate::boot::{BOOT_FILE, Boot, RUN_DIRECTORY, uptime_ms};
use crate::files::write_atomically;
use crate::summary::Failure;
use crate::sys;

pub(crate) mod kept;

/// How long synchronisation is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(250);
/// Where timesyncd reads drop-ins of this boot.
pub(crate) const DROP_INS: &str = "/run/systemd/timesyncd.conf.d";
const DROP_IN: &str = "50-nodezero.conf";
/// Made by timesyncd when it has synchronised the clock.
const SYNCHRONIZED: &str = "/run/systemd/timesync/synchronized";
/// Files of the image whose time is the image's.
const IMAGE_FILES: [&str; 2] = ["usr/lib/clock-epoch", "usr/lib/os-release"];
/// How far the first stage set the clock forward, in milliseconds.
const RAISED_FILE: &str = "clock-raised";
/// A clock this long after the image was made is probably wrong.
const IMPLAUSIBLE: Duration = Duration::from_secs(10 * YEAR);
/// A jump that is worth a word, and one that is worth a warning.
const TOLD: Duration = Duration::from_secs(2);
const WARNED: Duration = Duration::from_secs(3600);
const YEAR: u64 = 365 * 86_400;

/// The clock, and what waiting is.
pub(crate) trait Clock {
    /// What it reads.
    fn now(&self) -> SystemTime;
    /// Since the kernel started, in milliseconds.
    fn uptime_ms(&self) -> u64;
    /// Whether it is synchronised.
    fn is_synchronised(&self) -> bool;
    /// Lets time pass.
    fn pause(&self, duration: Duration);
    /// Whether the service is to end.
    fn is_stopped(&self) -> bool;
}

/// This machine's clock.
pub(crate) struct System {
    /// Says whether the service is to end.
    pub(crate) stopped: fn() -> bool,
}

impl Clock for System {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn uptime_ms(&self) -> u64 {
        uptime_ms()
    }

    fn is_synchronised(&self) -> bool {
        sys::clock_is_synchronised().unwrap_or(false) || Path::new(SYNCHRONIZED).exists()
    }

    fn pause(&self, duration: Duration) {
        std::thread::sleep(duration);
    }

    fn is_stopped(&self) -> bool {
        (self.stopped)()
    }
}

/// The time that the image whose root is `root` was made at.
///
/// # Errors
/// When no file of the image tells.
pub(crate) fn image_time(root: &Path) -> anyhow::Result<SystemTime> {
    let found = IMAGE_FILES.iter().find_map(|file| fs::symlink_metadata(root.join(file)).ok()?.modified().ok());
    found.with_context(|| format!("none of {} tells the image's time", IMAGE_FILES.join(", ")))
}

/// Sets the clock to this time if it is earlier, and leaves a record of that in `/run/nodezero` for the step. Gives how far
/// the clock was behind.
///
/// # Errors
/// When the clock cannot be set, or the record cannot be written.
pub(crate) fn not_before(earliest: SystemTime) -> anyhow::Result<Option<Duration>> {
    raise(SystemTime::now(), earliest, sys::set_clock, Path::new(RUN_DIRECTORY))
}

fn raise(
    now: SystemTime,
    earliest: SystemTime,
    set: impl FnOnce(SystemTime) -> io::Result<()>,
    directory: &Path,
) -> anyhow::Result<Option<Duration>> {
    let Some(behind) = earliest.duration_since(now).ok().filter(|behind| !behind.is_zero()) else { return Ok(None) };
    set(earliest).with_context(|| format!("setting the clock from {} to {}", reading(now), reading(earliest)))?;
    let all = raised_ms(directory).saturating_add(i64::try_from(behind.as_millis()).unwrap_or(i64::MAX));
    write_atomically(&directory.join(RAISED_FILE), all.to_string().as_bytes(), 0o600)?;
    Ok(Some(behind))
}

/// How far the clock was set forward in this start, in milliseconds.
fn raised_ms(directory: &Path) -> i64 {
    fs::read_to_string(directory.join(RAISED_FILE)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// A reading of the clock in RFC 3339, to the second.
pub(crate) fn reading(time: SystemTime) -> String {
    let seconds = milliseconds(time).div_euclid(1000);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| format!("{seconds} s since 1970"), |time| time.to_string())
}

/// What is to be said of this machine's clock where something may fail for it: nothing if it is synchronised.
pub(crate) fn doubt() -> Option<String> {
    let clock = System { stopped: || false };
    (!clock.is_synchronised())
        .then(|| format!("this machine's clock, which is not synchronised, reads {}", reading(clock.now())))
}

/// A length of time for a person, in at most two units.
pub(crate) fn span(duration: Duration) -> String {
    let units = [("y", YEAR), ("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)];
    let seconds = duration.as_secs();
    let Some(first) = units.iter().position(|(_, unit)| seconds >= *unit) else {
        return format!("{} ms", duration.as_millis());
    };
    let (name, unit) = units[first];
    let rest =
        units.get(first + 1).map(|(name, smaller)| (name, seconds % unit / smaller)).filter(|(_, count)| *count > 0);
    format!("{} {name}{}", seconds / unit, rest.map_or(String::new(), |(name, count)| format!(" {count} {name}")))
}

/// What the first stage left about the clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Start {
    /// The clock's reading when the kernel started, in milliseconds since 1970, as the first stage's end tells.
    kernel_ms: Option<i64>,
    /// How far the first stage set it forward, in milliseconds.
    raised_ms: i64,
}

impl Start {
    /// Reads it from the directory of the boot's record.
    pub(crate) fn read(directory: &Path, boot: &Boot) -> Self {
        let written = fs::metadata(directory.join(BOOT_FILE)).and_then(|metadata| metadata.modified()).ok();
        let at_ms = boot.stages.last().and_then(|stage| i64::try_from(stage.at_ms).ok());
        let kernel_ms = written.zip(at_ms).map(|(written, at_ms)| milliseconds(written) - at_ms);
        Self { kernel_ms, raised_ms: raised_ms(directory) }
    }

    /// How far the clock has been set forward since the kernel started, in milliseconds; negative for back.
    fn jump_ms(self, now: SystemTime, uptime_ms: u64) -> i64 {
        let uptime = i64::try_from(uptime_ms).unwrap_or(i64::MAX);
        self.raised_ms + self.kernel_ms.map_or(0, |then| milliseconds(now) - uptime - then)
    }
}

/// See the module.
pub(crate) struct Time {
    /// The clock.
    pub(crate) clock: Box<dyn Clock>,
    /// Names or addresses of servers; the image's where there are none.
    pub(crate) servers: Vec<String>,
    /// How long they are waited for.
    pub(crate) patience: Duration,
    /// Where drop-ins lie.
    pub(crate) drop_ins: PathBuf,
    /// Restarts timesyncd.
    pub(crate) restart: Box<dyn FnMut() -> anyhow::Result<()>>,
    /// When the image was made.
    pub(crate) image_time: Option<SystemTime>,
    /// What the first stage left.
    pub(crate) start: Start,
    /// Where word is left for the next start.
    pub(crate) lib: PathBuf,
    /// Why timesyncd has not got its servers.
    pub(crate) problem: Option<String>,
    /// Why no word is left that the clock is synchronised.
    pub(crate) unnoted: Option<String>,
}

impl Time {
    /// The drop-in's text; `None` when there shall be none.
    fn drop_in(&self) -> Option<String> {
        let servers = self.servers.join(" ");
        (!servers.is_empty()).then(|| {
            format!("# By nodezero-firstboot, from /etc/nodezero/node.json.\n[Time]\nNTP={servers}\nFallbackNTP=\n")
        })
    }

    /// Whether timesyncd's drop-in is as it shall be.
    fn is_configured(&self) -> bool {
        fs::read_to_string(self.drop_ins.join(DROP_IN)).ok() == self.drop_in()
    }

    /// Writes or removes the drop-in, and restarts timesyncd.
    fn configure(&mut self) -> anyhow::Result<()> {
        let path = self.drop_ins.join(DROP_IN);
        match self.drop_in() {
            Some(text) => {
                fs::create_dir_all(&self.drop_ins).with_context(|| format!("making {}", self.drop_ins.display()))?;
                // timesyncd reads it as a user of its own, whatever this service's umask.
                let open = fs::Permissions::from_mode(0o755);
                fs::set_permissions(&self.drop_ins, open)
                    .with_context(|| format!("opening {}", self.drop_ins.display()))?;
                write_atomically(&path, text.as_bytes(), 0o644)?;
            }
            None => fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?,
        }
        (self.restart)()
    }

    fn is_done(&self) -> bool {
        self.is_configured() && self.clock.is_synchronised() && kept::is_noted(&self.lib)
    }

    /// Leaves word for the next start if the clock is synchronised. Without that the node goes on all the same.
    fn note(&mut self) {
        if self.clock.is_synchronised() {
            self.unnoted = kept::note(&self.lib).err().map(|error| format!("{error:#}"));
        }
    }

    fn jump(&self) -> Option<(Duration, &'static str)> {
        let jump = self.start.jump_ms(self.clock.now(), self.clock.uptime_ms());
        let (length, direction) =
            (Duration::from_millis(jump.unsigned_abs()), if jump > 0 { "behind" } else { "ahead" });
        (length >= TOLD).then_some((length, direction))
    }

    /// One line about a synchronised clock.
    fn synchronised(&self) -> String {
        let jump = self.jump().map(|(length, direction)| format!(", the clock was {} {direction}", span(length)));
        format!("synchronised{}", jump.unwrap_or_default())
    }

    /// One line about a clock that is not.
    fn unsynchronised(&self) -> String {
        let now = self.clock.now();
        let age = self.image_time.and_then(|image_time| now.duration_since(image_time).ok());
        let doubt = match age.filter(|age| *age >= IMPLAUSIBLE) {
            Some(age) => format!(", {} after this image was made, and is probably wrong", span(age)),
            None if self.start.raised_ms > 0 => {
                let behind = span(Duration::from_millis(self.start.raised_ms.unsigned_abs()));
                format!("; the hardware clock was {behind} behind, and was set to the latest time that is known")
            }
            None => String::new(),
        };
        format!("clock is not synchronised; it reads {}{doubt}", reading(now))
    }
}

impl Step for Time {
    fn name(&self) -> &'static str {
        "time"
    }

    fn check(&mut self, _journal: &Journal) -> Result<Check, Failure> {
        let is_word =
            |server: &String| !server.is_empty() && !server.contains(|c: char| c.is_whitespace() || c.is_control());
        if let Some(server) = self.servers.iter().find(|server| !is_word(server)) {
            let why = format!("{server:?} is neither a name nor an address");
            return Err(Failure::new(
                "the node's time servers cannot be used",
                why,
                "correct time.servers in the profile",
            ));
        }
        Ok(match (self.is_done(), self.clock.is_synchronised()) {
            (true, _) => Check::Done(self.synchronised()),
            (false, true) => Check::Needed(self.synchronised()),
            (false, false) => Check::Needed(self.unsynchronised()),
        })
    }

    fn apply(&mut self, _journal: &mut Journal, progress: &mut dyn FnMut(&str)) -> Result<(), Failure> {
        // A node without time servers goes on as one whose servers do not answer.
        self.problem =
            if self.is_configured() { None } else { self.configure().err().map(|error| format!("{error:#}")) };
        if !self.clock.is_synchronised() {
            let servers =
                if self.servers.is_empty() { "the image's servers".to_owned() } else { self.servers.join(", ") };
            progress(&format!("{}; waiting up to {} for {servers}", self.unsynchronised(), span(self.patience)));
        }
        let until = self.clock.uptime_ms() + u64::try_from(self.patience.as_millis()).unwrap_or(u64::MAX);
        while !self.clock.is_synchronised() && self.clock.uptime_ms() < until {
            if self.clock.is_stopped() {
                return Err(Failure::new("the wait for time servers was ended", "the service stops", "start it again"));
            }
            self.clock.pause(PAUSE);
        }
        self.note();
        Ok(())
    }

    fn verify(&mut self, _journal: &Journal) -> Result<String, Failure> {
        Ok(if self.clock.is_synchronised() { self.synchronised() } else { self.unsynchronised() })
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> =
            self.problem.iter().map(|why| format!("time servers are not set: {why}")).collect();
        warnings.extend(self.unnoted.iter().map(|why| format!("the time is not kept for the next start: {why}")));
        if !self.clock.is_synchronised() {
            warnings.push(self.unsynchronised());
        } else if let Some((length, direction)) = self.jump().filter(|(length, _)| *length >= WARNED) {
            let battery = if direction == "behind" { ": its battery may be empty" } else { "" };
            warnings.push(format!(
                "the hardware clock was {} {direction} when this machine started{battery}",
                span(length)
            ));
        }
        warnings
    }

    fn later(&mut self) -> Later {
        self.note();
        if self.clock.is_synchronised() { Later::Came(self.synchronised()) } else { Later::Waiting }
    }
}

fn milliseconds(time: SystemTime) -> i64 {
    let whole = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => whole(after),
        Err(before) => -whole(before.duration()),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    const IMAGE: u64 = 1_790_000_000;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// A clock that is synchronised after so many milliseconds, then reading what is right.
    #[derive(Clone)]
    struct Fake {
        uptime: Rc<Cell<u64>>,
        wrong: u64,
        right: u64,
        synchronised_at: Option<u64>,
        stopped: bool,
    }

    impl Clock for Fake {
        fn now(&self) -> SystemTime {
            let start = if self.is_synchronised() { self.right } else { self.wrong };
            at(start) + Duration::from_millis(self.uptime.get())
        }

        fn uptime_ms(&self) -> u64 {
            self.uptime.get()
        }

        fn is_synchronised(&self) -> bool {
            self.synchronised_at.is_some_and(|at| self.uptime.get() >= at)
        }

        fn pause(&self, duration: Duration) {
            self.uptime.set(self.uptime.get() + u64::try_from(duration.as_millis()).expect("short"));
        }

        fn is_stopped(&self) -> bool {
            self.stopped
        }
    }

    /// A step on a machine that has run 5 s, with the number of restarts of timesyncd.
    fn step(root: &Path, wrong: u64, synchronised_at: Option<u64>, servers: &[&str]) -> (Time, Fake, Rc<Cell<u32>>) {
        let clock =
            Fake { uptime: Rc::new(Cell::new(5000)), wrong, right: IMAGE + 1000, synchronised_at, stopped: false };
        let restarts = Rc::new(Cell::new(0));
        let counting = Rc::clone(&restarts);
        let time = Time {
            clock: Box::new(clock.clone()),
            servers: servers.iter().map(|server| (*server).to_owned()).collect(),
            patience: PATIENCE,
            drop_ins: root.join("systemd/timesyncd.conf.d"),
            restart: Box::new(move || {
                counting.set(counting.get() + 1);
                Ok(())
            }),
            image_time: Some(at(IMAGE)),
            start: Start { kernel_ms: Some(milliseconds(at(wrong))), raised_ms: 0 },
            lib: root.to_owned(),
            problem: None,
            unnoted: None,
        };
        (time, clock, restarts)
    }

    fn journal(root: &Path) -> Journal {
        Journal::open(&root.join("journal"), "a").expect("opened")
    }

    /// Runs it as the engine does.
    fn run(time: &mut Time, journal: &mut Journal) -> String {
        match time.check(journal).expect("checked") {
            Check::Done(result) => result,
            Check::Needed(_) => {
                time.apply(journal, &mut |_| ()).expect("applied");
                time.verify(journal).expect("verified")
            }
        }
    }

    #[test]
    fn clocks_of_every_kind_end_in_a_line_and_a_warning() {
        let soon = Some(6000);
        for (case, wrong, synchronised_at, result, warning) in [
            ("right", IMAGE + 1000, soon, "synchronised", None),
            ("a second off", IMAGE + 1001, soon, "synchronised", None),
            ("behind", IMAGE + 900, soon, "synchronised, the clock was 1 min 40 s behind", None),
            ("1970", 0, soon, "synchronised, the clock was 56 y 277 d behind", Some("its battery may be empty")),
            (
                "2040",
                2_210_000_000,
                soon,
                "synchronised, the clock was 13 y 116 d ahead",
                Some("hardware clock was 13 y"),
            ),
            ("never", IMAGE + 1000, None, "clock is not synchronised; it reads 2026-09-21T", Some("not synchronised")),
            (
                "2040 for ever",
                2_210_000_000,
                None,
                "clock is not synchronised; it reads 2040-01-",
                Some("probably wrong"),
            ),
        ] {
            let root = tempfile::tempdir().expect("tempdir");
            let (mut time, clock, restarts) = step(root.path(), wrong, synchronised_at, &[]);
            let found = run(&mut time, &mut journal(root.path()));
            assert!(found.starts_with(result), "{case}: {found}");
            assert!(synchronised_at.is_none() || found == result, "{case}: {found}");
            let warnings = time.warnings();
            assert_eq!(warnings.len(), usize::from(warning.is_some()), "{case}: {warnings:?}");
            assert!(warning.is_none_or(|part| warnings[0].contains(part)), "{case}: {warnings:?}");
            assert_eq!(restarts.get(), 0, "{case}: the image's servers are used already");
            assert_eq!(root.path().join("clock-synchronised").exists(), synchronised_at.is_some(), "{case}");
            let waited = clock.uptime.get() - 5000;
            let bound = if synchronised_at.is_some() { 1000 } else { 90_000 };
            assert_eq!(waited, bound, "{case}");
        }
    }

    #[test]
    fn servers_are_set_once_and_timesyncd_is_restarted_only_then() {
        let root = tempfile::tempdir().expect("tempdir");
        let mut journal = journal(root.path());
        let path = root.path().join("systemd/timesyncd.conf.d").join(DROP_IN);
        for (servers, restarted, content) in [
            (vec!["ntp.home", "10.0.0.1"], 1, Some("[Time]\nNTP=ntp.home 10.0.0.1\nFallbackNTP=\n")),
            (vec!["ntp.home", "10.0.0.1"], 0, Some("[Time]\nNTP=ntp.home 10.0.0.1\nFallbackNTP=\n")),
            (vec!["10.0.0.1"], 1, Some("[Time]\nNTP=10.0.0.1\nFallbackNTP=\n")),
            (vec![], 1, None),
            (vec![], 0, None),
        ] {
            let (mut time, _, restarts) = step(root.path(), IMAGE + 1000, Some(0), &servers);
            assert_eq!(run(&mut time, &mut journal), "synchronised", "{servers:?}");
            assert_eq!(restarts.get(), restarted, "{servers:?}");
            let found = fs::read_to_string(&path).ok();
            assert_eq!(
                found.as_deref().and_then(|text| text.split_once('\n')).map(|(_, rest)| rest),
                content,
                "{servers:?}"
            );
            if let Ok(metadata) = fs::metadata(&path) {
                assert_eq!(metadata.permissions().mode() & 0o777, 0o644);
            }
        }
    }

    #[test]
    fn what_is_no_server_is_refused() {
        for server in ["", "a b", "a\nNTP=b", "a\u{7f}"] {
            let root = tempfile::tempdir().expect("tempdir");
            let (mut time, _, _) = step(root.path(), IMAGE, Some(0), &[server]);
            assert!(time.check(&journal(root.path())).is_err(), "{server:?}");
        }
    }

    #[test]
    fn a_broken_timesyncd_is_a_warning_and_a_stop_ends_the_wait() {
        let root = tempfile::tempdir().expect("tempdir");
        let mut journal = journal(root.path());
        let (mut time, clock, _) = step(root.path(), IMAGE, None, &["ntp.home"]);
        time.restart = Box::new(|| anyhow::bail!("systemctl ended with exit status: 1"));
        run(&mut time, &mut journal);
        assert!(time.warnings()[0].contains("systemctl ended with exit status: 1"), "{:?}", time.warnings());
        time.clock = Box::new(Fake { stopped: true, ..clock.clone() });
        let before = clock.uptime.get();
        assert!(time.apply(&mut journal, &mut |_| ()).is_err());
        assert_eq!(clock.uptime.get(), before);
    }

    #[test]
    fn synchronisation_may_come_later() {
        let root = tempfile::tempdir().expect("tempdir");
        let (mut time, clock, _) = step(root.path(), IMAGE, Some(200_000), &[]);
        run(&mut time, &mut journal(root.path()));
        assert_eq!(time.later(), Later::Waiting);
        assert!(!root.path().join("clock-synchronised").exists());
        clock.uptime.set(200_000);
        assert_eq!(time.later(), Later::Came("synchronised, the clock was 16 min 40 s behind".to_owned()));
        assert!(time.warnings().is_empty());
        assert!(root.path().join("clock-synchronised").exists());
        assert!(matches!(time.check(&journal(root.path())), Ok(Check::Done(_))));
        time.lib = root.path().join("gone");
        assert!(matches!(time.check(&journal(root.path())), Ok(Check::Needed(_))), "nobody has left word there");
        run(&mut time, &mut journal(root.path()));
        assert!(time.warnings()[0].starts_with("the time is not kept for the next start: writing "));
    }

    #[test]
    fn the_clock_is_raised_to_the_images_time_and_never_set_back() {
        for (now, behind) in
            [(0, Some(IMAGE)), (IMAGE - 1, Some(1)), (IMAGE, None), (IMAGE + 1, None), (2_210_000_000, None)]
        {
            let directory = tempfile::tempdir().expect("tempdir");
            let set = Cell::new(None);
            let setting = |time| {
                set.set(Some(time));
                Ok(())
            };
            let raised = raise(at(now), at(IMAGE), setting, directory.path()).expect("set");
            assert_eq!(raised, behind.map(Duration::from_secs), "{now}");
            assert_eq!(set.get(), behind.map(|_| at(IMAGE)), "{now}");
            let start = Start::read(directory.path(), &crate::boot::tests::example());
            assert_eq!(
                start.raised_ms,
                behind.map_or(0, |behind| i64::try_from(behind).expect("small") * 1000),
                "{now}"
            );
        }
        let directory = tempfile::tempdir().expect("tempdir");
        for (now, earliest) in [(0, 100), (100, 150)] {
            raise(at(now), at(earliest), |_| Ok(()), directory.path()).expect("set");
        }
        assert_eq!(raised_ms(directory.path()), 150_000, "to the image's time and on to the kept one");
        let refused = raise(at(0), at(IMAGE), |_| Err(io::ErrorKind::PermissionDenied.into()), directory.path());
        let error = format!("{:#}", refused.expect_err("refused"));
        assert!(error.starts_with("setting the clock from 1970-01-01T00:00:00Z to 2026-09-21T"), "{error}");
    }

    #[test]
    fn jumps_are_seen_from_the_first_stages_record_on() {
        let directory = tempfile::tempdir().expect("tempdir");
        let boot = crate::boot::tests::example();
        boot.write(directory.path()).expect("written");
        fs::File::options()
            .write(true)
            .open(directory.path().join(BOOT_FILE))
            .and_then(|file| file.set_modified(at(IMAGE)))
            .expect("set");
        fs::write(directory.path().join(RAISED_FILE), "3000").expect("written");
        let start = Start::read(directory.path(), &boot);
        assert_eq!(start.jump_ms(at(IMAGE + 10), 10_840), 3000, "only what the first stage did");
        assert_eq!(start.jump_ms(at(IMAGE + 110), 10_840), 103_000);
        assert_eq!(Start::default().jump_ms(at(IMAGE), 10), 0, "nothing is known");
    }

    #[test]
    fn the_images_time_is_that_of_its_files() {
        let root = tempfile::tempdir().expect("tempdir");
        assert!(image_time(root.path()).is_err());
        fs::create_dir_all(root.path().join("usr/lib")).expect("made");
        for (file, time) in [("usr/lib/os-release", 7), ("usr/lib/clock-epoch", 9)] {
            fs::File::create(root.path().join(file)).and_then(|made| made.set_modified(at(time))).expect("made");
            assert_eq!(image_time(root.path()).expect("told"), at(time));
        }
    }

    #[test]
    fn spans_have_two_units_at_most() {
        for (seconds, expected) in
            [(0, "0 ms"), (1, "1 s"), (61, "1 min 1 s"), (7200, "2 h"), (90_061, "1 d 1 h"), (YEAR + 59, "1 y")]
        {
            assert_eq!(span(Duration::from_secs(seconds)), expected, "{seconds}");
        }
    }
}
