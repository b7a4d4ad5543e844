//! What this node has done, in `/var/lib/nodezero/state.json`: the journal of the steps.
//!
//! One JSON document: `version` of the format (1); `node`, the name; `steps`, for each the [`Record`] of its last run;
//! `notes` of steps, kept over restarts; `boots`, how often this node has started (each boot counts once, by the
//! kernel's boot id). Fields that this version does not know are kept as they are, so that an older image that is
//! started once does not lose what a newer one wrote.
//!
//! It is written whole: beside its place, flushed, renamed, and the directory flushed, so a power cut leaves the old or
//! the new one. It is a record and not the truth, which each step's check finds out anew. So a file that is no journal is
//! kept aside as `state.json.broken-N` and another one begun. What only the journal knew is lost then; a step for which
//! that matters asks [`Journal::broken`].
//!
//! An earlier image counted boots in `boots.json`. Its count is taken over, and the file removed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::files::{read_bounded, write_atomically};

const FILE: &str = "state.json";
const BOOTS_FILE: &str = "boots.json";
/// The format's version.
const VERSION: u32 = 1;
/// The largest journal that is read, in bytes. A node's has a few thousand.
const LIMIT: u64 = 8 << 20;
/// How many broken journals are kept; the last place is used again.
const BROKEN_KEPT: usize = 9;

/// How a step's last run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// Everything is as it shall be.
    Done,
    /// It is not, and the result says why.
    Failed,
    /// It runs; or it was cut, where this is found at a start.
    Running,
}

/// The record of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// How its last run ended.
    pub(crate) state: State,
    /// One line: what came out of it.
    pub(crate) result: String,
    /// When that run began, by the clock as it stood (RFC 3339).
    pub(crate) began: String,
    /// When it ended.
    pub(crate) ended: Option<String>,
    /// How long it took, in milliseconds, whatever the clock did.
    pub(crate) took_ms: Option<u64>,
    /// How often it was tried, until it was done.
    pub(crate) attempts: u64,
    /// The kernel's id of the boot that this was in.
    pub(crate) boot: String,
    /// What a later version wrote.
    #[serde(flatten)]
    other: BTreeMap<String, serde_json::Value>,
}

/// How often the node has started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Boots {
    count: u64,
    last: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Document {
    version: u32,
    node: Option<String>,
    steps: BTreeMap<String, Record>,
    notes: BTreeMap<String, serde_json::Value>,
    boots: Boots,
    #[serde(flatten)]
    other: BTreeMap<String, serde_json::Value>,
}

/// The journal. Every change is on the disk when the call comes back.
#[derive(Debug)]
pub(crate) struct Journal {
    directory: PathBuf,
    document: Document,
    broken: Vec<String>,
    warnings: Vec<String>,
}

/// A step's note in the journal of `directory`, for who only looks: nothing is kept aside, and nothing counted.
///
/// # Errors
/// When there is no journal, or it is damaged, or has no such note of that type.
pub(crate) fn read_note<T: DeserializeOwned>(directory: &Path, key: &str) -> anyhow::Result<T> {
    match read(&directory.join(FILE))? {
        Found::Document(mut document) => {
            let note = document.notes.remove(key).with_context(|| format!("no note {key} in the journal"))?;
            serde_json::from_value(note).with_context(|| format!("reading the note {key}"))
        }
        Found::Nothing => anyhow::bail!("there is no journal"),
        Found::Broken(why) => anyhow::bail!("the journal is damaged: {why}"),
    }
}

impl Journal {
    /// Opens the journal in `directory`, or begins one, and counts the boot `boot_id`.
    ///
    /// # Errors
    /// When it cannot be read, kept aside or written. A journal that is damaged is no error, but a warning.
    pub(crate) fn open(directory: &Path, boot_id: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        let mut warnings = Vec::new();
        let found = match read(&directory.join(FILE))? {
            Found::Document(document) => Some(*document),
            Found::Nothing => None,
            Found::Broken(why) => {
                let aside = keep_aside(directory)?;
                warnings.push(format!(
                    "the journal of the steps was damaged ({why}): it is kept as {aside}, another is begun"
                ));
                None
            }
        };
        let mut document = found.clone().unwrap_or_else(|| Document {
            version: VERSION,
            node: None,
            steps: BTreeMap::new(),
            notes: BTreeMap::new(),
            boots: earlier_count(directory),
            other: BTreeMap::new(),
        });
        let boot_id = boot_id.trim();
        if document.boots.last != boot_id {
            document.boots = Boots { count: document.boots.count + 1, last: boot_id.to_owned() };
        }
        let counted = found.is_some_and(|found| found.boots == document.boots);
        let mut journal = Self { directory: directory.to_owned(), document, broken: broken(directory)?, warnings };
        if !counted {
            journal.change(|_| ())?;
        }
        remove_earlier_count(directory)?;
        Ok(journal)
    }

    /// A note of a step, kept over restarts.
    ///
    /// # Errors
    /// When it is not of that type.
    pub(crate) fn note<T: DeserializeOwned>(&self, key: &str) -> anyhow::Result<Option<T>> {
        let read = |value: &serde_json::Value| serde_json::from_value(value.clone());
        self.document
            .notes
            .get(key)
            .map(read)
            .transpose()
            .with_context(|| format!("reading the note {key} of the journal"))
    }

    /// Sets a note, and writes the journal: atomically and durably.
    ///
    /// # Errors
    /// When it cannot be written; then the note is as before, and nothing that relies on it may be done.
    pub(crate) fn set_note<T: Serialize>(&mut self, key: &str, note: &T) -> anyhow::Result<()> {
        let value = serde_json::to_value(note).with_context(|| format!("writing the note {key} as JSON"))?;
        if self.document.notes.get(key) == Some(&value) {
            return Ok(());
        }
        self.change(|document| drop(document.notes.insert(key.to_owned(), value)))
    }

    /// The names of damaged journals that were kept aside. Where there is one, notes may have been lost.
    pub(crate) fn broken(&self) -> &[String] {
        &self.broken
    }

    /// What was wrong when it was opened.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// How often this node has started, this time included.
    pub(crate) fn boots(&self) -> u64 {
        self.document.boots.count
    }

    /// The record of a step.
    pub(crate) fn record(&self, step: &str) -> Option<&Record> {
        self.document.steps.get(step)
    }

    /// States the node's name.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub(crate) fn set_node(&mut self, name: Option<&str>) -> anyhow::Result<()> {
        if self.document.node.as_deref() == name {
            return Ok(());
        }
        self.change(|document| document.node = name.map(str::to_owned))
    }

    /// Records that a step begins, with what it is to do.
    ///
    /// # Errors
    /// When the journal cannot be written; then the step must not begin.
    pub(crate) fn begin(&mut self, step: &str, what: &str) -> anyhow::Result<()> {
        let attempts = self.attempts_so_far(step) + 1;
        let record = Record {
            state: State::Running,
            result: what.to_owned(),
            began: timestamp(),
            ended: None,
            took_ms: None,
            attempts,
            boot: self.document.boots.last.clone(),
            other: BTreeMap::new(),
        };
        self.change(|document| drop(document.steps.insert(step.to_owned(), record)))
    }

    /// Records how a step ended. One that was done before and is so still, with the same result, is left as it stands.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub(crate) fn end(&mut self, step: &str, state: State, result: &str, took: Duration) -> anyhow::Result<()> {
        let boot = self.document.boots.last.clone();
        let now = timestamp();
        let (began, attempts) = match self.record(step) {
            Some(record) if state == State::Done && record.state == state && record.result == result => return Ok(()),
            Some(record) if record.state == State::Running && record.boot == boot => {
                (record.began.clone(), record.attempts)
            }
            // A check alone: nothing was begun.
            _ => (now.clone(), self.attempts_so_far(step) + 1),
        };
        let took_ms = u64::try_from(took.as_millis()).ok();
        let (result, other) = (result.to_owned(), BTreeMap::new());
        let record = Record { state, result, began, ended: Some(now), took_ms, attempts, boot, other };
        self.change(|document| drop(document.steps.insert(step.to_owned(), record)))
    }

    /// The attempts at a step since it was last done.
    fn attempts_so_far(&self, step: &str) -> u64 {
        self.record(step).filter(|record| record.state != State::Done).map_or(0, |record| record.attempts)
    }

    /// Changes the document, if the changed one can be written.
    fn change(&mut self, change: impl FnOnce(&mut Document)) -> anyhow::Result<()> {
        let mut document = self.document.clone();
        change(&mut document);
        let mut json = serde_json::to_vec_pretty(&document).context("writing the journal as JSON")?;
        json.push(b'\n');
        write_atomically(&self.directory.join(FILE), &json, 0o600)?;
        self.document = document;
        Ok(())
    }
}

/// What lies in the journal's place.
enum Found {
    Document(Box<Document>),
    Nothing,
    Broken(String),
}

/// Reads the journal. What the file system cannot read is an error; what is no journal is broken.
fn read(path: &Path) -> anyhow::Result<Found> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Ok(metadata) if !metadata.is_file() => return Ok(Found::Broken("it is no file".to_owned())),
        Ok(metadata) if metadata.len() > LIMIT => {
            return Ok(Found::Broken(format!("it has {} bytes, the limit is {LIMIT}", metadata.len())));
        }
        Ok(_) => {}
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    }
    let json = match read_bounded(path, LIMIT) {
        Ok(json) => json,
        // A sector that cannot be read stays so; what the file held is lost either way.
        Err(error) => return Ok(Found::Broken(format!("{error:#}"))),
    };
    Ok(match serde_json::from_slice::<Document>(&json) {
        Ok(document) if document.version == VERSION => Found::Document(Box::new(document)),
        Ok(document) => Found::Broken(format!("it has version {}, expected {VERSION}", document.version)),
        Err(error) => Found::Broken(error.to_string()),
    })
}

/// Renames the journal to a free name for broken ones. Gives that name.
fn keep_aside(directory: &Path) -> anyhow::Result<String> {
    let name = |number| format!("{FILE}.broken-{number}");
    let is_free = |number: &usize| fs::symlink_metadata(directory.join(name(*number))).is_err();
    let name = name((1..BROKEN_KEPT).find(is_free).unwrap_or(BROKEN_KEPT));
    let (from, to) = (directory.join(FILE), directory.join(&name));
    fs::rename(&from, &to)
        .and_then(|()| File::open(directory)?.sync_all())
        .with_context(|| format!("renaming {} to {}", from.display(), to.display()))?;
    Ok(name)
}

/// The names of broken journals, sorted.
fn broken(directory: &Path) -> anyhow::Result<Vec<String>> {
    let listed: std::io::Result<Vec<_>> = fs::read_dir(directory).and_then(Iterator::collect);
    let listed = listed.with_context(|| format!("listing {}", directory.display()))?;
    let names = listed.iter().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut broken: Vec<String> = names.filter(|name| name.starts_with(&format!("{FILE}.broken-"))).collect();
    broken.sort();
    Ok(broken)
}

/// The count of an earlier image, where there is one that parses. A lost count is no reason to stop.
fn earlier_count(directory: &Path) -> Boots {
    let read = || serde_json::from_slice(&read_bounded(&directory.join(BOOTS_FILE), LIMIT).ok()?).ok();
    read().unwrap_or_default()
}

/// Removes the count of an earlier image, once the journal has it.
fn remove_earlier_count(directory: &Path) -> anyhow::Result<()> {
    let path = directory.join(BOOTS_FILE);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The clock's reading.
fn timestamp() -> String {
    super::time::reading(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const TOOK: Duration = Duration::from_millis(12);

    fn open(directory: &tempfile::TempDir, boot: &str) -> Journal {
        Journal::open(directory.path(), boot).expect("opened")
    }

    fn text(directory: &tempfile::TempDir) -> String {
        fs::read_to_string(directory.path().join(FILE)).expect("there")
    }

    #[test]
    fn everything_is_on_disk_when_a_call_comes_back() {
        let directory = tempfile::tempdir().expect("tempdir");
        let mut journal = open(&directory, "a\n");
        journal.set_node(Some("toronto-0002")).expect("set");
        journal.set_note("wiped", &["WD-1"]).expect("set");
        journal.begin("time", "waiting").expect("begun");
        let record = |journal: &Journal| journal.record("time").cloned().expect("recorded");
        let begun = record(&open(&directory, "a"));
        assert_eq!((begun.state, begun.result.as_str(), begun.attempts), (State::Running, "waiting", 1));
        assert_eq!((begun.ended, begun.boot.as_str()), (None, "a"));
        journal.end("time", State::Done, "synchronised", TOOK).expect("ended");
        let later = open(&directory, "b");
        let done = record(&later);
        assert_eq!((done.state, done.result.as_str(), done.took_ms), (State::Done, "synchronised", Some(12)));
        assert_eq!((done.began, done.boot.as_str()), (begun.began, "a"));
        assert_eq!(later.note::<Vec<String>>("wiped").expect("parses"), Some(vec!["WD-1".to_owned()]));
        assert_eq!((later.note::<u8>("other").expect("absent"), later.boots()), (None, 2));
        assert!(later.note::<u8>("wiped").is_err(), "another type");
        assert!(later.broken().is_empty() && later.warnings().is_empty());
        let mode = fs::metadata(directory.path().join(FILE)).expect("there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn what_is_done_already_is_not_written_again() {
        let directory = tempfile::tempdir().expect("tempdir");
        let mut journal = open(&directory, "a");
        journal.end("identity", State::Done, "as it shall be", TOOK).expect("ended");
        journal.set_note("n", &1).expect("set");
        let before = text(&directory);
        fs::set_permissions(directory.path().join(FILE), fs::Permissions::from_mode(0o400)).expect("marked");
        let mut journal = open(&directory, "a");
        journal.end("identity", State::Done, "as it shall be", 2 * TOOK).expect("ended");
        journal.set_note("n", &1).expect("set");
        journal.set_node(None).expect("set");
        assert_eq!(text(&directory), before);
        let mode = fs::metadata(directory.path().join(FILE)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o400, "the file is another one");
    }

    #[test]
    fn attempts_count_until_it_is_done() {
        let directory = tempfile::tempdir().expect("tempdir");
        let mut journal = open(&directory, "a");
        for (boot, state, expected) in [
            ("a", State::Failed, 1),
            ("a", State::Failed, 2),
            ("b", State::Running, 3),
            ("c", State::Failed, 4),
            ("c", State::Done, 5),
            ("d", State::Failed, 1),
        ] {
            journal = if journal.document.boots.last == boot { journal } else { open(&directory, boot) };
            journal.begin("disks", "x").expect("begun");
            if state != State::Running {
                journal.end("disks", state, "y", TOOK).expect("ended");
            }
            assert_eq!(journal.record("disks").map(|record| record.attempts), Some(expected), "{boot} {state:?}");
        }
    }

    #[test]
    fn a_broken_journal_is_kept_aside_and_another_begun() {
        let whole = {
            let directory = tempfile::tempdir().expect("tempdir");
            open(&directory, "a").set_note("n", &1).expect("set");
            fs::read(directory.path().join(FILE)).expect("there")
        };
        let flipped: Vec<u8> =
            whole.iter().enumerate().map(|(at, byte)| if at == 3 { byte ^ 1 } else { *byte }).collect();
        let newer = String::from_utf8_lossy(&whole).replace("\"version\": 1", "\"version\": 2").into_bytes();
        for (case, content) in [
            ("empty", Vec::new()),
            ("cut", whole[..whole.len() / 2].to_vec()),
            ("bit flipped", flipped),
            ("no text", vec![0xff; 4096]),
            ("zeros", vec![0; 4096]),
            ("newer", newer),
            ("another shape", b"[]".to_vec()),
        ] {
            let directory = tempfile::tempdir().expect("tempdir");
            for number in 1..=2 {
                fs::write(directory.path().join(FILE), &content).expect("written");
                let journal = open(&directory, "z");
                assert_eq!((journal.boots(), journal.broken().len()), (1, number), "{case}");
                assert!(journal.warnings()[0].contains(&format!("state.json.broken-{number}")), "{case}");
                let kept = fs::read(directory.path().join(format!("state.json.broken-{number}"))).expect("kept");
                assert_eq!(kept, content, "{case}");
            }
            assert!(open(&directory, "z").warnings().is_empty(), "{case}: the new one is whole");
            assert_eq!(open(&directory, "z").broken().len(), 2, "{case}: told on later starts, too");
        }
    }

    #[test]
    fn broken_journals_do_not_fill_the_disk() {
        let directory = tempfile::tempdir().expect("tempdir");
        for _ in 0..2 * BROKEN_KEPT {
            fs::write(directory.path().join(FILE), "{").expect("written");
            assert!(open(&directory, "z").broken().len() <= BROKEN_KEPT);
        }
    }

    #[test]
    fn a_directory_in_its_place_is_kept_aside() {
        let directory = tempfile::tempdir().expect("tempdir");
        fs::create_dir(directory.path().join(FILE)).expect("made");
        assert_eq!(open(&directory, "z").broken(), ["state.json.broken-1"]);
    }

    #[test]
    fn what_cannot_be_written_is_as_before() {
        let directory = tempfile::tempdir().expect("tempdir");
        let mut journal = open(&directory, "a");
        // The name of the file that is written first is taken by a directory, whoever runs this.
        fs::create_dir(directory.path().join("state.json.new")).expect("made");
        let error = format!("{:#}", journal.set_note("n", &1).expect_err("cannot be written"));
        assert!(error.contains("state.json"), "{error}");
        assert_eq!(journal.note::<u8>("n").expect("absent"), None);
        assert!(journal.begin("time", "x").is_err() && journal.record("time").is_none());
        assert!(Journal::open(directory.path(), "b").is_err(), "the boot cannot be counted");
        assert_eq!(open(&directory, "a").boots(), 1, "nothing to write");
    }

    #[test]
    fn the_count_of_an_earlier_image_goes_on() {
        for (content, expected) in [("{\"count\":4,\"last\":\"a\"}", 5), ("{", 1), ("{\"count\":4,\"last\":\"b\"}", 4)]
        {
            let directory = tempfile::tempdir().expect("tempdir");
            fs::write(directory.path().join(BOOTS_FILE), content).expect("written");
            assert_eq!(open(&directory, "b\n").boots(), expected, "{content}");
            assert!(!directory.path().join(BOOTS_FILE).exists());
            assert_eq!(open(&directory, "b").boots(), expected, "{content}");
        }
    }

    #[test]
    fn what_a_later_version_wrote_stays() {
        let directory = tempfile::tempdir().expect("tempdir");
        open(&directory, "a").end("mesh", State::Done, "joined", TOOK).expect("ended");
        let newer = text(&directory)
            .replace("\"version\"", "\"lease\": 7, \"version\"")
            .replace("\"state\"", "\"key\": 8, \"state\"");
        fs::write(directory.path().join(FILE), newer).expect("written");
        open(&directory, "b").set_note("n", &1).expect("set");
        let text = text(&directory);
        assert!(text.contains("\"lease\": 7") && text.contains("\"key\": 8"), "{text}");
    }
}
