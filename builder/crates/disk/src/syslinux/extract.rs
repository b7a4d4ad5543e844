//! Taking the loader out of Debian's installers `syslinux` and `extlinux`, which are stripped ELF programs.
//!
//! An installer holds three arrays in `.data`, each aligned to 32 bytes: the boot sector, `ldlinux.sys` and
//! `ldlinux.c32`, in an order that differs between the two programs; and the length of each as a 32-bit constant in
//! `.rodata`. An array is found by what it begins with. The length of `ldlinux.sys` is the one constant with which it ends
//! where the next array, or the section, says that it ends; that of `ldlinux.c32`, an ELF file, follows from its header.
//! Whatever is not found exactly once is an error, so a different installer is looked at by a person.

use std::collections::BTreeSet;
use std::ops::Range;

use super::{Loader, MAGIC, SECTOR, is_boot_sector, wrong};
use crate::error::Result;

/// What an installer holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extracted {
    /// Boot sector and `ldlinux.sys`.
    pub loader: Loader,
    /// The module that `ldlinux.sys` loads first, to be laid beside it.
    pub ldlinux_c32: Vec<u8>,
}

/// How compilers align arrays of this size.
const ALIGNMENT: usize = 32;

/// What `ldlinux.sys` begins with, and the offset of its patch area.
const LDLINUX_START: &[u8] = b"\r\nSYSLINUX ";
const LDLINUX_PATCH: usize = 24;

/// What a 32-bit little-endian ELF file for the i386 begins with, but for its type.
const ELF32_START: &[u8] = b"\x7fELF\x01\x01\x01";

/// Finds the loader in an installer.
pub fn extract(installer: &[u8]) -> Result<Extracted> {
    let sections =
        Sections::read(installer).ok_or_else(|| wrong("the installer is not a 64-bit ELF file".to_owned()))?;
    let data = installer.get(sections.data).ok_or_else(|| wrong("section .data is outside the file".to_owned()))?;
    let constants =
        installer.get(sections.rodata).ok_or_else(|| wrong("section .rodata is outside the file".to_owned()))?;
    let lengths: BTreeSet<usize> = constants
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes(word.try_into().expect("chunks of four bytes")) as usize)
        .collect();

    let boot = only("boot sector", starts(data, |rest| rest.first_chunk::<SECTOR>().is_some_and(is_boot_sector)))?;
    let start = only(
        "ldlinux.sys",
        starts(data, |rest| {
            let patch = rest.get(LDLINUX_PATCH..LDLINUX_PATCH + 4);
            rest.starts_with(LDLINUX_START) && patch == Some(&MAGIC.to_le_bytes()[..])
        }),
    )?;
    let module =
        only("ldlinux.c32", starts(data, |rest| module_length(rest).is_some_and(|len| lengths.contains(&len))))?;
    let module_end = module + module_length(&data[module..]).unwrap_or(0);

    // The array ends where another begins, or with the section.
    let next = [boot, module].into_iter().filter(|&other| other > start).min().unwrap_or(data.len());
    let fitting = lengths.iter().copied().filter(|len| {
        let end = start.saturating_add(*len);
        *len > SECTOR && end <= next && next - end < ALIGNMENT && data[end..next].iter().all(|&byte| byte == 0)
    });
    let length = only("length of ldlinux.sys", fitting.collect())?;

    let loader = Loader::new(&data[boot..boot + SECTOR], &data[start..start + length])?;
    Ok(Extracted { loader, ldlinux_c32: data[module..module_end].to_vec() })
}

/// The aligned offsets whose bytes satisfy `test`. `.data` itself is aligned as its arrays are.
fn starts(data: &[u8], test: impl Fn(&[u8]) -> bool) -> Vec<usize> {
    (0..data.len()).step_by(ALIGNMENT).filter(|&offset| test(&data[offset..])).collect()
}

fn only(what: &str, found: Vec<usize>) -> Result<usize> {
    match found[..] {
        [one] => Ok(one),
        _ => Err(wrong(format!("the installer holds {} candidates for the {what}, expected 1", found.len()))),
    }
}

/// Length of the ELF32 file that begins here: its section headers are its end.
fn module_length(bytes: &[u8]) -> Option<usize> {
    if !bytes.starts_with(ELF32_START) {
        return None;
    }
    let headers = u32::from_le_bytes(bytes.get(32..36)?.try_into().ok()?) as usize;
    let size = usize::from(u16::from_le_bytes(bytes.get(46..48)?.try_into().ok()?));
    let number = usize::from(u16::from_le_bytes(bytes.get(48..50)?.try_into().ok()?));
    let end = headers.checked_add(size * number)?;
    (end <= bytes.len()).then_some(end)
}

/// Where two sections lie in the file.
struct Sections {
    data: Range<usize>,
    rodata: Range<usize>,
}

impl Sections {
    /// Reads the section headers of a 64-bit little-endian ELF file.
    fn read(file: &[u8]) -> Option<Sections> {
        if !file.starts_with(b"\x7fELF\x02\x01\x01") {
            return None;
        }
        let u16_at =
            |at: usize| Some(usize::from(u16::from_le_bytes(file.get(at..at.checked_add(2)?)?.try_into().ok()?)));
        let u64_at = |at: usize| -> Option<usize> {
            usize::try_from(u64::from_le_bytes(file.get(at..at.checked_add(8)?)?.try_into().ok()?)).ok()
        };
        let (headers, size, number, names) = (u64_at(40)?, u16_at(58)?, u16_at(60)?, u16_at(62)?);
        let header = |index: usize| headers.checked_add(index.checked_mul(size)?);
        let range = |header: usize| -> Option<Range<usize>> {
            let start = u64_at(header.checked_add(24)?)?;
            Some(start..start.checked_add(u64_at(header.checked_add(32)?)?)?)
        };
        let names = file.get(range(header(names)?)?)?;
        let find = |wanted: &[u8]| -> Option<Range<usize>> {
            (0..number).find_map(|index| {
                let header = header(index)?;
                let name = u32::from_le_bytes(file.get(header..header.checked_add(4)?)?.try_into().ok()?) as usize;
                names.get(name..)?.starts_with(wanted).then(|| range(header))?
            })
        };
        Some(Sections { data: find(b".data\0")?, rodata: find(b".rodata\0")? })
    }
}
