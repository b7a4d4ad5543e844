//! The files that a build leaves: an image in one or several formats, each under its final name only when it is whole.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result};
use debian::digest::Sha256;
use serde::Serialize;
use tempfile::NamedTempFile;

use crate::{cache, fetch};

/// A form in which an image is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Format {
    /// The disk as it is, zeroes as holes.
    #[serde(rename = "raw")]
    Raw,
    /// Compressed with zstd.
    #[serde(rename = "raw.zst")]
    RawZst,
    /// Compressed with gzip.
    #[serde(rename = "raw.gz")]
    RawGz,
    /// QEMU's format.
    #[serde(rename = "qcow2")]
    Qcow2,
}

impl Format {
    /// The format's name, which is also the file's suffix.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::RawZst => "raw.zst",
            Self::RawGz => "raw.gz",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        [Self::Raw, Self::RawZst, Self::RawGz, Self::Qcow2]
            .into_iter()
            .find(|format| format.name() == word)
            .ok_or_else(|| format!("{word:?} is not a format: use raw, raw.zst, raw.gz or qcow2"))
    }
}

/// One file that was written.
#[derive(Clone, Debug, Serialize)]
pub struct Output {
    /// Its form.
    pub format: Format,
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub size: u64,
    /// What it takes on disk in bytes.
    pub on_disk: u64,
    /// Its SHA-256.
    pub sha256: String,
}

/// Makes the output directory, and finds out before any work whether it can be written.
///
/// # Errors
/// When it cannot.
pub fn prepare_out(out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("making the output directory {}", out.display()))?;
    temporary_in(out).map(|_| ())
}

/// A temporary file in the output directory.
///
/// # Errors
/// When it cannot be made.
pub fn temporary_in(dir: &Path) -> Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(".nodezero-")
        .suffix(".tmp")
        .tempfile_in(dir)
        .with_context(|| format!("writing to the output directory {}", dir.display()))
}

/// A complete image in one format, under a temporary name yet.
#[derive(Debug)]
pub struct Pending {
    format: Format,
    file: NamedTempFile,
    sha256: Sha256,
}

/// Writes the raw image in all `formats`, sorted and each once, to `out`; `stem` names it in errors.
///
/// # Errors
/// When a file cannot be written.
pub fn convert_all(
    formats: &[Format],
    raw: NamedTempFile,
    sha256: Sha256,
    out: &Path,
    stem: &str,
) -> Result<Vec<Pending>> {
    let mut formats = formats.to_vec();
    formats.sort();
    formats.dedup();
    let mut pending = Vec::new();
    for format in formats.iter().copied().filter(|format| *format != Format::Raw) {
        let file = temporary_in(out)?;
        convert(format, raw.path(), &file)
            .with_context(|| format!("writing {stem}.{} to {}", format.name(), out.display()))?;
        let (sha256, _) = fetch::hash_file(file.path())?;
        pending.push(Pending { format, file, sha256 });
    }
    if formats.contains(&Format::Raw) {
        pending.insert(0, Pending { format: Format::Raw, file: raw, sha256 });
    }
    Ok(pending)
}

/// Gives the images their final names. Returns them, with the text of their `.sha256` file.
///
/// # Errors
/// When one cannot be renamed.
pub fn publish_all(pending: Vec<Pending>, out: &Path, stem: &str) -> Result<(Vec<Output>, String)> {
    let mut sums = String::new();
    let mut outputs = Vec::new();
    for Pending { format, file, sha256 } in pending {
        let path = out.join(format!("{stem}.{}", format.name()));
        sums.push_str(&format!("{sha256}  {stem}.{}\n", format.name()));
        cache::publish(file, &path)?;
        let meta = fs::metadata(&path).with_context(|| format!("reading {}", path.display()))?;
        let on_disk = std::os::unix::fs::MetadataExt::blocks(&meta) * 512;
        outputs.push(Output { format, path, size: meta.len(), on_disk, sha256: sha256.to_string() });
    }
    Ok((outputs, sums))
}

fn convert(format: Format, raw: &Path, file: &NamedTempFile) -> io::Result<()> {
    let mut raw = File::open(raw)?;
    let mut out = BufWriter::with_capacity(1 << 20, file.as_file());
    match format {
        Format::Raw => {
            io::copy(&mut raw, &mut out)?;
        }
        Format::RawZst => {
            let mut encoder = zstd::Encoder::new(&mut out, 3)?;
            encoder.multithread(u32::try_from(crate::parallel::threads()).unwrap_or(1))?;
            encoder.include_checksum(true)?;
            encoder.set_pledged_src_size(Some(raw.metadata()?.len()))?;
            io::copy(&mut raw, &mut encoder)?;
            encoder.finish()?;
        }
        Format::RawGz => {
            // No name and no time in the header: the same bytes each time.
            let mut encoder = flate2::write::GzEncoder::new(&mut out, flate2::Compression::new(6));
            let mut buffer = vec![0; 1 << 20];
            loop {
                let count = raw.read(&mut buffer)?;
                if count == 0 {
                    break;
                }
                encoder.write_all(&buffer[..count])?;
            }
            encoder.finish()?;
        }
        Format::Qcow2 => crate::qcow2::write(&mut raw, &mut out)?,
    }
    out.flush()
}
