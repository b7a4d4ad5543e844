//! The stages `mount` and `umount`: the config's file systems below the root, while the files are written.
//!
//! Where a file system is mounted later is for the config's units to say. Left out: SELinux labels.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail, ensure};
use rustix::mount::{UnmountFlags, unmount};

use super::Stage;
use super::disks::device::{self, Device};
use crate::command;
use crate::ignition::config::types::{Config, Filesystem};

/// How many links a path may lead through, as the kernel counts.
const LINKS: u32 = 40;
/// Permissions of directories that are made to mount at.
const DIRECTORY_MODE: u32 = 0o755;

/// Mounts the config's file systems below the root, parents first.
///
/// # Errors
/// When one cannot be mounted; those before it stay mounted.
pub(crate) fn mount(stage: &mut Stage<'_>, config: &Config) -> anyhow::Result<()> {
    let plan = mount_plan(config);
    let devices: Vec<PathBuf> = plan.iter().map(|(_, filesystem)| PathBuf::from(&filesystem.device)).collect();
    device::wait_for(&devices, device::PATIENCE, stage.log)?;
    for (path, filesystem) in plan {
        let (device, format) = (&filesystem.device, filesystem.format.as_deref().unwrap_or_default());
        let mut mount = || -> anyhow::Result<()> {
            let at = make_directory(stage.root, &path, &mut stage.state.made_directories)?;
            let device = Device::find(Path::new(device))?;
            let options = filesystem.mount_options.as_deref().unwrap_or_default().join(",");
            let at = at.to_str().with_context(|| format!("{} is not UTF-8", at.display()))?;
            let arguments = mount_arguments(&options, format, device.argument()?, at);
            stage.log.info(format_args!("running mount {}", arguments.join(" ")));
            command::run("mount", &arguments, b"", |code| code == 0)?;
            Ok(())
        };
        mount().with_context(|| format!("mounting {device} at {}", Path::new("/").join(&path).display()))?;
    }
    Ok(())
}

/// Unmounts them, children first.
///
/// # Errors
/// When one cannot be unmounted; those before it are.
pub(crate) fn umount(stage: &mut Stage<'_>, config: &Config) -> anyhow::Result<()> {
    for (path, filesystem) in mount_plan(config).into_iter().rev() {
        // It is there; so nothing is made.
        let at = make_directory(stage.root, &path, &mut Vec::new())?;
        stage.log.info(format_args!("unmounting {} from {}", filesystem.device, at.display()));
        unmount(&at, UnmountFlags::NOFOLLOW).with_context(|| format!("unmounting {}", at.display()))?;
    }
    Ok(())
}

/// What is mounted, in order: paths relative to the root, those with fewer components first.
fn mount_plan(config: &Config) -> Vec<(PathBuf, &Filesystem)> {
    let filesystems = config.storage.iter().flat_map(|storage| storage.filesystems.iter().flatten());
    let is_mounted = |format: &str| !matches!(format, "" | "none" | "swap");
    let mut plan: Vec<(PathBuf, &Filesystem)> = filesystems
        .filter(|filesystem| filesystem.format.as_deref().is_some_and(is_mounted))
        .filter_map(|filesystem| {
            let path = filesystem.path.as_deref().filter(|path| !path.is_empty())?;
            Some((relative(Path::new(path)), filesystem))
        })
        .collect();
    plan.sort_by_key(|(path, _)| path.components().count());
    plan
}

/// A path of the config relative to the root, without `.` and `..`.
fn relative(path: &Path) -> PathBuf {
    let mut result = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => result.push(name),
            Component::ParentDir => {
                result.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    result
}

/// A place below the root; an empty root is the system's own.
fn below(root: &Path, relative: &Path) -> PathBuf {
    let root = if root.as_os_str().is_empty() { Path::new("/") } else { root };
    // Joining nothing would add a slash.
    if relative.as_os_str().is_empty() { root.to_owned() } else { root.join(relative) }
}

fn mount_arguments<'a>(options: &'a str, format: &'a str, device: &'a str, at: &'a str) -> Vec<&'a str> {
    let options: &[&str] = if options.is_empty() { &[] } else { &["-o", options] };
    [options, &["-t", format, device, at]].concat()
}

/// Makes the directory to mount at and its parents where they are missing, and notes what was made, as the root sees
/// it. Links on the way, absolute or relative, stay within the root.
fn make_directory(root: &Path, path: &Path, made: &mut Vec<PathBuf>) -> anyhow::Result<PathBuf> {
    let top = below(root, Path::new(""));
    let mut left: Vec<OsString> = path.components().rev().map(|part| part.as_os_str().to_owned()).collect();
    let mut reached = PathBuf::new();
    let mut links = 0;
    while let Some(name) = left.pop() {
        if name == ".." {
            reached.pop();
            continue;
        }
        let place = below(root, &reached.join(&name));
        match fs::symlink_metadata(&place) {
            Ok(metadata) if metadata.is_dir() => reached.push(name),
            Ok(metadata) if metadata.is_symlink() => {
                links += 1;
                ensure!(links <= LINKS, "{} leads through more than {LINKS} links", top.join(path).display());
                let target = fs::read_link(&place).with_context(|| format!("reading {}", place.display()))?;
                if target.is_absolute() {
                    reached = PathBuf::new();
                }
                let steps =
                    target.components().rev().filter(|step| !matches!(step, Component::RootDir | Component::CurDir));
                left.extend(steps.map(|step| step.as_os_str().to_owned()));
            }
            Ok(_) => bail!("{} is there and no directory", place.display()),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let make = || {
                    DirBuilder::new().mode(DIRECTORY_MODE).create(&place)?;
                    // Whatever the process's mask says.
                    fs::set_permissions(&place, Permissions::from_mode(DIRECTORY_MODE))
                };
                make().with_context(|| format!("making the directory {}", place.display()))?;
                reached.push(name);
                made.push(Path::new("/").join(&reached));
            }
            Err(error) => return Err(error).with_context(|| format!("reading {}", place.display())),
        }
    }
    Ok(below(root, &reached))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ignition::config::types::Storage;

    fn filesystem(device: &str, format: Option<&str>, path: Option<&str>) -> Filesystem {
        Filesystem {
            format: format.map(str::to_owned),
            path: path.map(str::to_owned),
            ..Filesystem::new(device.to_owned())
        }
    }

    #[test]
    fn parents_are_mounted_first_and_others_not_at_all() {
        let filesystems = vec![
            filesystem("deep", Some("xfs"), Some("/var/lib/x")),
            filesystem("swap", Some("swap"), Some("/swap")),
            filesystem("none", Some("none"), Some("/none")),
            filesystem("no path", Some("xfs"), None),
            filesystem("empty path", Some("xfs"), Some("")),
            filesystem("no format", None, Some("/no-format")),
            filesystem("second", Some("ext4"), Some("/b/../var/./")),
            filesystem("root", Some("ext4"), Some("/")),
            filesystem("third", Some("vfat"), Some("/boot")),
        ];
        let storage = Storage { filesystems: Some(filesystems), ..Storage::default() };
        let config = Config { storage: Some(storage), ..Config::default() };
        let plan = mount_plan(&config);
        let plan: Vec<_> = plan.iter().map(|(path, found)| (path.to_str().expect("UTF-8"), &*found.device)).collect();
        assert_eq!(plan, [("", "root"), ("var", "second"), ("boot", "third"), ("var/lib/x", "deep")]);
        assert!(mount_plan(&Config::default()).is_empty());
    }

    #[test]
    fn paths_lie_below_the_root() {
        for (root, relative, expected) in [
            ("/sysroot", "var", "/sysroot/var"),
            ("", "var", "/var"),
            ("", "", "/"),
            ("/", "a/b", "/a/b"),
            ("/sysroot", "", "/sysroot"),
        ] {
            assert_eq!(below(Path::new(root), Path::new(relative)), Path::new(expected), "{root:?} {relative:?}");
        }
        assert_eq!(relative(Path::new("/../../etc")), Path::new("etc"));
    }

    #[test]
    fn arguments_are_exact() {
        assert_eq!(mount_arguments("", "xfs", "/dev/none", "/r/a"), ["-t", "xfs", "/dev/none", "/r/a"]);
        assert_eq!(
            mount_arguments("ro,subvol=x", "btrfs", "/dev/none", "/r"),
            ["-o", "ro,subvol=x", "-t", "btrfs", "/dev/none", "/r"]
        );
    }

    #[test]
    fn directories_are_made_and_links_stay_in_the_root() {
        let root = tempfile::tempdir().expect("tempdir");
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(target, root.path().join(name)).expect("link");
        };
        fs::create_dir(root.path().join("var")).expect("directory");
        fs::write(root.path().join("file"), "").expect("file");
        link("var/mnt", "mnt");
        link("/var", "absolute");
        link("../../..", "out");
        link("loop", "loop");
        link("file", "to-file");
        for (path, expected, made) in [
            ("a/b", "a/b", vec!["/a", "/a/b"]),
            ("a/b", "a/b", vec![]),
            ("mnt/data", "var/mnt/data", vec!["/var/mnt", "/var/mnt/data"]),
            ("absolute/x", "var/x", vec!["/var/x"]),
            ("out/a/c", "a/c", vec!["/a/c"]),
        ] {
            let mut noted = Vec::new();
            let at = make_directory(root.path(), Path::new(path), &mut noted).expect(path);
            assert_eq!(at, root.path().join(expected), "{path}");
            assert_eq!(noted, made.iter().map(PathBuf::from).collect::<Vec<_>>(), "{path}");
            let mode = fs::metadata(&at).expect("there").permissions().mode() & 0o7777;
            assert_eq!(mode, DIRECTORY_MODE, "{path}");
        }
        for path in ["file", "file/x", "to-file/x", "loop/x"] {
            assert!(make_directory(root.path(), Path::new(path), &mut Vec::new()).is_err(), "{path}");
        }
    }
}
