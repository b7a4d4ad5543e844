//! Reuse of volumes, each field's argument, and keys.

use std::path::Path;

use super::*;
use crate::ignition::config::types::{Resource, Tang};

const UUID: &str = "f90bb1ac-4f94-4dbb-8ec3-8c8f2f9e9c0d";

fn config() -> Luks {
    Luks { device: Some("/dev/none".into()), ..Luks::new("data".into()) }
}

fn clevis() -> Clevis {
    let tang = Tang { url: Some("http://192.0.2.1".into()), ..Tang::default() };
    Clevis { tang: Some(vec![tang]), ..Clevis::default() }
}

fn volume(config: &Luks, generated: bool) -> Volume<'_> {
    Volume { config, key: Key(b"secret".to_vec()), generated }
}

fn encrypted(version: &str) -> Content {
    Content::Found(Signature { kind: KIND.into(), version: version.into(), label: "label".into(), uuid: UUID.into() })
}

#[test]
fn every_row_is_decided() {
    let plain = config();
    let matching = Luks { label: Some("label".into()), uuid: Some(UUID.to_uppercase()), ..config() };
    let other_label = Luks { label: Some("x".into()), ..config() };
    let other_uuid = Luks { uuid: Some("x".into()), ..config() };
    let bound = Luks { clevis: Some(clevis()), ..config() };
    let unbound = Luks { clevis: Some(Clevis::default()), ..config() };
    let ext4 = Content::Found(Signature { kind: "ext4".into(), ..Signature::default() });
    for (case, config, generated, content, expected) in [
        ("blank", &plain, true, Content::Nothing, Ok(Action::Format)),
        ("reused", &plain, false, encrypted("2"), Ok(Action::Open)),
        ("all match", &matching, false, encrypted("2"), Ok(Action::Open)),
        ("empty clevis", &unbound, false, encrypted("2"), Ok(Action::Open)),
        ("no key", &plain, true, encrypted("2"), Err("keyFile is not specified")),
        ("LUKS1", &plain, false, encrypted("1"), Err("its version is 1, only LUKS2 is reused")),
        ("label", &other_label, false, encrypted("2"), Err("its label is \"label\", specified is \"x\"")),
        ("UUID", &other_uuid, false, encrypted("2"), Err("specified is \"x\"")),
        ("clevis", &bound, false, encrypted("2"), Err("clevis is specified")),
        (
            "file system",
            &plain,
            false,
            ext4,
            Err("it holds ext4 with label \"\" and UUID \"\", and wipeVolume is not true"),
        ),
        ("table", &plain, false, Content::Table("gpt".into()), Err("it holds a gpt partition table")),
        ("ambiguous", &plain, false, Content::Ambiguous(vec![]), Err("signatures of several kinds")),
    ] {
        let got = volume(config, generated).decide(&content).map_err(|error| format!("{error:#}"));
        match (&got, &expected) {
            (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{case}"),
            (Err(got), Err(expected)) => assert!(got.contains(expected), "{case}: {got}"),
            _ => panic!("{case}: {got:?}, expected {expected:?}"),
        }
    }
}

#[test]
fn arguments_are_exact_and_hold_no_key() {
    let full = Luks {
        label: Some("my label".into()),
        uuid: Some(UUID.into()),
        options: Some(vec!["--cipher=aes-cbc".into()]),
        open_options: Some(vec!["--perf-no_read_workqueue".into()]),
        discard: Some(true),
        ..config()
    };
    assert_eq!(
        format_arguments(&full, "/dev/none").join(" "),
        format!(
            "luksFormat --batch-mode --type luks2 --key-file - --label my label --uuid {UUID} --cipher=aes-cbc /dev/none"
        )
    );
    assert_eq!(
        open_arguments(&full, "/dev/none").join(" "),
        "luksOpen /dev/none data --key-file - --persistent --allow-discards --perf-no_read_workqueue"
    );
    let empty = Luks { label: Some(String::new()), discard: Some(false), ..config() };
    assert_eq!(
        format_arguments(&empty, "/dev/none").join(" "),
        "luksFormat --batch-mode --type luks2 --key-file - /dev/none"
    );
    assert_eq!(open_arguments(&empty, "/dev/none").join(" "), "luksOpen /dev/none data --key-file - --persistent");
    assert_eq!(format!("{:?}", volume(&full, false).key), "Key(hidden)");
}

#[test]
fn keys_are_kept_unless_clevis_replaces_them() {
    let bound = Luks { clevis: Some(clevis()), ..config() };
    let plain = config();
    let file = Some((Path::new("/etc/luks/data").to_owned(), "c2VjcmV0".to_owned()));
    for (case, config, generated, expected) in [
        ("given", &plain, false, file.clone()),
        ("made", &plain, true, file.clone()),
        ("given, bound", &bound, false, file),
        ("made, bound", &bound, true, None),
    ] {
        assert_eq!(volume(config, generated).key_file(), expected, "{case}");
    }
    let (one, other) = (Key::generate().expect("random"), Key::generate().expect("random"));
    assert_eq!(one.0.len(), 2 * KEY_BYTES);
    assert!(one.0.iter().all(u8::is_ascii_hexdigit));
    assert_ne!(one, other);
}

#[test]
fn what_is_not_supported_names_its_field() {
    let fetcher = Fetcher::new(&Default::default(), None, Log::Stdout).expect("a fetcher");
    let cex = crate::ignition::config::types::Cex { enabled: Some(true) };
    let card = Luks { cex: Some(cex), ..config() };
    let error = Volume::new(&card, &fetcher).expect_err("refused").to_string();
    assert!(error.starts_with("cex is not supported"), "{error}");
    let empty = Luks { key_file: Some(Resource::default()), ..config() };
    assert!(Volume::new(&empty, &fetcher).expect("a key is made").generated, "no source is no key file");
}

#[test]
fn the_flag_for_discarding_is_read() {
    for (text, expected) in [
        ("{}", false),
        (r#"{"keyslots":{},"config":{"json_size":"12288","keyslots_size":"1"}}"#, false),
        (r#"{"config":{"flags":["no-read-workqueue","allow-discards"]}}"#, true),
    ] {
        let dump: Dump = serde_json::from_str(text).expect(text);
        assert_eq!(has_discard(&dump), expected, "{text}");
    }
}
