//! RAID arrays: kept where their members already form them, else made by `mdadm`.
//!
//! The specification has no field that permits to overwrite what is on a member. So a member that holds something is
//! refused, unless it is a partition that this run makes, or lies on a disk whose table it wipes: that is consent.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use super::device::{self, Device};
use super::probe::{Content, probe};
use crate::command;
use crate::ignition::config::types::Raid;
use crate::ignition::log::Log;

/// `blkid`'s name for a member of an array.
const MEMBER: &str = "linux_raid_member";

/// What is done about an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Its members form it already; it is started where it is not running.
    Assemble,
    /// It is made.
    Create,
}

/// What one member's superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    array: String,
    level: String,
    devices: String,
    name: String,
}

/// What is on a member.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Held {
    Nothing,
    Member(Member),
    Other(String),
}

/// The device file of an array.
pub(crate) fn device_path(config: &Raid) -> PathBuf {
    if config.name.starts_with("/dev") { PathBuf::from(&config.name) } else { Path::new("/dev/md").join(&config.name) }
}

/// Looks at the members and decides. `consent` says of each whether this run made it.
///
/// # Errors
/// When a member holds something else, or is in use.
pub(crate) fn check(config: &Raid, consent: impl Fn(&Device) -> bool) -> anyhow::Result<Action> {
    let mut held = Vec::new();
    for path in config.devices.as_deref().unwrap_or_default() {
        let look = || -> anyhow::Result<Held> {
            let device = Device::find(Path::new(path))?;
            let held = look_at(&device, consent(&device))?;
            // The members of a running array are held by it.
            if !matches!(held, Held::Member(_))
                && let Some(users) = device.usage()?.describe()
            {
                bail!("it {users}");
            }
            Ok(held)
        };
        held.push((path.as_str(), look().with_context(|| format!("looking at its device {path}"))?));
    }
    decide(config, &held)
}

/// Looks at one member alone.
///
/// # Errors
/// When it holds something that is no part of an array.
pub(crate) fn refuse_foreign(device: &Device) -> anyhow::Result<()> {
    match look_at(device, false)? {
        Held::Nothing | Held::Member(_) => Ok(()),
        Held::Other(what) => bail!("{} holds {what}", device.path.display()),
    }
}

/// What is on one member.
fn look_at(device: &Device, consent: bool) -> anyhow::Result<Held> {
    match probe(&device.path)? {
        Content::Nothing => Ok(Held::Nothing),
        _ if consent => Ok(Held::Nothing),
        Content::Found(found) if found.kind == MEMBER => {
            let arguments = ["--examine", "--export", device.argument()?];
            let output = command::run("mdadm", &arguments, b"", |code| code == 0)?;
            Ok(Held::Member(parse_member(&String::from_utf8_lossy(&output.stdout))))
        }
        other => Ok(Held::Other(other.describe())),
    }
}

/// Parses the variables that `mdadm --examine --export` prints.
fn parse_member(text: &str) -> Member {
    let value = |key: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        found.unwrap_or_default().to_owned()
    };
    Member { array: value("MD_UUID"), level: value("MD_LEVEL"), devices: value("MD_DEVICES"), name: value("MD_NAME") }
}

/// Decides, given what is on each member.
fn decide(config: &Raid, held: &[(&str, Held)]) -> anyhow::Result<Action> {
    if held.iter().all(|(_, held)| *held == Held::Nothing) {
        return Ok(Action::Create);
    }
    if let Some((device, Held::Other(what))) = held.iter().find(|(_, held)| matches!(held, Held::Other(_))) {
        bail!("{device} holds {what}");
    }
    let mut arrays = BTreeSet::new();
    for (device, held) in held {
        match held {
            Held::Nothing | Held::Other(_) => bail!("{device} is no member of the array that its other devices form"),
            Held::Member(member) => {
                check_member(config, member).with_context(|| format!("{device} is a member of another array"))?;
                arrays.insert(&member.array);
            }
        }
    }
    ensure!(arrays.len() == 1, "its devices are members of {} arrays", arrays.len());
    Ok(Action::Assemble)
}

/// Whether a member's superblock says what the config says.
fn check_member(config: &Raid, member: &Member) -> anyhow::Result<()> {
    let name = member.name.rsplit_once(':').map_or(member.name.as_str(), |(_, name)| name);
    let wanted = config.name.rsplit('/').next().unwrap_or_default();
    ensure!(name == wanted, "its name is {name:?}, specified is {wanted:?}");
    let (level, wanted) = (plain_level(&member.level), plain_level(config.level.as_deref().unwrap_or_default()));
    ensure!(level == wanted, "its level is {level}, specified is {wanted}");
    let wanted = active_devices(config)?.to_string();
    ensure!(member.devices == wanted, "it has {} devices, specified are {wanted}", member.devices);
    Ok(())
}

/// The one name of each level that has several.
fn plain_level(level: &str) -> String {
    match level {
        "mirror" => "raid1".to_owned(),
        "stripe" => "raid0".to_owned(),
        digits if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => format!("raid{digits}"),
        other => other.to_owned(),
    }
}

/// How many devices are no spares.
fn active_devices(config: &Raid) -> anyhow::Result<usize> {
    let devices = config.devices.as_deref().unwrap_or_default().len();
    let spares = config.spares.unwrap_or(0);
    let active = usize::try_from(spares).ok().and_then(|spares| devices.checked_sub(spares)).filter(|&n| n > 0);
    active.with_context(|| format!("{devices} devices with {spares} spares"))
}

/// Makes or starts the array, and waits for its device.
///
/// # Errors
/// When `mdadm` fails or the device does not appear.
pub(crate) fn apply(config: &Raid, action: Action, log: Log) -> anyhow::Result<()> {
    let path = device_path(config);
    let mut devices = Vec::new();
    let mut is_running = false;
    for device in config.devices.as_deref().unwrap_or_default() {
        let device = Device::find(Path::new(device))?;
        devices.push(device.argument()?.to_owned());
        // Without udev, the device file of a stopped array stays.
        is_running |= Device::find(&path).is_ok_and(|array| device.is_held_by(&array));
    }
    let arguments = match action {
        Action::Assemble if is_running => {
            log.info(format_args!("the array {} is running", config.name));
            return Ok(());
        }
        Action::Assemble => assemble_arguments(&path, &devices),
        Action::Create => create_arguments(config, &devices)?,
    };
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    log.info(format_args!("running mdadm {}", arguments.join(" ")));
    command::run("mdadm", &arguments, b"", |code| code == 0)?;
    device::wait_for(std::slice::from_ref(&path), device::PATIENCE, log)?;
    device::settle(&Device::find(&path)?)
}

fn assemble_arguments(path: &Path, devices: &[String]) -> Vec<String> {
    let fixed = ["--assemble".to_owned(), path.display().to_string()];
    fixed.into_iter().chain(devices.iter().cloned()).collect()
}

/// The config's own options come last before the devices, so that they win.
fn create_arguments(config: &Raid, devices: &[String]) -> anyhow::Result<Vec<String>> {
    let level = config.level.clone().context("an array without a level")?;
    let mut arguments: Vec<String> = ["--create", &config.name, "--force", "--run", "--homehost", "any", "--level"]
        .into_iter()
        .map(str::to_owned)
        .collect();
    arguments.extend([level, "--raid-devices".to_owned(), active_devices(config)?.to_string()]);
    if let Some(spares) = config.spares.filter(|&spares| spares > 0) {
        arguments.extend(["--spare-devices".to_owned(), spares.to_string()]);
    }
    arguments.extend(config.options.clone().unwrap_or_default());
    arguments.extend(devices.iter().cloned());
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(level: &str, devices: usize, spares: Option<i64>) -> Raid {
        Raid {
            name: "data".into(),
            level: Some(level.into()),
            devices: Some((0..devices).map(|index| format!("/dev/none{index}")).collect()),
            spares,
            options: Some(vec!["--metadata=1.2".into()]),
        }
    }

    #[test]
    fn creation_has_exact_arguments() {
        let devices: Vec<String> = (0..3).map(|index| format!("/dev/none{index}")).collect();
        let words = |config: &Raid| create_arguments(config, &devices).map(|arguments| arguments.join(" "));
        assert_eq!(
            words(&config("raid1", 3, Some(1))).expect("sensible"),
            "--create data --force --run --homehost any --level raid1 --raid-devices 2 --spare-devices 1 \
             --metadata=1.2 /dev/none0 /dev/none1 /dev/none2"
        );
        assert_eq!(
            words(&config("linear", 3, None)).expect("sensible"),
            "--create data --force --run --homehost any --level linear --raid-devices 3 --metadata=1.2 /dev/none0 \
             /dev/none1 /dev/none2"
        );
        assert!(words(&config("raid1", 3, Some(3))).is_err(), "nothing but spares");
        assert!(words(&config("raid1", 3, Some(-1))).is_err(), "less than no spares");
        let path = Path::new("/dev/md/data");
        assert_eq!(assemble_arguments(path, &devices[..1]), ["--assemble", "/dev/md/data", "/dev/none0"]);
        assert_eq!(device_path(&config("raid1", 2, None)), path);
        assert_eq!(device_path(&Raid::new("/dev/md7".into())), Path::new("/dev/md7"));
    }

    #[test]
    fn superblocks_parse() {
        let text = "MD_LEVEL=raid1\nMD_DEVICES=2\nMD_NAME=any:data\nMD_ARRAY_SIZE=1GB\nMD_UUID=a:b:c:d\n";
        let member =
            Member { array: "a:b:c:d".into(), level: "raid1".into(), devices: "2".into(), name: "any:data".into() };
        assert_eq!(parse_member(text), member);
    }

    #[test]
    fn members_decide() {
        let member = |array: &str, level: &str, devices: &str, name: &str| {
            Held::Member(Member {
                array: array.into(),
                level: level.into(),
                devices: devices.into(),
                name: name.into(),
            })
        };
        let good = || member("a", "raid1", "2", "any:data");
        let xfs = || Held::Other("xfs".into());
        let create = Ok(Action::Create);
        for (case, first, second, expected) in [
            ("blank", Held::Nothing, Held::Nothing, create),
            ("matching", good(), member("a", "raid1", "2", "data"), Ok(Action::Assemble)),
            ("half", good(), Held::Nothing, Err("/dev/none1 is no member")),
            ("foreign", Held::Nothing, xfs(), Err("/dev/none1 holds xfs")),
            ("foreign first", xfs(), Held::Nothing, Err("/dev/none0 holds xfs")),
            ("two arrays", good(), member("b", "raid1", "2", "data"), Err("members of 2 arrays")),
            (
                "name",
                good(),
                member("a", "raid1", "2", "any:other"),
                Err("its name is \"other\", specified is \"data\""),
            ),
            ("level", good(), member("a", "raid5", "2", "data"), Err("its level is raid5, specified is raid1")),
            ("devices", good(), member("a", "raid1", "3", "data"), Err("it has 3 devices, specified are 2")),
        ] {
            for level in ["raid1", "1", "mirror"] {
                let held = [("/dev/none0", first.clone()), ("/dev/none1", second.clone())];
                let got = decide(&config(level, 2, None), &held).map_err(|error| format!("{error:#}"));
                match (&got, &expected) {
                    (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{case}"),
                    (Err(got), Err(expected)) => assert!(got.contains(expected), "{case}: {got}"),
                    _ => panic!("{case}: {got:?}, expected {expected:?}"),
                }
            }
        }
    }

    #[test]
    fn levels_have_one_name() {
        for (level, expected) in
            [("1", "raid1"), ("mirror", "raid1"), ("stripe", "raid0"), ("raid10", "raid10"), ("linear", "linear")]
        {
            assert_eq!(plain_level(level), expected, "{level}");
        }
    }
}
