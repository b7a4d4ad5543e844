use uuid::Uuid;

use super::*;
use crate::inventory::tests::{disk, signature};
use crate::inventory::{Inventory, NodeFacts, Partition, Signature, Transport, Use};
use crate::node::tests::node;

const BULK: &str = r#"{"name":"bulk","select":{"size":"18TB","rotational":true},"count":2}"#;

fn decide_with(entries: &str, disks: &[Disk], records: &Records) -> Plan {
    plan(&node(entries), &Inventory::new(NodeFacts::default(), disks.to_vec()), records)
}

fn decide(entries: &str, disks: &[Disk]) -> Plan {
    decide_with(entries, disks, &Records::default())
}

/// The verdicts in one word each.
fn words(plan: &Plan) -> Vec<&'static str> {
    plan.disks.iter().map(|planned| planned.verdict.word()).collect()
}

fn with(content: Content) -> Disk {
    Disk { content, ..disk("sda", "Z1") }
}

fn marks(serial: &str) -> Marks {
    Marks::new("toronto-0002", &Identity::of_facts(Some(serial), None).expect("an identity"))
}

fn prepared(stage: Stage, marks: &Marks, file_system: Option<(&str, Uuid)>) -> Content {
    let file_system = file_system.map(|(kind, uuid)| Signature {
        uuid: Some(uuid.to_string()),
        partition: Some(1),
        ..signature(kind)
    });
    let disk_guid = (stage != Stage::Table).then_some(marks.disk);
    Content::Prepared(Prepared { stage, disk_guid, partition_guid: marks.partition, file_system })
}

fn boot() -> Disk {
    Disk { boot: true, size: 20_000_588_955_648, ..disk("sda", "BOOT") }
}

fn usb() -> Disk {
    Disk { removable: true, transport: Transport::Usb, ..disk("sda", "STICK") }
}

#[test]
fn machines_are_planned() {
    let (one, two) = (disk("sdb", "Z1"), disk("sdc", "Z2"));
    let named = |name: &str, serial: &str| disk(name, serial);
    let nameless = Disk { serial: None, wwn: None, ..disk("sdd", "") };
    let many: Vec<Disk> =
        (0..24).map(|at| disk(&format!("sd{}", char::from(b'a' + at)), &format!("Z{}", at + 1))).collect();
    let two_of_24 =
        r#"{"name":"a","select":{"serial":"Z1?"},"count":10},{"name":"b","select":{"serial":"Z2?"},"count":"1..9"}"#;
    let bulk_and_one = [BULK, r#",{"name":"x","select":{"serial":"Z2"},"count":1}"#].concat();
    // What it is, entries, disks, verdicts, and what the errors say.
    type Case<'a> = (&'a str, &'a str, Vec<Disk>, Vec<&'a str>, &'a [&'a str]);
    let cases: Vec<Case<'_>> = vec![
        ("two blank disks", BULK, vec![one.clone(), two.clone()], vec!["prepare", "prepare"], &[]),
        ("names swapped", BULK, vec![named("sdb", "Z2"), named("sdc", "Z1")], vec!["prepare", "prepare"], &[]),
        (
            "boot disk larger, USB stick first",
            BULK,
            vec![boot(), usb(), one.clone(), two.clone()],
            vec!["-", "-", "prepare", "prepare"],
            &[],
        ),
        (
            "two where one is said",
            r#"{"name":"x","select":{"size":"18TB"},"count":1}"#,
            vec![one.clone(), two.clone()],
            vec!["prepare", "prepare"],
            &[
                "\"x\" asks for 1 disks (size=18TB), found 2:\n  /dev/sdb (18.0 TB, sata, model WDC WUH721818ALE6L4, serial Z1): matches",
            ],
        ),
        (
            "none where two are said",
            r#"{"name":"x","select":{"size":"4TB"},"count":2}"#,
            vec![one.clone()],
            vec!["-"],
            &[
                "\"x\" asks for 2 disks (size=4TB), found 0:\n  /dev/sdb (18.0 TB, sata, model WDC WUH721818ALE6L4, serial Z1): size is 18.0 TB (18000207937536 bytes), asked for 4TB",
            ],
        ),
        (
            "no disks at all",
            BULK,
            vec![],
            vec![],
            &["\"bulk\" asks for 2 disks (size=18TB,rotational=true), found 0:\n  there are no disks"],
        ),
        (
            "one is read-only",
            BULK,
            vec![one.clone(), Disk { read_only: true, ..two.clone() }],
            vec!["prepare", "-"],
            &["found 1"],
        ),
        (
            "one is in use",
            BULK,
            vec![
                one.clone(),
                Disk { in_use: vec![Use::Holder { device: "sdc".into(), holder: "md0".into() }], ..two.clone() },
            ],
            vec!["prepare", "-"],
            &["it is in use: sdc is part of md0"],
        ),
        (
            "one has errors",
            BULK,
            vec![
                one.clone(),
                Disk { content: Content::Unreadable { error: "input/output error".into() }, ..two.clone() },
            ],
            vec!["prepare", "refuse"],
            &["it cannot be read: input/output error"],
        ),
        (
            "one tells no identity",
            r#"{"name":"x","select":{"size":"18TB"},"count":1}"#,
            vec![nameless],
            vec!["refuse"],
            &["tells neither serial number nor WWN"],
        ),
        (
            "one serial number twice",
            BULK,
            vec![one.clone(), named("sdc", "z1")],
            vec!["refuse", "refuse"],
            &["/dev/sdc tells the same serial:Z1", "/dev/sdb tells the same serial:Z1"],
        ),
        (
            "twin of a disk never chosen",
            r#"{"name":"x","select":{"size":"18TB"},"count":1}"#,
            vec![one.clone(), Disk { removable: true, ..named("sdc", "Z1") }],
            vec!["refuse", "-"],
            &["cannot be told apart"],
        ),
        (
            "two entries, one disk",
            &bulk_and_one,
            vec![one.clone(), two.clone()],
            vec!["prepare", "refuse"],
            &["selected by 2 entries: bulk, x"],
        ),
        (
            "two entries apart",
            r#"{"name":"a","select":{"serial":"Z1"},"count":1},{"name":"b","select":{"serial":"Z2"},"count":1}"#,
            vec![one.clone(), two.clone()],
            vec!["prepare", "prepare"],
            &[],
        ),
        ("24 disks", two_of_24, many, [vec!["-"; 9], vec!["prepare"; 15]].concat(), &[]),
        ("4Kn", BULK, vec![Disk { sector_size: 4096, ..one.clone() }, two.clone()], vec!["prepare", "prepare"], &[]),
        (
            "520-byte sectors",
            BULK,
            vec![Disk { sector_size: 520, ..one.clone() }, two.clone()],
            vec!["refuse", "prepare"],
            &["its sectors have 520 bytes"],
        ),
        (
            "too small",
            r#"{"name":"x","select":{"serial":"Z1"},"count":1}"#,
            vec![Disk { size: LEAST_BYTES - 512, ..one.clone() }],
            vec!["refuse"],
            &["a data disk has 1.0 GB at least"],
        ),
        ("no data disks in the profile", "", vec![one.clone(), boot()], vec!["-", "-"], &[]),
        ("optional disks", r#"{"name":"x","select":{"size":"1TB"},"count":"0..2"}"#, vec![one], vec!["-"], &[]),
    ];
    for (case, entries, disks, verdicts, errors) in cases {
        let plan = decide(entries, &disks);
        assert_eq!(words(&plan), verdicts, "{case}:\n{plan}");
        assert_eq!(plan.errors.len(), errors.len(), "{case}:\n{plan}");
        for (error, expected) in plan.errors.iter().zip(errors) {
            assert!(error.contains(expected), "{case}: {expected} in {error}");
        }
        assert_eq!(plan.is_sound(), errors.is_empty(), "{case}");
        assert_eq!(plan.to_string().contains("nothing is done to any disk"), !errors.is_empty(), "{case}:\n{plan}");
    }
}

/// What foreign content there can be, and which stage of one's own leads to what.
#[test]
fn content_decides() {
    let own = marks("Z1");
    let (other_disk, other_node) =
        (marks("Z9"), Marks::new("toronto-0003", &Identity::of_facts(Some("Z1"), None).expect("an identity")));
    let foreign = |kind: &str| Content::Foreign(Foreign { signatures: vec![signature(kind)], ..Foreign::default() });
    let partition = Partition {
        number: 1,
        label: "Data".into(),
        kind: "esp".into(),
        uuid: own.disk,
        start: 1 << 20,
        size: 4 << 40,
    };
    let fs = own.file_system;
    for (case, content, word, reason) in [
        ("blank", Content::Blank, "prepare", "blank"),
        (
            "unknown data",
            Content::Foreign(Foreign { unknown_data_at: Some(4096), ..Foreign::default() }),
            "refuse",
            "it holds unknown data at byte 4096",
        ),
        ("LUKS", foreign("crypto_LUKS"), "refuse", "it holds crypto_LUKS at byte 0"),
        (
            "partitions",
            Content::Foreign(Foreign { partitions: vec![partition], unknown_data_at: Some(0), ..foreign_gpt() }),
            "refuse",
            "it holds gpt at byte 512, partitions 1 \"Data\" of 4.3 TB",
        ),
        (
            "not examined",
            Content::NotExamined { why: "wipefs is missing".into() },
            "refuse",
            "not known: wipefs is missing",
        ),
        ("table cut", prepared(Stage::Table, &own, None), "continue", "the partition table was not whole"),
        (
            "mkfs cut before it wrote",
            prepared(Stage::FileSystem, &own, None),
            "continue",
            "the file system was not finished",
        ),
        (
            "mkfs cut",
            prepared(Stage::FileSystem, &own, Some(("xfs", fs))),
            "continue",
            "the file system was not finished",
        ),
        (
            "mkfs cut, then another kind asked for",
            prepared(Stage::FileSystem, &own, Some(("ext4", fs))),
            "continue",
            "",
        ),
        (
            "foreign in a new partition",
            prepared(Stage::FileSystem, &own, Some(("xfs", own.disk))),
            "refuse",
            "foreign content: xfs",
        ),
        ("rename cut", prepared(Stage::Name, &own, Some(("xfs", fs))), "continue", "did not yet say"),
        ("rename cut, file system gone", prepared(Stage::Name, &own, None), "refuse", "without a file system"),
        ("done", prepared(Stage::Done, &own, Some(("xfs", fs))), "keep", "prepared by this node"),
        ("done, file system gone", prepared(Stage::Done, &own, None), "refuse", "without a file system"),
        ("done, formatted by hand", prepared(Stage::Done, &own, Some(("xfs", own.disk))), "refuse", "foreign content"),
        (
            "done, another kind asked for",
            prepared(Stage::Done, &own, Some(("ext4", fs))),
            "refuse",
            "this node's data on ext4, the profile says xfs",
        ),
        (
            "of another node",
            prepared(Stage::Done, &other_node, Some(("xfs", other_node.file_system))),
            "refuse",
            "another NodeZero node",
        ),
        ("begun by another node", prepared(Stage::Table, &other_node, None), "refuse", "another NodeZero node"),
        (
            "a copy of another own disk",
            prepared(Stage::Done, &other_disk, Some(("xfs", other_disk.file_system))),
            "refuse",
            "another NodeZero node",
        ),
    ] {
        let plan = decide(r#"{"name":"x","select":{"serial":"Z1"},"count":1}"#, &[with(content)]);
        assert_eq!(words(&plan), [word], "{case}:\n{plan}");
        let have = plan.disks[0].verdict.reason();
        assert!(have.contains(reason), "{case}: {reason} in {have}");
        assert_eq!(plan.is_sound(), word != "refuse", "{case}");
    }
}

fn foreign_gpt() -> Foreign {
    Foreign { signatures: vec![Signature { offset: 512, ..signature("gpt") }], ..Foreign::default() }
}

#[test]
fn a_mounted_disk_of_ones_own_is_kept() {
    let own = marks("Z1");
    let mounted = vec![Use::Mounted { device: "sda1".into(), at: "/var/mnt/longhorn/z1".into() }];
    let entry = r#"{"name":"x","select":{"serial":"Z1"},"count":1}"#;
    for (case, content, expected) in [
        ("done", prepared(Stage::Done, &own, Some(("xfs", own.file_system))), "keep"),
        ("not done", prepared(Stage::FileSystem, &own, Some(("xfs", own.file_system))), "-"),
        ("of another", prepared(Stage::Done, &marks("Z2"), None), "-"),
        ("blank", Content::Blank, "-"),
    ] {
        let plan = decide(entry, &[Disk { in_use: mounted.clone(), ..with(content) }]);
        assert_eq!(words(&plan), [expected], "{case}:\n{plan}");
    }
}

#[test]
fn a_consent_is_good_once_for_one_disk() {
    let entry = |number: u32| {
        format!(r#"{{"name":"x","select":{{"serial":"Z1"}},"count":1,"wipe":true,"wipeConsent":{number}}}"#)
    };
    let foreign = || Content::Foreign(foreign_gpt());
    let record = |identity: &str, number, stage| {
        let consent = Consent { number, stage, since: "2026-11-21".into() };
        Records(BTreeMap::from([(identity.to_owned(), consent)]))
    };
    let own = marks("Z1");
    for (case, number, records, content, word, reason) in [
        ("fresh", 1, Records::default(), foreign(), "wipe", "holds gpt at byte 512; lost by consent 1"),
        (
            "used",
            1,
            record("serial:Z1", 1, ConsentStage::Used),
            foreign(),
            "refuse",
            "consent 1 to wipe it was used on 2026-11-21; to give it once more, set wipeConsent to 2",
        ),
        ("used, given again", 2, record("serial:Z1", 1, ConsentStage::Used), foreign(), "wipe", "consent 2"),
        ("used, lowered", 1, record("serial:Z1", 2, ConsentStage::Used), foreign(), "refuse", "consent 2"),
        ("begun, cut", 1, record("serial:Z1", 1, ConsentStage::Begun), foreign(), "wipe", "consent 1"),
        ("begun, lowered", 1, record("serial:Z1", 2, ConsentStage::Begun), foreign(), "refuse", ""),
        ("used on another disk", 1, record("serial:Z2", 1, ConsentStage::Used), foreign(), "wipe", ""),
        ("blank", 1, Records::default(), Content::Blank, "prepare", "blank"),
        (
            "kept whatever the consent",
            2,
            Records::default(),
            prepared(Stage::Done, &own, Some(("xfs", own.file_system))),
            "keep",
            "",
        ),
        (
            "another kind asked for",
            1,
            Records::default(),
            prepared(Stage::Done, &own, Some(("ext4", own.file_system))),
            "wipe",
            "",
        ),
        ("of another node", 1, Records::default(), prepared(Stage::Done, &marks("Z2"), None), "wipe", ""),
        ("unreadable all the same", 1, Records::default(), Content::Unreadable { error: "x".into() }, "refuse", ""),
    ] {
        let plan = decide_with(&entry(number), &[with(content), disk("sdb", "Z2")], &records);
        assert_eq!(words(&plan), [word, "-"], "{case}:\n{plan}");
        assert!(plan.disks[0].verdict.reason().contains(reason), "{case}:\n{plan}");
        if let Some(target) = plan.disks[0].verdict.target() {
            assert_eq!(target.consent, Some(number), "{case}");
        }
    }
    // Boot disk and disks in use are not wiped by any consent.
    for protected in [
        Disk { boot: true, ..with(foreign()) },
        Disk { in_use: vec![Use::Swap { device: "sda1".into() }], ..with(foreign()) },
    ] {
        assert_eq!(words(&decide(&entry(1), &[protected])), ["-"]);
    }
}

#[test]
fn a_plan_is_a_table() {
    let plan = decide(
        BULK,
        &[boot(), disk("sdb", "Z1"), Disk { content: Content::Foreign(foreign_gpt()), ..disk("sdc", "Z2") }],
    );
    assert_eq!(
        plan.to_string(),
        "\
DISK      SIZE     SERIAL  VERDICT  REASON
/dev/sda  20.0 TB  BOOT    -        the machine started from it
/dev/sdb  18.0 TB  Z1      prepare  blank; becomes xfs for bulk
/dev/sdc  18.0 TB  Z2      refuse   it holds gpt at byte 512
error: \"bulk\" selects /dev/sdc (18.0 TB, sata, model WDC WUH721818ALE6L4, serial Z2): it holds gpt at byte 512
nothing is done to any disk"
    );
}

/// What a node knew is missing, and its other disks are kept; what it never knew is an error, as ever.
#[test]
fn a_known_disk_that_is_away_or_unreadable_is_gone_without() {
    let known = |serials: &[&str]| {
        let disk = KnownDisk { entry: "bulk".into(), directory: "z".into(), size: 18_000_207_937_536, model: None };
        Known(serials.iter().map(|serial| (format!("serial:{serial}"), disk.clone())).collect())
    };
    let mine = |name: &str, serial: &str| {
        let marks = marks(serial);
        Disk { content: prepared(Stage::Done, &marks, Some(("xfs", marks.file_system))), ..disk(name, serial) }
    };
    let unreadable = Disk { content: Content::Unreadable { error: "input/output error".into() }, ..disk("sdb", "Z2") };
    let foreign = Disk { content: Content::Foreign(Foreign::default()), ..disk("sdb", "Z2") };
    let stick = Disk { removable: true, ..disk("sdb", "Z2") };
    // What it is, what was known, disks, verdicts, what is missing, and what the error says.
    type Case<'a> = (&'a str, &'a [&'a str], Vec<Disk>, &'a [&'a str], &'a [&'a str], &'a str);
    const GONE: &str = r#"serial:Z2 of "bulk" (18.0 TB, z): it is not there"#;
    let cases: Vec<Case<'_>> = vec![
        ("one is away", &["Z1", "Z2"], vec![mine("sda", "Z1")], &["keep"], &[GONE], ""),
        (
            "both are away",
            &["Z1", "Z2"],
            vec![],
            &[],
            &[r#"serial:Z1 of "bulk" (18.0 TB, z): it is not there"#, GONE],
            "",
        ),
        (
            "one is there in a way that is never chosen",
            &["Z1", "Z2"],
            vec![mine("sda", "Z1"), stick],
            &["keep", "-"],
            &[r#"serial:Z2 of "bulk" (18.0 TB, z): it is removable"#],
            "",
        ),
        (
            "one cannot be read",
            &["Z1", "Z2"],
            vec![mine("sda", "Z1"), unreadable.clone()],
            &["keep", "failing"],
            &[r#"serial:Z2 of "bulk" (18.0 TB, z): it cannot be read: input/output error"#],
            "",
        ),
        ("one is replaced", &["Z1", "Z2"], vec![mine("sda", "Z1"), disk("sdb", "Z3")], &["keep", "prepare"], &[], ""),
        ("one never was there", &["Z1"], vec![mine("sda", "Z1")], &["keep"], &[], "asks for 2 disks"),
        ("nothing is known", &[], vec![mine("sda", "Z1")], &["keep"], &[], "asks for 2 disks"),
        (
            "unreadable and unknown",
            &["Z1"],
            vec![mine("sda", "Z1"), unreadable],
            &["keep", "refuse"],
            &[],
            "cannot be read",
        ),
        (
            "foreign although known",
            &["Z1", "Z2"],
            vec![mine("sda", "Z1"), foreign],
            &["keep", "refuse"],
            &[],
            "it holds",
        ),
        (
            "one more than said",
            &["Z1", "Z2"],
            vec![mine("sda", "Z1"), mine("sdb", "Z2"), disk("sdc", "Z3")],
            &["keep", "keep", "prepare"],
            &[],
            "found 3",
        ),
    ];
    for (case, serials, disks, verdicts, missing, error) in cases {
        let mut inventory = Inventory::new(NodeFacts::default(), disks);
        inventory.known = known(serials);
        let plan = plan(&node(BULK), &inventory, &Records::default());
        assert_eq!(words(&plan), verdicts, "{case}");
        let said: Vec<String> = plan.missing.iter().map(ToString::to_string).collect();
        assert_eq!(said, missing, "{case}");
        match &plan.errors[..] {
            [] => assert!(error.is_empty(), "{case}: no error"),
            [said] => assert!(!error.is_empty() && said.contains(error), "{case}: {said}"),
            several => panic!("{case}: {several:?}"),
        }
    }
    let other =
        Known(known(&["Z2"]).0.into_iter().map(|(id, disk)| (id, KnownDisk { entry: "x".into(), ..disk })).collect());
    let mut inventory = Inventory::new(NodeFacts::default(), vec![mine("sda", "Z1")]);
    inventory.known = other;
    assert!(
        !plan(&node(BULK), &inventory, &Records::default()).is_sound(),
        "a disk of another entry makes up for none"
    );
}
