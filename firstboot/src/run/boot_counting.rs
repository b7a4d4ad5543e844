//! Marking a boot as good, as systemd-boot counts them: [Automatic Boot Assessment] and systemd-bless-boot(8).
//!
//! A UKI's name on the ESP may end in `+LEFT` or `+LEFT-DONE` before its suffix. The boot loader takes one from LEFT,
//! adds one to DONE, and hands the new name on in the EFI variable `LoaderBootCountPath`. A good boot is marked by
//! renaming the file to the name without the counter.
//!
//! [Automatic Boot Assessment]: https://systemd.io/AUTOMATIC_BOOT_ASSESSMENT/

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};

use anyhow::Context;
use rustix::fs::{CWD, RenameFlags, renameat_with, syncfs};

/// `LoaderBootCountPath` of the boot loader interface, in efivarfs.
const VARIABLE: &str = "LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// The largest variable that is read, in bytes: a path of FAT, with room to spare.
const LIMIT: u64 = 4096;

/// What the boot loader counted in this boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Counted {
    /// Nothing, as the text says.
    Nothing(&'static str),
    /// The entry of this file.
    Entry(Entry),
}

/// A boot entry with a counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The file, from the ESP's root, with the counter as this boot left it.
    pub(crate) counted: PathBuf,
    /// The same without the counter.
    pub(crate) good: PathBuf,
    /// The same with no tries left, as a boot before may have left it.
    bad: PathBuf,
}

/// How an entry's file is named now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// Without a counter: the boot is marked good.
    Good,
    /// With one.
    Counting,
}

/// Asks the firmware what the boot loader counted. `firmware` is `/sys/firmware`.
///
/// # Errors
/// When the variable cannot be read or is not of the specified form.
pub(crate) fn counted(firmware: &Path) -> anyhow::Result<Counted> {
    if !firmware.join("efi").is_dir() {
        return Ok(Counted::Nothing("started by BIOS, which counts no tries"));
    }
    let path = firmware.join("efi/efivars").join(VARIABLE);
    let content = match fs::symlink_metadata(&path) {
        Ok(_) => crate::files::read_bounded(&path, LIMIT)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Counted::Nothing("the boot loader counts no tries of this entry"));
        }
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let text = efi_text(&content).with_context(|| format!("{VARIABLE} holds no text"))?;
    let entry =
        Entry::parse(&text).with_context(|| format!("{VARIABLE} is {text:?}, which names no file with a counter"))?;
    Ok(Counted::Entry(entry))
}

/// The text of an EFI variable: four bytes of attributes, then UTF-16, little-endian, ended by zero.
fn efi_text(content: &[u8]) -> Option<String> {
    let (units, rest) = content.get(4..)?.as_chunks::<2>();
    let units: Vec<u16> = units.iter().map(|unit| u16::from_le_bytes(*unit)).take_while(|unit| *unit != 0).collect();
    if !rest.is_empty() || units.is_empty() {
        return None;
    }
    String::from_utf16(&units).ok()
}

impl Entry {
    /// Reads a path as the boot loader writes it, with backslashes. `None` when its name has no counter, or it is no
    /// path below the ESP's root.
    fn parse(path: &str) -> Option<Self> {
        let path = PathBuf::from(path.replace('\\', "/").trim_start_matches('/'));
        if !path.components().all(|component| matches!(component, Component::Normal(_))) {
            return None;
        }
        let (good, bad) = without_counter(path.file_name()?.to_str()?)?;
        Some(Self { good: path.with_file_name(good), bad: path.with_file_name(bad), counted: path })
    }

    /// How its file is named now, below a mounted ESP.
    ///
    /// # Errors
    /// When there is no such file under any name, or one under both.
    pub(crate) fn named(&self, esp: &Path) -> anyhow::Result<Named> {
        let (good, counting) = (exists(&esp.join(&self.good))?, self.counting(esp)?);
        match (good, counting) {
            (true, None) => Ok(Named::Good),
            (false, Some(_)) => Ok(Named::Counting),
            (true, Some(counting)) => {
                anyhow::bail!("the ESP has both {} and {}", self.good.display(), counting.display())
            }
            (false, None) => {
                anyhow::bail!("the ESP has neither {} nor {}", self.counted.display(), self.good.display())
            }
        }
    }

    /// Gives its file the name without a counter, below a mounted ESP, and flushes that.
    ///
    /// # Errors
    /// As [`Self::named`], and what the file system answers.
    pub(crate) fn mark_good(&self, esp: &Path) -> anyhow::Result<()> {
        if self.named(esp)? == Named::Good {
            return Ok(());
        }
        let from = self.counting(esp)?.context("it was there a moment ago")?;
        let renaming = || format!("renaming {} to {} on the ESP", from.display(), self.good.display());
        renameat_with(CWD, esp.join(from), CWD, esp.join(&self.good), RenameFlags::NOREPLACE).with_context(renaming)?;
        let directory = esp.join(self.good.parent().unwrap_or(Path::new("")));
        File::open(&directory).and_then(|directory| Ok(syncfs(directory)?)).with_context(renaming)
    }

    /// The name with a counter that its file has, if it has one.
    fn counting(&self, esp: &Path) -> anyhow::Result<Option<&Path>> {
        for name in [&self.counted, &self.bad] {
            if exists(&esp.join(name))? {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }
}

/// The name without its counter, and that with no tries left. `None` when it has no counter of the specified form.
fn without_counter(name: &str) -> Option<(String, String)> {
    let (stem, suffix) = name.rsplit_once('.')?;
    let (base, counter) = stem.rsplit_once('+')?;
    let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
    let is_number =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u64>().is_ok();
    let is_entry = ["efi", "conf"].iter().any(|known| suffix.eq_ignore_ascii_case(known));
    if base.is_empty() || !is_number(left) || !is_number(done) || !is_entry {
        return None;
    }
    Some((format!("{base}.{suffix}"), format!("{base}+0-{done}.{suffix}")))
}

fn exists(path: &Path) -> anyhow::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The variable's content for a path.
    pub(crate) fn variable(path: &str) -> Vec<u8> {
        let units = path.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
        [6, 0, 0, 0].into_iter().chain(units).collect()
    }

    /// A directory like `/sys/firmware`, with the variable where there is one.
    pub(crate) fn firmware(root: &Path, content: Option<&[u8]>) -> PathBuf {
        let efivars = root.join("firmware/efi/efivars");
        fs::create_dir_all(&efivars).expect("made");
        if let Some(content) = content {
            fs::write(efivars.join(VARIABLE), content).expect("written");
        }
        root.join("firmware")
    }

    #[test]
    fn counters_are_those_of_the_specification() {
        for (name, good) in [
            ("nodezero-worker-metal_0.1.0+3.efi", Some("nodezero-worker-metal_0.1.0.efi")),
            ("nodezero-worker-metal_0.1.0+2-1.efi", Some("nodezero-worker-metal_0.1.0.efi")),
            ("nodezero_0.1.0+0-3.efi", Some("nodezero_0.1.0.efi")),
            ("fedora-6+11-999999.conf", Some("fedora-6.conf")),
            ("a+0003-0001.EFI", Some("a.EFI")),
            ("a+b+1.2+3-4.efi", Some("a+b+1.2.efi")),
            ("a.b+1.efi", Some("a.b.efi")),
            ("a.efi", None),
            ("a+.efi", None),
            ("a+3-.efi", None),
            ("a+-3.efi", None),
            ("a+3-1-2.efi", None),
            ("a+3x.efi", None),
            ("a+x3.efi", None),
            ("a++3.efi", Some("a+.efi")),
            ("a+3 .efi", None),
            ("a+99999999999999999999.efi", None),
            ("+3.efi", None),
            ("a+3", None),
            ("a+3.txt", None),
            ("a+3.efi.bak", None),
            ("a+3.beta.efi", None),
            ("", None),
        ] {
            assert_eq!(without_counter(name).map(|(good, _)| good).as_deref(), good, "{name}");
        }
        assert_eq!(without_counter("a+1-2.efi").map(|(_, bad)| bad).as_deref(), Some("a+0-2.efi"));
    }

    #[test]
    fn the_loaders_variable_is_read() {
        for (case, content, good) in [
            ("none", None, None),
            ("a path", Some(variable(r"\EFI\Linux\n+2-1.efi")), Some("EFI/Linux/n.efi")),
            ("no counter", Some(variable(r"\EFI\Linux\n.efi")), None),
            ("upwards", Some(variable(r"\EFI\..\n+2-1.efi")), None),
            ("only attributes", Some(vec![6, 0, 0, 0]), None),
            ("nothing", Some(vec![]), None),
            ("half a character", Some([variable("n+1.efi"), vec![0]].concat()), None),
            ("no UTF-16", Some(vec![6, 0, 0, 0, 0, 0xd8, 0, 0]), None),
        ] {
            let root = tempfile::tempdir().expect("tempdir");
            match counted(&firmware(root.path(), content.as_deref())) {
                Ok(Counted::Entry(entry)) => assert_eq!(entry.good.to_str(), good, "{case}"),
                Ok(Counted::Nothing(_)) => assert_eq!(case, "none"),
                Err(_) => assert!(good.is_none() && case != "none", "{case}"),
            }
        }
        let root = tempfile::tempdir().expect("tempdir");
        let bios = counted(root.path()).expect("no firmware at all");
        assert_eq!(bios, Counted::Nothing("started by BIOS, which counts no tries"));
    }

    #[test]
    fn the_file_is_renamed_once_whatever_its_counter_says() {
        let entry = Entry::parse(r"\EFI\Linux\n+2-1.efi").expect("counted");
        for (case, files, expected) in [
            ("counting", vec!["n+2-1.efi", "m+3.efi"], Some(vec!["m+3.efi", "n.efi"])),
            ("marked before", vec!["n.efi"], Some(vec!["n.efi"])),
            ("no tries left", vec!["n+0-1.efi"], Some(vec!["n.efi"])),
            ("both", vec!["n.efi", "n+2-1.efi"], None),
            ("gone", vec!["m+3.efi"], None),
        ] {
            let esp = tempfile::tempdir().expect("tempdir");
            let directory = esp.path().join("EFI/Linux");
            fs::create_dir_all(&directory).expect("made");
            files.iter().for_each(|name| fs::write(directory.join(name), name).expect("written"));
            for _ in 0..2 {
                let marked = entry.mark_good(esp.path());
                assert_eq!(marked.is_ok(), expected.is_some(), "{case}: {marked:?}");
                let listed = fs::read_dir(&directory).expect("listed").flatten();
                let mut names: Vec<_> = listed.map(|entry| entry.file_name().into_string().expect("text")).collect();
                names.sort();
                let mut kept = files.clone();
                kept.sort_unstable();
                assert_eq!(names, expected.clone().unwrap_or(kept), "{case}");
            }
            assert_eq!(entry.named(esp.path()).ok(), expected.map(|_| Named::Good), "{case}");
        }
    }
}
