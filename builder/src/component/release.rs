//! Official releases: downloads that the lock pins, and archives of them.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use debian::digest::Sha256;

use super::model::Release;
use super::pin::{self, Pin};
use super::store::{self, FILES, Files};
use crate::cache::Cache;
use crate::fetch::{self, Fetcher, Gone, NotCached, Unavailable};
use crate::progress::Progress;

/// The largest member that is taken out of an archive, in bytes.
const MEMBER_LIMIT: u64 = 512 << 20;

/// Why a release is not taken.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It cannot be had from here: nobody answers, it is not there, or nothing may be fetched.
    Unavailable(anyhow::Error),
    /// It can be had, and something is wrong with it.
    Wrong(anyhow::Error),
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        let unavailable = error.is::<Gone>() || error.is::<Unavailable>() || error.is::<NotCached>();
        if unavailable { Self::Unavailable(error) } else { Self::Wrong(error) }
    }
}

/// The files of a release: from the cache, or fetched.
pub(super) fn files(
    component: &str,
    release: &Release,
    pins: &[Pin],
    fetcher: &Fetcher,
    progress: &Progress,
) -> Result<Files, Refusal> {
    let cache = fetcher.cache();
    let mut files = Files::new();
    let mut wanted = Vec::new();
    for download in &release.downloads {
        let expected = pin::of_download(pins, component, download)?;
        let stored = store::stored(cache, expected.sha256);
        if download.is_archive() {
            if let Some(members) = store::recall(cache, &archive_key(&expected.sha256, &download.files))? {
                files.extend(members);
                continue;
            }
        } else if let [file] = &download.files[..] {
            if store::is_packed(cache, file, &stored) {
                files.insert(file.clone(), stored);
                continue;
            }
        } else {
            return Err(Refusal::Wrong(anyhow::anyhow!("{} gives one file, or is an archive", download.url)));
        }
        let title = format!("{component} {} ({})", release.version, download.name());
        let urls = vec![download.url.clone()];
        let item = fetch::Wanted { title, urls, sha256: expected.sha256, length: expected.length };
        wanted.push((download, item));
    }
    let items: Vec<fetch::Wanted> = wanted.iter().map(|(_, item)| item.clone()).collect();
    for ((download, item), result) in wanted.iter().zip(fetcher.fetch(FILES, &items, progress)?) {
        let path = result?;
        if download.is_archive() {
            let key = archive_key(&item.sha256, &download.files);
            files.extend(unpack(cache, &path, &download.files, &key).map_err(Refusal::Wrong)?);
        } else {
            let stored = store::stored(cache, item.sha256);
            files.extend(download.files.iter().map(|file| (file.clone(), stored.clone())));
        }
    }
    Ok(files)
}

fn archive_key(sha256: &Sha256, members: &[String]) -> Sha256 {
    Sha256::of(format!("members of {sha256}\n{}\n", members.join("\n")).as_bytes())
}

/// Takes the files called `names` out of the archive at `path`, a tar in gzip with one directory at its top. The
/// archive was verified before.
pub(super) fn unpack(cache: &Cache, path: &Path, names: &[String], key: &Sha256) -> Result<Files> {
    let unpacking = || format!("unpacking {}", path.display());
    let dir = cache.temporary_dir()?;
    let file = crate::cache::open(path)?;
    let mut archive = tar::Archive::new(flate2::read::MultiGzDecoder::new(io::BufReader::new(file)));
    let mut files = Files::new();
    for entry in archive.entries().with_context(unpacking)? {
        let mut entry = entry.with_context(unpacking)?;
        let name = {
            let path = entry.path().with_context(unpacking)?;
            let below: std::path::PathBuf = path.components().skip(1).collect();
            below.to_str().unwrap_or_default().to_owned()
        };
        if !names.contains(&name) || !entry.header().entry_type().is_file() {
            continue;
        }
        let size = entry.size();
        if size > MEMBER_LIMIT {
            bail!("{name} in {} has {size} bytes, the limit is {MEMBER_LIMIT}", path.display());
        }
        let member = dir.path().join(&name);
        copy(&mut entry, &member).with_context(unpacking)?;
        files.insert(name, store::keep(cache, &member)?);
    }
    if let Some(missing) = names.iter().find(|name| !files.contains_key(*name)) {
        bail!("{} has no {missing}", path.display());
    }
    store::remember(cache, key, &files)?;
    Ok(files)
}

fn copy(from: &mut impl Read, to: &Path) -> io::Result<()> {
    let mut out = File::create(to)?;
    io::copy(from, &mut out)?;
    out.flush()
}
