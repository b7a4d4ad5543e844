//! The network of the first stage: it is there before anything is fetched, and the running system keeps it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use qemu_tests::guest::key;
use qemu_tests::ignition::Config;
use qemu_tests::machine::{Card, Clock, Network};
use qemu_tests::server::Server;
use qemu_tests::wire::{Host, Request, Response, Wire, not_found};
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
        vm.power_off()
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
