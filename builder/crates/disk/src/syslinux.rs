//! BIOS boot with syslinux, installed without running its installer.
//!
//! The chain: the MBR's code (`gptmbr.bin`) finds the partition with the legacy bootable attribute and runs its boot
//! sector; that loads the first sector of `ldlinux.sys`, whose place is written into it; that sector holds the list of
//! the others; the whole loads `ldlinux.c32` and `syslinux.cfg` from the file system by name.
//!
//! The formats are those of syslinux 6: the patch areas as `libinstaller/syslxint.h` of its sources has them, the
//! auxiliary data vector as `libinstaller/setadv.c`. All sector numbers count from the start of the partition. Debian
//! ships boot sector and `ldlinux.sys` only within its installers, so [`extract`] takes them out of one.
//!
//! Left out: other file systems than FAT32, sectors of other than 512 bytes (a BIOS boots none), RAID mode, a directory
//! other than the root, and what an installation over an older one would have to keep.

mod config;
mod extract;

use sha2::{Digest, Sha256};

pub use config::{CONFIG_PATH, Config, Entry};
pub use extract::{Extracted, extract};

use crate::error::{Error, Result};
use crate::esp::Extent;
use crate::layout::SectorSize;

/// Where the loader lies in the ESP.
pub const LDLINUX_PATH: &str = "ldlinux.sys";

const SECTOR: usize = 512;

/// Marks the patch area of `ldlinux.sys`, and begins its checksum.
const MAGIC: u32 = 0x3eb2_02fe;

/// The boot sector keeps its own jump and OEM name, and the file system's parameters up to its code.
const BOOT_HEAD: usize = 11;
const FAT32_PARAMETERS_END: usize = 90;

/// The auxiliary data vector: two equal sectors after the loader, each of a magic, a checksum, data and a magic.
const ADV_SECTORS: usize = 2;
const ADV_HEAD: u32 = 0x5a2d_2fa5;
const ADV_CHECKSUM: u32 = 0xa304_1767;
const ADV_TAIL: u32 = 0xdd28_bf64;

/// Offsets from the patch area's magic.
mod patch {
    pub(super) const DATA_SECTORS: usize = 8;
    pub(super) const ADV_SECTORS: usize = 10;
    pub(super) const DWORDS: usize = 12;
    pub(super) const CHECKSUM: usize = 16;
    pub(super) const EXTENDED: usize = 22;
    pub(super) const BYTES: usize = 24;
}

/// Offsets from the start of the extended patch area, each of a 16-bit number.
mod extended {
    pub(super) const ADV_POINTERS: usize = 0;
    pub(super) const DIRECTORY: usize = 2;
    pub(super) const DIRECTORY_BYTES: usize = 4;
    pub(super) const EXTENTS: usize = 10;
    pub(super) const EXTENTS_NUMBER: usize = 12;
    pub(super) const FIRST_SECTOR_LOW: usize = 14;
    pub(super) const FIRST_SECTOR_HIGH: usize = 16;
    pub(super) const BYTES: usize = 20;
}

/// Bytes of one extent: a 64-bit sector and a 16-bit length.
const EXTENT_BYTES: usize = 10;

/// Boot sector and `ldlinux.sys`, found to be such.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loader {
    boot_sector: [u8; SECTOR],
    ldlinux: Vec<u8>,
    patch: usize,
    places: Places,
}

/// What the extended patch area says: offsets in `ldlinux.sys`, but the last two, which are in the boot sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Places {
    adv_pointers: usize,
    directory: usize,
    directory_bytes: usize,
    extents: usize,
    extents_number: usize,
    first_sector_low: usize,
    first_sector_high: usize,
}

/// A loader made for one place in one file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The file system's first sector, to be written there and to its backup.
    pub boot_sector: [u8; SECTOR],
    /// The content of [`LDLINUX_PATH`].
    pub ldlinux: Vec<u8>,
}

impl Loader {
    /// Checks that the two are a boot sector and an `ldlinux.sys` of syslinux 6 that no installer has touched.
    pub fn new(boot_sector: &[u8], ldlinux: &[u8]) -> Result<Loader> {
        let boot_sector: [u8; SECTOR] = boot_sector
            .try_into()
            .map_err(|_| wrong(format!("the boot sector is {} bytes, expected {SECTOR}", boot_sector.len())))?;
        if !is_boot_sector(&boot_sector) {
            return Err(wrong("the boot sector is not syslinux's".to_owned()));
        }
        let patch = find_patch(ldlinux).ok_or_else(|| wrong("ldlinux.sys has no patch area".to_owned()))?;
        let places = Places::read(ldlinux, patch)?;
        let is_untouched = ldlinux[patch + patch::DATA_SECTORS..patch + patch::CHECKSUM + 4].iter().all(|&b| b == 0);
        if !is_untouched {
            return Err(wrong("ldlinux.sys was installed before".to_owned()));
        }
        Ok(Loader { boot_sector, ldlinux: ldlinux.to_vec(), patch, places })
    }

    /// Bytes of the file [`LDLINUX_PATH`]: whole sectors, and the auxiliary data vector.
    pub fn installed_len(&self) -> u64 {
        ((self.data_sectors() + ADV_SECTORS) * SECTOR) as u64
    }

    /// SHA-256 of the boot sector and of `ldlinux.sys`, as given to [`Loader::new`], in hexadecimal.
    pub fn digests(&self) -> (String, String) {
        (hex_sha256(&self.boot_sector), hex_sha256(&self.ldlinux))
    }

    /// Makes the loader for a file system whose first sector is `file_system` and whose [`LDLINUX_PATH`] lies in
    /// `extent`.
    pub fn install(&self, file_system: &[u8; SECTOR], sector: SectorSize, extent: Extent) -> Result<Installed> {
        if sector != SectorSize::B512 {
            return Err(wrong(format!("a BIOS boots from sectors of 512 bytes, these have {}", sector.bytes())));
        }
        if &file_system[82..FAT32_PARAMETERS_END] != b"FAT32   " {
            return Err(wrong("the file system is not FAT32".to_owned()));
        }
        let sectors = self.data_sectors();
        if extent.sectors != (sectors + ADV_SECTORS) as u64 {
            return Err(wrong(format!(
                "ldlinux.sys has {} sectors, expected {}",
                extent.sectors,
                sectors + ADV_SECTORS
            )));
        }
        let [low, high] = [extent.first_sector as u32, (extent.first_sector >> 32) as u32].map(u32::to_le_bytes);
        let mut boot_sector = self.boot_sector;
        boot_sector[BOOT_HEAD..FAT32_PARAMETERS_END].copy_from_slice(&file_system[BOOT_HEAD..FAT32_PARAMETERS_END]);
        put(&mut boot_sector, self.places.first_sector_low, &low);
        put(&mut boot_sector, self.places.first_sector_high, &high);
        Ok(Installed { boot_sector, ldlinux: self.installed_ldlinux(extent.first_sector) })
    }

    fn data_sectors(&self) -> usize {
        self.ldlinux.len().div_ceil(SECTOR)
    }

    fn installed_ldlinux(&self, first_sector: u64) -> Vec<u8> {
        let sectors = self.data_sectors();
        let dwords = self.ldlinux.len() / 4;
        let mut file = self.ldlinux.clone();
        let Places { adv_pointers, directory, directory_bytes, extents, extents_number, .. } = self.places;

        put(&mut file, self.patch + patch::DATA_SECTORS, &(sectors as u16).to_le_bytes());
        put(&mut file, self.patch + patch::ADV_SECTORS, &(ADV_SECTORS as u16).to_le_bytes());
        put(&mut file, self.patch + patch::DWORDS, &(dwords as u32).to_le_bytes());
        // One extent for all but the first sector, which the boot sector knows.
        file[extents..extents + extents_number * EXTENT_BYTES].fill(0);
        put(&mut file, extents, &(first_sector + 1).to_le_bytes());
        put(&mut file, extents + 8, &((sectors - 1) as u16).to_le_bytes());
        for index in 0..ADV_SECTORS {
            let sector = first_sector + (sectors + index) as u64;
            put(&mut file, adv_pointers + 8 * index, &sector.to_le_bytes());
        }
        file[directory..directory + directory_bytes].fill(0);

        let sum = file.chunks_exact(4).fold(MAGIC, |sum, dword| {
            sum.wrapping_sub(u32::from_le_bytes(dword.try_into().expect("chunks of four bytes")))
        });
        put(&mut file, self.patch + patch::CHECKSUM, &sum.to_le_bytes());

        file.resize(sectors * SECTOR, 0);
        let mut adv = [0; SECTOR];
        put(&mut adv, 0, &ADV_HEAD.to_le_bytes());
        put(&mut adv, 4, &ADV_CHECKSUM.to_le_bytes());
        put(&mut adv, SECTOR - 4, &ADV_TAIL.to_le_bytes());
        for _ in 0..ADV_SECTORS {
            file.extend(adv);
        }
        file
    }
}

impl Places {
    fn read(ldlinux: &[u8], patch: usize) -> Result<Places> {
        let outside = || wrong("a patch area reaches outside ldlinux.sys".to_owned());
        let area = number_at(ldlinux, patch + patch::EXTENDED).ok_or_else(outside)?;
        let field = |offset: usize| number_at(ldlinux, area + offset).ok_or_else(outside);
        ldlinux.get(area..area + extended::BYTES).ok_or_else(outside)?;
        let places = Places {
            adv_pointers: field(extended::ADV_POINTERS)?,
            directory: field(extended::DIRECTORY)?,
            directory_bytes: field(extended::DIRECTORY_BYTES)?,
            extents: field(extended::EXTENTS)?,
            extents_number: field(extended::EXTENTS_NUMBER)?,
            first_sector_low: field(extended::FIRST_SECTOR_LOW)?,
            first_sector_high: field(extended::FIRST_SECTOR_HIGH)?,
        };
        let ends = [
            places.adv_pointers + 8 * ADV_SECTORS,
            places.directory + places.directory_bytes,
            places.extents + places.extents_number * EXTENT_BYTES,
        ];
        let code = FAT32_PARAMETERS_END..SECTOR - 6;
        let pointers = [places.first_sector_low, places.first_sector_high];
        let inside = ends.iter().all(|&end| end <= ldlinux.len()) && pointers.iter().all(|at| code.contains(at));
        if places.extents_number == 0 || !inside { Err(outside()) } else { Ok(places) }
    }
}

/// Whether this is syslinux's boot sector for FAT: its name, its magic and the signature of all boot sectors.
fn is_boot_sector(sector: &[u8; SECTOR]) -> bool {
    sector[3..BOOT_HEAD] == *b"SYSLINUX" && sector[504..508] == MAGIC.to_le_bytes() && sector[510..] == [0x55, 0xaa]
}

/// The patch area: the first magic at a multiple of four.
fn find_patch(ldlinux: &[u8]) -> Option<usize> {
    let at = ldlinux.chunks_exact(4).position(|dword| dword == MAGIC.to_le_bytes())? * 4;
    (at + patch::BYTES <= ldlinux.len()).then_some(at)
}

fn number_at(bytes: &[u8], offset: usize) -> Option<usize> {
    let two = bytes.get(offset..offset.checked_add(2)?)?;
    Some(usize::from(u16::from_le_bytes(two.try_into().ok()?)))
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

fn hex_sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn wrong(what: String) -> Error {
    Error::Syslinux(what)
}

#[cfg(test)]
pub(crate) mod tests;
