//! What the lock pins of components, and how `nodezero lock` learns it.
//!
//! A pin that fits is kept. Where `images/components/` names another version, the release's digest is taken from the
//! publisher's checksums, and the module's sum from the `go` client, which compares it with Go's checksum database.

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use debian::digest::Sha256;
use serde::{Deserialize, Serialize};

use super::go;
use super::model::{Component, Download, Module, Source};
use crate::fetch::{Fetcher, Length};
use crate::progress::Progress;

/// The largest list of digests that is read.
const CHECKSUMS_LIMIT: u64 = 1 << 20;
/// The largest file of a component whose size is not pinned.
const FILE_LIMIT: u64 = 512 << 20;

/// One pinned file or module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "lowercase", deny_unknown_fields)]
pub enum Pin {
    /// A file of a release.
    Release {
        /// The component.
        name: String,
        /// Its version.
        version: String,
        /// Where the file is.
        url: String,
        /// Its size in bytes, where it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<u64>,
        /// Its SHA-256.
        sha256: String,
    },
    /// A module.
    Go {
        /// The component.
        name: String,
        /// Its version.
        version: String,
        /// The module's path.
        module: String,
        /// The hash of its files, as `go.sum` has it: `h1:…`.
        sum: String,
    },
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Release { name, version, url, .. } => write!(f, "{name} {version} {url}"),
            Self::Go { name, version, module, sum } => write!(f, "{name} {version} {module} {sum}"),
        }
    }
}

/// What a release's file must be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub(super) sha256: Sha256,
    pub(super) length: Length,
}

/// The pin of a release's file.
///
/// # Errors
/// When the lock has none, or its digest is none.
pub(super) fn of_download(pins: &[Pin], component: &str, download: &Download) -> Result<Expected> {
    let found = pins.iter().find_map(|pin| match pin {
        Pin::Release { name, url, size, sha256, .. } if name == component && *url == download.url => {
            Some((*size, sha256))
        }
        Pin::Release { .. } | Pin::Go { .. } => None,
    });
    let (size, sha256) = found.with_context(|| format!("the lock pins no {}: run nodezero lock", download.url))?;
    let sha256 = sha256.parse().map_err(|error| anyhow!("the lock's digest of {}: {error}", download.url))?;
    Ok(Expected { sha256, length: size.map_or(Length::AtMost(FILE_LIMIT), Length::Exactly) })
}

/// The pinned sum of a module.
///
/// # Errors
/// When the lock has none.
pub(super) fn of_module<'a>(pins: &'a [Pin], component: &str, module: &Module) -> Result<&'a str> {
    let found = pins.iter().find_map(|pin| match pin {
        Pin::Go { name, version, module: path, sum }
            if name == component && *version == module.version && *path == module.path =>
        {
            Some(sum.as_str())
        }
        Pin::Go { .. } | Pin::Release { .. } => None,
    });
    found.with_context(|| format!("the lock pins no {} {}: run nodezero lock", module.path, module.version))
}

/// The version of the release that has a file with this digest, if one is pinned.
#[must_use]
pub(super) fn release_of<'a>(pins: &'a [Pin], component: &str, digest: &Sha256) -> Option<&'a str> {
    let digest = digest.to_string();
    pins.iter().find_map(|pin| match pin {
        Pin::Release { name, version, sha256, .. } if name == component && *sha256 == digest => Some(version.as_str()),
        Pin::Release { .. } | Pin::Go { .. } => None,
    })
}

/// Pins all that the components under `images` name; what `old` pins of it stays.
///
/// # Errors
/// When something is to be learned anew and cannot be.
pub fn pin_all(images: &Path, old: &[Pin], fetcher: &Fetcher, progress: &Progress) -> Result<Vec<Pin>> {
    let mut pins = Vec::new();
    for component in Component::load_all(images)? {
        for source in &component.sources {
            let pinning = || format!("pinning {} {}", component.name, source.version());
            match source {
                Source::Release(release) => {
                    for download in &release.downloads {
                        let known = old.iter().find(|pin| {
                            matches!(pin, Pin::Release { name, url, .. } if *name == component.name && *url == download.url)
                        });
                        let pin = match known {
                            Some(pin) => pin.clone(),
                            None => {
                                learn(&component.name, &release.version, download, fetcher).with_context(pinning)?
                            }
                        };
                        pins.push(pin);
                    }
                }
                Source::Module(module) => {
                    let sum = match of_module(old, &component.name, module) {
                        Ok(sum) => sum.to_owned(),
                        Err(_) => {
                            progress.say(&format!("asking for the sum of {} {}", module.path, module.version));
                            go::Client::find().and_then(|go| go.sum(module)).with_context(pinning)?
                        }
                    };
                    let (name, version) = (component.name.clone(), module.version.clone());
                    pins.push(Pin::Go { name, version, module: module.path.clone(), sum });
                }
                // Its own go.sum pins it, and it is part of the workspace.
                Source::Standin(_) => {}
            }
        }
    }
    Ok(pins)
}

fn learn(component: &str, version: &str, download: &Download, fetcher: &Fetcher) -> Result<Pin> {
    let bytes =
        fetcher.read_unpinned(&download.checksums, std::slice::from_ref(&download.checksums), CHECKSUMS_LIMIT)?;
    let text = String::from_utf8(bytes).map_err(|_| anyhow!("{} is not a text file", download.checksums))?;
    let sha256 = find_digest(&text, download.name()).with_context(|| format!("reading {}", download.checksums))?;
    Ok(Pin::Release {
        name: component.to_owned(),
        version: version.to_owned(),
        url: download.url.clone(),
        size: None,
        sha256: sha256.to_string(),
    })
}

/// The digest of `name` in what `sha256sum` prints, or the one digest that is all of the text.
fn find_digest(text: &str, name: &str) -> Result<Sha256> {
    let words: Vec<&str> = text.split_whitespace().collect();
    if let [only] = words[..] {
        return only.parse().map_err(|error| anyhow!("{error}"));
    }
    let mut found = text.lines().filter_map(|line| {
        let (digest, file) = line.split_once(char::is_whitespace)?;
        (file.trim_start().trim_start_matches('*') == name).then_some(digest)
    });
    match (found.next(), found.next()) {
        (Some(digest), None) => digest.parse().map_err(|error| anyhow!("{error}")),
        (None, _) => bail!("no digest of {name}"),
        (Some(_), Some(_)) => bail!("two digests of {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishers_digests_are_found() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let list = format!("{a}  k3s\n{b} *k3s-images.tar.zst\n{b}  k3s-arm64\n");
        let cases = [
            (format!("{a}\n"), "x.tgz", Some(&a)),
            (a.clone(), "x.tgz", Some(&a)),
            (list.clone(), "k3s", Some(&a)),
            (list.clone(), "k3s-images.tar.zst", Some(&b)),
            (list.clone(), "k3s-images", None),
            (format!("{a}  k3s\n{b}  k3s\n"), "k3s", None),
            ("<html>".to_owned(), "k3s", None),
            (String::new(), "k3s", None),
        ];
        for (text, name, expected) in cases {
            let found = find_digest(&text, name).ok().map(|digest| digest.to_string());
            assert_eq!(found.as_ref(), expected, "{name} in {text:?}");
        }
    }
}
