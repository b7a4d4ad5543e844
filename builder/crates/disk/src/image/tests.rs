use std::borrow::Cow;
use std::io::Cursor;
use std::os::unix::fs::MetadataExt;

use super::*;
use crate::layout::tests::{MIB, spec};
use crate::layout::{SectorSize, Spec, image_layout};
use crate::syslinux::tests::fake_loader;
use crate::table::{read_boot_code, read_table};

const MBR_CODE: [u8; table::BOOT_CODE_BYTES] = [0xfa; table::BOOT_CODE_BYTES];

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

struct Made {
    image: File,
    layout: Layout,
    plan: esp::Plan,
}

fn make(spec: &Spec, root: &[u8], verity: &[u8], bios: bool) -> Result<Made> {
    let layout = image_layout(spec)?;
    let loader = fake_loader(3);
    let mut image = tempfile::tempfile().unwrap();
    let contents = Contents {
        esp_files: vec![esp::File {
            path: "EFI/BOOT/BOOTX64.EFI".to_owned(),
            content: esp::Content::Bytes(Cow::Borrowed(b"loader")),
        }],
        esp_volume_id: 7,
        unix_time: 1_760_000_000,
        root: &mut file_of(root),
        root_len: spec.root_size,
        verity: &mut file_of(verity),
        verity_len: spec.verity_size,
        bios: bios.then_some(Bios { mbr_code: &MBR_CODE, loader: &loader }),
    };
    let plan = assemble(&mut image, &layout, contents)?;
    Ok(Made { image, layout, plan })
}

fn contents_of(size: u64, seed: u8) -> Vec<u8> {
    (0..size).map(|at| (at >> 9) as u8 ^ at as u8 ^ seed | 1).collect()
}

fn small(sector: SectorSize) -> Spec {
    Spec { root_size: 3 * MIB + 4096, verity_size: 40_960, ..spec(sector) }
}

#[test]
fn every_part_is_where_the_table_says() {
    for (sector, bios) in [(SectorSize::B512, true), (SectorSize::B512, false), (SectorSize::B4096, false)] {
        let spec = Spec { bios, ..small(sector) };
        let (root, verity) = (contents_of(spec.root_size, 1), contents_of(spec.verity_size, 2));
        let Made { mut image, layout, plan } = make(&spec, &root, &verity, bios).unwrap();
        assert_eq!(image.metadata().unwrap().len(), layout.disk_bytes());
        let found = read_table(&mut image, sector, layout.disk_sectors()).unwrap();
        assert!(found.is_sound() && found.layout == layout, "{sector:?}");
        let expected = if bios { MBR_CODE } else { [0; table::BOOT_CODE_BYTES] };
        assert_eq!(read_boot_code(&mut image).unwrap(), expected);
        for (role, bytes) in [(Role::RootA, &root), (Role::RootAVerity, &verity)] {
            let mut read = Vec::new();
            let part = layout.role(role).unwrap();
            Region::of_partition(&mut image, &layout, part).take(bytes.len() as u64).read_to_end(&mut read).unwrap();
            assert!(read == *bytes, "{role:?}");
        }
        let esp_part = layout.role(Role::Esp).unwrap();
        let mut region = Region::of_partition(&mut image, &layout, esp_part);
        assert_eq!(esp::read_file(&mut region, "efi/boot/bootx64.efi", 100).unwrap().unwrap(), b"loader");
        assert_eq!(plan.extent("ldlinux.sys").is_some(), bios);
        let mut boot = [0; 512];
        region.seek(SeekFrom::Start(0)).unwrap();
        region.read_exact(&mut boot).unwrap();
        assert_eq!(boot[28..32], (esp_part.first_lba as u32).to_le_bytes(), "hidden sectors");
        assert!(image.metadata().unwrap().blocks() * 512 < 8 * MIB, "holes are filled");
    }
}

#[test]
fn the_same_contents_make_the_same_image() {
    let spec = small(SectorSize::B512);
    let read = |mut made: Made| {
        let mut bytes = Vec::new();
        made.image.seek(SeekFrom::Start(0)).unwrap();
        made.image.read_to_end(&mut bytes).unwrap();
        bytes
    };
    let (root, verity) = (contents_of(spec.root_size, 1), contents_of(spec.verity_size, 2));
    let [first, second] = [(); 2].map(|()| read(make(&spec, &root, &verity, true).unwrap()));
    assert!(first == second);
}

#[test]
fn contents_of_another_length_are_refused() {
    let spec = small(SectorSize::B512);
    let (root, verity) = (contents_of(spec.root_size, 1), contents_of(spec.verity_size, 2));
    let short = make(&spec, &root[1..], &verity, false).map(|_| ());
    assert!(matches!(short, Err(Error::Length { .. })), "{short:?}");
    let long = make(&spec, &root, &[&verity[..], b"x"].concat(), false).map(|_| ());
    assert!(matches!(long, Err(Error::Length { .. })), "{long:?}");
    let missing = Layout::new(SectorSize::B512, spec.disk_guid, 4096, std::collections::BTreeMap::new()).unwrap();
    let contents = Contents {
        esp_files: vec![],
        esp_volume_id: 0,
        unix_time: 0,
        root: &mut file_of(b""),
        root_len: 0,
        verity: &mut file_of(b""),
        verity_len: 0,
        bios: None,
    };
    let result = assemble(&mut tempfile::tempfile().unwrap(), &missing, contents);
    assert!(matches!(result, Err(Error::Missing("ESP"))));
    // An image that outgrew its partition: the layout is of a smaller one.
    let layout = image_layout(&spec).unwrap();
    let len = layout.role(Role::RootA).unwrap().sectors * 512 + 1;
    let mut root = tempfile::tempfile().unwrap();
    root.set_len(len).unwrap();
    let part = layout.role(Role::RootA).unwrap();
    let result = copy(&mut root, len, &mut tempfile::tempfile().unwrap(), &layout, part);
    assert!(matches!(result, Err(Error::TooLarge { .. })));
}

#[test]
fn a_region_ends() {
    let mut device = Cursor::new((0_u8..100).collect::<Vec<u8>>());
    let mut region = Region::new(&mut device, 10, 20);
    let mut all = Vec::new();
    region.read_to_end(&mut all).unwrap();
    assert_eq!(all, (10..30).collect::<Vec<u8>>());
    assert_eq!(region.seek(SeekFrom::End(-2)).unwrap(), 18);
    assert_eq!(region.write(&[1, 2, 3]).unwrap(), 2);
    assert!(region.write_all(&[4]).is_err());
    assert!(region.seek(SeekFrom::Current(-100)).is_err());
    assert_eq!(region.seek(SeekFrom::Start(50)).unwrap(), 50);
    assert_eq!(region.read(&mut [0; 4]).unwrap(), 0);
    assert_eq!(device.get_ref()[27..32], [27, 1, 2, 30, 31]);
}
