//! Where Debian's archives are taken from. Integrity never depends on it: see [`crate::fetch`].
//!
//! In order: the mirror that the user names, else the mirrors in the host's own apt sources, then always Debian's
//! public snapshot archive at the lock's time stamp, where pinned versions never vanish.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// One of Debian's archives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Archive {
    /// The main archive, with the stable suite and its updates.
    Debian,
    /// Security updates.
    DebianSecurity,
}

impl Archive {
    /// The last component of the archive's address on every mirror.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Debian => "debian",
            Self::DebianSecurity => "debian-security",
        }
    }
}

/// The base addresses of each archive, in the order in which they are tried.
#[derive(Clone, Debug, Default)]
pub struct Mirrors {
    debian: Vec<String>,
    security: Vec<String>,
}

impl Mirrors {
    /// Decides the mirrors: `given` by the user (an address whose last component is `debian`, or its parent), else
    /// what apt on this host uses; then the snapshot of `timestamp` (seconds since 1970), unless it is unknown.
    #[must_use]
    pub fn new(given: Option<&str>, apt: &Path, timestamp: Option<u64>) -> Self {
        let mut mirrors = match given {
            Some(base) => Self::given(base),
            None => Self::from_apt(&apt_sources(apt)),
        };
        if let Some(stamp) = timestamp.and_then(snapshot_stamp) {
            for archive in [Archive::Debian, Archive::DebianSecurity] {
                let base = format!("http://snapshot.debian.org/archive/{}/{stamp}", archive.name());
                mirrors.list(archive).push(base);
            }
        }
        mirrors
    }

    /// The addresses of `path` in `archive`.
    #[must_use]
    pub fn urls(&self, archive: Archive, path: &str) -> Vec<String> {
        let bases = match archive {
            Archive::Debian => &self.debian,
            Archive::DebianSecurity => &self.security,
        };
        bases.iter().map(|base| format!("{base}/{path}")).collect()
    }

    fn list(&mut self, archive: Archive) -> &mut Vec<String> {
        match archive {
            Archive::Debian => &mut self.debian,
            Archive::DebianSecurity => &mut self.security,
        }
    }

    fn given(base: &str) -> Self {
        let base = base.trim_end_matches('/');
        let parent = base.strip_suffix("/debian").unwrap_or(base);
        Self { debian: vec![format!("{parent}/debian")], security: vec![format!("{parent}/debian-security")] }
    }

    fn from_apt(texts: &[String]) -> Self {
        let mut mirrors = Self::default();
        for uri in texts.iter().flat_map(|text| text.split_whitespace()) {
            let uri = uri.trim_end_matches('/');
            let Some(archive) = [Archive::Debian, Archive::DebianSecurity]
                .into_iter()
                .find(|archive| uri.rsplit('/').next() == Some(archive.name()))
            else {
                continue;
            };
            let list = mirrors.list(archive);
            if uri.starts_with("http") && !list.iter().any(|known| known == uri) {
                list.push(uri.to_owned());
            }
        }
        mirrors
    }
}

/// The parts of apt's configuration that can hold addresses: one-line and deb822 sources, without comments.
fn apt_sources(apt: &Path) -> Vec<String> {
    let mut paths: Vec<PathBuf> = vec![apt.join("sources.list")];
    let mut parts: Vec<PathBuf> = fs::read_dir(apt.join("sources.list.d"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "list" || ext == "sources"))
        .collect();
    parts.sort();
    paths.extend(parts);
    let lines = |text: String| {
        text.lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .filter(|line| line.starts_with("deb ") || line.to_ascii_lowercase().starts_with("uris:"))
            .collect::<Vec<_>>()
            .join("\n")
    };
    paths.iter().filter_map(|path| fs::read_to_string(path).ok()).map(lines).collect()
}

/// The snapshot archive's form of an instant: `20261121T090000Z`.
fn snapshot_stamp(timestamp: u64) -> Option<String> {
    let at = jiff::Timestamp::from_second(i64::try_from(timestamp).ok()?).ok()?;
    Some(at.strftime("%Y%m%dT%H%M%SZ").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_sources_of_both_forms_are_used_and_foreign_ones_are_not() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join("sources.list.d")).expect("it is empty");
        fs::write(
            dir.path().join("sources.list"),
            "# deb http://old.example/debian trixie main\ndeb [signed-by=/k] http://one.example/debian/ bookworm main\n",
        )
        .expect("temporary files can be written");
        fs::write(
            dir.path().join("sources.list.d/x.sources"),
            "Types: deb\nURIs: http://two.example/debian-security\n\nURIs: http://a.example/ubuntu file:/srv/debian\n",
        )
        .expect("temporary files can be written");
        let mirrors = Mirrors::new(None, dir.path(), Some(1_795_251_600));
        assert_eq!(
            mirrors.urls(Archive::Debian, "p"),
            ["http://one.example/debian/p", "http://snapshot.debian.org/archive/debian/20261121T090000Z/p"]
        );
        assert_eq!(
            mirrors.urls(Archive::DebianSecurity, "p")[0],
            "http://two.example/debian-security/p",
            "security updates come from their own archive"
        );
    }

    #[test]
    fn a_given_mirror_replaces_the_hosts_own() {
        for given in ["http://m.example", "http://m.example/", "http://m.example/debian"] {
            let mirrors = Mirrors::new(Some(given), Path::new("/nonexistent"), None);
            assert_eq!(mirrors.urls(Archive::Debian, "x"), ["http://m.example/debian/x"], "{given}");
            assert_eq!(mirrors.urls(Archive::DebianSecurity, "x"), ["http://m.example/debian-security/x"], "{given}");
        }
    }
}
