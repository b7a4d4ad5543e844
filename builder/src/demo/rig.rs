//! The Go programs of `qemu-tests/rig`, built with the ordinary `go` client, once for each content of that directory.
//!
//! `NODEZERO_RIG` names a directory that has them ready made.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use debian::digest::Sha256;

use crate::cache::Cache;
use crate::progress::Progress;

/// The cache's directory for them.
const KIND: &str = "rig";
/// Changes whenever the same sources give other programs.
const VERSION: u32 = 1;

/// The program `name` of the Go module in `rig`, its `cmd/NAME`.
///
/// # Errors
/// When there is no `go`, or the program cannot be built.
pub fn program(rig: &Path, name: &str, cache: &Cache, progress: &Progress) -> Result<PathBuf> {
    if let Some(ready) = env::var_os("NODEZERO_RIG").filter(|dir| !dir.is_empty()) {
        let path = Path::new(&ready).join(name);
        ensure!(path.is_file(), "NODEZERO_RIG has no {name}: {} is not there", path.display());
        return Ok(path);
    }
    let go = go_version()?;
    let mut key = format!("{VERSION}\n{name}\n{go}\n");
    describe(rig, rig, &mut key).with_context(|| format!("reading {}", rig.display()))?;
    let path = cache.path(KIND, &format!("{name}-{}", &Sha256::of(key.as_bytes()).to_string()[..16]));
    if path.is_file() {
        return Ok(path);
    }
    progress.say(&format!("building {name} from {}: a few minutes, once", rig.display()));
    let temporary = cache.temporary_dir()?;
    let built = temporary.path().join(name);
    let mut command = Command::new("go");
    command
        .args(["build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o"])
        .arg(&built)
        .arg(format!("./cmd/{name}"))
        .current_dir(rig)
        .env("CGO_ENABLED", "0");
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = said.lines().collect();
        bail!("{command:?} ended with {}: {}", output.status, lines[lines.len().saturating_sub(20)..].join("\n"));
    }
    let parent = path.parent().context("an entry of the cache has a directory")?;
    fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    fs::rename(&built, &path).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

fn go_version() -> Result<String> {
    let output = Command::new("go").arg("version").output();
    let output = output.context("running go version: install Go, or name ready-made programs with NODEZERO_RIG")?;
    ensure!(output.status.success(), "go version ended with {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Adds name and digest of every file below `dir` to `key`, in order.
fn describe(root: &Path, dir: &Path, key: &mut String) -> std::io::Result<()> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            describe(root, &path, key)?;
        } else {
            let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            key.push_str(&format!("{name} {}\n", Sha256::of(&fs::read(&path)?)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_the_sources_is_told_apart() {
        let dir = tempfile::tempdir().expect("tempdir");
        let of = || {
            let mut key = String::new();
            describe(dir.path(), dir.path(), &mut key).expect("described");
            key
        };
        fs::create_dir(dir.path().join("cmd")).expect("made");
        fs::write(dir.path().join("cmd/a.go"), "package a").expect("written");
        let first = of();
        assert!(first.starts_with("cmd/a.go ") && first.ends_with('\n'), "{first}");
        fs::write(dir.path().join("cmd/a.go"), "package b").expect("written");
        assert_ne!(of(), first, "other content");
        fs::rename(dir.path().join("cmd/a.go"), dir.path().join("cmd/b.go")).expect("renamed");
        assert!(of().starts_with("cmd/b.go "), "another name");
    }
}
