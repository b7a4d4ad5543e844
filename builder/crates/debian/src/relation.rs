//! Relationships between packages: `Depends`, `Provides`, `Conflicts` and their like.
//!
//! The syntax is that of [Debian Policy 7.1][policy]. Architecture lists and build profiles (`[amd64]`, `<!nocheck>`)
//! occur only in source packages and are refused.
//!
//! [policy]: https://www.debian.org/doc/debian-policy/ch-relationships.html#syntax-of-relationship-fields

use std::fmt;
use std::str::FromStr;

use crate::Error;
use crate::version::Version;

/// One requirement: any of its alternatives satisfies it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// At least one, in the order of preference.
    pub alternatives: Vec<Relation>,
}

/// A package name, perhaps with an architecture and a range of versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// Name of a package, real or virtual.
    pub name: String,
    /// What follows the name after a colon: `any`, `native` or an architecture.
    pub qualifier: Option<String>,
    /// The versions that satisfy it; all, where there is no constraint.
    pub constraint: Option<Constraint>,
}

/// An operator and the version that it compares with.
pub type Constraint = (Operator, Version);

/// How a version must compare with that of a constraint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// `<<`
    Earlier,
    /// `<=`
    EarlierOrEqual,
    /// `=`
    Equal,
    /// `>=`
    LaterOrEqual,
    /// `>>`
    Later,
}

/// Parses a field of dependencies: alternatives between `|`, requirements between commas.
///
/// # Errors
///
/// [`Error::Relation`] and [`Error::RelationVersion`], which quote the part that is wrong.
pub fn parse_dependencies(text: &str) -> Result<Vec<Dependency>, Error> {
    let mut dependencies = sized_for(text, b',');
    for item in items(text) {
        let mut alternatives = sized_for(item, b'|');
        for alternative in item.split('|') {
            alternatives.push(alternative.parse()?);
        }
        dependencies.push(Dependency { alternatives });
    }
    Ok(dependencies)
}

/// Parses a field that knows no alternatives: `Conflicts`, `Breaks`, `Replaces`.
///
/// # Errors
///
/// As [`parse_dependencies`]; an alternative is an error.
pub fn parse_relations(text: &str) -> Result<Vec<Relation>, Error> {
    let mut relations = sized_for(text, b',');
    for item in items(text) {
        relations.push(item.parse()?);
    }
    Ok(relations)
}

/// Parses a `Provides` field, whose only operator is `=`.
///
/// # Errors
///
/// As [`parse_relations`]; any operator other than `=` is an error.
pub fn parse_provides(text: &str) -> Result<Vec<Relation>, Error> {
    let relations = parse_relations(text)?;
    for relation in &relations {
        if relation.constraint.as_ref().is_some_and(|(operator, _)| *operator != Operator::Equal) {
            let problem = "a package provides one version, with =";
            return Err(Error::Relation { text: relation.to_string(), problem });
        }
    }
    Ok(relations)
}

impl Operator {
    /// Whether `version` stands in this relation to `reference`.
    #[must_use]
    pub fn holds(self, version: &Version, reference: &Version) -> bool {
        match self {
            Self::Earlier => version < reference,
            Self::EarlierOrEqual => version <= reference,
            Self::Equal => version == reference,
            Self::LaterOrEqual => version >= reference,
            Self::Later => version > reference,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Earlier => "<<",
            Self::EarlierOrEqual => "<=",
            Self::Equal => "=",
            Self::LaterOrEqual => ">=",
            Self::Later => ">>",
        }
    }
}

impl Relation {
    /// Whether a package of this name and of that version satisfies the constraint.
    #[must_use]
    pub fn accepts(&self, version: &Version) -> bool {
        self.constraint.as_ref().is_none_or(|(operator, reference)| operator.holds(version, reference))
    }

    /// Whether an entry of some package's `Provides` satisfies this relation.
    ///
    /// As policy 7.5 has it, one without a version satisfies only a relation without a constraint.
    #[must_use]
    pub fn accepts_provided(&self, provided: &Relation) -> bool {
        self.name == provided.name
            && match (&self.constraint, &provided.constraint) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(_), Some((_, version))) => self.accepts(version),
            }
    }

    /// Whether a package of an architecture fits the qualifier, seen from a system of one architecture.
    #[must_use]
    pub fn accepts_architecture(&self, architecture: &str) -> bool {
        match self.qualifier.as_deref() {
            None | Some("any" | "native") => true,
            Some(qualifier) => qualifier == architecture,
        }
    }
}

impl FromStr for Relation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let text = text.trim_ascii();
        let wrong = |problem| Error::Relation { text: text.to_owned(), problem };
        let (name, constraint) = match text.split_once('(') {
            Some((name, rest)) => {
                let inner = rest.strip_suffix(')').ok_or_else(|| wrong("the parenthesis is not closed at the end"))?;
                (name.trim_ascii_end(), Some(parse_constraint(text, inner)?))
            }
            None => (text, None),
        };
        let (name, qualifier) = match name.split_once(':') {
            Some((name, qualifier)) => (name, Some(qualifier)),
            None => (name, None),
        };
        // Policy wants two characters and lower case; dpkg takes what follows.
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        if !name.bytes().all(allowed) || !name.starts_with(|first: char| first.is_ascii_alphanumeric()) {
            return Err(wrong("not a package name"));
        }
        if qualifier.is_some_and(|name| {
            name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        }) {
            return Err(wrong("not an architecture"));
        }
        Ok(Self { name: name.to_owned(), qualifier: qualifier.map(str::to_owned), constraint })
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(qualifier) = &self.qualifier {
            write!(f, ":{qualifier}")?;
        }
        if let Some((operator, version)) = &self.constraint {
            write!(f, " ({operator} {version})")?;
        }
        Ok(())
    }
}

impl fmt::Display for Dependency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, relation) in self.alternatives.iter().enumerate() {
            if index > 0 {
                f.write_str(" | ")?;
            }
            relation.fmt(f)?;
        }
        Ok(())
    }
}

/// A vector with room for exactly the parts of a text. An index holds a million of these, nearly all of one element.
fn sized_for<T>(text: &str, separator: u8) -> Vec<T> {
    Vec::with_capacity(text.bytes().filter(|byte| *byte == separator).count() + 1)
}

/// The parts between commas. Dpkg allows a comma at the end, and so an empty field.
fn items(text: &str) -> impl Iterator<Item = &str> {
    let text = text.trim_ascii();
    let text = text.strip_suffix(',').unwrap_or(text);
    (!text.is_empty()).then(|| text.split(',')).into_iter().flatten()
}

fn parse_constraint(text: &str, inner: &str) -> Result<Constraint, Error> {
    let inner = inner.trim_ascii();
    let end = inner.find(|symbol| !matches!(symbol, '<' | '=' | '>')).unwrap_or(inner.len());
    let (operator, version) = inner.split_at(end);
    let operator = match operator {
        "<<" => Operator::Earlier,
        // The old single signs mean "or equal": policy 7.1 deprecates them, and indexes still hold some.
        "<=" | "<" => Operator::EarlierOrEqual,
        "=" => Operator::Equal,
        ">=" | ">" => Operator::LaterOrEqual,
        ">>" => Operator::Later,
        _ => return Err(Error::Relation { text: text.to_owned(), problem: "not one of << <= = >= >>" }),
    };
    let version = version.trim_ascii().parse();
    let version = version.map_err(|err| Error::RelationVersion { text: text.to_owned(), source: Box::new(err) })?;
    Ok((operator, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        for (text, printed) in [
            ("", vec![]),
            ("libc6", vec!["libc6"]),
            ("libc6 (>= 2.38), a|b ( << 1:2-3 )|c:any(=1),", vec!["libc6 (>= 2.38)", "a | b (<< 1:2-3) | c:any (= 1)"]),
            ("g++:amd64,\n  lib2.0+x", vec!["g++:amd64", "lib2.0+x"]),
            ("a (< 1), b (> 2)", vec!["a (<= 1)", "b (>= 2)"]),
        ] {
            let parsed = parse_dependencies(text).unwrap();
            assert_eq!(parsed.iter().map(Dependency::to_string).collect::<Vec<_>>(), printed, "{text:?}");
        }
    }

    #[test]
    fn refused() {
        for text in [
            ",,",
            "a,,b",
            "a |",
            "| a",
            "a b",
            "a (>= 1",
            "a (>= 1) b",
            "a (1)",
            "a (>= )",
            "a (!= 1)",
            "a (>> 1_2)",
            "a:",
            "a: any",
            "-a",
            "a [amd64]",
            "a <!nocheck>",
            "a ()",
            "\u{e4}",
            "a (<=> 1)",
        ] {
            assert!(parse_dependencies(text).is_err(), "{text:?}");
        }
        assert!(parse_relations("a | b").is_err());
        assert!(parse_provides("a (>= 1)").is_err());
        assert!(parse_provides("a (= 1), b").is_ok());
    }

    #[test]
    fn constraints() {
        for (relation, version, accepted) in [
            ("a", "1", true),
            ("a (<< 2)", "2", false),
            ("a (<< 2)", "2~", true),
            ("a (<= 2)", "2", true),
            ("a (= 2)", "2-0", true),
            ("a (= 2)", "2-1", false),
            ("a (>= 2)", "1:1", true),
            ("a (>> 2)", "2", false),
            ("a (>> 2)", "2+x", true),
        ] {
            let parsed: Relation = relation.parse().unwrap();
            assert_eq!(parsed.accepts(&version.parse().unwrap()), accepted, "{relation} with {version}");
        }
    }

    #[test]
    fn provided() {
        for (relation, provided, accepted) in [
            ("a", "a", true),
            ("a", "a (= 1)", true),
            ("a (>= 1)", "a", false),
            ("a (>= 1)", "a (= 1)", true),
            ("a (>= 2)", "a (= 1)", false),
            ("a", "b", false),
        ] {
            let relation: Relation = relation.parse().unwrap();
            assert_eq!(relation.accepts_provided(&provided.parse().unwrap()), accepted, "{relation} from {provided}");
        }
        for (relation, accepted) in
            [("a", true), ("a:any", true), ("a:native", true), ("a:amd64", true), ("a:arm64", false)]
        {
            assert_eq!(relation.parse::<Relation>().unwrap().accepts_architecture("amd64"), accepted, "{relation}");
        }
    }
}
