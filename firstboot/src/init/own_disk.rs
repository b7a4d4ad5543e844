//! Finding the disk that this machine starts from: the one that carries the root hash's partitions.
//!
//! The [Discoverable Partitions Specification](https://uapi-group.org/specifications/specs/discoverable_partitions_specification/)
//! derives the GUIDs of a root partition and its hash tree from the root hash, which the kernel command line has.
//! So neither device names nor labels nor the firmware's word count. Two disks with the same image are an error:
//! which one was meant cannot be known.
//!
//! Drivers are loaded one after the other, the quick ones first, and the search ends with the first driver that brings
//! the own disk into view. So what is compared are all disks that this driver and those before it brought: the kernel
//! shows the disks of a controller before it calls its driver loaded, and where it does not (NVMe), they are waited
//! for. A twin that appears later is not noticed:
//! one behind a driver that was not needed, such as SATA beside virtio or NVMe, or one that USB brings after its time.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use disk::layout::{Layout, Role};
use disk::table::Found;
use disk::{Guid, SectorSize};
use verity::RootHash;

use super::modules::Loader;
use super::uevents::Uevents;
use crate::boot::Slot;
use crate::disks::{self, Disk};
use crate::summary::Failure;

/// How long NVMe controllers may take to show their first disk before others are looked at.
const NAMESPACE_PATIENCE: Duration = Duration::from_secs(1);

/// A disk as the search sees it.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// What the kernel says about it.
    pub(crate) disk: Disk,
    /// Its partition table, or why it has none.
    pub(crate) table: Result<Found, String>,
}

/// The partitions of one root hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    data: Guid,
    hash: Guid,
}

/// The machine's own disk.
#[derive(Clone, Debug)]
pub(crate) struct OwnDisk {
    /// What the kernel says about it.
    pub(crate) disk: Disk,
    /// Its partition table, as it was found.
    pub(crate) table: Found,
    /// The slot that carries the root hash.
    pub(crate) slot: Slot,
}

impl Wanted {
    /// The partitions of a root hash.
    pub(crate) fn of(root_hash: &RootHash) -> Self {
        let (data, hash) = Guid::of_root_hash(root_hash.digest().as_bytes());
        Self { data, hash }
    }

    /// The slot whose two partitions these are.
    fn slot(self, table: &Layout) -> Option<Slot> {
        [(Slot::A, Role::RootA, Role::RootAVerity), (Slot::B, Role::RootB, Role::RootBVerity)]
            .into_iter()
            .find(|(_, data, hash)| {
                let is = |role: &Role, guid| table.role(*role).is_some_and(|found| found.guid == guid);
                is(data, self.data) && is(hash, self.hash)
            })
            .map(|(slot, _, _)| slot)
    }

    /// Why a disk is not the one.
    fn objection(self, candidate: &Candidate) -> String {
        match &candidate.table {
            Err(reason) => reason.clone(),
            Ok(table) => {
                let has = |guid| table.layout.partitions().values().any(|partition| partition.guid == guid);
                match (has(self.data), has(self.hash)) {
                    (true, true) => "the root hash's partitions are there, but not as one slot".to_owned(),
                    (true, false) => format!("root is there, its hash tree {} is not", self.hash),
                    (false, true) => format!("the hash tree is there, its root {} is not", self.data),
                    (false, false) => format!("a partition table without root {}", self.data),
                }
            }
        }
    }
}

/// Waits for the own disk while modules are loaded for the devices that appear.
///
/// # Errors
/// Several such disks, or none before the deadline; the failure lists what was seen.
pub(crate) fn find(wanted: Wanted, loader: &mut Loader<'_>, deadline: Instant) -> Result<OwnDisk, Failure> {
    let mut events = Uevents::listen();
    let mut examined = None;
    let mut nvme_until = None;
    loop {
        loader.look_for_devices(Path::new("/sys"));
        await_namespaces(&mut nvme_until);
        // Most drivers bring no disk at all.
        let shown = disks::shown();
        if examined.as_ref() != Some(&shown) {
            let candidates: Vec<Candidate> = disks::survey().into_iter().map(examine).collect();
            if let Some(own) = choose(wanted, &candidates)? {
                return Ok(own);
            }
            examined = Some(shown);
        }
        if loader.load_next() {
            continue;
        }
        if Instant::now() >= deadline {
            let candidates: Vec<Candidate> = disks::survey().into_iter().map(examine).collect();
            return choose(wanted, &candidates)?.ok_or_else(|| none_found(wanted, &candidates));
        }
        events.wait(deadline);
        // A disk may get its medium, or its partition table, without a new name.
        examined = None;
    }
}

/// Waits until each NVMe controller shows a disk: they do so a while after their driver is loaded. One that has none
/// is waited for once, for [`NAMESPACE_PATIENCE`] from when controllers were first seen.
fn await_namespaces(until: &mut Option<Instant>) {
    while disks::is_nvme_scanning(Path::new("/sys")) {
        if Instant::now() >= *until.get_or_insert_with(|| Instant::now() + NAMESPACE_PATIENCE) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The one disk with the wanted partitions, if it is there already.
///
/// # Errors
/// When several have them.
pub(crate) fn choose(wanted: Wanted, candidates: &[Candidate]) -> Result<Option<OwnDisk>, Failure> {
    let mut owners = candidates.iter().filter_map(|candidate| {
        let table = candidate.table.as_ref().ok()?;
        let slot = wanted.slot(&table.layout)?;
        Some(OwnDisk { disk: candidate.disk.clone(), table: table.clone(), slot })
    });
    let Some(own) = owners.next() else { return Ok(None) };
    let others: Vec<OwnDisk> = owners.collect();
    if others.is_empty() {
        return Ok(Some(own));
    }
    let all: Vec<String> = [own].iter().chain(&others).map(|own| own.disk.describe()).collect();
    Err(Failure::new(
        format!("{} disks carry this image, and which one to start from cannot be known", all.len()),
        format!("partition {} is on each of:\n{}", wanted.data, all.join("\n")),
        "remove all of these disks but the one to start from, or erase the others, and restart",
    ))
}

/// The failure that lists every disk and why it is not the one.
fn none_found(wanted: Wanted, candidates: &[Candidate]) -> Failure {
    let seen: Vec<String> = candidates
        .iter()
        .map(|candidate| format!("{}: {}", candidate.disk.describe(), wanted.objection(candidate)))
        .collect();
    let why = if seen.is_empty() {
        "the kernel shows no disk at all".to_owned()
    } else {
        format!("no disk has the partitions of the root hash; seen were:\n{}", seen.join("\n"))
    };
    Failure::new(
        "its own disk was not found",
        why,
        "check the disk and its cable or controller; if its driver is missing, build the image for platform metal",
    )
}

/// Reads a disk's partition table.
fn examine(disk: Disk) -> Candidate {
    let table = read_table(&disk).map_err(|error| format!("{error:#}"));
    Candidate { disk, table }
}

/// Reads the partition table of a disk.
fn read_table(disk: &Disk) -> anyhow::Result<Found> {
    let sector = SectorSize::new(u64::from(disk.sector_size))?;
    let mut device = File::open(&disk.path).with_context(|| format!("opening {}", disk.path.display()))?;
    Ok(disk::table::read_table(&mut device, sector, disk.size / sector.bytes())?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use disk::layout::{Spec, image_layout};

    use super::*;
    use crate::disks::Transport;

    const HASH: [u8; 32] = *b"0123456789abcdef0123456789ABCDEF";

    fn sound(layout: Layout) -> Result<Found, String> {
        Ok(Found { layout, findings: Vec::new() })
    }

    fn hardware(name: &str, serial: &str) -> Disk {
        Disk {
            name: name.into(),
            path: Path::new("/dev").join(name),
            size: 8_000_000_000,
            sector_size: 512,
            transport: Transport::Sata,
            vendor: None,
            model: Some("Model".into()),
            serial: Some(serial.into()),
            wwn: None,
            rotational: false,
            removable: false,
            read_only: false,
            content: None,
            partitions: Vec::new(),
        }
    }

    fn wanted() -> Wanted {
        Wanted::of(&RootHash::new(verity::Digest::new(HASH)))
    }

    /// A disk with an image of this root hash in slot a.
    fn image(name: &str, serial: &str, hash: &[u8; 32]) -> Candidate {
        let (root_guid, verity_guid) = Guid::of_root_hash(hash);
        let table = image_layout(&Spec {
            sector: SectorSize::B512,
            disk_guid: Guid::derived("disk", b""),
            esp_size: 64 << 20,
            esp_guid: Guid::derived("esp", b""),
            root_size: 64 << 20,
            root_guid,
            verity_size: 1 << 20,
            verity_guid,
            bios: false,
        });
        Candidate { disk: hardware(name, serial), table: sound(table.expect("valid")) }
    }

    fn blank(name: &str) -> Candidate {
        Candidate { disk: hardware(name, "none"), table: Err("no valid GPT".into()) }
    }

    /// The same partitions in slot b, beside another image in slot a.
    fn in_slot_b(name: &str) -> Candidate {
        let mut other = image(name, "B", b"another root hash, 32 bytes long");
        let table = disk::complete(&other.table.expect("table").layout, 40_000_000, b"seed").expect("completes").layout;
        let mut partitions: BTreeMap<_, _> = table.partitions().clone();
        let guids = Guid::of_root_hash(&HASH);
        for (role, guid) in [(Role::RootB, guids.0), (Role::RootBVerity, guids.1)] {
            partitions.get_mut(&role.number()).expect("completed").guid = guid;
        }
        let table = Layout::new(table.sector_size(), table.disk_guid(), table.disk_sectors(), partitions);
        other.table = sound(table.expect("valid"));
        other
    }

    #[test]
    fn the_one_disk_with_the_partitions_is_chosen_whatever_its_name() {
        for (case, candidates, expected) in [
            ("nothing yet", vec![], None),
            ("blank disks", vec![blank("sda"), blank("sdb")], None),
            ("first", vec![image("sda", "A", &HASH), blank("sdb")], Some(("sda", Slot::A))),
            ("last", vec![blank("sda"), image("nvme0n1", "A", &HASH)], Some(("nvme0n1", Slot::A))),
            ("slot b", vec![blank("sda"), in_slot_b("vda")], Some(("vda", Slot::B))),
            ("another image", vec![image("sda", "A", &[7; 32])], None),
        ] {
            let chosen = choose(wanted(), &candidates).expect(case);
            let found = chosen.as_ref().map(|own| (own.disk.name.as_str(), own.slot));
            assert_eq!(found, expected, "{case}");
        }
    }

    #[test]
    fn two_disks_with_the_image_stop_and_are_both_named() {
        let candidates = [image("sda", "S-1", &HASH), blank("sdb"), image("sdc", "S-2", &HASH)];
        let failure = choose(wanted(), &candidates).expect_err("ambiguous").to_string();
        for part in
            ["2 disks carry this image", "/dev/sda (8.0 GB, sata, model Model, serial S-1)", "/dev/sdc", "serial S-2"]
        {
            assert!(failure.contains(part), "{part} in {failure}");
        }
        assert!(!failure.contains("/dev/sdb"), "{failure}");
    }

    #[test]
    fn none_lists_every_disk_with_its_reason() {
        let failure = none_found(wanted(), &[blank("sda"), image("sdb", "S", &[7; 32])]).to_string();
        assert!(failure.contains("/dev/sda (8.0 GB, sata, model Model, serial none): no valid GPT"), "{failure}");
        assert!(failure.contains("a partition table without root 30313233-3435-3637-3839-616263646566"), "{failure}");
        assert!(none_found(wanted(), &[]).to_string().contains("no disk at all"));
    }

    #[test]
    fn half_a_slot_is_not_enough() {
        let half = [&HASH[..16], &[0; 16]].concat().try_into().expect("32 bytes");
        let candidate = image("sda", "A", &half);
        assert!(choose(wanted(), std::slice::from_ref(&candidate)).expect("no ambiguity").is_none());
        assert!(wanted().objection(&candidate).starts_with("root is there, its hash tree"));
    }
}
