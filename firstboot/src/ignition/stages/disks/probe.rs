//! What is on a device, by `blkid`'s low-level probing: read from the device, never from a cache.

use std::path::Path;

use anyhow::Context;

use super::device::unescape;
use crate::command;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// No signature that is known.
    Nothing,
    /// One file system, volume, or member of something larger.
    Found(Signature),
    /// A partition table of this kind.
    Table(String),
    /// Signatures of several kinds; which one counts cannot be told.
    Ambiguous(Vec<String>),
}

/// A signature.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Signature {
    /// As `blkid` calls it, such as `ext4` or `crypto_LUKS`.
    pub(crate) kind: String,
    /// Version of the format; empty where it has none.
    pub(crate) version: String,
    /// Empty where it has none.
    pub(crate) label: String,
    /// Empty where it has none.
    pub(crate) uuid: String,
}

impl Content {
    /// In words, for messages.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Nothing => "nothing".to_owned(),
            Self::Found(Signature { kind, version, label, uuid }) => {
                let version = if version.is_empty() { String::new() } else { format!(" version {version}") };
                format!("{kind}{version} with label {label:?} and UUID {uuid:?}")
            }
            Self::Table(kind) => format!("a {kind} partition table"),
            Self::Ambiguous(kinds) => format!("signatures of several kinds ({})", kinds.join(", ")),
        }
    }
}

/// Looks what is on a device.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn probe(device: &Path) -> anyhow::Result<Content> {
    let path = device.to_str().with_context(|| format!("{} is not UTF-8", device.display()))?;
    // Status 2: nothing found; 8: several results.
    let output = command::run("blkid", &["-p", "-o", "udev", path], b"", |code| matches!(code, 0 | 2 | 8))
        .with_context(|| format!("probing {path}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(parse(&text, output.status.code() == Some(8)))
}

/// Parses `blkid`'s answer in udev's form.
fn parse(text: &str, ambiguous: bool) -> Content {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    if let Some(kinds) = value("ID_FS_AMBIVALENT").or(ambiguous.then_some("")) {
        return Content::Ambiguous(kinds.split_whitespace().map(str::to_owned).collect());
    }
    let encoded = |key: &str| value(key).map(unescape).unwrap_or_default();
    if let Some(kind) = value("ID_FS_TYPE") {
        return Content::Found(Signature {
            kind: kind.to_owned(),
            version: value("ID_FS_VERSION").unwrap_or_default().to_owned(),
            label: encoded("ID_FS_LABEL_ENC"),
            uuid: encoded("ID_FS_UUID_ENC"),
        });
    }
    value("ID_PART_TABLE_TYPE").map_or(Content::Nothing, |kind| Content::Table(kind.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_parse() {
        let found = |kind: &str, version: &str, label: &str, uuid: &str| {
            Content::Found(Signature {
                kind: kind.into(),
                version: version.into(),
                label: label.into(),
                uuid: uuid.into(),
            })
        };
        let fat = "ID_FS_LABEL=my_vol\nID_FS_LABEL_ENC=my\\x20vol\nID_FS_UUID=2381-A6C7\nID_FS_UUID_ENC=2381-A6C7\n\
                   ID_FS_VERSION=FAT16\nID_FS_TYPE=vfat\nID_FS_USAGE=filesystem\n";
        for (case, text, ambiguous, expected) in [
            ("empty", "", false, Content::Nothing),
            ("fat", fat, false, found("vfat", "FAT16", "my vol", "2381-A6C7")),
            ("no label", "ID_FS_TYPE=swap\n", false, found("swap", "", "", "")),
            ("table", "ID_PART_TABLE_UUID=a\nID_PART_TABLE_TYPE=gpt\n", false, Content::Table("gpt".into())),
            (
                "file system in a partition",
                "ID_FS_TYPE=xfs\nID_PART_ENTRY_SCHEME=gpt\n",
                false,
                found("xfs", "", "", ""),
            ),
            (
                "two",
                "ID_FS_AMBIVALENT=filesystem:ext4:1.0 raid:x\n",
                true,
                Content::Ambiguous(vec!["filesystem:ext4:1.0".into(), "raid:x".into()]),
            ),
            ("two, unnamed", "", true, Content::Ambiguous(vec![])),
        ] {
            assert_eq!(parse(text, ambiguous), expected, "{case}");
        }
    }

    #[test]
    fn contents_are_described() {
        let signature = Signature { kind: "ext4".into(), version: "1.0".into(), label: "a".into(), uuid: "b".into() };
        assert_eq!(Content::Found(signature).describe(), "ext4 version 1.0 with label \"a\" and UUID \"b\"");
        assert_eq!(Content::Table("dos".into()).describe(), "a dos partition table");
    }
}
