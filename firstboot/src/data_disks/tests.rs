//! Preparation, cut at every write, in memory; and the real programs on a loop device.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;

use disk::table::{BootCode, Step as TableStep, plan_write};
use nodezero_profile::data_disks::{Planned, Records, Target, Verdict, plan};
use nodezero_profile::inventory::{
    Content, Disk, Foreign, Inventory, NodeFacts, Prepared, Signature, Stage, Transport,
};
use nodezero_profile::mark::{DATA_LABEL, DATA_LABEL_NEW, Identity, Marks};
use nodezero_profile::node::{FileSystem, Node};

use super::prepare::{Bench, prepare};
use crate::disks::recognise::{Seen, layout, recognise};

const NODE: &str = "toronto-0002";
const SIZE: u64 = 18_000_207_937_536;

pub(crate) fn disk(path: &str, size: u64, sector_size: u32) -> Disk {
    Disk {
        name: path.trim_start_matches("/dev/").to_owned(),
        path: path.to_owned(),
        by_path: Vec::new(),
        size,
        sector_size,
        transport: Transport::Sata,
        vendor: None,
        model: None,
        serial: Some("Z1".to_owned()),
        wwn: None,
        rotational: true,
        removable: false,
        read_only: false,
        boot: false,
        in_use: Vec::new(),
        content: Content::Blank,
    }
}

pub(crate) fn target(serial: &str) -> Target {
    let identity = Identity::of_facts(Some(serial), None).expect("an identity");
    Target {
        entry: "bulk".to_owned(),
        marks: Marks::new(NODE, &identity),
        identity,
        filesystem: FileSystem::Xfs,
        consent: None,
    }
}

pub(crate) fn decide(disk: &Disk) -> Planned {
    let json = format!(
        r#"{{"version":1,"name":"{NODE}","role":"worker","dataDisks":[{{"name":"bulk","select":{{"serial":"Z1"}},"count":1}}]}}"#
    );
    let node = Node::parse(json.as_bytes()).expect("valid");
    let inventory = Inventory::new(NodeFacts::default(), vec![disk.clone()]);
    plan(&node, &inventory, &Records::default()).disks.remove(0)
}

const BLOCK: u64 = 512;

/// A disk in memory, zero where nothing was written, that keeps each block's writes apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Memory {
    size: u64,
    position: u64,
    blocks: BTreeMap<u64, [u8; 512]>,
}

impl Memory {
    fn new(size: u64) -> Self {
        Self { size, ..Self::default() }
    }

    fn at(&self, offset: u64) -> [u8; 512] {
        self.blocks.get(&offset).copied().unwrap_or([0; 512])
    }

    fn set(&mut self, offset: u64, block: [u8; 512]) {
        if block == [0; 512] {
            self.blocks.remove(&offset)
        } else {
            self.blocks.insert(offset, block)
        };
    }
}

impl Read for Memory {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.size - self.position.min(self.size);
        let length = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let (start, end) = (self.position, self.position + length as u64);
        buffer[..length].fill(0);
        for (at, block) in self.blocks.range(start / BLOCK * BLOCK..end) {
            let (from, to) = (start.max(*at), end.min(at + BLOCK));
            let source = &block[(from - at) as usize..(to - at) as usize];
            buffer[(from - start) as usize..(to - start) as usize].copy_from_slice(source);
        }
        self.position += length as u64;
        Ok(length)
    }
}

impl Seek for Memory {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let SeekFrom::Start(offset) = to else { return Err(io::ErrorKind::Unsupported.into()) };
        self.position = offset;
        Ok(offset)
    }
}

/// What happens to the disk, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there are a few dozen of them")]
enum Event {
    Write(u64, [u8; 512]),
    Barrier,
}

/// A disk in memory that a bench has open: it notes what happens.
struct Open {
    memory: Memory,
    shared: std::rc::Rc<std::cell::RefCell<(Memory, Vec<Event>)>>,
}

impl Read for Open {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.memory.blocks.clone_from(&self.shared.borrow().0.blocks);
        self.memory.read(buffer)
    }
}

impl Write for Open {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert_eq!((self.memory.position % BLOCK, bytes.len() % 512), (0, 0), "tables are written in whole blocks");
        let mut shared = self.shared.borrow_mut();
        for piece in bytes.chunks(512) {
            let block = piece.try_into().expect("whole");
            shared.0.set(self.memory.position, block);
            shared.1.push(Event::Write(self.memory.position, block));
            self.memory.position += BLOCK;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Open {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.memory.seek(to)
    }
}

/// A bench in memory. Its mkfs writes a superblock and a block far into the partition, its probe reads the superblock.
struct InMemory {
    shared: std::rc::Rc<std::cell::RefCell<(Memory, Vec<Event>)>>,
    size: u64,
    sector: u32,
}

impl InMemory {
    fn new(memory: Memory, sector: u32) -> Self {
        let size = memory.size;
        Self { shared: std::rc::Rc::new(std::cell::RefCell::new((memory, Vec::new()))), size, sector }
    }

    fn memory(&self) -> Memory {
        self.shared.borrow().0.clone()
    }
}

/// What libblkid would say of a disk in memory.
fn examine(memory: &Memory, sector: u32) -> Content {
    match recognise(&mut memory.clone(), memory.size, sector).expect("memory can be read") {
        Seen::Blank => Content::Blank,
        Seen::Other { at } => Content::Foreign(Foreign { unknown_data_at: Some(at), ..Foreign::default() }),
        Seen::Prepared { stage, disk_guid, partition_guid, partition } => {
            let superblock = memory.at(partition.start);
            let uuid: [u8; 16] = superblock[4..20].try_into().expect("sixteen");
            let file_system = (&superblock[..4] == b"XFSB").then(|| Signature {
                kind: "xfs".to_owned(),
                offset: partition.start,
                partition: Some(1),
                label: None,
                uuid: Some(uuid::Uuid::from_bytes(uuid).to_string()),
            });
            Content::Prepared(Prepared { stage, disk_guid, partition_guid, file_system })
        }
    }
}

impl Bench for InMemory {
    type Device = Open;

    fn open(&mut self) -> anyhow::Result<Open> {
        Ok(Open { memory: Memory::new(self.size), shared: self.shared.clone() })
    }

    fn barrier(device: &mut Open) -> io::Result<()> {
        device.shared.borrow_mut().1.push(Event::Barrier);
        Ok(())
    }

    fn reread(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn examine(&mut self) -> Content {
        examine(&self.memory(), self.sector)
    }

    fn make_file_system(&mut self, target: &Target, place: &Range<u64>, _again: bool) -> anyhow::Result<()> {
        let mut superblock = [0; 512];
        superblock[..4].copy_from_slice(b"XFSB");
        superblock[4..20].copy_from_slice(target.marks.file_system.as_bytes());
        let mut device = self.open()?;
        for (at, block) in [(place.start + (1 << 40), [7; 512]), (place.start, superblock), (place.end - 512, [8; 512])]
        {
            device.seek(SeekFrom::Start(at))?;
            device.write_all(&block)?;
        }
        Self::barrier(&mut device)?;
        Ok(())
    }
}

/// Prepares a disk in memory as the plan says, to the end. Gives the disk and what happened.
fn finish(memory: Memory, sector: u32) -> (Memory, Vec<Event>) {
    let found = Disk { content: examine(&memory, sector), ..disk("/dev/sda", memory.size, sector) };
    let mut bench = InMemory::new(memory, sector);
    let from = match decide(&found).verdict {
        Verdict::Prepare(_) => None,
        Verdict::Continue(_, stage) => Some(stage),
        Verdict::Keep(_) => return (bench.memory(), Vec::new()),
        verdict => panic!("{verdict:?}"),
    };
    prepare(&mut bench, &found, &target("Z1"), from).expect("prepared");
    let events = bench.shared.borrow().1.clone();
    (bench.memory(), events)
}

/// Every state that a power cut can leave: all before one barrier, and of the writes up to the next any choice.
fn cuts(start: &Memory, events: &[Event]) -> Vec<Memory> {
    let mut states = Vec::new();
    let mut durable = start.clone();
    for batch in events.split(|event| *event == Event::Barrier) {
        let writes: Vec<(u64, [u8; 512])> = batch
            .iter()
            .filter_map(|event| match event {
                Event::Write(at, block) => Some((*at, *block)),
                Event::Barrier => None,
            })
            .filter(|(at, block)| durable.at(*at) != *block)
            .collect();
        assert!(writes.len() <= 8, "{} blocks between two barriers", writes.len());
        for choice in 0..1_u32 << writes.len() {
            let mut state = durable.clone();
            for (index, (at, block)) in writes.iter().enumerate() {
                if choice >> index & 1 == 1 {
                    state.set(*at, *block);
                }
            }
            states.push(state);
        }
        for (at, block) in writes {
            durable.set(at, block);
        }
    }
    states
}

/// A power cut at any moment of the preparation, and at any moment of going on after it, ends in the same disk.
#[test]
fn a_cut_at_any_write_ends_in_the_same_disk() {
    for (size, sector) in [(SIZE, 512), (SIZE, 4096)] {
        let blank = Memory::new(size);
        let (whole, events) = finish(blank.clone(), sector);
        let found = examine(&whole, sector);
        assert!(matches!(&found, Content::Prepared(found) if found.stage == Stage::Done), "{sector}: {found:?}");
        let first = cuts(&blank, &events);
        let mut stages = BTreeMap::new();
        for state in &first {
            let stage = match examine(state, sector) {
                Content::Blank => "blank".to_owned(),
                Content::Prepared(prepared) => format!("{:?}", prepared.stage),
                other => panic!("{sector}: not recognised: {other:?}"),
            };
            *stages.entry(stage).or_insert(0) += 1;
            let (end, again) = finish(state.clone(), sector);
            assert_eq!(end.blocks, whole.blocks, "{sector}");
            for second in cuts(state, &again) {
                assert_eq!(finish(second, sector).0.blocks, whole.blocks, "{sector}: second cut");
            }
        }
        let expected = ["Done", "FileSystem", "Name", "Table", "blank"].map(str::to_owned);
        assert_eq!(stages.keys().cloned().collect::<Vec<_>>(), expected, "{sector}: {stages:?}");
        assert!(first.len() > 20, "{} states", first.len());
    }
}

/// Once the table gives the partition its final name, no file system is made on it any more.
#[test]
fn a_finished_file_system_is_never_made_again() {
    let (_, events) = finish(Memory::new(SIZE), 512);
    let fs_at = 1 << 20;
    let last = events.iter().rposition(|event| matches!(event, Event::Write(at, _) if *at == fs_at)).expect("mkfs ran");
    for state in cuts(&Memory::new(SIZE), &events) {
        let Content::Prepared(found) = examine(&state, 512) else { continue };
        let (_, again) = finish(state, 512);
        let makes = again.iter().any(|event| matches!(event, Event::Write(at, _) if *at == fs_at));
        assert_eq!(makes, matches!(found.stage, Stage::Table | Stage::FileSystem), "{found:?}");
    }
    let barrier = events[last..].iter().position(|event| *event == Event::Barrier).expect("a barrier after mkfs");
    let rename = events[last + 1..]
        .iter()
        .position(|event| matches!(event, Event::Write(at, _) if *at > SIZE - (1 << 20) || *at < fs_at));
    assert!(rename.expect("a rename") + 1 > barrier, "the file system is durable before its partition is named");
}

/// Whatever is added to a state of ours, or changed in it, makes it foreign.
#[test]
fn one_byte_more_is_not_ours() {
    for sector in [512, 4096] {
        let (whole, events) = finish(Memory::new(SIZE), sector);
        let mut states = cuts(&Memory::new(SIZE), &events);
        states.push(whole);
        // One state of each number of blocks: the rest differ in which, not in kind.
        states.retain(|state| !state.blocks.is_empty());
        states.sort_by_key(|state| state.blocks.len());
        states.dedup_by_key(|state| state.blocks.len());
        let partition = layout(SIZE, sector, uuid::Uuid::nil(), uuid::Uuid::nil(), "").expect("fits");
        let partition = partition.byte_range(&partition.partitions()[&1]);
        for state in &states {
            // In the space around the partition, and far into the entries.
            for at in [440, 0x8000, (1 << 20) - 512, SIZE - 512 * 40, SIZE - 65_536, SIZE - 1024] {
                let offset = at / BLOCK * BLOCK;
                let mut changed = state.clone();
                let mut block = changed.at(offset);
                block[(at % BLOCK) as usize] ^= 0x55;
                changed.set(offset, block);
                assert!(matches!(examine(&changed, sector), Content::Foreign(_)), "{sector} {at}");
            }
            // Each byte of each block of ours.
            for (offset, block) in state.blocks.iter().filter(|(at, _)| !partition.contains(at)) {
                for byte in (0..512).filter(|byte| byte % 61 == 0 || block[*byte] != 0).step_by(3) {
                    let mut changed = state.clone();
                    let mut block = *block;
                    block[byte] ^= 1;
                    changed.set(*offset, block);
                    let content = examine(&changed, sector);
                    let found = Disk { content, ..disk("/dev/sda", SIZE, sector) };
                    // A changed GUID alone may read as another node's; neither is ours.
                    assert!(matches!(decide(&found).verdict, Verdict::Refuse { .. }), "{sector} {offset} {byte}");
                }
            }
        }
    }
}

/// Only while the table is not whole must the partition be empty: data in it then is nobody's that we know.
#[test]
fn data_in_a_partition_that_never_was_is_foreign() {
    let table = layout(SIZE, 512, target("Z1").marks.disk, target("Z1").marks.partition, DATA_LABEL_NEW).expect("fits");
    let steps = plan_write(&table, &[0; 512], BootCode::Clear);
    let mut memory = Memory::new(SIZE);
    for step in &steps[..2] {
        let TableStep::Write { offset, bytes, .. } = step else { panic!("{step:?}") };
        for (at, piece) in (*offset..).step_by(512).zip(bytes.chunks(512)) {
            memory.set(at, piece.try_into().expect("whole"));
        }
    }
    assert!(matches!(examine(&memory, 512), Content::Prepared(found) if found.stage == Stage::Table));
    memory.set(1 << 20, [1; 512]);
    assert!(matches!(examine(&memory, 512), Content::Foreign(_)));
}

/// The primary table before the backup is no order of ours, though each block is.
#[test]
fn another_order_of_the_same_writes_is_foreign() {
    let marks = target("Z1").marks;
    let table = |label| layout(SIZE, 512, marks.disk, marks.partition, label).expect("fits");
    let write = |memory: &mut Memory, label, range: Range<usize>| {
        for step in &plan_write(&table(label), &[0; 512], BootCode::Clear)[range] {
            let TableStep::Write { offset, bytes, .. } = step else { continue };
            for (at, piece) in (*offset..).step_by(512).zip(bytes.chunks(512)) {
                memory.set(at, piece.try_into().expect("whole"));
            }
        }
    };
    let mut primary_only = Memory::new(SIZE);
    write(&mut primary_only, DATA_LABEL_NEW, 3..6);
    let mut renamed_in_front = Memory::new(SIZE);
    write(&mut renamed_in_front, DATA_LABEL_NEW, 0..8);
    write(&mut renamed_in_front, DATA_LABEL, 3..6);
    for (case, memory) in [("primary only", primary_only), ("renamed in front", renamed_in_front)] {
        assert!(matches!(examine(&memory, 512), Content::Foreign(_)), "{case}");
    }
}

/// What is on the disk is compared once more before the first write.
#[test]
fn a_disk_that_changed_meanwhile_is_not_written_to() {
    let other = Marks::new("another", &target("Z1").identity);
    for (case, from, at, block) in [
        ("data appeared", None, 4096, [1; 512]),
        ("data appeared in what was begun", Some(Stage::FileSystem), SIZE - 512, [0xff; 512]),
        ("a mark of another node appeared", None, SIZE - 512 * 33, {
            let table = layout(SIZE, 512, other.disk, other.partition, DATA_LABEL_NEW).expect("fits");
            let TableStep::Write { bytes, .. } = &plan_write(&table, &[0; 512], BootCode::Clear)[0] else { panic!() };
            bytes[..512].try_into().expect("whole")
        }),
    ] {
        let mut memory = Memory::new(SIZE);
        memory.set(at, block);
        let mut bench = InMemory::new(memory, 512);
        let error = prepare(&mut bench, &disk("/dev/sda", SIZE, 512), &target("Z1"), from).expect_err(case).to_string();
        assert!(error.starts_with("what is on it has changed since it was looked at"), "{case}: {error}");
        assert_eq!(bench.shared.borrow().1, [], "{case}");
    }
}

#[test]
fn small_and_odd_disks_are_read_too() {
    for size in [0, 512, 4096, 1 << 20, 3 << 20, 33 << 20] {
        for sector in [512, 520, 4096] {
            let mut memory = Memory::new(size);
            assert_eq!(examine(&memory, sector), Content::Blank, "{size} {sector}");
            if size > 0 {
                memory.set(size - 512, [1; 512]);
                assert!(matches!(examine(&memory, sector), Content::Foreign(_)), "{size} {sector}");
            }
        }
    }
}
