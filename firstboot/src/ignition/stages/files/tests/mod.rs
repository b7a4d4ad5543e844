//! Cases of the form "tree before, config, tree after". Each that ends well is applied twice: the second time changes
//! nothing.
//!
//! A tree is written as lines `f MODE PATH CONTENT`, `d MODE PATH`, `l PATH TARGET`; what belongs to somebody else than
//! who runs the tests ends in ` @UID:GID`. Directories of mode 755 with something in them are left out.

mod accounts;
mod entries;
mod system;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Output;

use rustix::process::geteuid;
use tempfile::TempDir;

use super::keys::Destination;
use super::*;
use crate::ignition::config::types::Ignition;
use crate::ignition::stages::{Fetched, State};

/// A tree, and what the stage is told beside the config.
struct World {
    directory: TempDir,
    keys: Destination,
    state: State,
}

impl World {
    /// In memory where possible: the stage flushes each file.
    fn new(before: &[&str]) -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        fs::create_dir(directory.path().join("etc")).expect("etc");
        let world = Self { directory, keys: Destination::Fragment, state: State::default() };
        before.iter().for_each(|line| world.lay(line));
        world
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path.trim_start_matches('/'))
    }

    /// Lays one line of a tree; also `h PATH TARGET` for another name.
    fn lay(&self, line: &str) {
        let parts: Vec<&str> = line.splitn(4, ' ').collect();
        let place = |path: &str| {
            let path = self.path(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect(line);
            path
        };
        let set_mode = |path: &Path, mode: &str| {
            let mode = u32::from_str_radix(mode, 8).expect(line);
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect(line);
        };
        match parts[..] {
            ["f", mode, path] => self.lay(&format!("f {mode} {path} ")),
            ["f", mode, path, content] => {
                fs::write(place(path), content).expect(line);
                set_mode(&place(path), mode);
            }
            ["d", mode, path] => {
                fs::create_dir_all(place(path)).expect(line);
                set_mode(&place(path), mode);
            }
            ["l", path, target] => symlink(target, place(path)).expect(line),
            ["h", path, target] => fs::hard_link(self.path(target), place(path)).expect(line),
            _ => panic!("{line}"),
        }
    }

    /// The tree as lines, sorted by path.
    fn dump(&self) -> Vec<String> {
        let mut lines = Vec::new();
        self.dump_below(self.directory.path(), &mut lines);
        lines
    }

    fn dump_below(&self, directory: &Path, lines: &mut Vec<String>) {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(directory).expect("listed").map(|e| e.expect("entry").path()).collect();
        paths.sort();
        for path in paths {
            let facts = path.symlink_metadata().expect("there");
            let shown = format!("/{}", path.strip_prefix(self.directory.path()).expect("below").display());
            let mode = facts.mode() & 0o7777;
            let mut line = if facts.is_symlink() {
                format!("l {shown} {}", fs::read_link(&path).expect("link").display())
            } else if facts.is_dir() {
                format!("d {mode:o} {shown}")
            } else {
                format!("f {mode:o} {shown} {}", fs::read_to_string(&path).expect("text"))
            };
            if facts.uid() != geteuid().as_raw() || facts.gid() != rustix::process::getegid().as_raw() {
                line += &format!(" @{}:{}", facts.uid(), facts.gid());
            }
            let empty = facts.is_dir() && fs::read_dir(&path).expect("listed").next().is_none();
            if !line.starts_with("d 755 ") || line.contains('@') || (empty && shown != "/etc") {
                lines.push(line);
            }
            if facts.is_dir() {
                self.dump_below(&path, lines);
            }
        }
    }

    /// Applies a config, given as the members of its JSON object.
    fn apply(&self, config: &str, run: &Run<'_>) -> Result<(), String> {
        let config = parse(config);
        let fetcher = Fetcher::new(&Ignition::default(), None, Log::Stdout).expect("a fetcher");
        let site = Site {
            tree: Tree::open(self.directory.path()).expect("root"),
            fetcher: &fetcher,
            log: Log::Stdout,
            keys: self.keys,
            made_directories: &self.state.made_directories,
            run,
        };
        apply(&site, &config, &self.state.luks_key_files).map_err(|error| format!("{error:#}"))
    }
}

fn parse(config: &str) -> Config {
    let text = format!(r#"{{"ignition":{{"version":"3.6.0"}},{config}}}"#);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{config}: {error}"))
}

/// No program may be run.
fn none(program: &str, _: &[&str]) -> Result<Output, CommandError> {
    panic!("{program} was run")
}

/// Name, tree before, config, tree after.
type Good<'a> = (&'a str, &'a [&'a str], &'a str, &'a [&'a str]);

/// Name, tree before, config, what the error says.
type Bad<'a> = (&'a str, &'a [&'a str], &'a str, &'a str);

fn check_good(cases: &[Good<'_>]) {
    for (name, before, config, after) in cases {
        let world = World::new(before);
        for time in ["first", "second"] {
            world.apply(config, &none).unwrap_or_else(|error| panic!("{name}, {time} time: {error}"));
            assert_eq!(world.dump(), *after, "{name}, {time} time");
        }
    }
}

fn check_bad(cases: &[Bad<'_>]) {
    for (name, before, config, message) in cases {
        let world = World::new(before);
        let tree = world.dump();
        let error = world.apply(config, &none).expect_err(name);
        assert!(error.contains(message), "{name}: {error}");
        assert_eq!(world.dump(), tree, "{name}");
    }
}

/// Whether the tests may change owners; says so where they may not.
fn is_root(test: &str) -> bool {
    let root = geteuid().is_root();
    if !root {
        println!("{test} is skipped: only root may change owners");
    }
    root
}
