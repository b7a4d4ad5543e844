//! Where a configuration comes from: config drives, and metadata services by what the firmware says of the machine.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use qemu_tests::guest::{free_port, key};
use qemu_tests::ignition::Config;
use qemu_tests::machine::{Card, Clock, Network};
use qemu_tests::wire::{Host, Request, Response, Wire, not_found};
use qemu_tests::{Machine, Platform, Role, Scenario, images, scenario};
use serde_json::json;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// How long the guest may take to be reached by a cable that was just plugged in.
const REACHED: Duration = Duration::from_secs(90);

/// A provider's network: a lease for everybody, and a metadata service.
fn provider(answer: impl FnMut(&Request) -> Response + Send + 'static) -> Result<Wire> {
    let lease = Some(Ipv4Addr::new(198, 51, 100, 77));
    let host = Host { address: GATEWAY, prefix: 24, also: Some(METADATA), vlan: None, lease, answer: Box::new(answer) };
    Wire::start(1, host)
}

/// EC2's metadata service of the second version: nothing without a token that was asked for as it documents.
fn ec2(user_data: Vec<u8>) -> impl FnMut(&Request) -> Response {
    const TOKEN: &str = "AQAEAGg5NodeZeroTests==";
    move |request| {
        if request.header("host") != METADATA.to_string() {
            return not_found();
        }
        let lifetime = request.header("x-aws-ec2-metadata-token-ttl-seconds").parse::<u32>();
        match request.line.as_str() {
            "PUT /latest/api/token" if lifetime.is_ok_and(|ttl| (1..=21_600).contains(&ttl)) => {
                ("200 OK", TOKEN.as_bytes().to_vec())
            }
            "PUT /latest/api/token" => ("400 Bad Request", Vec::new()),
            _ if request.header("x-aws-ec2-metadata-token") != TOKEN => ("401 Unauthorized", Vec::new()),
            "GET /latest/user-data" => ("200 OK", user_data.clone()),
            _ => not_found(),
        }
    }
}

/// Makes a key pair, and gives the public key.
fn make_key(file: &Path) -> Result<String> {
    let made =
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "nobody", "-f"]).arg(file).output();
    let made = made.context("starting ssh-keygen")?;
    ensure!(made.status.success(), "ssh-keygen: {}", String::from_utf8_lossy(&made.stderr));
    Ok(std::fs::read_to_string(file.with_extension("pub"))?.trim().to_owned())
}

/// Logs in with an ordinary client. Gives what `id -un` prints there, or what the client says.
fn log_in(port: u16, options: &[&str]) -> Result<std::result::Result<String, String>> {
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "none", "-p", &port.to_string(), "-o", "ConnectTimeout=20", "-o", "StrictHostKeyChecking=no"]);
    ssh.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none"]);
    ssh.args(["-o", "LogLevel=ERROR", "-o", "NumberOfPasswordPrompts=1"]).args(options);
    // Without a terminal and with this a password is asked of a program, which is none.
    ssh.env("SSH_ASKPASS", "/bin/false").env("SSH_ASKPASS_REQUIRE", "force");
    let output =
        ssh.args(["op@127.0.0.1", "id -un"]).stdin(std::process::Stdio::null()).output().context("starting ssh")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok(if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) })
}

/// Logs in with the key of the config, and with nothing else.
fn expect_login(s: &Scenario, port: u16) -> Result<()> {
    let [right, wrong] = ["right", "wrong"].map(|name| format!("{}", s.dir().join(name).display()));
    let started = Instant::now();
    loop {
        match log_in(port, &["-o", "BatchMode=yes", "-i", &right])? {
            Ok(user) => {
                ensure!(user == "op", "the user is {user:?}");
                break;
            }
            Err(said) if started.elapsed() > REACHED => bail!("no login within {REACHED:?}: {said}"),
            Err(_) => thread::sleep(Duration::from_secs(1)),
        }
    }
    for (case, options) in [
        ("another key", ["-o", "BatchMode=yes", "-i", wrong.as_str()]),
        (
            "a password",
            ["-o", "PubkeyAuthentication=no", "-o", "PreferredAuthentications=password,keyboard-interactive"],
        ),
    ] {
        let said = log_in(port, &options)?.err().with_context(|| format!("a login with {case}"))?;
        ensure!(said.contains("Permission denied (publickey)"), "{case}: {said}");
    }
    Ok(())
}

/// A node that an operator may log in to, with the clock of its provider.
fn edge_node(public_key: &str) -> Vec<u8> {
    let node = json!({
        "version": 1, "name": "edge-1", "role": "edge",
        "time": { "servers": [GATEWAY.to_string()], "wait": 60 },
        "firewall": { "tcp": [22] },
    });
    // Somebody who has a password, which is no way in either: it is "nodezero".
    let hash = "$6$saltsalt$de57Pav9H1hKA7xCKsNepn89BEQUf1PMWBCAHD3lHZ5LAuKjoz8K8GEL.VBawZfZrwLApPLB2PE4bk4xZgO8h.";
    Config::new()
        .add("/passwd/users", json!({"name": "op", "sshAuthorizedKeys": [public_key], "passwordHash": hash}))
        .add("/systemd/units", json!({"name": "ssh.service", "enabled": true}))
        .node(&node)
        .to_bytes()
}

#[test]
fn a_broken_drive_stops_and_then_the_metadata_service_is_asked() {
    if nodezero::tools::own_command("ssh").is_none() || nodezero::tools::own_command("ssh-keygen").is_none() {
        assert!(std::env::var_os("CI").is_none(), "there is no ssh");
        eprintln!("skipped: there is no ssh on this machine");
        return;
    }
    scenario("sources", |s| {
        let public_key = make_key(&s.dir().join("right"))?;
        make_key(&s.dir().join("wrong"))?;
        let wire = provider(ec2(edge_node(&public_key)))?;
        let image = images::built(Role::Edge, Role::Edge.usual_platform())?.path;
        let port = free_port()?;
        // A BIOS, as most of EC2's virtual machines have; OVMF would take 1970 for 2070.
        let machine = Machine::new("edge")
            .bios()
            .disk(s.boot_disk(&image)?)
            .smbios(1, "manufacturer=Amazon EC2,product=t3.nano")
            .network(Network::Cards(vec![Card::Wire(wire.port(0).to_owned()), Card::User(vec![(port, 22)])]))
            .clock(Clock::At("1970-01-01T00:00:00".to_owned()));

        // A drive that is there and broken; later sources have good configurations, and are not asked.
        let broken = machine
            .clone()
            .disk(s.config_disc("ignition", &[("config.ign", b"#cloud-config\nusers: []\n")])?)
            .disk(s.config_drive("cidata", &[("user-data", &Config::new().to_bytes())])?);
        let vm = s.start(&broken)?;
        let summary = vm.expect_refusal("reading the config drive ignition (/dev/sr0)")?;
        ensure!(summary.contains("cloud-config"), "{summary}");
        ensure!(wire.requests().is_empty(), "{:?}", wire.requests());
        vm.cut_power()?;

        // Without the drive it is what its provider says.
        let mut vm = s.start(&machine)?;
        // The second cable is for logging in, later.
        vm.qmp().plug("net1", false)?;
        vm.wait_ready()?;
        let asked: Vec<String> = wire.requests().into_iter().map(|request| request.line).collect();
        ensure!(asked == ["PUT /latest/api/token", "GET /latest/user-data"], "{asked:?}");
        vm.report()?.expect_value(key::CONFIG, "provider")?;
        let years = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() / (365 * 86_400);
        let set = vm.console().find("step time: synchronised").context("the clock was not set")?;
        ensure!(set.text.contains(&format!("the clock was {years} y")) && set.text.contains(" behind"), "{}", set.text);
        vm.qmp().plug("net1", true)?;
        expect_login(s, port)?;
        vm.power_off()
    });
}

#[test]
#[ignore = "four more boots, for what tests without a machine cover"]
fn every_other_way_is_found() {
    let openstack = |request: &Request| match request.line.as_str() {
        "GET /openstack/latest/user_data" => ("200 OK", Config::new().to_bytes()),
        _ => not_found(),
    };
    scenario("sources-all", |s| {
        let image = images::built(Role::Edge, Role::Edge.usual_platform())?.path;
        let config = Config::new().to_bytes();
        let wire = provider(openstack)?;
        let cards = Network::Cards(vec![Card::Wire(wire.port(0).to_owned())]);
        // As hypervisors at home attach it.
        let files: [(&str, &[u8]); 2] = [("meta-data", b"instance-id: worker-1\n"), ("user-data", &config)];
        let disc = s.config_disc("cidata", &files)?;
        let metal = images::built(Role::Worker, Platform::Metal)?.path;
        let vm = s.start(&Machine::new("worker").disk(s.boot_disk_of("metal", &metal)?).disk(disc))?;
        vm.wait_ready().context("cidata")?;
        vm.report()?.expect_value(key::CONFIG, "drive")?;
        vm.cut_power()?;
        // As OpenStack does, and a plain disk.
        let meta: (&str, &[u8]) = ("openstack/latest/meta_data.json", b"{\"uuid\": \"83679162\"}");
        let cloud = s.config_disc("config-2", &[meta, ("openstack/latest/user_data", &config)])?;
        let plain = s.config_drive("ignition", &[("config.ign", &config)])?;
        for (case, drive) in [("config-2", cloud), ("ignition", plain)] {
            let vm = s.start(&Machine::new("edge").disk(s.boot_disk(&image)?).disk(drive))?;
            vm.wait_ready().context(case)?;
            vm.report()?.expect_value(key::CONFIG, "drive")?;
            vm.cut_power()?;
        }
        let machine = Machine::new("edge").disk(s.boot_disk(&image)?).network(cards);
        let vm = s.start(&machine.smbios(1, "manufacturer=OpenStack Foundation,product=OpenStack Nova"))?;
        vm.wait_ready().context("OpenStack")?;
        vm.report()?.expect_value(key::CONFIG, "provider")?;
        vm.power_off()
    });
}
