//! Reading the headers of PE32+ images.
//!
//! <https://learn.microsoft.com/windows/win32/debug/pe-format>. Integers are little-endian. Only what assembling needs
//! is read; what a directory points to (relocations, certificates) is left alone.

use std::ops::Range;

use crate::Error;

/// Machine type of x86-64.
pub const MACHINE_AMD64: u16 = 0x8664;
/// Machine type of 64-bit ARM.
pub const MACHINE_ARM64: u16 = 0xaa64;
/// Section flag: holds code.
pub const SCN_CNT_CODE: u32 = 0x0000_0020;
/// Section flag: holds initialized data.
pub const SCN_CNT_INITIALIZED_DATA: u32 = 0x0000_0040;
/// Section flag: readable.
pub const SCN_MEM_READ: u32 = 0x4000_0000;
/// Image flag: never needs memory that is writable and executable at once.
pub const DLL_CHARACTERISTICS_NX_COMPAT: u16 = 0x0100;
/// Headers are only looked for in this many bytes from the start of a file.
pub const MAX_HEADERS: usize = 64 * 1024;
/// Windows loads no image with more sections.
pub const MAX_SECTIONS: u16 = 96;
/// Size of a section header in bytes.
pub const SECTION_HEADER_SIZE: usize = 40;

// Offsets within the file header, which follows "PE\0\0".
const FILE_HEADER_SIZE: usize = 20;
const MACHINE: usize = 0;
pub(crate) const NUMBER_OF_SECTIONS: usize = 2;
const POINTER_TO_SYMBOL_TABLE: usize = 8;
const SIZE_OF_OPTIONAL_HEADER: usize = 16;
// Offsets within the optional header.
const MAGIC: usize = 0;
pub(crate) const SIZE_OF_INITIALIZED_DATA: usize = 8;
const SECTION_ALIGNMENT: usize = 32;
const FILE_ALIGNMENT: usize = 36;
pub(crate) const SIZE_OF_IMAGE: usize = 56;
pub(crate) const SIZE_OF_HEADERS: usize = 60;
pub(crate) const CHECKSUM: usize = 64;
const SUBSYSTEM: usize = 68;
pub(crate) const DLL_CHARACTERISTICS: usize = 70;
const NUMBER_OF_RVA_AND_SIZES: usize = 108;
const DATA_DIRECTORIES: usize = 112;
const DATA_DIRECTORY_SIZE: usize = 8;
const CERTIFICATE_TABLE: u32 = 4;

const MAGIC_PE32_PLUS: u16 = 0x20b;
const SUBSYSTEM_EFI_APPLICATION: u16 = 10;

/// The headers of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Headers {
    /// What the image runs on, such as [`MACHINE_AMD64`].
    pub machine: u16,
    /// Alignment of sections in memory in bytes, a power of two.
    pub section_alignment: u32,
    /// Alignment of sections in the file in bytes, a power of two.
    pub file_alignment: u32,
    /// Sum of the sizes of sections with initialized data in bytes.
    pub size_of_initialized_data: u32,
    /// Length of the image in memory in bytes.
    pub size_of_image: u32,
    /// Length of all headers in bytes, rounded up to the file alignment.
    pub size_of_headers: u32,
    /// Image flags.
    pub dll_characteristics: u16,
    /// Offset in the file and length of the certificate table; both 0 in an unsigned image.
    pub certificate_table: (u32, u32),
    /// Offset of the COFF symbol table in the file; 0 where there is none, as is usual in images.
    pub symbol_table: u32,
    /// The sections, in the order of their headers.
    pub sections: Vec<SectionHeader>,
    /// Offset of the file header (after the signature) in the file.
    pub(crate) file_header: usize,
    /// Offset of the optional header in the file.
    pub(crate) optional_header: usize,
    /// Offset of the first section header in the file.
    pub(crate) section_table: usize,
}

/// One section header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SectionHeader {
    /// The name, padded with NULs.
    pub name: [u8; 8],
    /// Exact length of the content in bytes.
    pub virtual_size: u32,
    /// Where the section begins in memory, from the image's base.
    pub virtual_address: u32,
    /// Length in the file in bytes, a multiple of the file alignment.
    pub raw_size: u32,
    /// Where the section begins in the file.
    pub raw_offset: u32,
    /// Flags such as [`SCN_MEM_READ`].
    pub characteristics: u32,
}

impl Headers {
    /// Parses the headers that `prefix` begins with: at least [`MAX_HEADERS`] bytes of a file, or all of it. Where the
    /// sections lie is not checked, see [`Headers::check_layout`].
    pub fn parse(prefix: &[u8]) -> Result<Self, Error> {
        let fields = Fields(&prefix[..prefix.len().min(MAX_HEADERS)]);
        expect("e_magic", fields.u16(0)?, u16::from_le_bytes(*b"MZ"), "0x5a4d, \"MZ\"")?;
        let signature = fields.u32(0x3c)? as usize;
        expect("Signature", fields.u32(signature)?, u32::from_le_bytes(*b"PE\0\0"), "0x4550, \"PE\"")?;
        let file_header = signature + 4;
        let optional_header = file_header + FILE_HEADER_SIZE;
        let optional_header_size = fields.u16(file_header + SIZE_OF_OPTIONAL_HEADER)?;
        let section_table = optional_header + usize::from(optional_header_size);
        let file_u16 = |offset| fields.u16(file_header + offset);
        let u16 = |offset| fields.u16(optional_header + offset);
        let u32 = |offset| fields.u32(optional_header + offset);

        expect("Magic", u16(MAGIC)?, MAGIC_PE32_PLUS, "0x20b, PE32+")?;
        expect("Subsystem", u16(SUBSYSTEM)?, SUBSYSTEM_EFI_APPLICATION, "0xa, EFI application")?;
        let directories = u32(NUMBER_OF_RVA_AND_SIZES)?;
        if directories > 16 {
            return Err(header("NumberOfRvaAndSizes", directories, "at most 16"));
        }
        if usize::from(optional_header_size) < DATA_DIRECTORIES + directories as usize * DATA_DIRECTORY_SIZE {
            return Err(header("SizeOfOptionalHeader", optional_header_size, "room for all data directories"));
        }
        let certificate_table = if directories > CERTIFICATE_TABLE {
            let directory = DATA_DIRECTORIES + CERTIFICATE_TABLE as usize * DATA_DIRECTORY_SIZE;
            (u32(directory)?, u32(directory + 4)?)
        } else {
            (0, 0)
        };
        let section_alignment = u32(SECTION_ALIGNMENT)?;
        let file_alignment = u32(FILE_ALIGNMENT)?;
        if !file_alignment.is_power_of_two() || file_alignment > 0x10000 {
            return Err(header("FileAlignment", file_alignment, "a power of two up to 0x10000"));
        }
        if !section_alignment.is_power_of_two() || section_alignment < file_alignment {
            return Err(header("SectionAlignment", section_alignment, "a power of two, at least FileAlignment"));
        }
        let count = file_u16(NUMBER_OF_SECTIONS)?;
        if !(1..=MAX_SECTIONS).contains(&count) {
            return Err(header("NumberOfSections", count, "1 to 96"));
        }
        let section = |index| SectionHeader::parse(fields, section_table + usize::from(index) * SECTION_HEADER_SIZE);
        let headers = Self {
            machine: file_u16(MACHINE)?,
            section_alignment,
            file_alignment,
            size_of_initialized_data: u32(SIZE_OF_INITIALIZED_DATA)?,
            size_of_image: u32(SIZE_OF_IMAGE)?,
            size_of_headers: u32(SIZE_OF_HEADERS)?,
            dll_characteristics: u16(DLL_CHARACTERISTICS)?,
            certificate_table,
            symbol_table: fields.u32(file_header + POINTER_TO_SYMBOL_TABLE)?,
            sections: (0..count).map(section).collect::<Result<_, _>>()?,
            file_header,
            optional_header,
            section_table,
        };
        if (headers.size_of_headers as usize) < headers.section_table_end() {
            return Err(header("SizeOfHeaders", headers.size_of_headers, "at least the end of the section table"));
        }
        Ok(headers)
    }

    /// Checks that headers and sections lie within a file of `length` bytes and within the image, sections in
    /// ascending order, aligned, and none over another or over the headers.
    pub fn check_layout(&self, length: u64) -> Result<(), Error> {
        let headers = u64::from(self.size_of_headers);
        if headers > length {
            return Err(header("SizeOfHeaders", self.size_of_headers, "at most the length of the file"));
        }
        let image = u64::from(self.size_of_image);
        let (mut file_end, mut image_end) = (headers, headers);
        for section in &self.sections {
            if !section.virtual_address.is_multiple_of(self.section_alignment) {
                return Err(header("VirtualAddress", section.virtual_address, "a multiple of SectionAlignment"));
            }
            image_end = section.within("memory image", section.memory_range(), image_end..image)?;
            if section.raw_size > 0 {
                file_end = section.within("file", section.file_range(), file_end..length)?;
            }
        }
        Ok(())
    }

    /// The section with this name.
    pub fn section(&self, name: &str) -> Option<&SectionHeader> {
        self.sections.iter().find(|section| section.is_named(name))
    }

    /// Offset of the first byte after the section headers.
    pub(crate) fn section_table_end(&self) -> usize {
        self.section_table + self.sections.len() * SECTION_HEADER_SIZE
    }

    /// Offset of the first byte of the file after all sections.
    pub(crate) fn file_end(&self) -> u64 {
        let ends = self.sections.iter().filter(|section| section.raw_size > 0).map(|section| section.file_range().end);
        ends.max().unwrap_or(0).max(u64::from(self.size_of_headers))
    }
}

impl SectionHeader {
    fn parse(fields: Fields<'_>, offset: usize) -> Result<Self, Error> {
        Ok(Self {
            name: fields.array(offset)?,
            virtual_size: fields.u32(offset + 8)?,
            virtual_address: fields.u32(offset + 12)?,
            raw_size: fields.u32(offset + 16)?,
            raw_offset: fields.u32(offset + 20)?,
            characteristics: fields.u32(offset + 36)?,
        })
    }

    /// The header as it is in the file, without relocations or line numbers.
    pub(crate) fn to_bytes(self) -> [u8; SECTION_HEADER_SIZE] {
        let mut bytes = [0; SECTION_HEADER_SIZE];
        bytes[..8].copy_from_slice(&self.name);
        let fields = [
            (8, self.virtual_size),
            (12, self.virtual_address),
            (16, self.raw_size),
            (20, self.raw_offset),
            (36, self.characteristics),
        ];
        for (offset, value) in fields {
            bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    /// Whether this is the section's name, up to its padding.
    pub fn is_named(&self, name: &str) -> bool {
        self.name_bytes() == name.as_bytes()
    }

    /// Length in bytes of the content that is in the file: padding is not content, nor what memory has beyond the file.
    pub fn content_length(&self) -> u32 {
        self.virtual_size.min(self.raw_size)
    }

    /// The name without padding, with bytes that do not print escaped.
    pub fn printable_name(&self) -> String {
        self.name_bytes().escape_ascii().to_string()
    }

    /// Bytes of the image in memory.
    pub fn memory_range(&self) -> Range<u64> {
        let start = u64::from(self.virtual_address);
        start..start + u64::from(self.virtual_size)
    }

    /// Bytes of the file.
    pub fn file_range(&self) -> Range<u64> {
        let start = u64::from(self.raw_offset);
        start..start + u64::from(self.raw_size)
    }

    fn name_bytes(&self) -> &[u8] {
        self.name.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    /// Checks that `range` lies in `bounds` and yields its end.
    fn within(&self, space: &'static str, range: Range<u64>, bounds: Range<u64>) -> Result<u64, Error> {
        if range.start >= bounds.start && range.end <= bounds.end {
            return Ok(range.end);
        }
        let Range { start, end } = range;
        Err(Error::Placement { section: self.printable_name(), space, start, end, low: bounds.start, high: bounds.end })
    }
}

/// Little-endian fields of a prefix of a file.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(self, offset: usize) -> Result<[u8; N], Error> {
        let array = self.0.get(offset..).and_then(|rest| rest.first_chunk());
        array.copied().ok_or(Error::Truncated {
            offset: offset as u64,
            end: (offset + N) as u64,
            available: self.0.len() as u64,
        })
    }

    fn u16(self, offset: usize) -> Result<u16, Error> {
        self.array(offset).map(u16::from_le_bytes)
    }

    fn u32(self, offset: usize) -> Result<u32, Error> {
        self.array(offset).map(u32::from_le_bytes)
    }
}

fn header(field: &'static str, found: impl Into<u64>, expected: &'static str) -> Error {
    Error::Header { field, found: found.into(), expected }
}

fn expect<T: PartialEq + Into<u64>>(field: &'static str, found: T, value: T, name: &'static str) -> Result<(), Error> {
    if found == value { Ok(()) } else { Err(header(field, found, name)) }
}
