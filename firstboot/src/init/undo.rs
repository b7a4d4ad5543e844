//! Taking back what an earlier application of a configuration made, so that the next one finds what a new machine
//! has, and what has become data since.
//!
//! Everything here works on `state`, before `/etc` and `/var` are mounted from it. Left out: what the stage `disks` wrote
//! outside of `state`, which is compared with the config again.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::provision::hex;
use super::record::Record;
use crate::ignition::config::types;

/// Where the record is, within `state`.
const IDENTITY: &str = "nodezero";

/// Directories of the new root, but for `/etc`, that a configuration may write to: they all lie in `/var`.
const WRITABLE: [&str; 8] = ["var", "home", "root", "opt", "srv", "mnt", "media", "usr/local"];

/// What stays in `/etc` when a configuration takes another's place: keys and names by which others know this machine,
/// and accounts that are half made, which the next attempt takes back.
const KEPT: [&str; 8] = [
    "ssh/ssh_host_ed25519_key",
    "ssh/ssh_host_ed25519_key.pub",
    "luks",
    "iscsi/initiatorname.iscsi",
    "rancher/node",
    "machine-id",
    ".ignition-accounts",
    ".pwd.lock",
];

/// Writes the new record, and takes back what an earlier application made: all of `/etc` but [`KEPT`], and of `/var`
/// either everything, when the system has never run, or what is still as it was made.
pub(super) fn begin(
    state: &Path,
    config: &types::Config,
    earlier: Option<Record>,
    mut record: Record,
) -> anyhow::Result<Record> {
    let earlier = earlier.map(|record| record.made).unwrap_or_default();
    for (path, made) in earlier {
        // What something else has changed since is data, and no longer ours to take back.
        let found = digest(state, &path)?;
        if made.is_none() || found.is_none() || found == made {
            record.made.insert(path, None);
        }
    }
    for path in paths(config).into_iter().filter(|path| !path.starts_with("/etc")) {
        if digest(state, &path)?.is_none() {
            record.made.insert(path, None);
        }
    }
    record.write(&state.join(IDENTITY))?;
    reset_etc(&state.join("etc"))?;
    if record.first {
        empty(&state.join("var"))?;
    } else {
        record.made.keys().try_for_each(|path| remove(state, path))?;
    }
    // The image's own part of /var is laid in again.
    let marker = state.join(IDENTITY).join("factory-var");
    if marker.exists() {
        fs::remove_file(&marker).with_context(|| format!("removing {}", marker.display()))?;
    }
    rustix::fs::sync();
    Ok(record)
}

/// Empties the upper layer of `/etc` but for [`KEPT`], which wait aside meanwhile: whatever is found there was put there
/// by an attempt that was cut short.
fn reset_etc(etc: &Path) -> anyhow::Result<()> {
    let (upper, aside) = (etc.join("upper"), etc.join("kept"));
    fs::create_dir_all(&aside).with_context(|| format!("making {}", aside.display()))?;
    let carry = |from: &Path, to: &Path| -> anyhow::Result<()> {
        for name in KEPT {
            let (source, target) = (from.join(name), to.join(name));
            if fs::symlink_metadata(&source).is_err() || fs::symlink_metadata(&target).is_ok() {
                continue;
            }
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
            }
            fs::rename(&source, &target).with_context(|| format!("keeping {}", source.display()))?;
        }
        rustix::fs::sync();
        Ok(())
    };
    carry(&upper, &aside)?;
    empty(&upper)?;
    empty(&etc.join("work"))?;
    carry(&aside, &upper)?;
    fs::remove_dir_all(&aside).with_context(|| format!("removing {}", aside.display()))
}

/// Files and links of a configuration, and its users' keys.
fn paths(config: &types::Config) -> BTreeSet<PathBuf> {
    let storage = config.storage.iter();
    let files =
        storage.clone().flat_map(|storage| storage.files.iter().flatten()).map(|file| PathBuf::from(&file.path));
    let links = storage.flat_map(|storage| storage.links.iter().flatten()).map(|link| PathBuf::from(&link.path));
    // A key that a later configuration takes away must not stay.
    let users = config.passwd.iter().flat_map(|passwd| passwd.users.iter().flatten());
    let keys =
        users.filter(|user| user.ssh_authorized_keys.as_ref().is_some_and(|keys| !keys.is_empty())).map(|user| {
            let home = match (&user.home_dir, user.name.as_str()) {
                (Some(home), _) if !home.is_empty() => PathBuf::from(home),
                (_, "root") => PathBuf::from("/root"),
                (_, name) => Path::new("/home").join(name),
            };
            home.join(".ssh/authorized_keys.d/ignition")
        });
    files.chain(links).chain(keys).collect()
}

/// Removes everything below a directory, which stays.
fn empty(directory: &Path) -> anyhow::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("listing {}", directory.display())),
    };
    for entry in entries {
        let path = entry.with_context(|| format!("listing {}", directory.display()))?.path();
        let directory = fs::symlink_metadata(&path)?.is_dir();
        let removed = if directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

/// The part of the new root that a path lies in, seen from `state`, on which neither `/etc` nor `/var` is mounted yet:
/// the top-level links of the image lead into `/var`.
fn on_state(path: &Path) -> Option<PathBuf> {
    let path = path.strip_prefix("/").ok()?;
    let top = WRITABLE.iter().find(|top| path.starts_with(top))?;
    let rest = path.strip_prefix(top).ok()?;
    let place = match *top {
        "var" => PathBuf::from("var"),
        "root" => PathBuf::from("var/roothome"),
        "usr/local" => PathBuf::from("var/usrlocal"),
        top => Path::new("var").join(top),
    };
    Some(place.join(rest))
}

/// The directory that a path lies in, and its name there. Links never lead out of `state`.
fn parent(state: &Path, path: &Path) -> Option<(OwnedFd, PathBuf)> {
    let place = on_state(path)?;
    let (directory, name) = (place.parent()?, place.file_name()?);
    let state = File::open(state).ok()?;
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat2(&state, directory, flags, Mode::empty(), ResolveFlags::BENEATH).ok()?;
    Some((opened, name.into()))
}

/// A digest of a file's content or a link's target; `None` where there is neither.
///
/// # Errors
/// When it is there and cannot be read.
pub(super) fn digest(state: &Path, path: &Path) -> anyhow::Result<Option<String>> {
    let Some((directory, name)) = parent(state, path) else { return Ok(None) };
    let reading = || format!("reading {}", path.display());
    match rustix::fs::readlinkat(&directory, &name, Vec::new()) {
        Ok(target) => return Ok(Some(format!("link {}", hex(&Sha256::digest(target.as_bytes()))))),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        // No link.
        Err(Errno::INVAL) => {}
        Err(error) => return Err(error).with_context(reading),
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mut file = File::from(rustix::fs::openat(&directory, &name, flags, Mode::empty()).with_context(reading)?);
    if file.metadata().with_context(reading)?.is_dir() {
        return Ok(Some("directory".to_owned()));
    }
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer).with_context(reading)? {
            0 => return Ok(Some(format!("file {}", hex(&hash.finalize())))),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// Removes a file or link, if it is there.
fn remove(state: &Path, path: &Path) -> anyhow::Result<()> {
    let Some((directory, name)) = parent(state, path) else { return Ok(()) };
    match rustix::fs::unlinkat(&directory, &name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("removing {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::ConfigOrigin;
    use crate::init::record::Progress;

    #[test]
    fn paths_are_found_on_state_whatever_link_leads_there() {
        for (path, expected) in [
            ("/var/lib/x", Some("var/lib/x")),
            ("/root/.profile", Some("var/roothome/.profile")),
            ("/home/core/.ssh/authorized_keys", Some("var/home/core/.ssh/authorized_keys")),
            ("/usr/local/bin/tool", Some("var/usrlocal/bin/tool")),
            ("/mnt/a", Some("var/mnt/a")),
            ("/etc/hostname", None),
            ("/usr/lib/x", None),
            ("/various", None),
        ] {
            assert_eq!(on_state(Path::new(path)), expected.map(PathBuf::from), "{path}");
        }
    }

    #[test]
    fn emptying_keeps_the_directory_and_follows_no_link() {
        let root = tempfile::tempdir().expect("tempdir");
        let (upper, other) = (root.path().join("upper"), root.path().join("other"));
        fs::create_dir_all(upper.join("a/b")).expect("directory");
        fs::create_dir(&other).expect("directory");
        fs::write(other.join("file"), "").expect("file");
        std::os::unix::fs::symlink(&other, upper.join("link")).expect("link");
        empty(&upper).expect("emptied");
        assert_eq!(fs::read_dir(&upper).expect("listed").count(), 0);
        assert!(other.join("file").exists());
        empty(&root.path().join("none")).expect("what is not there is empty");
    }

    /// Every file and link below a directory, with its content or target, sorted; empty directories end in a slash.
    fn listing(top: &Path) -> Vec<String> {
        fn walk(top: &Path, at: &Path, found: &mut Vec<String>) {
            let mut entries: Vec<_> =
                fs::read_dir(at).expect("listed").map(|entry| entry.expect("entry").path()).collect();
            entries.sort();
            if entries.is_empty() && at != top {
                found.push(format!("{}/", at.strip_prefix(top).expect("below").display()));
            }
            for path in entries {
                let name = path.strip_prefix(top).expect("below").display().to_string();
                if let Ok(target) = fs::read_link(&path) {
                    found.push(format!("{name} -> {}", target.display()));
                } else if path.is_dir() {
                    walk(top, &path, found);
                } else {
                    found.push(format!("{name}={}", fs::read_to_string(&path).expect("text")));
                }
            }
        }
        let mut found = Vec::new();
        walk(top, top, &mut found);
        found
    }

    /// Makes what [`listing`] lists.
    fn lay_out(top: &Path, lines: &[&str]) {
        for line in lines {
            if let Some(directory) = line.strip_suffix('/') {
                fs::create_dir_all(top.join(directory)).expect("directory");
                continue;
            }
            let (name, link, content) = match line.split_once(" -> ") {
                Some((name, target)) => (name, true, target),
                None => line.split_once('=').map(|(name, content)| (name, false, content)).expect("a line"),
            };
            let path = top.join(name);
            fs::create_dir_all(path.parent().expect("parent")).expect("directory");
            if link {
                std::os::unix::fs::symlink(content, path).expect("link");
            } else {
                fs::write(path, content).expect("file");
            }
        }
    }

    #[test]
    fn etc_begins_anew_but_for_what_others_know_the_machine_by() {
        for (case, before, after) in [
            ("nothing there", vec![], vec!["work/"]),
            (
                "an earlier configuration",
                vec!["upper/hostname=a", "upper/ssh/sshd_config=b", "upper/machine-id=1", "work/work/x=c"],
                vec!["upper/machine-id=1", "work/"],
            ),
            (
                "keys, in directories with other files",
                vec![
                    "upper/ssh/ssh_host_ed25519_key=k",
                    "upper/ssh/moduli=m",
                    "upper/luks/vault=s",
                    "upper/luks.d/x=y",
                ],
                vec!["upper/luks/vault=s", "upper/ssh/ssh_host_ed25519_key=k", "work/"],
            ),
            (
                "cut off while they were put aside",
                vec!["upper/machine-id=1", "upper/other=x", "kept/luks/vault=s", "kept/ssh/ssh_host_ed25519_key=k"],
                vec!["upper/luks/vault=s", "upper/machine-id=1", "upper/ssh/ssh_host_ed25519_key=k", "work/"],
            ),
            (
                "cut off while they were put back: what lies aside is the older one of two",
                vec!["upper/machine-id=1", "kept/luks/vault=s"],
                vec!["upper/luks/vault=s", "upper/machine-id=1", "work/"],
            ),
            (
                "links are removed, not followed",
                vec!["outside/file=x", "upper/link -> ../outside", "upper/luks -> ../outside"],
                vec!["outside/file=x", "upper/luks -> ../outside", "work/"],
            ),
        ] {
            let etc = tempfile::tempdir().expect("tempdir");
            lay_out(etc.path(), &before);
            fs::create_dir_all(etc.path().join("work")).expect("directory");
            fs::create_dir_all(etc.path().join("upper")).expect("directory");
            reset_etc(etc.path()).unwrap_or_else(|error| panic!("{case}: {error:#}"));
            let after: Vec<&str> = if after == ["work/"] { vec!["upper/", "work/"] } else { after };
            assert_eq!(listing(etc.path()), after, "{case}");
            reset_etc(etc.path()).expect("again");
            assert_eq!(listing(etc.path()), after, "{case}: a second time changes nothing");
        }
    }

    fn config(paths: &[&str]) -> types::Config {
        let files: Vec<_> = paths.iter().map(|path| serde_json::json!({ "path": path })).collect();
        serde_json::from_value(serde_json::json!({ "ignition": { "version": "3.5.0" }, "storage": { "files": files } }))
            .expect("a config")
    }

    /// A record that says of these files that they were made, with a digest of the content given; `None`: of none yet.
    fn record(first: bool, made: &[(&str, Option<&str>)]) -> Record {
        let digest = |content: &str| format!("file {}", hex(&Sha256::digest(content)));
        Record {
            progress: Progress::Begun,
            sha256: String::new(),
            origin: ConfigOrigin::None,
            first,
            made: made.iter().map(|(path, content)| (PathBuf::from(path), content.map(digest))).collect(),
        }
    }

    /// A case: what it is, the earlier record, the paths of the new configuration, `var` before and after, and what is
    /// then recorded as ours.
    type Case = (
        &'static str,
        Option<Record>,
        bool,
        &'static [&'static str],
        &'static [&'static str],
        &'static [&'static str],
        &'static [&'static str],
    );

    #[test]
    fn what_was_made_goes_and_what_became_data_stays() {
        let cases: [Case; 6] = [
            ("a new machine", None, true, &["/var/a", "/etc/b"], &[], &[], &["/var/a"]),
            ("what the image laid in goes, too, and is laid in again", None, true, &[], &["lib/x=1"], &[], &[]),
            (
                "a first application that was cut off",
                Some(record(true, &[("/var/a", None)])),
                true,
                &["/var/a", "/var/b"],
                &["a=half", "log/x=1"],
                &[],
                &["/var/a", "/var/b"],
            ),
            (
                "another configuration: as it was made, changed since, gone since, and never ours",
                Some(record(false, &[("/var/a", Some("A")), ("/var/b", Some("B")), ("/var/c", Some("C"))])),
                false,
                &["/root/key"],
                &["a=A", "b=changed", "log/x=1"],
                &["b=changed", "log/x=1"],
                &["/root/key", "/var/a", "/var/c"],
            ),
            (
                "another configuration with a path that holds data",
                Some(record(false, &[])),
                false,
                &["/var/lib/app/data"],
                &["lib/app/data=theirs"],
                &["lib/app/data=theirs"],
                &[],
            ),
            (
                "a link that leads elsewhere is taken back, and not what it leads to",
                Some(record(false, &[("/var/link", None), ("/opt/tool", Some("T"))])),
                false,
                &[],
                &["data/x=1", "link -> data/x", "opt/tool=T"],
                &["data/x=1", "opt/"],
                &["/opt/tool", "/var/link"],
            ),
        ];
        for (case, earlier, first, paths, before, after, made) in cases {
            let state = tempfile::tempdir().expect("tempdir");
            let var = state.path().join("var");
            fs::create_dir_all(&var).expect("directory");
            lay_out(&var, before);
            lay_out(state.path(), &["etc/upper/hostname=old", "etc/work/", "nodezero/factory-var=1"]);
            let new = record(first, &[]);
            let written = begin(state.path(), &config(paths), earlier, new).unwrap_or_else(|e| panic!("{case}: {e:#}"));
            assert_eq!(listing(&var), after, "{case}");
            let ours: Vec<String> = written.made.keys().map(|path| path.display().to_string()).collect();
            assert_eq!(ours, made, "{case}");
            assert!(written.made.values().all(Option::is_none), "{case}: nothing is made yet");
            assert_eq!(
                Record::read(&state.path().join(IDENTITY)).expect("read"),
                Some(written),
                "{case}: it is on disk"
            );
            assert_eq!(listing(&state.path().join("etc")), ["upper/", "work/"], "{case}");
            assert!(!state.path().join("nodezero/factory-var").exists(), "{case}: /var is filled from the image again");
        }
    }
}
