//! A test in virtual machines: its directory, its turn, and what it leaves behind when it fails.
//!
//! Everything is in `target/qemu-tests/NAME/`. A scenario that passes keeps its consoles and drops its disks; one that
//! fails keeps all, and its message shows the end of every console and says where the rest is. At most two scenarios
//! run at a time on a machine, whatever process they are in; `NODEZERO_TEST_MACHINES` is another number.

use std::any::Any;
use std::cell::OnceCell;
use std::env;
use std::fs::{self, File, TryLockError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::accel;
use crate::console::Console;
use crate::iso;
use crate::machine::{Bus, Disk, Format, Machine};
use crate::storage;
use crate::vm::{self, Power, Vm};

/// How many machines run at a time, unless the environment says otherwise.
const MACHINES: usize = 2;

/// How long a machine may go on writing to its console after a failure.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Lines of each console in the message of a failure.
const TAIL: usize = 60;

/// What the test that is running has.
#[derive(Debug)]
pub struct Scenario {
    dir: PathBuf,
    /// The consoles of all power-ons so far, by name.
    consoles: Vec<(String, Console)>,
    /// An image of ours that works, once one is known.
    image: OnceCell<PathBuf>,
    /// The locks that are this scenario's turn.
    turn: Vec<File>,
    machines: usize,
}

/// Runs `test`, which has one machine on at a time. Panics with all that is known when it fails.
pub fn scenario(name: &str, test: impl FnOnce(&mut Scenario) -> Result<()>) {
    scenario_of(1, name, test);
}

/// Runs `test`, which has up to `machines` machines on at a time.
pub fn scenario_of(machines: usize, name: &str, test: impl FnOnce(&mut Scenario) -> Result<()>) {
    let mut scenario = match Scenario::new(machines, name) {
        Ok(scenario) => scenario,
        Err(error) => panic!("preparing {name}: {error:#}"),
    };
    // A failed assertion is a panic, and leaves the same evidence as an error does.
    let outcome = catch_unwind(AssertUnwindSafe(|| test(&mut scenario)));
    let failure = match outcome {
        Ok(Ok(())) => match scenario.drop_disks() {
            Ok(()) => return,
            Err(error) => format!("{error:#}"),
        },
        Ok(Err(error)) => format!("{error:#}"),
        Err(panic) => message(&*panic),
    };
    let evidence = scenario.evidence();
    panic!("{name}: {failure}\n{evidence}\nall that is left of it is in {}", scenario.dir.display());
}

/// The directory of cargo's output that the running test is in.
pub fn target() -> Result<PathBuf> {
    let test = env::current_exe().context("finding the test's own program")?;
    // TARGET/PROFILE/deps/TEST
    let target = test.ancestors().nth(3).with_context(|| format!("{} is not in cargo's output", test.display()))?;
    Ok(target.to_path_buf())
}

/// The directory of everything that scenarios write.
pub fn base() -> Result<PathBuf> {
    let base = target()?.join("qemu-tests");
    fs::create_dir_all(&base).with_context(|| format!("creating {}", base.display()))?;
    Ok(base)
}

impl Scenario {
    fn new(machines: usize, name: &str) -> Result<Scenario> {
        let dir = base()?.join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(Scenario { dir, consoles: Vec::new(), image: OnceCell::new(), turn: Vec::new(), machines })
    }

    /// The scenario's own directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A disk to boot from that begins as `image` and is larger. It is the scenario's, and keeps what machines write.
    pub fn boot_disk(&self, image: &Path) -> Result<Disk> {
        self.boot_disk_of("boot", image)
    }

    /// Like [`Scenario::boot_disk`], for one of several machines; `name` is the disk's.
    pub fn boot_disk_of(&self, name: &str, image: &Path) -> Result<Disk> {
        let path = self.dir.join(format!("{name}.qcow2"));
        storage::overlay(image, storage::BOOT_DISK, &path)?;
        self.image.get_or_init(|| image.to_path_buf());
        Ok(Disk::new(path, Format::Qcow2).boot())
    }

    /// Like [`Scenario::boot_disk`], with the lowest bit of the byte at `offset` of the image the other way round.
    pub fn damaged_boot_disk(&self, image: &Path, offset: u64) -> Result<Disk> {
        let path = self.dir.join("boot.qcow2");
        storage::overlay_with_flipped_bit(image, storage::BOOT_DISK, offset, &path)?;
        self.image.get_or_init(|| image.to_path_buf());
        Ok(Disk::new(path, Format::Qcow2).boot())
    }

    /// A copy of `image` to boot from, with a file in its ESP. It is as large as the image.
    pub fn boot_disk_with_esp_file(&self, image: &Path, dir: &str, name: &str, content: &[u8]) -> Result<Disk> {
        let copy = self.dir.join("image.raw");
        storage::copy_sparse(image, &copy)?;
        storage::write_to_esp(&copy, dir, name, content)?;
        self.boot_disk(&copy)
    }

    /// An empty disk of `size` bytes, which is the scenario's.
    pub fn empty_disk(&self, name: &str, size: u64) -> Result<Disk> {
        let path = self.dir.join(format!("{name}.qcow2"));
        storage::empty(size, &path)?;
        Ok(Disk::new(path, Format::Qcow2))
    }

    /// A config drive: a small FAT disk with a label, which FAT writes in capitals, and files by path.
    pub fn config_drive(&self, label: &str, files: &[(&str, &[u8])]) -> Result<Disk> {
        let path = self.dir.join(format!("drive-{label}.raw"));
        storage::fat_drive(&path, label, files)?;
        Ok(Disk::new(path, Format::Raw))
    }

    /// A config drive as clouds attach it: a disc in a drive, with a label and files by path.
    pub fn config_disc(&self, label: &str, files: &[(&str, &[u8])]) -> Result<Disk> {
        let path = self.dir.join(format!("disc-{label}.raw"));
        iso::write(&path, label, files)?;
        Ok(Disk::new(path, Format::Raw).bus(Bus::Disc).read_only())
    }

    /// Writes a file into the scenario's directory.
    pub fn file(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// Switches `machine` on, once it is this scenario's turn. Disks and firmware variables are as an earlier power-on
    /// of the machine left them.
    pub fn start(&mut self, machine: &Machine) -> Result<Vm> {
        if self.turn.is_empty() {
            self.turn = wait_for_turn(&base()?, self.machines, limit()?)?;
        }
        let accel = accel::choose(self.image.get().map(PathBuf::as_path), &base()?)?;
        let boots = self.consoles.iter().filter(|(name, _)| name.starts_with(&format!("{}-", machine.name()))).count();
        let label = format!("{}-{}", machine.name(), boots + 1);
        let vm = vm::switch_on(machine, accel, &Power { dir: &self.dir, label: &label })?;
        self.consoles.push((label, vm.console().clone()));
        Ok(vm)
    }

    fn evidence(&self) -> String {
        // What ended a wait is often the first line of several.
        thread::sleep(LAST_WORDS);
        let consoles = self.consoles.iter();
        consoles.map(|(label, console)| format!("--- the end of {label}'s console\n{}", console.tail(TAIL))).collect()
    }

    /// Only consoles and arguments of a scenario that passed are worth their room.
    fn drop_disks(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| ["qcow2", "raw", "vars"].iter().any(|disk| extension == *disk))
            {
                fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            }
        }
        Ok(())
    }
}

fn limit() -> Result<usize> {
    match env::var("NODEZERO_TEST_MACHINES") {
        Ok(number) => {
            let number = number.parse().context("reading NODEZERO_TEST_MACHINES")?;
            ensure!(number > 0, "NODEZERO_TEST_MACHINES is 0");
            Ok(number)
        }
        Err(_) => Ok(MACHINES),
    }
}

/// Waits until `machines` more may run, of `limit` in all, and takes them. File locks count across processes, and end
/// with the process. Someone who wants more than the limit takes all.
fn wait_for_turn(dir: &Path, machines: usize, limit: usize) -> Result<Vec<File>> {
    let open = |name: String| {
        let path = dir.join(name);
        File::create(&path).with_context(|| format!("creating {}", path.display()))
    };
    // Whoever holds the gate collects; so two that each hold a part never wait for each other.
    let gate = open("turn.gate".to_owned())?;
    gate.lock().context("waiting for a turn")?;
    let mut taken: Vec<File> = Vec::new();
    let mut free: Vec<File> = (0..limit).map(|number| open(format!("turn.{number}"))).collect::<Result<_>>()?;
    while taken.len() < machines.min(limit) {
        let mut busy = Vec::new();
        for file in free {
            match file.try_lock() {
                Ok(()) if taken.len() < machines => taken.push(file),
                Ok(()) => drop(file),
                Err(TryLockError::WouldBlock) => busy.push(file),
                Err(TryLockError::Error(error)) => return Err(error).context("taking a turn"),
            }
        }
        free = busy;
        if taken.len() < machines.min(limit) {
            thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(taken)
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn turns_are_bounded_and_nobody_waits_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for machines in [1, 2, 1, 3, 1, 2] {
                let (dir, running, most) = (dir.path(), &running, &most);
                scope.spawn(move || {
                    let turn = wait_for_turn(dir, machines, 2).unwrap();
                    assert_eq!(turn.len(), machines.min(2));
                    most.fetch_max(running.fetch_add(turn.len(), Ordering::SeqCst) + turn.len(), Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(20));
                    running.fetch_sub(turn.len(), Ordering::SeqCst);
                });
            }
        });
        assert_eq!(most.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn failures_say_what_and_where() {
        for (name, panics, expected) in [("unit-error", false, "the reason"), ("unit-panic", true, "assertion")] {
            let outcome = catch_unwind(|| {
                scenario(name, |s| {
                    s.file("left.qcow2", b"x")?;
                    assert!(!panics, "assertion");
                    anyhow::bail!("the reason")
                });
            });
            let text = message(&*outcome.unwrap_err());
            let dir = base().unwrap().join(name);
            assert!(text.contains(expected) && text.contains(&dir.display().to_string()), "{text}");
            assert!(dir.join("left.qcow2").exists(), "a failure keeps its disks");
        }
        scenario("unit-pass", |s| s.file("left.qcow2", b"x").map(drop));
        assert!(!base().unwrap().join("unit-pass/left.qcow2").exists(), "a success drops its disks");
    }
}
