//! The command line of the reference implementation, in the syntax of Go's `flag` package: one dash or two,
//! `-flag value` or `-flag=value`, switches with an optional `=true`; the first word that is no flag ends them.
//!
//! Specification: [flag](https://pkg.go.dev/flag#hdr-Command_line_flag_syntax),
//! [ParseDuration](https://pkg.go.dev/time#ParseDuration). Negative durations, which make no sense here, are refused.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::platform;

/// How the program is used, as printed for `-h` and after a mistake.
pub(crate) const USAGE: &str = "\
Usage of ignition:
  -config-cache string
    \twhere to cache the config (default \"/run/ignition.json\")
  -fetch-timeout duration
    \tinitial duration for which to wait for config (default 2m0s)
  -log-to-stdout
    \tlog to stdout instead of the system log when set
  -neednet string
    \tflag file to write from fetch-offline if networking is needed (default \"/run/ignition/neednet\")
  -platform value
    \tcurrent platform
  -root string
    \troot of the filesystem (default \"/\")
  -stage value
    \texecution stage: fetch-offline, fetch, kargs, disks, mount, files, umount
  -state-file string
    \twhere to store internal state (default \"/run/ignition/state\")
  -version
    \tprint the version and exit";

/// What one process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StageName {
    /// Fetches the config as far as that goes without network.
    FetchOffline,
    /// Fetches the config.
    Fetch,
    /// Looks after kernel arguments.
    Kargs,
    /// Makes partition tables, arrays, encrypted volumes and file systems.
    Disks,
    /// Mounts the file systems.
    Mount,
    /// Writes users, files and units.
    Files,
    /// Unmounts the file systems.
    Umount,
}

impl StageName {
    const ALL: [Self; 7] =
        [Self::FetchOffline, Self::Fetch, Self::Kargs, Self::Disks, Self::Mount, Self::Files, Self::Umount];

    /// The word of the command line.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::FetchOffline => "fetch-offline",
            Self::Fetch => "fetch",
            Self::Kargs => "kargs",
            Self::Disks => "disks",
            Self::Mount => "mount",
            Self::Files => "files",
            Self::Umount => "umount",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.as_str() == word)
    }
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Run a stage.
    Run(Flags),
    /// Print the version.
    Version,
    /// Print the usage.
    Help,
}

/// The settings of one stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flags {
    /// One of [`platform::names`].
    pub(crate) platform: String,
    /// What to do.
    pub(crate) stage: StageName,
    /// The root directory of the system that is configured.
    pub(crate) root: PathBuf,
    /// Where the fetched config lies between the stages.
    pub(crate) config_cache: PathBuf,
    /// Where what stages tell later ones lies.
    pub(crate) state_file: PathBuf,
    /// The file that is made when the network is needed.
    pub(crate) neednet: PathBuf,
    /// How long fetching the first config may take; `None` is without end.
    pub(crate) fetch_timeout: Option<Duration>,
    /// Whether the log goes to standard output.
    pub(crate) log_to_stdout: bool,
}

impl Flags {
    /// What bounds every fetch for which a config sets no timeout: nothing, as the specification says, but on our own
    /// machines, which shall not wait for ever without a word.
    pub(crate) fn bound(&self) -> Option<Duration> {
        if self.platform == platform::NODEZERO { self.fetch_timeout } else { None }
    }
}

/// A command line that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(String);

/// The flags as they are met.
struct Raw {
    platform: Option<String>,
    stage: Option<StageName>,
    root: String,
    config_cache: String,
    state_file: String,
    neednet: String,
    fetch_timeout: Duration,
    log_to_stdout: bool,
    version: bool,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            platform: None,
            stage: None,
            root: "/".into(),
            config_cache: "/run/ignition.json".into(),
            state_file: "/run/ignition/state".into(),
            neednet: "/run/ignition/neednet".into(),
            fetch_timeout: Duration::from_secs(120),
            log_to_stdout: false,
            version: false,
        }
    }
}

/// Parses the words after the program's name.
///
/// # Errors
/// With the sentence that the reference implementation prints.
pub(crate) fn parse(arguments: &[OsString]) -> Result<Request, UsageError> {
    let mut raw = Raw::default();
    let mut words = arguments.iter().map(|word| word.to_string_lossy().into_owned());
    while let Some(word) = words.next() {
        // A lone dash is a word like any other, and two dashes end the flags.
        if word == "-" || word == "--" || !word.starts_with('-') {
            break;
        }
        let flag = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).expect("it starts with a dash");
        if flag.starts_with(['-', '=']) {
            return Err(UsageError(format!("bad flag syntax: {word}")));
        }
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        if matches!(name, "h" | "help") {
            return Ok(Request::Help);
        }
        raw.take(name, value, &mut words)?;
    }
    raw.finish()
}

impl Raw {
    fn take(
        &mut self,
        name: &str,
        value: Option<String>,
        rest: &mut impl Iterator<Item = String>,
    ) -> Result<(), UsageError> {
        // A switch does not take the word after it.
        let switch = match name {
            "version" => Some(&mut self.version),
            "log-to-stdout" => Some(&mut self.log_to_stdout),
            _ => None,
        };
        if let Some(switch) = switch {
            let word = value.unwrap_or_else(|| "true".into());
            *switch = parse_bool(&word)
                .ok_or_else(|| UsageError(format!("invalid boolean value {word:?} for -{name}: parse error")))?;
            return Ok(());
        }
        if !["platform", "stage", "root", "config-cache", "state-file", "neednet", "fetch-timeout"].contains(&name) {
            return Err(UsageError(format!("flag provided but not defined: -{name}")));
        }
        let value = value.or_else(|| rest.next());
        let value = value.ok_or_else(|| UsageError(format!("flag needs an argument: -{name}")))?;
        let invalid = |what: &str| UsageError(format!("invalid value {value:?} for flag -{name}: {what}"));
        match name {
            "platform" if platform::find(&value).is_none() => {
                return Err(invalid(&format!("{value} is not a valid platform")));
            }
            "platform" => self.platform = Some(value),
            "stage" => {
                let stage = StageName::parse(&value);
                self.stage = Some(stage.ok_or_else(|| invalid(&format!("{value} is not a valid stage")))?);
            }
            "root" => self.root = value,
            "config-cache" => self.config_cache = value,
            "state-file" => self.state_file = value,
            "neednet" => self.neednet = value,
            _ => self.fetch_timeout = parse_duration(&value).ok_or_else(|| invalid("parse error"))?,
        }
        Ok(())
    }

    fn finish(self) -> Result<Request, UsageError> {
        if self.version {
            return Ok(Request::Version);
        }
        let platform = self.platform.ok_or_else(|| UsageError("'--platform' must be provided".into()))?;
        let stage = self.stage.ok_or_else(|| UsageError("'--stage' must be provided".into()))?;
        Ok(Request::Run(Flags {
            platform,
            stage,
            // No root at all is the root of this process, as it is when paths are joined to an empty word.
            root: if self.root.is_empty() { "/".into() } else { self.root.into() },
            config_cache: self.config_cache.into(),
            state_file: self.state_file.into(),
            neednet: self.neednet.into(),
            // The reference counts whole seconds, and takes 0 for "without end".
            fetch_timeout: Some(self.fetch_timeout).filter(|timeout| timeout.as_secs() > 0),
            log_to_stdout: self.log_to_stdout,
        }))
    }
}

fn parse_bool(word: &str) -> Option<bool> {
    match word {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Parses what Go writes as a duration, such as `2m`, `1h30m` or `1.5s`.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(number_end);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        if !number.contains(|c: char| c.is_ascii_digit()) {
            return None;
        }
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        total = total.checked_add(part)?;
        rest = next;
    }
    // Go counts nanoseconds in 63 bits.
    (total.as_nanos() <= i64::MAX as u128).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(words: &[&str]) -> Result<Request, UsageError> {
        parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    fn flags(words: &[&str]) -> Flags {
        let words = [&["-platform", "file", "-stage", "files"], words].concat();
        match request(&words) {
            Ok(Request::Run(flags)) => flags,
            other => panic!("{words:?}: {other:?}"),
        }
    }

    #[test]
    fn defaults_are_the_references() {
        let expected = Flags {
            platform: "file".into(),
            stage: StageName::Files,
            root: "/".into(),
            config_cache: "/run/ignition.json".into(),
            state_file: "/run/ignition/state".into(),
            neednet: "/run/ignition/neednet".into(),
            fetch_timeout: Some(Duration::from_secs(120)),
            log_to_stdout: false,
        };
        assert_eq!(flags(&[]), expected);
    }

    #[test]
    fn one_dash_or_two_and_both_ways_to_give_a_value() {
        for words in [
            &["-root", "/sysroot"][..],
            &["--root", "/sysroot"],
            &["-root=/sysroot"],
            &["--root=/sysroot"],
            &["-root", "/x", "-root", "/sysroot"],
            &["-root", "/sysroot", "word", "-nonsense"],
            &["-root", "/sysroot", "--", "-nonsense"],
            &["-root", "/sysroot", "-", "-nonsense"],
        ] {
            assert_eq!(flags(words).root, PathBuf::from("/sysroot"), "{words:?}");
        }
        assert_eq!(flags(&["-root", ""]).root, PathBuf::from("/"));
        assert_eq!(flags(&["--root="]).root, PathBuf::from("/"));
        assert_eq!(flags(&["-config-cache=a=b"]).config_cache, PathBuf::from("a=b"));
        for (words, expected) in [
            (&["-log-to-stdout"][..], true),
            (&["--log-to-stdout=T"], true),
            (&["-log-to-stdout", "false"], true),
            (&["-log-to-stdout=0"], false),
        ] {
            assert_eq!(flags(words).log_to_stdout, expected, "{words:?}");
        }
    }

    #[test]
    fn mistakes_are_told_in_the_references_words() {
        for (words, expected) in [
            (&[][..], "'--platform' must be provided"),
            (&["-platform", "file"], "'--stage' must be provided"),
            (&["-platform", "moon"], "invalid value \"moon\" for flag -platform: moon is not a valid platform"),
            (&["-stage=fly"], "invalid value \"fly\" for flag -stage: fly is not a valid stage"),
            (&["-stage"], "flag needs an argument: -stage"),
            (&["-clear-cache"], "flag provided but not defined: -clear-cache"),
            (&["---root", "/"], "bad flag syntax: ---root"),
            (&["-=x"], "bad flag syntax: -=x"),
            (&["-version=maybe"], "invalid boolean value \"maybe\" for -version: parse error"),
            (&["-fetch-timeout", "soon"], "invalid value \"soon\" for flag -fetch-timeout: parse error"),
            (&["-platform", ""], "invalid value \"\" for flag -platform:  is not a valid platform"),
        ] {
            assert_eq!(request(words), Err(UsageError(expected.into())), "{words:?}");
        }
    }

    #[test]
    fn version_and_help_come_before_what_is_missing() {
        assert_eq!(request(&["-version"]), Ok(Request::Version));
        assert_eq!(request(&["--help"]), Ok(Request::Help));
        assert_eq!(request(&["-stage", "files", "-h"]), Ok(Request::Help));
    }

    #[test]
    fn durations_are_gos() {
        for (text, millis) in [
            ("2m", Some(120_000)),
            ("1h30m", Some(5_400_000)),
            ("1.5s", Some(1_500)),
            (".5s", Some(500)),
            ("100ms", Some(100)),
            ("0", Some(0)),
            ("+3s", Some(3_000)),
            ("1m0.5s", Some(60_500)),
            ("", None),
            ("5", None),
            ("s", None),
            (".s", None),
            ("1d", None),
            ("-1s", None),
            ("1.2.3s", None),
            ("9999999999h", None),
        ] {
            assert_eq!(parse_duration(text), millis.map(Duration::from_millis), "{text:?}");
        }
        assert_eq!(flags(&["-fetch-timeout", "0"]).fetch_timeout, None);
        assert_eq!(flags(&["-fetch-timeout=90s"]).fetch_timeout, Some(Duration::from_secs(90)));
    }
}
