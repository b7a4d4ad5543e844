//! Matching a device's modalias against the patterns of `modules.alias`.
//!
//! The patterns are those of `fnmatch(3)` without flags, which is what kmod uses: `*`, `?`, `[set]`, `[!set]` and
//! ranges. In module names and aliases `-` and `_` are the same outside a set.

/// Whether the whole of `text` matches `pattern`.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to take up again when what follows the last star does not match: after the star, one byte further on.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            retry = Some((p, t));
            continue;
        }
        if let Some(next) = match_one(pattern, p, text[t]) {
            p = next;
            t += 1;
            continue;
        }
        let Some((after_star, from)) = retry else { return false };
        p = after_star;
        t = from + 1;
        retry = Some((after_star, t));
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

/// The part of a pattern or modalias before its first colon, when it holds no wildcard: the bus.
pub(crate) fn bus(alias: &str) -> Option<&str> {
    let (bus, _) = alias.split_once(':')?;
    (!bus.contains(['*', '?', '['])).then_some(bus)
}

/// Writes `-` as `_` outside sets, as kmod does before it compares.
pub(crate) fn normalize(alias: &str) -> String {
    let mut in_set = false;
    let one = |c| {
        match c {
            '[' => in_set = true,
            ']' => in_set = false,
            _ => {}
        }
        if c == '-' && !in_set { '_' } else { c }
    };
    alias.chars().map(one).collect()
}

/// Matches one byte against the pattern's element at `p`; gives where the next element begins.
fn match_one(pattern: &[u8], p: usize, byte: u8) -> Option<usize> {
    match pattern.get(p)? {
        b'?' => Some(p + 1),
        b'[' => match_set(pattern, p + 1, byte).unwrap_or_else(|| (byte == b'[').then_some(p + 1)),
        &literal => (literal == byte).then_some(p + 1),
    }
}

/// Matches one byte against a set whose first byte is at `start`. `None`: the set does not end, so that its bracket
/// stands for itself.
fn match_set(pattern: &[u8], start: usize, byte: u8) -> Option<Option<usize>> {
    let negated = matches!(pattern.get(start), Some(b'!' | b'^'));
    let first = start + usize::from(negated);
    let mut p = first;
    let mut found = false;
    loop {
        let low = *pattern.get(p)?;
        if low == b']' && p > first {
            break;
        }
        match (pattern.get(p + 1), pattern.get(p + 2)) {
            (Some(b'-'), Some(&high)) if high != b']' => {
                found |= (low..=high).contains(&byte);
                p += 3;
            }
            _ => {
                found |= low == byte;
                p += 1;
            }
        }
    }
    Some((found != negated).then_some(p + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_fnmatch_does() {
        for (pattern, text, expected) in [
            ("pci:v00001AF4d*sv*sd*bc*sc*i*", "pci:v00001AF4d00001001sv00001AF4sd00000002bc01sc00i00", true),
            ("pci:v00001AF5d*sv*sd*bc*sc*i*", "pci:v00001AF4d00001001sv00001AF4sd00000002bc01sc00i00", false),
            ("virtio:d00000002v*", "virtio:d00000002v00001AF4", true),
            ("usb:v*p*d*dc*dsc*dp*ic08isc06ip50in*", "usb:v46F4p0001d0000dc00dsc00dp00ic08isc06ip50in00", true),
            ("usb:v*p*d[0-3]*", "usb:v46F4p0001d2000", true),
            ("usb:v*p*d[0-3]*", "usb:v46F4p0001d9000", false),
            ("a[!b-d]e", "afe", true),
            ("a[!b-d]e", "ace", false),
            ("a[]]b", "a]b", true),
            ("a[b", "a[b", true),
            ("a[b", "axb", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("**a", "bba", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-d", false),
            ("acpi*:QEMU0002:*", "acpi:QEMU0002:", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} against {text}");
        }
    }

    #[test]
    fn many_stars_do_not_take_for_ever() {
        let pattern = "a*".repeat(30) + "b";
        assert!(!matches(&pattern, &"a".repeat(2000)));
    }

    #[test]
    fn buses_and_normal_forms() {
        assert_eq!(bus("pci:v00001AF4d*"), Some("pci"));
        assert_eq!(bus("acpi*:PNP0C0A:*"), None);
        assert_eq!(bus("fs-ext4"), None);
        assert_eq!(normalize("crypto-sha256-[a-f]-x"), "crypto_sha256_[a-f]_x");
    }
}
