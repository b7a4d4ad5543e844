//! Programs of others that `boot` and the tests use: the user's own, else Debian's, unpacked into the cache.
//!
//! The host may be any distribution, so a program of the unpacked tree is started by the tree's own dynamic loader, as
//! ld.so(8) documents: `LOADER --library-path DIRS --argv0 NAME PROGRAM`. What a program would look up by a path
//! compiled into it (QEMU's firmware and modules) is given by its own options and variables. Left out: programs of the
//! tree that start other programs of the tree, and scripts.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use debian::deb::{Deb, Entry, Kind};
use debian::digest::Sha256;

use crate::cache::Cache;
use crate::glob::Dropped;
use crate::lock::{self, Lock, Pin, Supply};
use crate::parallel;
use crate::progress::Progress;
use crate::recipe::{self, Set, Wanted};

/// Where an ordinary user's `PATH` often does not lead, and file system tools live.
const ADMIN_DIRS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// Where the tree's programs look for what belongs to them, below the tree.
const ENVIRONMENT: [(&str, &str); 3] = [
    ("GCONV_PATH", "usr/lib/x86_64-linux-gnu/gconv"),
    ("MKE2FS_CONFIG", "etc/mke2fs.conf"),
    ("QEMU_MODULE_DIR", "usr/lib/x86_64-linux-gnu/qemu"),
];
/// What would mix libraries of the host in.
const HOST_LIBRARIES: [&str; 2] = ["LD_LIBRARY_PATH", "LD_PRELOAD"];
/// Changes whenever the same packages give another tree.
const TREE_VERSION: u32 = 4;
/// Top-level directories that a merged `/usr` makes links.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// Finds programs, and unpacks the tree of them when one is needed.
#[derive(Clone, Debug)]
pub struct Tools {
    images: Option<PathBuf>,
    cache: Cache,
    mirror: Option<String>,
    progress: Progress,
}

impl Tools {
    /// Tools of the recipes in `images`, or in the directory that [`recipe::find_images`] finds. Who has every program
    /// needs neither.
    #[must_use]
    pub fn new(images: Option<PathBuf>, cache: Cache, mirror: Option<String>, progress: Progress) -> Self {
        Self { images, cache, mirror, progress }
    }

    /// The command that runs `name`: the user's own, else the tree's. The caller adds arguments after those that are
    /// there.
    ///
    /// # Errors
    /// When neither has it.
    pub fn command(&self, name: &str) -> Result<Command> {
        match own_command(name) {
            Some(command) => Ok(command),
            None => tree_command(&self.root()?, name),
        }
    }

    /// A data file of the tree, such as a firmware image.
    ///
    /// # Errors
    /// When the tree does not have it.
    pub fn data(&self, path: &str) -> Result<PathBuf> {
        let found = self.root()?.join(path);
        if !found.exists() {
            bail!("the tools have no {path}");
        }
        Ok(found)
    }

    /// The tree, unpacked from the packages that the lock pins for it, once.
    ///
    /// # Errors
    /// When it cannot be fetched or unpacked.
    pub fn root(&self) -> Result<PathBuf> {
        if let Some(root) = env::var_os("NODEZERO_TOOLS").filter(|root| !root.is_empty()) {
            return Ok(root.into());
        }
        let images = recipe::find_images(self.images.as_deref())?;
        let set = Set::load_tools(&images)?;
        let lock = Lock::read(&images)?;
        let mut pins = lock.pins(lock::TOOLS, &Wanted::of(std::slice::from_ref(&set))?)?.packages;
        let mut key = format!("tools {TREE_VERSION}\n");
        for pin in &pins {
            key.push_str(&pin.sha256);
        }
        for rule in set.drops.iter().chain(&set.keeps) {
            key.push_str(&rule.glob.to_string());
        }
        let root = self.cache.path("tools", &Sha256::of(key.as_bytes()).to_string()[..16]);
        if root.is_dir() {
            return Ok(root);
        }
        self.progress.say("unpacking QEMU and other tools from Debian's packages, once");
        let supply = Supply::new(&images, self.cache.clone(), self.mirror.as_deref(), &lock, false)?;
        let all: Vec<usize> = (0..pins.len()).collect();
        supply.fetch(&mut pins, &all, false, &self.progress)?;
        let jobs: Vec<(&Pin, PathBuf)> = pins.iter().map(|pin| (pin, self.cache.path("debs", &pin.sha256))).collect();
        let temporary = self.cache.temporary_dir()?;
        for result in parallel::map(&jobs, |(pin, file)| extract(&set, pin, file, temporary.path())) {
            result?;
        }
        write_wrappers(temporary.path())?;
        let made = temporary.keep();
        match fs::rename(&made, &root) {
            Ok(()) => {}
            // Another run was faster: its tree is equal.
            Err(_) if root.is_dir() => {
                fs::remove_dir_all(&made).with_context(|| format!("removing {}", made.display()))?;
            }
            Err(error) => return Err(error).with_context(|| format!("writing {}", root.display())),
        }
        Ok(root)
    }
}

/// Unpacks one package's files, directories and links below `root`, with merged `/usr`.
fn extract(set: &Set, pin: &Pin, file: &Path, root: &Path) -> Result<()> {
    let title = format!("{} {}", pin.name, pin.version);
    let reader = std::io::BufReader::with_capacity(1 << 20, crate::cache::open(file)?);
    let deb = Deb::open(reader, &title)?;
    let dropped = Dropped::new(set.drops.iter().map(|rule| &rule.glob), set.keeps.iter().map(|rule| &rule.glob));
    let place = |path: &str| -> PathBuf {
        let top = path.split('/').next().unwrap_or_default();
        if MERGED.contains(&top) { root.join("usr").join(path) } else { root.join(path) }
    };
    let mut hardlinks = BTreeMap::new();
    deb.for_each(|entry: Entry, reader: &mut dyn Read| -> Result<()> {
        let path = &entry.path;
        if path.is_empty() || dropped.covers(path) {
            return Ok(());
        }
        let target = place(path);
        let writing = || format!("writing {}", target.display());
        match &entry.kind {
            Kind::Directory => fs::create_dir_all(&target).with_context(writing)?,
            Kind::File => {
                make_parent(&target)?;
                let mut out = fs::File::create(&target).with_context(writing)?;
                std::io::copy(reader, &mut out).with_context(writing)?;
                let mode = (entry.mode & 0o777) | 0o600;
                fs::set_permissions(&target, fs::Permissions::from_mode(mode)).with_context(writing)?;
            }
            Kind::Symlink { target: to } => {
                make_parent(&target)?;
                // An absolute link stays inside the tree.
                let to = to.strip_prefix('/').map_or_else(|| PathBuf::from(to), &place);
                if fs::symlink_metadata(&target).is_err() {
                    std::os::unix::fs::symlink(to, &target).with_context(writing)?;
                }
            }
            Kind::Hardlink { target: to } => {
                hardlinks.insert(target, place(to));
            }
            Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => {}
        }
        Ok(())
    })
    .with_context(|| format!("unpacking {title}"))?;
    for (path, to) in hardlinks {
        make_parent(&path)?;
        fs::hard_link(&to, &path).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Where the tree has a script for each program that runs it by the tree's loader, to be put into a `PATH`.
pub const WRAPPERS: &str = "wrappers";

/// Writes the scripts. What QEMU's machines need beside a loader, they get from [`tree_command`] alone.
fn write_wrappers(root: &Path) -> Result<()> {
    let dir = root.join(WRAPPERS);
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let unset: String = HOST_LIBRARIES.iter().map(|name| format!(" {name}")).collect();
    let export: String = ENVIRONMENT.iter().map(|(name, path)| format!(" {name}=\"$root/{path}\"")).collect();
    for bin in ["usr/bin", "usr/sbin"] {
        let Ok(entries) = fs::read_dir(root.join(bin)) else { continue };
        for entry in entries {
            let name = entry.with_context(|| format!("reading {bin}"))?.file_name();
            let Some(name) = name.to_str().filter(|name| !name.starts_with("qemu-system-") && *name != "kvm") else {
                continue;
            };
            let script = format!(
                "#!/bin/sh\nroot=$(dirname \"$(dirname \"$(readlink -f \"$0\")\")\")\n\
                 unset{unset}\nexport{export}\n\
                 exec \"$root/{LOADER}\" --library-path \"$root/{LIBRARIES}\" --argv0 {name} \"$root/{bin}/{name}\" \"$@\"\n"
            );
            let path = dir.join(name);
            fs::write(&path, script).with_context(|| format!("writing {}", path.display()))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
                .with_context(|| format!("writing {}", path.display()))?;
        }
    }
    Ok(())
}

fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().context("a path in a tree has a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))
}

/// The command that runs the program `name` of the tree at `root`.
///
/// # Errors
/// When the tree has no such program, or no loader.
pub fn tree_command(root: &Path, name: &str) -> Result<Command> {
    let loader = root.join(LOADER);
    if !loader.exists() {
        bail!("no dynamic loader in the tools tree {}", root.display());
    }
    let libraries = root.join(LIBRARIES);
    let programs = ["usr/bin", "usr/sbin"].map(|dir| root.join(dir).join(name));
    let Some(program) = programs.into_iter().find(|path| path.exists()) else {
        bail!("no {name} in PATH, nor in the tools tree {}", root.display());
    };
    let mut command = Command::new(loader);
    command.arg("--library-path").arg(&libraries).args(["--argv0", name]).arg(program);
    for name in HOST_LIBRARIES {
        command.env_remove(name);
    }
    command.envs(ENVIRONMENT.map(|(name, path)| (name, root.join(path))));
    if name.starts_with("qemu-system-") {
        for dir in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(root.join(dir));
        }
    }
    Ok(command)
}

/// The command that runs the user's own program `name`, if there is one.
#[must_use]
pub fn own_command(name: &str) -> Option<Command> {
    in_path(name, &search_path()).map(Command::new)
}

fn search_path() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).chain(ADMIN_DIRS.iter().map(PathBuf::from)).collect()
}

fn in_path(name: &str, dirs: &[PathBuf]) -> Option<PathBuf> {
    dirs.iter().filter(|dir| dir.is_absolute()).map(|dir| dir.join(name)).find(|program| {
        program.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: &Path, mode: u32) {
        fs::create_dir_all(path.parent().expect("it has one")).expect("a temporary directory can be written");
        fs::write(path, "").expect("a temporary directory can be written");
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
    }

    #[test]
    fn path_is_searched_in_order_for_what_can_run() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
        touch(&one.join("text"), 0o644);
        touch(&two.join("text"), 0o755);
        touch(&one.join("tool"), 0o755);
        touch(&two.join("tool"), 0o755);
        fs::create_dir(one.join("folder")).expect("a temporary directory can be written");
        let dirs = [PathBuf::from("relative"), one.clone(), two.clone()];
        for (name, expected) in
            [("text", Some(two.join("text"))), ("tool", Some(one.join("tool"))), ("folder", None), ("none", None)]
        {
            assert_eq!(in_path(name, &dirs), expected, "{name}");
        }
    }

    #[test]
    fn programs_of_the_tree_run_by_its_loader() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = dir.path();
        assert!(tree_command(root, "qemu-img").is_err(), "a tree without a loader");
        touch(&root.join(LOADER), 0o755);
        touch(&root.join("usr/sbin/qemu-system-x86_64"), 0o755);
        let error = tree_command(root, "mcopy").expect_err("it is not there").to_string();
        assert!(error.contains("no mcopy in PATH"), "{error}");

        let command = tree_command(root, "qemu-system-x86_64").expect("it is there");
        assert_eq!(command.get_program(), root.join(LOADER));
        let at = |path: &str| root.join(path).into_os_string();
        let expected = [
            "--library-path".into(),
            at(LIBRARIES),
            "--argv0".into(),
            "qemu-system-x86_64".into(),
            at("usr/sbin/qemu-system-x86_64"),
            "-L".into(),
            at("usr/share/qemu"),
            "-L".into(),
            at("usr/share/seabios"),
        ];
        assert_eq!(command.get_args().collect::<Vec<_>>(), expected);
        let modules = command.get_envs().find(|(name, _)| *name == "QEMU_MODULE_DIR").and_then(|(_, value)| value);
        assert_eq!(modules, Some(at("usr/lib/x86_64-linux-gnu/qemu").as_os_str()));
    }
    #[test]
    fn wrappers_run_all_but_the_machines_by_the_loader() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = dir.path();
        let echo = "#!/bin/sh\necho \"$@\" \"$QEMU_MODULE_DIR\" \"$GCONV_PATH\" \"${LD_PRELOAD-unset}\"\n";
        touch(&root.join(LOADER), 0o755);
        fs::write(root.join(LOADER), echo).expect("a temporary directory can be written");
        for name in ["usr/bin/qemu-img", "usr/bin/qemu-system-x86_64", "usr/bin/kvm", "usr/sbin/sfdisk"] {
            touch(&root.join(name), 0o755);
        }
        write_wrappers(root).expect("a temporary directory can be written");
        let entries = fs::read_dir(root.join(WRAPPERS)).expect("it was made");
        let mut names: Vec<_> = entries.map(|entry| entry.expect("it can be read").file_name()).collect();
        names.sort();
        assert_eq!(names, ["qemu-img", "sfdisk"]);

        let output = Command::new(root.join(WRAPPERS).join("qemu-img")).arg("a b").env("LD_PRELOAD", "").output();
        let said = String::from_utf8(output.expect("it runs").stdout).expect("text");
        let at = |path: &str| root.canonicalize().expect("it is there").join(path).display().to_string();
        let expected = format!(
            "--library-path {} --argv0 qemu-img {} a b {} {} unset\n",
            at(LIBRARIES),
            at("usr/bin/qemu-img"),
            at("usr/lib/x86_64-linux-gnu/qemu"),
            at("usr/lib/x86_64-linux-gnu/gconv")
        );
        assert_eq!(said, expected);
    }
}
