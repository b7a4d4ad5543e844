//! Sizes of disks: bytes, as a profile writes them and as a person reads them.
//!
//! | written | means |
//! |---|---|
//! | `18TB` | as sold: within 1 % of it, either way |
//! | `18000207937536B` | exactly that |
//! | `16TB..20TB` | from one to the other, both included |
//! | `>= 16TB`, `> 16TB`, `<= 20TB`, `< 20TB` | what they say |
//!
//! Units are `B`, decimal `kB` (or `KB`), `MB`, `GB`, `TB`, and binary `KiB`, `MiB`, `GiB`, `TiB`. Fractions are
//! allowed where whole bytes come of them (`1.92TB`).
//!
//! **Why 1 %.** By the industry's rule (IDEMA LBA1-03) a disk has its nominal capacity and up to 0.04 % more; solid state
//! disks and controllers that keep some blocks for themselves stay within 1 % as well. The sizes on sale that lie nearest
//! to each other (500 and 512 GB, 1000 and 1024 GB, 1.92 and 2 TB) are 2.4 % apart, so one is never taken for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const UNITS: [(&str, u64); 9] = [
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1000),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// One part in so many is the tolerance of a size as sold.
const TOLERANCE: u64 = 100;

/// What size a disk must have, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SizeMatch {
    /// Within 1 % of this.
    AsSold(u64),
    /// Exactly this.
    Exactly(u64),
    /// At least this.
    AtLeast(u64),
    /// At most this.
    AtMost(u64),
    /// From the first to the second, both included.
    Between(u64, u64),
}

/// A text that is no size, or no range of sizes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a size: {why}")]
pub struct SizeError {
    text: String,
    why: String,
}

impl SizeMatch {
    /// Whether a disk of so many bytes is meant.
    #[must_use]
    pub fn matches(self, bytes: u64) -> bool {
        match self {
            Self::AsSold(size) => bytes.abs_diff(size) <= size / TOLERANCE,
            Self::Exactly(size) => bytes == size,
            Self::AtLeast(least) => bytes >= least,
            Self::AtMost(most) => bytes <= most,
            Self::Between(least, most) => (least..=most).contains(&bytes),
        }
    }
}

impl FromStr for SizeMatch {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let error = |why: String| SizeError { text: text.chars().take(60).collect(), why };
        let bytes = |part: &str| parse_bytes(part.trim()).map(|(bytes, _)| bytes).map_err(error);
        let word = text.trim();
        if let Some((least, most)) = word.split_once("..") {
            let (least, most) = (bytes(least)?, bytes(most)?);
            if least > most {
                return Err(error("the range is empty".to_owned()));
            }
            return Ok(Self::Between(least, most));
        }
        if let Some(rest) = word.strip_prefix(">=") {
            return bytes(rest).map(Self::AtLeast);
        }
        if let Some(rest) = word.strip_prefix("<=") {
            return bytes(rest).map(Self::AtMost);
        }
        if let Some(rest) = word.strip_prefix('>') {
            let least = bytes(rest)?.checked_add(1).ok_or_else(|| error("too large".to_owned()))?;
            return Ok(Self::AtLeast(least));
        }
        if let Some(rest) = word.strip_prefix('<') {
            let most = bytes(rest)?.checked_sub(1).ok_or_else(|| error("nothing is smaller".to_owned()))?;
            return Ok(Self::AtMost(most));
        }
        let (size, unit) = parse_bytes(word).map_err(error)?;
        Ok(if unit == 1 { Self::Exactly(size) } else { Self::AsSold(size) })
    }
}

impl fmt::Display for SizeMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::AsSold(size) => f.write_str(&shortest(size, false)),
            Self::Exactly(size) => write!(f, "{size}B"),
            Self::AtLeast(least) => write!(f, ">= {}", shortest(least, true)),
            Self::AtMost(most) => write!(f, "<= {}", shortest(most, true)),
            Self::Between(least, most) => write!(f, "{}..{}", shortest(least, true), shortest(most, true)),
        }
    }
}

impl TryFrom<String> for SizeMatch {
    type Error = SizeError;

    fn try_from(text: String) -> Result<Self, SizeError> {
        text.parse()
    }
}

impl From<SizeMatch> for String {
    fn from(size: SizeMatch) -> String {
        size.to_string()
    }
}

/// Bytes, and the unit that they were written in.
fn parse_bytes(text: &str) -> Result<(u64, u64), String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &text[digits.len()..];
    let digits = digits.trim_end();
    let unit = match unit {
        "" => return Err("a unit is missing: use B, kB, MB, GB, TB, KiB, MiB, GiB or TiB".to_owned()),
        "KB" => 1000,
        unit => match UNITS.iter().find(|(name, _)| *name == unit) {
            Some((_, bytes)) => *bytes,
            None => return Err(format!("{unit:?} is not a unit: use B, kB, MB, GB, TB, KiB, MiB, GiB or TiB")),
        },
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let number = |part: &str| {
        let decimal = !part.is_empty() && part.len() <= 20 && part.bytes().all(|byte| byte.is_ascii_digit());
        decimal.then(|| part.parse::<u128>().expect("at most 20 digits")).ok_or("a number is missing or too long")
    };
    let scale = 10_u128.pow(u32::try_from(fraction.len()).unwrap_or(u32::MAX).min(20));
    // At most 20 digits on either side and 2^40: fewer than 128 bits.
    let scaled = (number(whole)?.checked_mul(scale).ok_or("too large")? + number(fraction)?)
        .checked_mul(u128::from(unit))
        .ok_or("too large")?;
    if scaled % scale != 0 {
        return Err("it is not a whole number of bytes".to_owned());
    }
    Ok((u64::try_from(scaled / scale).map_err(|_| "too large")?, unit))
}

/// The shortest exact way to write so many bytes. Without `bytes` the unit is another than `B`.
fn shortest(size: u64, bytes: bool) -> String {
    let write = |(name, unit): &(&str, u64)| {
        let (whole, mut rest, mut text) = (size / unit, u128::from(size % unit), String::new());
        while rest != 0 {
            rest *= 10;
            text.push(char::from(b'0' + u8::try_from(rest / u128::from(*unit)).expect("a digit")));
            rest %= u128::from(*unit);
        }
        let point = if text.is_empty() { "" } else { "." };
        // A fraction of more digits than are parsed belongs to a unit that does not suit.
        (text.len() <= 20).then(|| format!("{whole}{point}{text}{name}"))
    };
    let units = UNITS.iter().filter(|(_, unit)| bytes || *unit != 1);
    units.filter_map(write).min_by_key(String::len).expect("a thousandth has three digits")
}

/// A size for a person: decimal, as disks are sold, rounded down to a tenth.
#[must_use]
pub fn human_size(bytes: u64) -> String {
    match UNITS[..4].iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOLD_18TB: u64 = 18_000_207_937_536;

    #[test]
    fn sizes_and_ranges_are_parsed() {
        for (text, expected) in [
            ("18TB", SizeMatch::AsSold(18_000_000_000_000)),
            (" 1.92 TB ", SizeMatch::AsSold(1_920_000_000_000)),
            ("16TiB", SizeMatch::AsSold(16 << 40)),
            ("0.5KiB", SizeMatch::AsSold(512)),
            ("100KB", SizeMatch::AsSold(100_000)),
            ("18000207937536B", SizeMatch::Exactly(SOLD_18TB)),
            ("0B", SizeMatch::Exactly(0)),
            (">= 16TB", SizeMatch::AtLeast(16_000_000_000_000)),
            (">16TB", SizeMatch::AtLeast(16_000_000_000_001)),
            ("<= 1 GB", SizeMatch::AtMost(1_000_000_000)),
            ("< 1GiB", SizeMatch::AtMost((1 << 30) - 1)),
            ("16TB .. 20TB", SizeMatch::Between(16_000_000_000_000, 20_000_000_000_000)),
            ("1kB..1kB", SizeMatch::Between(1000, 1000)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in [
            "",
            "18",
            "TB",
            "18tb",
            "18 T",
            "18EB",
            "-1TB",
            "+1TB",
            "1,5TB",
            "1.TB",
            ".5TB",
            "1.5B",
            "0.3KiB",
            "20TB..16TB",
            "..",
            "1TB..",
            "..1TB",
            ">",
            ">= ",
            "< 0B",
            "=> 1TB",
            "99999999999999999999TB",
            "18446744073709551616B",
            "1.000000000000000000001TB",
            "1TB..2TB..3TB",
            "٣TB",
            "1e3GB",
            "> 18446744073709551615B",
        ] {
            assert!(text.parse::<SizeMatch>().is_err(), "{text}");
        }
        let error = "18".parse::<SizeMatch>().expect_err("no unit").to_string();
        assert_eq!(error, "\"18\" is not a size: a unit is missing: use B, kB, MB, GB, TB, KiB, MiB, GiB or TiB");
    }

    #[test]
    fn sizes_match_as_sold_and_no_neighbour() {
        for (text, bytes, expected) in [
            ("18TB", SOLD_18TB, true),
            ("18TB", 17_820_000_000_000, true),
            ("18TB", 17_819_999_999_999, false),
            ("18TB", 16_000_900_661_248, false),
            ("18TB", 20_000_588_955_648, false),
            ("500GB", 500_107_862_016, true),
            ("500GB", 512_110_190_592, false),
            ("1TB", 1_024_209_543_168, false),
            ("2TB", 1_920_383_410_176, false),
            ("18000207937536B", SOLD_18TB, true),
            ("18000207937536B", SOLD_18TB + 512, false),
            (">= 16TB", SOLD_18TB, true),
            ("> 18000207937536B", SOLD_18TB, false),
            ("<= 18000207937536B", SOLD_18TB, true),
            ("< 18000207937536B", SOLD_18TB, false),
            ("16TB..20TB", 20_000_000_000_000, true),
            ("16TB..20TB", 20_000_588_955_648, false),
        ] {
            assert_eq!(text.parse::<SizeMatch>().expect(text).matches(bytes), expected, "{text} {bytes}");
        }
    }

    #[test]
    fn what_is_printed_parses_to_the_same() {
        for (size, text) in [
            (SizeMatch::AsSold(1_920_000_000_000), "1.92TB"),
            (SizeMatch::AsSold(1), "0.001kB"),
            (SizeMatch::AsSold(16 << 40), "16TiB"),
            (SizeMatch::AtLeast(16_000_000_000_001), ">= 16000000000001B"),
            (SizeMatch::Between(0, 1 << 30), "0B..1GiB"),
        ] {
            assert_eq!(size.to_string(), text);
        }
        arbtest::arbtest(|u| {
            let (a, b): (u64, u64) = (u.arbitrary()?, u.arbitrary()?);
            for size in [
                SizeMatch::AsSold(a),
                SizeMatch::Exactly(a),
                SizeMatch::AtLeast(a),
                SizeMatch::AtMost(a),
                SizeMatch::Between(a.min(b), a.max(b)),
            ] {
                assert_eq!(size.to_string().parse(), Ok(size), "{size}");
            }
            Ok(())
        });
        arbtest::arbtest(|u| {
            if let Ok(size) = u.arbitrary::<&str>()?.parse::<SizeMatch>() {
                assert_eq!(size.to_string().parse(), Ok(size), "{size}");
            }
            Ok(())
        });
    }

    #[test]
    fn people_read_decimal_sizes() {
        for (bytes, expected) in
            [(0, "0 B"), (999, "999 B"), (SOLD_18TB, "18.0 TB"), (3_950_000_000, "3.9 GB"), (1000, "1.0 kB")]
        {
            assert_eq!(human_size(bytes), expected);
        }
    }
}
