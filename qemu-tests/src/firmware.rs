//! UEFI firmware for virtual machines: the user's own OVMF, else the tools tree's.
//!
//! QEMU's firmware descriptors say where a distribution keeps its builds and what each can do, so no list of paths is
//! needed: <https://www.qemu.org/docs/master/interop/firmware.json.html>. What is looked for is a build in two files
//! without Secure Boot, for q35. With the feature `ovmf-prebuilt`, that project's download is the last resort.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::json;

use crate::machine::Format;
use crate::tools;

/// Where descriptors lie, most important first.
const DESCRIPTORS: [&str; 2] = ["etc/qemu/firmware", "usr/share/qemu/firmware"];

/// Builds with one of these need more of the machine, or boot signed loaders only.
const UNWANTED: [&str; 3] = ["requires-smm", "enrolled-keys", "secure-boot"];

/// The content of a flash chip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flash {
    /// The file on the host.
    pub file: PathBuf,
    /// Its format.
    pub format: Format,
}

impl Flash {
    /// The value of QEMU's `-blockdev` for it.
    pub(crate) fn blockdev(&self, node: &str, read_only: bool) -> Result<OsString> {
        let Some(file) = self.file.to_str() else { bail!("{} is not a UTF-8 name", self.file.display()) };
        let driver = match self.format {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        };
        let protocol = json!({ "driver": "file", "filename": file });
        let tree = json!({ "driver": driver, "file": protocol, "node-name": node, "read-only": read_only });
        Ok(tree.to_string().into())
    }
}

/// A firmware build in two files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ovmf {
    /// The code, never written to.
    pub code: Flash,
    /// What a machine's variables begin as.
    pub template: Flash,
}

impl Ovmf {
    /// Finds a build: the host's, else the tools tree's.
    pub fn find() -> Result<Ovmf> {
        if let Some(found) = described(Path::new("/"))? {
            return Ok(found);
        }
        let in_tree = tools::tree()
            .and_then(|tree| described(tree)?.with_context(|| format!("no OVMF in the tools tree {}", tree.display())));
        in_tree.or_else(downloaded)
    }

    /// Makes the variables of one machine at `path`, unless they are there from an earlier boot. They are a qcow2 file,
    /// so that a machine with them can be saved.
    pub fn variables(&self, path: &Path) -> Result<Flash> {
        if !path.exists() {
            let format = match self.template.format {
                Format::Raw => "raw",
                Format::Qcow2 => "qcow2",
            };
            let mut command = tools::command("qemu-img")?;
            tools::run(command.args(["convert", "-f", format, "-O", "qcow2"]).arg(&self.template.file).arg(path))?;
        }
        Ok(Flash { file: path.to_path_buf(), format: Format::Qcow2 })
    }
}

#[cfg(not(feature = "ovmf-prebuilt"))]
fn downloaded(error: anyhow::Error) -> Result<Ovmf> {
    Err(error)
}

#[cfg(feature = "ovmf-prebuilt")]
fn downloaded(error: anyhow::Error) -> Result<Ovmf> {
    use ovmf_prebuilt::{Arch, FileType, Prebuilt, Source};
    let dir = crate::scenario::base()?.join("ovmf-prebuilt");
    let prebuilt =
        Prebuilt::fetch(Source::LATEST, &dir).map_err(|e| error.context(format!("downloading OVMF: {e}")))?;
    let flash = |kind| Flash { file: prebuilt.get_file(Arch::X64, kind), format: Format::Raw };
    Ok(Ovmf { code: flash(FileType::Code), template: flash(FileType::Vars) })
}

/// The first fitting build that the descriptors under `root` name, whose paths are relative to `root` as well.
fn described(root: &Path) -> Result<Option<Ovmf>> {
    let mut files = Vec::new();
    for dir in DESCRIPTORS {
        let Ok(entries) = fs::read_dir(root.join(dir)) else { continue };
        let mut dir: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        dir.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        dir.sort();
        files.append(&mut dir);
    }
    for file in files {
        // An empty file is how an administrator hides a descriptor of the same name; it describes nothing.
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let Ok(descriptor) = serde_json::from_str::<Descriptor>(&text) else { continue };
        if let Some(ovmf) = descriptor.fitting(root)
            && ovmf.code.file.exists()
            && ovmf.template.file.exists()
        {
            ensure!(ovmf.code.file != ovmf.template.file, "{} names one file twice", file.display());
            return Ok(Some(ovmf));
        }
    }
    Ok(None)
}

/// A descriptor; other members than these do not matter here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Descriptor {
    interface_types: Vec<String>,
    mapping: Mapping,
    targets: Vec<Target>,
    features: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "device", rename_all = "kebab-case")]
enum Mapping {
    #[serde(rename_all = "kebab-case")]
    Flash { executable: RawFlash, nvram_template: Option<RawFlash> },
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
struct RawFlash {
    filename: String,
    format: RawFormat,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawFormat {
    Raw,
    Qcow2,
}

#[derive(Debug, Deserialize)]
struct Target {
    architecture: String,
    machines: Vec<String>,
}

impl Descriptor {
    fn fitting(&self, root: &Path) -> Option<Ovmf> {
        let uefi = self.interface_types.iter().any(|kind| kind == "uefi");
        let plain = !self.features.iter().any(|feature| UNWANTED.contains(&feature.as_str()));
        let q35 = self.targets.iter().any(|target| {
            target.architecture == "x86_64" && target.machines.iter().any(|machine| machine.starts_with("pc-q35"))
        });
        match &self.mapping {
            Mapping::Flash { executable, nvram_template: Some(template) } if uefi && plain && q35 => {
                Some(Ovmf { code: executable.flash(root), template: template.flash(root) })
            }
            Mapping::Flash { .. } | Mapping::Other => None,
        }
    }
}

impl RawFlash {
    fn flash(&self, root: &Path) -> Flash {
        let file = root.join(self.filename.trim_start_matches('/'));
        let format = match self.format {
            RawFormat::Raw => Format::Raw,
            RawFormat::Qcow2 => Format::Qcow2,
        };
        Flash { file, format }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A descriptor as distributions write them.
    fn descriptor(device: &str, machines: &str, features: &str, code: &str) -> String {
        format!(
            r#"{{"description": "test", "interface-types": ["uefi"], "tags": [],
                "mapping": {{"device": "{device}", "mode": "split",
                    "executable": {{"filename": "/fw/{code}", "format": "raw"}},
                    "nvram-template": {{"filename": "/fw/vars.fd", "format": "qcow2"}}, "filename": "/fw/all.fd"}},
                "targets": [{{"architecture": "x86_64", "machines": ["{machines}"]}}],
                "features": [{features}]}}"#
        )
    }

    #[test]
    fn the_first_fitting_build_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for dir in DESCRIPTORS.iter().chain(&["fw"]) {
            fs::create_dir_all(at(dir)).unwrap();
        }
        assert_eq!(described(root.path()).unwrap(), None);
        let shared = [
            ("10-sev.json", descriptor("memory", "pc-q35-*", "", "good.fd")),
            ("20-secure.json", descriptor("flash", "pc-q35-*", r#""acpi-s3", "requires-smm""#, "good.fd")),
            ("30-microvm.json", descriptor("flash", "microvm", "", "good.fd")),
            ("40-gone.json", descriptor("flash", "pc-q35-*", "", "gone.fd")),
            ("50-broken.json", "{".to_owned()),
            ("55-empty.json", String::new()),
            ("60-good.json", descriptor("flash", "pc-q35-*", r#""acpi-s3", "amd-sev""#, "good.fd")),
            ("70-other.json", descriptor("flash", "pc-q35-*", "", "other.fd")),
            ("00-readme.txt", descriptor("flash", "pc-q35-*", "", "other.fd")),
        ];
        for (name, text) in shared {
            fs::write(at(DESCRIPTORS[1]).join(name), text).unwrap();
        }
        for file in ["good.fd", "other.fd", "vars.fd"] {
            fs::write(at("fw").join(file), file).unwrap();
        }
        let found = described(root.path()).unwrap().unwrap();
        assert_eq!(found.code, Flash { file: at("fw/good.fd"), format: Format::Raw });
        assert_eq!(found.template, Flash { file: at("fw/vars.fd"), format: Format::Qcow2 });

        let own = descriptor("flash", "pc-q35-*", "", "other.fd");
        fs::write(at(DESCRIPTORS[0]).join("99-own.json"), own).unwrap();
        assert_eq!(described(root.path()).unwrap().unwrap().code.file, at("fw/other.fd"), "the administrator's first");
    }
}
