//! Which provider a machine is from, by what its firmware says of it (DMI, in `/sys/class/dmi/id`).
//!
//! No address is tried to find out: on a machine at home the first who answers at 169.254.169.254 would be its master.
//! The strings are those that the providers document, or that their images and cloud-init's `ds-identify`
//! ([source](https://github.com/canonical/cloud-init/blob/main/tools/ds-identify)) go by:
//!
//! - EC2: [Detect whether a host is an EC2 instance](https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/identify_ec2_instances.html).
//!   The UUID that begins with `ec2` is left out: that page calls it inaccurate.
//! - OpenStack: `product_name` as Nova sets it; operators who change it keep the chassis' tag.
//! - Google: the product, or its serial number. The vendor alone is also that of laptops.
//! - DigitalOcean, Hetzner, Vultr, Linode (now Akamai), Scaleway: the system's vendor.
//!
//! The bare-metal offers of these (Hetzner's dedicated servers, Vultr Bare Metal, Elastic Metal) look like any hardware
//! and are not found here; their configuration is named on the kernel command line, or lies on the ESP.

use std::fmt;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Where DMI's strings are, below `/sys`.
const DIRECTORY: &str = "class/dmi/id";

/// A provider with a metadata service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Provider {
    /// Akamai, formerly Linode.
    Akamai,
    /// DigitalOcean.
    Digitalocean,
    /// Amazon EC2.
    Ec2,
    /// Google Compute Engine.
    Gcp,
    /// Hetzner Cloud.
    Hetzner,
    /// Whoever runs OpenStack.
    Openstack,
    /// Scaleway.
    Scaleway,
    /// Vultr.
    Vultr,
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Akamai => "akamai",
            Self::Digitalocean => "digitalocean",
            Self::Ec2 => "ec2",
            Self::Gcp => "gcp",
            Self::Hetzner => "hetzner",
            Self::Openstack => "openstack",
            Self::Scaleway => "scaleway",
            Self::Vultr => "vultr",
        })
    }
}

/// The strings that tell providers apart, trimmed; empty where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dmi {
    /// Manufacturer of the system.
    pub(crate) sys_vendor: String,
    /// Product name of the system.
    pub(crate) product_name: String,
    /// Serial number of the system.
    pub(crate) product_serial: String,
    /// Asset tag of the chassis.
    pub(crate) chassis_asset_tag: String,
    /// Vendor of the firmware.
    pub(crate) bios_vendor: String,
    /// Version of the firmware.
    pub(crate) bios_version: String,
}

impl Dmi {
    /// Reads them. A machine without DMI has none.
    pub(crate) fn read(sys: &Path) -> Self {
        let text = |name: &str| {
            let text = fs::read(sys.join(DIRECTORY).join(name)).unwrap_or_default();
            String::from_utf8_lossy(&text).trim().to_owned()
        };
        Self {
            sys_vendor: text("sys_vendor"),
            product_name: text("product_name"),
            product_serial: text("product_serial"),
            chassis_asset_tag: text("chassis_asset_tag"),
            bios_vendor: text("bios_vendor"),
            bios_version: text("bios_version"),
        }
    }
}

/// What a string must be.
#[derive(Clone, Copy, Debug)]
enum Is {
    Equal(&'static str),
    Beginning(&'static str),
    Ending(&'static str),
}

impl Is {
    fn holds(self, text: &str) -> bool {
        match self {
            Self::Equal(whole) => text == whole,
            Self::Beginning(start) => text.starts_with(start),
            Self::Ending(end) => text.ends_with(end),
        }
    }
}

/// One string, and what it says.
type Rule = (fn(&Dmi) -> &str, Is, Provider);

/// The first rule that holds counts. OpenStack is last: a provider that runs it under its own name is that provider.
const RULES: &[Rule] = &[
    (|dmi| &dmi.sys_vendor, Is::Equal("Akamai"), Provider::Akamai),
    (|dmi| &dmi.sys_vendor, Is::Equal("Linode"), Provider::Akamai),
    (|dmi| &dmi.sys_vendor, Is::Equal("DigitalOcean"), Provider::Digitalocean),
    (|dmi| &dmi.sys_vendor, Is::Equal("Hetzner"), Provider::Hetzner),
    (|dmi| &dmi.sys_vendor, Is::Equal("Scaleway"), Provider::Scaleway),
    (|dmi| &dmi.sys_vendor, Is::Equal("Vultr"), Provider::Vultr),
    // Nitro and its bare metal; then Xen, whose firmware has versions such as `4.11.amazon`.
    (|dmi| &dmi.sys_vendor, Is::Equal("Amazon EC2"), Provider::Ec2),
    (|dmi| &dmi.bios_vendor, Is::Equal("Amazon EC2"), Provider::Ec2),
    (|dmi| &dmi.bios_version, Is::Ending(".amazon"), Provider::Ec2),
    (|dmi| &dmi.product_name, Is::Equal("Google Compute Engine"), Provider::Gcp),
    (|dmi| &dmi.product_serial, Is::Beginning("GoogleCloud-"), Provider::Gcp),
    (|dmi| &dmi.product_name, Is::Equal("OpenStack Nova"), Provider::Openstack),
    (|dmi| &dmi.product_name, Is::Equal("OpenStack Compute"), Provider::Openstack),
    (|dmi| &dmi.chassis_asset_tag, Is::Equal("OpenStack Nova"), Provider::Openstack),
    (|dmi| &dmi.chassis_asset_tag, Is::Equal("OpenStack Compute"), Provider::Openstack),
    (|dmi| &dmi.chassis_asset_tag, Is::Equal("OpenTelekomCloud"), Provider::Openstack),
    (|dmi| &dmi.chassis_asset_tag, Is::Equal("HUAWEICLOUD"), Provider::Openstack),
    (|dmi| &dmi.chassis_asset_tag, Is::Equal("SAP CCloud VM"), Provider::Openstack),
];

/// The provider, if the machine is from one.
pub(crate) fn detect(dmi: &Dmi) -> Option<Provider> {
    RULES.iter().find(|(string, is, _)| is.holds(string(dmi))).map(|&(_, _, provider)| provider)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vendor, product, serial number, chassis' tag, firmware's vendor and version.
    fn dmi(strings: [&str; 6]) -> Dmi {
        let [sys_vendor, product_name, product_serial, chassis_asset_tag, bios_vendor, bios_version] =
            strings.map(str::to_owned);
        Dmi { sys_vendor, product_name, product_serial, chassis_asset_tag, bios_vendor, bios_version }
    }

    #[test]
    fn providers_are_told_by_their_strings() {
        use Provider::{Akamai, Digitalocean, Ec2, Gcp, Hetzner, Openstack, Scaleway, Vultr};
        for (strings, expected) in [
            (["Akamai", "Compute Instance", "11111", "", "SeaBIOS", "rel-1.16"], Some(Akamai)),
            (["Linode", "Compute Instance", "11111", "", "SeaBIOS", "rel-1.12"], Some(Akamai)),
            (["DigitalOcean", "Droplet", "262717310", "", "DigitalOcean", "20171212"], Some(Digitalocean)),
            (["Amazon EC2", "t3.micro", "ec2a1b2c", "Amazon EC2", "Amazon EC2", "1.0"], Some(Ec2)),
            (["Amazon EC2", "m5.metal", "", "", "Amazon EC2", "1.0"], Some(Ec2)),
            (["Xen", "HVM domU", "ec2a1b2c", "", "Xen", "4.11.amazon"], Some(Ec2)),
            (["Google", "Google Compute Engine", "GoogleCloud-0123", "", "Google", "Google"], Some(Gcp)),
            (["Google", "Google", "GoogleCloud-0123", "", "Google", "Google"], Some(Gcp)),
            (["Hetzner", "vServer", "1234567", "", "Hetzner", "20171111"], Some(Hetzner)),
            (["OpenStack Foundation", "OpenStack Nova", "ab-cd", "", "SeaBIOS", "1.15"], Some(Openstack)),
            (["Red Hat", "OpenStack Compute", "ab-cd", "", "SeaBIOS", "1.11"], Some(Openstack)),
            (["OpenStack Foundation", "s2.large", "", "OpenTelekomCloud", "SeaBIOS", "1.9"], Some(Openstack)),
            (["Huawei", "c6.large", "", "HUAWEICLOUD", "SeaBIOS", "1.9"], Some(Openstack)),
            (["SAP", "VM", "", "SAP CCloud VM", "VMware", "6"], Some(Openstack)),
            (["Scaleway", "SCW-DEV1-S", "ab-cd", "", "SeaBIOS", "1.15"], Some(Scaleway)),
            (["Vultr", "VC2", "SUBID", "", "Vultr", ""], Some(Vultr)),
            (["Vultr", "VHF", "SUBID", "OpenStack Nova", "Vultr", ""], Some(Vultr)),
            // None of them.
            (["QEMU", "Standard PC (Q35 + ICH9, 2009)", "", "", "SeaBIOS", "1.16.2-debian"], None),
            (["QEMU", "Standard PC (i440FX + PIIX, 1996)", "", "", "EDK II", "unknown"], None),
            (["Xen", "HVM domU", "", "", "Xen", "4.17"], None),
            (["Dell Inc.", "PowerEdge R740", "ABC1234", "", "Dell Inc.", "2.19.1"], None),
            (["HPE", "ProLiant DL380 Gen10", "CZ123", "", "HPE", "U30"], None),
            (["Supermicro", "SYS-5019", "A1", "Default string", "American Megatrends Inc.", "3.4"], None),
            (["LENOVO", "10MR0001", "PC0", "", "LENOVO", "M1AKT"], None),
            (["Google", "Eve", "5CD", "", "coreboot", "MrChromebox"], None),
            (["Microsoft Corporation", "Virtual Machine", "", "", "American Megatrends Inc.", "090008"], None),
            (["VMware, Inc.", "VMware7,1", "", "", "VMware, Inc.", ""], None),
            (["Hetzner Online GmbH", "AX41", "", "", "", ""], None),
            (["", "", "", "", "", ""], None),
        ] {
            assert_eq!(detect(&dmi(strings)), expected, "{strings:?}");
        }
    }

    #[test]
    fn strings_are_read_and_trimmed() {
        let sys = tempfile::tempdir().expect("tempdir");
        assert_eq!(Dmi::read(sys.path()), Dmi::default());
        let directory = sys.path().join(DIRECTORY);
        fs::create_dir_all(&directory).expect("directory");
        fs::write(directory.join("sys_vendor"), "Hetzner \n").expect("file");
        fs::write(directory.join("product_name"), b"v\xff\n").expect("file");
        let found = Dmi::read(sys.path());
        assert_eq!((found.sys_vendor.as_str(), detect(&found)), ("Hetzner", Some(Provider::Hetzner)));
    }

    #[test]
    fn names_are_the_same_everywhere() {
        for provider in RULES.iter().map(|rule| rule.2) {
            assert_eq!(serde_json::to_string(&provider).expect("JSON"), format!("\"{provider}\""));
        }
    }
}
