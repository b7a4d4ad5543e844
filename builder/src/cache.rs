//! The cache: files named by what they are, made under a temporary name and renamed when complete.
//!
//! Nothing half-written ever stands under a final name, so any number of builds may share a cache, and one that is
//! interrupted leaves nothing behind but a temporary file, which a later build removes when it is a day old.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use debian::digest::Sha256;
use tempfile::NamedTempFile;

/// Temporary files older than this belong to no build any more.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// Bytes of the SHA-256 behind a sealed entry.
const SEAL: usize = 32;

/// A directory of verified downloads and of what was made from them.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the cache in `given`, else `$NODEZERO_CACHE`, `$XDG_CACHE_HOME/nodezero` or `~/.cache/nodezero`.
    ///
    /// # Errors
    /// When no such directory is known or it cannot be made.
    pub fn open(given: Option<&Path>) -> Result<Self> {
        let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = given
            .map(Path::to_owned)
            .or_else(|| from("NODEZERO_CACHE"))
            .or_else(|| from("XDG_CACHE_HOME").map(|dir| dir.join("nodezero")))
            .or_else(|| from("HOME").map(|dir| dir.join(".cache/nodezero")))
            .context("no cache directory: set NODEZERO_CACHE, XDG_CACHE_HOME or HOME")?;
        let root = std::path::absolute(&root).with_context(|| format!("finding {}", root.display()))?;
        let cache = Self { root };
        for kind in ["debs", "files", "indexes", "made", "packs", "parts", "tools", "tmp"] {
            let dir = cache.root.join(kind);
            fs::create_dir_all(&dir).with_context(|| format!("making the cache directory {}", dir.display()))?;
        }
        cache.sweep();
        Ok(cache)
    }

    /// Where the cache is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The place of an entry, whether it exists or not.
    #[must_use]
    pub fn path(&self, kind: &str, name: &str) -> PathBuf {
        self.root.join(kind).join(name)
    }

    /// A temporary file that [`Self::publish`] turns into an entry, or that vanishes when dropped.
    ///
    /// # Errors
    /// When it cannot be made: a full disk, a read-only directory.
    pub fn temporary(&self) -> Result<NamedTempFile> {
        let dir = self.root.join("tmp");
        NamedTempFile::new_in(&dir).with_context(|| format!("making a temporary file in {}", dir.display()))
    }

    /// A temporary directory in the cache's file system, removed when dropped.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn temporary_dir(&self) -> Result<tempfile::TempDir> {
        let dir = self.root.join("tmp");
        tempfile::tempdir_in(&dir).with_context(|| format!("making a temporary directory in {}", dir.display()))
    }

    /// Gives a complete temporary file its final name. Another build may have done so before: the entries are equal.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub fn publish(&self, file: NamedTempFile, kind: &str, name: &str) -> Result<PathBuf> {
        let path = self.path(kind, name);
        publish(file, &path)?;
        Ok(path)
    }

    /// Reads an entry that [`Self::publish_sealed`] wrote, if it is there.
    ///
    /// # Errors
    /// When it was changed since, naming it and both digests, or cannot be read.
    pub fn read_sealed(&self, kind: &str, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path(kind, name);
        let mut bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let remedy = "remove it and build again";
        let Some(length) = bytes.len().checked_sub(SEAL) else {
            bail!("{} is shorter than its own digest: {remedy}", path.display());
        };
        let expected = Sha256::from_bytes(bytes[length..].try_into().expect("a seal has the length of a digest"));
        bytes.truncate(length);
        let found = Sha256::of(&bytes);
        if found != expected {
            bail!("{} was changed: SHA-256 is {found}, expected {expected}; {remedy}", path.display());
        }
        Ok(Some(bytes))
    }

    /// Keeps `bytes` as an entry, followed by their SHA-256.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn publish_sealed(&self, bytes: &[u8], kind: &str, name: &str) -> Result<()> {
        let mut file = self.temporary()?;
        let written = file.write_all(bytes).and_then(|()| file.write_all(Sha256::of(bytes).as_bytes()));
        written.with_context(|| format!("writing {}", self.path(kind, name).display()))?;
        self.publish(file, kind, name)?;
        Ok(())
    }

    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(self.root.join("tmp")) else { return };
        for entry in entries.flatten() {
            let age = entry.metadata().and_then(|meta| meta.modified()).ok().and_then(|at| at.elapsed().ok());
            if age.is_some_and(|age| age > ABANDONED) {
                // A sweep that fails leaves a file that the next one meets again.
                let _ = fs::remove_file(entry.path()).or_else(|_| fs::remove_dir_all(entry.path()));
            }
        }
    }
}

/// Renames a complete temporary file to `path`, readable by all as any file that a user makes.
///
/// # Errors
/// When it cannot be renamed.
pub fn publish(file: NamedTempFile, path: &Path) -> Result<()> {
    let name = || format!("writing {}", path.display());
    rustix::fs::fchmod(file.as_file(), rustix::fs::Mode::from_raw_mode(0o644)).with_context(name)?;
    file.persist(path).map_err(|error| error.error).with_context(name)?;
    Ok(())
}

/// Opens a file, naming it in the error.
///
/// # Errors
/// When it cannot be opened.
pub fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("opening {}", path.display()))
}

/// Whether `error` says that the file does not exist.
#[must_use]
pub fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}
