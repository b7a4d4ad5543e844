//! What the modules do together: the language, plans and unit files as text, and the real kernel in a namespace.

mod kernel;
mod language;
mod plans;
mod unit_files;

use super::config::NetworkConfig;
use super::netlink::Link;

/// The configuration of words that must be right.
fn config(words: &str) -> NetworkConfig {
    NetworkConfig::parse(words, None).unwrap_or_else(|problems| panic!("{words}: {problems}"))
}

/// A device as the kernel shows it: its number, name and the last byte of its address.
fn device(index: u32, name: &str, last: u8) -> Link {
    let mac = format!("52:54:00:00:00:{last:02x}").parse().ok();
    Link { index, name: name.to_owned(), mac, permanent_mac: mac, ethernet: true, mtu: 1500, ..Link::default() }
}
