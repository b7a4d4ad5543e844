//! What the first boot makes of an image's table on the disk that it finds itself on.
//!
//! `state` is made in two steps, for a power cut during mkfs leaves a partition whose content means nothing: it is
//! first added as `state-new`, and [`finish_state`] renames it once the file system is made and synced. A disk with
//! `state-new` is one whose mkfs has to run again.

use std::collections::BTreeMap;
use std::fmt;

use super::{Layout, MIN_STATE_BYTES, Partition, Role, SlotSizes};
use crate::error::{Error, Result};
use crate::guid::Guid;

/// Label of a `state` partition whose file system is not finished.
const STATE_NEW: &str = "state-new";

/// One thing that completing a table changes. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The table covers the whole disk, its backup copy at the end.
    MoveBackup {
        /// Sectors that the table covered.
        from_sectors: u64,
        /// Sectors of the disk.
        to_sectors: u64,
    },
    /// A partition becomes longer where it stands.
    Grow {
        /// Its number.
        number: u32,
        /// Its label.
        label: String,
        /// Its size before.
        from_bytes: u64,
        /// Its size after.
        to_bytes: u64,
    },
    /// A partition is added.
    Add {
        /// Its number.
        number: u32,
        /// Its label.
        label: String,
        /// Its size.
        bytes: u64,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::MoveBackup { from_sectors, to_sectors } => {
                write!(f, "extend the table from {from_sectors} to {to_sectors} sectors")
            }
            Change::Grow { number, label, from_bytes, to_bytes } => {
                write!(f, "grow partition {number} {label} from {from_bytes} to {to_bytes} bytes")
            }
            Change::Add { number, label, bytes } => write!(f, "add partition {number} {label} of {bytes} bytes"),
        }
    }
}

/// What has to be done about the file system of `state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateStep {
    /// Run mkfs on the partition, sync, then write what [`finish_state`] returns.
    Format,
    /// The file system was finished by an earlier boot.
    Keep,
    /// As [`StateStep::Keep`], and the partition grew: grow the file system once mounted.
    KeepAndGrow,
}

/// What a disk's table shall become, and how it differs from what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The whole table to write.
    pub layout: Layout,
    /// The differences, in the order in which they were found. Empty: there is nothing to write.
    pub changes: Vec<Change>,
    /// What to do about `state`.
    pub state: StateStep,
}

impl Completion {
    /// Whether the table on disk is already what it shall be.
    pub fn is_unchanged(&self) -> bool {
        self.changes.is_empty()
    }
}

/// Completes the table of an image on a disk of `disk_sectors`: `root-a` grows to its slot, `root-b`, `root-b-verity`
/// and `state` are added where they are missing, and `state` grows when the disk did (a resized VPS volume). The GUIDs
/// of new partitions follow from `seed`, which the caller takes from the disk (its serial), so that two machines from
/// one image differ.
///
/// Idempotent: the completed layout completes to itself. A partition that is not ours is an error, wherever it is.
pub fn complete(found: &Layout, disk_sectors: u64, seed: &[u8]) -> Result<Completion> {
    refuse_foreign(found)?;
    for role in [Role::Esp, Role::RootA, Role::RootAVerity] {
        found.role(role).ok_or(Error::Missing(role.label()))?;
    }
    let mut plan = Plan::new(found, disk_sectors)?;
    plan.grow_root_a()?;
    plan.add(Role::RootB, plan.slots.root_bytes(), seed)?;
    plan.add(Role::RootBVerity, plan.slots.verity_bytes(), seed)?;
    let state = plan.settle_state(seed)?;
    let layout = Layout::new(found.sector, found.disk_guid, disk_sectors, plan.partitions)?;
    Ok(Completion { layout, changes: plan.changes, state })
}

/// Renames `state-new` to `state`: to be written once its file system is made and synced. A layout that already has
/// `state` is returned as it is.
pub fn finish_state(layout: &Layout) -> Result<Layout> {
    let mut finished = layout.clone();
    let state = finished.partitions.get_mut(&Role::State.number()).ok_or(Error::Missing(Role::State.label()))?;
    if state.label.0 == STATE_NEW {
        state.label.0 = Role::State.label().to_owned();
    }
    layout_has_state(&finished)?;
    Ok(finished)
}

/// The table for writing `image` over a disk whose table is `old`, such that the old `state` is kept: the image's
/// partitions and the old `state`, on the whole disk. An error where the image or its slots would not fit before it.
pub fn keep_state(image: &Layout, old: &Layout) -> Result<Layout> {
    let state = layout_has_state(old)?;
    let mut partitions = image.partitions.clone();
    partitions.insert(Role::State.number(), state.clone());
    let kept = Layout::new(old.sector, image.disk_guid, old.disk_sectors, partitions)?;
    complete(&kept, old.disk_sectors, b"")?;
    Ok(kept)
}

fn layout_has_state(layout: &Layout) -> Result<&Partition> {
    layout.role(Role::State).ok_or(Error::Missing(Role::State.label()))
}

fn refuse_foreign(found: &Layout) -> Result<()> {
    let is_ours = |number: u32, part: &Partition| {
        Role::ALL.iter().any(|role| {
            let label = part.label.as_str();
            let named = label == role.label() || (*role == Role::State && label == STATE_NEW);
            role.number() == number && named && role.partition_type() == part.partition_type
        })
    };
    let foreign: Vec<String> = found
        .partitions
        .iter()
        .filter(|(number, part)| !is_ours(**number, part))
        .map(|(number, part)| format!("number {number} label {:?} type {}", part.label.as_str(), part.partition_type))
        .collect();
    if foreign.is_empty() { Ok(()) } else { Err(Error::Foreign(foreign)) }
}

/// A table being completed.
struct Plan {
    /// The aligned sectors that partitions may take.
    space: std::ops::Range<u64>,
    /// Sectors of one alignment unit, and bytes of one sector.
    unit: u64,
    bytes: u64,
    disk_bytes: u64,
    slots: SlotSizes,
    partitions: BTreeMap<u32, Partition>,
    changes: Vec<Change>,
}

impl Plan {
    fn new(found: &Layout, disk_sectors: u64) -> Result<Plan> {
        let (bytes, unit) = (found.sector.bytes(), found.sector.per_alignment());
        let verity = found.role(Role::RootAVerity).ok_or(Error::Missing(Role::RootAVerity.label()))?;
        let mut plan = Plan {
            space: unit..unit,
            unit,
            bytes,
            disk_bytes: disk_sectors.saturating_mul(bytes),
            slots: SlotSizes::for_verity(verity.sectors * bytes),
            partitions: found.partitions.clone(),
            changes: Vec::new(),
        };
        match Layout::new(found.sector, found.disk_guid, disk_sectors, found.partitions.clone()) {
            Ok(whole) => plan.space.end = whole.aligned_end(),
            Err(_) => return Err(plan.too_small()),
        }
        if disk_sectors != found.disk_sectors {
            let change = Change::MoveBackup { from_sectors: found.disk_sectors, to_sectors: disk_sectors };
            plan.changes.push(change);
        }
        Ok(plan)
    }

    /// Says how large the disk would have to be: what is there, what is missing, and the backup table.
    fn too_small(&self) -> Error {
        let mut ends: Vec<u64> = self.partitions.values().map(Partition::end_lba).collect();
        if let Some(root) = self.partitions.get(&Role::RootA.number()) {
            ends.push(root.first_lba + self.slots.root_bytes() / self.bytes);
        }
        let used = ends.into_iter().max().unwrap_or(0) * self.bytes;
        let missing: u64 = [
            (Role::RootB, self.slots.root_bytes()),
            (Role::RootBVerity, self.slots.verity_bytes()),
            (Role::State, MIN_STATE_BYTES),
        ]
        .into_iter()
        .filter(|(role, _)| !self.partitions.contains_key(&role.number()))
        .map(|(_, bytes)| bytes)
        .sum();
        Error::DiskTooSmall { have: self.disk_bytes, needed: used + missing + self.unit * self.bytes }
    }

    fn grow_root_a(&mut self) -> Result<()> {
        let number = Role::RootA.number();
        let root = &self.partitions[&number];
        let wanted = self.slots.root_bytes() / self.bytes;
        if root.sectors >= wanted {
            return Ok(());
        }
        let limit = self.limit_after(root.end_lba());
        let room = limit.saturating_sub(root.first_lba);
        if room < wanted {
            if limit == self.space.end {
                return Err(self.too_small());
            }
            let (needed, have) = (wanted * self.bytes, room * self.bytes);
            return Err(Error::NoRoom { label: Role::RootA.label().to_owned(), needed, have });
        }
        self.resize(number, wanted);
        Ok(())
    }

    fn add(&mut self, role: Role, bytes: u64, seed: &[u8]) -> Result<()> {
        if self.partitions.contains_key(&role.number()) {
            return Ok(());
        }
        let sectors = bytes / self.bytes;
        let gap = self.gaps().into_iter().find(|gap| gap.end - gap.start >= sectors);
        let first = gap.ok_or_else(|| self.too_small())?.start;
        self.insert(role, role.partition(Guid::derived(role.label(), seed), first, sectors));
        Ok(())
    }

    fn settle_state(&mut self, seed: &[u8]) -> Result<StateStep> {
        let number = Role::State.number();
        let Some(state) = self.partitions.get(&number) else {
            let last = self.gaps().pop().filter(|gap| (gap.end - gap.start) * self.bytes >= MIN_STATE_BYTES);
            let gap = last.ok_or_else(|| self.too_small())?;
            let guid = Guid::derived(Role::State.label(), seed);
            let mut state = Role::State.partition(guid, gap.start, gap.end - gap.start);
            state.label.0 = STATE_NEW.to_owned();
            self.insert(Role::State, state);
            return Ok(StateStep::Format);
        };
        let is_new = state.label.0 == STATE_NEW;
        let limit = self.limit_after(state.end_lba());
        let grows = limit == self.space.end && state.end_lba() < limit;
        if grows {
            let sectors = limit - state.first_lba;
            self.resize(number, sectors);
        }
        Ok(match (is_new, grows) {
            (true, _) => StateStep::Format,
            (false, true) => StateStep::KeepAndGrow,
            (false, false) => StateStep::Keep,
        })
    }

    /// The first sector at or after `lba` that is not free.
    fn limit_after(&self, lba: u64) -> u64 {
        let next = self.partitions.values().map(|part| part.first_lba).filter(|&first| first >= lba).min();
        next.unwrap_or(self.space.end)
    }

    /// The aligned free ranges, in order.
    fn gaps(&self) -> Vec<std::ops::Range<u64>> {
        let mut used: Vec<_> = self.partitions.values().map(|part| (part.first_lba, part.end_lba())).collect();
        used.sort_unstable();
        used.push((self.space.end, self.space.end));
        let mut gaps = Vec::new();
        let mut next = self.space.start;
        for (first, end) in used {
            let gap_end = first / self.unit * self.unit;
            if gap_end > next {
                gaps.push(next..gap_end);
            }
            next = next.max(end.next_multiple_of(self.unit));
        }
        gaps
    }

    fn insert(&mut self, role: Role, partition: Partition) {
        let (number, label, bytes) = (role.number(), partition.label.0.clone(), partition.sectors * self.bytes);
        self.changes.push(Change::Add { number, label, bytes });
        self.partitions.insert(number, partition);
    }

    fn resize(&mut self, number: u32, sectors: u64) {
        let partition = self.partitions.get_mut(&number).expect("callers have seen the partition");
        let (from_bytes, to_bytes) = (partition.sectors * self.bytes, sectors * self.bytes);
        partition.sectors = sectors;
        self.changes.push(Change::Grow { number, label: partition.label.0.clone(), from_bytes, to_bytes });
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{GIB, MIB, spec};
    use super::super::{Label, SectorSize, Spec, image_layout};
    use super::*;
    use crate::type_guid::PartitionType;

    const SIZES: [SectorSize; 2] = [SectorSize::B512, SectorSize::B4096];

    fn image(size: SectorSize) -> Layout {
        image_layout(&spec(size)).unwrap()
    }

    #[test]
    fn disks_of_all_sizes_are_completed_once() {
        for size in SIZES {
            for disk_bytes in [6 * GIB, 8 * GIB, 20 * GIB + 12_288, 18_000_207_937_536, 1 << 60] {
                let case = format!("{size:?} {disk_bytes}");
                let found = image(size);
                let sectors = disk_bytes / size.bytes();
                let done = complete(&found, sectors, b"serial").unwrap();
                let kinds: Vec<String> = done.changes.iter().map(ToString::to_string).collect();
                assert_eq!(kinds.len(), 5, "{case}: {kinds:?}");
                assert_eq!(done.state, StateStep::Format, "{case}");
                let labels: Vec<_> = done.layout.by_position().iter().map(|(_, p)| p.label.to_string()).collect();
                let order = ["ESP", "root-a-verity", "root-a", "root-b", "root-b-verity", "state-new"];
                assert_eq!(labels, order, "{case}");
                let role = |role| done.layout.role(role).unwrap();
                assert_eq!(role(Role::RootA).sectors, role(Role::RootB).sectors, "{case}");
                assert_eq!(role(Role::RootAVerity).sectors, role(Role::RootBVerity).sectors, "{case}");
                assert_eq!(role(Role::RootB).sectors * size.bytes(), 2160 * MIB, "{case}");
                // What was there stays where it was.
                for part in [Role::Esp, Role::RootAVerity] {
                    assert_eq!(role(part), found.role(part).unwrap(), "{case}");
                }
                assert_eq!(role(Role::RootA).guid, found.role(Role::RootA).unwrap().guid, "{case}");
                let state = &done.layout.partitions()[&7];
                assert!(done.layout.last_usable() + 1 - state.end_lba() < size.per_alignment(), "{case}");
                // Asked again, there is nothing to do but the file system.
                let again = complete(&done.layout, sectors, b"serial").unwrap();
                assert!(again.is_unchanged(), "{case}");
                assert_eq!((&again.layout, again.state), (&done.layout, StateStep::Format), "{case}");
                let finished = finish_state(&done.layout).unwrap();
                let last = complete(&finished, sectors, b"other serial").unwrap();
                assert!(last.is_unchanged() && last.state == StateStep::Keep && last.layout == finished, "{case}");
                assert_eq!(finish_state(&finished).unwrap(), finished, "{case}");
            }
        }
    }

    /// Any subset of what the first boot adds is completed to the same table.
    #[test]
    fn partial_tables_are_completed_to_the_same() {
        for size in SIZES {
            let sectors = 32 * GIB / size.bytes();
            let whole = complete(&image(size), sectors, b"serial").unwrap().layout;
            for added in 0..8 {
                let mut parts = whole.partitions.clone();
                for (bit, role) in [Role::RootB, Role::RootBVerity, Role::State].into_iter().enumerate() {
                    if added & (1 << bit) == 0 {
                        parts.remove(&role.number());
                    }
                }
                // `root-b-verity` alone before a missing `root-b` of the same gap: all fit where they stood.
                let partial = Layout::new(size, whole.disk_guid, sectors, parts).unwrap();
                let done = complete(&partial, sectors, b"serial").unwrap();
                assert_eq!(done.layout, whole, "{size:?} {added:#b}");
                assert_eq!(done.changes.len(), 3 - u32::count_ones(added) as usize);
            }
        }
    }

    #[test]
    fn small_disks_are_refused_with_both_sizes() {
        for size in SIZES {
            let found = image(size);
            // 319 MiB before root-a, two slots, state, and the MiB of the backup table.
            let needed = (319 + 2160 + 2160 + 18 + 1024 + 1) * MIB;
            assert!(complete(&found, needed / size.bytes(), b"").is_ok(), "{size:?}");
            for bytes in [needed - MIB, needed - GIB, 3 * GIB, GIB, 571 * MIB, 100 * MIB, 4096, 0] {
                match complete(&found, bytes / size.bytes(), b"") {
                    Err(Error::DiskTooSmall { have, needed: said }) => assert_eq!((have, said), (bytes, needed)),
                    other => panic!("{size:?} {bytes}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn foreign_and_missing_partitions_are_named() {
        let found = image(SectorSize::B512);
        let sectors = 32 * GIB / 512;
        let with = |number, change: &dyn Fn(&mut Partition)| {
            let mut parts = found.partitions.clone();
            let mut part = Role::RootB.partition(Guid::NIL, 20 * GIB / 512, 2048);
            change(&mut part);
            parts.insert(number, part);
            Layout::new(SectorSize::B512, Guid::NIL, sectors, parts).unwrap()
        };
        let data = |part: &mut Partition| part.label = Label::new("data").unwrap();
        let kind = |part: &mut Partition| part.partition_type = PartitionType::BasicData;
        let cases = [with(8, &data), with(5, &data), with(5, &kind), with(9, &|_| ())];
        for (case, layout) in cases.iter().enumerate() {
            let Err(Error::Foreign(names)) = complete(layout, sectors, b"") else { panic!("case {case}") };
            assert_eq!(names.len(), 1, "case {case}");
        }
        let Err(Error::Foreign(names)) = complete(&cases[0], sectors, b"") else { panic!() };
        assert_eq!(names, ["number 8 label \"data\" type root-x86-64"]);
        for role in [Role::Esp, Role::RootA, Role::RootAVerity] {
            let mut parts = found.partitions.clone();
            parts.remove(&role.number());
            let layout = Layout::new(SectorSize::B512, Guid::NIL, sectors, parts).unwrap();
            assert!(matches!(complete(&layout, sectors, b""), Err(Error::Missing(label)) if label == role.label()));
        }
        assert!(matches!(finish_state(&found), Err(Error::Missing("state"))));
    }

    #[test]
    fn a_grown_disk_grows_state() {
        let size = SectorSize::B512;
        let first = complete(&image(size), 16 * GIB / 512, b"").unwrap().layout;
        let finished = finish_state(&first).unwrap();
        let grown = complete(&finished, 24 * GIB / 512, b"").unwrap();
        assert_eq!(grown.state, StateStep::KeepAndGrow);
        assert_eq!(grown.changes.len(), 2);
        let sizes = [&finished, &grown.layout].map(|layout| layout.role(Role::State).unwrap().sectors);
        assert_eq!(sizes[1] - sizes[0], 8 * GIB / 512);
        assert_eq!(complete(&first, 24 * GIB / 512, b"").unwrap().state, StateStep::Format);
    }

    #[test]
    fn reflashing_keeps_state_where_it_fits() {
        let size = SectorSize::B512;
        let sectors = 32 * GIB / 512;
        let old = finish_state(&complete(&image(size), sectors, b"serial").unwrap().layout).unwrap();
        let next =
            image_layout(&Spec { root_size: 900 * MIB, disk_guid: Guid::derived("n", b""), ..spec(size) }).unwrap();
        let kept = keep_state(&next, &old).unwrap();
        let done = complete(&kept, sectors, b"serial").unwrap();
        assert_eq!(done.state, StateStep::Keep);
        assert_eq!(done.layout.role(Role::State), old.role(Role::State));
        // Larger slots than the old ones do not fit before it.
        let larger = image_layout(&Spec { root_size: 2 * GIB, ..spec(size) }).unwrap();
        assert!(keep_state(&larger, &old).is_err());
        // An unfinished state is not worth keeping.
        let unfinished = complete(&image(size), sectors, b"serial").unwrap().layout;
        assert!(matches!(keep_state(&next, &unfinished), Err(Error::Missing("state"))));
    }
}
