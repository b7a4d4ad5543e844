//! Path globs of recipes: `*` and `?` within a path component, `**` across components, `[…]` classes.
//!
//! A glob that names a directory also covers everything below it. Globs are matched against paths relative to the
//! root, as bytes.

use std::collections::HashMap;
use std::fmt;

/// A compiled path glob.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Glob {
    text: String,
    components: Vec<Component>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Component {
    /// `**`: any number of components.
    Any,
    /// No wildcard: compared as it is.
    Literal(Vec<u8>),
    /// With wildcards.
    Pattern(Vec<u8>),
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Glob {
    /// Compiles `text`, a path relative to the root.
    ///
    /// # Errors
    /// A message when a component is empty, `.`, `..`, or has an unclosed class.
    pub fn new(text: &str) -> Result<Self, String> {
        let mut components = Vec::new();
        for part in text.split('/') {
            components.push(match part {
                "" | "." | ".." => return Err(format!("glob {text:?} has an empty, \".\" or \"..\" component")),
                "**" => Component::Any,
                _ if part.contains("**") => return Err(format!("glob {text:?}: \"**\" stands alone in a component")),
                _ if part.matches('[').count() != part.matches(']').count() => {
                    return Err(format!("glob {text:?} has an unclosed class"));
                }
                _ if part.contains(['*', '?', '[']) => Component::Pattern(part.as_bytes().to_vec()),
                _ => Component::Literal(part.as_bytes().to_vec()),
            });
        }
        Ok(Self { text: text.to_owned(), components })
    }

    /// Whether `path` (relative, no leading slash), or a directory above it, matches.
    #[must_use]
    pub fn covers(&self, path: &[u8]) -> bool {
        matches_prefix(&self.components, &split(path))
    }
}

fn split(path: &[u8]) -> Vec<&[u8]> {
    path.split(|byte| *byte == b'/').collect()
}

/// What of packages is left out: what a rule drops and none keeps.
#[derive(Clone, Debug, Default)]
pub struct Dropped<'a> {
    drops: GlobSet<'a>,
    keeps: GlobSet<'a>,
}

impl<'a> Dropped<'a> {
    /// Rules that drop and rules that keep.
    #[must_use]
    pub fn new(drops: impl IntoIterator<Item = &'a Glob>, keeps: impl IntoIterator<Item = &'a Glob>) -> Self {
        Self { drops: drops.into_iter().collect(), keeps: keeps.into_iter().collect() }
    }

    /// Whether `path` is left out.
    #[must_use]
    pub fn covers(&self, path: &str) -> bool {
        let parts = split(path.as_bytes());
        self.drops.matches(&parts) && !self.keeps.matches(&parts)
    }
}

impl fmt::Display for Dropped<'_> {
    /// One rule a line, so that it can be digested.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.drops.all.iter().try_for_each(|glob| writeln!(f, "drop {glob}"))?;
        self.keeps.all.iter().try_for_each(|glob| writeln!(f, "keep {glob}"))
    }
}

/// Many globs, found by the literal components that they begin with.
#[derive(Clone, Debug, Default)]
struct GlobSet<'a> {
    all: Vec<&'a Glob>,
    tree: Prefix<'a>,
}

#[derive(Clone, Debug, Default)]
struct Prefix<'a> {
    below: HashMap<&'a [u8], Prefix<'a>>,
    /// What is left of the globs that begin with no further literal.
    rest: Vec<&'a [Component]>,
}

impl<'a> FromIterator<&'a Glob> for GlobSet<'a> {
    fn from_iter<I: IntoIterator<Item = &'a Glob>>(globs: I) -> Self {
        let mut set = Self::default();
        for glob in globs {
            let mut node = &mut set.tree;
            let mut rest = glob.components.as_slice();
            while let [Component::Literal(name), below @ ..] = rest {
                node = node.below.entry(name).or_default();
                rest = below;
            }
            node.rest.push(rest);
            set.all.push(glob);
        }
        set
    }
}

impl GlobSet<'_> {
    fn matches(&self, parts: &[&[u8]]) -> bool {
        let mut node = &self.tree;
        let mut parts = parts;
        loop {
            if node.rest.iter().any(|rest| matches_prefix(rest, parts)) {
                return true;
            }
            let Some((first, below)) = parts.split_first() else { return false };
            let Some(next) = node.below.get(first) else { return false };
            (node, parts) = (next, below);
        }
    }
}

fn matches_prefix(components: &[Component], parts: &[&[u8]]) -> bool {
    match components {
        [] => true,
        // A trailing `**` stands for what is below, not for the directory itself.
        [Component::Any] => !parts.is_empty(),
        [Component::Any, rest @ ..] => (0..=parts.len()).any(|skip| matches_prefix(rest, &parts[skip..])),
        [Component::Literal(name), rest @ ..] => {
            parts.first().is_some_and(|part| part == name) && matches_prefix(rest, &parts[1..])
        }
        [Component::Pattern(pattern), rest @ ..] => {
            parts.first().is_some_and(|part| matches_name(pattern, part)) && matches_prefix(rest, &parts[1..])
        }
    }
}

/// Whether `name` matches a shell pattern of `*`, `?` and `[…]`, without any rule for slashes or leading dots.
#[must_use]
pub fn matches_name(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) => (0..=name.len()).any(|skip| matches_name(rest, &name[skip..])),
        Some((b'?', rest)) => !name.is_empty() && matches_name(rest, &name[1..]),
        Some((b'[', rest)) => {
            let Some(end) = rest.iter().skip(1).position(|byte| *byte == b']').map(|at| at + 1) else { return false };
            let (class, rest) = (&rest[..end], &rest[end + 1..]);
            name.first().is_some_and(|byte| in_class(class, *byte)) && matches_name(rest, &name[1..])
        }
        Some((byte, rest)) => name.first() == Some(byte) && matches_name(rest, &name[1..]),
    }
}

fn in_class(class: &[u8], byte: u8) -> bool {
    let (negated, class) = match class.split_first() {
        Some((b'!' | b'^', rest)) => (true, rest),
        _ => (false, class),
    };
    let mut found = false;
    let mut at = 0;
    while at < class.len() {
        if at + 2 < class.len() && class[at + 1] == b'-' {
            found |= (class[at]..=class[at + 2]).contains(&byte);
            at += 3;
        } else {
            found |= class[at] == byte;
            at += 1;
        }
    }
    found != negated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_cover_what_they_name_and_what_is_below() {
        let cases = [
            ("usr/share/doc", "usr/share/doc/x/copyright", true),
            ("usr/share/doc", "usr/share/docs", false),
            ("usr/share/doc/**", "usr/share/doc/x", true),
            ("usr/share/doc/**", "usr/share/doc", false),
            ("usr/lib/*/libfoo.a", "usr/lib/x86_64-linux-gnu/libfoo.a", true),
            ("usr/lib/*/libfoo.a", "usr/lib/a/b/libfoo.a", false),
            ("**/*.pyc", "usr/lib/python3/a.pyc", true),
            ("**/*.pyc", "a.pyc", true),
            ("usr/lib/modules/*/kernel/sound", "usr/lib/modules/6.12/kernel/sound/core/snd.ko.xz", true),
            ("usr/lib/[a-c]?", "usr/lib/bx", true),
            ("usr/lib/[!a-c]?", "usr/lib/bx", false),
        ];
        for (glob, path, expected) in cases {
            let glob = Glob::new(glob).expect("the table's globs are valid");
            assert_eq!(glob.covers(path.as_bytes()), expected, "{glob} on {path}");
            assert_eq!(Dropped::new([&glob], []).covers(path), expected, "{glob} on {path}, in a set");
            assert!(!Dropped::new([&glob], [&glob]).covers(path), "{glob} on {path}, kept");
        }
        for bad in ["", "a//b", "/a", "a/../b", "a**", "a[b"] {
            assert!(Glob::new(bad).is_err(), "{bad:?}");
        }
    }
}
