//! The kernel command line: the words that are ours, and the rest kept for modules.
//!
//! Quoting is the kernel's ([kernel-parameters](https://docs.kernel.org/admin-guide/kernel-parameters.html)): double
//! quotes keep white space within a word and are dropped; `--` ends the kernel's words. Where a key is given twice
//! the later one counts. Words of `nodezero.` that this version does not know are tolerated, so that an older first
//! stage starts under a newer loader entry; a known key with a value that does not parse is an error.

use std::time::Duration;

use nodezero_profile::Role;

/// How long the first stage waits for its own disk, unless told otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);

/// What the command line says to NodeZero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cmdline {
    /// `roothash=`: hexadecimal digits, as they stand.
    pub(crate) root_hash: Option<String>,
    /// `nodezero.role=`.
    pub(crate) role: Option<Role>,
    /// `nodezero.version=`: the image's version.
    pub(crate) version: Option<String>,
    /// `nodezero.timeout=` in seconds: how long to wait for the own disk.
    pub(crate) timeout: Duration,
    /// `nodezero.panic=` in seconds: restart that long after a failure's summary. Absent or 0: stay.
    pub(crate) restart_after: Option<Duration>,
    /// `nodezero.config=` or `ignition.config.url=`: where the configuration is to be fetched.
    pub(crate) config_url: Option<String>,
    /// `nodezero.standin`, with or without a value: the image holds a stand-in component.
    pub(crate) standin: bool,
    /// Every word with a key, in order, for parameters of modules.
    words: Vec<(String, Option<String>)>,
}

/// A word of the command line that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("kernel command line: {key}={value} is not {expected}")]
pub(crate) struct CmdlineError {
    key: String,
    value: String,
    expected: &'static str,
}

impl Cmdline {
    /// Parses the text of `/proc/cmdline`.
    ///
    /// # Errors
    /// A known key whose value does not parse; `ignition.config.device=` where no other word names a configuration.
    pub(crate) fn parse(text: &str) -> Result<Self, CmdlineError> {
        let words: Vec<_> = split(text).iter().map(|word| key_value(word)).collect();
        let last = |key: &str| {
            words.iter().rev().find(|(name, _)| name == key).and_then(|(_, value)| value.as_deref().map(str::to_owned))
        };
        let wrong = |key: &str, value: &str, expected| CmdlineError { key: key.into(), value: value.into(), expected };
        let seconds = |key: &str| match last(key) {
            None => Ok(None),
            Some(value) => match value.parse() {
                Ok(seconds) => Ok(Some(Duration::from_secs(seconds))),
                Err(_) => Err(wrong(key, &value, "a number of seconds")),
            },
        };
        let role = match last("nodezero.role") {
            None => None,
            Some(word) => match word.parse() {
                Ok(role) => Some(role),
                Err(_) => return Err(wrong("nodezero.role", &word, "one of control, worker, edge")),
            },
        };
        let config_url = last("nodezero.config").or_else(|| last("ignition.config.url")).filter(|url| !url.is_empty());
        if let Some(device) = last("ignition.config.device").filter(|_| config_url.is_none()) {
            // Passed over, it would leave a machine without the configuration that it was given.
            let instead = "supported: say nodezero.config=LABEL=NAME:/PATH";
            return Err(wrong("ignition.config.device", &device, instead));
        }
        Ok(Self {
            root_hash: last("roothash"),
            role,
            version: last("nodezero.version"),
            timeout: seconds("nodezero.timeout")?.unwrap_or(DEFAULT_TIMEOUT),
            restart_after: seconds("nodezero.panic")?.filter(|after| !after.is_zero()),
            config_url,
            standin: words.iter().any(|(key, _)| key == "nodezero.standin"),
            words,
        })
    }

    /// The parameters that the command line gives to a module (`module.parameter=value`), as the kernel takes them
    /// with a module that is loaded: a string of `parameter=value`, quoted where needed.
    pub(crate) fn module_parameters(&self, module: &str) -> String {
        let mut parameters = Vec::new();
        for (key, value) in &self.words {
            let Some((owner, parameter)) = key.split_once('.') else { continue };
            if owner.replace('-', "_") != module {
                continue;
            }
            parameters.push(match value {
                None => parameter.to_owned(),
                Some(value) if value.contains(char::is_whitespace) => format!("{parameter}=\"{value}\""),
                Some(value) => format!("{parameter}={value}"),
            });
        }
        parameters.join(" ")
    }
}

/// Splits at white space outside double quotes, drops the quotes, and stops at `--`.
pub(crate) fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let (mut quoted, mut started) = (false, false);
    for c in text.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                started = true;
            }
            c if c.is_whitespace() && !quoted => {
                if started {
                    words.push(std::mem::take(&mut word));
                }
                started = false;
            }
            c => {
                word.push(c);
                started = true;
            }
        }
    }
    if started {
        words.push(word);
    }
    if let Some(end) = words.iter().position(|word| word == "--") {
        words.truncate(end);
    }
    words
}

/// Splits a word at its first `=`.
fn key_value(word: &str) -> (String, Option<String>) {
    match word.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (word.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_the_kernel_does() {
        for (text, expected) in [
            ("", vec![]),
            ("  a  b\n", vec!["a", "b"]),
            ("a=\"b c\" d", vec!["a=b c", "d"]),
            ("\"a=b c\" d", vec!["a=b c", "d"]),
            ("a=\"\" b", vec!["a=", "b"]),
            ("a=\"open", vec!["a=open"]),
            ("a -- b c", vec!["a"]),
        ] {
            assert_eq!(split(text), expected, "{text:?}");
        }
    }

    #[test]
    fn our_words_are_found() {
        let text = "quiet roothash=abcd nodezero.role=edge nodezero.version=\"1 2\" nodezero.timeout=7 nodezero.panic=0 \
                    nodezero.standin=k3s nodezero.later=x ignition.config.url=http://h/c console=ttyS0";
        let cmdline = Cmdline::parse(text).expect("parses");
        assert_eq!(cmdline.root_hash.as_deref(), Some("abcd"));
        assert_eq!(cmdline.role, Some(Role::Edge));
        assert_eq!(cmdline.version.as_deref(), Some("1 2"));
        assert_eq!(cmdline.timeout, Duration::from_secs(7));
        assert_eq!(cmdline.restart_after, None);
        assert_eq!(cmdline.config_url.as_deref(), Some("http://h/c"));
        assert!(cmdline.standin);
        let both = Cmdline::parse("ignition.config.device=x nodezero.config=data:,").expect("another word counts");
        assert_eq!(both.config_url.as_deref(), Some("data:,"));
    }

    #[test]
    fn the_later_word_counts_and_defaults_hold() {
        let cmdline = Cmdline::parse("roothash=aa roothash=bb nodezero.panic=30").expect("parses");
        assert_eq!(cmdline.root_hash.as_deref(), Some("bb"));
        assert_eq!((cmdline.timeout, cmdline.role), (DEFAULT_TIMEOUT, None));
        assert_eq!(cmdline.restart_after, Some(Duration::from_secs(30)));
    }

    #[test]
    fn bad_values_are_errors_that_name_the_word() {
        for (text, expected) in [
            ("nodezero.role=Worker", "kernel command line: nodezero.role=Worker is not one of control, worker, edge"),
            ("nodezero.timeout=soon", "kernel command line: nodezero.timeout=soon is not a number of seconds"),
            (
                "ignition.config.device=x ignition.config.path=/y",
                "kernel command line: ignition.config.device=x is not supported: say nodezero.config=LABEL=NAME:/PATH",
            ),
        ] {
            assert_eq!(Cmdline::parse(text).expect_err(text).to_string(), expected);
        }
    }

    #[test]
    fn parameters_of_modules_are_collected() {
        let cmdline = Cmdline::parse("usb-storage.delay_use=0 nvme_core.x=\"a b\" usb_storage.quirks").expect("parses");
        assert_eq!(cmdline.module_parameters("usb_storage"), "delay_use=0 quirks");
        assert_eq!(cmdline.module_parameters("nvme_core"), "x=\"a b\"");
        assert_eq!(cmdline.module_parameters("ext4"), "");
    }

    #[test]
    fn any_text_is_parsed_or_refused() {
        arbtest::arbtest(|input| {
            let text: String = input.arbitrary()?;
            if let Ok(cmdline) = Cmdline::parse(&text) {
                let _ = cmdline.module_parameters("loop");
            }
            Ok(())
        })
        .budget_ms(500);
    }
}
