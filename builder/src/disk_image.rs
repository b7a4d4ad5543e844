//! The disk image: partition table, ESP with loaders and UKI, root and hash tree at their places.

use std::io::Seek as _;

use anyhow::{Context as _, Result, anyhow};
use disk::{Guid, Layout, SectorSize, esp};
use tempfile::NamedTempFile;

use crate::build::{Options, Parts, Source};
use crate::kernel::Package;
use crate::output;
use crate::plan::BuildPlan;
use crate::recipe::{Loader, Recipe};

/// Generations of UKI that the ESP holds.
const GENERATIONS: u64 = 3;
/// What the ESP holds beside UKIs: loader, profile, file system.
const ESP_SLACK: u64 = 32 << 20;
/// The smallest ESP: some firmware takes FAT32 only from here on.
const ESP_LEAST: u64 = 256 << 20;
/// Attempts that systemd-boot gives a new image before it prefers an older one.
const TRIES: u32 = 3;
const ESP_README: &str = "A machine that boots from this disk reads its configuration, an Ignition config,\r\n\
                          from config.ign in this directory.\r\n";

/// Where in the ESP kernel and initrd lie for a BIOS loader, which reads no UKI.
pub(crate) const BIOS_FILES: [&str; 2] = ["nodezero/bios/linux", "nodezero/bios/initrd"];

/// Writes the raw image under a temporary name in the output directory.
pub(crate) fn assemble(
    options: &Options,
    recipe: &Recipe,
    plan: &BuildPlan,
    source: &Source,
    parts: &Parts,
    package: &Package<'_>,
) -> Result<(NamedTempFile, Layout)> {
    let bios = recipe.boot.loaders.contains(&Loader::Bios);
    let loader = bios.then(|| bios_loader(source)).transpose()?;
    let files = esp_files(plan, source, parts, package, loader.as_ref())?;
    let used: u64 = files.iter().map(|file| file.content.len()).sum();
    let length = |file: &std::fs::File| file.metadata().map(|meta| meta.len()).context("reading a part of the image");
    let (root_len, verity_len) = (length(&parts.root)?, length(&parts.verity.file)?);
    let (root_guid, verity_guid) = Guid::of_root_hash(parts.verity.root_hash.digest().as_bytes());
    let layout = disk::image_layout(&disk::layout::Spec {
        sector: SectorSize::new(512)?,
        disk_guid: Guid::derived("disk", plan.inputs.as_bytes()),
        esp_size: (used * GENERATIONS + ESP_SLACK).max(ESP_LEAST),
        esp_guid: Guid::derived("ESP", plan.inputs.as_bytes()),
        root_size: root_len,
        root_guid,
        verity_size: verity_len,
        verity_guid,
        bios,
    })?;
    let raw = output::temporary_in(&options.out)?;
    let mut out = raw.reopen().context("opening the image")?;
    let volume = Guid::derived("ESP volume", plan.inputs.as_bytes());
    let [a, b, c, d, ..] = volume.to_bytes();
    let mut root = parts.root.try_clone().context("opening the root image")?;
    let mut verity = parts.verity.file.try_clone().context("opening the hash tree")?;
    let contents = disk::image::Contents {
        esp_files: files,
        esp_volume_id: u32::from_be_bytes([a, b, c, d]),
        unix_time: plan.timestamp,
        root: &mut root,
        root_len,
        verity: &mut verity,
        verity_len,
        bios: loader
            .as_ref()
            .map(|loader| disk::image::Bios { mbr_code: &loader.mbr_code, loader: &loader.extracted.loader }),
    };
    disk::image::assemble(&mut out, &layout, contents)
        .with_context(|| format!("writing to {}", options.out.display()))?;
    Ok((raw, layout))
}

/// The name of an image's UKI, with the tries that systemd-boot counts down (Automatic Boot Assessment).
fn uki_name(plan: &BuildPlan) -> String {
    format!("{}_{}+{TRIES}.efi", plan.name, plan.version)
}

struct BiosLoader {
    extracted: disk::syslinux::Extracted,
    mbr_code: [u8; disk::table::BOOT_CODE_BYTES],
}

/// syslinux' parts, out of Debian's packages.
fn bios_loader(source: &Source) -> Result<BiosLoader> {
    let extracted = disk::syslinux::extract(&source.input("usr/bin/syslinux")?)?;
    let mbr_code = source.input("usr/lib/SYSLINUX/gptmbr.bin")?;
    let mbr_code = mbr_code.try_into().map_err(|code: Vec<u8>| {
        anyhow!("gptmbr.bin has {} bytes, expected {}", code.len(), disk::table::BOOT_CODE_BYTES)
    })?;
    Ok(BiosLoader { extracted, mbr_code })
}

/// The files of the ESP.
fn esp_files(
    plan: &BuildPlan,
    source: &Source,
    parts: &Parts,
    package: &Package<'_>,
    bios: Option<&BiosLoader>,
) -> Result<Vec<esp::File<'static>>> {
    let bytes =
        |path: &str, bytes: Vec<u8>| esp::File { path: path.to_owned(), content: esp::Content::Bytes(bytes.into()) };
    let systemd_boot = source.input("usr/lib/systemd/boot/efi/systemd-bootx64.efi")?;
    let mut uki = parts.uki.file.try_clone().context("opening the UKI")?;
    uki.rewind().context("reading the UKI")?;
    let mut files = vec![
        bytes("EFI/BOOT/BOOTX64.EFI", systemd_boot.clone()),
        bytes("EFI/systemd/systemd-bootx64.efi", systemd_boot),
        bytes("loader/loader.conf", b"timeout 0\neditor no\nconsole-mode keep\n".to_vec()),
        // Type 1 entries, of which there are none, and UKIs are both looked for.
        bytes("loader/entries.srel", b"type1\n".to_vec()),
        bytes("nodezero/README.TXT", ESP_README.as_bytes().to_vec()),
        esp::File {
            path: format!("EFI/Linux/{}", uki_name(plan)),
            content: esp::Content::Stream { reader: Box::new(uki), len: parts.uki.size },
        },
    ];
    if let Some(bios) = bios {
        let [linux, initrd_name] = BIOS_FILES;
        let config = disk::syslinux::Config {
            serial_baud: Some(115_200),
            timeout: 0,
            entries: vec![disk::syslinux::Entry {
                label: "nodezero".to_owned(),
                linux: format!("/{linux}"),
                initrd: format!("/{initrd_name}"),
                append: parts.cmdline.clone(),
            }],
        };
        files.push(bytes(disk::syslinux::CONFIG_PATH, config.render()?.into_bytes()));
        files.push(bytes("ldlinux.c32", bios.extracted.ldlinux_c32.clone()));
        files.push(bytes(linux, package.vmlinuz()?));
        files.push(bytes(initrd_name, parts.initrd.clone()));
    }
    Ok(files)
}
