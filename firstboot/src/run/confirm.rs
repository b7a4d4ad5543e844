//! The step `confirm`: the boot is marked good, and secrets that nobody needs any more are gone.
//!
//! It is the last one, so that a boot which does not get here counts as a bad one. The ESP is mounted for a moment only,
//! read-only to look and writable to rename. An ESP that cannot be written is a warning and no failure: the node is what
//! it shall be, and such an ESP keeps the boot loader from counting, too.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::boot_counting::{Counted, Named, counted};
use super::journal::Journal;
use super::step::{Check, Step};
use crate::summary::{Failure, OrFail};

/// What is done with the mounted ESP.
pub(crate) type Work<'a> = dyn FnMut(&Path) -> anyhow::Result<()> + 'a;

/// The ESP of the own disk.
pub(crate) trait Esp {
    /// Mounts it, does `work` in it, and unmounts it.
    ///
    /// # Errors
    /// When it cannot be mounted so, or the work ends with an error.
    fn with(&self, writable: bool, work: &mut Work<'_>) -> anyhow::Result<()>;
}

/// A partition that is mounted for the moment.
#[derive(Debug)]
pub(crate) struct Partition {
    /// The device file; `None` when the own disk shows no ESP.
    pub(crate) device: Option<PathBuf>,
    /// Where it is mounted. The directory is made and removed.
    pub(crate) at: PathBuf,
}

impl Esp for Partition {
    fn with(&self, writable: bool, work: &mut Work<'_>) -> anyhow::Result<()> {
        let device = self.device.as_ref().context("the own disk shows no partition with the label ESP")?;
        // A service that was killed may have left it mounted.
        let _ = unmount(&self.at, UnmountFlags::DETACH);
        fs::create_dir_all(&self.at).with_context(|| format!("making {}", self.at.display()))?;
        let safe = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        let flags = if writable { safe } else { safe | MountFlags::RDONLY };
        mount(device, &self.at, "vfat", flags, c"umask=0077").with_context(|| {
            format!("mounting the ESP {} {}", device.display(), if writable { "writable" } else { "read-only" })
        })?;
        let done = work(&self.at);
        let unmounted = unmount(&self.at, UnmountFlags::empty()).context("unmounting the ESP");
        // Empty and on a file system in memory: one that stays harms nothing.
        let _ = fs::remove_dir(&self.at);
        done.and(unmounted)
    }
}

/// See the module.
pub(crate) struct Confirm {
    /// `/sys/firmware`.
    pub(crate) firmware: PathBuf,
    /// The ESP.
    pub(crate) esp: Box<dyn Esp>,
    /// Files that are to be gone.
    pub(crate) secrets: Vec<PathBuf>,
    /// Why the boot could not be marked good.
    pub(crate) not_marked: Option<String>,
}

impl Confirm {
    /// What stands about the boot in firmware and ESP, as one line; `Err` when it is not marked good, with the reason.
    fn marked(&self) -> Result<String, String> {
        let look = || -> anyhow::Result<Result<String, String>> {
            let entry = match counted(&self.firmware)? {
                Counted::Nothing(why) => return Ok(Ok(why.to_owned())),
                Counted::Entry(entry) => entry,
            };
            let mut named = Named::Counting;
            self.esp.with(false, &mut |esp| {
                named = entry.named(esp)?;
                Ok(())
            })?;
            Ok(match named {
                Named::Good => Ok(format!("the boot is marked good: {}", entry.good.display())),
                Named::Counting => Err(format!("{} is to be marked good", entry.counted.display())),
            })
        };
        look().unwrap_or_else(|error| Err(format!("{error:#}")))
    }

    fn mark(&self) -> anyhow::Result<()> {
        match counted(&self.firmware)? {
            Counted::Nothing(_) => Ok(()),
            Counted::Entry(entry) => self.esp.with(true, &mut |esp| entry.mark_good(esp)),
        }
    }

    fn secrets_there(&self) -> Vec<String> {
        let there = self.secrets.iter().filter(|path| fs::symlink_metadata(path).is_ok());
        there.map(|path| path.display().to_string()).collect()
    }
}

impl Step for Confirm {
    fn name(&self) -> &'static str {
        "confirm"
    }

    fn check(&mut self, _journal: &Journal) -> Result<Check, Failure> {
        let secrets = self.secrets_there();
        let scrub = (!secrets.is_empty()).then(|| format!("{} is to be removed", secrets.join(", ")));
        Ok(match (self.marked(), scrub) {
            (Ok(marked), None) => Check::Done(marked),
            (Ok(_), Some(scrub)) => Check::Needed(scrub),
            (Err(why), scrub) => Check::Needed([Some(why), scrub].into_iter().flatten().collect::<Vec<_>>().join("; ")),
        })
    }

    fn apply(&mut self, _journal: &mut Journal, _progress: &mut dyn FnMut(&str)) -> Result<(), Failure> {
        let marked = match self.marked() {
            Ok(_) => Ok(()),
            Err(_) => self.mark(),
        };
        self.not_marked = marked.err().map(|error| format!("{error:#}"));
        for path in &self.secrets {
            scrub(path).or_fail("a secret that is not needed any more cannot be removed", "restart")?;
        }
        Ok(())
    }

    fn verify(&mut self, _journal: &Journal) -> Result<String, Failure> {
        let secrets = self.secrets_there();
        if !secrets.is_empty() {
            return Err(Failure::new("a secret is still there", secrets.join(", "), "restart"));
        }
        Ok(match self.marked() {
            Ok(marked) => {
                self.not_marked = None;
                marked
            }
            Err(why) => {
                let why = self.not_marked.get_or_insert(why);
                format!("the boot is not marked good: {why}")
            }
        })
    }

    fn warnings(&self) -> Vec<String> {
        let tell = |why: &String| {
            format!(
                "the boot is not marked good: {why}; look at the ESP, else the boot loader may take another image later"
            )
        };
        self.not_marked.iter().map(tell).collect()
    }
}

/// Overwrites a file and removes it. On a file system in memory this is the memory that the secret was in.
///
/// # Errors
/// When it is there and cannot be removed.
pub(crate) fn scrub(path: &Path) -> anyhow::Result<()> {
    let scrub = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).open(path)?;
        let length = file.metadata()?.len();
        io::copy(&mut io::Read::take(io::repeat(0), length), &mut file)?;
        file.flush()?;
        file.sync_all()?;
        fs::remove_file(path)
    };
    match scrub() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.with_context(|| format!("removing {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::boot_counting::tests::{firmware, variable};
    use super::*;

    /// A directory in place of the ESP.
    struct Directory {
        path: PathBuf,
        writable: bool,
    }

    impl Esp for Directory {
        fn with(&self, writable: bool, work: &mut Work<'_>) -> anyhow::Result<()> {
            anyhow::ensure!(self.writable || !writable, "mounting the ESP /dev/vda1 writable: read-only file system");
            work(&self.path)
        }
    }

    struct World {
        root: tempfile::TempDir,
        journal: Journal,
        step: Confirm,
    }

    fn world(variable: Option<&[u8]>, writable: bool) -> World {
        let root = tempfile::tempdir().expect("tempdir");
        fs::create_dir_all(root.path().join("esp/EFI/Linux")).expect("made");
        fs::write(root.path().join("esp/EFI/Linux/n+2-1.efi"), "uki").expect("written");
        fs::write(root.path().join("config.ign"), "secret").expect("written");
        let journal = Journal::open(&root.path().join("journal"), "a").expect("opened");
        let step = Confirm {
            firmware: firmware(root.path(), variable),
            esp: Box::new(Directory { path: root.path().join("esp"), writable }),
            secrets: vec![root.path().join("config.ign")],
            not_marked: None,
        };
        World { root, journal, step }
    }

    fn run(world: &mut World) -> String {
        let World { journal, step, .. } = world;
        match step.check(journal).expect("checked") {
            Check::Done(result) => result,
            Check::Needed(_) => {
                step.apply(journal, &mut |_| ()).expect("applied");
                step.verify(journal).expect("verified")
            }
        }
    }

    #[test]
    fn a_good_boot_is_marked_and_the_secret_is_gone() {
        let mut world = world(Some(&variable(r"\EFI\Linux\n+2-1.efi")), true);
        let before = world.step.check(&world.journal).expect("checked");
        assert!(matches!(&before, Check::Needed(why) if why.contains("n+2-1.efi") && why.contains("config.ign")));
        for _ in 0..2 {
            assert_eq!(run(&mut world), "the boot is marked good: EFI/Linux/n.efi");
            assert!(world.step.warnings().is_empty());
        }
        assert!(world.root.path().join("esp/EFI/Linux/n.efi").exists());
        assert!(!world.root.path().join("config.ign").exists());
    }

    #[test]
    fn where_nothing_is_counted_only_the_secret_goes() {
        let mut world = world(None, true);
        for _ in 0..2 {
            assert_eq!(run(&mut world), "the boot loader counts no tries of this entry");
        }
        assert!(world.root.path().join("esp/EFI/Linux/n+2-1.efi").exists(), "nobody asked for it");
        assert!(!world.root.path().join("config.ign").exists());
    }

    #[test]
    fn an_esp_that_is_read_only_or_broken_is_a_warning() {
        for (case, variable, writable, expected) in [
            ("read-only", variable(r"\EFI\Linux\n+2-1.efi"), false, "read-only file system"),
            ("file gone", variable(r"\EFI\Linux\m+2-1.efi"), true, "neither EFI/Linux/m+2-1.efi nor EFI/Linux/m.efi"),
            ("variable damaged", vec![1], true, "holds no text"),
        ] {
            let mut world = world(Some(&variable), writable);
            let result = run(&mut world);
            assert!(
                result.starts_with("the boot is not marked good: ") && result.contains(expected),
                "{case}: {result}"
            );
            assert!(world.step.warnings()[0].contains(expected), "{case}");
            assert!(!world.root.path().join("config.ign").exists(), "{case}");
        }
    }

    #[test]
    fn a_disk_without_an_esp_is_told() {
        let root = tempfile::tempdir().expect("tempdir");
        let none = Partition { device: None, at: root.path().join("esp") };
        let error = none.with(true, &mut |_| Ok(())).expect_err("no device").to_string();
        assert_eq!(error, "the own disk shows no partition with the label ESP");
    }
}
