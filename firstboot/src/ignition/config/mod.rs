//! Ignition configs: parsing, validation, translation to the newest specification, merging.
//!
//! From the configuration specifications 3.0.0 to 3.6.0. A config is judged as the reference implementation's
//! validator (2.27) judges it: what that accepts is accepted, what that rejects is rejected, and findings stand at the
//! same place. The exceptions are experimental versions of the specification, which are rejected, and texts larger than
//! [`json::MAX_SIZE`].
//!
//! The way of a text: [`json`] finds values and their places, [`decode`] reads what the config's version knows
//! ([`schema`]), [`validate`] checks what it means, and what is accepted is translated to the types of 3.6.

mod decode;
mod findings;
mod json;
mod merge;
mod schema;
#[cfg(test)]
mod tests;
mod validate;

use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::process::ExitCode;

use anyhow::Context;
use serde_json::Value;

/// A valid config, translated to the newest specification.
pub(crate) use ignition_config::v3_6 as types;

pub(crate) use self::json::MAX_SIZE;

use self::findings::{Findings, Place};
use self::json::{Document, SyntaxError};

/// The newest minor version of the specification that is understood.
const NEWEST: u8 = 6;

/// What was found wrong or doubtful in a config.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// In the order of the text.
    pub(crate) entries: Vec<Entry>,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Whether the config is refused for it.
    pub(crate) fatal: bool,
    /// Where, as `$.storage.files.0.path`.
    pub(crate) path: String,
    /// Line and column of that place, from 1, the column in bytes.
    pub(crate) position: Option<(u32, u32)>,
    /// What.
    pub(crate) message: String,
}

impl Report {
    /// A report of one fatal finding that is about the whole text.
    fn of(position: Option<(u32, u32)>, message: impl Into<String>) -> Self {
        Self { entries: vec![Entry { fatal: true, path: "$".to_owned(), position, message: message.into() }] }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, entry) in self.entries.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(formatter, "{separator}{entry}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.fatal { "error" } else { "warning" })?;
        let named = self.path != "$";
        match self.position {
            Some((line, column)) if named => write!(formatter, " at {}, line {line} col {column}", self.path)?,
            Some((line, column)) => write!(formatter, " at line {line} col {column}")?,
            None if named => write!(formatter, " at {}", self.path)?,
            None => {}
        }
        write!(formatter, ": {}", self.message)
    }
}

/// Parses, validates and translates a config.
///
/// What the config says nothing about is `None`, also where it has an empty list or object, and its version is the
/// newest. Modes of versions before 3.6 lose the bits beyond 0777, which had no effect then.
///
/// # Errors
/// The report alone, when an entry of it is fatal.
pub(crate) fn parse(json: &[u8]) -> Result<(types::Config, Report), Report> {
    if json.is_empty() {
        return Err(Report::of(None, "config is empty"));
    }
    let document = Document::parse(json).map_err(|error| syntax_report(json, &error))?;
    let mut findings = Findings::new(&document);
    match read(&document, &mut findings) {
        Some(config) if !findings.is_fatal() => Ok((config, findings.into_report())),
        _ => Err(findings.into_report()),
    }
}

/// The child's settings over the parent's, by the rules of the specification's merging.
pub(crate) fn merge(parent: types::Config, child: types::Config) -> types::Config {
    let object = |config: &types::Config| match serde_json::to_value(config) {
        Ok(Value::Object(object)) => object,
        _ => unreachable!("a config serialises to an object"),
    };
    let merged = merge::merge_objects(&schema::CONFIG, object(&parent), object(&child));
    let mut merged = Value::Object(merged);
    prune(&mut merged);
    serde_json::from_value(merged).expect("what was merged of two configs is a config")
}

/// `ignition-validate FILE`, told the arguments after the program's name: prints the report.
pub(crate) fn validate_main(arguments: &[OsString]) -> ExitCode {
    let mut rest = arguments.iter().map(|argument| argument.to_string_lossy()).enumerate();
    let mut file = None;
    while let Some((index, argument)) = rest.next() {
        let Some(flag) = argument.strip_prefix('-').filter(|flag| !flag.is_empty()) else {
            file = Some(index);
            break;
        };
        match flag.strip_prefix('-').unwrap_or(flag) {
            // Two dashes alone end the flags.
            "" => {
                file = rest.next().map(|(index, _)| index);
                break;
            }
            "version" | "version=true" => {
                println!("nodezero-firstboot {}, Ignition 3.0.0 to 3.{NEWEST}.0", env!("CARGO_PKG_VERSION"));
                return ExitCode::SUCCESS;
            }
            "version=false" => {}
            "h" | "help" => return usage(0),
            unknown => {
                eprintln!("flag provided but not defined: -{unknown}");
                return usage(2);
            }
        }
    }
    match file {
        Some(index) if index + 1 == arguments.len() => validate_file(&arguments[index]),
        _ => usage(1),
    }
}

fn usage(code: u8) -> ExitCode {
    eprintln!(
        "Usage:\n  ignition-validate [flags] config.ign\n\n  -version\n    \tprint the version of ignition-validate"
    );
    ExitCode::from(code)
}

fn validate_file(file: &OsString) -> ExitCode {
    let json = match read_config(file) {
        Ok(json) => json,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let (code, report) = match parse(&json) {
        Ok((_, report)) => (ExitCode::SUCCESS, report),
        Err(report) => (ExitCode::FAILURE, report),
    };
    if !report.entries.is_empty() {
        println!("{report}");
    }
    code
}

/// A file's bytes, or standard input's where the name is `-`. Of what is too large just enough to be told so.
fn read_config(file: &OsString) -> anyhow::Result<Vec<u8>> {
    let mut json = Vec::new();
    let limit = MAX_SIZE as u64 + 1;
    if file == "-" {
        std::io::stdin().lock().take(limit).read_to_end(&mut json).context("reading standard input")?;
    } else {
        std::fs::File::open(file)
            .and_then(|opened| opened.take(limit).read_to_end(&mut json))
            .with_context(|| format!("reading {}", file.display()))?;
    }
    Ok(json)
}

/// The config of a document, translated; `None` where a fatal finding left nothing to translate.
fn read(document: &Document<'_>, findings: &mut Findings<'_>) -> Option<types::Config> {
    let version = decode::version(document, findings)?;
    let minor = match minor_version(&version) {
        Ok(minor) => minor,
        Err(message) => {
            findings.error(&Place::root().key("ignition").key("version"), message);
            return None;
        }
    };
    let mut value = decode::decode(document, minor, findings);
    // What was of the wrong type is left out by now, and would be reported again as missing.
    if findings.is_fatal() {
        return None;
    }
    if let Value::Object(object) = &value {
        merge::find_duplicates(&schema::CONFIG, object, &Place::root(), findings);
    }
    prune_lists(&mut value);
    let mut config: types::Config = match serde_json::from_value(value) {
        Ok(config) => config,
        Err(error) => {
            findings.error(&Place::root(), format!("config does not fit its specification: {error}"));
            return None;
        }
    };
    validate::validate(&config, minor, findings);
    translate(&mut config, minor);
    Some(config)
}

/// The minor version of a specification that is understood.
fn minor_version(version: &str) -> Result<u8, String> {
    if version.is_empty() {
        return Err("config has no version of the specification (ignition.version)".to_owned());
    }
    // Build metadata and a pre-release may follow, and are part of the version unless empty.
    let (core, metadata) = version.split_once('+').unwrap_or((version, ""));
    let (core, prerelease) = core.split_once('-').unwrap_or((core, ""));
    let numbers: Option<Vec<u64>> = core.splitn(3, '.').map(decimal).collect();
    let Some([major, minor, patch]) = numbers.as_deref() else {
        return Err(format!("{version:?} is not a version of the specification"));
    };
    if !prerelease.is_empty() || !metadata.is_empty() {
        return Err(format!("version {version} is experimental; supported are 3.0.0 to 3.{NEWEST}.0"));
    }
    match (*major, *minor, *patch) {
        (3, minor @ 0..=6, 0) => Ok(minor as u8),
        (1 | 2, ..) => Err(format!("version {version} is of an old format; supported are 3.0.0 to 3.{NEWEST}.0")),
        _ => Err(format!("version {version} is unknown; supported are 3.0.0 to 3.{NEWEST}.0")),
    }
}

fn decimal(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// From what a version says to what 3.6 says, in one form.
fn translate(config: &mut types::Config, minor: u8) {
    config.ignition.version = format!("3.{NEWEST}.0");
    if let Some(storage) = &mut config.storage {
        if minor < 6 {
            let files = storage.files.iter_mut().flatten().map(|file| &mut file.mode);
            let directories = storage.directories.iter_mut().flatten().map(|directory| &mut directory.mode);
            for mode in files.chain(directories).flatten() {
                *mode &= 0o777;
            }
        }
        if minor < 3 {
            // A target is never absent there; merged over another, an empty one counts.
            for link in storage.links.iter_mut().flatten() {
                link.target.get_or_insert_default();
            }
        }
        for luks in storage.luks.iter_mut().flatten() {
            tidy_clevis(luks);
        }
    }
}

/// Removes objects that [`prune_lists`] leaves, for a version in which an empty one says something.
fn tidy_clevis(luks: &mut types::Luks) {
    if let Some(clevis) = &mut luks.clevis
        && clevis.custom == Some(types::ClevisCustom::default())
    {
        clevis.custom = None;
    }
    if luks.clevis == Some(types::Clevis::default()) {
        luks.clevis = None;
    }
}

/// Removes null and what is empty of objects, throughout.
fn prune(value: &mut Value) {
    prune_but(value, false);
}

/// As [`prune`], but keeps an empty `custom`, which 3.2 tells from none.
fn prune_lists(value: &mut Value) {
    prune_but(value, true);
}

fn prune_but(value: &mut Value, keep_custom: bool) {
    match value {
        Value::Object(object) => object.retain(|key, value| {
            prune_but(value, keep_custom);
            match value {
                Value::Null => false,
                Value::Array(list) => !list.is_empty(),
                Value::Object(inner) => !inner.is_empty() || (keep_custom && key == "custom"),
                _ => true,
            }
        }),
        Value::Array(list) => list.iter_mut().for_each(|item| prune_but(item, keep_custom)),
        _ => {}
    }
}

/// The report of a text that is not JSON, with what it is if that can be told.
fn syntax_report(text: &[u8], error: &SyntaxError) -> Report {
    let position = json::position(text, error.offset);
    let start = text.trim_ascii_start();
    let beginnings: [(&[u8], &str); 7] = [
        (b"#cloud-config", "config is a cloud-config, not an Ignition config: write it for Ignition"),
        (b"#!", "config is a script, not an Ignition config: write what it does for Ignition"),
        (b"variant:", "config is a Butane config: translate it with butane"),
        (b"\x1f\x8b", "config is compressed with gzip: unpack it first"),
        (b"\x28\xb5\x2f\xfd", "config is compressed with zstd: unpack it first"),
        (b"\xff\xfe", "config is UTF-16: save it as UTF-8"),
        (b"\xef\xbb\xbf", "config begins with a byte order mark: save it without one"),
    ];
    if start.is_empty() {
        return Report::of(None, "config is empty");
    }
    match beginnings.iter().find(|(beginning, _)| start.starts_with(beginning)) {
        Some((_, message)) => Report::of(Some(position), *message),
        None => Report::of(Some(position), error.message.clone()),
    }
}
