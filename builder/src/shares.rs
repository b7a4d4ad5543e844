//! How an image's size is shared: what each component, the kernel, firmware, the first-boot program and the rest of
//! Debian are as files, and what they take in the image.
//!
//! Both are read back from what was built, so manifest and `nodezero inspect` say the same. What the image takes is
//! counted whole, and once: all shares together are the root file system, its hash tree and the files of the ESP. What
//! alignment and free room add is in no share.

use std::fmt;
use std::io::{self, Read, Seek};

use anyhow::{Context as _, Result, ensure};
use disk::esp::Found;
use rootfs::squashfs::read::{Entry, Image, Kind};
use serde::{Deserialize, Serialize};
use uki::{Name, Uki};

use crate::compose::FIRSTBOOT;
use crate::disk_image::BIOS_FILES;
use crate::manifest::ComponentRecord;
use crate::progress::Size;

/// The longest content of an initrd that is counted.
const INITRD_LIMIT: u64 = 4 << 30;

/// What a share of an image is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "part", rename_all = "kebab-case")]
pub enum Part {
    /// A file of a component.
    Component {
        /// The component's name.
        component: String,
        /// The file's path in the root, without a leading slash.
        path: String,
    },
    /// The kernel, as its package has it: it is compressed in itself.
    Kernel,
    /// Kernel modules in the root.
    Modules,
    /// Firmware in the root.
    Firmware,
    /// Microcode, beside the kernel.
    Microcode,
    /// The first-boot program in the root.
    Firstboot,
    /// The initrd: the first-boot program again, and the modules that find the root.
    Initrd,
    /// All other files of the root: Debian's packages and what was laid over them.
    Debian,
    /// What the root file system needs besides contents: directories, names, owners.
    FileSystem,
    /// The hash tree that verifies the root.
    HashTree,
    /// The second copy of kernel and initrd, which a BIOS loader can read.
    Bios,
    /// What else the ESP holds: loaders, and the stub and texts around the kernel.
    Esp,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Component { component, path } => return write!(f, "{component} /{path}"),
            Self::Kernel => "kernel",
            Self::Modules => "kernel modules",
            Self::Firmware => "firmware",
            Self::Microcode => "microcode",
            Self::Firstboot => "first-boot program",
            Self::Initrd => "initrd",
            Self::Debian => "rest of Debian",
            Self::FileSystem => "file system",
            Self::HashTree => "hash tree",
            Self::Bios => "kernel and initrd for BIOS",
            Self::Esp => "rest of the ESP",
        }
        .fmt(f)
    }
}

/// A share of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// What it is.
    #[serde(flatten)]
    pub part: Part,
    /// The bytes of its files, unpacked. Nothing for what is no file.
    pub bytes: u64,
    /// The bytes that it takes in the image.
    pub packed: u64,
}

/// The boot side of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    kernel: u64,
    microcode: u64,
    initrd: u64,
    initrd_unpacked: u64,
}

impl Boot {
    /// Reads a UKI.
    ///
    /// # Errors
    /// When it is none, or its initrd is not one zstd stream.
    pub fn read(uki: &mut (impl Read + Seek)) -> Result<Self> {
        let read = Uki::read(uki)?;
        let len = |wanted: Name| {
            let found = read.sections().find(|(name, _)| *name == wanted);
            found.map_or(0, |(_, section)| u64::from(section.content_length()))
        };
        let mut boot = Self {
            kernel: len(Name::Linux),
            microcode: len(Name::Ucode),
            initrd: len(Name::Initrd),
            initrd_unpacked: 0,
        };
        if boot.initrd > 0 {
            let section = read.open_section(uki, Name::Initrd)?;
            let decoder = zstd::Decoder::new(section).context("unpacking the initrd")?;
            let counted = io::copy(&mut decoder.take(INITRD_LIMIT + 1), &mut io::sink());
            boot.initrd_unpacked = counted.context("unpacking the initrd")?;
            ensure!(boot.initrd_unpacked <= INITRD_LIMIT, "the initrd unpacks to more than {}", Size(INITRD_LIMIT));
        }
        Ok(boot)
    }
}

/// The shares of an image, the largest first. `esp` is what the ESP holds, `tree` the length of the hash tree.
///
/// # Errors
/// When the root file system is damaged.
pub fn measure<R: Read + Seek>(
    image: &Image<R>,
    entries: &[Entry],
    boot: &Boot,
    esp: &[Found],
    tree: u64,
    components: &[ComponentRecord],
) -> Result<Vec<Share>> {
    let mut shares = Vec::new();
    let mut add =
        |part: Part, bytes: u64, packed: u64| match shares.iter_mut().find(|share: &&mut Share| share.part == part) {
            Some(share) => (share.bytes, share.packed) = (share.bytes + bytes, share.packed + packed),
            None => shares.push(Share { part, bytes, packed }),
        };
    let mut metadata = image.bytes_used();
    for (entry, packed) in entries.iter().zip(image.stored_sizes(entries)?) {
        if let Kind::File(file) = &entry.kind {
            add(part_of(&entry.path, components), file.size(), packed);
            metadata = metadata.saturating_sub(packed);
        }
    }
    add(Part::FileSystem, 0, metadata);
    add(Part::HashTree, 0, tree);
    add(Part::Kernel, boot.kernel, boot.kernel);
    add(Part::Microcode, boot.microcode, boot.microcode);
    add(Part::Initrd, boot.initrd_unpacked, boot.initrd);
    let of_bios = |found: &&Found| BIOS_FILES.contains(&found.path.to_ascii_lowercase().as_str());
    let bios = esp.iter().filter(of_bios).filter_map(|found| found.len).sum();
    add(Part::Bios, bios, bios);
    let whole: u64 = esp.iter().filter_map(|found| found.len).sum();
    let rest = whole.saturating_sub(bios + boot.kernel + boot.microcode + boot.initrd);
    add(Part::Esp, rest, rest);
    shares.retain(|share| share.bytes > 0 || share.packed > 0);
    shares.sort_by(|a, b| (b.packed, &a.part).cmp(&(a.packed, &b.part)));
    Ok(shares)
}

fn part_of(path: &[u8], components: &[ComponentRecord]) -> Part {
    for component in components {
        if let Some(file) = component.files.iter().find(|file| file.path.as_bytes() == path) {
            return Part::Component { component: component.name.clone(), path: file.path.clone() };
        }
    }
    let below = |directory: &[u8]| path.strip_prefix(directory).is_some_and(|rest| rest.starts_with(b"/"));
    if path == FIRSTBOOT.as_bytes() {
        Part::Firstboot
    } else if below(b"usr/lib/modules") {
        Part::Modules
    } else if below(b"usr/lib/firmware") {
        Part::Firmware
    } else {
        Part::Debian
    }
}

/// The shares as a table, a line each, without line ends; the last is their sum.
#[must_use]
pub fn lines(shares: &[Share]) -> Vec<String> {
    let sum = |size: fn(&Share) -> u64| shares.iter().map(size).sum::<u64>();
    let of = |name: String, bytes: u64, packed: u64| {
        let bytes = if bytes == 0 { "-".to_owned() } else { Size(bytes).to_string() };
        [name, bytes, Size(packed).to_string()]
    };
    let mut rows = vec![["size of".to_owned(), "unpacked".to_owned(), "in the image".to_owned()]];
    rows.extend(shares.iter().map(|share| of(share.part.to_string(), share.bytes, share.packed)));
    rows.push(of("all".to_owned(), sum(|share| share.bytes), sum(|share| share.packed)));
    let width = rows.iter().map(|[name, ..]| name.chars().count()).max().unwrap_or(0);
    rows.into_iter().map(|[name, bytes, packed]| format!("{name:<width$}  {bytes:>10}  {packed:>12}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::ComponentFile;

    fn components() -> Vec<ComponentRecord> {
        let file = |path: &str| ComponentFile { path: path.to_owned(), sha256: String::new(), size: 1, packed: 1 };
        vec![ComponentRecord {
            name: "k3s".to_owned(),
            version: "1".to_owned(),
            source: "release".to_owned(),
            from: String::new(),
            go: None,
            standin: false,
            files: vec![file("usr/bin/k3s"), file("usr/lib/nodezero/airgap/images.tar.zst")],
        }]
    }

    #[test]
    fn every_file_is_of_one_part() {
        let of = |path: &str| part_of(path.as_bytes(), &components()).to_string();
        for (path, expected) in [
            ("usr/bin/k3s", "k3s /usr/bin/k3s"),
            ("usr/lib/nodezero/airgap/images.tar.zst", "k3s /usr/lib/nodezero/airgap/images.tar.zst"),
            ("usr/bin/k3sx", "rest of Debian"),
            ("usr/lib/modules/6.12/kernel/a.ko.xz", "kernel modules"),
            ("usr/lib/modules-load.d/a.conf", "rest of Debian"),
            ("usr/lib/firmware/bnx2/a.fw", "firmware"),
            ("usr/lib/nodezero/nodezero-firstboot", "first-boot program"),
            ("usr/lib/nodezero/image.json", "rest of Debian"),
        ] {
            assert_eq!(of(path), expected, "{path}");
        }
    }

    #[test]
    fn shares_are_told_and_kept() {
        let shares = [
            Share {
                part: Part::Component { component: "k3s".into(), path: "usr/bin/k3s".into() },
                bytes: 3 << 20,
                packed: 1 << 20,
            },
            Share { part: Part::HashTree, bytes: 0, packed: 4096 },
        ];
        assert_eq!(
            lines(&shares),
            [
                "size of             unpacked  in the image",
                "k3s /usr/bin/k3s     3.0 MiB       1.0 MiB",
                "hash tree                  -       4.0 KiB",
                "all                  3.0 MiB       1.0 MiB",
            ]
        );
        let json = serde_json::to_string(&shares).expect("texts and numbers");
        assert_eq!(
            json,
            r#"[{"part":"component","component":"k3s","path":"usr/bin/k3s","bytes":3145728,"packed":1048576},{"part":"hash-tree","bytes":0,"packed":4096}]"#
        );
        assert_eq!(serde_json::from_str::<Vec<Share>>(&json).expect("its own form"), shares);
    }
}
