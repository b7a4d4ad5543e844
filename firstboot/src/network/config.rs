//! From words to a [`NetworkConfig`]: each word by itself, then what they say together.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use super::bond;
use super::ip::{self, IpOfInterface, IpWord};
use super::types::{Bond, Cidr, Interface, InterfaceName, MacAddress, Method, Route, Virtual, Vlan};
use super::words::{Problem, Problems, Word, of_cmdline, of_file};

/// Where the words stand that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// There are none: DHCP on every physical link.
    Default,
    /// On the kernel command line.
    Cmdline,
    /// In the ESP's `/nodezero/network`.
    File,
}

/// The network that the machine is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetworkConfig {
    /// Where it comes from.
    pub(crate) origin: Origin,
    /// What every physical link is to have that is not named; the first one that reaches a network is enough.
    pub(crate) any: Option<Interface>,
    /// What named links are to have.
    pub(crate) interfaces: BTreeMap<InterfaceName, Interface>,
    /// Links that are to be made.
    pub(crate) virtuals: BTreeMap<InterfaceName, Virtual>,
    /// Names for links with these hardware addresses.
    pub(crate) macs: BTreeMap<InterfaceName, MacAddress>,
    /// DNS servers that are given, in order.
    pub(crate) nameservers: Vec<IpAddr>,
    /// Whether DNS servers from DHCP count too.
    pub(crate) peer_dns: bool,
}

impl NetworkConfig {
    /// Understands the words of the command line, or where it has none those of the ESP's file. With neither: DHCP on
    /// every physical link.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub(crate) fn parse(cmdline: &str, esp_file: Option<&str>) -> Result<Self, Problems> {
        let words = of_cmdline(cmdline);
        if !words.is_empty() {
            return Builder::build(Origin::Cmdline, &words);
        }
        match of_file(esp_file.unwrap_or_default()) {
            words if words.is_empty() => Builder::build(Origin::Default, &[]),
            words => Builder::build(Origin::File, &words),
        }
    }

    /// The kernel modules that its virtual links need, each once. Drivers of devices are found by modalias.
    pub(crate) fn modules(&self) -> BTreeSet<&'static str> {
        self.virtuals.values().map(Virtual::module).collect()
    }

    /// Whether a link becomes part of another.
    pub(crate) fn is_member(&self, name: &InterfaceName) -> bool {
        self.virtuals.values().any(|link| link.members().contains(name))
    }

    /// The virtual links in an order in which they can be made.
    pub(crate) fn virtuals_in_order(&self) -> Vec<(&InterfaceName, &Virtual)> {
        let mut order: Vec<(&InterfaceName, &Virtual)> = Vec::new();
        while let Some(next) = self.virtuals.iter().find(|(name, link)| {
            let made = |wanted: &InterfaceName| order.iter().any(|(made, _)| *made == wanted);
            !made(name) && link.needs().iter().all(|need| !self.virtuals.contains_key(need) || made(need))
        }) {
            order.push(next);
        }
        order
    }
}

/// A configuration that is being built, with the word that each part comes from.
struct Builder<'a> {
    config: NetworkConfig,
    problems: Vec<Problem>,
    /// The last word that said something of an interface.
    named: BTreeMap<InterfaceName, &'a Word>,
    /// Routes that name no interface.
    loose: Vec<(&'a Word, Route)>,
    has_ip: bool,
}

impl<'a> Builder<'a> {
    fn build(origin: Origin, words: &'a [Word]) -> Result<NetworkConfig, Problems> {
        let config = NetworkConfig {
            origin,
            any: None,
            interfaces: BTreeMap::new(),
            virtuals: BTreeMap::new(),
            macs: BTreeMap::new(),
            nameservers: Vec::new(),
            peer_dns: true,
        };
        let mut builder =
            Self { config, problems: Vec::new(), named: BTreeMap::new(), loose: Vec::new(), has_ip: false };
        for word in words {
            if let Err(what) = builder.take(word) {
                builder.problems.push(Problem::new(word, what));
            }
        }
        // What the words say together can only be judged when each is understood.
        if builder.problems.is_empty() {
            builder.finish();
        }
        match Problems::from(builder.problems) {
            Some(problems) => Err(problems),
            None => Ok(builder.config),
        }
    }

    fn take(&mut self, word: &'a Word) -> Result<(), String> {
        let (key, value) = word.key_value();
        let value = value.filter(|value| !value.is_empty());
        let needed = || value.ok_or_else(|| format!("{key}= needs a value"));
        match key {
            "ip" => {
                self.has_ip = true;
                self.take_ip(word, ip::parse(needed()?)?)
            }
            "rd.route" => self.take_route(word, needed()?),
            "nameserver" => {
                let server = parse_nameserver(needed()?)?;
                if !self.config.nameservers.contains(&server) {
                    self.config.nameservers.push(server);
                }
                Ok(())
            }
            "vlan" => self.take_vlan(word, needed()?),
            "bond" => self.take_bond(word, needed()?),
            "bridge" => self.take_bridge(word, needed()?),
            "ifname" => self.take_ifname(word, needed()?),
            "rd.peerdns" => {
                self.config.peer_dns = match needed()? {
                    "0" | "no" => false,
                    "1" | "yes" => true,
                    other => return Err(format!("{other:?} is neither 0 nor 1")),
                };
                Ok(())
            }
            "team" => Err("teams are not supported: use bond=".to_owned()),
            "bootdev" => Err("not supported: every interface that is named counts; leave it out".to_owned()),
            _ => Err(
                "is not a word for the network: one of ip=, rd.route=, nameserver=, vlan=, bond=, bridge=, ifname=, \
                      rd.peerdns="
                    .to_owned(),
            ),
        }
    }

    /// The interface of a name, which a word speaks of.
    fn interface(&mut self, name: &InterfaceName, word: &'a Word) -> &mut Interface {
        self.named.insert(name.clone(), word);
        self.config.interfaces.entry(name.clone()).or_default()
    }

    fn take_ip(&mut self, word: &'a Word, ip: IpWord) -> Result<(), String> {
        match ip {
            IpWord::Any(method) => {
                add_method(self.config.any.get_or_insert_default(), method)?;
                Ok(())
            }
            IpWord::Interface(ip) => self.take_ip_of_interface(word, *ip),
        }
    }

    fn take_ip_of_interface(&mut self, word: &'a Word, ip: IpOfInterface) -> Result<(), String> {
        for server in &ip.tail.dns {
            if !self.config.nameservers.contains(server) {
                self.config.nameservers.push(*server);
            }
        }
        let name = ip.interface;
        let interface = self.interface(&name, word);
        if let Some(method) = ip.method {
            add_method(interface, method)?;
        }
        if let Some(address) = ip.address {
            if interface.addresses.iter().any(|other| other.local.address() == address.local.address()) {
                return Err(format!("the address {} is given twice", address.local.address()));
            }
            interface.addresses.push(address);
        }
        if let Some(gateway) = ip.gateway {
            interface.routes.push(Route::default_through(gateway));
        }
        set_once(&mut interface.mtu, ip.tail.mtu, &format!("MTU of {name}"))?;
        set_once(&mut interface.mac, ip.tail.mac, &format!("MAC address of {name}"))?;
        set_once(&mut interface.hostname, ip.hostname, &format!("host name for {name}"))
    }

    fn take_route(&mut self, word: &'a Word, value: &str) -> Result<(), String> {
        let fields = ip::split_fields(value)?;
        let (destination, gateway, interface) = match fields.as_slice() {
            [destination] => (*destination, "", ""),
            [destination, gateway] => (*destination, *gateway, ""),
            [destination, gateway, interface] => (*destination, *gateway, *interface),
            _ => return Err(format!("has {} fields: it is NETWORK/NETMASK:GATEWAY[:INTERFACE]", fields.len())),
        };
        let destination = parse_network(destination)?;
        let gateway = if gateway.is_empty() { None } else { Some(ip::parse_address(gateway)?) };
        if let Some(gateway) = gateway.filter(|gateway| gateway.is_ipv4() != destination.address().is_ipv4()) {
            return Err(format!("the network {destination} and the gateway {gateway} are of different families"));
        }
        let route = Route { destination, gateway, on_link: false };
        match (interface, gateway) {
            ("", None) => return Err("neither a gateway nor an interface is given".to_owned()),
            ("", Some(_)) => self.loose.push((word, route)),
            (interface, _) => {
                let name = interface.parse()?;
                self.interface(&name, word).routes.push(route);
            }
        }
        Ok(())
    }

    fn take_vlan(&mut self, word: &'a Word, value: &str) -> Result<(), String> {
        let (name, parent) = value.split_once(':').ok_or("it is vlan=NAME:INTERFACE")?;
        let (name, parent): (InterfaceName, InterfaceName) = (name.parse()?, parent.parse()?);
        let id = vlan_id(name.as_str(), parent.as_str())?;
        self.add_virtual(word, name, Virtual::Vlan(Vlan { id, parent }))
    }

    fn take_bond(&mut self, word: &'a Word, value: &str) -> Result<(), String> {
        let mut fields = value.splitn(4, ':');
        let (name, members) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let (options, mtu) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let name: InterfaceName = name.parse()?;
        let members = parse_members(members, "it is bond=NAME:MEMBER,MEMBER[:OPTIONS[:MTU]]")?;
        let options = bond::parse_options(options, &members)?;
        if !mtu.is_empty() {
            let mtu = ip::parse_mtu(mtu)?;
            let interface = self.interface(&name, word);
            set_once(&mut interface.mtu, Some(mtu), &format!("MTU of {name}"))?;
        }
        self.add_virtual(word, name, Virtual::Bond(Bond { members, options }))
    }

    fn take_bridge(&mut self, word: &'a Word, value: &str) -> Result<(), String> {
        let usage = "it is bridge=NAME:MEMBER,MEMBER";
        let (name, members) = value.split_once(':').ok_or(usage)?;
        let (name, members) = (name.parse()?, parse_members(members, usage)?);
        self.add_virtual(word, name, Virtual::Bridge(members))
    }

    fn add_virtual(&mut self, word: &'a Word, name: InterfaceName, link: Virtual) -> Result<(), String> {
        for other in link.needs().iter().cloned() {
            if other == name {
                return Err(format!("{name} cannot be made of itself"));
            }
            self.interface(&other, word);
        }
        self.interface(&name, word);
        match self.config.virtuals.insert(name.clone(), link) {
            None => Ok(()),
            Some(_) => Err(format!("{name} is made twice")),
        }
    }

    fn take_ifname(&mut self, word: &'a Word, value: &str) -> Result<(), String> {
        let (name, mac) = value.split_once(':').ok_or("it is ifname=NAME:MAC")?;
        let (name, mac): (InterfaceName, MacAddress) = (name.parse()?, mac.parse()?);
        if let Some((other, _)) = self.config.macs.iter().find(|(_, other)| **other == mac) {
            return Err(format!("the link {mac} is also named {other}"));
        }
        self.named.entry(name.clone()).or_insert(word);
        match self.config.macs.insert(name.clone(), mac) {
            None => Ok(()),
            Some(other) => Err(format!("{name} is also the name of the link {other}")),
        }
    }

    /// What the words say together.
    fn finish(&mut self) {
        if !self.has_ip {
            self.config.any = Some(Interface { methods: BTreeSet::from([Method::Dhcp]), ..Interface::default() });
        }
        self.place_loose_routes();
        self.check_interfaces();
        self.check_virtuals();
        for interface in self.config.interfaces.values_mut() {
            mark_on_link(interface);
        }
    }

    /// Gives each route without an interface to the one whose network holds its gateway, or to the only one there is.
    fn place_loose_routes(&mut self) {
        for (word, route) in std::mem::take(&mut self.loose) {
            let Some(gateway) = route.gateway else { continue };
            let interfaces = &mut self.config.interfaces;
            let reaches = |interface: &Interface| interface.addresses.iter().any(|address| address.reaches(gateway));
            let name = interfaces.iter().find(|(_, interface)| reaches(interface)).map(|(name, _)| name.clone());
            let mut addressed = interfaces.iter().filter(|(_, interface)| interface.is_addressed());
            let only = addressed.next().map(|(name, _)| name.clone()).filter(|_| addressed.next().is_none());
            let place = match (name, only, self.config.any.as_mut()) {
                (Some(name), _, _) | (None, Some(name), None) => interfaces.get_mut(&name),
                (None, None, Some(any)) => Some(any),
                _ => None,
            };
            match place {
                Some(interface) => interface.routes.push(route),
                None => self.problems.push(Problem::new(
                    word,
                    format!("no interface has {gateway} in its network: name the interface as the third field"),
                )),
            }
        }
    }

    fn check_interfaces(&mut self) {
        for (name, interface) in &self.config.interfaces {
            let Some(word) = self.named.get(name) else { continue };
            let mut problem = |what: String| self.problems.push(Problem::new(word, what));
            if self.config.is_member(name) && interface.is_addressed() {
                problem(format!("{name} is a member of another link, and can have no address of its own"));
            }
            if interface.mac.is_some() && self.config.macs.contains_key(name) {
                problem(format!("a MAC address for {name} and ifname={name}: exclude each other"));
            }
            if interface.methods.contains(&Method::Off) && interface.methods.len() > 1 {
                problem(format!("none and another method are asked for on {name}"));
            }
            if interface.link6() && interface.auto6() {
                problem(format!("link6 and auto6 are asked for on {name}"));
            }
        }
    }

    fn check_virtuals(&mut self) {
        let in_order = self.config.virtuals_in_order().len();
        let mut seen = BTreeMap::new();
        for (name, link) in &self.config.virtuals {
            let Some(word) = self.named.get(name) else { continue };
            let mut problem = |what: String| self.problems.push(Problem::new(word, what));
            for member in link.members() {
                if let Some(other) = seen.insert(member, name) {
                    problem(format!("{member} is a member of {other} and of {name}"));
                }
            }
            if in_order < self.config.virtuals.len()
                && !self.config.virtuals_in_order().iter().any(|(made, _)| *made == name)
            {
                problem(format!("{name} is made of itself in a circle"));
            }
            if self.config.macs.contains_key(name) {
                problem(format!("{name} is made, and cannot also be named by ifname="));
            }
            let used = self.config.virtuals.values().any(|other| other.needs().contains(name));
            let addressed =
                self.config.interfaces.get(name).is_some_and(|own| !own.methods.is_empty() || own.is_addressed());
            if !used && !addressed {
                problem(format!("{name} has no address: add ip={name}:dhcp, or ip={name}:none if it is to have none"));
            }
        }
    }
}

/// A gateway that no address's network holds is on the link all the same, where nothing else could make it known:
/// providers of servers give a machine one address with a prefix of 32 bits.
fn mark_on_link(interface: &mut Interface) {
    let dhcp = interface.dhcp();
    for route in &mut interface.routes {
        let Some(gateway) = route.gateway else { continue };
        let link_local = matches!(gateway, IpAddr::V6(gateway) if gateway.is_unicast_link_local());
        let family: Vec<_> =
            interface.addresses.iter().filter(|own| own.local.address().is_ipv4() == gateway.is_ipv4()).collect();
        let reached = family.iter().any(|address| address.reaches(gateway));
        let otherwise = gateway.is_ipv4() && dhcp;
        route.on_link = !link_local && !reached && !otherwise && !family.is_empty();
    }
}

fn add_method(interface: &mut Interface, method: Method) -> Result<(), String> {
    if interface.methods.insert(method) { Ok(()) } else { Err("the same is asked for twice".to_owned()) }
}

/// Sets what may be said once, or again in the same way.
fn set_once<T: PartialEq + ToString>(place: &mut Option<T>, value: Option<T>, what: &str) -> Result<(), String> {
    match (place.as_ref(), value) {
        (_, None) => Ok(()),
        (Some(old), Some(new)) if *old != new => {
            Err(format!("the {what} is {} here, and {} in another word", new.to_string(), old.to_string()))
        }
        (_, Some(new)) => {
            *place = Some(new);
            Ok(())
        }
    }
}

/// `NETWORK/PREFIX` or `NETWORK/NETMASK`; bits behind the prefix do not count.
fn parse_network(text: &str) -> Result<Cidr, String> {
    let (address, prefix) = ip::split_prefix(text)?;
    let prefix = prefix.ok_or_else(|| format!("{text:?} is not NETWORK/NETMASK"))?;
    let address = match address.as_str() {
        "0.0.0.0" => IpAddr::from([0; 4]),
        "[::]" => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        other => ip::parse_address(other)?,
    };
    let prefix = ip::parse_netmask(&prefix, address)?;
    Cidr::new(address, prefix).map(Cidr::network).ok_or_else(|| format!("{text:?} is not NETWORK/NETMASK"))
}

/// A DNS server: IPv6 with or without brackets.
fn parse_nameserver(text: &str) -> Result<IpAddr, String> {
    let bare = text.parse::<Ipv6Addr>().is_ok();
    if bare { ip::parse_address(&format!("[{text}]")) } else { ip::parse_address(text) }
}

/// The members of a link, at least one, each once.
fn parse_members(text: &str, usage: &str) -> Result<Vec<InterfaceName>, String> {
    if text.is_empty() {
        return Err(format!("no member is named: {usage}"));
    }
    let members: Vec<InterfaceName> = text.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let mut seen = BTreeSet::new();
    match members.iter().find(|member| !seen.insert(*member)) {
        Some(twice) => Err(format!("the member {twice} is named twice")),
        None => Ok(members),
    }
}

/// The identifier in a VLAN's name: `vlan0005`, `vlan5`, `eth0.0005` or `eth0.5` on `eth0`.
fn vlan_id(name: &str, parent: &str) -> Result<u16, String> {
    let digits = name.strip_prefix("vlan").or_else(|| name.strip_prefix(parent)?.strip_prefix('.'));
    let digits = digits.filter(|digits| !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit()));
    let digits = digits.ok_or_else(|| format!("the name {name} says no VLAN: it is vlan5 or {parent}.5"))?;
    let id = digits.parse::<u16>().ok().filter(|id| (1..=4094).contains(id));
    id.ok_or_else(|| format!("{digits} is not a VLAN identifier from 1 to 4094"))
}
