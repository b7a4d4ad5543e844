//! Names in FAT directories: a short name of 8 and 3 characters, and a long one in entries before it where the short
//! one does not say all.

use std::collections::BTreeSet;

use crate::error::{Error, Result};

/// Bytes of a directory entry.
pub(super) const ENTRY_BYTES: usize = 32;

/// UTF-16 units in one entry of a long name, and where they are in it.
const UNITS: usize = 13;
const UNIT_OFFSETS: [usize; UNITS] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];

/// Attribute of an entry that holds a part of a long name.
const LONG_NAME: u8 = 0x0f;

/// The two names of one directory entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) short: [u8; 11],
    long: Option<Vec<u16>>,
}

impl Names {
    /// Entries that the names take.
    pub(super) fn entries(&self) -> usize {
        1 + self.long.as_ref().map_or(0, |units| units.len().div_ceil(UNITS))
    }

    /// The entries of the long name, which precede the short one, last part first.
    pub(super) fn long_entries(&self) -> Vec<u8> {
        let Some(units) = &self.long else { return Vec::new() };
        let checksum = self.short.iter().fold(0_u8, |sum, &byte| sum.rotate_right(1).wrapping_add(byte));
        let parts = units.len().div_ceil(UNITS);
        let mut entries = vec![0; parts * ENTRY_BYTES];
        for (part, entry) in (1..=parts).rev().zip(entries.chunks_mut(ENTRY_BYTES)) {
            entry[0] = part as u8 | if part == parts { 0x40 } else { 0 };
            entry[11] = LONG_NAME;
            entry[13] = checksum;
            for (index, offset) in ((part - 1) * UNITS..).zip(UNIT_OFFSETS) {
                // One zero ends the name, the rest is filled with ones.
                let unit = units.get(index).copied().unwrap_or(if index == units.len() { 0 } else { 0xffff });
                entry[offset..offset + 2].copy_from_slice(&unit.to_le_bytes());
            }
        }
        entries
    }
}

/// Checks one component of a path.
pub(super) fn check(name: &str) -> Result<()> {
    let forbidden = |c: char| c < ' ' || c == '\u{7f}' || "\\/:*?\"<>|".contains(c);
    let length = name.encode_utf16().count();
    let wrong_end = name.ends_with(['.', ' ']) || name.starts_with(' ');
    if name.is_empty() || length > 255 || wrong_end || name.contains(forbidden) {
        return Err(Error::FatPath(name.to_owned()));
    }
    Ok(())
}

/// What FAT takes for the same name.
pub(super) fn folded(name: &str) -> String {
    name.to_uppercase()
}

/// The names of a directory's members, which are unique when folded. A name that is a short one but for its case keeps
/// that; for others a short one with a number is made, in the order given.
pub(super) fn assign(members: &[&str]) -> Vec<Names> {
    let exact: Vec<Option<[u8; 11]>> = members.iter().map(|name| exact_short(&name.to_ascii_uppercase())).collect();
    let mut taken: BTreeSet<[u8; 11]> = exact.iter().flatten().copied().collect();
    members
        .iter()
        .zip(exact)
        .map(|(name, exact)| {
            let short = exact.unwrap_or_else(|| numbered_short(name, &taken));
            taken.insert(short);
            let is_short = exact.is_some() && **name == name.to_ascii_uppercase();
            Names { short, long: (!is_short).then(|| name.encode_utf16().collect()) }
        })
        .collect()
}

/// A volume label as its 11 bytes.
pub(super) fn volume_label(label: &str) -> Result<[u8; 11]> {
    let bytes = label.as_bytes();
    let is_valid = (1..=11).contains(&bytes.len()) && bytes.iter().all(|&byte| byte == b' ' || is_short_byte(byte));
    if !is_valid || bytes[0] == b' ' {
        return Err(Error::FatPath(label.to_owned()));
    }
    let mut padded = [b' '; 11];
    padded[..bytes.len()].copy_from_slice(bytes);
    Ok(padded)
}

fn is_short_byte(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"$%'-_@~`!(){}^#&".contains(&byte)
}

fn exact_short(name: &str) -> Option<[u8; 11]> {
    let (base, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    let fits = (1..=8).contains(&base.len()) && extension.len() <= 3;
    let valid = base.bytes().chain(extension.bytes()).all(is_short_byte);
    (fits && valid).then(|| padded(base.as_bytes(), extension.as_bytes()))
}

fn numbered_short(name: &str, taken: &BTreeSet<[u8; 11]>) -> [u8; 11] {
    let valid = |text: &str, length: usize| -> Vec<u8> {
        let upper = text.to_ascii_uppercase();
        let kept = upper.chars().filter(|c| !matches!(c, ' ' | '.'));
        kept.map(|c| u8::try_from(c).ok().filter(|&byte| is_short_byte(byte)).unwrap_or(b'_')).take(length).collect()
    };
    let (base, extension) = match name.trim_start_matches('.').rsplit_once('.') {
        Some((base, extension)) => (valid(base, 8), valid(extension, 3)),
        None => (valid(name, 8), Vec::new()),
    };
    (1_u32..)
        .map(|number| {
            let tail = format!("~{number}");
            let mut numbered = base.clone();
            numbered.truncate(8 - tail.len());
            numbered.extend(tail.bytes());
            padded(&numbered, &extension)
        })
        .find(|short| !taken.contains(short))
        .expect("a directory has fewer members than there are numbers")
}

fn padded(base: &[u8], extension: &[u8]) -> [u8; 11] {
    let mut short = [b' '; 11];
    short[..base.len()].copy_from_slice(base);
    short[8..8 + extension.len()].copy_from_slice(extension);
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_unique_and_long_ones_kept() {
        let members = [
            "BOOTX64.EFI",
            "ldlinux.sys",
            "nodezero-control_1+3.efi",
            "nodezero-worker_1.efi",
            "NODEZE~2.EFI",
            ".hidden",
            "a.b.c",
            "größe.txt",
            "no-ext-but-long",
        ];
        let expected: [(&[u8; 11], usize); 9] = [
            (b"BOOTX64 EFI", 1),
            (b"LDLINUX SYS", 2),
            (b"NODEZE~1EFI", 3),
            (b"NODEZE~3EFI", 3),
            (b"NODEZE~2EFI", 1),
            (b"HIDDEN~1   ", 2),
            (b"AB~1    C  ", 2),
            (b"GR__E~1 TXT", 2),
            (b"NO-EXT~1   ", 3),
        ];
        for ((names, member), (short, entries)) in assign(&members).iter().zip(members).zip(expected) {
            assert_eq!(names.short.escape_ascii().to_string(), short.escape_ascii().to_string(), "{member}");
            assert_eq!(names.entries(), entries, "{member}");
            assert_eq!(names.long_entries().len(), (entries - 1) * ENTRY_BYTES, "{member}");
        }
    }

    #[test]
    fn names_that_fat_cannot_hold_are_refused() {
        for name in ["", ".", "..", "a.", "a ", " a", "a/b", "a\\b", "a:b", "a\nb", "a?", &*"x".repeat(256)] {
            assert!(check(name).is_err(), "{name:?}");
        }
        for name in ["a", "a b", "+.x", &*"x".repeat(255), "größe"] {
            assert!(check(name).is_ok(), "{name:?}");
        }
        for label in ["", "esp", "TWELVE BYTES", " X"] {
            assert!(volume_label(label).is_err(), "{label:?}");
        }
        assert_eq!(volume_label("ESP").unwrap(), *b"ESP        ");
    }
}
