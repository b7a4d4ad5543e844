//! A virtual machine, described by types, and QEMU's arguments for it.
//!
//! Options: <https://www.qemu.org/docs/master/system/invocation.html>. Nothing here touches the host:
//! [`Machine::args`] is a function of its inputs alone. Machines are of type q35 without any default device. Disks
//! ignore flushes to the host's disk: a killed QEMU loses nothing that reached the host's page cache, so power cuts of
//! the guest stay true, and a busy host's slow disk does not make tests slow.
//!
//! Left out: graphics, sound, direct kernel boot, migration.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::accel::Accel;
pub use crate::cards::{Card, Network};
use crate::firmware::Flash;

/// Longest serial number of a virtio disk, in bytes (`VIRTIO_BLK_ID_BYTES`).
const VIRTIO_SERIAL: usize = 20;

/// Drives that the chipset's own SATA controller takes.
const SATA_PORTS: usize = 6;

/// What firmware starts the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// OVMF: the code, and this machine's own copy of the variables.
    Uefi {
        /// Read-only flash.
        code: Flash,
        /// Writable flash.
        variables: Flash,
    },
    /// SeaBIOS, which QEMU brings along.
    Bios,
}

/// How a disk is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// `/dev/vd*`.
    VirtioBlk,
    /// `/dev/sd*` on a virtio controller.
    VirtioScsi,
    /// `/dev/nvme*n1`.
    Nvme,
    /// `/dev/sd*`, a removable USB stick.
    Usb,
    /// `/dev/sd*` on a SATA controller.
    Ahci,
    /// `/dev/sr*`, a disc in a SATA drive, which only reads.
    Disc,
}

impl Bus {
    /// Drives of the SATA controller share its ports.
    fn is_sata(self) -> bool {
        matches!(self, Bus::Ahci | Bus::Disc)
    }
}

/// The format of a disk's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The disk's bytes.
    Raw,
    /// QEMU's own format; an overlay is one with a backing file.
    Qcow2,
}

/// A disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    file: PathBuf,
    format: Format,
    bus: Bus,
    serial: Option<String>,
    wwn: Option<u64>,
    read_only: bool,
    rotational: bool,
    block_size: Option<(u32, u32)>,
    unreadable: Option<u64>,
    boot: bool,
}

impl Disk {
    /// A writable disk, virtio, of the device's own block size.
    pub fn new(file: impl Into<PathBuf>, format: Format) -> Disk {
        Disk {
            file: file.into(),
            format,
            bus: Bus::VirtioBlk,
            serial: None,
            wwn: None,
            read_only: false,
            rotational: false,
            block_size: None,
            unreadable: None,
            boot: false,
        }
    }

    /// Connects it otherwise.
    pub fn bus(mut self, bus: Bus) -> Disk {
        self.bus = bus;
        self
    }

    /// Gives it a serial number.
    pub fn serial(mut self, serial: impl Into<String>) -> Disk {
        self.serial = Some(serial.into());
        self
    }

    /// Gives it a world wide name, or an NVMe namespace its EUI-64.
    pub fn wwn(mut self, wwn: u64) -> Disk {
        self.wwn = Some(wwn);
        self
    }

    /// The guest cannot write to it.
    pub fn read_only(mut self) -> Disk {
        self.read_only = true;
        self
    }

    /// It says that it turns. Only SCSI and SATA disks can say so.
    pub fn rotational(mut self) -> Disk {
        self.rotational = true;
        self
    }

    /// Logical and physical block size in bytes; 4096 and 4096 is a 4Kn disk.
    pub fn block_size(mut self, logical: u32, physical: u32) -> Disk {
        self.block_size = Some((logical, physical));
        self
    }

    /// Reading the sector of 512 bytes that holds the byte at `offset` fails with an I/O error, each time.
    pub fn unreadable_at(mut self, offset: u64) -> Disk {
        self.unreadable = Some(offset / 512);
        self
    }

    /// Firmware tries it first.
    pub fn boot(mut self) -> Disk {
        self.boot = true;
        self
    }

    /// The file on the host.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The node of the block layer: the format, over the file.
    fn blockdev(&self, node: &str) -> OsString {
        let driver = match self.format {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        };
        // JSON carries any name of a file but one that is not UTF-8, which `validate` refuses.
        let file = self.file.to_str().expect("validated");
        let cache = json!({ "no-flush": true });
        let protocol = json!({ "cache": cache, "driver": "file", "filename": file });
        let mut tree = json!({
            "cache": cache,
            "discard": "unmap",
            "driver": driver,
            "file": protocol,
            "read-only": self.read_only,
        });
        if let Some(sector) = self.unreadable {
            // 5 is EIO.
            let rule = json!({ "errno": 5, "event": "none", "iotype": "read", "sector": sector });
            tree = json!({ "driver": "blkdebug", "image": tree, "inject-error": [rule] });
        }
        tree["node-name"] = json!(node);
        tree.to_string().into()
    }

    /// The devices, for the disk that is `index`-th of its machine; `port` is its port, if it is a SATA one.
    fn devices(&self, node: &str, index: usize, port: usize) -> Vec<String> {
        let id = format!("disk{index}");
        let mut options = Vec::new();
        let serial = self.serial.as_ref().map(|serial| format!("serial={serial}"));
        options.extend(
            self.block_size
                .map(|(logical, physical)| format!("logical_block_size={logical},physical_block_size={physical}")),
        );
        if self.boot {
            options.push("bootindex=0".to_owned());
        }
        let wwn = self.wwn.map(|wwn| format!("wwn={wwn:#018x}"));
        let rotation = format!("rotation_rate={}", if self.rotational { 7200 } else { 1 });
        let mut devices = Vec::new();
        let front = match self.bus {
            Bus::VirtioBlk => {
                options.extend(serial);
                format!("virtio-blk-pci,id={id},drive={node}")
            }
            Bus::VirtioScsi => {
                options.extend([serial, wwn, Some(rotation)].into_iter().flatten());
                format!("scsi-hd,id={id},bus=scsi.0,drive={node}")
            }
            Bus::Nvme => {
                // A controller without a serial number does not start.
                let serial = self.serial.clone().unwrap_or_else(|| id.clone());
                devices.push(format!("nvme,id={id}-controller,serial={serial}"));
                options.extend(self.wwn.map(|wwn| format!("eui64={wwn:#018x}")));
                format!("nvme-ns,id={id},bus={id}-controller,drive={node}")
            }
            Bus::Usb => {
                options.extend(serial);
                format!("usb-storage,id={id},bus=usb.0,drive={node},removable=on")
            }
            Bus::Ahci => {
                options.extend([serial, wwn, Some(rotation)].into_iter().flatten());
                format!("ide-hd,id={id},bus=ide.{port},drive={node}")
            }
            Bus::Disc => {
                options.extend(serial);
                format!("ide-cd,id={id},bus=ide.{port},drive={node}")
            }
        };
        options.insert(0, front);
        devices.push(options.join(","));
        devices
    }

    fn validate(&self) -> Result<()> {
        let file = self.file.display();
        ensure!(self.file.to_str().is_some(), "{file} is not a UTF-8 name");
        if let Some(serial) = &self.serial {
            let plain = serial.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            ensure!(plain && !serial.is_empty(), "{serial:?} cannot be a serial number");
            ensure!(serial.len() <= VIRTIO_SERIAL, "{serial} is longer than {VIRTIO_SERIAL} bytes");
        }
        match self.bus {
            Bus::VirtioBlk | Bus::Usb | Bus::Disc => {
                ensure!(self.wwn.is_none(), "{file}: {:?} disks have no WWN", self.bus)
            }
            Bus::Ahci => ensure!(!self.read_only, "{file}: SATA disks cannot be read-only"),
            Bus::VirtioScsi | Bus::Nvme => {}
        }
        if self.rotational {
            ensure!(matches!(self.bus, Bus::VirtioScsi | Bus::Ahci), "{file}: {:?} disks do not turn", self.bus);
        }
        if let Some((logical, physical)) = self.block_size {
            let valid = |size: u32| size.is_power_of_two() && (512..=32768).contains(&size);
            ensure!(valid(logical) && valid(physical) && logical <= physical, "{file}: blocks of {logical}/{physical}");
        }
        Ok(())
    }
}

/// The guest's clock at power-on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clock {
    /// The host's, in UTC.
    Host,
    /// A date and time, `2006-06-17T16:01:21`.
    At(String),
}

/// What the guest gets under a name of QEMU's firmware configuration device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FwCfg {
    /// Such as `opt/com.coreos/config`.
    pub name: String,
    /// The file on the host with the content.
    pub file: PathBuf,
}

/// A machine that can be switched on any number of times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    name: String,
    memory_mib: u32,
    processors: u8,
    firmware: FirmwareKind,
    disks: Vec<Disk>,
    network: Network,
    fw_cfg: Vec<FwCfg>,
    smbios: Vec<(u8, String)>,
    clock: Clock,
    reboots: bool,
}

/// Which firmware the machine asks for; starting it finds the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirmwareKind {
    /// OVMF.
    Uefi,
    /// SeaBIOS.
    Bios,
}

/// What of the host a machine is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host<'a> {
    /// What runs the guest's instructions.
    pub accel: Accel,
    /// Firmware files.
    pub boot: Boot,
    /// The listening socket that becomes the serial console.
    pub console: &'a Path,
    /// The listening socket that QEMU's monitor connects to.
    pub qmp: &'a Path,
}

impl Machine {
    /// A UEFI machine with one processor, 2 GiB of memory, a network card and no disk. `name` names its files.
    ///
    /// One of fifty machines with two translated processors dies in its kernel, with QEMU 7.2 at least: stalls of RCU, traps
    /// in code that is being patched, a double fault after cmpxchg16b. With one, none has.
    pub fn new(name: impl Into<String>) -> Machine {
        Machine {
            name: name.into(),
            memory_mib: 2048,
            processors: 1,
            firmware: FirmwareKind::Uefi,
            disks: Vec::new(),
            network: Network::User { forwards: Vec::new() },
            fw_cfg: Vec::new(),
            smbios: Vec::new(),
            clock: Clock::Host,
            reboots: false,
        }
    }

    /// Boots by BIOS.
    pub fn bios(mut self) -> Machine {
        self.firmware = FirmwareKind::Bios;
        self
    }

    /// Memory in MiB.
    pub fn memory_mib(mut self, memory_mib: u32) -> Machine {
        self.memory_mib = memory_mib;
        self
    }

    /// Number of processors.
    pub fn processors(mut self, processors: u8) -> Machine {
        self.processors = processors;
        self
    }

    /// Adds a disk. The order is that of the buses' ports, and thereby of the names in the guest.
    pub fn disk(mut self, disk: Disk) -> Machine {
        self.disks.push(disk);
        self
    }

    /// Replaces the network.
    pub fn network(mut self, network: Network) -> Machine {
        self.network = network;
        self
    }

    /// Adds a file to QEMU's firmware configuration device.
    pub fn fw_cfg(mut self, name: impl Into<String>, file: impl Into<PathBuf>) -> Machine {
        self.fw_cfg.push(FwCfg { name: name.into(), file: file.into() });
        self
    }

    /// The file that the guest gets under a name of QEMU's firmware configuration device.
    pub fn fw_cfg_file(&self, name: &str) -> Option<&Path> {
        self.fw_cfg.iter().find(|entry| entry.name == name).map(|entry| &*entry.file)
    }

    /// Adds fields to an SMBIOS structure, such as `(1, "manufacturer=Hetzner,product=vServer")`.
    pub fn smbios(mut self, kind: u8, fields: impl Into<String>) -> Machine {
        self.smbios.push((kind, fields.into()));
        self
    }

    /// Sets the clock.
    pub fn clock(mut self, clock: Clock) -> Machine {
        self.clock = clock;
        self
    }

    /// A reboot starts the machine again; without this it switches it off.
    pub fn reboots(mut self) -> Machine {
        self.reboots = true;
        self
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The firmware that the machine asks for.
    pub fn firmware(&self) -> FirmwareKind {
        self.firmware
    }

    /// The disks, in order.
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// QEMU's arguments, without the program. An error if QEMU has no machine like this.
    pub fn args(&self, host: &Host<'_>) -> Result<Vec<OsString>> {
        self.validate()?;
        let mut args = Args::default();
        args.option("-name", &self.name);
        args.option("-machine", "q35,usb=off,vmport=off,hpet=off");
        for flag in ["-no-user-config", "-nodefaults"] {
            args.0.push(flag.into());
        }
        args.option("-display", "none");
        args.0.extend(host.accel.args().map(OsString::from));
        args.option("-smp", self.processors.to_string());
        args.option("-m", format!("{}M", self.memory_mib));
        args.option(
            "-rtc",
            match &self.clock {
                Clock::Host => "base=utc".to_owned(),
                Clock::At(time) => format!("base={time}"),
            },
        );
        if !self.reboots {
            args.option("-action", "reboot=shutdown");
        }
        if let Boot::Uefi { code, variables } = &host.boot {
            args.option("-blockdev", code.blockdev("code", true)?);
            args.option("-blockdev", variables.blockdev("variables", false)?);
            args.option("-machine", "pflash0=code,pflash1=variables");
        }
        self.channels(host, &mut args);
        self.disk_args(&mut args);
        for (index, card) in self.network.cards().iter().enumerate() {
            for (option, value) in card.args(index) {
                args.option(option, value);
            }
        }
        args.option("-object", "rng-random,id=rng0,filename=/dev/urandom");
        args.option("-device", "virtio-rng-pci,rng=rng0");
        for FwCfg { name, file } in &self.fw_cfg {
            args.option("-fw_cfg", join(&format!("name={name},file="), file));
        }
        if host.accel == Accel::Tcg {
            // Emulated timers lag on a busy host, and the kernel takes that for broken hardware.
            args.option("-smbios", "type=11,value=io.systemd.stub.kernel-cmdline-extra=no_timer_check".to_owned());
        }
        for (kind, fields) in &self.smbios {
            args.option("-smbios", format!("type={kind},{fields}"));
        }
        Ok(args.0)
    }

    fn channels(&self, host: &Host<'_>, args: &mut Args) {
        args.option("-chardev", join("socket,id=console,path=", host.console));
        args.option("-serial", "chardev:console");
        args.option("-chardev", join("socket,id=qmp,path=", host.qmp));
        args.option("-mon", "chardev=qmp,mode=control");
    }

    fn disk_args(&self, args: &mut Args) {
        if self.disks.iter().any(|disk| disk.bus == Bus::VirtioScsi) {
            args.option("-device", "virtio-scsi-pci,id=scsi");
        }
        if self.disks.iter().any(|disk| disk.bus == Bus::Usb) {
            args.option("-device", "qemu-xhci,id=usb");
        }
        for (index, disk) in self.disks.iter().enumerate() {
            let node = format!("node{index}");
            let port = self.disks[..index].iter().filter(|earlier| earlier.bus.is_sata()).count();
            args.option("-blockdev", disk.blockdev(&node));
            for device in disk.devices(&node, index, port) {
                args.option("-device", device);
            }
        }
    }

    fn validate(&self) -> Result<()> {
        let name = &self.name;
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        ensure!(plain && !name.is_empty(), "{name:?} cannot name a machine");
        ensure!(self.processors > 0 && self.memory_mib >= 128, "{name} has too little of processors or memory");
        ensure!(self.disks.iter().filter(|disk| disk.boot).count() <= 1, "{name} has two disks to boot from");
        let sata = self.disks.iter().filter(|disk| disk.bus.is_sata()).count();
        ensure!(sata <= SATA_PORTS, "{name} has {sata} SATA disks, and {SATA_PORTS} ports for them");
        self.disks.iter().try_for_each(Disk::validate)
    }
}

#[derive(Debug, Default)]
struct Args(Vec<OsString>);

impl Args {
    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.extend([name.into(), value.into()]);
    }
}

/// An option's value that ends in a path, in which QEMU wants commas doubled.
pub(crate) fn join(option: &str, path: &Path) -> OsString {
    let mut value = OsString::from(option);
    for (number, part) in split(path.as_os_str()).into_iter().enumerate() {
        if number > 0 {
            value.push(",,");
        }
        value.push(part);
    }
    value
}

fn split(path: &OsStr) -> Vec<&OsStr> {
    use std::os::unix::ffi::OsStrExt;
    path.as_bytes().split(|byte| *byte == b',').map(OsStr::from_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(boot: Boot) -> Host<'static> {
        Host { accel: Accel::Tcg, boot, console: Path::new("/t/console"), qmp: Path::new("/t/a,b/qmp") }
    }

    fn lines(machine: &Machine, boot: Boot) -> String {
        let args: Vec<String> =
            machine.args(&host(boot)).unwrap().into_iter().map(|arg| arg.into_string().unwrap()).collect();
        let mut text = args.join(" ");
        text.push('\n');
        text.replace(" -", "\n-")
    }

    /// Every kind of device once.
    fn everything() -> Machine {
        Machine::new("all")
            .processors(2)
            .disk(Disk::new("/t/image.raw", Format::Raw).boot())
            .disk(
                Disk::new("/t/1.qcow2", Format::Qcow2)
                    .bus(Bus::VirtioScsi)
                    .serial("NZ-1")
                    .wwn(0x5000_c500_0000_0001)
                    .rotational(),
            )
            .disk(Disk::new("/t/2.qcow2", Format::Qcow2).bus(Bus::Nvme).serial("NZ-2").wwn(2).block_size(4096, 4096))
            .disk(Disk::new("/t/3.raw", Format::Raw).bus(Bus::Usb).read_only())
            .disk(Disk::new("/t/4.raw", Format::Raw).bus(Bus::Ahci).serial("NZ-4"))
            .disk(Disk::new("/t/5.iso", Format::Raw).bus(Bus::Disc).read_only())
            .network(Network::User { forwards: vec![(40022, 22), (40443, 443)] })
            .fw_cfg("opt/com.coreos/config", "/t/a,b.ign")
            .smbios(1, "manufacturer=Hetzner")
            .clock(Clock::At("1970-01-01T00:00:00".into()))
    }

    #[test]
    fn arguments_of_everything() {
        let flash = |file: &str| Flash { file: file.into(), format: Format::Raw };
        let boot = Boot::Uefi { code: flash("/f/code.fd"), variables: flash("/t/vars.fd") };
        assert_eq!(lines(&everything(), boot), include_str!("../golden/everything.args"));
    }

    #[test]
    fn arguments_of_the_least() {
        let machine = Machine::new("least").bios().network(Network::None).memory_mib(128).reboots();
        assert_eq!(lines(&machine, Boot::Bios), include_str!("../golden/least.args"));
    }

    #[test]
    fn machines_that_cannot_be() {
        let disk = || Disk::new("/t/x", Format::Raw);
        let sata = (0..7).fold(Machine::new("sata"), |machine, _| machine.disk(disk().bus(Bus::Ahci)));
        let cases = [
            (Machine::new("a,b"), "cannot name"),
            (Machine::new(""), "cannot name"),
            (Machine::new("a").processors(0), "too little"),
            (Machine::new("a").disk(disk().boot()).disk(disk().boot()), "two disks to boot"),
            (Machine::new("a").disk(disk().serial("a,b")), "cannot be a serial"),
            (Machine::new("a").disk(disk().serial("x".repeat(21))), "longer than 20"),
            (Machine::new("a").disk(disk().wwn(1)), "no WWN"),
            (Machine::new("a").disk(disk().bus(Bus::Ahci).read_only()), "cannot be read-only"),
            (Machine::new("a").disk(disk().rotational()), "do not turn"),
            (Machine::new("a").disk(disk().block_size(512, 500)), "blocks of 512/500"),
            (Machine::new("a").disk(disk().block_size(4096, 512)), "blocks of 4096/512"),
            (sata, "7 SATA disks"),
        ];
        for (machine, expected) in cases {
            let error = machine.args(&host(Boot::Bios)).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}
