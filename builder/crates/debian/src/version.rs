//! Version numbers and their order.
//!
//! The syntax and the order are those of [Debian Policy 5.6.12][policy].
//!
//! [policy]: https://www.debian.org/doc/debian-policy/ch-controlfields.html#version

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use crate::Error;

/// A version `[epoch:]upstream[-revision]`.
///
/// Comparison is by policy, so that `1.0`, `0:1.0` and `1.0-0` are equal although they print differently.
#[derive(Clone)]
pub struct Version(Box<str>);

impl Version {
    /// The text as it was parsed.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The epoch, 0 where none is written.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.split().0
    }

    /// The upstream version.
    #[must_use]
    pub fn upstream(&self) -> &str {
        self.split().1
    }

    /// The Debian revision, empty where none is written.
    #[must_use]
    pub fn revision(&self) -> &str {
        self.split().2
    }

    fn split(&self) -> (u32, &str, &str) {
        let (epoch, rest) = self.0.split_once(':').unwrap_or(("0", &self.0));
        let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
        (epoch.parse().expect("the epoch was checked when the version was parsed"), upstream, revision)
    }
}

impl FromStr for Version {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |problem| Error::Version { text: text.to_owned(), problem };
        let rest = match text.split_once(':') {
            Some((epoch, rest)) => {
                // As in dpkg, an epoch fits a signed 32-bit number.
                let digits = !epoch.is_empty() && epoch.bytes().all(|byte| byte.is_ascii_digit());
                if !digits || epoch.parse::<i32>().is_err() {
                    return Err(wrong("the epoch is not a number below 2147483648"));
                }
                rest
            }
            None => text,
        };
        let (upstream, revision) = match rest.rsplit_once('-') {
            Some((_, "")) => return Err(wrong("the revision is empty")),
            Some(parts) => parts,
            None => (rest, ""),
        };
        if upstream.is_empty() {
            return Err(wrong("the upstream version is empty"));
        }
        // Policy also wants a digit in front. Dpkg only warns about that, and such versions exist.
        if !upstream.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".+-~:".contains(&byte)) {
            return Err(wrong("the upstream version may hold only letters, digits and . + - ~ :"));
        }
        if !revision.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".+~".contains(&byte)) {
            return Err(wrong("the revision may hold only letters, digits and . + ~"));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let (left, right) = (self.split(), other.split());
        left.0.cmp(&right.0).then_with(|| compare(left.1, right.1)).then_with(|| compare(left.2, right.2))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Version {}

/// Compares two upstream versions or two revisions: stretches without digits and numbers, in turn.
fn compare(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left.as_bytes(), right.as_bytes());
    while !left.is_empty() || !right.is_empty() {
        let (left_text, left_rest) = split_while(left, |byte| !byte.is_ascii_digit());
        let (right_text, right_rest) = split_while(right, |byte| !byte.is_ascii_digit());
        let (left_number, left_rest) = split_while(left_rest, |byte| byte.is_ascii_digit());
        let (right_number, right_rest) = split_while(right_rest, |byte| byte.is_ascii_digit());
        let order = compare_text(left_text, right_text).then_with(|| compare_number(left_number, right_number));
        if order != Ordering::Equal {
            return order;
        }
        (left, right) = (left_rest, right_rest);
    }
    Ordering::Equal
}

fn compare_text(left: &[u8], right: &[u8]) -> Ordering {
    let length = left.len().max(right.len());
    (0..length).map(|i| weight(left.get(i).copied())).cmp((0..length).map(|i| weight(right.get(i).copied())))
}

/// A tilde sorts before the end, the end before letters, and letters before everything else.
fn weight(byte: Option<u8>) -> u16 {
    match byte {
        Some(b'~') => 0,
        None => 1,
        Some(byte) if byte.is_ascii_alphabetic() => u16::from(byte),
        Some(byte) => 256 + u16::from(byte),
    }
}

/// Compares numbers of any length. An empty one counts as zero.
fn compare_number(left: &[u8], right: &[u8]) -> Ordering {
    let (_, left) = split_while(left, |byte| byte == b'0');
    let (_, right) = split_while(right, |byte| byte == b'0');
    left.len().cmp(&right.len()).then_with(|| left.cmp(right))
}

fn split_while(text: &[u8], belongs: impl Fn(u8) -> bool) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|byte| !belongs(*byte)).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order() {
        for (left, order, right) in [
            ("1.0", "=", "1.0"),
            ("1.0", "=", "0:1.0"),
            ("1.0", "=", "1.0-0"),
            ("1.00", "=", "1.0"),
            ("1.0a", "<", "1.0b"),
            ("1.9", "<", "1.10"),
            ("1.0", "<", "1.0-1"),
            ("1.0-1", "<", "1.0-1.1"),
            ("1.0-9", "<", "1.0-10"),
            ("9.0", "<", "1:0.1"),
            ("2:0.1", "<", "10:0.1"),
            ("1.0~rc1", "<", "1.0"),
            ("1.0~rc1", "<", "1.0~rc2"),
            ("1.0~~", "<", "1.0~"),
            ("1.0~~a", "<", "1.0~"),
            ("1.0~", "<", "1.0"),
            ("1.0-1~deb13u1", "<", "1.0-1"),
            ("1.0", "<", "1.0a"),
            ("1.0a", "<", "1.0+"),
            ("1.0Z", "<", "1.0a"),
            ("1.0-1", "<", "1.0.1-1"),
            ("1-2-3", "<", "1-3-1"),
            ("257.9-1~deb13u1", "<", "257.13-1~deb13u1"),
            ("6.12.117-1", "<", "6.12.118-1"),
            ("99999999999999999999999998", "<", "99999999999999999999999999"),
            ("1.2.3-0.0", "=", "1.2.3-0.00"),
            ("1.2.3-0.00", "<", "1.2.3-0.0.0"),
            ("1a2", "<", "1a10"),
            ("1:a-b", "<", "1:a-c"),
        ] {
            let (a, b): (Version, Version) = (left.parse().expect(left), right.parse().expect(right));
            let expected = if order == "<" { Ordering::Less } else { Ordering::Equal };
            assert_eq!(a.cmp(&b), expected, "{left} {order} {right}");
            assert_eq!(b.cmp(&a), expected.reverse(), "{right} against {left}");
        }
    }

    #[test]
    fn parts() {
        for (text, parts) in [
            ("1.0", (0, "1.0", "")),
            ("2:1.0-rc-3", (2, "1.0-rc", "3")),
            ("1:2:3-4", (1, "2:3", "4")),
            ("20250419", (0, "20250419", "")),
        ] {
            let version: Version = text.parse().unwrap();
            assert_eq!((version.epoch(), version.upstream(), version.revision()), parts, "{text}");
            assert_eq!(version.to_string(), text);
        }
    }

    #[test]
    fn refused() {
        for text in
            ["", ":1", "a:1", "-1:1", "2147483648:1", "1:", "1-", "-1", "1 0", "1.0_1", "1.0-1_2", "1.0é", "1\n"]
        {
            assert!(text.parse::<Version>().is_err(), "{text:?}");
        }
    }
}
