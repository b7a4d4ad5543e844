//! What is on a disk: signatures that libblkid knows, through util-linux' `wipefs` and `blkid`; what a NodeZero node
//! wrote; and whether the ends are zero. Devices are opened for reading alone.
//!
//! A partition's content is looked for at its place on the disk, so that it does not matter whether the kernel shows
//! the partition. Left out: what stands in partitions of tables other than GPT, for their table is enough to refuse.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use anyhow::Context;
use disk::SectorSize;
use disk::table::read_table;
use nodezero_profile::inventory::{Content, Foreign, Partition, Prepared, Signature, Stage};
use serde::Deserialize;
use uuid::Uuid;

use super::recognise::{Seen, recognise};
use crate::command::run;

/// Partitions of a foreign table that are looked into and listed.
const MOST_PARTITIONS: usize = 16;

/// What libblkid finds at the places of a GPT, on a disk that has nothing else.
const GPT_SIGNATURES: [&str; 2] = ["gpt", "PMBR"];

/// Looks at a disk of `size` bytes.
pub(crate) fn examine(path: &Path, size: u64, sector_size: u32) -> Content {
    let seen = match read_ends(path, size, sector_size) {
        Ok(seen) => seen,
        Err(error) => return Content::Unreadable { error: error.to_string() },
    };
    classify(path, size, sector_size, seen).unwrap_or_else(|error| Content::NotExamined { why: format!("{error:#}") })
}

/// Reads what is on the disk, and not what was cached of it before its partition was written to.
fn read_ends(path: &Path, size: u64, sector_size: u32) -> io::Result<Seen> {
    let mut device = File::open(path)?;
    if device.metadata()?.file_type().is_block_device() {
        crate::sys::flush_buffers(device.as_fd())?;
    }
    recognise(&mut device, size, sector_size)
}

fn classify(path: &Path, size: u64, sector_size: u32, seen: Seen) -> anyhow::Result<Content> {
    let signatures = signatures(path)?;
    match seen {
        Seen::Prepared { stage, disk_guid, partition_guid, partition }
            if signatures.iter().all(|found| GPT_SIGNATURES.contains(&&*found.kind)) =>
        {
            let file_system = match stage {
                // Nothing was ever written there.
                Stage::Table => None,
                Stage::FileSystem | Stage::Name | Stage::Done => probe(path, 1, &partition)?,
            };
            Ok(Content::Prepared(Prepared { stage, disk_guid, partition_guid, file_system }))
        }
        Seen::Blank if signatures.is_empty() => Ok(Content::Blank),
        seen => {
            let unknown_data_at = match seen {
                Seen::Blank => None,
                Seen::Other { at } => Some(at),
                // A GPT stands there, beside which there is something else.
                Seen::Prepared { .. } => Some(0),
            };
            let mut foreign = Foreign { signatures, partitions: Vec::new(), unknown_data_at };
            look_into_partitions(path, size, sector_size, &mut foreign)?;
            Ok(Content::Foreign(foreign))
        }
    }
}

/// All signatures of the disk itself.
fn signatures(path: &Path) -> anyhow::Result<Vec<Signature>> {
    #[derive(Deserialize)]
    struct Listing {
        signatures: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        offset: String,
        r#type: String,
        uuid: Option<String>,
        label: Option<String>,
    }
    // Without an option that erases, the program opens the device for reading.
    let output = run("wipefs", &["--json", "--no-act", &path.to_string_lossy()], b"", |code| code == 0)?;
    if output.stdout.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    let listing: Listing = serde_json::from_slice(&output.stdout).context("parsing what wipefs printed")?;
    let entry = |entry: Entry| {
        let digits = entry.offset.trim_start_matches("0x");
        let offset = u64::from_str_radix(digits, 16).with_context(|| format!("wipefs says offset {digits:?}"))?;
        let (uuid, label) = (filled(entry.uuid), filled(entry.label));
        Ok(Signature { kind: entry.r#type, offset, partition: None, label, uuid })
    };
    listing.signatures.into_iter().map(entry).collect()
}

fn filled(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// What a partition holds, by its place on the disk.
pub(crate) fn probe(path: &Path, number: u32, place: &Range<u64>) -> anyhow::Result<Option<Signature>> {
    let (offset, size) = (place.start.to_string(), (place.end - place.start).to_string());
    let path = path.to_string_lossy();
    let arguments = ["--probe", "--offset", &offset, "--size", &size, "--output", "export", &path];
    // 2: nothing was found; 8: signatures that exclude each other.
    let output = run("blkid", &arguments, b"", |code| matches!(code, 0 | 2 | 8))?;
    let found =
        Signature { kind: String::new(), offset: place.start, partition: Some(number), label: None, uuid: None };
    match output.status.code() {
        Some(0) => {}
        Some(2) => return Ok(None),
        _ => return Ok(Some(Signature { kind: "several signatures".to_owned(), ..found })),
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        filled(line.map(str::to_owned))
    };
    let kind = value("TYPE").or_else(|| value("PTTYPE")).unwrap_or_else(|| "something unknown".to_owned());
    Ok(Some(Signature { kind, label: value("LABEL"), uuid: value("UUID"), ..found }))
}

/// Lists the partitions of a GPT and what they hold.
fn look_into_partitions(path: &Path, size: u64, sector_size: u32, foreign: &mut Foreign) -> anyhow::Result<()> {
    let Ok(sector) = SectorSize::new(u64::from(sector_size)) else { return Ok(()) };
    let mut device = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let Ok(found) = read_table(&mut device, sector, size / sector.bytes()) else { return Ok(()) };
    for (&number, part) in found.layout.partitions().iter().take(MOST_PARTITIONS) {
        let place = found.layout.byte_range(part);
        foreign.partitions.push(Partition {
            number,
            label: part.label.to_string(),
            kind: part.partition_type.to_string(),
            uuid: Uuid::from(part.guid),
            start: place.start,
            size: place.end - place.start,
        });
        if place.end <= size {
            foreign.signatures.extend(probe(path, number, &place)?);
        }
    }
    Ok(())
}
