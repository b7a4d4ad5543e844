//! The network of the first stage: it is there before anything is fetched, and the running system keeps it.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{Ipv4Addr, TcpStream};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use qemu_tests::cluster::Profiles;
use qemu_tests::guest::{free_port, key};
use qemu_tests::ignition::Config;
use qemu_tests::machine::{Card, Clock, Network};
use qemu_tests::server::Server;
use qemu_tests::wire::{Host, Link, Quality, Request, Response, Wire, not_found};
use qemu_tests::{Machine, Platform, Role, images, scenario};
use serde_json::json;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 5);
const VLAN: u16 = 5;

/// The seconds from 1970 to 2040.
const YEAR_2040: u64 = 2_208_988_800;

/// Two cables as one, the VLAN on top of both, and an address in it.
const WORDS: &[u8] = b"# one cable may be pulled out
ifname=lan0:52:54:00:4e:5a:01 ifname=lan1:52:54:00:4e:5a:02
bond=bond0:lan0,lan1:mode=active-backup,miimon=100,primary=lan0 vlan=vlan5:bond0
ip=192.0.2.5::192.0.2.1:24::vlan5:none rd.route=198.51.100.0/24:192.0.2.1:vlan5
";

/// What the machine's drive has: a reference to what only the network has.
const REFERENCE: &[u8] =
    br#"{"ignition": {"version": "3.4.0", "config": {"merge": [{"source": "http://192.0.2.1/node.ign"}]}}}"#;

/// How long the second cable may take to take over.
const FAILOVER: Duration = Duration::from_secs(30);

/// What the network has.
fn node() -> Vec<u8> {
    let probe = "cat /etc/greeting; grep -E '^(Bonding Mode|Currently Active Slave|Slave Interface)' /proc/net/bonding/bond0; \
        grep bond0 /proc/net/vlan/config; networkctl --no-legend --no-pager list vlan5 bond0 lan0 lan1; \
        cat /proc/net/route | cut -f 1-3";
    Config::new()
        .add("/storage/files", json!({"path": "/etc/greeting", "contents": {"source": "http://198.51.100.1/greeting"}}))
        .node(&json!({
            "version": 1, "name": "worker-1", "role": "worker",
            "time": { "servers": [GATEWAY.to_string()], "wait": 60 },
        }))
        .probe(probe)
        .to_bytes()
}

fn answer(request: &Request) -> Response {
    match (request.line.as_str(), request.header("host")) {
        ("GET /node.ign", "192.0.2.1") => ("200 OK", node()),
        ("GET /greeting", "198.51.100.1") => ("200 OK", b"over the wire\n".to_vec()),
        _ => not_found(),
    }
}

/// The years until 2040 as the time step counts them.
fn years_until_2040() -> Result<u64> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    Ok((YEAR_2040 - seconds) / (365 * 86_400))
}

#[test]
fn a_config_comes_over_a_vlan_on_a_bond() {
    scenario("network-vlan-bond", |s| {
        let wire = Wire::start(
            2,
            Host {
                address: GATEWAY,
                prefix: 24,
                also: Some(Ipv4Addr::new(198, 51, 100, 1)),
                vlan: Some(VLAN),
                lease: None,
                answer: Box::new(answer),
            },
        )?;
        let image = images::built(Role::Worker, Platform::Metal)?.path;
        let cards = [0, 1].map(|port| Card::Wire(wire.port(port).to_owned()));
        let machine = Machine::new("worker")
            .disk(s.boot_disk_with_esp_file(&image, "/nodezero", "network", WORDS)?)
            .disk(s.config_drive("CIDATA", &[("user-data", REFERENCE), ("meta-data", b"instance-id: worker-1\n")])?)
            .network(Network::Cards(cards.to_vec()))
            // Whoever set it erred, and the network has a time server.
            .clock(Clock::At("2040-01-01T00:00:00".to_owned()));
        let mut vm = s.start(&machine)?;
        // A line is told as soon as it holds what is waited for, so its last word it shall be.
        let set = vm.wait_for(" ahead")?;
        let years = format!("step time: synchronised, the clock was {} y", years_until_2040()?);
        ensure!(set.text.contains(&years), "{}, expected {years}", set.text);
        vm.wait_ready()?;
        vm.report()?.expect_value(key::CONFIG, "drive")?;
        let said = vm.probe()?;
        for expected in
            ["over the wire", "Bonding Mode: fault-tolerance (active-backup)", "Currently Active Slave: lan0"]
        {
            ensure!(said.iter().any(|line| line == expected), "no {expected:?} in {said:#?}");
        }
        for expected in ["vlan5 configured", "bond0 configured", "lan0 configured", "lan1 configured"] {
            let is = |line: &str| {
                let words: Vec<&str> = line.split_whitespace().collect();
                matches!(words[..], [_, name, _, _, state] if format!("{name} {state}") == expected)
            };
            ensure!(said.iter().any(|line| is(line)), "no {expected:?} in {said:#?}");
        }
        ensure!(wire.time_requests() > 0, "nobody asked for the time");
        ensure!(wire.strays().is_empty(), "outside VLAN {VLAN}: {:#?}", wire.strays());

        // The running system has the same network: it answers in the VLAN, and goes on by the other cable.
        wire.find(GUEST, 0, FAILOVER).context("by the first cable")?;
        vm.qmp().plug("net0", false)?;
        wire.find(GUEST, 1, FAILOVER).context("by the second cable")?;
        ensure!(wire.strays().is_empty(), "outside VLAN {VLAN}: {:#?}", wire.strays());
        let asked: Vec<String> = wire.requests().into_iter().map(|request| request.line).collect();
        ensure!(asked == ["GET /node.ign", "GET /greeting"], "{asked:?}");
        vm.power_off()?;

        // With an empty battery and without a time server it begins where it ended.
        let early = machine.network(Network::None).clock(Clock::At("2001-01-01T00:00:00".to_owned()));
        let vm = s.start(&early)?;
        vm.wait_for("before the last synchronised time and is set to that")?;
        vm.cut_power()
    });
}

#[test]
#[ignore = "one more boot, for the simple case of what the test above shows"]
fn a_given_address_is_enough() {
    scenario("network-static", |s| {
        let server = Server::start(BTreeMap::from([("/greeting".to_owned(), b"hello\n".to_vec())]))?;
        let words = b"ip=10.0.2.15::10.0.2.2:24::enx5254004e5a01:none";
        let config = Config::new()
            .add("/storage/files", json!({"path": "/etc/greeting", "contents": {"source": server.url("/greeting")}}))
            .probe("cat /etc/greeting; networkctl --no-pager status enp0s3 2>/dev/null | grep -i dhcp4");
        let image = images::built(Role::Edge, Role::Edge.usual_platform())?.path;
        let disk = s.boot_disk_with_esp_file(&image, "/nodezero", "network", words)?;
        let config = s.file("config.ign", &config.to_bytes())?;
        let vm = s.start(&Machine::new("edge").disk(disk).fw_cfg("opt/com.coreos/config", config))?;
        let link = vm.wait_for("10.0.2.15/24 via 10.0.2.2 (given)")?;
        vm.wait_ready()?;
        let said = vm.probe()?;
        ensure!(said == ["hello"], "{said:#?}, after {}", link.text);
        vm.power_off()
    });
}

/// What a profile says of a machine with a given address at one network, and whatever a router tells it at another.
/// The addresses are those of QEMU's user network, and one that nobody knows.
fn two_links() -> serde_json::Value {
    json!({
        "role": "edge",
        "network": {
            "interfaces": {
                "lan0": {
                    "mac": "52:54:00:4e:5a:01", "addresses": ["10.0.2.40/24", "2001:db8:1::40/64"],
                    "gateways": ["10.0.2.2"], "routes": [{"to": "198.51.100.0/24", "via": "10.0.2.3"}], "mtu": 1400,
                },
                "lan1": {"mac": "52:54:00:4e:5a:02", "ipv6Auto": true},
            },
            "nameservers": ["10.0.2.3"],
        },
    })
}

#[test]
#[ignore = "one more boot; which units words become is checked without a machine"]
fn the_words_of_a_profile_are_the_network_and_a_router_gives_the_rest() {
    scenario("network-profile", |s| {
        let profiles = Profiles::init(&s.dir().join("cloud"))?;
        profiles.write("nodes/control-1.yaml", &json!({"role": "control"}))?;
        profiles.write("nodes/edge-1.yaml", &two_links())?;
        let words = profiles.nodezero(&["render", "edge-1", "--network"])?;

        let by_ipv6 = Server::start6(BTreeMap::from([("/greeting".to_owned(), b"by IPv6\n".to_vec())]))?;
        // Names as the running system has them: addresses, gateways, servers and sizes of packets.
        let probe = "cat /etc/greeting; ip -brief address | tr -s ' '; ip route; ip -6 route show default; \
            resolvectl dns; cat /sys/class/net/lan0/mtu; networkctl --no-legend --no-pager list lan0 lan1";
        let node = Config::new()
            .add("/storage/files", json!({"path": "/etc/greeting", "contents": {"source": by_ipv6.url("/greeting")}}))
            .probe(probe);
        let by_ipv4 = Server::start(BTreeMap::from([("/node.ign".to_owned(), node.to_bytes())]))?;
        let reference = json!({
            "ignition": {"version": "3.4.0", "config": {"merge": [{"source": by_ipv4.url("/node.ign")}]}},
        });

        let image = images::built(Role::Edge, Role::Edge.usual_platform())?.path;
        let machine = Machine::new("edge")
            .disk(s.boot_disk_with_esp_file(&image, "/nodezero", "network", words.as_bytes())?)
            .fw_cfg("opt/com.coreos/config", s.file("config.ign", reference.to_string().as_bytes())?)
            .network(Network::Cards(vec![Card::User(Vec::new()), Card::User(Vec::new())]));
        let vm = s.start(&machine)?;
        vm.wait_for("(router advertisement)")?;
        vm.wait_ready()?;
        let said = vm.probe()?;
        for expected in ["network: lan0: 10.0.2.40/24, 2001:db8:1::40/64", "network: lan1: fec0::"] {
            vm.console().find(expected).with_context(|| format!("the first stage does not say {expected:?}"))?;
        }
        for expected in [
            "by IPv6",
            "10.0.2.40/24",
            "2001:db8:1::40/64",
            "fec0::5054:ff:fe4e:5a02/64",
            "default via 10.0.2.2 dev lan0",
            "198.51.100.0/24 via 10.0.2.3 dev lan0",
            "default via fe80::2 dev lan1",
            "(lan0): 10.0.2.3",
            "1400",
        ] {
            ensure!(said.iter().any(|line| line.contains(expected)), "no {expected:?} in {said:#?}");
        }
        for name in ["lan0", "lan1"] {
            let is = |line: &String| line.contains(&format!(" {name} ")) && line.trim_end().ends_with(" configured");
            ensure!(said.iter().any(is), "{name} is not configured in {said:#?}");
        }
        ensure!(by_ipv4.requests() == ["/node.ign"] && by_ipv6.requests() == ["/greeting"], "not each asked once");
        vm.power_off()
    });
}

/// What an SSH server says first, at a port of the host's loopback that leads to the guest's.
fn ssh_greeting(port: u16, deadline: Duration) -> Result<String> {
    let started = Instant::now();
    loop {
        let mut greeting = [0; 8];
        let read = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            stream.read_exact(&mut greeting)
        });
        match read {
            Ok(()) => return Ok(String::from_utf8_lossy(&greeting).into_owned()),
            Err(error) if started.elapsed() > deadline => {
                return Err(error).with_context(|| format!("no answer at port {port} within {deadline:?}"));
            }
            Err(_) => thread::sleep(Duration::from_secs(1)),
        }
    }
}

#[test]
#[ignore = "one more boot, in which the network is waited for"]
fn a_slow_and_lossy_network_is_enough() {
    /// What each byte of it is does not matter, but that none is missing.
    const LARGE: usize = 64 << 10;
    scenario("network-lossy", |s| {
        let link = Link::start(Quality { loss: 10, delay: Duration::from_millis(150), seed: 4 })?;
        let large = Server::start(BTreeMap::from([("/large".to_owned(), vec![b'l'; LARGE])]))?;
        let node = Config::new()
            .add("/storage/files", json!({"path": "/etc/large", "contents": {"source": large.url("/large")}}))
            .add("/systemd/units", json!({"name": "ssh.service", "enabled": true}))
            .node(&json!({
                "version": 1, "name": "edge-1", "role": "edge", "firewall": {"tcp": [22]}, "time": {"wait": 1},
            }))
            .probe("tr -d -c l < /etc/large | wc -c");
        let server = Server::start(BTreeMap::from([("/node.ign".to_owned(), node.to_bytes())]))?;
        let reference = json!({
            "ignition": {"version": "3.4.0", "config": {"merge": [{"source": server.url("/node.ign")}]}},
        });

        let image = images::built(Role::Edge, Role::Edge.usual_platform())?.path;
        let port = free_port()?;
        let machine = Machine::new("edge")
            .disk(s.boot_disk(&image)?)
            .fw_cfg("opt/com.coreos/config", s.file("config.ign", reference.to_string().as_bytes())?)
            .network(Network::Cards(vec![link.card(vec![(port, 22)])]));
        let vm = s.start(&machine)?;
        vm.wait_for("DHCP from 10.0.2.2")?;
        vm.wait_ready()?;
        let said = vm.probe()?;
        ensure!(said == [LARGE.to_string()], "{said:#?}");
        let greeting = ssh_greeting(port, Duration::from_secs(120)).context("by a forwarded port")?;
        ensure!(greeting == "SSH-2.0-", "{greeting:?}");
        let (sent, received) = (link.sent(), link.received());
        ensure!(sent.lost > 0 && received.lost > 0, "nothing was lost of {sent:?} and {received:?}");
        println!("sent: {sent:?}, received: {received:?}");
        vm.power_off()
    });
}
