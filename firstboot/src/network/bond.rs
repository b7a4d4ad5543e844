//! The options of a bond: what they may say, and what they are called in a unit file and to the kernel.
//!
//! Names and values are those of the [bonding driver](https://docs.kernel.org/networking/bonding.html). Left out are
//! the options that only tune a link that is up already.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use netlink_packet_route::link::InfoBond;

use super::types::{Bond, InterfaceName};

/// What an option's value may be.
enum Values {
    /// One of these names, each with the kernel's number.
    Names(&'static [(&'static str, u8)]),
    /// A number; here the unit that it has in a unit file.
    Number(&'static str),
    /// One of the members.
    Member,
    /// IPv4 addresses, separated by semicolons.
    Addresses,
}

/// One option: its name, its name in a unit file, its values.
struct BondOption {
    name: &'static str,
    unit_key: &'static str,
    values: Values,
}

const OPTIONS: [BondOption; 13] = [
    BondOption {
        name: "mode",
        unit_key: "Mode",
        values: Values::Names(&[
            ("balance-rr", 0),
            ("active-backup", 1),
            ("balance-xor", 2),
            ("broadcast", 3),
            ("802.3ad", 4),
            ("balance-tlb", 5),
            ("balance-alb", 6),
        ]),
    },
    BondOption { name: "miimon", unit_key: "MIIMonitorSec", values: Values::Number("ms") },
    BondOption { name: "updelay", unit_key: "UpDelaySec", values: Values::Number("ms") },
    BondOption { name: "downdelay", unit_key: "DownDelaySec", values: Values::Number("ms") },
    BondOption { name: "lacp_rate", unit_key: "LACPTransmitRate", values: Values::Names(&[("slow", 0), ("fast", 1)]) },
    BondOption {
        name: "xmit_hash_policy",
        unit_key: "TransmitHashPolicy",
        values: Values::Names(&[
            ("layer2", 0),
            ("layer3+4", 1),
            ("layer2+3", 2),
            ("encap2+3", 3),
            ("encap3+4", 4),
            ("vlan+srcmac", 5),
        ]),
    },
    BondOption {
        name: "ad_select",
        unit_key: "AdSelect",
        values: Values::Names(&[("stable", 0), ("bandwidth", 1), ("count", 2)]),
    },
    BondOption {
        name: "fail_over_mac",
        unit_key: "FailOverMACPolicy",
        values: Values::Names(&[("none", 0), ("active", 1), ("follow", 2)]),
    },
    BondOption {
        name: "primary_reselect",
        unit_key: "PrimaryReselectPolicy",
        values: Values::Names(&[("always", 0), ("better", 1), ("failure", 2)]),
    },
    BondOption { name: "min_links", unit_key: "MinLinks", values: Values::Number("") },
    BondOption { name: "arp_interval", unit_key: "ARPIntervalSec", values: Values::Number("ms") },
    BondOption { name: "arp_ip_target", unit_key: "ARPIPTargets", values: Values::Addresses },
    // Not in the bond's own unit file: there it stands with the member.
    BondOption { name: "primary", unit_key: "", values: Values::Member },
];

/// Parses `option=value,option=value`. A name's number is taken for the name, as the driver does.
///
/// # Errors
/// What is wrong, and what would be right.
pub(super) fn parse_options(text: &str, members: &[InterfaceName]) -> Result<BTreeMap<&'static str, String>, String> {
    let mut options = BTreeMap::new();
    for item in text.split(',').filter(|item| !item.is_empty()) {
        let (name, value) = item.split_once('=').ok_or_else(|| format!("{item:?} is not OPTION=VALUE"))?;
        let known = || OPTIONS.iter().map(|option| option.name).collect::<Vec<_>>().join(", ");
        let option = OPTIONS.iter().find(|option| option.name == name);
        let option = option.ok_or_else(|| format!("{name:?} is not a supported option of a bond: {}", known()))?;
        let value = option.values.check(name, value, members)?;
        if options.insert(option.name, value).is_some() {
            return Err(format!("the option {name} is given twice"));
        }
    }
    let both = options.contains_key("miimon") && options.contains_key("arp_interval");
    if both { Err("miimon and arp_interval exclude each other".to_owned()) } else { Ok(options) }
}

impl Values {
    /// The value in its canonical form.
    fn check(&self, name: &str, value: &str, members: &[InterfaceName]) -> Result<String, String> {
        match self {
            Self::Names(names) => {
                let found = names.iter().find(|(known, number)| *known == value || number.to_string() == value);
                let known = || names.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", ");
                found
                    .map(|(known, _)| (*known).to_owned())
                    .ok_or_else(|| format!("{name}={value} is not one of {}", known()))
            }
            Self::Number(_) => {
                let number = value.bytes().all(|c| c.is_ascii_digit()).then(|| value.parse::<u16>().ok()).flatten();
                number.map(|number| number.to_string()).ok_or_else(|| format!("{name}={value} is not a number"))
            }
            Self::Member => members
                .iter()
                .find(|member| member.as_str() == value)
                .map(InterfaceName::to_string)
                .ok_or_else(|| format!("{name}={value} is not a member of the bond")),
            Self::Addresses => {
                let parsed: Result<Vec<Ipv4Addr>, _> = value.split(';').map(str::parse).collect();
                let joined = |addresses: Vec<Ipv4Addr>| addresses.iter().map(Ipv4Addr::to_string).collect::<Vec<_>>();
                parsed
                    .map(|addresses| joined(addresses).join(" "))
                    .map_err(|_| format!("{name}={value} is not a list of IPv4 addresses, separated by semicolons"))
            }
        }
    }
}

/// The lines of a unit file's `[Bond]` section.
pub(super) fn unit_lines(bond: &Bond) -> Vec<String> {
    let given = OPTIONS.iter().filter(|option| !option.unit_key.is_empty());
    given
        .filter_map(|option| {
            let value = bond.options.get(option.name)?;
            let unit = if let Values::Number(unit) = option.values { unit } else { "" };
            Some(format!("{}={value}{unit}", option.unit_key))
        })
        .collect()
}

/// The options for the kernel. `primary` is not among them: it can only name a link that is a member.
pub(super) fn attributes(bond: &Bond) -> Vec<InfoBond> {
    OPTIONS.iter().filter_map(|option| attribute(option, bond.options.get(option.name)?)).collect()
}

fn attribute(option: &BondOption, value: &str) -> Option<InfoBond> {
    let number = || match &option.values {
        Values::Names(names) => names.iter().find(|(name, _)| *name == value).map(|(_, number)| *number),
        Values::Number(_) | Values::Member | Values::Addresses => None,
    };
    let count = || value.parse::<u32>().ok();
    Some(match option.name {
        "mode" => InfoBond::Mode(number()?.into()),
        "miimon" => InfoBond::MiiMon(count()?),
        "updelay" => InfoBond::UpDelay(count()?),
        "downdelay" => InfoBond::DownDelay(count()?),
        "lacp_rate" => InfoBond::AdLacpRate(number()?.into()),
        "xmit_hash_policy" => InfoBond::XmitHashPolicy(number()?.into()),
        "ad_select" => InfoBond::AdSelect(number()?.into()),
        "fail_over_mac" => InfoBond::FailOverMac(number()?.into()),
        "primary_reselect" => InfoBond::PrimaryReselect(number()?.into()),
        "min_links" => InfoBond::MinLinks(count()?),
        "arp_interval" => InfoBond::ArpInterval(count()?),
        "arp_ip_target" => InfoBond::ArpIpTarget(value.split(' ').filter_map(|text| text.parse().ok()).collect()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;

    use super::*;

    /// What iproute2 6.1 sends for the same options, attribute by attribute and sorted, for kernels without bonds
    /// cannot be asked.
    #[test]
    fn the_kernel_is_told_what_iproute2_tells_it() {
        for (options, expected) in [
            (
                "mode=802.3ad,miimon=100,updelay=200,lacp_rate=fast,xmit_hash_policy=layer3+4,min_links=1",
                vec![
                    "0500010004000000",
                    "05000e0001000000",
                    "0500150001000000",
                    "0800030064000000",
                    "08000400c8000000",
                    "0800120001000000",
                ],
            ),
            (
                "mode=1,arp_interval=500,arp_ip_target=192.0.2.1;192.0.2.2,fail_over_mac=active,primary_reselect=better",
                vec![
                    "0500010001000000",
                    "05000c0001000000",
                    "05000d0001000000",
                    "08000700f4010000",
                    "1400080008000000c000020108000100c0000202",
                ],
            ),
            ("primary=eth0", vec![]),
        ] {
            let members = vec!["eth0".parse().expect("a name")];
            let options = parse_options(options, &members).expect("right");
            let mut told: Vec<String> = attributes(&Bond { members, options })
                .iter()
                .map(|attribute| {
                    let mut bytes = vec![0; attribute.buffer_len()];
                    attribute.emit(&mut bytes);
                    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
                })
                .collect();
            told.sort();
            assert_eq!(told, expected);
        }
    }
}
