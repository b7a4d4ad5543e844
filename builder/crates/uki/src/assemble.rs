//! Adding sections to a stub.

use std::io::{self, Write};

use sha2::{Digest, Sha256};

use crate::Error;
use crate::pe::{self, Headers, SectionHeader};
use crate::section::{Name, Section};

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Length of the image in bytes.
    pub size: u64,
    /// SHA-256 of the image.
    pub sha256: [u8; 32],
    /// The sections that were added or replaced, in file order.
    pub sections: Vec<Placed>,
}

/// Where a section went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// The section.
    pub name: Name,
    /// Where its content begins in the file in bytes.
    pub offset: u64,
    /// Length of its content in bytes.
    pub length: u64,
    /// Where it begins in memory, from the image's base.
    pub virtual_address: u32,
}

/// Writes `stub` with `sections` added to `out`, front to back, without seeking.
///
/// Sections come in the order of [`Name`], whatever their order in `sections`. The kernel must be an EFI image for the
/// stub's machine. A `.sbat` section takes the place of the stub's, so merge that in before (see
/// [`merge_sbat`](crate::merge_sbat)). Time stamps stay the stub's, the checksum is 0, which firmware does not check.
pub fn assemble(stub: &[u8], sections: &[Section<'_>], out: &mut impl Write) -> Result<Summary, Error> {
    let plan = Plan::new(stub, sections)?;
    let mut out = Hashing { out, hasher: Sha256::new(), written: 0 };
    out.write_all(&plan.base).map_err(Error::Write)?;
    for (section, header) in &plan.added {
        let written = section.data.copy(&mut out).map_err(|source| Error::Content { name: section.name, source })?;
        let padding = u64::from(header.raw_size) - section.data.length();
        written.and_then(|()| io::copy(&mut io::Read::take(io::repeat(0), padding), &mut out)).map_err(Error::Write)?;
    }
    out.flush().map_err(Error::Write)?;
    Ok(Summary { size: out.written, sha256: out.hasher.finalize().into(), sections: plan.placed() })
}

/// The image, but for the content of the added sections.
struct Plan<'a> {
    /// The stub with its headers (and `.sbat`) as they will be, padded so that the added sections follow.
    base: Vec<u8>,
    replaced: Option<Placed>,
    added: Vec<(Section<'a>, SectionHeader)>,
}

impl<'a> Plan<'a> {
    fn new(stub: &[u8], sections: &[Section<'a>]) -> Result<Self, Error> {
        let headers = parse_stub(stub)?;
        let sections = sorted(sections)?;
        let mut base = stub.to_vec();
        let mut replaced = None;
        let mut added: Vec<(Section<'a>, SectionHeader)> = Vec::new();
        base.resize(align(stub.len() as u64, headers.file_alignment) as usize, 0);
        let mut last = *headers.sections.last().expect("parsed images have a section");
        let mut file_end = base.len() as u64;
        for section in sections {
            match (section.name, headers.sections.iter().position(|own| own.is_named(section.name.as_str()))) {
                (Name::Sbat, Some(index)) => replaced = Some(replace(&mut base, &headers, index, section)?),
                (name, Some(_)) => return Err(Error::Duplicate(name)),
                (_, None) => {
                    last = place(&headers, section, &last, file_end)?;
                    file_end = last.file_range().end;
                    added.push((section, last));
                }
            }
        }
        let kernel = kernel_headers(&added)?;
        if kernel.machine != headers.machine {
            return Err(Error::Machine { kernel: kernel.machine, stub: headers.machine });
        }
        write_headers(&mut base, &headers, &kernel, &added)?;
        Ok(Self { base, replaced, added })
    }

    fn placed(&self) -> Vec<Placed> {
        let added = self.added.iter().map(|(section, header)| placed(section, header));
        self.replaced.into_iter().chain(added).collect()
    }
}

fn parse_stub(stub: &[u8]) -> Result<Headers, Error> {
    let headers = Headers::parse(stub)?;
    let length = stub.len() as u64;
    headers.check_layout(length)?;
    let header = |field, found: u32, expected| Err(Error::Header { field, found: found.into(), expected });
    match (headers.certificate_table, headers.symbol_table) {
        ((0, 0), 0) => {}
        ((0, 0), symbols) => return header("PointerToSymbolTable", symbols, "a stub without symbol table"),
        ((certificates, _), _) => return header("Certificate Table", certificates, "an unsigned stub"),
    }
    match headers.file_end() {
        end if end == length => Ok(headers),
        end => Err(Error::TrailingData { found: length, expected: end }),
    }
}

/// The sections in layout order, each once and with content, the kernel among them.
fn sorted<'a>(sections: &[Section<'a>]) -> Result<Vec<Section<'a>>, Error> {
    let mut sorted = sections.to_vec();
    sorted.sort_by_key(|section| section.name);
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(Error::Duplicate(pair[0].name));
    }
    match sorted.iter().find(|section| section.data.length() == 0) {
        Some(section) => Err(Error::Empty(section.name)),
        None if sorted.iter().all(|section| section.name != Name::Linux) => Err(Error::Missing(Name::Linux)),
        None => Ok(sorted),
    }
}

/// Puts new content into the stub's own section `index`.
fn replace(base: &mut [u8], headers: &Headers, index: usize, section: Section<'_>) -> Result<Placed, Error> {
    let mut header = headers.sections[index];
    let memory_end = headers.sections.get(index + 1).map_or(u32::MAX, |next| next.virtual_address);
    let available = header.raw_size.min(memory_end - header.virtual_address);
    let needed = section.data.length();
    if needed > u64::from(available) {
        return Err(Error::SectionRoom { name: section.name, available: available.into(), needed });
    }
    let content = section.data.prefix(available as usize);
    let content = content.map_err(|source| Error::Content { name: section.name, source })?;
    header.virtual_size = content.len() as u32;
    let range = header.file_range();
    let raw = &mut base[range.start as usize..range.end as usize];
    raw.fill(0);
    raw[..content.len()].copy_from_slice(&content);
    put(base, headers.section_table + index * pe::SECTION_HEADER_SIZE + 8, &header.virtual_size.to_le_bytes());
    Ok(placed(&section, &header))
}

/// The header of a section that follows `last` in memory and begins at `file_end` in the file.
fn place(headers: &Headers, section: Section<'_>, last: &SectionHeader, file_end: u64) -> Result<SectionHeader, Error> {
    let too_large = |_| Error::TooLarge(section.name);
    let length = section.data.length();
    let virtual_size = u32::try_from(length).map_err(too_large)?;
    let virtual_address = align(last.memory_range().end, headers.section_alignment);
    let raw_size = align(length, headers.file_alignment);
    for end in [align(virtual_address + length, headers.section_alignment), file_end + raw_size] {
        u32::try_from(end).map_err(too_large)?;
    }
    let mut name = [0; 8];
    name[..section.name.as_str().len()].copy_from_slice(section.name.as_str().as_bytes());
    // Kernels of the EFI handover protocol were run in place, so the section says that it holds code.
    let content = if section.name == Name::Linux { pe::SCN_CNT_CODE } else { pe::SCN_CNT_INITIALIZED_DATA };
    Ok(SectionHeader {
        name,
        virtual_size,
        virtual_address: virtual_address as u32,
        raw_size: raw_size as u32,
        raw_offset: file_end as u32,
        characteristics: pe::SCN_MEM_READ | content,
    })
}

fn kernel_headers(added: &[(Section<'_>, SectionHeader)]) -> Result<Headers, Error> {
    let kernel = added.iter().find(|(section, _)| section.name == Name::Linux);
    let (kernel, _) = kernel.ok_or(Error::Missing(Name::Linux))?;
    let prefix = kernel.data.prefix(pe::MAX_HEADERS);
    let prefix = prefix.map_err(|source| Error::Content { name: Name::Linux, source })?;
    Headers::parse(&prefix).map_err(|error| Error::Kernel(Box::new(error)))
}

/// Enters the added sections into the stub's headers.
fn write_headers(
    base: &mut [u8],
    headers: &Headers,
    kernel: &Headers,
    added: &[(Section<'_>, SectionHeader)],
) -> Result<(), Error> {
    let table_end = headers.section_table_end();
    // Up to the file alignment, nothing can lie between the headers and the first section.
    let first = headers.sections.iter().filter(|section| section.raw_size > 0).map(|section| section.raw_offset).min();
    let limit = align(headers.size_of_headers.into(), headers.file_alignment) as usize;
    let limit =
        limit.min(first.map_or(limit, |first| first as usize)).min(headers.sections[0].virtual_address as usize);
    let unused = base[table_end..limit].iter().take_while(|byte| **byte == 0).count();
    let available =
        (unused / pe::SECTION_HEADER_SIZE).min(usize::from(pe::MAX_SECTIONS).saturating_sub(headers.sections.len()));
    if added.len() > available {
        return Err(Error::HeaderRoom { available, needed: added.len() });
    }
    let count = (headers.sections.len() + added.len()) as u16;
    let data = added.iter().fold(headers.size_of_initialized_data, |sum, (_, header)| {
        // An informative sum, which must not wrap round.
        sum.saturating_add(header.virtual_size)
    });
    let last = added.last().map(|(_, header)| header).or(headers.sections.last());
    let image = last.map_or(0, |last| align(last.memory_range().end, headers.section_alignment) as u32);
    // Firmware that enforces NX holds the kernel to what the whole image says of itself.
    let characteristics = match kernel.dll_characteristics & pe::DLL_CHARACTERISTICS_NX_COMPAT {
        0 => headers.dll_characteristics & !pe::DLL_CHARACTERISTICS_NX_COMPAT,
        _ => headers.dll_characteristics,
    };
    put(base, headers.file_header + pe::NUMBER_OF_SECTIONS, &count.to_le_bytes());
    let mut optional = |offset: usize, value: &[u8]| put(base, headers.optional_header + offset, value);
    optional(pe::SIZE_OF_INITIALIZED_DATA, &data.to_le_bytes());
    optional(pe::SIZE_OF_IMAGE, &image.to_le_bytes());
    optional(pe::SIZE_OF_HEADERS, &headers.size_of_headers.max(limit as u32).to_le_bytes());
    optional(pe::CHECKSUM, &[0; 4]);
    optional(pe::DLL_CHARACTERISTICS, &characteristics.to_le_bytes());
    for (index, (_, header)) in added.iter().enumerate() {
        put(base, table_end + index * pe::SECTION_HEADER_SIZE, &header.to_bytes());
    }
    Ok(())
}

fn placed(section: &Section<'_>, header: &SectionHeader) -> Placed {
    Placed {
        name: section.name,
        offset: header.raw_offset.into(),
        length: header.virtual_size.into(),
        virtual_address: header.virtual_address,
    }
}

fn put(base: &mut [u8], offset: usize, value: &[u8]) {
    base[offset..offset + value.len()].copy_from_slice(value);
}

/// Rounds up to a power of two. Values here are sums of a few 32-bit numbers or lengths of files, far from overflow.
fn align(value: u64, alignment: u32) -> u64 {
    value.saturating_add(u64::from(alignment) - 1) & !(u64::from(alignment) - 1)
}

/// Hashes and counts what it passes on.
struct Hashing<'a, W> {
    out: &'a mut W,
    hasher: Sha256,
    written: u64,
}

impl<W: Write> Write for Hashing<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
