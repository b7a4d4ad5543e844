//! Kernel modules: which ones a device or a name asks for, in what order, and loading them.
//!
//! The index is read from the text files that depmod writes beside the modules
//! ([modules.dep(5)](https://man7.org/linux/man-pages/man5/modules.dep.5.html)): `modules.dep`, `modules.alias`,
//! `modules.softdep` and `modules.builtin`. The initrd holds a subset of the modules that these files name; one that is
//! not there is passed over. Parameters come from the kernel command line. Left out: `modprobe.d`, which the
//! initrd does not have; blacklists are the kernel's own `module_blacklist=`.
//!
//! For devices only drivers are loaded, and of these only what may bring a disk into view, the likely and quick ones
//! first: see [`Urgency`]. All else that a device asks for (network, processor features) is udev's after the switch.
//! Loading is synchronous: when the kernel says that a driver is loaded, the disks of its controllers are there, but for
//! NVMe and those behind USB and other hot-plug buses.
//!
//! The kernel itself asks for modules by running `/sbin/modprobe`; the first stage answers under that name too.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::CString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::io::Errno;

use super::modalias;
use crate::cmdline::Cmdline;

/// `MODULE_INIT_COMPRESSED_FILE`: the kernel unpacks the module itself.
const COMPRESSED: i32 = 4;

/// The module files of one kernel, as depmod indexed them.
#[derive(Debug, Default)]
pub(crate) struct ModuleIndex {
    /// Where the modules lie.
    directory: PathBuf,
    /// By module name: its path and the paths that it depends on, relative to the kernel's module directory.
    files: BTreeMap<String, (String, Vec<String>)>,
    /// Patterns by bus, each with its module.
    by_bus: HashMap<String, Vec<(String, String)>>,
    /// Patterns without a bus in clear.
    others: Vec<(String, String)>,
    /// By module name: what is to be loaded before and after it where it is there.
    soft: BTreeMap<String, (Vec<String>, Vec<String>)>,
    /// Names of what is compiled into the kernel.
    builtin: BTreeSet<String>,
}

impl ModuleIndex {
    /// Builds the index from the texts of depmod's files. Lines that are none of these forms are passed over.
    pub(crate) fn parse(dep: &str, alias: &str, softdep: &str, builtin: &str) -> Self {
        let mut index = Self::default();
        for line in dep.lines() {
            if let Some((path, needs)) = line.split_once(':') {
                let needs = needs.split_whitespace().map(str::to_owned).collect();
                index.files.insert(name_of(path), (path.to_owned(), needs));
            }
        }
        for line in alias.lines() {
            let mut words = line.split_whitespace();
            if let (Some("alias"), Some(pattern), Some(module)) = (words.next(), words.next(), words.next()) {
                let (pattern, module) = (modalias::normalize(pattern), modalias::normalize(module));
                match modalias::bus(&pattern).map(str::to_owned) {
                    Some(bus) => index.by_bus.entry(bus).or_default().push((pattern, module)),
                    None => index.others.push((pattern, module)),
                }
            }
        }
        for line in softdep.lines() {
            index.add_soft_dependency(line);
        }
        index.builtin = builtin.lines().map(|path| name_of(path.trim())).collect();
        index
    }

    /// Reads the index from a kernel's module directory. A file that is not there counts as empty.
    pub(crate) fn read(directory: &Path) -> Self {
        let text = |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_default();
        let (dep, alias) = (text("modules.dep"), text("modules.alias"));
        let index = Self::parse(&dep, &alias, &text("modules.softdep"), &text("modules.builtin"));
        Self { directory: directory.to_owned(), ..index }
    }

    /// The modules that a name, an alias or a device's modalias stands for, in the index's order.
    pub(crate) fn resolve(&self, wanted: &str) -> Vec<String> {
        let wanted = modalias::normalize(wanted);
        if self.files.contains_key(&wanted) {
            return vec![wanted];
        }
        let same_bus = modalias::bus(&wanted).and_then(|bus| self.by_bus.get(bus)).into_iter().flatten();
        let mut found: Vec<String> = Vec::new();
        for (pattern, module) in same_bus.chain(&self.others) {
            if !found.contains(module) && modalias::matches(pattern, &wanted) {
                found.push(module.clone());
            }
        }
        found
    }

    /// Whether the kernel has it compiled in.
    pub(crate) fn is_builtin(&self, module: &str) -> bool {
        self.builtin.contains(&modalias::normalize(module))
    }

    /// The modules to load for `module`, dependencies first, itself among them, each once.
    pub(crate) fn load_order(&self, module: &str) -> Vec<String> {
        let mut order = Vec::new();
        self.visit(module, &mut HashSet::new(), &mut order);
        order
    }

    /// The path of a module's file, relative to the module directory.
    fn path(&self, module: &str) -> Option<&str> {
        self.files.get(module).map(|(path, _)| path.as_str())
    }

    /// Depth first. `seen` also ends circles, which soft dependencies may make.
    fn visit(&self, module: &str, seen: &mut HashSet<String>, order: &mut Vec<String>) {
        let Some((_, needs)) = self.files.get(module) else { return };
        if !seen.insert(module.to_owned()) {
            return;
        }
        let (before, after) = self.soft.get(module).cloned().unwrap_or_default();
        for soft in before.iter().flat_map(|name| self.resolve(name)) {
            self.visit(&soft, seen, order);
        }
        // depmod lists the nearest dependency first, so the last one is loaded first.
        for need in needs.iter().rev() {
            self.visit(&name_of(need), seen, order);
        }
        order.push(module.to_owned());
        for soft in after.iter().flat_map(|name| self.resolve(name)) {
            self.visit(&soft, seen, order);
        }
    }

    /// Parses `softdep MODULE pre: A B post: C`.
    fn add_soft_dependency(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        if words.next() != Some("softdep") {
            return;
        }
        let Some(module) = words.next() else { return };
        let (before, after) = self.soft.entry(modalias::normalize(module)).or_default();
        let mut list = None;
        for word in words {
            match (word, list) {
                ("pre:", _) => list = Some(true),
                ("post:", _) => list = Some(false),
                (name, Some(true)) => before.push(name.to_owned()),
                (name, Some(false)) => after.push(name.to_owned()),
                (_, None) => {}
            }
        }
    }
}

/// How soon a device's module is to be loaded while the own disk is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// Virtual disks, NVMe, and the disk drivers on top of a host that is there already: they answer at once.
    First,
    /// Other hosts. Those of SATA wait for ports that may have nothing attached, long after all others are done.
    Then,
}

impl Urgency {
    /// Of a module at a path below the kernel's module directory. `None`: it brings no disk into view, and no network
    /// where that is wanted.
    fn of(path: &str, network: bool) -> Option<Self> {
        const FIRST: [&str; 10] = [
            "virtio/",
            "block/",
            "nvme/",
            "mmc/core/",
            "hv/",
            "xen/",
            "pci/",
            "scsi/sd_mod.",
            "scsi/virtio_scsi.",
            "scsi/hv_storvsc.",
        ];
        let driver = path.strip_prefix("kernel/drivers/")?;
        if driver.starts_with("net/") && !network || driver.starts_with("firmware/") {
            return None;
        }
        Some(if FIRST.iter().any(|prefix| driver.starts_with(prefix)) { Self::First } else { Self::Then })
    }
}

/// Loads modules, each at most once.
pub(crate) struct Loader<'a> {
    index: &'a ModuleIndex,
    cmdline: &'a Cmdline,
    /// Modules that were loaded, or tried.
    done: HashSet<String>,
    /// Modaliases that were looked up.
    known: HashSet<String>,
    /// Modules that devices ask for and that are not loaded yet.
    asked: BTreeSet<(Urgency, String)>,
    /// Whether drivers of network devices are wanted too.
    network: bool,
    /// What was loaded, in order, and what went wrong, as text for the log.
    log: Vec<String>,
}

impl<'a> Loader<'a> {
    /// A loader of modules in this index. Several may work at once: the kernel lets the second one that comes with a
    /// module wait, and says that it is there.
    pub(crate) fn new(index: &'a ModuleIndex, cmdline: &'a Cmdline) -> Self {
        Self {
            index,
            cmdline,
            done: HashSet::new(),
            known: HashSet::new(),
            asked: BTreeSet::new(),
            network: false,
            log: Vec::new(),
        }
    }

    /// A loader that loads the drivers of network devices too.
    pub(crate) fn with_network(index: &'a ModuleIndex, cmdline: &'a Cmdline) -> Self {
        Self { network: true, ..Self::new(index, cmdline) }
    }

    /// Loads the drivers of everything that `sys` shows, until nothing new comes into view. Gives the number of
    /// modaliases that were new.
    pub(crate) fn load_all(&mut self, sys: &Path) -> usize {
        let mut new = self.look_for_devices(sys);
        while self.load_next() {
            new += self.look_for_devices(sys);
        }
        new
    }

    /// Loads what a name or alias stands for, with dependencies. Whether anything stands for it, or the kernel has
    /// it compiled in.
    pub(crate) fn load(&mut self, wanted: &str) -> bool {
        let modules = self.index.resolve(wanted);
        for module in &modules {
            for step in self.index.load_order(module) {
                self.insert(&step);
            }
        }
        !modules.is_empty() || self.index.is_builtin(wanted)
    }

    /// Looks at every device that `sys` (usually `/sys`) shows and that was not seen before, and notes the drivers that
    /// they ask for. A bus driver brings new devices, so this is repeated after each that is loaded. Gives the number of
    /// modaliases that were new.
    pub(crate) fn look_for_devices(&mut self, sys: &Path) -> usize {
        let new: Vec<String> = modaliases(sys).into_iter().filter(|alias| self.known.insert(alias.clone())).collect();
        for module in new.iter().flat_map(|alias| self.index.resolve(alias)) {
            let urgency = self.index.path(&module).and_then(|path| Urgency::of(path, self.network));
            if let Some(urgency) = urgency.filter(|_| !self.done.contains(&module)) {
                self.asked.insert((urgency, module));
            }
        }
        new.len()
    }

    /// Loads the most urgent driver that a device asks for, with dependencies. Whether there was one.
    pub(crate) fn load_next(&mut self) -> bool {
        let Some((_, module)) = self.asked.pop_first() else { return false };
        self.load(&module);
        true
    }

    /// What happened since the last call, one line each.
    pub(crate) fn take_log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    /// Loads one module whose dependencies are loaded. A failure is logged: the device may not matter, and when it
    /// does the summary names what is missing.
    fn insert(&mut self, module: &str) {
        if !self.done.insert(module.to_owned()) {
            return;
        }
        let Some(path) = self.index.path(module) else { return };
        // Another loader had it: the kernel would read the whole file before it says so.
        if fs::read_to_string(format!("/sys/module/{module}/initstate")).is_ok_and(|state| state.trim() == "live") {
            return;
        }
        let Ok(file) = File::open(self.index.directory.join(path)) else { return };
        let flags = if path.ends_with(".ko") { 0 } else { COMPRESSED };
        let Ok(parameters) = CString::new(self.cmdline.module_parameters(module)) else { return };
        let begin = Instant::now();
        match rustix::system::finit_module(&file, &parameters, flags) {
            Ok(()) => self.log.push(format!("module {module} loaded in {} ms", begin.elapsed().as_millis())),
            Err(Errno::EXIST) => {}
            // Drivers of hardware that is not there (CPU features, firmware tables) answer so.
            Err(Errno::NODEV) => {}
            Err(error) => self.log.push(format!("module {module}: {error}")),
        }
    }
}

/// The modaliases of all devices on all buses, sorted.
fn modaliases(sys: &Path) -> BTreeSet<String> {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    entries(&sys.join("bus"))
        .flat_map(|bus| entries(&bus.join("devices")).collect::<Vec<_>>())
        .filter_map(|device| fs::read_to_string(device.join("modalias")).ok())
        .map(|text| text.trim().to_owned())
        .filter(|alias| !alias.is_empty())
        .collect()
}

/// The module name of a file: without directory and extensions, `-` as `_`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let stem = file.split_once(".ko").map_or(file, |(stem, _)| stem);
    modalias::normalize(stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_ring.ko:
kernel/fs/fat/vfat.ko: kernel/fs/fat/fat.ko
kernel/fs/fat/fat.ko:
kernel/fs/nls/nls_cp437.ko.xz:
kernel/lib/a.ko:
kernel/lib/b.ko:
";
    const ALIAS: &str = "\
# Aliases extracted from modules themselves.
alias virtio:d00000002v* virtio_blk
alias fs-vfat vfat
alias acpi*:QEMU0002:* a
alias virtio:d0000000[12]v* b
";
    const SOFTDEP: &str = "softdep vfat pre: nls-cp437 missing post: a\nsoftdep a pre: b\nsoftdep b pre: a\n";

    fn index() -> ModuleIndex {
        ModuleIndex::parse(DEP, ALIAS, SOFTDEP, "kernel/fs/ext4/ext4.ko\nkernel/crypto/crc32c-intel.ko\n")
    }

    #[test]
    fn names_aliases_and_devices_resolve() {
        for (wanted, expected) in [
            ("vfat", vec!["vfat"]),
            ("fs-vfat", vec!["vfat"]),
            ("fs_vfat", vec!["vfat"]),
            ("nls-cp437", vec!["nls_cp437"]),
            ("virtio:d00000002v00001AF4", vec!["virtio_blk", "b"]),
            ("virtio:d00000009v00001AF4", vec![]),
            ("acpi:QEMU0002:", vec!["a"]),
            ("ext4", vec![]),
        ] {
            assert_eq!(index().resolve(wanted), expected, "{wanted}");
        }
        assert!(index().is_builtin("ext4") && index().is_builtin("crc32c_intel") && !index().is_builtin("vfat"));
    }

    #[test]
    fn dependencies_come_first_and_circles_end() {
        for (module, expected) in [
            ("virtio_blk", vec!["virtio_ring", "virtio", "virtio_blk"]),
            ("vfat", vec!["nls_cp437", "fat", "vfat", "b", "a"]),
            ("a", vec!["b", "a"]),
            ("nothing", vec![]),
        ] {
            assert_eq!(index().load_order(module), expected, "{module}");
        }
    }

    #[test]
    fn drivers_that_bring_disks_are_told_from_others() {
        for (path, expected) in [
            ("kernel/drivers/virtio/virtio_pci.ko", Some(Urgency::First)),
            ("kernel/drivers/block/virtio_blk.ko", Some(Urgency::First)),
            ("kernel/drivers/nvme/host/nvme.ko", Some(Urgency::First)),
            ("kernel/drivers/pci/controller/vmd.ko", Some(Urgency::First)),
            ("kernel/drivers/scsi/sd_mod.ko.xz", Some(Urgency::First)),
            ("kernel/drivers/scsi/mpt3sas/mpt3sas.ko", Some(Urgency::Then)),
            ("kernel/drivers/ata/ahci.ko", Some(Urgency::Then)),
            ("kernel/drivers/usb/host/xhci-pci.ko", Some(Urgency::Then)),
            ("kernel/drivers/net/virtio_net.ko", None),
            ("kernel/drivers/firmware/qemu_fw_cfg.ko", None),
            ("kernel/arch/x86/crypto/aesni-intel.ko", None),
            ("kernel/fs/ext4/ext4.ko", None),
        ] {
            assert_eq!(Urgency::of(path, false), expected, "{path}");
        }
    }

    #[test]
    fn devices_are_looked_at_once_and_their_drivers_loaded_by_urgency() {
        let sys = tempfile::tempdir().expect("tempdir");
        for (device, alias) in [
            ("bus/pci/devices/0", "pci:ahci\n"),
            ("bus/pci/devices/1", "pci:ahci\n"),
            ("bus/pci/devices/2", "pci:nvme"),
            ("bus/pci/devices/3", "pci:net"),
            ("bus/acpi/devices/0", "acpi:nothing:"),
        ] {
            fs::create_dir_all(sys.path().join(device)).expect("directory");
            fs::write(sys.path().join(device).join("modalias"), alias).expect("file");
        }
        let found: Vec<_> = modaliases(sys.path()).into_iter().collect();
        assert_eq!(found, ["acpi:nothing:", "pci:ahci", "pci:net", "pci:nvme"]);
        let cmdline = Cmdline::parse("").expect("empty");
        // None of these files is there, so that nothing is loaded for real.
        let index = ModuleIndex::parse(
            "kernel/drivers/ata/ahci.ko:\nkernel/drivers/nvme/host/nvme.ko:\nkernel/drivers/net/net.ko:\n",
            "alias pci:ahci* ahci\nalias pci:n*e nvme\nalias pci:net net\n",
            "",
            "",
        );
        let mut loader = Loader::new(&index, &cmdline);
        assert_eq!(loader.look_for_devices(sys.path()), 4);
        let modules: Vec<_> = loader.asked.iter().map(|(_, module)| module.as_str()).collect();
        assert_eq!(modules, ["nvme", "ahci"]);
        assert!(loader.load_next() && loader.done.contains("nvme") && !loader.done.contains("ahci"));
        assert_eq!(loader.look_for_devices(sys.path()), 0, "nothing new");
        assert!(loader.load_next() && loader.done.contains("ahci") && !loader.load_next());
    }
}
