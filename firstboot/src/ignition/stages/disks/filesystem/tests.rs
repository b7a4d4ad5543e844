//! The operator notes' semantics of reuse, and each field's argument.

use super::super::probe::Signature;
use super::*;

const UUID: &str = "f90bb1ac-4f94-4dbb-8ec3-8c8f2f9e9c0d";

fn config(format: &str) -> Filesystem {
    Filesystem { format: Some(format.into()), ..Filesystem::new("/dev/none".into()) }
}

fn found(kind: &str, label: &str, uuid: &str) -> Content {
    Content::Found(Signature { kind: kind.into(), label: label.into(), uuid: uuid.into(), ..Signature::default() })
}

#[test]
fn every_row_is_decided() {
    let labelled = |format: &str| Filesystem { label: Some("data".into()), uuid: Some(UUID.into()), ..config(format) };
    let wiping = |config: Filesystem| Filesystem { wipe_filesystem: Some(true), ..config };
    let not = |config: Filesystem| Filesystem { wipe_filesystem: Some(false), ..config };
    let ambiguous = || Content::Ambiguous(vec!["filesystem:ext4".into(), "raid:x".into()]);
    let refused = Err("wipeFilesystem is not true");
    for (case, config, content, expected) in [
        ("blank", config("ext4"), Content::Nothing, Ok(Action::Make)),
        ("blank, false", not(config("ext4")), Content::Nothing, Ok(Action::Make)),
        ("blank, wipe", wiping(config("ext4")), Content::Nothing, Ok(Action::Make)),
        ("format matches", config("ext4"), found("ext4", "x", "y"), Ok(Action::Keep)),
        ("all match", labelled("ext4"), found("ext4", "data", UUID), Ok(Action::Keep)),
        ("case of the UUID", labelled("ext4"), found("ext4", "data", &UUID.to_uppercase()), Ok(Action::Keep)),
        ("label differs", labelled("ext4"), found("ext4", "other", UUID), refused),
        ("no label", labelled("ext4"), found("ext4", "", UUID), refused),
        ("UUID differs", labelled("ext4"), found("ext4", "data", "1"), refused),
        ("format differs", config("ext4"), found("xfs", "", ""), refused),
        ("format differs, wipe", wiping(config("ext4")), found("xfs", "", ""), Ok(Action::Make)),
        ("matches, wipe", wiping(labelled("ext4")), found("ext4", "data", UUID), Ok(Action::Make)),
        ("member of an array", config("ext4"), found("linux_raid_member", "", ""), refused),
        ("encrypted", config("xfs"), found("crypto_LUKS", "", ""), refused),
        ("partition table", config("xfs"), Content::Table("gpt".into()), refused),
        ("partition table, wipe", wiping(config("xfs")), Content::Table("gpt".into()), Ok(Action::Make)),
        ("ambiguous", config("ext4"), ambiguous(), refused),
        ("ambiguous, wipe", wiping(config("ext4")), ambiguous(), Ok(Action::Make)),
        ("none, blank", config("none"), Content::Nothing, Ok(Action::Keep)),
        ("none, something", config("none"), found("ext4", "", ""), refused),
        ("none, wipe", wiping(config("none")), found("ext4", "", ""), Ok(Action::Wipe)),
        ("no format", Filesystem::new("/dev/none".into()), found("ext4", "", ""), Ok(Action::Keep)),
        ("swap", config("swap"), found("swap", "", ""), Ok(Action::Keep)),
        ("btrfs", config("btrfs"), found("btrfs", "", ""), Ok(Action::Keep)),
        (
            "FAT without the dash",
            Filesystem { uuid: Some("A1B2C3D4".into()), ..config("vfat") },
            found("vfat", "", "A1B2-C3D4"),
            Ok(Action::Keep),
        ),
        ("unknown format", config("zfs"), Content::Nothing, Err("the format \"zfs\" is not supported")),
    ] {
        let got = decide(&config, &content).map_err(|error| error.to_string());
        match (&got, &expected) {
            (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{case}"),
            (Err(got), Err(expected)) => assert!(got.contains(expected), "{case}: {got}"),
            _ => panic!("{case}: {got:?}, expected {expected:?}"),
        }
    }
}

#[test]
fn a_refusal_names_what_is_there_and_what_was_asked_for() {
    let config = Filesystem { label: Some("data".into()), ..config("xfs") };
    let error = decide(&config, &found("ext4", "old", "1-2")).expect_err("refused").to_string();
    assert_eq!(
        error,
        "it holds ext4 with label \"old\" and UUID \"1-2\", specified is xfs with label \"data\", and wipeFilesystem \
         is not true"
    );
}

#[test]
fn arguments_are_exact() {
    let full = |format: &str, uuid: &str| Filesystem {
        label: Some("my data".into()),
        uuid: Some(uuid.into()),
        options: Some(vec!["-q".into(), "-x=1".into()]),
        ..config(format)
    };
    let upper = UUID.to_uppercase();
    for (format, uuid, expected) in [
        ("ext4", upper.as_str(), vec!["-q", "-x=1", "-F", "-U", UUID, "-L", "my data", "/dev/none"]),
        ("btrfs", UUID, vec!["-q", "-x=1", "--force", "-U", UUID, "-L", "my data", "/dev/none"]),
        (
            "xfs",
            UUID,
            vec!["-q", "-x=1", "-f", "-m", "uuid=f90bb1ac-4f94-4dbb-8ec3-8c8f2f9e9c0d", "-L", "my data", "/dev/none"],
        ),
        ("swap", UUID, vec!["-q", "-x=1", "-f", "-U", UUID, "-L", "my data", "/dev/none"]),
        ("vfat", "A1B2-C3D4", vec!["-q", "-x=1", "-i", "a1b2c3d4", "-n", "my data", "/dev/none"]),
    ] {
        assert_eq!(mkfs_arguments(&full(format, uuid), format, "/dev/none"), expected, "{format}");
    }
    assert_eq!(mkfs_arguments(&config("vfat"), "vfat", "/dev/none"), ["/dev/none"]);
    assert_eq!(mkfs_arguments(&config("ext4"), "ext4", "/dev/none"), ["-F", "/dev/none"]);
}

#[test]
fn what_was_made_is_looked_at() {
    let log = Log::Stdout;
    assert!(verify(&config("ext4"), &Content::Nothing, log).is_err(), "nothing was made");
    assert!(verify(&config("ext4"), &found("ext4", "", ""), log).is_ok());
    assert!(verify(&config("ext4"), &found("ext3", "", ""), log).is_ok(), "options may ask for it");
}
