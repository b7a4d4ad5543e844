//! The selector language: which disks are meant, by facts that the machine reports. The same in `node.json`, in
//! profiles and on the command line.
//!
//! In JSON and YAML a selector is an object, in one line of text its criteria are written `KEY=VALUE`, separated by
//! commas; a value with a comma, a quote or blanks at its ends stands in double quotes, where a backslash takes the next
//! character as it is. All criteria must hold.
//!
//! | key | value |
//! |---|---|
//! | `size` | see [`crate::size`] |
//! | `rotational` | `true` for a disk that rotates |
//! | `transport` | `sata`, `sas`, `nvme`, `usb`, `virtio`, `scsi`, `iscsi`, `mmc`, `other` |
//! | `vendor`, `model`, `serial` | the whole text; `*` stands for any characters, `?` for one |
//! | `wwn` | the same; `0x`, `naa.` and `eui.` before it are ways to write it and do not count |
//! | `byPath` | the same, for a link in `/dev/disk/by-path`, with or without that directory |
//!
//! Texts are compared without regard to the case of ASCII letters and to blanks at their ends: programs print the same
//! WWN in either case, and a serial number is copied from a label.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::inventory::{Disk, Transport};
use crate::problem::Findings;
use crate::size::{SizeMatch, human_size};

/// The most characters of one pattern.
const PATTERN_LIMIT: usize = 256;

/// Which disks are meant. At least one criterion is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    /// Size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<SizeMatch>,
    /// Whether it rotates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotational: Option<bool>,
    /// How it is attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    /// Vendor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<Pattern>,
    /// Model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<Pattern>,
    /// Serial number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<Pattern>,
    /// World wide name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wwn: Option<Pattern>,
    /// A link in `/dev/disk/by-path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by_path: Option<Pattern>,
}

/// Which disks are meant, by facts that the machine reports. All criteria must hold. In texts, * stands for any
/// characters and ? for one.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(feature = "language", derive(schemars::JsonSchema), schemars(rename = "Selector"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RawSelector {
    /// Size: "18TB" (within 1 %), ">= 16TB", "<= 20TB", "16TB..20TB" or an exact "18000207937536B".
    size: Option<String>,
    /// Whether it rotates.
    rotational: Option<bool>,
    /// How it is attached: sata, sas, nvme, usb, virtio, scsi, iscsi, mmc or other.
    transport: Option<String>,
    /// Vendor.
    vendor: Option<String>,
    /// Model.
    model: Option<String>,
    /// Serial number.
    serial: Option<String>,
    /// World wide name; 0x, naa. and eui. before it do not count.
    wwn: Option<String>,
    /// A link in /dev/disk/by-path, with or without that directory.
    by_path: Option<String>,
}

impl RawSelector {
    /// Checks every criterion; `None` when a problem was noted.
    pub(crate) fn validate(self, path: &str, findings: &mut Findings) -> Option<Selector> {
        let mut sound = true;
        let mut take = |key: &str, result: Result<(), String>| {
            sound &= findings.take(&format!("{path}.{key}"), result).is_some();
        };
        let mut selector = Selector { rotational: self.rotational, ..Selector::default() };
        take("size", parse(self.size, &mut selector.size));
        take("transport", parse(self.transport, &mut selector.transport));
        take("vendor", parse(self.vendor, &mut selector.vendor));
        take("model", parse(self.model, &mut selector.model));
        take("serial", parse(self.serial, &mut selector.serial));
        take("wwn", parse(self.wwn, &mut selector.wwn));
        take("byPath", parse(self.by_path, &mut selector.by_path));
        if sound && selector == Selector::default() {
            findings.add(path, "a selector without a criterion would select every disk");
            return None;
        }
        sound.then_some(selector)
    }
}

fn parse<T: FromStr<Err: fmt::Display>>(text: Option<String>, into: &mut Option<T>) -> Result<(), String> {
    *into = text.map(|text| text.parse()).transpose().map_err(|error: T::Err| error.to_string())?;
    Ok(())
}

impl Selector {
    /// Whether this names one disk by its whole serial number or WWN.
    #[must_use]
    pub fn is_one_very_disk(&self) -> bool {
        [&self.serial, &self.wwn].into_iter().flatten().any(Pattern::is_exact)
    }

    /// Compares a disk with every criterion.
    ///
    /// # Errors
    /// What the disk has other than asked for, one text for each criterion that does not hold.
    pub fn check(&self, disk: &Disk) -> Result<(), Vec<String>> {
        let mut wrong = Vec::new();
        if let Some(size) = self.size.filter(|size| !size.matches(disk.size)) {
            wrong.push(format!("size is {} ({} bytes), asked for {size}", human_size(disk.size), disk.size));
        }
        if let Some(rotational) = self.rotational.filter(|&rotational| rotational != disk.rotational) {
            wrong.push(format!("rotational is {}, asked for {rotational}", disk.rotational));
        }
        if let Some(transport) = self.transport.filter(|&transport| transport != disk.transport) {
            wrong.push(format!("transport is {}, asked for {transport}", disk.transport));
        }
        for (name, pattern, fact) in [
            ("vendor", &self.vendor, &disk.vendor),
            ("model", &self.model, &disk.model),
            ("serial", &self.serial, &disk.serial),
        ] {
            wrong.extend(mismatch(name, pattern.as_ref(), fact.as_deref(), Pattern::matches));
        }
        wrong.extend(mismatch("wwn", self.wwn.as_ref(), disk.wwn.as_deref(), Pattern::matches_wwn));
        if let Some(pattern) = &self.by_path
            && !disk.by_path.iter().any(|link| pattern.matches_link(link))
        {
            let links = if disk.by_path.is_empty() { "missing".to_owned() } else { disk.by_path.join(" ") };
            wrong.push(format!("byPath is {links}, asked for {pattern}"));
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// Each criterion that is set, as key and value.
    fn criteria(&self) -> Vec<(&'static str, String)> {
        let text = |value: &Option<Pattern>| value.as_ref().map(ToString::to_string);
        [
            ("size", self.size.map(|size| size.to_string())),
            ("rotational", self.rotational.map(|rotational| rotational.to_string())),
            ("transport", self.transport.map(|transport| transport.to_string())),
            ("vendor", text(&self.vendor)),
            ("model", text(&self.model)),
            ("serial", text(&self.serial)),
            ("wwn", text(&self.wwn)),
            ("byPath", text(&self.by_path)),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .collect()
    }
}

fn mismatch(
    name: &str,
    pattern: Option<&Pattern>,
    fact: Option<&str>,
    matches: impl Fn(&Pattern, &str) -> bool,
) -> Option<String> {
    let pattern = pattern?;
    if fact.is_some_and(|fact| matches(pattern, fact)) {
        return None;
    }
    Some(format!("{name} is {}, asked for {pattern}", fact.unwrap_or("missing")))
}

/// A text that is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a selector: {0}")]
pub struct SelectorError(String);

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let mut raw = RawSelector::default();
        for (key, value) in split(text)? {
            let field = match key.as_str() {
                "rotational" => {
                    let rotational = value.parse().map_err(|_| SelectorError(format!("rotational is {value:?}")))?;
                    if raw.rotational.replace(rotational).is_some() {
                        return Err(SelectorError(format!("{key} is given twice")));
                    }
                    continue;
                }
                "size" => &mut raw.size,
                "transport" => &mut raw.transport,
                "vendor" => &mut raw.vendor,
                "model" => &mut raw.model,
                "serial" => &mut raw.serial,
                "wwn" => &mut raw.wwn,
                "byPath" => &mut raw.by_path,
                _ => return Err(SelectorError(format!("{key:?} is not a criterion"))),
            };
            if field.replace(value).is_some() {
                return Err(SelectorError(format!("{key} is given twice")));
            }
        }
        let mut findings = Findings::default();
        let selector = raw.validate("selector", &mut findings);
        findings.settle(selector).map_err(|problems| SelectorError(problems.to_string()))
    }
}

/// Splits `KEY=VALUE,…`, and takes quotes away.
fn split(text: &str) -> Result<Vec<(String, String)>, SelectorError> {
    let mut found = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').ok_or_else(|| SelectorError(format!("{rest:?} has no =")))?;
        let (value, next) = match after.trim_start().strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => match after.split_once(',') {
                Some((value, next)) => (value.trim().to_owned(), Some(next)),
                None => (after.trim().to_owned(), None),
            },
        };
        found.push((key.trim().to_owned(), value));
        rest = match next.map(str::trim) {
            Some("") => return Err(SelectorError("it ends with a comma".to_owned())),
            Some(next) => next,
            None => "",
        };
    }
    Ok(found)
}

/// The value up to the closing quote, and what follows the comma after it.
fn unquote(quoted: &str) -> Result<(String, Option<&str>), SelectorError> {
    let (mut value, mut characters) = (String::new(), quoted.char_indices());
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => {
                let rest = quoted[at + 1..].trim_start();
                if rest.is_empty() {
                    return Ok((value, None));
                }
                let next = rest.strip_prefix(',').ok_or_else(|| SelectorError(format!("{rest:?} follows a quote")))?;
                return Ok((value, Some(next)));
            }
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            character => value.push(character),
        }
    }
    Err(SelectorError("a quote is not closed".to_owned()))
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.criteria().into_iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            if value.contains([',', '"', '\\']) {
                write!(f, "{comma}{key}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))?;
            } else {
                write!(f, "{comma}{key}={value}")?;
            }
        }
        Ok(())
    }
}

/// A text to compare with, in which `*` stands for any characters and `?` for one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Pattern(String);

/// A text that is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a text to compare with has 1 to {PATTERN_LIMIT} characters, and no control characters")]
pub struct PatternError;

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let text = text.trim();
        let sound = !text.is_empty() && text.len() <= PATTERN_LIMIT && !text.contains(char::is_control);
        sound.then(|| Self(text.to_owned())).ok_or(PatternError)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Pattern {
    /// Whether it stands for one text alone.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        !self.0.contains(['*', '?'])
    }

    /// Whether a text is meant.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        glob(&self.0, text.trim())
    }

    fn matches_wwn(&self, wwn: &str) -> bool {
        glob(bare_wwn(&self.0), bare_wwn(wwn))
    }

    fn matches_link(&self, link: &str) -> bool {
        let bare = |path: &'_ str| path.strip_prefix("/dev/disk/by-path/").unwrap_or(path).to_owned();
        glob(&bare(&self.0), &bare(link))
    }
}

/// A WWN without what says how it is written.
pub(crate) fn bare_wwn(wwn: &str) -> &str {
    let wwn = wwn.trim();
    ["0x", "0X", "naa.", "eui."].iter().find_map(|prefix| wwn.strip_prefix(prefix)).unwrap_or(wwn)
}

/// Compares without regard to ASCII case. Goes back to the last `*` alone, so that no pattern takes long.
fn glob(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&wanted) if wanted == '?' || wanted.eq_ignore_ascii_case(&text[t]) => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, from)) => {
                    (p, t) = (at + 1, from + 1);
                    star = Some((at, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&rest| rest == '*')
}

/// How many disks a selector must match: `2`, `1..4`, `>= 1` or `<= 4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Count {
    least: u32,
    most: Option<u32>,
}

/// A text that is no count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a count: write 2, \"1..4\", \">= 1\" or \"<= 4\", and one at most")]
pub struct CountError(String);

impl Count {
    /// Exactly one.
    pub const ONE: Self = Self { least: 1, most: Some(1) };

    /// The least number that is as asked for.
    #[must_use]
    pub fn least(self) -> usize {
        self.least as usize
    }

    /// Whether so many are as asked for.
    #[must_use]
    pub fn allows(self, number: usize) -> bool {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        number >= self.least && self.most.is_none_or(|most| number <= most)
    }
}

impl FromStr for Count {
    type Err = CountError;

    fn from_str(text: &str) -> Result<Self, CountError> {
        let error = || CountError(text.chars().take(40).collect());
        let number = |part: &str| {
            let part = part.trim();
            let decimal = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            part.parse::<u32>().ok().filter(|_| decimal).ok_or_else(error)
        };
        let word = text.trim();
        let count = if let Some((least, most)) = word.split_once("..") {
            Self { least: number(least)?, most: Some(number(most)?) }
        } else if let Some(rest) = word.strip_prefix(">=") {
            Self { least: number(rest)?, most: None }
        } else if let Some(rest) = word.strip_prefix("<=") {
            Self { least: 0, most: Some(number(rest)?) }
        } else {
            let exact = number(word)?;
            Self { least: exact, most: Some(exact) }
        };
        let sound = count.most.is_none_or(|most| most >= count.least && most >= 1);
        if sound { Ok(count) } else { Err(error()) }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.least, self.most) {
            (least, None) => write!(f, ">= {least}"),
            (least, Some(most)) if least == most => write!(f, "{least}"),
            (least, Some(most)) => write!(f, "{least}..{most}"),
        }
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.most {
            Some(most) if most == self.least => serializer.serialize_u32(most),
            Some(_) | None => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrText;
        impl Visitor<'_> for NumberOrText {
            type Value = Count;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of disks, or a range as text")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Count, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Count, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(NumberOrText)
    }
}

#[cfg(feature = "language")]
impl schemars::JsonSchema for Count {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Count".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "anyOf": [{ "type": "integer", "minimum": 1 }, { "type": "string" }],
            "x-hint": "write 2, \"1..4\", \">= 1\" or \"<= 4\"",
            "x-parse": "count",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_texts() {
        for (pattern, text, expected) in [
            ("WDC*", "WDC WUH721818ALE6L4", true),
            ("wdc*", "WDC WUH721818ALE6L4", true),
            ("WDC", "WDC WUH721818ALE6L4", false),
            ("*818*", "WDC WUH721818ALE6L4", true),
            ("*", "", true),
            ("?", "", false),
            ("A?C", "abc", true),
            ("A?C", "abbc", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-d", false),
            ("**", "x", true),
            ("ZR5*", " ZR50ABCD ", true),
            ("größe", "GRößE", true),
        ] {
            assert_eq!(pattern.parse::<Pattern>().expect(pattern).matches(text), expected, "{pattern} {text}");
        }
        let long = format!("{}b", "a*".repeat(100));
        assert!(!long.parse::<Pattern>().expect("allowed").matches(&"a".repeat(4000)), "ends soon");
        for text in ["", "  ", "a\nb", &"x".repeat(257)] {
            assert!(text.parse::<Pattern>().is_err(), "{text:?}");
        }
        for (pattern, wwn, expected) in [
            ("0x5000CCA2A1B2C3D4", "naa.5000cca2a1b2c3d4", true),
            ("5000cca2*", "0x5000cca2a1b2c3d4", true),
            ("eui.0025388b", "0025388B", true),
            ("t10.ATA", "naa.ATA", false),
        ] {
            assert_eq!(pattern.parse::<Pattern>().expect(pattern).matches_wwn(wwn), expected, "{pattern} {wwn}");
        }
    }

    #[test]
    fn counts_are_exact_or_ranges() {
        for (text, allowed, printed) in [
            ("2", &[2][..], "2"),
            ("1..4", &[1, 2, 3, 4], "1..4"),
            (">= 3", &[3, 4, 5], ">= 3"),
            ("<=2", &[0, 1, 2], "0..2"),
            ("1..1", &[1], "1"),
        ] {
            let count: Count = text.parse().expect(text);
            let have: Vec<usize> = (0..6).filter(|&number| count.allows(number)).collect();
            assert_eq!((have, count.to_string().as_str()), (allowed.to_vec(), printed), "{text}");
            let json = serde_json::to_string(&count).expect("JSON");
            assert_eq!(serde_json::from_str::<Count>(&json).expect(&json), count, "{json}");
        }
        for text in ["", "0", "0..0", "-1", "+1", "4..1", "two", "1...2", "> 1", "99999999999", "1.5"] {
            assert!(text.parse::<Count>().is_err(), "{text}");
        }
        for json in ["-1", "0", "1.5", "true", "null", "[1]", "\"x\""] {
            assert!(serde_json::from_str::<Count>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn selectors_are_one_line_of_text_too() {
        for (text, printed) in [
            ("size=16TB..20TB,rotational=true", "size=16TB..20TB,rotational=true"),
            (" serial = ZR50ABCD , transport=sata ", "transport=sata,serial=ZR50ABCD"),
            (r#"model="A, \"B\" \\","#, ""),
            (r#"model="A, \"B\" \\",wwn=naa.5*"#, r#"model="A, \"B\" \\",wwn=naa.5*"#),
            ("byPath=/dev/disk/by-path/pci-0000:00:17.0-ata-1", "byPath=/dev/disk/by-path/pci-0000:00:17.0-ata-1"),
        ] {
            let printed = if printed.is_empty() { None } else { Some(printed.to_owned()) };
            assert_eq!(text.parse::<Selector>().ok().map(|selector| selector.to_string()), printed, "{text}");
        }
        for text in [
            "",
            "size",
            "size=18",
            "colour=red",
            "serial=a,serial=b",
            "rotational=yes",
            "serial=",
            "serial=\"a",
            "serial=\"a\"b",
            "transport=pigeon",
            "rotational=true,rotational=true",
            ",",
        ] {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
    }

    #[test]
    fn parsers_never_panic_and_what_is_printed_parses() {
        arbtest::arbtest(|u| {
            let text: &str = u.arbitrary()?;
            if let Ok(selector) = text.parse::<Selector>() {
                assert_eq!(selector.to_string().parse(), Ok(selector), "{text:?}");
            }
            let mut selector = Selector {
                size: u.arbitrary::<Option<u64>>()?.map(SizeMatch::AtLeast),
                rotational: u.arbitrary()?,
                transport: u.arbitrary::<bool>()?.then_some(Transport::Nvme),
                ..Selector::default()
            };
            for field in [&mut selector.vendor, &mut selector.model, &mut selector.serial, &mut selector.by_path] {
                *field = u.arbitrary::<&str>()?.parse().ok();
            }
            if selector != Selector::default() {
                assert_eq!(selector.to_string().parse(), Ok(selector.clone()), "{selector}");
                let json = serde_json::to_string(&selector).expect("JSON");
                let raw: RawSelector = serde_json::from_str(&json).expect(&json);
                assert_eq!(raw.validate("", &mut Findings::default()), Some(selector), "{json}");
            }
            Ok(())
        });
    }
}
