use std::collections::BTreeMap;
use std::fs::File;
use std::process::Command;

use super::scratch::Scratch;
use super::*;
use crate::guid::Guid;
use crate::layout::tests::{GIB, MIB, spec};
use crate::layout::{Label, Partition, complete, finish_state, image_layout};
use crate::type_guid::PartitionType;

const SIZES: [SectorSize; 2] = [SectorSize::B512, SectorSize::B4096];

fn image(size: SectorSize) -> Layout {
    image_layout(&spec(size)).unwrap()
}

fn completed(size: SectorSize, disk_bytes: u64) -> Layout {
    complete(&image(size), disk_bytes / size.bytes(), b"serial").unwrap().layout
}

fn no_barrier(_: &mut Scratch) -> io::Result<()> {
    Ok(())
}

fn written(layout: &Layout, disk_bytes: u64) -> Scratch {
    let mut disk = Scratch::new(disk_bytes);
    write_table(&mut disk, layout, BootCode::Clear, no_barrier).unwrap();
    disk
}

fn flip(disk: &mut Scratch, offset: u64, mask: u8) {
    let mut byte = [0];
    disk.seek(SeekFrom::Start(offset)).unwrap();
    disk.read_exact(&mut byte).unwrap();
    disk.seek(SeekFrom::Start(offset)).unwrap();
    disk.write_all(&[byte[0] ^ mask]).unwrap();
}

#[test]
fn written_tables_are_read_back() {
    for size in SIZES {
        for disk_bytes in [6 * GIB, 18_000_207_937_536] {
            let layout = completed(size, disk_bytes);
            let mut disk = written(&layout, disk_bytes);
            let found = read_table(&mut disk, size, disk_bytes / size.bytes()).unwrap();
            assert_eq!(found, Found { layout, findings: vec![] }, "{size:?} {disk_bytes}");
            // Read with the other sector size there is no table.
            let other = if size == SectorSize::B512 { SectorSize::B4096 } else { SectorSize::B512 };
            assert!(matches!(read_table(&mut disk, other, disk_bytes / other.bytes()), Err(Error::NoTable { .. })));
        }
    }
}

#[test]
fn an_empty_disk_has_no_table() {
    let error = read_table(&mut Scratch::new(MIB), SectorSize::B512, 2048).unwrap_err();
    let Error::NoTable { primary, backup } = error else { panic!("{error:?}") };
    assert_eq!((primary, backup), (Defect::NoSignature, Defect::NoSignature));
    assert!(matches!(read_table(&mut Scratch::new(0), SectorSize::B512, 0), Err(Error::NoTable { .. })));
}

#[test]
fn an_image_on_a_larger_disk_has_its_backup_moved() {
    for size in SIZES {
        let layout = image(size);
        let mut disk = written(&layout, layout.disk_bytes());
        disk.length = 8 * GIB;
        let sectors = 8 * GIB / size.bytes();
        let found = read_table(&mut disk, size, sectors).unwrap();
        assert_eq!(found.layout, layout);
        let at = layout.disk_sectors() - 1;
        assert_eq!(found.findings, [Finding::BackupMisplaced { at, last: sectors - 1 }]);
        let done = complete(&found.layout, sectors, b"serial").unwrap();
        write_table(&mut disk, &done.layout, BootCode::Keep, no_barrier).unwrap();
        assert!(read_table(&mut disk, size, sectors).unwrap().is_sound());
    }
}

#[test]
fn what_was_there_before_an_image_was_written_is_known() {
    for size in SIZES {
        let disk_bytes = 8 * GIB;
        let sectors = disk_bytes / size.bytes();
        let old = completed(size, disk_bytes);
        let read = |disk: &mut Scratch| {
            let found = read_table(disk, size, sectors).unwrap();
            read_earlier(disk, &found, sectors)
        };
        assert_eq!(read(&mut written(&old, disk_bytes)), None, "a sound table is no earlier one");
        // As `dd` does: the image, with both copies of its table, over the disk's beginning.
        let new = image(size);
        let mut disk = written(&old, disk_bytes);
        disk.length = new.disk_bytes();
        write_table(&mut disk, &new, BootCode::Clear, no_barrier).unwrap();
        disk.length = disk_bytes;
        assert_eq!(read(&mut disk), Some(old));
        flip(&mut disk, disk_bytes - size.bytes() + 60, 1);
        assert_eq!(read(&mut disk), None, "a damaged one");
        let mut fresh = written(&new, new.disk_bytes());
        fresh.length = disk_bytes;
        assert_eq!(read(&mut fresh), None, "a disk that was empty");
    }
}

#[test]
fn every_flipped_bit_is_seen_and_repaired() {
    for size in SIZES {
        let disk_bytes = 6 * GIB;
        let sectors = disk_bytes / size.bytes();
        let layout = completed(size, disk_bytes);
        let sound = written(&layout, disk_bytes);
        let last = (sectors - 1) * size.bytes();
        let entries = [2 * size.bytes(), last - 16384];
        for (copy, header) in [size.bytes(), last].into_iter().enumerate() {
            // All of the header's 92 bytes; some of the entries, in use and not.
            let offsets = (0..92).map(|at| header + at).chain((0..16384).step_by(61).map(|at| entries[copy] + at));
            for (index, offset) in offsets.enumerate() {
                let mut disk = sound.clone();
                flip(&mut disk, offset, 1 << (index % 8));
                let found = read_table(&mut disk, size, sectors).unwrap();
                assert_eq!(found.layout, layout, "offset {offset}");
                match (copy, &found.findings[..]) {
                    (0, [Finding::PrimaryDamaged(_)]) | (1, [Finding::BackupDamaged(_)]) => {}
                    other => panic!("offset {offset}: {other:?}"),
                }
                // The second implementation sees it as well.
                assert!(scratch::compare(disk.clone(), &layout).is_err(), "offset {offset}");
                write_table(&mut disk, &found.layout, BootCode::Keep, no_barrier).unwrap();
                assert!(read_table(&mut disk, size, sectors).unwrap().is_sound(), "offset {offset}");
            }
        }
        let mut both = sound.clone();
        flip(&mut both, size.bytes() + 20, 1);
        flip(&mut both, last + 56, 1);
        assert!(matches!(read_table(&mut both, size, sectors), Err(Error::NoTable { .. })));
        for offset in [510, 511, 450] {
            let mut disk = sound.clone();
            flip(&mut disk, offset, 0x10);
            assert_eq!(read_table(&mut disk, size, sectors).unwrap().findings, [Finding::NoProtectiveMbr]);
        }
    }
}

/// Valid checksums over nonsense: the checks behind the checksums.
#[test]
fn nonsense_with_valid_checksums_is_refused() {
    let layout = image(SectorSize::B512);
    let sound = written(&layout, layout.disk_bytes());
    let last_entry = 1024 + 2 * 128;
    type Case<'a> = (&'a str, u64, &'a [u8]);
    let cases: [Case<'_>; 7] = [
        ("revision", 512 + 8, &[0, 0, 2, 0]),
        ("my lba", 512 + 24, &[2]),
        ("number of entries", 512 + 80, &[0, 0, 0, 1]),
        ("entry size", 512 + 84, &[0x81]),
        ("last before first", last_entry + 40, &[0; 8]),
        ("partition past the end", last_entry + 40, &[0xff; 8]),
        ("alternate lba", 512 + 32, &[0xff; 8]),
    ];
    for (case, offset, bytes) in cases {
        let mut disk = sound.clone();
        disk.seek(SeekFrom::Start(offset)).unwrap();
        disk.write_all(bytes).unwrap();
        let mut table = vec![0; 512 + 16384];
        disk.seek(SeekFrom::Start(512)).unwrap();
        disk.read_exact(&mut table).unwrap();
        let entries_crc = crc32fast::hash(&table[512..]);
        table[88..92].copy_from_slice(&entries_crc.to_le_bytes());
        table[16..20].fill(0);
        let crc = crc32fast::hash(&table[..92]);
        table[16..20].copy_from_slice(&crc.to_le_bytes());
        disk.seek(SeekFrom::Start(512)).unwrap();
        disk.write_all(&table).unwrap();
        let found = read_table(&mut disk, SectorSize::B512, layout.disk_sectors()).unwrap();
        assert!(matches!(found.findings[..], [Finding::PrimaryDamaged(_)]), "{case}: {:?}", found.findings);
    }
}

/// Cuts the power after each write, in the middle of each, and with the writes between two barriers reaching the disk
/// in any combination. Each time the next start must end in the same table.
#[test]
fn power_cuts_lose_nothing() {
    for size in SIZES {
        let image = image(size);
        let sectors = 8 * GIB / size.bytes();
        let mut before = written(&image, image.disk_bytes());
        before.length = 8 * GIB;
        let first = complete(&image, sectors, b"serial").unwrap().layout;
        let finished = finish_state(&first).unwrap();
        let mut middle = before.clone();
        write_table(&mut middle, &first, BootCode::Keep, no_barrier).unwrap();
        let mut cuts = 0;
        for (start, old, new) in [(&before, &image, &first), (&middle, &first, &finished)] {
            for disk in cut_everywhere(start, &plan_write(new, &read_mbr(&mut start.clone()).unwrap(), BootCode::Keep))
            {
                cuts += 1;
                let mut disk = disk;
                let found = read_table(&mut disk, size, sectors).unwrap();
                assert!(found.layout == *old || found.layout == *new, "cut {cuts}:\n{}", found.layout);
                let done = complete(&found.layout, sectors, b"serial").unwrap();
                write_table(&mut disk, &done.layout, BootCode::Keep, no_barrier).unwrap();
                let done = finish_state(&done.layout).unwrap();
                write_table(&mut disk, &done, BootCode::Keep, no_barrier).unwrap();
                let end = read_table(&mut disk, size, sectors).unwrap();
                assert!(end.is_sound() && end.layout == finished, "cut {cuts}");
            }
        }
        assert!(cuts > 20, "{cuts}");
    }
}

/// Every state of the disk that a power cut while applying `steps` can leave: all of the batches before one barrier,
/// and of the next batch each write whole, half or not at all.
fn cut_everywhere(start: &Scratch, steps: &[Step]) -> Vec<Scratch> {
    let mut states = Vec::new();
    let mut durable = start.clone();
    for batch in steps.split(|step| *step == Step::Barrier) {
        for mut choice in 0..3_u32.pow(batch.len() as u32) {
            let mut disk = durable.clone();
            for step in batch {
                let Step::Write { offset, bytes, .. } = step else { unreachable!("barriers split the batches") };
                let length = bytes.len() * (choice % 3) as usize / 2;
                // Halves of a sector do not happen: disks write whole ones.
                let length = if length < bytes.len() { length / 512 * 512 } else { length };
                disk.seek(SeekFrom::Start(*offset)).unwrap();
                disk.write_all(&bytes[..length]).unwrap();
                choice /= 3;
            }
            states.push(disk);
        }
        for step in batch {
            apply(&mut durable, step, &mut no_barrier).unwrap();
        }
    }
    states
}

#[test]
fn a_failing_device_is_reported_and_leaves_a_table() {
    let layout = completed(SectorSize::B512, 6 * GIB);
    let mut disk = written(&layout, 6 * GIB);
    let finished = finish_state(&layout).unwrap();
    for fail_at in 1..=3 {
        let mut barriers = 0;
        let result = write_table(&mut disk, &finished, BootCode::Keep, |_| {
            barriers += 1;
            if barriers == fail_at { Err(io::Error::other("gone")) } else { Ok(()) }
        });
        assert!(matches!(result, Err(Error::Io { .. })), "{fail_at}");
        assert!(read_table(&mut disk, SectorSize::B512, layout.disk_sectors()).is_ok(), "{fail_at}");
    }
}

#[test]
fn boot_code_is_kept_replaced_or_cleared() {
    let layout = image(SectorSize::B512);
    let mut disk = Scratch::new(layout.disk_bytes());
    let code: [u8; BOOT_CODE_BYTES] = std::array::from_fn(|i| i as u8 | 1);
    for (boot_code, expected) in
        [(BootCode::Install(&code), code), (BootCode::Keep, code), (BootCode::Clear, [0; BOOT_CODE_BYTES])]
    {
        write_table(&mut disk, &layout, boot_code, no_barrier).unwrap();
        assert_eq!(read_boot_code(&mut disk).unwrap(), expected, "{boot_code:?}");
    }
}

#[test]
fn a_disagreement_stops_before_the_disk_is_touched() {
    let layout = image(SectorSize::B512);
    let mut steps = plan_write(&layout, &[0; 512], BootCode::Clear);
    assert!(scratch::rehearse(&steps, &layout).is_ok());
    let Step::Write { bytes, .. } = &mut steps[0] else { panic!() };
    bytes[56] ^= 1;
    assert!(matches!(scratch::rehearse(&steps, &layout), Err(Error::Rehearsal(_))));
}

/// Runs a tool, or says that it is missing: locally the test is skipped, in CI it fails.
fn tool(program: &str, arguments: &[&str]) -> Option<String> {
    match Command::new(program).args(arguments).env("LC_ALL", "C").output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{program} {arguments:?}: {text}");
            Some(text.into_owned())
        }
        Err(_) => {
            assert!(std::env::var_os("CI").is_none(), "{program} is missing");
            eprintln!("skipped: {program} is missing");
            None
        }
    }
}

/// A sparse file with the table of an image completed on a disk of that size.
fn file_with(layout: &Layout) -> tempfile::NamedTempFile {
    // sfdisk names partitions in another way where the path ends in a digit.
    let mut file = tempfile::NamedTempFile::with_suffix(".raw").unwrap();
    file.as_file().set_len(layout.disk_bytes()).unwrap();
    write_table(file.as_file_mut(), layout, BootCode::Clear, |file: &mut File| file.sync_data()).unwrap();
    file
}

#[test]
fn sfdisk_and_sgdisk_agree() {
    for layout in [image(SectorSize::B512), completed(SectorSize::B512, 12 * GIB)] {
        let file = file_with(&layout);
        let path = file.path().to_str().unwrap();
        if let Some(text) = tool("sfdisk", &["--verify", path]) {
            assert!(text.contains("No errors detected"), "{text}");
        }
        if let Some(text) = tool("sgdisk", &["--verify", path]) {
            assert!(text.contains("No problems found"), "{text}");
        }
        let Some(dump) = tool("sfdisk", &["--dump", path]) else { continue };
        assert!(dump.contains(&format!("label-id: {}", layout.disk_guid().to_string().to_uppercase())), "{dump}");
        for (number, part) in layout.partitions() {
            let line = dump.lines().find(|line| line.starts_with(&format!("{path}{number} :"))).expect("a line");
            for field in [
                format!("start={:12}", part.first_lba),
                format!("size={:12}", part.sectors),
                format!("type={}", part.partition_type.guid().to_string().to_uppercase()),
                format!("uuid={}", part.guid.to_string().to_uppercase()),
                format!("name=\"{}\"", part.label),
            ] {
                assert!(line.contains(&field), "{field} in {line}");
            }
            assert_eq!(line.contains("LegacyBIOSBootable"), part.attributes.bits() & 4 != 0, "{line}");
            assert_eq!(line.contains("GUID:60"), part.attributes.bits() >> 60 & 1 == 1, "{line}");
        }
    }
}

/// A table that `sfdisk` made, with its own alignment and gaps in the numbers, is read and written again unchanged.
#[test]
fn a_foreign_table_is_read() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(64 * MIB).unwrap();
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        script.path(),
        "label: gpt\nlabel-id: 11111111-2222-4333-8444-555555555555\nfirst-lba: 34\n\
         2 : start=40, size=100, type=L, name=\"tiny\"\n9 : start=2048, type=U, name=\"größer\"\n",
    )
    .unwrap();
    let child =
        Command::new("sfdisk").arg("--quiet").arg(file.path()).stdin(File::open(script.path()).unwrap()).output();
    let Ok(output) = child else {
        assert!(std::env::var_os("CI").is_none(), "sfdisk is missing");
        eprintln!("skipped: sfdisk is missing");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found = read_table(file.as_file_mut(), SectorSize::B512, 64 * MIB / 512).unwrap();
    assert!(found.is_sound(), "{:?}", found.findings);
    let parts: BTreeMap<u32, Partition> = found.layout.partitions().clone();
    assert_eq!(parts.keys().copied().collect::<Vec<_>>(), [2, 9]);
    assert_eq!((parts[&2].first_lba, parts[&2].sectors), (40, 100));
    assert_eq!(parts[&9].label, Label::new("größer").unwrap());
    assert_eq!(parts[&9].partition_type, PartitionType::Esp);
    assert_eq!(found.layout.disk_guid(), "11111111-2222-4333-8444-555555555555".parse::<Guid>().unwrap());
    write_table(file.as_file_mut(), &found.layout, BootCode::Keep, |_| Ok(())).unwrap();
    assert_eq!(read_table(file.as_file_mut(), SectorSize::B512, 64 * MIB / 512).unwrap().layout, found.layout);
}
