//! The rows of the operator notes' tables, and each field of a partition.

use super::*;

const TYPE: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";
const OTHER: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";
const GUID: &str = "01234567-89ab-cdef-0123-456789abcdef";

fn guid(text: &str) -> Guid {
    text.parse().expect(text)
}

fn entry(start: u64, sectors: u64, label: &str) -> Entry {
    Entry {
        place: Place { start, sectors },
        type_guid: guid(TYPE),
        guid: guid(GUID),
        label: label.to_owned(),
        attributes: 4,
    }
}

/// Partition 1, "one", sectors 2048 to 4095.
fn existing() -> Table {
    [(1, entry(2048, 2048, "one"))].into()
}

fn exists(number: u32) -> Wanted {
    Wanted { number, exist: true, ..Wanted::default() }
}

/// What became of a decision, without its data.
fn name(decision: &anyhow::Result<Vec<Decision>>) -> String {
    match decision {
        Ok(decisions) => {
            let text = format!("{:?}", decisions[0]);
            text.split(['(', ' ']).next().expect("a word").to_owned()
        }
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn every_row_of_the_table_is_decided() {
    let matching = || Wanted { label: Some("one".into()), ..exists(1) };
    let differing = || Wanted { label: Some("two".into()), ..exists(1) };
    let larger = || Wanted { sectors: Some(4096), ..matching() };
    let absent = Wanted { number: 1, ..Wanted::default() };
    let none = Table::new();
    for (case, there, wanted, expected) in [
        ("absent, not wanted", false, absent.clone(), "Absent"),
        ("absent, not wanted, wipe", false, Wanted { wipe: true, ..absent.clone() }, "Absent"),
        ("absent, wanted", false, matching(), "Create"),
        ("absent, wanted, wipe", false, Wanted { wipe: true, ..matching() }, "Create"),
        ("absent, wanted, resize", false, Wanted { resize: true, ..matching() }, "Create"),
        ("there, not wanted", true, absent.clone(), "shouldExist is false and wipePartitionEntry is not true"),
        ("there, not wanted, wipe", true, Wanted { wipe: true, ..absent }, "Delete"),
        ("matches", true, matching(), "Keep"),
        ("matches, resize", true, Wanted { resize: true, ..matching() }, "Keep"),
        ("matches, wipe", true, Wanted { wipe: true, ..matching() }, "Keep"),
        ("differs", true, differing(), "its label is \"one\", specified is \"two\""),
        ("differs, resize", true, Wanted { resize: true, ..differing() }, "its label is \"one\", specified is \"two\""),
        ("differs, wipe", true, Wanted { wipe: true, ..differing() }, "Replace"),
        ("size differs", true, larger(), "its size is 2048 sectors, specified are 4096"),
        ("size differs, resize", true, Wanted { resize: true, ..larger() }, "Resize"),
        ("size differs, wipe", true, Wanted { wipe: true, ..larger() }, "Replace"),
        ("size differs, both", true, Wanted { wipe: true, resize: true, ..larger() }, "Replace"),
    ] {
        let got = name(&decide(&[wanted], if there { &EXISTING } else { &none }));
        assert!(got.ends_with(expected), "{case}: {got}, expected {expected}");
    }
}

static EXISTING: std::sync::LazyLock<Table> = std::sync::LazyLock::new(existing);

#[test]
fn every_field_is_compared_where_it_is_specified() {
    let keep = "Keep";
    for (case, wanted, expected) in [
        ("nothing", exists(1), keep),
        ("start", Wanted { start: Some(2048), ..exists(1) }, keep),
        ("start differs", Wanted { start: Some(4096), ..exists(1) }, "its first sector is 2048, specified is 4096"),
        ("size", Wanted { sectors: Some(2048), ..exists(1) }, keep),
        ("size differs", Wanted { sectors: Some(1), ..exists(1) }, "its size is 2048 sectors, specified are 1"),
        ("label", Wanted { label: Some("one".into()), ..exists(1) }, keep),
        ("empty label", Wanted { label: Some(String::new()), ..exists(1) }, "its label is \"one\", specified is \"\""),
        ("guid", Wanted { guid: Some(guid(&GUID.to_uppercase())), ..exists(1) }, keep),
        ("guid differs", Wanted { guid: Some(guid(OTHER)), ..exists(1) }, "its GUID is 01234567-89ab"),
        ("type", Wanted { type_guid: Some(guid(TYPE)), ..exists(1) }, keep),
        ("type differs", Wanted { type_guid: Some(guid(OTHER)), ..exists(1) }, "its type GUID is 4f68bce3"),
    ] {
        let got = name(&decide(&[wanted], &EXISTING));
        assert!(got.contains(expected), "{case}: {got}, expected {expected}");
    }
}

#[test]
fn the_config_is_read_in_sectors() {
    let partition = types::Partition {
        number: Some(2),
        label: Some("data".into()),
        start_mib: Some(1),
        size_mib: Some(0),
        type_guid: Some(TYPE.to_uppercase()),
        guid: Some(String::new()),
        wipe_partition_entry: Some(true),
        should_exist: Some(true),
        resize: Some(true),
    };
    let expected = |start| Wanted {
        number: 2,
        start: Some(start),
        sectors: Some(0),
        label: Some("data".into()),
        type_guid: Some(guid(TYPE)),
        wipe: true,
        resize: true,
        exist: true,
        ..Wanted::default()
    };
    for (sector, start) in [(SectorSize::B512, 2048), (SectorSize::B4096, 256)] {
        let got = wanted(std::slice::from_ref(&partition), &Table::new(), sector).expect("sensible");
        assert_eq!(got, [expected(start)], "{sector:?}");
    }
    let gone = types::Partition { number: Some(3), should_exist: Some(false), ..types::Partition::default() };
    let got = wanted(&[gone], &Table::new(), SectorSize::B512).expect("sensible");
    assert_eq!(got, [Wanted { number: 3, ..Wanted::default() }], "nothing but the number is specified");
    for (case, broken) in [
        ("negative number", types::Partition { number: Some(-1), ..types::Partition::default() }),
        ("negative start", types::Partition { start_mib: Some(-1), ..types::Partition::default() }),
        ("too large", types::Partition { size_mib: Some(i64::MAX), ..types::Partition::default() }),
        ("no GUID", types::Partition { guid: Some("x".into()), ..types::Partition::default() }),
    ] {
        assert!(wanted(&[broken], &Table::new(), SectorSize::B512).is_err(), "{case}");
    }
}

#[test]
fn number_zero_is_the_next_that_is_free() {
    let partition = |number: Option<i64>, label: &str| types::Partition {
        number,
        label: Some(label.into()),
        ..types::Partition::default()
    };
    let config = [partition(Some(0), "a"), partition(Some(3), "b"), partition(None, "c"), partition(Some(2), "d")];
    let got = wanted(&config, &existing(), SectorSize::B512).expect("sensible");
    let got: Vec<(u32, &str)> =
        got.iter().map(|wanted| (wanted.number, wanted.label.as_deref().expect("set"))).collect();
    assert_eq!(got, [(3, "b"), (2, "d"), (4, "a"), (5, "c")], "those without a number come last");
    let full: Table = (1..=128).map(|number| (number, entry(2048, 1, ""))).collect();
    assert!(wanted(&config[..1], &full, SectorSize::B512).is_err(), "no number is free");
}

#[test]
fn open_places_are_asked_for_as_if_all_were_made_anew() {
    let open = |number| Wanted { start: Some(0), sectors: Some(0), label: Some("x".into()), ..exists(number) };
    let plain = |number, start, sectors| Wanted { start, sectors, ..exists(number) };
    let ask = |wanted: &[Wanted]| rehearsal(wanted, &EXISTING, false);
    assert_eq!(ask(&[exists(1), Wanted { number: 2, ..Wanted::default() }]), None, "nothing is open");
    let (operation, numbers) = ask(&[exists(1), open(2)]).expect("2 is open");
    assert_eq!((operation.delete, numbers), (vec![1], vec![2]));
    let kept = plain(1, Some(2048), Some(2048));
    assert_eq!(operation.create, [kept, plain(2, Some(0), Some(0))], "without wiping, do not care means as it is");
    let (operation, _) = ask(&[Wanted { wipe: true, ..exists(1) }, open(2)]).expect("2 is open");
    assert_eq!(operation.create[0], plain(1, None, None), "with wiping, it means the largest block");
    let gone = Wanted { number: 1, ..Wanted::default() };
    let (operation, numbers) = ask(&[gone, open(2)]).expect("2 is open");
    assert_eq!((operation.delete, operation.create.len(), numbers), (vec![1], 1, vec![2]));

    let landed = [(2, Place { start: 4096, sectors: 99 })].into();
    let got = resolve(vec![open(2), plain(3, None, Some(0)), plain(2, None, Some(7))], &landed);
    let places: Vec<_> = got.iter().map(|wanted| (wanted.start, wanted.sectors)).collect();
    assert_eq!(places, [(Some(4096), Some(99)), (None, Some(0)), (None, Some(7))]);
}

#[test]
fn decisions_become_one_operation() {
    let resized = resized_partition();
    let decisions = [
        Decision::Keep(5),
        Decision::Absent(6),
        Decision::Delete(7),
        Decision::Replace(exists(2)),
        Decision::Create(exists(3)),
        Decision::Resize(resized.clone()),
    ];
    let operation = operation(&decisions, false).expect("something changes");
    assert_eq!(operation.delete, [7, 2, 1]);
    assert_eq!(operation.create, [exists(2), exists(3), resized]);
    assert!(super::operation(&decisions[..2], false).is_none(), "nothing changes");
    assert!(super::operation(&[], true).is_some_and(|operation| operation.clear), "wiping is a change");
    let changing: Vec<u32> = decisions.iter().filter(|one| one.changes()).map(Decision::number).collect();
    assert_eq!(changing, [7, 2, 3, 1]);
}

/// A resized partition keeps all but its size.
fn resized_partition() -> Wanted {
    let wanted = Wanted { sectors: Some(4096), resize: true, ..exists(1) };
    let Decision::Resize(resized) = decide(&[wanted], &EXISTING).expect("resizable").remove(0) else {
        panic!("it is resized")
    };
    assert_eq!((resized.start, resized.sectors), (Some(2048), Some(4096)));
    assert_eq!((resized.label.as_deref(), resized.attributes), (Some("one"), 4));
    assert_eq!((resized.guid, resized.type_guid), (Some(guid(GUID)), Some(guid(TYPE))));
    resized
}

#[test]
fn the_result_is_compared_with_what_was_planned() {
    let table: Table = [(1, entry(2048, 2048, "one")), (2, entry(8192, 8, "two"))].into();
    let made = Wanted { label: Some("three".into()), sectors: Some(16), ..exists(3) };
    let operation = Operation { clear: false, delete: vec![2], create: vec![made.clone()] };
    let landed: Landed = [(3, Place { start: 4096, sectors: 16 })].into();
    let plan = expected(&operation, &table, &landed).expect("possible");
    let good: Table = [(1, entry(2048, 2048, "one")), (3, entry(4096, 16, "three"))].into();
    plan.verify(&good).expect("as planned");
    let with = |number: u32, entry: Entry| {
        let mut table = good.clone();
        table.insert(number, entry);
        table
    };
    for (case, table, error) in [
        ("one more", with(9, entry(9, 9, "")), "partition 9 is there and should not be"),
        ("kept one moved", with(1, entry(2049, 2048, "one")), "partition 1 was to be kept"),
        ("made elsewhere", with(3, entry(4097, 16, "three")), "its first sector is 4097, specified is 4096"),
        ("made of another size", with(3, entry(4096, 17, "three")), "its size is 17 sectors"),
        ("label", with(3, entry(4096, 16, "")), "its label is \"\""),
        ("missing", [(1, entry(2048, 2048, "one"))].into(), "partition 3 is not there"),
    ] {
        let got = format!("{:#}", plan.verify(&table).expect_err(case));
        assert!(got.contains(error), "{case}: {got}");
    }
    // sgdisk moves what is not aligned: that is not what was asked for.
    let moved = Operation { create: vec![Wanted { start: Some(4097), ..made }], ..operation };
    let error = expected(&moved, &table, &landed).expect_err("elsewhere").to_string();
    assert_eq!(error, "the first sector of partition 3 would be 4096, specified is 4097");
    assert!(expected(&moved, &table, &Landed::new()).is_err(), "no answer");
}
