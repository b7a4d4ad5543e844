//! The lines of the report, in fixed forms that programs can look for. Pure.
//!
//! Each line begins with `nodezero: ` and a word for its kind, followed by `key=value` pairs; a value that is unknown
//! is `-`, one with blanks or quotes is quoted. The last line of a node that came up is `nodezero: ready`.

use crate::boot::{Boot, ConfigOrigin};
use crate::disks::{Disk, human_size};
use crate::sys::InterfaceAddress;

/// Said by a node without a configuration.
pub(crate) const MAINTENANCE: &str =
    "nodezero: maintenance mode: no configuration found; nothing was changed on any data disk";
/// Said by a node that goes on as it was configured before.
const KEPT: &str =
    "nodezero: configuration kept: no source has one; /etc/nodezero/node.json of an earlier start counts";
/// Said last.
pub(crate) const READY: &str = "nodezero: ready";

/// The report of a boot. `node_is_known` says that a node.json is there, from this start's configuration or an
/// earlier one's.
pub(crate) fn lines(
    boot: &Boot,
    boots: u64,
    addresses: &[InterfaceAddress],
    disks: &[Disk],
    node_is_known: bool,
) -> Vec<String> {
    let mut lines = vec![summary(boot, boots, disks.len())];
    if boot.standin {
        lines.push(
            "nodezero: stand-in: this image holds a stand-in for an official component: for tests only".to_owned(),
        );
    }
    if addresses.is_empty() {
        lines.push("nodezero: address none".to_owned());
    }
    for found in addresses {
        lines.push(format!("nodezero: address {} {}/{}", found.interface, found.address, found.prefix));
    }
    for disk in disks {
        lines.push(disk_line(disk, disk.path == boot.disk.path));
        for partition in &disk.partitions {
            lines.push(format!(
                "nodezero: partition /dev/{} bytes={} label={} content={}",
                partition.name,
                partition.size,
                value(partition.label.as_deref()),
                value(partition.content.as_deref())
            ));
        }
    }
    lines.push(match &boot.config {
        ConfigOrigin::None if node_is_known => KEPT.to_owned(),
        ConfigOrigin::None => MAINTENANCE.to_owned(),
        ConfigOrigin::FwCfg { size } => format!("nodezero: configuration found: source=fw_cfg bytes={size}"),
        ConfigOrigin::Esp { size } => format!("nodezero: configuration found: source=esp bytes={size}"),
        ConfigOrigin::Fetched { url, size } => {
            format!("nodezero: configuration found: source=cmdline url={} bytes={size}", value(Some(url)))
        }
        ConfigOrigin::File { device, path, size } => {
            let file = format!("{}:/{path}", device.display());
            format!("nodezero: configuration found: source=cmdline file={} bytes={size}", value(Some(&file)))
        }
        ConfigOrigin::Drive { label, device, size } => format!(
            "nodezero: configuration found: source=drive label={} device={} bytes={size}",
            value(Some(label)),
            device.display()
        ),
        ConfigOrigin::Provider { provider, size } => {
            format!("nodezero: configuration found: source=provider provider={provider} bytes={size}")
        }
    });
    lines
}

/// The line that has the node's identity and state at once.
fn summary(boot: &Boot, boots: u64, disks: usize) -> String {
    let switched = boot.stages.last().map_or(0, |stage| stage.at_ms);
    format!(
        "nodezero: report role={} version={} root-hash={} slot={} config={} machine-id={} boot={boots} state={} disks={disks} \
         switch-root-ms={switched}",
        value(boot.role.map(nodezero_profile::Role::name)),
        value(boot.version.as_deref()),
        boot.root_hash,
        boot.slot,
        boot.config,
        boot.machine_id,
        boot.state,
    )
}

/// Everything that tells a disk from another, and what is on it.
fn disk_line(disk: &Disk, own: bool) -> String {
    let content = disk.content.as_deref().or(if disk.partitions.is_empty() { None } else { Some("partitions") });
    format!(
        "nodezero: disk {} use={} size={} bytes={} transport={} model={} serial={} wwn={} rotational={} removable={} \
         read-only={} content={} partitions={}",
        disk.path.display(),
        if own { "system" } else { "data" },
        human_size(disk.size).replace(' ', ""),
        disk.size,
        disk.transport.name(),
        value(disk.model.as_deref()),
        value(disk.serial.as_deref()),
        value(disk.wwn.as_deref()),
        yes(disk.rotational),
        yes(disk.removable),
        yes(disk.read_only),
        value(content),
        disk.partitions.len()
    )
}

fn yes(fact: bool) -> &'static str {
    if fact { "yes" } else { "no" }
}

/// A value on a line: quoted where it would not stay one word.
fn value(text: Option<&str>) -> String {
    match text {
        None | Some("") => "-".to_owned(),
        Some(text) if text.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '\\')) => {
            format!("{text:?}")
        }
        Some(text) => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::tests::example;
    use crate::disks::{Partition, Transport};

    fn disk(path: &str) -> Disk {
        Disk {
            name: path.trim_start_matches("/dev/").into(),
            path: path.into(),
            size: 18_000_207_937_536,
            sector_size: 512,
            transport: Transport::Sata,
            vendor: None,
            model: Some("WDC WUH721818ALE6L4".into()),
            serial: None,
            wwn: Some("naa.5000cca2".into()),
            rotational: true,
            removable: false,
            read_only: false,
            content: None,
            partitions: Vec::new(),
        }
    }

    #[test]
    fn the_report_has_its_fixed_forms() {
        let mut system = disk("/dev/vda");
        system.partitions = vec![Partition {
            name: "vda7".into(),
            number: 7,
            start: 0,
            size: 4096,
            label: Some("state".into()),
            content: Some("ext4".into()),
        }];
        let address =
            InterfaceAddress { interface: "eth0".into(), address: "10.0.2.15".parse().expect("valid"), prefix: 24 };
        let report = lines(&example(), 3, &[address], &[disk("/dev/sda"), system], true).join("\n");
        let hash = example().root_hash;
        assert_eq!(
            report,
            format!(
                "nodezero: report role=worker version=0.1.0 root-hash={hash} slot=a config=esp \
             machine-id=0123456789abcdef0123456789abcdef boot=3 state=created disks=2 switch-root-ms=840\n\
             nodezero: address eth0 10.0.2.15/24\n\
             nodezero: disk /dev/sda use=data size=18.0TB bytes=18000207937536 transport=sata \
             model=\"WDC WUH721818ALE6L4\" serial=- wwn=naa.5000cca2 rotational=yes removable=no read-only=no content=- \
             partitions=0\n\
             nodezero: disk /dev/vda use=system size=18.0TB bytes=18000207937536 transport=sata \
             model=\"WDC WUH721818ALE6L4\" serial=- wwn=naa.5000cca2 rotational=yes removable=no read-only=no \
             content=partitions partitions=1\n\
             nodezero: partition /dev/vda7 bytes=4096 label=state content=ext4\n\
             nodezero: configuration found: source=esp bytes=12"
            )
        );
    }

    #[test]
    fn a_node_without_anything_says_so() {
        let mut boot = example();
        (boot.role, boot.version, boot.config, boot.standin) = (None, None, ConfigOrigin::None, true);
        let report = lines(&boot, 1, &[], &[], false);
        assert!(report[0].starts_with("nodezero: report role=- version=- "), "{report:?}");
        assert!(report[1].contains("stand-in"), "{report:?}");
        assert_eq!(report[2], "nodezero: address none");
        assert_eq!(report[3], MAINTENANCE);
        assert_eq!(lines(&boot, 1, &[], &[], true)[3], KEPT);
    }

    #[test]
    fn values_stay_one_word() {
        for (text, expected) in
            [(None, "-"), (Some(""), "-"), (Some("a"), "a"), (Some("a b"), "\"a b\""), (Some("a\"b"), "\"a\\\"b\"")]
        {
            assert_eq!(value(text), expected, "{text:?}");
        }
    }
}
