//! What a user has as a file or a directory.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use debian::digest::Sha256;

use super::model::Component;
use super::release;
use super::store::{Files, Stored};
use crate::cache::Cache;

/// What a program of the workspace's rig has in it: Go writes the path of its module there.
const STANDIN_MODULE: &[u8] = b"nodezero.dev/rig/";
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// The files at `path`: those of a directory by their names, the members of an archive, or one file, which is the
/// component's program.
pub(super) fn files(component: &Component, path: &Path, cache: &Cache) -> Result<Files> {
    let reading = || format!("reading {}", path.display());
    let kind = fs::metadata(path).with_context(reading)?;
    let mut files = Files::new();
    if kind.is_dir() {
        for spec in &component.files {
            let file = path.join(&spec.name);
            if file.is_file() {
                files.insert(spec.name.clone(), stored(&file)?);
            }
        }
        return Ok(files);
    }
    let mut magic = [0; 2];
    let is_archive = crate::cache::open(path)?.read_exact(&mut magic).is_ok() && magic == GZIP;
    if is_archive {
        let names: Vec<String> =
            component.files.iter().filter(|spec| !spec.optional).map(|spec| spec.name.clone()).collect();
        let key = Sha256::of(format!("given {}\n{}\n", stored(path)?.sha256, names.join("\n")).as_bytes());
        return match super::store::recall(cache, &key)? {
            Some(files) => Ok(files),
            None => release::unpack(cache, path, &names, &key),
        };
    }
    let program = component.files.first().context("a component has files")?;
    files.insert(program.name.clone(), stored(path)?);
    Ok(files)
}

fn stored(path: &Path) -> Result<Stored> {
    let (sha256, size) = crate::fetch::hash_file(path)?;
    if size == 0 {
        bail!("{} is empty", path.display());
    }
    Ok(Stored { path: std::path::absolute(path).with_context(|| format!("finding {}", path.display()))?, sha256 })
}

/// Whether a program is a stand-in, whoever gives it.
pub(super) fn is_standin(program: &Path) -> Result<bool> {
    let bytes = fs::read(program).with_context(|| format!("reading {}", program.display()))?;
    Ok(memchr::memmem::find(&bytes, STANDIN_MODULE).is_some())
}
