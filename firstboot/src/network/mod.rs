//! The network before the configuration is fetched, and the same network for the running system.
//!
//! The language is that of [dracut.cmdline(7)](https://man7.org/linux/man-pages/man7/dracut.cmdline.7.html), which
//! systemd-network-generator(8) knows too: `ip=`, `rd.route=`, `nameserver=`, `vlan=`, `bond=`, `bridge=`, `ifname=`
//! and `rd.peerdns=`, on the kernel command line or, where that has none of them, in the ESP's `/nodezero/network`.
//! Without any, every physical Ethernet link asks by DHCP, and the first that gets a lease is enough.
//!
//! It goes in steps that can be looked at one by one: words to a [`NetworkConfig`], that and the links there are to a
//! plan, the plan to requests to the kernel; and the same [`NetworkConfig`] to unit files of systemd-networkd, which
//! goes on with what it finds.
//!
//! Left out: DHCPv6 and IPv4 link-local addresses (an error says so), teams, iSCSI's boot firmware table, wireless links,
//! and asking whether a given IPv4 address is in use.

mod advertised;
mod apply;
mod bond;
mod config;
mod dhcp;
mod ip;
mod names;
mod netlink;
mod plan;
#[cfg(test)]
mod tests;
mod types;
mod units;
mod words;

pub(crate) use self::apply::{Up, bring_up};
pub(crate) use self::config::NetworkConfig;
pub(crate) use self::units::{render_units, write_units};

/// The file on the ESP.
pub(crate) const ESP_FILE: &str = "nodezero/network";
