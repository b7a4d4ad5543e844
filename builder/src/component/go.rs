//! Builds by the ordinary `go` client: the publisher's module, or a module of this workspace.
//!
//! The same sources, flags and Go version give the same bytes in every directory, for every user: no path, no version
//! control, no C, no setting of the user's but where modules come from. What was built is remembered by all of these.
//! A module is pinned by its sum; its own `go.sum`, which the sum covers, pins what it needs
//! (<https://go.dev/ref/mod#go-sum-files>). Go is the user's own: none is fetched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use debian::digest::Sha256;
use serde::Deserialize;

use super::model::{Build, Module, Standin};
use super::store::{self, Files};
use crate::cache::Cache;
use crate::progress::Progress;

/// Without symbols, and without an identifier that serves Go's cache alone.
const LINKER: &str = "-s -w -buildid=";
/// What is said to every run, whatever the user's settings are.
const SETTINGS: [(&str, &str); 9] = [
    ("CGO_ENABLED", "0"),
    ("GOOS", "linux"),
    ("GOARCH", "amd64"),
    ("GOAMD64", "v1"),
    ("GOWORK", "off"),
    ("GO111MODULE", "on"),
    ("GOTOOLCHAIN", "local"),
    ("GOFIPS140", "off"),
    ("GOFLAGS", "-buildvcs=false"),
];
/// Lines of a failed run that are shown.
const TAIL: usize = 20;

/// The user's Go.
#[derive(Clone, Debug)]
pub(super) struct Client {
    /// `go1.26.8`.
    pub(super) version: String,
    offline: bool,
}

impl Client {
    /// Finds it.
    pub(super) fn find() -> Result<Self> {
        let output = Command::new("go").arg("version").env("GOTOOLCHAIN", "local").output();
        let output = output.context("there is no go client in PATH, see https://go.dev/dl")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.split_whitespace().nth(2).filter(|word| word.starts_with("go1"));
        let version = version.with_context(|| format!("go version answered {text:?}"))?.to_owned();
        Ok(Self { version, offline: false })
    }

    /// The same, which fetches no module.
    pub(super) fn offline(self, offline: bool) -> Self {
        Self { offline, ..self }
    }

    fn command(&self, dir: &Path) -> Command {
        let mut command = Command::new("go");
        command.current_dir(dir).envs(SETTINGS).env_remove("GOEXPERIMENT").env_remove("GODEBUG");
        if self.offline {
            command.env("GOPROXY", "off");
        }
        command
    }

    /// The sum of a module, compared with Go's checksum database as the user's settings say.
    pub(super) fn sum(&self, module: &Module) -> Result<String> {
        let dir = tempfile::tempdir().context("making a temporary directory")?;
        Ok(download(self.command(dir.path()), module)?.sum)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Downloaded {
    dir: PathBuf,
    sum: String,
}

fn download(mut command: Command, module: &Module) -> Result<Downloaded> {
    command.args(["mod", "download", "-json"]).arg(format!("{}@{}", module.path, module.version));
    let output = run(&mut command)?;
    serde_json::from_slice(&output).with_context(|| format!("reading what {command:?} answered"))
}

/// Builds the publisher's module, whose sum is `sum`, or takes what was built before.
pub(super) fn module_files(
    client: &Client,
    module: &Module,
    sum: &str,
    cache: &Cache,
    progress: &Progress,
) -> Result<Files> {
    let key = key(client, &format!("{} {} {sum}", module.path, module.version), &module.builds);
    if let Some(files) = store::recall(cache, &key)? {
        return Ok(files);
    }
    progress.say(&format!("building {} {} with {}, once", module.path, module.version, client.version));
    let dir = cache.temporary_dir()?;
    let mut command = client.command(dir.path());
    // The sum is compared here, so no one else need be asked for it.
    command.env("GONOSUMDB", &module.path);
    let downloaded = download(command, module)?;
    ensure!(
        downloaded.sum == sum,
        "the sum of {} {} is {}, expected {sum}",
        module.path,
        module.version,
        downloaded.sum
    );
    build_all(client, &downloaded.dir, &module.builds, dir.path(), cache, &key)
}

/// Builds a stand-in from `workspace`, or takes what was built before.
pub(super) fn standin_files(
    client: &Client,
    standin: &Standin,
    workspace: &Path,
    cache: &Cache,
    progress: &Progress,
) -> Result<Files> {
    let source = workspace.join(&standin.directory);
    if !source.join("go.mod").is_file() {
        bail!("{} holds no Go module: it is part of a checkout", source.display());
    }
    let mut text = String::new();
    digest_sources(&source, &source, &mut text)?;
    let key = key(client, &text, &standin.builds);
    if let Some(files) = store::recall(cache, &key)? {
        return Ok(files);
    }
    progress.say(&format!(
        "building the stand-in in {} with {}: the first time takes some minutes",
        standin.directory.display(),
        client.version
    ));
    let dir = cache.temporary_dir()?;
    build_all(client, &source, &standin.builds, dir.path(), cache, &key)
}

/// Names and digests of all files that a build can depend on, sorted.
fn digest_sources(top: &Path, dir: &Path, text: &mut String) -> Result<()> {
    let reading = || format!("reading {}", dir.display());
    let mut entries: Vec<_> =
        fs::read_dir(dir).and_then(Iterator::collect::<std::io::Result<Vec<_>>>).with_context(reading)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if name.starts_with('.') || name.ends_with("_test.go") || name.ends_with(".md") {
            continue;
        }
        if entry.file_type().with_context(reading)?.is_dir() {
            digest_sources(top, &path, text)?;
        } else {
            let (digest, _) = crate::fetch::hash_file(&path)?;
            let below = path.strip_prefix(top).unwrap_or(&path);
            text.push_str(&format!("{} {digest}\n", below.display()));
        }
    }
    Ok(())
}

/// Stands for all that decides what builds give.
fn key(client: &Client, sources: &str, builds: &[Build]) -> Sha256 {
    let mut text = format!("go builds 1\n{}\n{LINKER}\n{SETTINGS:?}\n{sources}\n", client.version);
    for build in builds {
        text.push_str(&format!("{build:?}\n"));
    }
    Sha256::of(text.as_bytes())
}

fn build_all(
    client: &Client,
    source: &Path,
    builds: &[Build],
    scratch: &Path,
    cache: &Cache,
    key: &Sha256,
) -> Result<Files> {
    let mut files = Files::new();
    for build in builds {
        let made = scratch.join(&build.file);
        let program = if build.run.is_some() { scratch.join(format!("{}.program", build.file)) } else { made.clone() };
        let mut flags = LINKER.to_owned();
        for (variable, value) in &build.variables {
            flags.push_str(&format!(" -X {variable}={value}"));
        }
        let mut command = client.command(source);
        command.args(["build", "-trimpath", "-mod=readonly", "-ldflags", &flags]);
        if !build.tags.is_empty() {
            command.arg("-tags").arg(build.tags.join(","));
        }
        run(command.arg("-o").arg(&program).arg(&build.package))?;
        if let Some(arguments) = &build.run {
            // It may call go itself, and is told what every run is told.
            let place = made.to_str().context("the cache's path is not UTF-8")?;
            let arguments = arguments.iter().map(|argument| argument.replace("{file}", place));
            run(Command::new(&program).current_dir(source).envs(SETTINGS).args(arguments))?;
        }
        if !made.is_file() {
            bail!("{} wrote no {}", build.package, build.file);
        }
        files.insert(build.file.clone(), store::keep(cache, &made)?);
    }
    store::remember(cache, key, &files)?;
    Ok(files)
}

/// Runs a command to its end.
fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("running {:?}", command.get_program()))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = [output.stderr, output.stdout].concat();
    let text = String::from_utf8_lossy(&text);
    let mut tail: Vec<&str> = text.lines().rev().take(TAIL).collect();
    tail.reverse();
    let args: Vec<String> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let program = command.get_program().to_string_lossy();
    bail!("{program} {} ended with {}: {}", args.join(" "), output.status, tail.join("\n"))
}
