//! What the kernel command line names: `nodezero.config=` or `ignition.config.url=`.
//!
//! Both take the same forms, and `nodezero.config=` counts where both are given:
//!
//! | form | meaning |
//! |---|---|
//! | `http:`, `https:`, `tftp:` and `data:` URLs | fetched as Ignition fetches; all but `data:` need the network |
//! | `LABEL=NAME:/PATH` | the file on the file system with that label, on any disk but the own one |
//! | `/dev/disk/by-label/NAME:/PATH` | the same; `\xHH` in the name is that byte, as udev writes it |
//! | `/dev/NAME:/PATH` | the file on that device, as the kernel names it on this boot |
//!
//! A name ends at the first `:/`. A path holds no `..`. A word with blanks stands in double quotes. Left out: UUIDs,
//! which the reader of labels does not read.

use url::Url;

/// A place that the kernel command line names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// To be fetched.
    Url(String),
    /// A file on another disk.
    File(NamedFile),
}

/// A file on a device, both named on the kernel command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedFile {
    /// Which device.
    pub(crate) device: NamedDevice,
    /// The path in its file system, without the first slash.
    pub(crate) path: String,
}

/// How a device is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NamedDevice {
    /// By the label of its file system.
    Label(String),
    /// By the kernel's name for it, such as `sdb1`.
    Name(String),
}

/// A word that names no place. It does not repeat the word, which may hold a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WordError {
    /// Neither a URL nor a device.
    #[error(
        "the kernel command line names a configuration in an unknown form, expected a http, https, tftp or data URL, \
         LABEL=NAME:/PATH or /dev/NAME:/PATH"
    )]
    Form,
    /// A URL that does not parse.
    #[error("the kernel command line names a configuration by a URL that cannot be read")]
    Url(#[from] url::ParseError),
    /// A scheme that nothing here fetches.
    #[error("the kernel command line names a configuration by a URL of scheme {0}, expected http, https, tftp or data")]
    Scheme(String),
    /// No file is named on the device.
    #[error("the kernel command line names a device for the configuration, but no file on it: expected NAME:/PATH")]
    NoPath,
    /// A path that leads out of the device.
    #[error("the kernel command line names a configuration by a path with an empty part, `.` or `..`")]
    Path,
}

impl Named {
    /// Parses the value of one of the two words.
    ///
    /// # Errors
    /// See [`WordError`].
    pub(crate) fn parse(word: &str) -> Result<Self, WordError> {
        if let Some(rest) = word.strip_prefix("LABEL=") {
            return file(rest, |name| NamedDevice::Label(name.to_owned()));
        }
        if let Some(rest) = word.strip_prefix("/dev/disk/by-label/") {
            return file(rest, |name| NamedDevice::Label(unescape(name)));
        }
        if let Some(rest) = word.strip_prefix("/dev/") {
            return file(rest, |name| NamedDevice::Name(name.to_owned()));
        }
        if !word.contains(':') || word.starts_with('/') {
            return Err(WordError::Form);
        }
        let url = Url::parse(word)?;
        match url.scheme() {
            "http" | "https" | "tftp" if url.has_host() => Ok(Self::Url(word.to_owned())),
            "data" => Ok(Self::Url(word.to_owned())),
            "http" | "https" | "tftp" => Err(WordError::Form),
            other => Err(WordError::Scheme(other.to_owned())),
        }
    }
}

/// A URL as it may be shown: without user, password, query and fragment, and of `data` the scheme alone.
pub(crate) fn shown(url: &str) -> String {
    match Url::parse(url) {
        Ok(url) if url.scheme() == "data" => "data:".to_owned(),
        Ok(mut url) => {
            // These refuse URLs without a host alone, which can have neither.
            let _ = url.set_username("");
            let _ = url.set_password(None);
            url.set_query(None);
            url.set_fragment(None);
            url.into()
        }
        Err(_) => "-".to_owned(),
    }
}

/// Splits `NAME:/PATH`.
fn file(word: &str, device: impl FnOnce(&str) -> NamedDevice) -> Result<Named, WordError> {
    let (name, path) = word.split_once(":/").ok_or(WordError::NoPath)?;
    if name.is_empty() || path.is_empty() {
        return Err(WordError::NoPath);
    }
    if name.contains('/') || matches!(name, "." | "..") {
        return Err(WordError::Form);
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(WordError::Path);
    }
    Ok(Named::File(NamedFile { device: device(name), path: path.to_owned() }))
}

/// Replaces each `\xHH` by the byte.
fn unescape(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = rest.strip_prefix(b"\\x").and_then(|rest| rest.split_at_checked(2));
        let byte = escaped.and_then(|(digits, after)| {
            let digits = str::from_utf8(digits).ok().filter(|digits| digits.chars().all(|c| c.is_ascii_hexdigit()))?;
            Some((u8::from_str_radix(digits, 16).ok()?, after))
        });
        let (byte, after) = byte.unwrap_or((first, after));
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmdline::Cmdline;

    fn on(device: NamedDevice, path: &str) -> Result<Named, WordError> {
        Ok(Named::File(NamedFile { device, path: path.into() }))
    }

    #[test]
    fn words_are_read() {
        let label = |name: &str| NamedDevice::Label(name.into());
        let url = |url: &str| Ok(Named::Url(url.into()));
        for (word, expected) in [
            ("http://10.0.2.2:8080/config.ign", url("http://10.0.2.2:8080/config.ign")),
            ("https://user:pass@host/c?token=x", url("https://user:pass@host/c?token=x")),
            ("tftp://host/c", url("tftp://host/c")),
            ("data:,%7B%7D", url("data:,%7B%7D")),
            ("LABEL=x:/config.ign", on(label("x"), "config.ign")),
            ("LABEL=a b:/d/c.ign", on(label("a b"), "d/c.ign")),
            ("LABEL=a:b:/c:/d", on(label("a:b"), "c:/d")),
            ("/dev/disk/by-label/X:/path", on(label("X"), "path")),
            (r"/dev/disk/by-label/a\x20b\x2fc\xzz\:/path", on(label(r"a b/c\xzz\"), "path")),
            ("/dev/sdb1:/c", on(NamedDevice::Name("sdb1".into()), "c")),
            ("ftp://host/c", Err(WordError::Scheme("ftp".into()))),
            ("config.ign", Err(WordError::Form)),
            ("/config.ign", Err(WordError::Form)),
            ("http:", Err(WordError::Url(url::ParseError::EmptyHost))),
            ("http://[", Err(WordError::Url(url::ParseError::InvalidIpv6Address))),
            ("LABEL=x", Err(WordError::NoPath)),
            ("LABEL=:/x", Err(WordError::NoPath)),
            ("LABEL=x:/", Err(WordError::NoPath)),
            ("LABEL=x:/../etc/shadow", Err(WordError::Path)),
            ("LABEL=x:/a//b", Err(WordError::Path)),
            ("/dev/mapper/root:/c", Err(WordError::Form)),
            ("/dev/..:/c", Err(WordError::Form)),
        ] {
            assert_eq!(Named::parse(word), expected, "{word}");
        }
    }

    #[test]
    fn secrets_of_urls_are_not_shown() {
        for (url, expected) in [
            ("http://h/c", "http://h/c"),
            ("https://user:pass@h:8443/c?token=x#y", "https://h:8443/c"),
            ("data:application/json,%7B%22secret%22", "data:"),
            ("no url", "-"),
        ] {
            assert_eq!(shown(url), expected, "{url}");
        }
    }

    #[test]
    fn whatever_the_words_reading_ends() {
        arbtest::arbtest(|u| {
            let words =
                ["LABEL=", "/dev/disk/by-label/", "/dev/", "http://", "data:", ":/", "\\x", "\\x2", "/..", "\"", " "];
            let mut word = String::new();
            for _ in 0..u.int_in_range(0..=12)? {
                word.push_str(if u.arbitrary()? { u.choose(&words)? } else { u.arbitrary()? });
            }
            if let Ok(Named::File(file)) = Named::parse(&word) {
                assert!(!file.path.starts_with('/') && file.path.split('/').all(|part| part != ".."), "{word:?}");
            }
            let _ = shown(&word);
            let cmdline = Cmdline::parse(&format!("quiet nodezero.config={word} ignition.config.url={word}"));
            if let Some(word) = cmdline.ok().and_then(|cmdline| cmdline.config_url) {
                let _ = Named::parse(&word);
            }
            Ok(())
        })
        .budget_ms(2000);
    }
}
