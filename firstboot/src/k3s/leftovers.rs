//! What an interrupted start may leave of K3s' own files.
//!
//! K3s, containerd and the kubelet write most of their small files without flushing them. After a power cut such a file is
//! there and empty, and that is worse than none: a node with an empty password is refused for ever, since the password
//! that the cluster knows is lost; an empty key, certificate or program is used as if it were one.
//!
//! So the node's password is made here, durably, before K3s looks for it, and so is the name of the iSCSI initiator, which
//! Longhorn's volumes are attached by and which iscsid's start would make as carelessly; empty files where K3s makes none are removed,
//! as K3s makes anew what is missing; and until a node was Ready once and all it wrote is on the disk, what its first
//! starts unpacked begins anew at the next.
//!
//! Documents: [node passwords](https://docs.k3s.io/architecture#how-agent-node-registration-works). Where K3s keeps what
//! is its source's word (`pkg/agent/config`, `pkg/cli/cmds`, `cmd/k3s` of `k3s-io/k3s`).

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::files::{read_bounded, write_atomically};

/// The node's password: K3s makes one of 16 random bytes in hexadecimal where there is none.
const PASSWORD: &str = "etc/rancher/node/password";
const PASSWORD_BYTES: usize = 16;
/// The largest of these two files that is read, in bytes.
const FILE_LIMIT: u64 = 4096;
/// The initiator's name: the image has a file that asks for one. [iscsi-iname(8)] makes it of this prefix and random digits.
///
/// [iscsi-iname(8)]: https://manpages.debian.org/trixie/open-iscsi/iscsi-iname.8.en.html
const INITIATOR: &str = "etc/iscsi/initiatorname.iscsi";
const INITIATOR_PREFIX: &str = "iqn.1993-08.org.debian:01:";
const INITIATOR_BYTES: usize = 6;
/// The program, which unpacks others.
const PROGRAM: &str = "usr/bin/k3s";
/// Where it unpacks them: each program into a directory whose name is a digest of 64 hexadecimal digits. Plugins of others
/// may lie beside these.
const UNPACKED: &str = "var/lib/rancher/k3s/data";
const DIGEST_DIGITS: usize = 64;
/// containerd's images and their files.
const IMAGES: &str = "var/lib/rancher/k3s/agent/containerd";
/// Directories whose files are never empty, and whether that holds below them, too. Beside the agent's own lie images and
/// templates, which are the operator's.
const NEVER_EMPTY: [(&str, bool); 5] = [
    ("var/lib/rancher/k3s/agent", false),
    ("var/lib/rancher/k3s/agent/etc/cni", true),
    ("var/lib/rancher/k3s/server", false),
    ("var/lib/rancher/k3s/server/cred", true),
    ("var/lib/rancher/k3s/server/tls", true),
];

/// Makes the node's password, if there is none. Whether it did.
///
/// # Errors
/// When it cannot be read or written.
pub(super) fn ensure_password(root: &Path) -> anyhow::Result<bool> {
    let path = root.join(PASSWORD);
    let known = match fs::symlink_metadata(&path) {
        Ok(_) => read_bounded(&path, FILE_LIMIT)?.iter().any(|byte| !byte.is_ascii_whitespace()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error).with_context(|| format!("looking at {}", path.display())),
    };
    if known {
        return Ok(false);
    }
    let text = format!("{}\n", random_digits::<PASSWORD_BYTES>()?);
    let directory = path.parent().expect("it has one");
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    write_atomically(&path, text.as_bytes(), 0o600)?;
    Ok(true)
}

/// Makes the name of the iSCSI initiator, where the image has one and nobody has named it. Whether it did.
///
/// # Errors
/// When its file cannot be read or written.
pub(super) fn ensure_initiator(root: &Path) -> anyhow::Result<bool> {
    let path = root.join(INITIATOR);
    if !path.exists() {
        return Ok(false);
    }
    let text = String::from_utf8_lossy(&read_bounded(&path, FILE_LIMIT)?).into_owned();
    let is_named = |line: &str| line.trim_start().strip_prefix("InitiatorName=").is_some_and(|name| !name.is_empty());
    if text.lines().any(is_named) {
        return Ok(false);
    }
    let name = format!("InitiatorName={INITIATOR_PREFIX}{}\n", random_digits::<INITIATOR_BYTES>()?);
    write_atomically(&path, name.as_bytes(), 0o600)?;
    Ok(true)
}

/// So many random bytes in hexadecimal.
fn random_digits<const BYTES: usize>() -> anyhow::Result<String> {
    let mut random = [0; BYTES];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random)).context("reading random numbers")?;
    Ok(random.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

/// What tells K3s' program from that of another image: its size and time.
///
/// # Errors
/// When there is none.
pub(super) fn program(root: &Path) -> anyhow::Result<String> {
    let path = root.join(PROGRAM);
    let metadata = fs::metadata(&path).with_context(|| format!("looking at {}", path.display()))?;
    Ok(format!("{} {}", metadata.size(), metadata.mtime()))
}

/// What cannot be relied on, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leftover {
    path: PathBuf,
    why: &'static str,
}

impl Leftover {
    /// A line about it, with the path as the machine below `root` has it.
    pub(super) fn line(&self, root: &Path) -> String {
        let path = Path::new("/").join(self.path.strip_prefix(root).unwrap_or(&self.path));
        format!("{} is removed, to be made anew: {}", path.display(), self.why)
    }

    /// Removes it.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub(super) fn remove(&self) -> anyhow::Result<()> {
        let path = &self.path;
        let is_directory = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
        match if is_directory { fs::remove_dir_all(path) } else { fs::remove_file(path) } {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done.with_context(|| format!("removing {}", path.display())),
        }
    }
}

/// Finds what cannot be relied on, while K3s does not run; `settled` is the [`program`] with which all that was written is
/// known to be on the disk. Changes nothing.
///
/// # Errors
/// When a directory cannot be listed.
pub(super) fn find(root: &Path, settled: Option<&str>) -> anyhow::Result<Vec<Leftover>> {
    let mut anew = Vec::new();
    if settled.is_none() && root.join(IMAGES).exists() {
        anew.push(root.join(IMAGES));
    }
    if settled != Some(program(root)?.as_str()) {
        anew.extend(unpacked(&root.join(UNPACKED))?);
    }
    let of = |why| move |path| Leftover { path, why };
    let mut found: Vec<Leftover> = anew.into_iter().map(of("an earlier start was interrupted")).collect();
    for (place, below) in NEVER_EMPTY {
        found.extend(empty_files(&root.join(place), below)?.into_iter().map(of("a power cut left it empty")));
    }
    Ok(found)
}

/// The directories that K3s unpacks itself into.
fn unpacked(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let is_digest = |name: &str| name.len() == DIGEST_DIGITS && name.chars().all(|c| c.is_ascii_hexdigit());
    let names = list(directory)?.into_iter().filter(|entry| is_digest(&entry.file_name().to_string_lossy()));
    Ok(names.map(|entry| entry.path()).collect())
}

/// What is in a directory; nothing, where there is none.
fn list(directory: &Path) -> anyhow::Result<Vec<fs::DirEntry>> {
    let listed: io::Result<Vec<_>> = fs::read_dir(directory).and_then(Iterator::collect);
    match listed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.with_context(|| format!("listing {}", directory.display())),
    }
}

/// The empty files of a directory, sorted; with those `below` it. Links are not followed.
fn empty_files(directory: &Path, below: bool) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in list(directory)? {
        let metadata = entry.metadata().with_context(|| format!("looking at {}", entry.path().display()))?;
        if metadata.is_file() && metadata.len() == 0 {
            found.push(entry.path());
        } else if below && metadata.is_dir() {
            found.extend(empty_files(&entry.path(), below)?);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("tempdir");
        write(root.path(), PROGRAM, "a program");
        root
    }

    /// Removes what is found, and gives the lines about it.
    fn clear(root: &Path, settled: Option<&str>) -> Vec<String> {
        let found = find(root, settled).expect("listed");
        assert_eq!(find(root, settled).expect("listed"), found, "looking changes nothing");
        found.iter().for_each(|leftover| leftover.remove().expect("removed"));
        found.iter().map(|leftover| leftover.line(root)).collect()
    }

    fn write(root: &Path, path: &str, content: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("has one")).expect("made");
        fs::write(path, content).expect("written");
    }

    #[test]
    fn a_password_is_made_once_and_a_lost_one_anew() {
        let root = root();
        assert!(ensure_password(root.path()).expect("made"));
        let path = root.path().join(PASSWORD);
        let first = fs::read_to_string(&path).expect("there");
        assert!(first.len() == 33 && first.trim().chars().all(|c| c.is_ascii_hexdigit()), "{first}");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert!(!ensure_password(root.path()).expect("kept"));
        assert_eq!(fs::read_to_string(&path).expect("there"), first);
        for lost in ["", "\n"] {
            fs::write(&path, lost).expect("written");
            assert!(ensure_password(root.path()).expect("made"), "{lost:?}");
            assert_ne!(fs::read_to_string(&path).expect("there"), first);
        }
        // K3s' own, whatever it looks like.
        fs::write(&path, "hunter2").expect("written");
        assert!(!ensure_password(root.path()).expect("kept"));
        fs::remove_file(&path).expect("removed");
        fs::create_dir(&path).expect("made");
        assert!(ensure_password(root.path()).is_err());
    }

    #[test]
    fn an_initiator_is_named_once() {
        let root = root();
        assert!(!ensure_initiator(root.path()).expect("no iSCSI here"));
        for unnamed in ["GenerateName=yes\n", "", "InitiatorName=\n"] {
            write(root.path(), INITIATOR, unnamed);
            assert!(ensure_initiator(root.path()).expect("named"), "{unnamed:?}");
            let text = fs::read_to_string(root.path().join(INITIATOR)).expect("there");
            let digits = text.strip_prefix("InitiatorName=iqn.1993-08.org.debian:01:").expect("a name").trim_end();
            assert!(digits.len() == 12 && digits.chars().all(|c| c.is_ascii_hexdigit()), "{text}");
            assert!(!ensure_initiator(root.path()).expect("kept"));
        }
        write(root.path(), INITIATOR, "# mine\nInitiatorName=iqn.2020-01.example:me\n");
        assert!(!ensure_initiator(root.path()).expect("kept"));
    }

    #[test]
    fn what_is_not_settled_begins_anew_and_empty_files_go() {
        let agent = "var/lib/rancher/k3s/agent";
        let server = "var/lib/rancher/k3s/server";
        let digest = "0123456789abcdef".repeat(4);
        let paths = |root: &Path| {
            let kept = [
                (format!("{IMAGES}/io.containerd.metadata.v1.bolt/meta.db"), "bolt"),
                (format!("{UNPACKED}/{digest}/bin/containerd"), ""),
                (format!("{UNPACKED}/cni/multus"), "plugin"),
                (format!("{agent}/client-kubelet.crt"), "certificate"),
                (format!("{agent}/client-kubelet.key"), ""),
                (format!("{agent}/etc/cni/net.d/10-flannel.conflist"), ""),
                (format!("{agent}/etc/containerd/config.toml.tmpl"), ""),
                (format!("{agent}/images/.cache.json"), ""),
                (format!("{server}/token"), ""),
                (format!("{server}/tls/etcd/peer-ca.key"), ""),
                (format!("{server}/tls/server-ca.key"), "key"),
                (format!("{server}/db/etcd/member/wal/0.tmp"), ""),
            ];
            kept.iter().for_each(|(path, content)| write(root, path, content));
        };
        let images = format!("/{IMAGES} is removed, to be made anew: an earlier start was interrupted");
        let unpacked = format!("/{UNPACKED}/{digest} is removed, to be made anew: an earlier start was interrupted");
        let empty = |path: String| format!("/{path} is removed, to be made anew: a power cut left it empty");
        let always = vec![
            empty(format!("{agent}/client-kubelet.key")),
            empty(format!("{agent}/etc/cni/net.d/10-flannel.conflist")),
            empty(format!("{server}/token")),
            empty(format!("{server}/tls/etcd/peer-ca.key")),
        ];
        for (case, settled, begun) in [
            ("never Ready", None, vec![images, unpacked.clone()]),
            ("another program", Some("1 2".to_owned()), vec![unpacked]),
            ("settled", Some(String::new()), vec![]),
        ] {
            let root = root();
            paths(root.path());
            let own = program(root.path()).expect("there");
            let settled = settled.map(|text| if text.is_empty() { own } else { text });
            let done = clear(root.path(), settled.as_deref());
            assert_eq!(done, [begun, always.clone()].concat(), "{case}");
            assert_eq!(clear(root.path(), settled.as_deref()), Vec::<String>::new(), "{case}: again");
            for path in [
                format!("{UNPACKED}/cni/multus"),
                format!("{agent}/client-kubelet.crt"),
                format!("{agent}/etc/containerd/config.toml.tmpl"),
                format!("{agent}/images/.cache.json"),
                format!("{server}/db/etcd/member/wal/0.tmp"),
                format!("{server}/tls/server-ca.key"),
            ] {
                assert!(root.path().join(&path).exists(), "{case}: {path}");
            }
        }
        let fresh = root();
        assert_eq!(clear(fresh.path(), None), Vec::<String>::new());
    }
}
