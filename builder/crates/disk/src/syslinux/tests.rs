use std::fs;
use std::io::Cursor;
use std::process::Command;

use super::*;
use crate::esp;

/// A loader of the right shape that boots nothing: `sectors` and a half long.
pub(crate) fn fake_loader(sectors: usize) -> Loader {
    let mut boot = [0x90; SECTOR];
    boot[3..11].copy_from_slice(b"SYSLINUX");
    boot[504..508].copy_from_slice(&MAGIC.to_le_bytes());
    boot[510..].copy_from_slice(&[0x55, 0xaa]);
    Loader::new(&boot, &fake_ldlinux(sectors)).unwrap()
}

fn fake_ldlinux(sectors: usize) -> Vec<u8> {
    let mut file: Vec<u8> = (0..sectors * SECTOR + SECTOR / 2).map(|at| at as u8).collect();
    file[..12].copy_from_slice(b"\r\nSYSLINUX 6");
    file[24..48].fill(0);
    put(&mut file, 24, &MAGIC.to_le_bytes());
    put(&mut file, 24 + patch::EXTENDED, &600_u16.to_le_bytes());
    // ADV pointers, directory and its length, subvolume and its length, extents and their number, two places in the
    // boot sector, and one for RAID.
    for (index, number) in [640_u16, 660, 40, 700, 10, 100, 4, 0x11a, 0x120, 0].into_iter().enumerate() {
        put(&mut file, 600 + 2 * index, &number.to_le_bytes());
    }
    file
}

fn spec() -> esp::Spec {
    esp::Spec {
        size: 40 << 20,
        sector: SectorSize::B512,
        first_lba: 2048,
        volume_id: 0x1234_5678,
        label: "ESP".to_owned(),
        unix_time: 1_700_000_000,
        directories: Vec::new(),
    }
}

/// An installer's bytes: from the tree that `NODEZERO_TOOLS` names (`nodezero tools`), else the host's own.
fn installer(name: &str) -> Option<Vec<u8>> {
    let root = std::env::var_os("NODEZERO_TOOLS").unwrap_or_else(|| "/".into());
    let path = std::path::Path::new(&root).join("usr/bin").join(name);
    let found = fs::read(&path).ok();
    if found.is_none() {
        eprintln!("skipped: {} is missing", path.display());
    }
    found
}

#[test]
fn the_patch_areas_are_filled() {
    let loader = fake_loader(3);
    assert_eq!(loader.installed_len(), 6 * 512);
    let mut file_system = [0xaa; SECTOR];
    file_system[82..90].copy_from_slice(b"FAT32   ");
    let extent = Extent { first_sector: 0x1_0000_0005, sectors: 6 };
    let installed = loader.install(&file_system, SectorSize::B512, extent).unwrap();
    let boot = installed.boot_sector;
    assert_eq!(boot[..11], loader.boot_sector[..11]);
    assert_eq!(boot[11..90], file_system[11..90]);
    assert_eq!((&boot[0x11a..0x11e], &boot[0x120..0x124]), (&[5, 0, 0, 0][..], &[1, 0, 0, 0][..]));

    let file = installed.ldlinux;
    assert_eq!(file.len(), 6 * 512);
    assert_eq!(file[32..40], [4, 0, 2, 0, 0xc0, 1, 0, 0]);
    assert_eq!(file[100..110], [6, 0, 0, 0, 1, 0, 0, 0, 3, 0]);
    assert!(file[110..140].iter().all(|&byte| byte == 0));
    assert_eq!(file[640..656], [9, 0, 0, 0, 1, 0, 0, 0, 10, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(file[2048..2560], file[2560..]);
    // The loader adds up all dwords and wants the magic.
    let dwords = file[..0x1c0 * 4].chunks_exact(4).map(|dword| u32::from_le_bytes(dword.try_into().unwrap()));
    assert_eq!(dwords.fold(0_u32, u32::wrapping_add), MAGIC);
}

#[test]
fn anything_else_is_refused() {
    let good = fake_ldlinux(2);
    let boot = fake_loader(2).boot_sector;
    for (offset, value, case) in [
        (24, 0, "no magic"),
        (32, 1, "installed before"),
        (46, 0xff, "patch area outside"),
        (600, 0xff, "adv pointers: still inside"),
        (601, 0xff, "adv pointers outside"),
        (605, 0xff, "directory outside"),
        (611, 0xff, "extents outside"),
        (612, 0, "no extents"),
        (615, 0, "pointer in the parameters"),
        (615, 2, "pointer outside the boot sector"),
    ] {
        let mut bad = good.clone();
        bad[offset] = value;
        assert_eq!(Loader::new(&boot, &bad).is_err(), !case.ends_with("inside"), "{case}");
    }
    for offset in [3, 504, 510, 511] {
        let mut bad = boot;
        bad[offset] ^= 1;
        assert!(Loader::new(&bad, &good).is_err(), "boot sector byte {offset}");
    }
    assert!(Loader::new(&boot[..511], &good).is_err());

    let loader = fake_loader(2);
    let mut file_system = [0; SECTOR];
    let extent = Extent { first_sector: 100, sectors: 5 };
    assert!(loader.install(&file_system, SectorSize::B512, extent).is_err(), "not FAT32");
    file_system[82..90].copy_from_slice(b"FAT32   ");
    assert!(loader.install(&file_system, SectorSize::B512, extent).is_ok());
    assert!(loader.install(&file_system, SectorSize::B4096, extent).is_err());
    let short = Extent { sectors: 4, ..extent };
    assert!(loader.install(&file_system, SectorSize::B512, short).is_err());
}

#[test]
fn both_installers_hold_the_same_loader_shape() {
    for path in ["syslinux", "extlinux"] {
        let Some(installer) = installer(path) else { continue };
        let extracted = extract(&installer).unwrap();
        let (boot, ldlinux) = extracted.loader.digests();
        println!("{path}: boot sector {boot}, ldlinux.sys {ldlinux}, {} bytes", extracted.loader.ldlinux.len());
        assert!(extracted.ldlinux_c32.starts_with(b"\x7fELF\x01"), "{path}");
        // A changed length, start or section is refused, not guessed around.
        let start = installer.windows(11).position(|window| window == LDLINUX_START_FOR_TESTS).unwrap();
        for offset in [0, start, 40] {
            let mut bad = installer.clone();
            bad[offset] ^= 0x10;
            assert!(extract(&bad).is_err(), "{path} {offset}");
        }
    }
    for bad in [&b""[..], b"\x7fELF\x02\x01\x01", &[0; 4096]] {
        assert!(extract(bad).is_err());
    }
}

const LDLINUX_START_FOR_TESTS: &[u8] = b"\r\nSYSLINUX ";

/// The real installer is run on a file system of ours, and writes what we would write for the same place.
#[test]
fn the_real_installer_writes_the_same_bytes() {
    let Some(program) = installer("syslinux") else {
        assert!(std::env::var_os("CI").is_none(), "syslinux is needed in CI");
        return;
    };
    let Extracted { loader, ldlinux_c32 } = extract(&program).unwrap();
    let mut disk = Cursor::new(vec![0; spec().size as usize]);
    let plan = esp::write(&mut disk, &spec(), Vec::new(), None).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), disk.get_ref()).unwrap();
    let output = Command::new("syslinux").arg("--install").arg(file.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let real = fs::read(file.path()).unwrap();
    let place = |offset: usize| u64::from(u32::from_le_bytes(real[offset..offset + 4].try_into().unwrap()));
    let first_sector = place(loader.places.first_sector_low);
    let extent = Extent { first_sector, sectors: loader.installed_len() / 512 };
    let installed = loader.install(&plan.boot_sector(), SectorSize::B512, extent).unwrap();
    assert!(installed.boot_sector == real[..512], "boot sectors differ");
    let real_file = &real[first_sector as usize * 512..][..loader.installed_len() as usize];
    assert!(installed.ldlinux == real_file, "ldlinux.sys differs");
    let module = esp::read_file(&mut Cursor::new(real), "ldlinux.c32", 1 << 20).unwrap().unwrap();
    assert!(ldlinux_c32 == module, "ldlinux.c32 differs");
}
