//! Images assembled from a small synthetic stub: golden dump, `objdump`, reading back, and broken inputs of all kinds.

use std::fmt::Write as _;
use std::io::{Cursor, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};
use uki::pe::{self, Headers};
use uki::{Error, Name, Section, SectionData, Summary, Uki, assemble};

// Offsets in the synthetic images.
const PE: usize = 0x40;
const OPTIONAL: usize = PE + 24;
const TABLE: usize = OPTIONAL + 240;

/// A PE32+ EFI application of sections (name, virtual size, raw size, flags), 4096 and 512 bytes aligned.
fn image(machine: u16, nx: bool, sections: &[(&str, u32, u32, u32)]) -> Vec<u8> {
    let mut bytes = vec![0; 0x400];
    let mut put = |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
    put(0, b"MZ");
    put(0x3c, &(PE as u32).to_le_bytes());
    put(PE, b"PE\0\0");
    put(PE + 4, &machine.to_le_bytes());
    put(PE + 6, &(sections.len() as u16).to_le_bytes());
    put(PE + 8, &0x5eed_u32.to_le_bytes());
    put(PE + 20, &240u16.to_le_bytes());
    put(PE + 22, &0x22e_u16.to_le_bytes());
    let (mut address, mut offset) = (0x1000, 0x400);
    for (index, (name, virtual_size, raw_size, flags)) in sections.iter().enumerate() {
        let header = TABLE + index * 40;
        put(header, name.as_bytes());
        for (field, value) in [(8, *virtual_size), (12, address), (16, *raw_size), (20, offset), (36, *flags)] {
            put(header + field, &value.to_le_bytes());
        }
        address += virtual_size.next_multiple_of(0x1000);
        offset += raw_size;
    }
    let optional: [(usize, u32); 9] = [
        (0, 0x20b),
        (8, 0x1234),
        (16, 0x1000),
        (32, 0x1000),
        (36, 0x200),
        (56, address),
        (60, 0x400),
        (64, 0xc0ffee),
        (108, 16),
    ];
    optional.iter().for_each(|(field, value)| put(OPTIONAL + field, &value.to_le_bytes()));
    put(OPTIONAL + 68, &10u16.to_le_bytes());
    put(OPTIONAL + 70, &(if nx { 0x160_u16 } else { 0x60 }).to_le_bytes());
    for (index, (_, _, raw_size, _)) in sections.iter().enumerate() {
        bytes.resize(bytes.len() + *raw_size as usize, 0xa0 + index as u8);
    }
    bytes
}

fn stub() -> Vec<u8> {
    let sections = [
        (".text", 0x1810, 0x1a00, 0x6000_0020),
        (".sbat", 0x30, 0x200, 0x4000_0040),
        (".reloc", 0x88, 0x200, 0x4200_0040),
    ];
    image(pe::MACHINE_AMD64, true, &sections)
}

fn kernel() -> Vec<u8> {
    image(pe::MACHINE_AMD64, true, &[(".text", 0x2345, 0x2400, 0x6000_0020)])
}

const OSREL: &str = "ID=nodezero\nVERSION_ID=1\n";
const CMDLINE: &str = "quiet console=ttyS0 a=\"b c\"";
const SBAT: &str = "sbat,1,SBAT Version,sbat,1,x\nstub,1,A\nlinux,1,B\n";

fn bytes<'a>(name: Name, data: &'a (impl AsRef<[u8]> + ?Sized)) -> Section<'a> {
    Section { name, data: SectionData::Bytes(data.as_ref()) }
}

fn assembled(stub: &[u8], sections: &[Section<'_>]) -> Result<(Vec<u8>, Summary), Error> {
    let mut out = Vec::new();
    let summary = assemble(stub, sections, &mut out)?;
    assert_eq!(summary.size, out.len() as u64);
    assert_eq!(summary.sha256, <[u8; 32]>::from(Sha256::digest(&out)));
    Ok((out, summary))
}

/// An image with every section but the splash, given out of order.
fn sample(stub: &[u8]) -> Vec<u8> {
    let kernel = kernel();
    let initrd = vec![0x1d; 70_001];
    let sections = [
        bytes(Name::Linux, &kernel),
        bytes(Name::Sbat, SBAT),
        bytes(Name::Initrd, &initrd),
        bytes(Name::Cmdline, CMDLINE),
        bytes(Name::Uname, "6.12.1"),
        bytes(Name::Osrel, OSREL),
        bytes(Name::Ucode, &[0xcd; 512]),
    ];
    assembled(stub, &sections).unwrap().0
}

fn dump(image: &[u8]) -> String {
    let headers = Headers::parse(image).unwrap();
    headers.check_layout(image.len() as u64).unwrap();
    let mut text = format!(
        "file {:#x} image {:#x} headers {:#x} data {:#x} flags {:#x}\n",
        image.len(),
        headers.size_of_image,
        headers.size_of_headers,
        headers.size_of_initialized_data,
        headers.dll_characteristics
    );
    for section in &headers.sections {
        let (memory, file) = (section.memory_range(), section.file_range());
        let name = section.printable_name();
        let flags = section.characteristics;
        writeln!(text, "{name:9}{memory:#7x?} {file:#7x?} {flags:08x}").unwrap();
    }
    text
}

const GOLDEN: &str = "\
file 0x16400 image 0x1e000 headers 0x400 data 0x14ddf flags 0x160
.text     0x1000.. 0x2810   0x400.. 0x1e00 60000020
.sbat     0x3000.. 0x3030  0x1e00.. 0x2000 40000040
.reloc    0x4000.. 0x4088  0x2000.. 0x2200 42000040
.osrel    0x5000.. 0x5019  0x2200.. 0x2400 40000040
.cmdline  0x6000.. 0x601b  0x2400.. 0x2600 40000040
.uname    0x7000.. 0x7006  0x2600.. 0x2800 40000040
.linux    0x8000.. 0xa800  0x2800.. 0x5000 40000020
.initrd   0xb000..0x1c171  0x5000..0x16200 40000040
.ucode   0x1d000..0x1d200 0x16200..0x16400 40000040
";

#[test]
fn the_layout_is_known() {
    assert_eq!(dump(&sample(&stub())), GOLDEN);
}

#[test]
fn order_and_source_of_sections_change_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("parts");
    let initrd: Vec<u8> = (0..300_000u32).flat_map(u32::to_be_bytes).collect();
    std::fs::write(&path, [b"before".as_slice(), &initrd, b"after"].concat()).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    let kernel = kernel();
    let from_file = SectionData::File { file: &file, start: 6, length: initrd.len() as u64 };
    let one = assembled(&stub(), &[bytes(Name::Linux, &kernel), bytes(Name::Initrd, &initrd)]).unwrap();
    let two = [Section { name: Name::Initrd, data: from_file }, bytes(Name::Linux, &kernel)];
    assert!(one == assembled(&stub(), &two).unwrap());

    let long = SectionData::File { file: &file, start: 6, length: initrd.len() as u64 + 6 };
    let error = assembled(&stub(), &[Section { name: Name::Initrd, data: long }, bytes(Name::Linux, &kernel)]);
    assert!(matches!(error, Err(Error::Content { name: Name::Initrd, .. })), "a file shorter than declared");
}

#[test]
fn images_read_back() {
    let image = sample(&stub());
    let uki = Uki::read(&mut Cursor::new(&image)).unwrap();
    assert_eq!(uki.cmdline().unwrap().as_str(), CMDLINE);
    assert_eq!(uki.osrel(), Some(OSREL.trim_end()));
    assert_eq!(uki.uname(), Some("6.12.1"));
    assert!(!uki.is_signed());
    let names: Vec<_> = uki.sections().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        [Name::Sbat, Name::Osrel, Name::Cmdline, Name::Uname, Name::Linux, Name::Initrd, Name::Ucode],
        "in file order"
    );
    let content = |name| {
        let mut content = Vec::new();
        uki.open_section(Cursor::new(&image), name).unwrap().read_to_end(&mut content).unwrap();
        content
    };
    assert!(content(Name::Linux) == kernel());
    assert!(content(Name::Initrd) == [0x1d; 70_001]);
    assert!(content(Name::Ucode) == [0xcd; 512]);
    assert_eq!(content(Name::Sbat), SBAT.as_bytes());
    assert!(matches!(uki.open_section(Cursor::new(&image), Name::Splash), Err(Error::Missing(Name::Splash))));
}

#[test]
fn the_stub_itself_is_kept() {
    let (stub, image) = (stub(), sample(&stub()));
    assert!(image[0x400..0x400 + 0x1a00] == stub[0x400..0x400 + 0x1a00], ".text");
    assert!(image[0x2000..0x2200] == stub[0x2000..0x2200], ".reloc");
    assert_eq!(image[PE + 8..PE + 12], 0x5eed_u32.to_le_bytes(), "the time stamp stays");
    assert_eq!(image[OPTIONAL + 64..OPTIONAL + 68], [0; 4], "a checksum of the stub does not");
    assert_eq!(image[OPTIONAL + 144..OPTIONAL + 152], [0; 8], "the certificate table is empty");
}

#[test]
fn nx_is_what_the_kernel_says() {
    for (stub_nx, kernel_nx, expected) in [(true, true, true), (true, false, false), (false, true, false)] {
        let stub = image(pe::MACHINE_AMD64, stub_nx, &[(".text", 1, 0x200, 0x6000_0020)]);
        let kernel = image(pe::MACHINE_AMD64, kernel_nx, &[(".text", 1, 0x200, 0x6000_0020)]);
        let (image, _) = assembled(&stub, &[bytes(Name::Linux, &kernel)]).unwrap();
        let flags = Headers::parse(&image).unwrap().dll_characteristics;
        let nx = flags & pe::DLL_CHARACTERISTICS_NX_COMPAT != 0;
        assert_eq!(nx, expected, "stub {stub_nx}, kernel {kernel_nx}");
    }
}

#[test]
fn requests_that_make_no_image_are_refused() {
    let kernel = kernel();
    let linux = bytes(Name::Linux, &kernel);
    let foreign = image(pe::MACHINE_ARM64, true, &[(".text", 1, 0x200, 0x6000_0020)]);
    let truncated = &kernel[..0x100];
    let long_sbat = vec![b'x'; 0x201];
    let directory = tempfile::tempdir().unwrap();
    let sparse = std::fs::File::create_new(directory.path().join("sparse")).unwrap();
    let huge = SectionData::File { file: &sparse, start: 0, length: u32::MAX.into() };
    let cases: [(&[Section<'_>], &str); 9] = [
        (&[], "section .linux is missing"),
        (&[bytes(Name::Initrd, "x")], "section .linux is missing"),
        (&[linux, bytes(Name::Osrel, "a"), linux], "section .linux is there twice"),
        (&[linux, bytes(Name::Cmdline, "")], "section .cmdline is empty"),
        (&[bytes(Name::Linux, "no kernel")], "kernel is no EFI image"),
        (&[bytes(Name::Linux, truncated)], "kernel is no EFI image"),
        (&[bytes(Name::Linux, &foreign)], "kernel is for machine 0xaa64, the stub for 0x8664"),
        (&[linux, bytes(Name::Sbat, &long_sbat)], "section .sbat of the stub has room for 512 bytes, 513 are needed"),
        (
            &[linux, Section { name: Name::Initrd, data: huge }],
            "section .initrd ends past the 4 GiB that a PE image can address",
        ),
    ];
    for (sections, expected) in cases {
        assert_eq!(assembled(&stub(), sections).unwrap_err().to_string(), expected);
    }
}

#[test]
fn stubs_that_cannot_be_extended_are_refused() {
    let sample = stub();
    let end = sample.len() as u32;
    let cases: [(&str, usize, u32, &str); 22] = [
        ("no MZ", 0, 0, "PE header field e_magic is 0x0, expected 0x5a4d, \"MZ\""),
        ("far signature", 0x3c, u32::MAX, "PE header needs bytes 4294967295 to 4294967299, has 8704"),
        ("no signature", PE, 0, "PE header field Signature is 0x0, expected 0x4550, \"PE\""),
        ("no sections", PE + 4, 0x8664, "PE header field NumberOfSections is 0x0, expected 1 to 96"),
        ("97 sections", PE + 4, 0x61_8664, "PE header field NumberOfSections is 0x61, expected 1 to 96"),
        ("65535 sections", PE + 4, 0xffff_8664, "PE header field NumberOfSections is 0xffff, expected 1 to 96"),
        (
            "symbols",
            PE + 12,
            0x400,
            "PE header field PointerToSymbolTable is 0x400, expected a stub without symbol table",
        ),
        ("optional header", PE + 20, 100, "PE header field SizeOfOptionalHeader is 0x64, expected room for all data"),
        ("PE32", OPTIONAL, 0x10b, "PE header field Magic is 0x10b, expected 0x20b, PE32+"),
        ("subsystem", OPTIONAL + 68, 3, "PE header field Subsystem is 0x3, expected 0xa, EFI application"),
        (
            "directories",
            OPTIONAL + 108,
            u32::MAX,
            "PE header field NumberOfRvaAndSizes is 0xffffffff, expected at most",
        ),
        ("signed", OPTIONAL + 144, 0x400, "PE header field Certificate Table is 0x400, expected an unsigned stub"),
        ("section alignment", OPTIONAL + 32, 0x1001, "PE header field SectionAlignment is 0x1001"),
        ("small section alignment", OPTIONAL + 32, 0x100, "PE header field SectionAlignment is 0x100"),
        ("file alignment", OPTIONAL + 36, 0, "PE header field FileAlignment is 0x0"),
        ("short headers", OPTIONAL + 60, 0x100, "PE header field SizeOfHeaders is 0x100"),
        ("long headers", OPTIONAL + 60, u32::MAX, "PE header field SizeOfHeaders is 0xffffffff"),
        ("image size", OPTIONAL + 56, 0x4000, "section \".reloc\" at 0x4000..0x4088 of the memory image is outside"),
        ("overlap in memory", TABLE + 8, 0x2001, "section \".sbat\" at 0x3000..0x3030 of the memory image is outside"),
        ("overlap in the file", TABLE + 16, 0x1a01, "section \".sbat\" at 0x1e00..0x2000 of the file is outside"),
        ("outside the file", TABLE + 96, end, "section \".reloc\" at 0x2000..0x4200 of the file is outside"),
        ("unaligned", TABLE + 12, 0x1800, "PE header field VirtualAddress is 0x1800, expected a multiple of"),
    ];
    let kernel = kernel();
    for (case, offset, value, expected) in cases {
        let mut stub = sample.clone();
        stub[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        let error = assembled(&stub, &[bytes(Name::Linux, &kernel)]).expect_err(case).to_string();
        assert!(error.starts_with(expected), "{case}: {error}");
    }

    let mut trailing = sample.clone();
    trailing.push(0);
    let error = assembled(&trailing, &[bytes(Name::Linux, &kernel)]).unwrap_err();
    assert_eq!(error.to_string(), format!("stub has {} bytes, its sections end at {end}", end + 1));

    // What stands between the section table and the first section is not overwritten: two headers fit before it.
    let mut crowded = sample.clone();
    crowded[TABLE + 3 * 40 + 85] = 1;
    let sections = [bytes(Name::Linux, &kernel), bytes(Name::Osrel, "a"), bytes(Name::Uname, "b")];
    let error = assembled(&crowded, &sections).unwrap_err();
    assert_eq!(error.to_string(), "stub has room for 2 more section headers, 3 are needed");
    assert!(assembled(&crowded, &sections[..2]).is_ok());

    let twice = image(pe::MACHINE_AMD64, true, &[(".linux", 1, 0x200, 0x6000_0020)]);
    assert!(matches!(assembled(&twice, &sections[..1]), Err(Error::Duplicate(Name::Linux))));
}

#[test]
fn broken_images_are_refused() {
    let image = sample(&stub());
    let read = |bytes: &[u8]| Uki::read(&mut Cursor::new(bytes));
    let truncations = (0..image.len()).step_by(997).chain(0..0x400).chain([image.len() - 1]);
    for length in truncations {
        assert!(read(&image[..length]).is_err(), "{length} bytes of {}", image.len());
    }
    let find = |needle: &[u8]| image.windows(needle.len()).position(|window| window == needle).unwrap();
    let cases: [(usize, &[u8], &str); 5] = [
        (find(b".uname\0\0"), b".osrel\0\0", "section .osrel is there twice"),
        (find(b".linux\0\0"), b".lynux\0\0", "section .linux is missing"),
        (find(CMDLINE.as_bytes()), b"\n", "command line has '\\n' at byte 0, only printable ASCII is carried"),
        (find(OSREL.as_bytes()), b"\xff", "section .osrel is not UTF-8"),
        (find(b".initrd\0"), b".uname2\0", ""),
    ];
    for (offset, value, expected) in cases {
        let mut image = image.clone();
        image[offset..offset + value.len()].copy_from_slice(value);
        let message = read(&image).err().map(|error| error.to_string()).unwrap_or_default();
        assert_eq!(message, expected, "at {offset:#x}");
    }
    let mut long = image.clone();
    let (initrd, osrel) = (find(b".initrd\0"), find(b".osrel\0\0"));
    long[initrd..initrd + 8].copy_from_slice(b".osrel\0\0");
    long[osrel..osrel + 8].copy_from_slice(b".other\0\0");
    assert_eq!(read(&long).unwrap_err().to_string(), "section .osrel is 70001 bytes, at most 65536 are read as text");
}

#[test]
fn mutations_never_panic() {
    let (stub, kernel, image) = (stub(), kernel(), sample(&stub()));
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % bound as u64) as usize
    };
    const INTERESTING: [u32; 8] = [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX, 0xffff, 0x1000, 0x200];
    let (mut read, mut written) = (0, 0);
    for _ in 0..20_000 {
        let mut mutate = |bytes: &[u8]| {
            // Almost all that is looked at lies in the headers.
            let mut bytes = bytes.to_vec();
            for _ in 0..=random(3) {
                let offset = random(0x3fc);
                match random(3) {
                    0 => bytes[offset] ^= 1 << random(8),
                    1 => bytes[offset..offset + 4].copy_from_slice(&INTERESTING[random(8)].to_le_bytes()),
                    _ => bytes[offset..offset + 2].copy_from_slice(&(random(0x10000) as u16).to_le_bytes()),
                }
            }
            if random(8) == 0 {
                bytes.truncate(random(bytes.len()));
            }
            bytes
        };
        let (stub, kernel, image) = (mutate(&stub), mutate(&kernel), mutate(&image));
        if let Ok(uki) = Uki::read(&mut Cursor::new(&image)) {
            read += 1;
            for (name, _) in uki.sections() {
                let mut reader = uki.open_section(Cursor::new(&image), name).unwrap();
                std::io::copy(&mut reader, &mut std::io::sink()).unwrap();
            }
        }
        let sections = [bytes(Name::Linux, &kernel), bytes(Name::Cmdline, CMDLINE), bytes(Name::Sbat, SBAT)];
        if let Ok((image, _)) = assembled(&stub, &sections) {
            written += 1;
            Uki::read(&mut Cursor::new(&image)).expect("what was assembled reads back");
        }
    }
    assert!(read > 1000 && written > 1000, "only {read} read and {written} written: the mutations reach too little");
}

/// Runs `objdump -h`; `None` when it is not installed, which CI does not accept.
fn objdump(path: &Path) -> Option<String> {
    let output = Command::new("objdump").arg("-h").arg(path).env("LC_ALL", "C").stderr(Stdio::inherit()).output();
    match output {
        Ok(output) => {
            assert!(output.status.success(), "objdump refuses the image");
            Some(String::from_utf8(output.stdout).unwrap())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            assert!(std::env::var_os("CI").is_none(), "objdump is needed in CI");
            eprintln!("skipped: objdump is not installed");
            None
        }
        Err(error) => panic!("running objdump: {error}"),
    }
}

/// Compares sections as we see them with those that objdump lists: name, size, address, offset.
fn compare_with_objdump(image: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(image).unwrap();
    let Some(listing) = objdump(file.path()) else {
        return;
    };
    let theirs: Vec<Vec<&str>> = listing
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.len() == 7 && words[0].parse::<usize>().is_ok())
        .collect();
    let headers = Headers::parse(image).unwrap();
    assert_eq!(theirs.len(), headers.sections.len(), "{listing}");
    let hex = |word: &str| u64::from_str_radix(word, 16).unwrap();
    // objdump's addresses include the image's base.
    let base = hex(theirs[0][3]) - headers.sections[0].memory_range().start;
    for (theirs, ours) in theirs.iter().zip(&headers.sections) {
        let found = (theirs[1], hex(theirs[2]), hex(theirs[3]) - base, hex(theirs[5]));
        let expected = (u64::from(ours.content_length()), ours.memory_range().start, ours.file_range().start);
        assert_eq!(found, (ours.printable_name().as_str(), expected.0, expected.1, expected.2));
    }
}

#[test]
fn objdump_agrees() {
    compare_with_objdump(&sample(&stub()));
}

/// systemd's own stub: the file that `SYSTEMD_STUB` names, else where Debian's systemd-boot-efi puts it.
#[test]
fn the_systemd_stub_takes_all_sections() {
    let path = std::env::var_os("SYSTEMD_STUB").unwrap_or("/usr/lib/systemd/boot/efi/linuxx64.efi.stub".into());
    let Ok(stub) = std::fs::read(&path) else {
        assert!(std::env::var_os("CI").is_none(), "systemd-boot-efi is needed in CI");
        eprintln!("skipped: systemd-boot-efi is not installed");
        return;
    };
    if stub.windows(17).any(|window| window == b" systemd-stub 252") {
        eprintln!("skipped: stubs of systemd 252 have a symbol table and sections that are not aligned");
        return;
    }
    let image = sample(&stub);
    let uki = Uki::read(&mut Cursor::new(&image)).unwrap();
    assert_eq!(uki.cmdline().unwrap().as_str(), CMDLINE);
    assert_eq!(uki.sections().count(), 7);
    compare_with_objdump(&image);
}
