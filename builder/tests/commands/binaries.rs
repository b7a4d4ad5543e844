//! The smallest programs, modules and boot loaders that the builder takes for such.

/// A PE32+ EFI application for x86-64 of one section, which `seed` fills.
///
/// The form is that of the [PE specification](https://learn.microsoft.com/windows/win32/debug/pe-format): sections are
/// aligned to 4096 bytes in memory and 512 in the file.
pub(crate) fn pe(seed: u8) -> Vec<u8> {
    const PE: usize = 0x40;
    const OPTIONAL: usize = PE + 24;
    const SECTION: usize = OPTIONAL + 240;
    let mut bytes = vec![0; 0x400];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"MZ");
    put(0x3c, &(PE as u32).to_le_bytes());
    put(PE, b"PE\0\0");
    put(PE + 4, &0x8664_u16.to_le_bytes());
    put(PE + 6, &1u16.to_le_bytes());
    put(PE + 20, &240u16.to_le_bytes());
    put(PE + 22, &0x22e_u16.to_le_bytes());
    // Magic, entry point, alignments, size of image and headers, directories.
    for (at, value) in [(0, 0x20b_u32), (16, 0x1000), (32, 0x1000), (36, 0x200), (56, 0x2000), (60, 0x400), (108, 16)] {
        put(OPTIONAL + at, &value.to_le_bytes());
    }
    put(OPTIONAL + 68, &10u16.to_le_bytes());
    put(OPTIONAL + 70, &0x160_u16.to_le_bytes());
    put(SECTION, b".text");
    for (at, value) in [(8, 0x200_u32), (12, 0x1000), (16, 0x200), (20, 0x400), (36, 0x6000_0020)] {
        put(SECTION + at, &value.to_le_bytes());
    }
    bytes.resize(0x600, seed);
    bytes
}

/// The header of an ELF file for x86-64, System V ABI.
fn elf_header(kind: u16, programs: u16, sections_at: u64, sections: u16) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend(kind.to_le_bytes());
    bytes.extend(62u16.to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    bytes.extend((if programs > 0 { 0x40_0078_u64 } else { 0 }).to_le_bytes());
    bytes.extend((if programs > 0 { 64u64 } else { 0 }).to_le_bytes());
    bytes.extend(sections_at.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    for half in [64, 56, programs, 64, sections, sections.saturating_sub(1)] {
        bytes.extend(u16::to_le_bytes(half));
    }
    bytes
}

/// A static program that ends at once: `mov eax, 60; xor edi, edi; syscall`.
pub(crate) fn static_program() -> Vec<u8> {
    let code = [0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05];
    let mut bytes = elf_header(2, 1, 0, 0);
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(5u32.to_le_bytes());
    let length = 64 + 56 + code.len() as u64;
    for word in [0, 0x40_0000, 0x40_0000, length, length, 0x1000] {
        bytes.extend(u64::to_le_bytes(word));
    }
    bytes.extend(code);
    bytes
}

/// A kernel module that says no more than its `.modinfo`: `key=value` words.
pub(crate) fn module(words: &[&str]) -> Vec<u8> {
    let info: Vec<u8> = words.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect();
    let names = b"\0.modinfo\0.shstrtab\0";
    let (info_at, names_at) = (64, 64 + info.len());
    let sections_at = (names_at + names.len()).next_multiple_of(8);
    let mut bytes = elf_header(1, 0, sections_at as u64, 3);
    bytes.extend(&info);
    bytes.extend(names);
    bytes.resize(sections_at + 64, 0);
    for (name, kind, at, length) in [(1u32, 1u32, info_at, info.len()), (10, 3, names_at, names.len())] {
        let mut header = Vec::new();
        header.extend(name.to_le_bytes());
        header.extend(kind.to_le_bytes());
        for word in [0, 0, at as u64, length as u64, 0, 1, 0] {
            header.extend(u64::to_le_bytes(word));
        }
        header.resize(64, 0);
        bytes.extend(header);
    }
    bytes
}
