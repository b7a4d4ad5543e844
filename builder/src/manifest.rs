//! What a build leaves beside an image: its manifest, and a software bill of materials.
//!
//! Both are the same bytes for the same inputs. The bill is SPDX 2.3 as JSON (<https://spdx.github.io/spdx-spec/v2.3/>).

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::lock::Pin;
use crate::plan::BuildPlan;
use crate::progress::Size;
use crate::shares::Share;

/// Version of the manifest's form.
pub const SCHEMA: u32 = 1;

/// A partition of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionRecord {
    /// Number in the table.
    pub number: u32,
    /// Its label.
    pub label: String,
    /// Type, by its name in the Discoverable Partitions Specification.
    pub kind: String,
    /// PARTUUID.
    pub guid: String,
    /// Offset in bytes.
    pub offset: u64,
    /// Size in bytes.
    pub size: u64,
}

/// Sizes in bytes of what an image is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// The root file system.
    pub root: u64,
    /// The initrd.
    pub initrd: u64,
    /// The UKI.
    pub uki: u64,
    /// The raw image, holes included.
    pub raw: u64,
    /// How components, kernel, firmware and the rest share what the image holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<Share>,
}

/// A package as it stands in a manifest and in the image itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PackageRecord {
    /// Name.
    pub name: String,
    /// Debian version.
    pub version: String,
    /// Architecture.
    pub architecture: String,
    /// SHA-256 of the archive that it came from.
    pub sha256: String,
}

impl From<&Pin> for PackageRecord {
    fn from(pin: &Pin) -> Self {
        Self {
            name: pin.name.clone(),
            version: pin.version.clone(),
            architecture: pin.architecture.clone(),
            sha256: pin.sha256.clone(),
        }
    }
}

/// A file of a component in an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentFile {
    /// Path in the image, relative to the root.
    pub path: String,
    /// Its SHA-256.
    pub sha256: String,
    /// Its length in bytes.
    pub size: u64,
    /// What it takes in the image, in bytes.
    pub packed: u64,
}

/// A component as it stands in a manifest and in the image itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentRecord {
    /// Name.
    pub name: String,
    /// Version, or `given` where a user gave it.
    pub version: String,
    /// `release`, `go`, `standin` or `local`.
    pub source: String,
    /// Addresses, module or directory that it came from.
    pub from: String,
    /// The Go that built it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub go: Option<String>,
    /// Whether it stands for the real one in tests.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub standin: bool,
    /// What it gave.
    pub files: Vec<ComponentFile>,
}

impl fmt::Display for ComponentRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |size: fn(&ComponentFile) -> u64| Size(self.files.iter().map(size).sum());
        let mark = if self.standin { ", for tests only" } else { "" };
        let (size, packed) = (sum(|file| file.size), sum(|file| file.packed));
        write!(f, "{} {} ({}{mark}): {size}, {packed} in the image", self.name, self.version, self.source)
    }
}

/// What the image itself knows of how it was made, at `/usr/lib/nodezero/image.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Version of this form.
    pub schema: u32,
    /// `nodezero-worker-metal`.
    pub name: String,
    /// The role.
    pub role: String,
    /// The platform.
    pub platform: String,
    /// The image's version.
    pub version: String,
    /// SHA-256 over all inputs.
    pub inputs: String,
    /// What it is made of.
    pub packages: Vec<PackageRecord>,
    /// Packages that differ from the lock, with the reason.
    pub notes: Vec<String>,
    /// Programs of others beside Debian's packages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub components: Vec<ComponentRecord>,
    /// Components that a stand-in stands for: the image is for tests only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub standin: Vec<String>,
    /// Components that the image goes without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

impl ImageRecord {
    /// The record of a plan.
    #[must_use]
    pub fn new(plan: &BuildPlan, notes: &[String]) -> Self {
        Self {
            schema: SCHEMA,
            name: plan.name.clone(),
            role: plan.role.to_string(),
            platform: plan.platform.to_string(),
            version: plan.version.clone(),
            inputs: plan.inputs.clone(),
            packages: plan.pins.packages.iter().map(PackageRecord::from).collect(),
            notes: notes.to_vec(),
            components: plan.components.clone(),
            standin: plan.standins().into_iter().map(ToOwned::to_owned).collect(),
            missing: plan.missing.clone(),
        }
    }
}

/// The manifest of a built image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// What the image knows of itself.
    #[serde(flatten)]
    pub image: ImageRecord,
    /// RFC 3339, the time of every file in the image.
    pub timestamp: String,
    /// Root hash of the hash tree.
    pub root_hash: String,
    /// The kernel, as `uname -r` prints it.
    pub kernel: String,
    /// The command line in the UKI.
    pub cmdline: String,
    /// SHA-256 of the UKI.
    pub uki_sha256: String,
    /// SHA-256 of `nodezero-firstboot`.
    pub firstboot_sha256: String,
    /// SHA-256 of the raw image.
    pub raw_sha256: String,
    /// Partitions.
    pub partitions: Vec<PartitionRecord>,
    /// Sizes.
    pub sizes: Sizes,
    /// Packages that the builder took loaders from, which the root does not hold.
    pub inputs_used: Vec<PackageRecord>,
}

/// The bill of materials of an image, SPDX 2.3.
#[must_use]
pub fn sbom(manifest: &Manifest) -> Value {
    let all = || manifest.image.packages.iter().chain(&manifest.inputs_used);
    let mut packages = vec![json!({
        "SPDXID": "SPDXRef-Image",
        "name": manifest.image.name,
        "versionInfo": manifest.image.version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "primaryPackagePurpose": "OPERATING-SYSTEM",
        "checksums": [{"algorithm": "SHA256", "checksumValue": manifest.raw_sha256}],
    })];
    packages.extend(all().map(debian_package));
    packages.extend(manifest.image.components.iter().map(component_package));
    let mut relationships = vec![json!({
        "spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": "SPDXRef-Image",
    })];
    let names = all().map(|record| &record.name).chain(manifest.image.components.iter().map(|record| &record.name));
    relationships.extend(names.map(|name| {
        json!({"spdxElementId": "SPDXRef-Image", "relationshipType": "CONTAINS", "relatedSpdxElement": spdx_id(name)})
    }));
    json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("{}-{}", manifest.image.name, manifest.image.version),
        "documentNamespace": format!("https://nodezero.invalid/spdx/{}/{}", manifest.image.name, manifest.image.inputs),
        "creationInfo": {"created": manifest.timestamp, "creators": [format!("Tool: nodezero-{}", env!("CARGO_PKG_VERSION"))]},
        "packages": packages,
        "relationships": relationships,
    })
}

fn spdx_id(name: &str) -> String {
    let safe: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    format!("SPDXRef-Package-{safe}")
}

fn debian_package(record: &PackageRecord) -> Value {
    let version = record.version.replace('+', "%2B").replace('~', "%7E").replace(':', "%3A");
    json!({
        "SPDXID": spdx_id(&record.name),
        "name": record.name,
        "versionInfo": record.version,
        "supplier": "Organization: Debian",
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "checksums": [{"algorithm": "SHA256", "checksumValue": record.sha256}],
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator":
                format!("pkg:deb/debian/{}@{version}?arch={}&distro=trixie", record.name, record.architecture),
        }],
    })
}

/// A component in the bill of materials: its program's digest stands for it.
fn component_package(record: &ComponentRecord) -> Value {
    let checksums: Vec<Value> =
        record.files.iter().take(1).map(|file| json!({"algorithm": "SHA256", "checksumValue": file.sha256})).collect();
    let mut package = json!({
        "SPDXID": spdx_id(&record.name),
        "name": record.name,
        "versionInfo": record.version,
        "downloadLocation": record.from.split(' ').next().filter(|from| from.starts_with("https://")).unwrap_or("NOASSERTION"),
        "filesAnalyzed": false,
        "checksums": checksums,
    });
    if let Some((module, version)) = record.from.split(' ').next().and_then(|from| from.split_once('@')) {
        package["externalRefs"] = json!([{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": format!("pkg:golang/{module}@{version}"),
        }]);
    }
    if record.standin {
        package["comment"] = json!("a stand-in, for tests only");
    }
    package
}
