//! From what is wanted and the links that are there to what is done, in order. Pure: nothing is asked or changed here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::bond;
use super::config::NetworkConfig;
use super::netlink::Link;
use super::types::{Address, Cidr, Interface, InterfaceName, MacAddress, Route, Virtual};

/// One step of making the links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Give a link another name.
    Rename { link: String, to: String },
    /// Give a link another hardware address.
    SetMac { link: String, mac: MacAddress },
    /// Change a link's largest packet.
    SetMtu { link: String, mtu: u32 },
    /// Make a virtual link, where it is not there yet.
    Make { link: String, made: Virtual },
    /// Make a link part of another; one of a bond must be down for that.
    Join { link: String, master: String, down_first: bool },
    /// Take router advertisements, or do not.
    Advertisements { link: String, accept: bool },
    /// Bring a link up.
    Up { link: String },
    /// Give a link an address.
    AddAddress { link: String, address: Address },
    /// Add a route through a link.
    AddRoute { link: String, route: Route },
}

impl Action {
    /// The link that it is about.
    pub(super) fn link(&self) -> &str {
        match self {
            Self::Rename { link, .. }
            | Self::SetMac { link, .. }
            | Self::SetMtu { link, .. }
            | Self::Make { link, .. }
            | Self::Join { link, .. }
            | Self::Advertisements { link, .. }
            | Self::Up { link }
            | Self::AddAddress { link, .. }
            | Self::AddRoute { link, .. } => link,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rename { link, to } => write!(f, "rename {link} to {to}"),
            Self::SetMac { link, mac } => write!(f, "set the MAC address of {link} to {mac}"),
            Self::SetMtu { link, mtu } => write!(f, "set the MTU of {link} to {mtu}"),
            Self::Make { link, made: Virtual::Vlan(vlan) } => {
                write!(f, "make {link}, VLAN {} on {}", vlan.id, vlan.parent)
            }
            Self::Make { link, made: Virtual::Bond(bond) } => {
                let options: Vec<String> = bond.options.iter().map(|(name, value)| format!("{name}={value}")).collect();
                let space = if options.is_empty() { "" } else { " " };
                write!(f, "make {link}, a bond{space}{}", options.join(" "))
            }
            Self::Make { link, made: Virtual::Bridge(_) } => write!(f, "make {link}, a bridge"),
            Self::Join { link, master, .. } => write!(f, "make {link} part of {master}"),
            Self::Advertisements { link, accept: true } => write!(f, "take router advertisements on {link}"),
            Self::Advertisements { link, accept: false } => write!(f, "take no router advertisements on {link}"),
            Self::Up { link } => write!(f, "bring {link} up"),
            Self::AddAddress { link, address: Address { local, peer: None } } => write!(f, "give {link} {local}"),
            Self::AddAddress { link, address: Address { local, peer: Some(peer) } } => {
                write!(f, "give {link} {}, with {peer} at the other end", local.address())
            }
            Self::AddRoute { link, route } => write!(f, "route {route} through {link}"),
        }
    }
}

/// A link that is to reach a network, once it is up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reach {
    /// Its name.
    pub(super) link: String,
    /// Ask by DHCPv4.
    pub(super) dhcp: bool,
    /// Wait for an address from router advertisements.
    pub(super) auto6: bool,
    /// Wait for the link-local address.
    pub(super) link6: bool,
    /// Given addresses.
    pub(super) addresses: Vec<Cidr>,
    /// Given routes that wait for the lease.
    pub(super) routes: Vec<Route>,
    /// A given packet size goes before a server's.
    pub(super) mtu_is_given: bool,
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ways: Vec<String> = self.addresses.iter().map(Cidr::to_string).collect();
        let named = [(self.dhcp, "DHCP"), (self.auto6, "router advertisements"), (self.link6, "link-local")];
        ways.extend(named.iter().filter(|(wanted, _)| *wanted).map(|(_, way)| (*way).to_owned()));
        write!(f, "reach the network on {} by {}", self.link, ways.join(", "))?;
        self.routes.iter().try_for_each(|route| write!(f, ", then route {route}"))
    }
}

/// By what the running system tells a device that a word names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pin {
    /// The hardware address that it was made with.
    Permanent(MacAddress),
    /// The hardware address that it has.
    Current(MacAddress),
}

/// What is done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// In this order.
    pub(super) actions: Vec<Action>,
    /// Then, all at once.
    pub(super) reach: Vec<Reach>,
    /// Links that no word names: the first of them that reaches a network is enough.
    pub(super) unnamed: BTreeSet<String>,
    /// The devices that names stand for.
    pub(super) pins: BTreeMap<InterfaceName, Pin>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.actions.iter().try_for_each(|action| writeln!(f, "{action}"))?;
        self.reach.iter().try_for_each(|reach| writeln!(f, "{reach}"))?;
        if self.unnamed.len() > 1 { f.write_str("the first link is enough\n") } else { Ok(()) }
    }
}

/// Plans the network. `physical` says which links count as devices of the machine.
///
/// # Errors
/// In one line: the names that no link has, and the links that there are; a name that several have.
pub(super) fn plan(config: &NetworkConfig, links: &[Link], physical: fn(&Link) -> bool) -> Result<Plan, String> {
    let resolved = Resolved::of(config, links)?;
    let mut plan = Plan { pins: resolved.pins(), ..Plan::default() };
    for (name, link) in &resolved.links {
        // The rest of the plan, and the words, know it by the new name.
        if config.macs.contains_key(*name) && link.name != name.as_str() {
            plan.actions.push(Action::Rename { link: link.name.clone(), to: name.to_string() });
        }
    }
    let any = if config.any.as_ref().is_some_and(Interface::is_addressed) { config.any.as_ref() } else { None };
    let others: Vec<&Link> =
        links.iter().filter(|link| any.is_some() && physical(link) && !resolved.is_settled(link)).collect();

    let devices = config.interfaces.iter().filter(|(name, _)| !config.virtuals.contains_key(*name));
    let devices: Vec<(String, &Interface)> =
        devices.map(|(name, interface)| (resolved.name(name), interface)).collect();
    devices.iter().for_each(|(link, interface)| plan.shape(link, interface));
    let in_order = config.virtuals_in_order();
    for (name, made) in &in_order {
        plan.make(name, made, config.interfaces.get(*name), &resolved);
    }
    let virtuals = in_order.iter().filter_map(|(name, _)| Some((name.to_string(), config.interfaces.get(*name)?)));
    let all: Vec<(String, &Interface)> = devices.iter().cloned().chain(virtuals).collect();
    let wanted = others.iter().filter_map(|link| Some((resolved.name_of(link), any?)));
    let all: Vec<(String, &Interface)> = all.into_iter().chain(wanted).collect();

    for (link, interface) in &all {
        plan.bring_up(link, interface);
    }
    for (link, interface) in &all {
        plan.address(link, interface);
    }
    plan.unnamed = others.iter().map(|link| resolved.name_of(link)).collect();
    Ok(plan)
}

impl Plan {
    /// What a link is to be before it is up.
    fn shape(&mut self, link: &str, interface: &Interface) {
        let link = || link.to_owned();
        self.actions.extend(interface.mac.map(|mac| Action::SetMac { link: link(), mac }));
        self.actions.extend(interface.mtu.map(|mtu| Action::SetMtu { link: link(), mtu }));
    }

    fn make(&mut self, name: &InterfaceName, made: &Virtual, interface: Option<&Interface>, resolved: &Resolved<'_>) {
        let made = match made {
            // The kernel knows the parent by the name that it has now.
            Virtual::Vlan(vlan) => {
                let parent = resolved.name(&vlan.parent).parse().unwrap_or_else(|_| vlan.parent.clone());
                Virtual::Vlan(super::types::Vlan { id: vlan.id, parent })
            }
            Virtual::Bond(_) | Virtual::Bridge(_) => made.clone(),
        };
        let down_first = matches!(made, Virtual::Bond(_));
        let members: Vec<String> = made.members().iter().map(|member| resolved.name(member)).collect();
        self.actions.push(Action::Make { link: name.to_string(), made });
        if let Some(interface) = interface {
            self.shape(name.as_str(), interface);
        }
        for link in members {
            self.actions.push(Action::Join { link, master: name.to_string(), down_first });
        }
    }

    fn bring_up(&mut self, link: &str, interface: &Interface) {
        let link = || link.to_owned();
        if interface.auto6() || interface.link6() {
            self.actions.push(Action::Advertisements { link: link(), accept: interface.auto6() });
        }
        self.actions.push(Action::Up { link: link() });
    }

    /// What follows on a link that is up.
    fn address(&mut self, link: &str, interface: &Interface) {
        for address in &interface.addresses {
            self.actions.push(Action::AddAddress { link: link.to_owned(), address: *address });
        }
        // A route to a gateway that only a lease makes known cannot be added before.
        let waits = |route: &Route| {
            let reached = |gateway| interface.addresses.iter().any(|address| address.reaches(gateway));
            interface.dhcp() && route.gateway.is_some_and(|gateway| gateway.is_ipv4() && !reached(gateway))
        };
        let (later, now): (Vec<Route>, Vec<Route>) = interface.routes.iter().partition(|route| waits(route));
        for route in now {
            self.actions.push(Action::AddRoute { link: link.to_owned(), route });
        }
        if interface.is_addressed() {
            self.reach.push(Reach {
                link: link.to_owned(),
                dhcp: interface.dhcp(),
                auto6: interface.auto6(),
                link6: interface.link6(),
                addresses: interface.addresses.iter().map(|address| address.local).collect(),
                routes: later,
                mtu_is_given: interface.mtu.is_some(),
            });
        }
    }
}

/// The links that names stand for.
struct Resolved<'a> {
    config: &'a NetworkConfig,
    links: BTreeMap<&'a InterfaceName, &'a Link>,
}

impl<'a> Resolved<'a> {
    fn of(config: &'a NetworkConfig, links: &'a [Link]) -> Result<Self, String> {
        let mut resolved = Self { config, links: BTreeMap::new() };
        let mut missing = Vec::new();
        let names = config.interfaces.keys().chain(config.macs.keys());
        for name in names.filter(|name| !config.virtuals.contains_key(*name)) {
            match resolved.find(name, links)? {
                Some(link) => {
                    let twice =
                        resolved.links.iter().find(|(other, found)| **other != name && found.index == link.index);
                    if let Some((other, _)) = twice {
                        return Err(format!("{other} and {name} are the same link {}", describe(link)));
                    }
                    resolved.links.insert(name, link);
                }
                None => missing.push(match config.macs.get(name) {
                    Some(mac) => format!("{name} ({mac})"),
                    None => name.to_string(),
                }),
            }
        }
        if missing.is_empty() {
            return Ok(resolved);
        }
        let seen: Vec<String> = links.iter().filter(|link| link.ethernet).map(describe).collect();
        let seen = if seen.is_empty() { "none".to_owned() } else { seen.join(", ") };
        Err(format!("no link is called {}; the links are: {seen}", missing.join(", ")))
    }

    /// The link that a name stands for: by the address of `ifname=`, by its own name, by the running system's.
    fn find(&self, name: &InterfaceName, links: &'a [Link]) -> Result<Option<&'a Link>, String> {
        if let Some(mac) = self.config.macs.get(name) {
            let has = |link: &&Link| link.permanent_mac.or(link.mac) == Some(*mac);
            // What is made on top of a device mostly has its address.
            let found = links.iter().filter(has).min_by_key(|link| (link.kind.is_some(), link.index));
            let taken = links.iter().find(|link| link.name == name.as_str());
            return match (found, taken) {
                (Some(found), Some(taken)) if found.index != taken.index => {
                    Err(format!("{} cannot be called {name}: {} is", describe(found), describe(taken)))
                }
                (found, _) => Ok(found),
            };
        }
        if let Some(link) = links.iter().find(|link| link.name == name.as_str()) {
            return Ok(Some(link));
        }
        let alias = |link: &&Link| link.kind.is_none() && link.aliases.iter().any(|alias| alias == name.as_str());
        let mut found = links.iter().filter(alias);
        match (found.next(), found.next()) {
            (Some(one), Some(other)) => {
                Err(format!("{name} may be {} or {}: use ifname=", describe(one), describe(other)))
            }
            (found, _) => Ok(found),
        }
    }

    /// Whether a word says what this link is to have; a name alone does not.
    fn is_settled(&self, link: &Link) -> bool {
        let named = |name: &InterfaceName| self.config.interfaces.contains_key(name);
        self.links.iter().any(|(name, found)| found.index == link.index && named(name))
    }

    /// The name that a link has once renaming is done, whether or not a word says more of it.
    fn name_of(&self, link: &Link) -> String {
        let found = self.links.iter().find(|(_, found)| found.index == link.index);
        found.map_or_else(|| link.name.clone(), |(name, _)| self.name(name))
    }

    /// The name that a link has once renaming is done.
    fn name(&self, name: &InterfaceName) -> String {
        match self.links.get(name) {
            Some(link) if !self.config.macs.contains_key(name) => link.name.clone(),
            _ => name.to_string(),
        }
    }

    fn pins(&self) -> BTreeMap<InterfaceName, Pin> {
        let pin = |link: &Link| match (link.permanent_mac, link.mac) {
            (Some(mac), _) => Some(Pin::Permanent(mac)),
            (None, mac) => mac.map(Pin::Current),
        };
        self.links.iter().filter_map(|(name, link)| Some(((*name).clone(), pin(link)?))).collect()
    }
}

/// A link in one line: its name, its other names, its address.
pub(super) fn describe(link: &Link) -> String {
    let mac = link.permanent_mac.or(link.mac).map_or("no address".to_owned(), |mac| mac.to_string());
    let others: Vec<&str> = link.aliases.iter().map(String::as_str).filter(|name| !name.starts_with("enx")).collect();
    let others = if others.is_empty() { String::new() } else { format!(" = {}", others.join(" = ")) };
    format!("{}{others} ({mac})", link.name)
}

/// The options of a bond for the kernel.
pub(super) fn bond_attributes(made: &Virtual) -> Vec<netlink_packet_route::link::InfoBond> {
    match made {
        Virtual::Bond(bond) => bond::attributes(bond),
        Virtual::Vlan(_) | Virtual::Bridge(_) => Vec::new(),
    }
}
