//! Carries a plan out: makes the links, then waits on all of them at once until they reach a network.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::advertised::Listener;
use super::config::NetworkConfig;
use super::dhcp::{self, Lease, Pauses};
use super::netlink::{Link, LinkAddress, Netlink, RouteOrigin};
use super::plan::{Action, Pin, Plan, Reach, bond_attributes, describe, plan};
use super::types::{Address, Cidr, InterfaceName, MacAddress, Method};
use crate::files::write_atomically;

/// How often the kernel is asked whether something has happened.
const POLL: Duration = Duration::from_millis(100);

/// How a link came by its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// From a DHCP server.
    Dhcp {
        /// Which one.
        server: Ipv4Addr,
        /// For how long, in seconds.
        lifetime: u32,
    },
    /// They were given.
    Static,
    /// From router advertisements.
    Advertised,
    /// The link-local address alone.
    LinkLocal,
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dhcp { server, lifetime: u32::MAX } => write!(f, "DHCP from {server}"),
            Self::Dhcp { server, lifetime } => write!(f, "DHCP from {server} for {lifetime} s"),
            Self::Static => f.write_str("given"),
            Self::Advertised => f.write_str("router advertisement"),
            Self::LinkLocal => f.write_str("link-local"),
        }
    }
}

/// A link that reaches a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinkUp {
    /// Its name in the first stage.
    pub(crate) interface: String,
    /// Its hardware address.
    pub(crate) mac: Option<MacAddress>,
    /// Its addresses, IPv6 link-local ones left out where there are others.
    pub(crate) addresses: Vec<Cidr>,
    /// The gateways of its default routes.
    pub(crate) gateways: Vec<IpAddr>,
    /// How it came by them.
    pub(crate) how: Vec<How>,
}

impl fmt::Display for LinkUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |items: Vec<String>| items.join(", ");
        write!(f, "{}: {}", self.interface, joined(self.addresses.iter().map(Cidr::to_string).collect()))?;
        if !self.gateways.is_empty() {
            write!(f, " via {}", joined(self.gateways.iter().map(IpAddr::to_string).collect()))?;
        }
        write!(f, " ({})", joined(self.how.iter().map(How::to_string).collect()))
    }
}

/// The network as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Up {
    /// The links that reach a network. Empty where the words switch it off.
    pub(crate) links: Vec<LinkUp>,
    /// DNS servers: those that are given, then those from DHCP, then those that routers advertise.
    pub(crate) dns: Vec<IpAddr>,
    /// Of links that were to reach a network and do not: what was tried.
    pub(crate) problems: Vec<String>,
    /// The devices that names stand for, for the running system's files.
    pub(crate) pins: BTreeMap<InterfaceName, Pin>,
}

impl Up {
    /// Writes the DNS servers for resolvers: `/etc/resolv.conf`, or wherever it is wanted.
    ///
    /// # Errors
    /// With the path, what the file system answers.
    pub(crate) fn write_resolv_conf(&self, path: &Path) -> anyhow::Result<()> {
        let lines: String = self.dns.iter().map(|server| format!("nameserver {server}\n")).collect();
        write_atomically(path, lines.as_bytes(), 0o644)
    }
}

/// How long things may take, and what a device is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    /// For a link to be there.
    pub(super) links: Duration,
    /// For its carrier, once it is up.
    pub(super) carrier: Duration,
    /// For a lease, once it has a carrier.
    pub(super) dhcp: Duration,
    /// For an IPv6 address from a router, or for it to be known that nobody else has it.
    pub(super) ipv6: Duration,
    pub(super) pauses: Pauses,
    pub(super) physical: fn(&Link) -> bool,
}

impl Settings {
    pub(super) const STANDARD: Self = Self {
        links: Duration::from_secs(20),
        carrier: Duration::from_secs(20),
        dhcp: Duration::from_secs(45),
        ipv6: Duration::from_secs(20),
        pauses: Pauses::STANDARD,
        physical: |link| link.ethernet && link.kind.is_none(),
    };
}

/// Brings the network up, until `deadline` at the latest. Links that words name are all waited for, and one that
/// reaches no network is a problem in the result as long as another does. Of links that no word names the first one
/// that reaches a network ends the waiting.
///
/// # Errors
/// When no link reaches a network: for each what was tried. When a link cannot be made as it is wanted, or is not
/// there.
pub(crate) fn bring_up(config: &NetworkConfig, deadline: Instant, log: &mut dyn FnMut(&str)) -> anyhow::Result<Up> {
    bring_up_with(config, deadline, &Settings::STANDARD, log)
}

/// As [`bring_up`], with other times.
pub(super) fn bring_up_with(
    config: &NetworkConfig,
    deadline: Instant,
    settings: &Settings,
    log: &mut dyn FnMut(&str),
) -> anyhow::Result<Up> {
    if config.interfaces.is_empty() && config.any.as_ref().is_some_and(|any| any.methods.contains(&Method::Off)) {
        log("the network is switched off by ip=none");
        return Ok(Up::default());
    }
    let mut netlink = Netlink::open()?;
    let mut plan = wait_for_links(config, deadline, settings, &mut netlink)?;
    let advertised = plan.reach.iter().any(|reach| reach.auto6);
    let listener = advertised.then(Listener::open).transpose()?;
    let failed = perform_all(&plan, &mut netlink, log)?;
    plan.reach.retain(|reach| !failed.contains_key(&reach.link));
    let (links, leased, problems) = reach_all(&plan, deadline, settings, log);
    let problems: Vec<String> = failed.into_values().chain(problems).collect();
    anyhow::ensure!(!links.is_empty() || problems.is_empty(), "no link reaches a network\n{}", problems.join("\n"));
    let mut dns = config.nameservers.clone();
    if config.peer_dns {
        let advertised = listener.map(|listener| advertised_servers(listener, &plan, &links, &mut netlink));
        leased.into_iter().chain(advertised.transpose()?.unwrap_or_default()).for_each(|server| {
            if !dns.contains(&server) {
                dns.push(server)
            }
        });
    }
    if dns.is_empty() && !links.is_empty() {
        log("no DNS server is known: nameserver= names one");
    }
    Ok(Up { links, dns, problems, pins: plan.pins })
}

/// The DNS servers that were advertised on the links that wait for advertisements.
fn advertised_servers(
    mut listener: Listener,
    plan: &Plan,
    links: &[LinkUp],
    netlink: &mut Netlink,
) -> anyhow::Result<Vec<IpAddr>> {
    let mut servers = Vec::new();
    for reach in plan.reach.iter().filter(|reach| reach.auto6) {
        if links.iter().any(|link| link.interface == reach.link) {
            servers.extend(listener.servers(netlink.link(&reach.link)?.index));
        }
    }
    Ok(servers)
}

/// Plans as soon as all links are there that are named, or any where none is.
fn wait_for_links(
    config: &NetworkConfig,
    deadline: Instant,
    settings: &Settings,
    netlink: &mut Netlink,
) -> anyhow::Result<Plan> {
    let end = deadline.min(Instant::now() + settings.links);
    loop {
        let links = netlink.links()?;
        let missing = match plan(config, &links, settings.physical) {
            Ok(plan) if !plan.actions.is_empty() => return Ok(plan),
            Ok(_) => {
                "there is no Ethernet link: its driver is missing, or it is switched off in the firmware".to_owned()
            }
            Err(missing) => missing,
        };
        anyhow::ensure!(Instant::now() < end, "{missing} (waited {} s)", settings.links.as_secs());
        std::thread::sleep(POLL);
    }
}

/// Carries all actions out. Gives what went wrong, by link, on links that do not matter that much.
fn perform_all(
    plan: &Plan,
    netlink: &mut Netlink,
    log: &mut dyn FnMut(&str),
) -> anyhow::Result<BTreeMap<String, String>> {
    let mut failed = BTreeMap::new();
    for action in &plan.actions {
        log(&action.to_string());
        match perform(action, netlink).with_context(|| action.to_string()) {
            Err(error) if plan.unnamed.contains(action.link()) => {
                let problem = format!("{}: {error:#}", action.link());
                log(&problem);
                failed.entry(action.link().to_owned()).or_insert(problem);
            }
            other => other?,
        }
    }
    Ok(failed)
}

/// Carries one action out. What is already so is left so.
fn perform(action: &Action, netlink: &mut Netlink) -> anyhow::Result<()> {
    match action {
        Action::Rename { link, to } => {
            let found = netlink.link(link)?;
            if found.up {
                netlink.set_up(found.index, false)?;
            }
            netlink.rename(found.index, to)
        }
        Action::SetMac { link, mac } => match netlink.link(link)? {
            found if found.mac == Some(*mac) => Ok(()),
            found => netlink.set_mac(found.index, *mac),
        },
        Action::SetMtu { link, mtu } => match netlink.link(link)? {
            found if found.mtu == *mtu => Ok(()),
            found => netlink.set_mtu(found.index, *mtu),
        },
        Action::Make { link, made } => netlink.make(link, made, bond_attributes(made)),
        Action::Join { link, master, down_first } => {
            let (member, master) = (netlink.link(link)?, netlink.link(master)?);
            if member.master == Some(master.index) {
                return Ok(());
            }
            if *down_first && member.up {
                netlink.set_up(member.index, false)?;
            }
            netlink.set_master(member.index, master.index)
        }
        Action::Advertisements { link, accept } => {
            let path = format!("/proc/sys/net/ipv6/conf/{link}/accept_ra");
            let value = if *accept { "1" } else { "0" };
            std::fs::write(&path, value).with_context(|| format!("writing {value} to {path}"))
        }
        Action::Up { link } => match netlink.link(link)? {
            found if found.up => Ok(()),
            found => netlink.set_up(found.index, true),
        },
        Action::AddAddress { link, address } => {
            let index = netlink.link(link)?.index;
            netlink.add_address(index, *address, None)
        }
        Action::AddRoute { link, route } => {
            let index = netlink.link(link)?.index;
            netlink.add_route(index, *route, RouteOrigin::Static)
        }
    }
}

/// What a thread that waits on a link has to say.
enum Said {
    Log(String),
    Reached(Box<LinkUp>, Vec<IpAddr>),
    Failed(String),
}

/// Waits on all links at once. Gives those that reach a network, their DNS servers, and what was tried on the others.
fn reach_all(
    plan: &Plan,
    deadline: Instant,
    settings: &Settings,
    log: &mut dyn FnMut(&str),
) -> (Vec<LinkUp>, Vec<IpAddr>, Vec<String>) {
    let (stop, never, (sender, receiver)) = (AtomicBool::new(false), AtomicBool::new(false), channel());
    let (mut links, mut dns, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        for reach in &plan.reach {
            let unnamed = plan.unnamed.contains(&reach.link);
            let (sender, stop) = (sender.clone(), if unnamed { &stop } else { &never });
            scope.spawn(move || {
                let said = Waiting { reach, deadline, settings, stop, sender: &sender }.run();
                // The receiver is there until every sender is gone.
                let _ = sender.send(said.unwrap_or_else(|error| Said::Failed(format!("{}: {error:#}", reach.link))));
            });
        }
        drop(sender);
        for said in &receiver {
            match said {
                Said::Log(line) => log(&line),
                Said::Reached(link, servers) => {
                    log(&link.to_string());
                    stop.fetch_or(plan.unnamed.contains(&link.interface), Ordering::Relaxed);
                    links.push(*link);
                    dns.extend(servers);
                }
                Said::Failed(problem) => {
                    log(&problem);
                    problems.push(problem);
                }
            }
        }
    });
    links.sort_by(|one: &LinkUp, other| one.interface.cmp(&other.interface));
    problems.sort();
    (links, dns, problems)
}

/// One link that is waited on.
struct Waiting<'a> {
    reach: &'a Reach,
    deadline: Instant,
    settings: &'a Settings,
    stop: &'a AtomicBool,
    sender: &'a Sender<Said>,
}

impl Waiting<'_> {
    fn run(&self) -> anyhow::Result<Said> {
        let mut netlink = Netlink::open()?;
        let link = self.wait_for_carrier(&mut netlink)?;
        let (mut how, mut dns) = (Vec::new(), Vec::new());
        if !self.reach.addresses.is_empty() {
            how.push(How::Static);
        }
        if self.reach.dhcp {
            match self.ask_by_dhcp(&link, &mut netlink) {
                Ok(lease) => {
                    how.push(How::Dhcp { server: lease.server, lifetime: lease.lifetime });
                    dns = lease.dns;
                }
                Err(error) if how.is_empty() && !self.reach.auto6 => return Err(error),
                Err(error) => self.say(&format!("{error:#}")),
            }
        }
        if self.reach.auto6 || self.reach.link6 || self.reach.addresses.iter().any(|own| own.address().is_ipv6()) {
            how.extend(self.wait_for_ipv6(link.index, &mut netlink)?);
        }
        let mut addresses = netlink.addresses(link.index)?;
        if addresses.iter().any(|address| !address.link_local) {
            addresses.retain(|address| !address.link_local);
        }
        let addresses = addresses.into_iter().map(|address| address.address).collect();
        let gateways = netlink.gateways(link.index)?;
        let up = LinkUp { interface: self.reach.link.clone(), mac: link.mac, addresses, gateways, how };
        Ok(Said::Reached(Box::new(up), dns))
    }

    fn say(&self, line: &str) {
        // The receiver is there until every sender is gone.
        let _ = self.sender.send(Said::Log(format!("{}: {line}", self.reach.link)));
    }

    /// Asks again and again until there is an answer, at most for `bound`.
    fn poll<T>(
        &self,
        bound: Duration,
        otherwise: &str,
        mut ask: impl FnMut() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let begin = Instant::now();
        let end = self.deadline.min(begin + bound);
        loop {
            if let Some(found) = ask()? {
                return Ok(found);
            }
            anyhow::ensure!(!self.stop.load(Ordering::Relaxed), "another link was there first");
            anyhow::ensure!(Instant::now() < end, "{otherwise} in {} s", begin.elapsed().as_secs());
            std::thread::sleep(POLL);
        }
    }

    fn wait_for_carrier(&self, netlink: &mut Netlink) -> anyhow::Result<Link> {
        self.poll(self.settings.carrier, "no carrier (is the cable in?)", || {
            Ok(Some(netlink.link(&self.reach.link)?).filter(|link| link.carrier))
        })
    }

    fn ask_by_dhcp(&self, link: &Link, netlink: &mut Netlink) -> anyhow::Result<Lease> {
        let mac = link.mac.with_context(|| format!("{} has no hardware address for DHCP", describe(link)))?;
        self.say("carrier, asking by DHCP");
        let until = self.deadline.min(Instant::now() + self.settings.dhcp);
        let lease = dhcp::acquire(&self.reach.link, mac, until, self.settings.pauses, self.stop);
        let lease = lease.map_err(anyhow::Error::msg)?;
        if let Some(mtu) = lease.mtu.filter(|mtu| *mtu != link.mtu && !self.reach.mtu_is_given) {
            // A driver that cannot do it reaches the network all the same.
            if let Err(error) = netlink.set_mtu(link.index, mtu) {
                self.say(&format!("the server's MTU {mtu} cannot be set: {error:#}"));
            }
        }
        let address = Address { local: lease.address, peer: None };
        netlink
            .add_address(link.index, address, Some(lease.lifetime))
            .with_context(|| format!("adding the leased address {}", lease.address))?;
        for route in &lease.routes {
            let added = netlink.add_route(link.index, *route, RouteOrigin::Dhcp(lease.address.address()));
            added.with_context(|| format!("adding the leased route {route}"))?;
        }
        for route in &self.reach.routes {
            let added = netlink.add_route(link.index, *route, RouteOrigin::Static);
            added.with_context(|| format!("adding the route {route}"))?;
        }
        Ok(lease)
    }

    /// Waits until given addresses are known to be the machine's alone, and others are there that are wanted.
    fn wait_for_ipv6(&self, link: u32, netlink: &mut Netlink) -> anyhow::Result<Option<How>> {
        let given: Vec<IpAddr> = self.reach.addresses.iter().map(|own| own.address()).filter(IpAddr::is_ipv6).collect();
        let otherwise = match (self.reach.auto6, self.reach.link6) {
            (true, _) => "no address from a router advertisement (DHCPv6 is not asked)",
            (false, true) => "no usable IPv6 link-local address",
            (false, false) => "the given IPv6 address is not usable",
        };
        self.poll(self.settings.ipv6, otherwise, || {
            let addresses = netlink.addresses(link)?;
            let ours = |address: &&LinkAddress| given.contains(&address.address.address());
            if let Some(taken) = addresses.iter().filter(ours).find(|address| address.taken) {
                anyhow::bail!("the address {} is in use by another machine", taken.address);
            }
            let usable =
                |address: &&LinkAddress| address.address.address().is_ipv6() && !address.tentative && !address.taken;
            let ready = addresses.iter().filter(ours).filter(usable).count() == given.len();
            let advertised = |address: &LinkAddress| !address.link_local && !given.contains(&address.address.address());
            let way = match (self.reach.auto6, self.reach.link6) {
                (true, _) => addresses.iter().filter(usable).any(advertised).then_some(Some(How::Advertised)),
                (false, true) => {
                    addresses.iter().filter(usable).any(|address| address.link_local).then_some(Some(How::LinkLocal))
                }
                (false, false) => Some(None),
            };
            Ok(way.filter(|_| ready))
        })
    }
}
