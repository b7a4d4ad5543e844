//! The `nodezero-firstboot` binary that every image carries: found, or built from the checkout beside `images/`.
//!
//! The builder never links it: it is laid into images as a file, so it must be static, and the same sources must give
//! the same bytes in any directory, of any user.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::progress::Progress;

const TRIPLE: &str = "x86_64-unknown-linux-gnu";
const PROFILE: &str = "firstboot";
const PACKAGE: &str = "nodezero-firstboot";

/// Reads the binary: from `given`, else from `$NODEZERO_FIRSTBOOT`, else built by cargo in the workspace that holds
/// `images`, else from beside the running program.
///
/// # Errors
/// When none can be had, or it is not a static x86-64 program.
pub fn read(given: Option<&Path>, images: &Path, progress: &Progress) -> Result<Vec<u8>> {
    let path = find(given, images, progress)?;
    let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    check_static(&bytes).with_context(|| format!("checking {}", path.display()))?;
    Ok(bytes)
}

fn find(given: Option<&Path>, images: &Path, progress: &Progress) -> Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    if let Some(path) = std::env::var_os("NODEZERO_FIRSTBOOT").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let workspace = std::path::absolute(images).ok().and_then(|dir| dir.parent().map(Path::to_owned));
    if let Some(workspace) = workspace.filter(|dir| dir.join("firstboot/Cargo.toml").is_file()) {
        return build(&workspace, progress);
    }
    let program = std::env::current_exe().context("finding the running program")?;
    let beside = program.with_file_name(PACKAGE);
    if beside.is_file() {
        return Ok(beside);
    }
    bail!("no {PACKAGE} binary: give --firstboot PATH, set NODEZERO_FIRSTBOOT, or put it beside {}", program.display())
}

/// Builds the static binary. Paths of this machine are mapped away, so that they do not reach the image.
fn build(workspace: &Path, progress: &Progress) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
        .unwrap_or_default();
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    for (from, to) in [(workspace, "/nodezero"), (home.as_path(), "/cargo")] {
        if !from.as_os_str().is_empty() {
            flags.push(format!("--remap-path-prefix={}={to}", from.display()));
        }
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--locked", "--profile", PROFILE, "--package", PACKAGE, "--target", TRIPLE])
        .arg("--manifest-path")
        .arg(workspace.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env_remove("RUSTFLAGS");
    let binary = target.join(TRIPLE).join(PROFILE).join(PACKAGE);
    if !binary.exists() {
        progress.say("building nodezero-firstboot, the first time takes a while");
    }
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let tail: Vec<&str> = stderr.lines().rev().take(20).collect();
        bail!("{command:?} ended with {}: {}", output.status, tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
    }
    Ok(binary)
}

/// Refuses what cannot run as init of an initrd that holds no library: not ELF64 x86-64, or with an interpreter.
fn check_static(elf: &[u8]) -> Result<()> {
    const MACHINE_X86_64: u16 = 62;
    const PT_INTERP: u32 = 3;
    let u16_at = |at: usize| Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(elf.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| usize::try_from(u64::from_le_bytes(elf.get(at..at + 8)?.try_into().ok()?)).ok();
    let headers = || {
        let (table, size, count) = (u64_at(0x20)?, usize::from(u16_at(0x36)?), usize::from(u16_at(0x38)?));
        (0..count).map(|index| u32_at(table.checked_add(index * size)?)).collect::<Option<Vec<u32>>>()
    };
    if elf.get(..6) != Some(b"\x7fELF\x02\x01") || u16_at(18) != Some(MACHINE_X86_64) {
        bail!("it is not an x86-64 program");
    }
    let headers = headers().context("its program headers are damaged")?;
    if headers.contains(&PT_INTERP) {
        bail!("it is linked dynamically: build it with -C target-feature=+crt-static");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dynamic_programs_and_other_files_are_refused() {
        let own = std::env::current_exe().and_then(std::fs::read).expect("the test can read itself");
        let error = check_static(&own).expect_err("tests are linked dynamically").to_string();
        assert!(error.contains("dynamically"), "{error}");
        assert!(check_static(b"#!/bin/sh\n").is_err());
        assert!(check_static(&own[..100]).is_err());
    }
}
