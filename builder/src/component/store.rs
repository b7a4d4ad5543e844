//! Files of components in the cache: by their SHA-256, packed, and what they were made from.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use debian::digest::Sha256;
use rootfs::{FileId, Pack, PackOptions, PackWriter};

use crate::cache::Cache;
use crate::fetch;
use crate::unpack::PACK_OPTIONS;

/// The cache's directory of files.
pub(super) const FILES: &str = "files";
/// The cache's directory of what was made from what.
const MADE: &str = "made";
/// Changes whenever the same content gives another pack.
const PACK_VERSION: u32 = 1;

/// A file of a component, by its name in the component.
pub(super) type Files = BTreeMap<String, Stored>;

/// A file by its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// Where it is, or was when its pack was made.
    pub(super) path: PathBuf,
    /// What it must be.
    pub(super) sha256: Sha256,
}

/// A file's pack: it alone is in it.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) pack: Pack,
    /// Its length in bytes.
    pub(super) size: u64,
    /// What it takes in an image.
    pub(super) packed: u64,
}

/// The file of the cache that has this digest.
pub(super) fn stored(cache: &Cache, sha256: Sha256) -> Stored {
    Stored { path: cache.path(FILES, &sha256.to_string()), sha256 }
}

/// Moves a file of the cache's file system to its place in the cache.
pub(super) fn keep(cache: &Cache, made: &Path) -> Result<Stored> {
    let (sha256, _) = fetch::hash_file(made)?;
    let stored = stored(cache, sha256);
    fs::rename(made, &stored.path).with_context(|| format!("writing {}", stored.path.display()))?;
    Ok(stored)
}

/// What was made from what `key` stands for, if all of it is still there.
pub(super) fn recall(cache: &Cache, key: &Sha256) -> Result<Option<Files>> {
    let Some(bytes) = cache.read_sealed(MADE, &key.to_string())? else { return Ok(None) };
    let names: BTreeMap<String, String> = serde_json::from_slice(&bytes).context("reading what was made")?;
    let mut files = Files::new();
    for (name, digest) in names {
        let Ok(sha256) = digest.parse() else { bail!("{digest} is not a digest: remove {} and build again", key) };
        let stored = stored(cache, sha256);
        if !stored.path.exists() && !pack_path(cache, &name, &stored).exists() {
            return Ok(None);
        }
        files.insert(name, stored);
    }
    Ok(Some(files))
}

/// Remembers what was made from what `key` stands for.
pub(super) fn remember(cache: &Cache, key: &Sha256, files: &Files) -> Result<()> {
    let names: BTreeMap<&str, String> =
        files.iter().map(|(name, stored)| (name.as_str(), stored.sha256.to_string())).collect();
    let bytes = serde_json::to_vec(&names).context("writing what was made")?;
    cache.publish_sealed(&bytes, MADE, &key.to_string())
}

/// Whether a content under this name is compressed already.
fn is_compressed(name: &str) -> bool {
    [".zst", ".gz", ".tgz", ".xz"].iter().any(|end| name.ends_with(end))
}

fn pack_path(cache: &Cache, name: &str, stored: &Stored) -> PathBuf {
    let PackOptions { block_size, level } = PACK_OPTIONS;
    let how = if is_compressed(name) { "stored".to_owned() } else { format!("level {level}") };
    let text = format!("component pack {PACK_VERSION}\n{}\n{block_size} {how}\n", stored.sha256);
    cache.path("packs", &Sha256::of(text.as_bytes()).to_string())
}

/// Whether the pack of a file is there, so that the file itself is not needed.
pub(super) fn is_packed(cache: &Cache, name: &str, stored: &Stored) -> bool {
    pack_path(cache, name, stored).exists()
}

/// The pack of a file, made where it is not there yet. The file is verified while it is read, before its pack gets
/// its name.
pub(super) fn pack(cache: &Cache, name: &str, stored: &Stored) -> Result<Packed> {
    let path = pack_path(cache, name, stored);
    if !path.exists() {
        make_pack(cache, name, stored, &path).with_context(|| format!("packing {}", stored.path.display()))?;
    }
    let pack = Pack::open(&path).context("a cached pack is not usable: remove it and build again")?;
    let info = pack.file(FileId::new(0)).context("a pack of a component holds one file")?;
    let packed = fs::metadata(&path).with_context(|| format!("reading {}", path.display()))?.len();
    Ok(Packed { pack, size: info.size, packed })
}

fn make_pack(cache: &Cache, name: &str, stored: &Stored, path: &Path) -> Result<()> {
    let mut file = crate::cache::open(&stored.path)?;
    let size = file.metadata().with_context(|| format!("reading {}", stored.path.display()))?.len();
    let temporary = cache.temporary()?;
    let mut writer = PackWriter::create(temporary.path(), PACK_OPTIONS)?;
    let id = if is_compressed(name) { writer.add_stored(&mut file, size)? } else { writer.add(&mut file, size)? };
    writer.finish(b"")?;
    let pack = Pack::open(temporary.path())?;
    let found = pack.file(id).context("the pack holds what was added")?.digest.to_string();
    if found != stored.sha256.to_string() {
        bail!(
            "it was changed after it was verified: SHA-256 is {found}, expected {}; remove it and build again",
            stored.sha256
        );
    }
    crate::cache::publish(temporary, path)
}
