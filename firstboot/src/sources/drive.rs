//! Configurations on drives: those that the kernel command line names, and config drives, which are found by label.
//!
//! | label | file | made for |
//! |---|---|---|
//! | `ignition` | `config.ign` | this |
//! | `config-2` | `openstack/latest/user_data` | [OpenStack](https://docs.openstack.org/nova/latest/admin/config-drive.html) |
//! | `cidata` | `user-data` | [NoCloud](https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html) |
//!
//! Labels may be in upper or lower case, as vfat and iso9660 prefer upper case. The first of the table that is there
//! counts; two drives with its label are an error. `ignition` and `cidata` must have their file: the label says so.
//! On a `config-2` the user data are optional; and one without `openstack/latest/meta_data.json` is not OpenStack's
//! (DigitalOcean's has the same label and another content) and is passed over.
//!
//! An iso9660 of OpenStack and of cloud-init's tools has Rock Ridge and Joliet names; the kernel shows the former, else
//! the latter. Plain names of iso9660 are too short for most of the files. To try one in a machine:
//!
//! ```text
//! genisoimage -J -r -V config-2 -graft-points -o drive.iso openstack/latest/user_data=config.ign
//! qemu-system-x86_64 … -drive file=drive.iso,media=cdrom      (or if=virtio,format=raw,readonly=on; or behind USB)
//! ```
//!
//! Looked at are the disks and partitions that the kernel shows at that moment, except the own disk; who calls has
//! loaded their drivers. Only what is named on the command line is waited for. Drives are mounted read-only, and of
//! them one file is read, which no link can lead elsewhere. Left out: loop devices, RAID, LVM and the like.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::content::{self, LIMIT};
use super::label::{FileSystem, Labelled, read_label};
use super::word::{NamedDevice, NamedFile};

/// Block devices that hold no drive, by the beginning of their names.
const NO_DRIVES: &[&str] = &["loop", "ram", "zram", "dm-", "md", "nbd", "fd", "mtdblock"];
/// How often a named device is looked for, and how often its file system.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Shows what lies on a device.
pub(crate) trait Mounts {
    /// Calls `look` with the directory where the device is mounted, for that call alone.
    ///
    /// # Errors
    /// When it cannot be mounted or unmounted, and those of `look`.
    fn visit(
        &self,
        device: &Path,
        file_system: FileSystem,
        look: &mut dyn FnMut(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<()>;
}

/// Mounts for real, at a directory that is made and removed again.
#[derive(Clone, Debug)]
pub(crate) struct KernelMounts {
    /// Where.
    pub(crate) at: PathBuf,
}

impl Mounts for KernelMounts {
    fn visit(
        &self,
        device: &Path,
        file_system: FileSystem,
        look: &mut dyn FnMut(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        fs::create_dir_all(&self.at).with_context(|| format!("making {}", self.at.display()))?;
        let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        let data = match file_system {
            FileSystem::Vfat => c"umask=0077",
            FileSystem::Iso9660 => c"",
            // A journal that was not finished would else be written to a device that is only to be read.
            FileSystem::Ext4 => c"noload",
        };
        mount(device, &self.at, file_system.name(), flags, data)
            .with_context(|| format!("mounting {} as {}", device.display(), file_system.name()))?;
        let looked = look(&self.at);
        unmount(&self.at, UnmountFlags::empty()).with_context(|| format!("unmounting {}", device.display()))?;
        fs::remove_dir(&self.at).with_context(|| format!("removing {}", self.at.display()))?;
        looked
    }
}

/// Where drives are looked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places<'a> {
    /// `/sys`.
    pub(crate) sys: &'a Path,
    /// `/dev`.
    pub(crate) dev: &'a Path,
    /// The kernel's name of the own disk.
    pub(crate) own_disk: Option<&'a str>,
}

/// A device with a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Volume {
    /// The device file.
    pub(crate) device: PathBuf,
    /// The kernel's name of the whole disk.
    disk: String,
    /// Whether it is a partition of that.
    is_partition: bool,
    /// Its file system and label.
    pub(crate) labelled: Labelled,
}

/// What a config drive says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Drive {
    /// Its label.
    pub(crate) label: String,
    /// Its device file.
    pub(crate) device: PathBuf,
    /// The configuration; `None` when the drive says that there is none.
    pub(crate) content: Option<Vec<u8>>,
}

/// What is expected of a label.
#[derive(Clone, Copy, Debug)]
struct Kind {
    label: &'static str,
    file: &'static str,
    /// The file whose presence says that the drive is one of this kind, though it lacks the other. Without one, a
    /// drive that lacks its file is broken.
    optional_beside: Option<&'static str>,
}

const KINDS: &[Kind] = &[
    Kind { label: "ignition", file: "config.ign", optional_beside: None },
    Kind {
        label: "config-2",
        file: "openstack/latest/user_data",
        optional_beside: Some("openstack/latest/meta_data.json"),
    },
    Kind { label: "cidata", file: "user-data", optional_beside: None },
];

/// Reads the first config drive of the table that is there.
///
/// # Errors
/// When two drives have the label, or the drive is broken; it names the drive.
pub(crate) fn find(places: Places<'_>, mounts: &dyn Mounts, say: &dyn Fn(&str)) -> anyhow::Result<Option<Drive>> {
    let volumes = survey(places, say);
    for kind in KINDS {
        let Some(volume) = only(&volumes, kind.label, |label| label.eq_ignore_ascii_case(kind.label))? else {
            continue;
        };
        let read = || read_drive(kind, volume, mounts);
        let name = || format!("reading the config drive {} ({})", volume.labelled.label, volume.device.display());
        if let Some(content) = read().with_context(name)? {
            let (label, device) = (volume.labelled.label.clone(), volume.device.clone());
            return Ok(Some(Drive { label, device, content }));
        }
    }
    Ok(None)
}

/// Reads a file that the kernel command line names, and waits for its device as long as `patience`. Gives the device.
///
/// # Errors
/// When device or file are not there, several devices have the label, or the file is empty or too large.
pub(crate) fn read_named(
    file: &NamedFile,
    places: Places<'_>,
    mounts: &dyn Mounts,
    patience: Duration,
    say: &dyn Fn(&str),
) -> anyhow::Result<(PathBuf, Vec<u8>)> {
    let (device, file_system) = await_device(&file.device, places, patience, say)?;
    let content = read_file(&device, file_system, &file.path, mounts)?;
    let content = content.with_context(|| format!("{} has no file {}", device.display(), file.path))?;
    let content =
        content::present(content).with_context(|| format!("reading {} on {}", file.path, device.display()))?;
    Ok((device, content))
}

/// Reads one file of a device; `None` when it is not there.
///
/// # Errors
/// When the device cannot be mounted, or the file cannot be read or is larger than [`LIMIT`].
pub(crate) fn read_file(
    device: &Path,
    file_system: FileSystem,
    path: &str,
    mounts: &dyn Mounts,
) -> anyhow::Result<Option<Vec<u8>>> {
    let mut content = None;
    mounts.visit(device, file_system, &mut |root| {
        content = read_below(root, path)?;
        Ok(())
    })?;
    Ok(content)
}

/// The drive's answer; `None` when it is not of this kind at all.
fn read_drive(kind: &Kind, volume: &Volume, mounts: &dyn Mounts) -> anyhow::Result<Option<Option<Vec<u8>>>> {
    let (mut content, mut beside) = (None, false);
    mounts.visit(&volume.device, volume.labelled.file_system, &mut |root| {
        content = read_below(root, kind.file)?;
        beside = match kind.optional_beside {
            Some(other) if content.is_none() => read_below(root, other)?.is_some(),
            Some(_) | None => false,
        };
        Ok(())
    })?;
    match (content, kind.optional_beside) {
        (Some(raw), _) => content::user_data(raw).with_context(|| format!("reading {}", kind.file)).map(Some),
        (None, Some(_)) => Ok(beside.then_some(None)),
        (None, None) => anyhow::bail!("it has no file {}", kind.file),
    }
}

/// The file systems that the machine's drives have now, by device. What cannot be read is passed over, and said: it may
/// be a drive without a medium, or a broken one that has nothing to do with this.
fn survey(places: Places<'_>, say: &dyn Fn(&str)) -> Vec<Volume> {
    let entries = fs::read_dir(places.sys.join("class/block")).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    let mut volumes = Vec::new();
    for name in names {
        if NO_DRIVES.iter().any(|kind| name.starts_with(kind)) {
            continue;
        }
        let entry = places.sys.join("class/block").join(&name);
        let is_partition = entry.join("partition").exists();
        let disk = if is_partition { parent(&entry).unwrap_or_default() } else { name.clone() };
        let is_empty = fs::read_to_string(entry.join("size")).is_ok_and(|size| size.trim() == "0");
        if is_empty || places.own_disk == Some(disk.as_str()) {
            continue;
        }
        // The kernel writes a slash of a device's name as an exclamation mark there.
        let device = places.dev.join(name.replace('!', "/"));
        match File::open(&device).and_then(|mut file| read_label(&mut file)) {
            Ok(Some(labelled)) => volumes.push(Volume { device, disk, is_partition, labelled }),
            Ok(None) => {}
            Err(error) => say(&format!("nodezero: {} is not looked at: {error}", device.display())),
        }
    }
    volumes
}

/// The name of the disk that a partition belongs to: in `/sys`, its directory lies in that of the disk.
fn parent(entry: &Path) -> Option<String> {
    let directory = fs::canonicalize(entry).ok()?;
    Some(directory.parent()?.file_name()?.to_str()?.to_owned())
}

/// The one volume whose label is meant. A disk that can be read as a whole counts once, though one of its partitions
/// begins with it and shows the same file system.
fn only<'a>(volumes: &'a [Volume], name: &str, meant: impl Fn(&str) -> bool) -> anyhow::Result<Option<&'a Volume>> {
    let mut found: Vec<&Volume> = volumes.iter().filter(|volume| meant(&volume.labelled.label)).collect();
    let whole: Vec<String> =
        found.iter().filter(|volume| !volume.is_partition).map(|volume| volume.disk.clone()).collect();
    found.retain(|volume| !volume.is_partition || !whole.contains(&volume.disk));
    match found[..] {
        [] => Ok(None),
        [volume] => Ok(Some(volume)),
        [..] => {
            let devices: Vec<String> = found.iter().map(|volume| volume.device.display().to_string()).collect();
            anyhow::bail!("{} drives have the label {name}, expected one: {}", found.len(), devices.join(", "))
        }
    }
}

/// Waits for a named device with one of the file systems.
fn await_device(
    named: &NamedDevice,
    places: Places<'_>,
    patience: Duration,
    say: &dyn Fn(&str),
) -> anyhow::Result<(PathBuf, FileSystem)> {
    let until = Instant::now() + patience;
    loop {
        let missing = match named {
            NamedDevice::Label(label) => {
                // What cannot be read is said once, at the end.
                if let Some(volume) = only(&survey(places, &|_| {}), label, |found| found == label)? {
                    return Ok((volume.device.clone(), volume.labelled.file_system));
                }
                format!("no disk but the own one has a vfat, iso9660 or ext4 with the label {label}")
            }
            NamedDevice::Name(name) => {
                let device = places.dev.join(name);
                match File::open(&device).and_then(|mut file| read_label(&mut file)) {
                    Ok(Some(labelled)) => return Ok((device, labelled.file_system)),
                    Ok(None) => format!("{} holds none of vfat, iso9660 and ext4", device.display()),
                    Err(error) => format!("{}: {error}", device.display()),
                }
            }
        };
        if Instant::now() >= until {
            survey(places, say);
            anyhow::bail!("{missing}, even after {} s", patience.as_secs());
        }
        std::thread::sleep(LOOK_AGAIN.min(patience));
    }
}

/// Reads a regular file below a directory, however links on the drive are laid; `None` when it is not there.
fn read_below(root: &Path, path: &str) -> anyhow::Result<Option<Vec<u8>>> {
    let read = || -> anyhow::Result<Option<Vec<u8>>> {
        let directory = rustix::fs::openat(CWD, root, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        // Opening a pipe would else wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let file: OwnedFd = match rustix::fs::openat2(&directory, path, flags, Mode::empty(), how) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(std::io::Error::from(errno).into()),
        };
        let file = File::from(file);
        anyhow::ensure!(file.metadata()?.is_file(), "it is no regular file");
        let mut content = Vec::new();
        file.take(LIMIT + 1).read_to_end(&mut content)?;
        anyhow::ensure!(content.len() as u64 <= LIMIT, "it is larger than {LIMIT} bytes");
        Ok(Some(content))
    };
    read().with_context(|| format!("reading {path}"))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    /// Devices that are directories.
    #[derive(Debug, Default)]
    pub(crate) struct Directories(pub(crate) BTreeMap<PathBuf, PathBuf>);

    impl Mounts for Directories {
        fn visit(
            &self,
            device: &Path,
            _: FileSystem,
            look: &mut dyn FnMut(&Path) -> anyhow::Result<()>,
        ) -> anyhow::Result<()> {
            look(self.0.get(device).with_context(|| format!("mounting {}: input/output error", device.display()))?)
        }
    }

    /// A machine with disks: directories like `/sys` and `/dev`, and what lies on each device.
    pub(crate) struct Machine {
        root: tempfile::TempDir,
        pub(crate) mounts: Directories,
    }

    impl Machine {
        pub(crate) fn new() -> Self {
            let root = tempfile::tempdir().expect("tempdir");
            for directory in ["sys/class/block", "dev", "on"] {
                fs::create_dir_all(root.path().join(directory)).expect("directory");
            }
            Self { root, mounts: Directories::default() }
        }

        pub(crate) fn sys(&self) -> PathBuf {
            self.root.path().join("sys")
        }

        pub(crate) fn dev(&self) -> PathBuf {
            self.root.path().join("dev")
        }

        /// Adds a disk, or with a slash its partition, that holds an ext4 with a label and these files.
        pub(crate) fn add(&mut self, path: &str, label: &str, files: &[(&str, &[u8])]) -> PathBuf {
            let name = path.rsplit('/').next().expect("a name");
            let at = self.sys().join("devices").join(path);
            fs::create_dir_all(&at).expect("directory");
            if path.contains('/') {
                fs::write(at.join("partition"), "1\n").expect("file");
            }
            let link = self.sys().join("class/block").join(name);
            symlink(&at, link).expect("link");
            let mut image = vec![0; 4096];
            image[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
            image[0x478..0x478 + label.len()].copy_from_slice(label.as_bytes());
            let device = self.dev().join(name);
            fs::write(&device, image).expect("device");
            let on = self.root.path().join("on").join(name);
            fs::create_dir_all(&on).expect("directory");
            for (file, content) in files {
                fs::create_dir_all(on.join(file).parent().expect("parent")).expect("directory");
                fs::write(on.join(file), content).expect("file");
            }
            self.mounts.0.insert(device.clone(), on);
            device
        }

        fn find(&self, own_disk: Option<&str>) -> anyhow::Result<Option<Drive>> {
            find(Places { sys: &self.sys(), dev: &self.dev(), own_disk }, &self.mounts, &|_| {})
        }

        fn read_named(&self, word: &str) -> anyhow::Result<Vec<u8>> {
            let super::super::word::Named::File(file) = super::super::word::Named::parse(word).expect(word) else {
                panic!("{word} is no file");
            };
            let places = Places { sys: &self.sys(), dev: &self.dev(), own_disk: Some("vda") };
            read_named(&file, places, &self.mounts, Duration::ZERO, &|_| {}).map(|(_, content)| content)
        }
    }

    const CONFIG: &[u8] = b"{\"ignition\":{}}";
    const META: (&str, &[u8]) = ("openstack/latest/meta_data.json", b"{}");

    #[test]
    fn config_drives_are_found_by_label() {
        let gzip = content::tests::gzip(CONFIG);
        type Disk<'a> = (&'a str, &'a str, Vec<(&'a str, &'a [u8])>);
        let ignition: Disk<'_> = ("sdb", "ignition", vec![("config.ign", CONFIG)]);
        let openstack: Disk<'_> = ("sr0", "config-2", vec![META, ("openstack/latest/user_data", CONFIG)]);
        let cidata: Disk<'_> = ("sdc/sdc1", "CIDATA", vec![("meta-data", b"x"), ("user-data", &gzip)]);
        for (case, disks, expected) in [
            ("nothing", vec![], None),
            ("other disks", vec![("sda", "data", vec![("config.ign", CONFIG)])], None),
            ("ignition", vec![ignition.clone()], Some(("ignition", Some(CONFIG)))),
            ("OpenStack", vec![openstack.clone()], Some(("config-2", Some(CONFIG)))),
            ("NoCloud, a partition, gzip", vec![cidata.clone()], Some(("CIDATA", Some(CONFIG)))),
            (
                "the order of the table",
                vec![cidata.clone(), openstack.clone(), ignition],
                Some(("ignition", Some(CONFIG))),
            ),
            ("no user data on OpenStack", vec![("sr0", "CONFIG-2", vec![META])], Some(("CONFIG-2", None))),
            ("another provider's config-2", vec![("sr0", "config-2", vec![("x.json", b"{}")])], None),
            ("that, and NoCloud", vec![("sr0", "config-2", vec![]), cidata], Some(("CIDATA", Some(CONFIG)))),
            ("NoCloud with empty user data", vec![("sr0", "cidata", vec![("user-data", b"")])], Some(("cidata", None))),
            ("the own disk", vec![("vda/vda1", "ignition", vec![("config.ign", CONFIG)])], None),
            ("a loop device", vec![("loop0", "ignition", vec![("config.ign", CONFIG)])], None),
        ] {
            let mut machine = Machine::new();
            for (path, label, files) in &disks {
                machine.add(path, label, files);
            }
            let found = machine.find(Some("vda")).expect(case);
            let found = found.as_ref().map(|drive| (drive.label.as_str(), drive.content.as_deref()));
            assert_eq!(found, expected, "{case}");
        }
    }

    #[test]
    fn broken_drives_are_errors_that_name_the_drive() {
        type Disk<'a> = (&'a str, &'a str, Vec<(&'a str, &'a [u8])>);
        // Each time a good drive of a later kind is there, too, which is not asked.
        let ignition = |files| -> Vec<Disk<'_>> {
            vec![("sdb", "ignition", files), ("sdz", "cidata", vec![("user-data", CONFIG)])]
        };
        for (case, disks, expected) in [
            ("no file", ignition(vec![]), "sdb): it has no file config.ign"),
            (
                "cloud-config",
                ignition(vec![("config.ign", b"#cloud-config\n")]),
                "sdb): reading config.ign: the user data is a cloud-config: NodeZero takes Ignition configs alone",
            ),
            ("a directory", ignition(vec![("config.ign/x", CONFIG)]), "config.ign: it is no regular file"),
            ("no user data", vec![("sdb", "cidata", vec![("meta-data", b"")])], "sdb): it has no file user-data"),
            ("two", vec![("sdb", "cidata", vec![]), ("sdc/sdc1", "CIDATA", vec![])], "2 drives have the label cidata"),
        ] {
            let mut machine = Machine::new();
            for (path, label, files) in &disks {
                machine.add(path, label, files);
            }
            let error = format!("{:#}", machine.find(None).expect_err(case));
            assert!(error.contains(expected), "{case}: {error}");
        }
        let mut machine = Machine::new();
        let device = machine.add("sdb", "ignition", &[("config.ign", CONFIG)]);
        machine.mounts.0.clear();
        let error = format!("{:#}", machine.find(None).expect_err("not mounted"));
        let device = device.display();
        assert_eq!(
            error,
            format!("reading the config drive ignition ({device}): mounting {device}: input/output error")
        );
    }

    #[test]
    fn a_disk_and_its_partition_are_one_drive() {
        let mut machine = Machine::new();
        machine.add("sdb", "cidata", &[("user-data", CONFIG)]);
        machine.add("sdb/sdb1", "cidata", &[]);
        assert!(machine.find(None).expect("one drive").is_some());
    }

    #[test]
    fn named_files_are_read() {
        let mut machine = Machine::new();
        machine.add("sdb/sdb1", "My Stick", &[("d/c.ign", CONFIG), ("empty", b"")]);
        machine.add("vda/vda1", "My Disk", &[("c.ign", CONFIG)]);
        fs::write(machine.dev().join("sdx"), "").expect("device");
        for word in ["LABEL=My Stick:/d/c.ign", r"/dev/disk/by-label/My\x20Stick:/d/c.ign", "/dev/sdb1:/d/c.ign"] {
            assert_eq!(machine.read_named(word).expect(word), CONFIG, "{word}");
        }
        assert_eq!(machine.read_named("/dev/vda1:/c.ign").expect("the own disk by its name"), CONFIG);
        for (word, expected) in [
            ("LABEL=my stick:/d/c.ign", "with the label my stick, even after 0 s"),
            ("LABEL=My Disk:/c.ign", "no disk but the own one has"),
            ("/dev/sdc1:/c.ign", "No such file or directory"),
            ("/dev/sdx:/c.ign", "holds none of vfat, iso9660 and ext4, even after 0 s"),
            ("/dev/sdb1:/c.ign", "sdb1 has no file c.ign"),
            ("/dev/sdb1:/empty", "sdb1: it is empty"),
        ] {
            let error = format!("{:#}", machine.read_named(word).expect_err(word));
            assert!(error.contains(expected), "{word}: {error}");
        }
    }

    #[test]
    fn links_and_sizes_are_bounded() {
        let root = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| root.path().join(name);
        fs::write(at("file"), "{}").expect("file");
        symlink("file", at("inside")).expect("link");
        symlink("../../../etc/hostname", at("outside")).expect("link");
        symlink("/etc/hostname", at("absolute")).expect("link");
        let large = File::create(at("large")).expect("file");
        large.set_len(LIMIT).expect("sparse");
        assert_eq!(read_below(root.path(), "inside").expect("inside"), Some(b"{}".to_vec()));
        assert_eq!(read_below(root.path(), "large").expect("fits").map(|content| content.len() as u64), Some(LIMIT));
        large.set_len(LIMIT + 1).expect("sparse");
        assert_eq!(read_below(root.path(), "file/below").expect("a file as a directory"), None);
        assert_eq!(read_below(root.path(), "absent").expect("absent"), None);
        for (name, expected) in [
            ("outside", "reading outside: "),
            ("absolute", "reading absolute: "),
            ("large", "reading large: it is larger than 16777216 bytes"),
        ] {
            let error = format!("{:#}", read_below(root.path(), name).expect_err(name));
            assert!(error.starts_with(expected), "{name}: {error}");
        }
        let pipe = Command::new("mkfifo").arg(at("pipe")).status();
        if pipe.is_ok_and(|status| status.success()) {
            let error = format!("{:#}", read_below(root.path(), "pipe").expect_err("a pipe"));
            assert_eq!(error, "reading pipe: it is no regular file");
        }
    }

    #[test]
    fn a_real_ext4_is_mounted_and_unmounted() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting needs root");
            return;
        }
        let directory = tempfile::tempdir().expect("tempdir");
        let (image, tree) = (directory.path().join("image"), directory.path().join("tree"));
        fs::create_dir(&tree).expect("directory");
        fs::write(tree.join("config.ign"), CONFIG).expect("file");
        File::create(&image).and_then(|file| file.set_len(8 << 20)).expect("image");
        let made = Command::new("mkfs.ext4").args(["-q", "-L", "ignition", "-d"]).args([&tree, &image]).status();
        let attached = Command::new("losetup").args(["--find", "--show", "--read-only"]).arg(&image).output();
        let (Ok(true), Ok(attached)) = (made.map(|status| status.success()), attached) else {
            eprintln!("skipped: mkfs.ext4 or losetup is not here");
            return;
        };
        if !attached.status.success() {
            eprintln!("skipped: no loop device: {}", String::from_utf8_lossy(&attached.stderr).trim());
            return;
        }
        let device = PathBuf::from(String::from_utf8_lossy(&attached.stdout).trim());
        let mounts = KernelMounts { at: directory.path().join("mounted") };
        let read = |path| read_file(&device, FileSystem::Ext4, path, &mounts);
        let (content, absent, wrong) =
            (read("config.ign"), read("absent"), read_file(&device, FileSystem::Vfat, "config.ign", &mounts));
        let detached = Command::new("losetup").arg("--detach").arg(&device).status();
        assert_eq!(content.expect("read"), Some(CONFIG.to_vec()));
        assert_eq!(absent.expect("read"), None);
        let error = format!("{:#}", wrong.expect_err("not a vfat"));
        assert!(error.starts_with(&format!("mounting {} as vfat: ", device.display())), "{error}");
        assert!(!mounts.at.exists() || fs::read_dir(&mounts.at).expect("listed").count() == 0, "unmounted");
        assert!(detached.expect("losetup").success());
    }
}
