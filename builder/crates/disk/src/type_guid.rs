//! Partition type GUIDs of the
//! [Discoverable Partitions Specification](https://uapi-group.org/specifications/specs/discoverable_partitions_specification/)
//! and the few others that boot disks carry. Architectures other than x86-64 and arm64 are left out.

use std::fmt;

use crate::guid::Guid;

macro_rules! partition_types {
    ($($(#[$doc:meta])* $variant:ident = $guid:literal, $name:literal;)*) => {
        /// What a partition is for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum PartitionType {
            $($(#[$doc])* $variant,)*
            /// A type that is not named here.
            Other(Guid),
        }

        impl PartitionType {
            /// Every named type.
            pub const NAMED: &[PartitionType] = &[$(PartitionType::$variant,)*];

            /// The GUID in a table.
            pub const fn guid(self) -> Guid {
                match self {
                    $(PartitionType::$variant => Guid::from_u128($guid),)*
                    PartitionType::Other(guid) => guid,
                }
            }

            /// The specification's name, where the type has one.
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(PartitionType::$variant => Some($name),)*
                    PartitionType::Other(_) => None,
                }
            }
        }
    };
}

partition_types! {
    /// EFI system partition.
    Esp = 0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b, "esp";
    /// BIOS boot partition, as GRUB uses it. Known so that it can be named; syslinux needs none.
    BiosBoot = 0x21686148_6449_6e6f_744e_656564454649, "bios-boot";
    /// Extended boot loader partition.
    Xbootldr = 0xbc13c2ff_59e6_4262_a352_b275fd6f7172, "xbootldr";
    /// Root file system, x86-64.
    RootX86_64 = 0x4f68bce3_e8cd_4db1_96e7_fbcaf984b709, "root-x86-64";
    /// Hash tree of a root file system, x86-64.
    RootX86_64Verity = 0x2c7357ed_ebd2_46d9_aec1_23d437ec2bf5, "root-x86-64-verity";
    /// Signed root hash, x86-64.
    RootX86_64VeritySig = 0x41092b05_9fc8_4523_994f_2def0408b176, "root-x86-64-verity-sig";
    /// Root file system, arm64.
    RootArm64 = 0xb921b045_1df0_41c3_af44_4c6f280d3fae, "root-arm64";
    /// Hash tree of a root file system, arm64.
    RootArm64Verity = 0xdf3300ce_d69f_4c92_978c_9bfb0f38d820, "root-arm64-verity";
    /// `/usr`, x86-64.
    UsrX86_64 = 0x8484680c_9521_48c6_9c11_b0720656f69e, "usr-x86-64";
    /// Hash tree of `/usr`, x86-64.
    UsrX86_64Verity = 0x77ff5f63_e7b6_4633_acf4_1565b864c0e6, "usr-x86-64-verity";
    /// Data that no generator mounts by itself: our `state` and data disks.
    LinuxGeneric = 0x0fc63daf_8483_4772_8e79_3d69d8477de4, "linux-generic";
    /// `/home`.
    Home = 0x933ac7e1_2eb4_4f13_b844_0e14e2aef915, "home";
    /// `/srv`.
    Srv = 0x3b8f8425_20e0_4f3b_907f_1a25a76f98e8, "srv";
    /// `/var`. Bound to one machine-id by the specification, so `state` is not of this type.
    Var = 0x4d21b016_b534_45c2_a9fb_5c16e091fd2d, "var";
    /// `/var/tmp`.
    Tmp = 0x7ec6f557_3bc5_4aca_b293_16ef5df639d1, "tmp";
    /// Swap space.
    Swap = 0x0657fd6d_a4ab_43c4_84e5_0933c84b4f4f, "swap";
    /// Member of an LVM volume group.
    Lvm = 0xe6d6d379_f507_44c2_a23c_238f2a3df928, "linux-lvm";
    /// Member of a Linux software RAID.
    Raid = 0xa19d880f_05fc_4d3b_a006_743f0f84911e, "linux-raid";
    /// Microsoft basic data.
    BasicData = 0xebd0a0a2_b9e5_4433_87c0_68b6b72699c7, "microsoft-basic-data";
}

impl From<Guid> for PartitionType {
    fn from(guid: Guid) -> PartitionType {
        PartitionType::NAMED.iter().copied().find(|named| named.guid() == guid).unwrap_or(PartitionType::Other(guid))
    }
}

impl fmt::Display for PartitionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => write!(f, "{}", self.guid()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guids_name_one_type_each() {
        for &named in PartitionType::NAMED {
            assert_eq!(PartitionType::from(named.guid()), named, "{named}");
        }
        let other = Guid::derived("test", b"");
        assert_eq!(PartitionType::from(other), PartitionType::Other(other));
        assert_eq!(PartitionType::Other(other).to_string(), other.to_string());
    }

    /// `sfdisk` knows these types from its own table.
    #[test]
    fn sfdisk_knows_the_types() {
        let Ok(output) = std::process::Command::new("sfdisk").args(["--list-types", "--label", "gpt"]).output() else {
            assert!(std::env::var_os("CI").is_none(), "sfdisk is missing");
            eprintln!("skipped: sfdisk is missing");
            return;
        };
        let known = String::from_utf8(output.stdout).unwrap();
        for (kind, name) in [
            (PartitionType::Esp, "EFI System"),
            (PartitionType::BiosBoot, "BIOS boot"),
            (PartitionType::Xbootldr, "Linux extended boot"),
            (PartitionType::RootX86_64, "Linux root (x86-64)"),
            (PartitionType::RootX86_64Verity, "Linux root verity (x86-64)"),
            (PartitionType::RootX86_64VeritySig, "Linux root verity sign. (x86-64)"),
            (PartitionType::RootArm64, "Linux root (ARM-64)"),
            (PartitionType::RootArm64Verity, "Linux root verity (ARM-64)"),
            (PartitionType::UsrX86_64, "Linux /usr (x86-64)"),
            (PartitionType::UsrX86_64Verity, "Linux /usr verity (x86-64)"),
            (PartitionType::LinuxGeneric, "Linux filesystem"),
            (PartitionType::Home, "Linux home"),
            (PartitionType::Srv, "Linux server data"),
            (PartitionType::Var, "Linux variable data"),
            (PartitionType::Tmp, "Linux temporary data"),
            (PartitionType::Swap, "Linux swap"),
            (PartitionType::Lvm, "Linux LVM"),
            (PartitionType::Raid, "Linux RAID"),
            (PartitionType::BasicData, "Microsoft basic data"),
        ] {
            let line = format!("{}  {name}", kind.guid().to_string().to_uppercase());
            assert!(known.lines().any(|have| have.trim() == line), "{line}");
        }
    }
}
