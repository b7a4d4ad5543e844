//! The harness itself, with machines that need no image: a boot sector that writes one line, and bare firmware.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use qemu_tests::machine::{Format, Network};
use qemu_tests::{Bus, Disk, Machine, Scenario, guest, scenario, storage, tools};

const SOON: Duration = Duration::from_secs(60);

/// A disk of one mebibyte whose boot sector writes `line` to the first serial port and halts.
fn boot_sector(line: &str) -> Vec<u8> {
    // xor ax,ax; mov ds,ax; mov si,7c16h; mov dx,3f8h; cld
    // next: lodsb; test al,al; jz done; out dx,al; jmp next
    // done: hlt; jmp done
    let code = b"\x31\xc0\x8e\xd8\xbe\x16\x7c\xba\xf8\x03\xfc\xac\x84\xc0\x74\x03\xee\xeb\xf8\xf4\xeb\xfd";
    let mut disk = [code, line.as_bytes(), b"\r\n\0"].concat();
    assert!(disk.len() <= 510, "too long for a sector");
    disk.resize(1 << 20, 0);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

fn runs(process: u32) -> bool {
    // A process that ended and that nobody has waited for is a zombie, not a machine.
    fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn a_machine_boots_pauses_returns_to_a_snapshot_and_ends() {
    scenario("harness-boot", |s| {
        let image = s.file("image.raw", &boot_sector("hello from a boot sector"))?;
        let before = fs::read(&image)?;
        let machine = Machine::new("sector").bios().memory_mib(128).disk(s.boot_disk(&image)?);
        let mut vm = s.start(&machine)?;
        vm.console().wait_for("hello from a boot sector", SOON)?;
        let qmp = vm.qmp();
        ensure!(qmp.status()? == "running", "status after boot");
        qmp.stop()?;
        ensure!(qmp.status()? == "paused", "status after stop");
        qmp.cont()?;
        qmp.save("ready")?;
        qmp.restore("ready")?;
        ensure!(qmp.restore("nothing").is_err(), "a snapshot that does not exist");
        ensure!(qmp.unplug("nothing").is_err(), "a device that does not exist");
        let process = vm.process_id();
        ensure!(runs(process), "QEMU runs");
        vm.qmp().quit()?;
        vm.wait_off(SOON)?;
        ensure!(!runs(process), "QEMU has ended");

        let vm = s.start(&machine)?;
        vm.console().wait_for("hello from a boot sector", SOON).context("second power-on")?;
        let process = vm.process_id();
        vm.cut_power()?;
        ensure!(!runs(process), "QEMU was killed");
        ensure!(fs::read(&image)? == before, "the image has changed");
        Ok(())
    });
}

#[test]
fn a_flipped_bit_reaches_the_guest_and_not_the_image() {
    scenario("harness-flipped-bit", |s| {
        let image = s.file("image.raw", &boot_sector("bit"))?;
        // The lowest bit of the first letter, which stands behind 22 bytes of code.
        let machine = Machine::new("sector").bios().memory_mib(128).disk(s.damaged_boot_disk(&image, 22)?);
        s.start(&machine)?.console().wait_for("cit", SOON)?;
        ensure!(fs::read(&image)? == boot_sector("bit"), "the image has changed");
        Ok(())
    });
}

#[test]
fn qemu_accepts_every_kind_of_device() {
    scenario("harness-devices", |s| {
        let disk = |s: &Scenario, name: &str, bus| -> Result<Disk> {
            Ok(s.empty_disk(name, storage::DISK_18T)?.bus(bus).serial(format!("NZ-{name}")))
        };
        let config = s.file("a, b.ign", b"{}")?;
        let stick = s.file("stick.raw", &vec![0; 1 << 20])?;
        let machine = Machine::new("devices")
            .disk(disk(s, "virtio", Bus::VirtioBlk)?)
            .disk(disk(s, "scsi", Bus::VirtioScsi)?.wwn(0x5000_c500_0000_0001).rotational().block_size(4096, 4096))
            .disk(disk(s, "nvme", Bus::Nvme)?.wwn(0x5000_c500_0000_0002))
            .disk(disk(s, "sata", Bus::Ahci)?.wwn(0x5000_c500_0000_0003).rotational())
            .disk(disk(s, "sata2", Bus::Ahci)?)
            .disk(Disk::new(stick, Format::Raw).bus(Bus::Usb).read_only())
            .network(Network::User { forwards: vec![(guest::free_port()?, 22)] })
            .fw_cfg("opt/com.coreos/config", config)
            .smbios(1, "manufacturer=NodeZero,product=Test");
        let mut vm = s.start(&machine)?;
        // Firmware has looked at all of them when it finds none to boot from.
        vm.console().wait_for("BdsDxe", SOON)?;
        vm.qmp().quit()?;
        vm.wait_off(SOON)
    });
}

#[test]
fn uefi_machines_can_be_saved() {
    scenario("harness-save", |s| {
        let machine = Machine::new("saved").memory_mib(256).disk(s.empty_disk("data", 1 << 30)?.bus(Bus::VirtioScsi));
        let mut vm = s.start(&machine)?;
        vm.console().wait_for("BdsDxe", SOON)?;
        vm.qmp().save("no-boot-device")?;
        vm.qmp().restore("no-boot-device")?;
        ensure!(vm.qmp().status()? == "running", "status after restoring");
        vm.qmp().quit()?;
        vm.wait_off(SOON)
    });
}

#[test]
fn no_squashfs_does_without_the_inode_of_its_root() {
    scenario("harness-squashfs", |s| {
        let tree = s.dir().join("tree");
        fs::create_dir_all(tree.join("folder"))?;
        for number in 0..2000 {
            fs::write(tree.join(format!("folder/{number}")), number.to_string().repeat(100))?;
        }
        let image = s.dir().join("root.raw");
        let make = |command: &mut Command| tools::run(command.arg(&tree).arg(&image).args(["-quiet", "-no-progress"]));
        make(&mut tools::command("mksquashfs")?)?;
        let list = || tools::run(tools::command("unsquashfs")?.arg("-ls").arg(&image));
        ensure!(list()?.len() > 2000, "the whole file system lists its files");
        let mut superblock = [0; 96];
        storage::read_at(&image, 0, &mut superblock)?;
        let mut content = fs::read(&image)?;
        content[usize::try_from(storage::squashfs_root_inode(&superblock)?)? + 10] ^= 1;
        fs::write(&image, content)?;
        ensure!(list().is_err(), "unsquashfs reads a file system without its root's inode");
        Ok(())
    });
}

#[test]
fn what_qemu_refuses_is_shown() {
    scenario("harness-refused", |s| {
        let machine = Machine::new("refused").bios().disk(Disk::new("/no/such/file", Format::Raw));
        let error = format!("{:#}", s.start(&machine).err().context("a disk without a file was accepted")?);
        ensure!(error.contains("No such file or directory"), "{error}");
        Ok(())
    });
}

#[test]
fn no_machine_outlives_its_test() {
    let mut test = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "harness::a_test_that_is_killed", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(test.stdout.take().unwrap()).lines();
    let process = lines.map_while(Result::ok).find_map(|line| Some(line.split_once("QEMU is ")?.1.parse().unwrap()));
    let process: u32 = process.expect("the other test started a machine");
    assert!(runs(process));
    // As abruptly as can be: nothing of the test's own code runs after this.
    test.kill().unwrap();
    test.wait().unwrap();
    let killed = Instant::now();
    while runs(process) {
        assert!(killed.elapsed() < SOON, "QEMU {process} outlived its test");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
#[ignore = "run and killed by no_machine_outlives_its_test"]
fn a_test_that_is_killed() {
    scenario("harness-killed", |s| {
        let vm = s.start(&Machine::new("orphan").bios().memory_mib(128))?;
        println!("QEMU is {}", vm.process_id());
        thread::sleep(SOON);
        Ok(())
    });
}

#[test]
fn files_of_an_esp_are_written_in_place() {
    scenario("harness-esp", |s| {
        let image = s.file("image.raw", b"")?;
        fs::File::options().write(true).open(&image)?.set_len(128 << 20)?;
        let table = "label: gpt\nstart=1MiB, size=100MiB, type=U, name=ESP\n";
        sfdisk(&image, table)?;
        let esp = storage::partition(&image, "ESP")?;
        ensure!((esp.offset, esp.size) == (1 << 20, 100 << 20), "{esp:?}");
        let mut format = tools::command("mkfs.fat")?;
        format.args(["-F", "32", "--offset", "2048"]).arg(&image).arg("102400");
        tools::run(&mut format)?;
        // Twice: into a directory that has to be made, and over a file that is there.
        for content in ["first", "second"] {
            storage::write_to_esp(&image, "/nodezero", "config.ign", content.as_bytes())?;
            let mut read = tools::command("mtype")?;
            let drive = format!("{}@@{}", image.display(), esp.offset);
            let stdout = tools::run(read.args(["-i", &drive, "::/nodezero/config.ign"]))?;
            ensure!(stdout == content.as_bytes(), "{:?}", String::from_utf8_lossy(&stdout));
        }
        let error = format!("{:#}", storage::partition(&image, "root-a").unwrap_err());
        ensure!(error.contains("no partition root-a among [\"ESP\"]"), "{error}");
        Ok(())
    });
}

fn sfdisk(image: &Path, table: &str) -> Result<()> {
    use std::io::Write;
    let mut command = tools::command("sfdisk")?;
    let mut child = command.arg("--quiet").arg(image).stdin(Stdio::piped()).spawn()?;
    child.stdin.take().context("no stdin")?.write_all(table.as_bytes())?;
    ensure!(child.wait()?.success(), "sfdisk refused {table}");
    Ok(())
}
