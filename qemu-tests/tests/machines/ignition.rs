//! A machine becomes what its Ignition config says, once, and stays so.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use qemu_tests::guest::key;
use qemu_tests::ignition::Config;
use qemu_tests::server::Server;
use qemu_tests::{Machine, Platform, Role, images, scenario};
use serde_json::json;

/// A public key that nobody has the private part of.
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB4Zb0Ycx2pDqVQkD1o5lGkMRrHh0W7Zq3O1V1V2J5mT nobody";

/// What the probe of [`everything`] runs.
const PROBE: &str = "stat -c '%n %F %a %U %G' /etc/greeting /var/lib/app /var/lib/app/data /etc/link /home/op/notes; \
    cat /etc/greeting /var/lib/app/data /home/op/notes; readlink /etc/link; \
    cat /home/op/.ssh/authorized_keys* /home/op/.ssh/authorized_keys.d/* 2>/dev/null; \
    id op; grep ^op: /etc/shadow | cut -d: -f2; \
    systemctl is-enabled hello.service iscsid.socket; systemctl is-active hello.service; \
    systemctl show -p Environment --value hello.service; \
    findmnt -rno TARGET,SOURCE,FSTYPE /var/lib/vault; lsblk -rno TYPE,FSTYPE /dev/vdb; \
    cat /var/lib/vault/kept; echo sealed > /var/lib/vault/kept; sync; stat -c '%n %a' /etc/luks/vault /etc/crypttab; \
    cat /run/hello; ls /run/nodezero; \
    ls -A /run/nodezero/config.ign /run/nodezero/ignition.json 2>&1";

/// Mounts the encrypted volume, as the configuration's author has to say.
const VAULT: &str = "[Unit]\nRequires=systemd-cryptsetup@vault.service\nAfter=systemd-cryptsetup@vault.service\n\
    [Mount]\nWhat=/dev/mapper/vault\nWhere=/var/lib/vault\nType=ext4\n[Install]\nRequiredBy=local-fs.target\n";

/// Files, directories, links, users, units, drop-ins, an encrypted volume, and contents from the network.
fn everything(url: &str) -> Config {
    let unit = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c 'echo hello > /run/hello'\n\
                [Install]\nWantedBy=multi-user.target\n";
    let drop_in = "[Service]\nEnvironment=COLOUR=green\n";
    Config::new()
        .file("/etc/greeting", 0o640, b"good morning\n")
        .add("/storage/directories", json!({"path": "/var/lib/app", "mode": 0o750, "user": {"name": "op"}}))
        .add(
            "/storage/files",
            json!({"path": "/var/lib/app/data", "contents": {"source": url}, "user": {"name": "op"}}),
        )
        .add(
            "/storage/files",
            json!({"path": "/home/op/notes", "user": {"name": "op"}, "group": {"name": "op"},
            "contents": {"source": "data:,one%0A"}, "append": [{"source": "data:,two%0A"}]}),
        )
        .add("/storage/links", json!({"path": "/etc/link", "target": "greeting"}))
        .add("/passwd/groups", json!({"name": "crew", "gid": 4242}))
        .add(
            "/passwd/users",
            json!({"name": "op", "uid": 1500, "groups": ["crew"], "passwordHash": "*",
            "sshAuthorizedKeys": [KEY]}),
        )
        .add(
            "/systemd/units",
            json!({"name": "hello.service", "enabled": true, "contents": unit,
            "dropins": [{"name": "colour.conf", "contents": drop_in}]}),
        )
        .add("/systemd/units", json!({"name": "iscsid.socket", "enabled": false}))
        .add(
            "/storage/luks",
            // The default function for keys takes seconds and half of the memory, on purpose.
            json!({"name": "vault", "device": "/dev/vdb", "keyFile": {"source": "data:,a%20long%20enough%20secret"},
            "options": ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]}),
        )
        .add(
            "/storage/filesystems",
            json!({"device": "/dev/mapper/vault", "format": "ext4", "label": "vault", "path": "/var/lib/vault"}),
        )
        .add("/systemd/units", json!({"name": "var-lib-vault.mount", "enabled": true, "contents": VAULT}))
        .probe(PROBE)
}

fn expect_all(said: &[String], expected: &[&str]) -> Result<()> {
    for line in expected {
        ensure!(said.iter().any(|said| said == line), "no line {line:?} among {said:#?}");
    }
    Ok(())
}

#[test]
fn a_config_is_applied_once() {
    scenario("ignition", |s| {
        let server = Server::start(BTreeMap::from([("/data".to_owned(), b"from the network\n".to_vec())]))?;
        let image = images::built(Role::Worker, Platform::Vps)?.path;
        let config = s.file("config.ign", &everything(&server.url("/data")).to_bytes())?;
        let machine = Machine::new("worker")
            .disk(s.boot_disk(&image)?)
            .disk(s.empty_disk("vault", 1 << 30)?.serial("VAULT"))
            .fw_cfg("opt/com.coreos/config", config);
        let expected = [
            "/etc/greeting regular file 640 root root",
            "/var/lib/app directory 750 op root",
            "/var/lib/app/data regular file 644 op root",
            "/etc/link symbolic link 777 root root",
            "/home/op/notes regular file 644 op op",
            "good morning",
            "from the network",
            "one",
            "two",
            "greeting",
            KEY,
            "uid=1500(op) gid=1500(op) groups=1500(op),4242(crew)",
            "*",
            "enabled",
            "disabled",
            "active",
            "COLOUR=green",
            "hello",
            "/var/lib/vault /dev/mapper/vault ext4",
            "disk crypto_LUKS",
            "crypt ext4",
            "/etc/luks/vault 600",
            "/etc/crypttab 600",
        ];
        for boot in ["first", "second"] {
            let vm = s.start(&machine)?;
            vm.wait_ready().with_context(|| format!("{boot} boot"))?;
            let said = vm.probe()?;
            expect_all(&said, &expected).with_context(|| format!("{boot} boot"))?;
            vm.report()?.expect_value(key::CONFIG, "fw_cfg")?;
            // What the first boot wrote into the encrypted volume, the second reads.
            ensure!(said.iter().any(|line| line == "sealed") == (boot == "second"), "{boot} boot: {said:#?}");
            ensure!(
                !said.iter().any(|line| line == "config.ign" || line == "ignition.json"),
                "secrets stay: {said:#?}"
            );
            let console = vm.console().clone();
            vm.power_off()?;
            ensure!(
                console.find("Failed unmounting").is_none(),
                "a file system is in use at the end of the {boot} boot"
            );
        }
        let asked = server.requests();
        ensure!(asked.len() == 1, "contents were fetched {} times: {asked:?}", asked.len());

        // Another config: /etc begins anew, /var keeps what others wrote.
        s.file(
            "config.ign",
            &Config::new().file("/etc/other", 0o644, b"").probe("ls /etc/other /etc/greeting /home/op").to_bytes(),
        )?;
        let vm = s.start(&machine)?;
        let said = vm.probe().context("with another config")?;
        ensure!(said.iter().any(|line| line == "/etc/other"), "{said:#?}");
        ensure!(said.iter().any(|line| line.contains("/etc/greeting") && line.contains("No such file")), "{said:#?}");
        vm.cut_power()
    });
}
