//! Maintainer scripts: is everything that a package's scripts would have done accounted for?
//!
//! The builder runs no code of a package. A Debian package may still carry scripts that dpkg would run at installation
//! ([Debian Policy, chapter 6]), and what they do must be done by something else, or be known to be unnecessary.
//! `images/scripts.toml` says so, with a reason for each; this module reads those rules and checks a script against
//! them. A script that no rule covers is an [`Uncovered`] error, so an update that changes a script stops the build until
//! somebody has read it.
//!
//! Rules are of four kinds:
//!
//! - `[[ignored-script]]`: a kind of script that never runs at a fresh installation (`prerm`, `postrm`, `config`).
//! - `[[snippet]]`: what [debhelper] puts between `# Automatically added by TOOL/VERSION` and `# End automatically added
//!   section`. The rule holds the SHA-256 of the section's text with its names replaced, as the module `normalize` says.
//!   A script is covered when all its sections are, and nothing else is in it but the interpreter line, comments, blank
//!   lines, `set -e` and `exit 0`.
//! - `[[script]]`: a whole script, by package, kind and the SHA-256 of its bytes. Anything may be covered so, a compiled
//!   program too.
//! - `[[trigger]]`: a name in a package's `triggers` file ([deb-triggers(5)]), where every line must be covered.
//!
//! # Scripts that name their own version
//!
//! Kernel packages have their version in their name and in their scripts. The package of a `[[script]]` rule may hold one
//! `*`; what it stands for is replaced by `*` in the script before the digest is taken.
//!
//! Left out: nothing here judges what a rule claims. That is for whoever writes the reason, and for the comparison with
//! Debian's own installation.
//!
//! [Debian Policy, chapter 6]: https://www.debian.org/doc/debian-policy/ch-maintainerscripts.html
//! [debhelper]: https://manpages.debian.org/trixie/debhelper/debhelper.7.en.html
//! [deb-triggers(5)]: https://manpages.debian.org/trixie/dpkg-dev/deb-triggers.5.en.html

mod normalize;

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use toml::Spanned;

use normalize::{is_name_byte, normalize};

/// How a debhelper section begins; the tool's name, a slash and its version follow.
const SECTION_START: &str = "# Automatically added by ";

/// How a debhelper section ends.
const SECTION_END: &str = "# End automatically added section";

/// Interpreter lines, without blanks, under which the statements that are ignored outside sections mean nothing.
const SHELLS: [&str; 6] =
    ["#!/bin/sh", "#!/bin/sh-e", "#!/bin/bash", "#!/bin/bash-e", "#!/usr/bin/sh", "#!/usr/bin/bash"];

/// How many uncovered lines a message quotes.
const QUOTED_LINES: usize = 12;

/// The rules of `images/scripts.toml`.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    ignored: Vec<IgnoredRule>,
    snippets: Vec<SnippetRule>,
    scripts: Vec<ScriptRule>,
    triggers: Vec<TriggerRule>,
}

/// A kind of script that an installation from scratch never runs.
#[derive(Debug, Clone)]
pub struct IgnoredRule {
    kind: Kind,
    /// Why no script of this kind matters.
    pub reason: String,
}

/// A debhelper section that something else does, or that does nothing here.
#[derive(Debug, Clone)]
pub struct SnippetRule {
    /// The debhelper tool that writes the section, such as `dh_installsystemd`.
    pub tool: String,
    sha256: Sha256Digest,
    /// What does the section's work.
    pub covered_by: String,
    /// Why that is enough.
    pub reason: String,
}

/// A whole script that somebody has read.
#[derive(Debug, Clone)]
pub struct ScriptRule {
    package: PackagePattern,
    kind: Kind,
    sha256: Sha256Digest,
    /// What does the script's work.
    pub covered_by: String,
    /// Why that is enough.
    pub reason: String,
}

/// A dpkg trigger that needs no run.
#[derive(Debug, Clone)]
pub struct TriggerRule {
    name: String,
    /// Why nothing needs to run.
    pub reason: String,
}

/// Why a script needs no run.
#[derive(Debug, Clone)]
pub enum Coverage<'a> {
    /// Its kind never runs at a fresh installation.
    NeverRuns(&'a IgnoredRule),
    /// The whole script is listed.
    Script(&'a ScriptRule),
    /// It consists of known debhelper sections, in the script's order; of none when it does nothing at all.
    Snippets(Vec<CoveredSnippet<'a>>),
    /// It is a `triggers` file, and these are its lines' rules.
    Triggers(Vec<&'a TriggerRule>),
}

/// A debhelper section that a rule covers.
#[derive(Debug, Clone)]
pub struct CoveredSnippet<'a> {
    /// The rule that covers it.
    pub rule: &'a SnippetRule,
    /// The names that normalisation replaced, sorted: units, files, init scripts, profiles.
    pub names: BTreeSet<String>,
}

/// Rules that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not TOML, or not of this form; the message has line and column.
    #[error("{0}")]
    Toml(#[from] toml::de::Error),
    /// A rule that repeats an earlier one.
    #[error("line {line}, column {column}: the rule for {what} is there already")]
    Duplicate {
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What the rule is for.
        what: String,
    },
    /// A rule that ignores all scripts of a kind that does run.
    #[error("line {line}, column {column}: {kind} scripts run at a fresh installation and cannot be ignored as a kind")]
    IgnoresRunning {
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// The kind that the rule names.
        kind: Kind,
    },
}

/// A maintainer script that no rule covers: somebody has to read it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("package {package}: no rule in images/scripts.toml covers its {kind} (sha256 {sha256}){alias}{gaps}",
    alias = alias_text(.alias), gaps = gaps_text(.gaps))]
pub struct Uncovered {
    /// The package that carries the script.
    pub package: String,
    /// The script's kind, as dpkg names it.
    pub kind: String,
    /// SHA-256 of the script, in lower-case hexadecimal.
    pub sha256: String,
    /// Where a rule's package with a `*` fits: that pattern, and the digest to write beside it.
    pub alias: Option<Box<(String, String)>>,
    /// What in it is not covered, in the script's order.
    pub gaps: Vec<Gap>,
}

/// A part of a script that no rule covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gap {
    /// A statement outside every debhelper section.
    Line {
        /// Line, from 1.
        number: usize,
        /// Its text.
        text: String,
    },
    /// A debhelper section.
    Section {
        /// The line where it begins, from 1.
        number: usize,
        /// The tool that wrote it.
        tool: String,
        /// SHA-256 of its normalised text, in lower-case hexadecimal.
        sha256: String,
    },
    /// A section that begins within another, or that does not end.
    BrokenSection {
        /// The line where it begins, from 1.
        number: usize,
    },
    /// A trigger.
    Trigger {
        /// Line, from 1.
        number: usize,
        /// The trigger's name.
        name: String,
    },
    /// The script is a program, or text that is not UTF-8.
    NotText,
    /// dpkg knows no script of this kind.
    UnknownKind,
}

/// The kinds of files that dpkg runs, or acts on, at installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Runs before unpacking.
    Preinst,
    /// Runs after unpacking.
    Postinst,
    /// Runs before removal.
    Prerm,
    /// Runs after removal.
    Postrm,
    /// Asks debconf's questions.
    Config,
    /// Declares triggers.
    Triggers,
}

impl Rules {
    /// Parses the text of `images/scripts.toml`.
    ///
    /// # Errors
    /// When it is not TOML of this form, has an unknown field, repeats a rule, or ignores a kind that does run. The
    /// message has line and column.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let raw: RawRules = toml::from_str(text)?;
        let mut seen = BTreeSet::new();
        let mut claim = |span: Range<usize>, what: String| {
            if seen.insert(what.clone()) {
                return Ok(());
            }
            let (line, column) = position(text, span.start);
            Err(Error::Duplicate { line, column, what })
        };
        let mut rules = Self::default();
        for spanned in raw.ignored_script {
            let span = spanned.span();
            let RawIgnored { kind, reason } = spanned.into_inner();
            if matches!(kind, Kind::Preinst | Kind::Postinst | Kind::Triggers) {
                let (line, column) = position(text, span.start);
                return Err(Error::IgnoresRunning { line, column, kind });
            }
            claim(span, format!("all {kind} scripts"))?;
            rules.ignored.push(IgnoredRule { kind, reason: reason.0 });
        }
        for spanned in raw.snippet {
            let span = spanned.span();
            let RawSnippet { tool, sha256, covered_by, reason } = spanned.into_inner();
            claim(span, format!("the section {sha256} of {}", tool.0))?;
            rules.snippets.push(SnippetRule { tool: tool.0, sha256, covered_by: covered_by.0, reason: reason.0 });
        }
        for spanned in raw.script {
            let span = spanned.span();
            let RawScript { package, kind, sha256, covered_by, reason } = spanned.into_inner();
            claim(span, format!("{package} {kind} {sha256}"))?;
            rules.scripts.push(ScriptRule { package, kind, sha256, covered_by: covered_by.0, reason: reason.0 });
        }
        for spanned in raw.trigger {
            let span = spanned.span();
            let RawTrigger { name, reason } = spanned.into_inner();
            claim(span, format!("the trigger {}", name.0))?;
            rules.triggers.push(TriggerRule { name: name.0, reason: reason.0 });
        }
        Ok(rules)
    }

    /// Checks one file of a package's control archive: `preinst`, `postinst`, `prerm`, `postrm`, `config` or `triggers`.
    ///
    /// # Errors
    /// When something in it is covered by no rule.
    pub fn check<'a>(&'a self, package: &str, kind: &str, script: &[u8]) -> Result<Coverage<'a>, Uncovered> {
        let uncovered = |gaps| Uncovered {
            package: package.to_owned(),
            kind: kind.to_owned(),
            sha256: Sha256Digest::of(script).to_string(),
            alias: self.alias(package, kind, script).map(Box::new),
            gaps,
        };
        let Some(kind) = Kind::parse(kind) else {
            return Err(uncovered(vec![Gap::UnknownKind]));
        };
        if let Some(rule) = self.ignored.iter().find(|rule| rule.kind == kind) {
            return Ok(Coverage::NeverRuns(rule));
        }
        if let Some(rule) = self.scripts.iter().find(|rule| rule.covers(package, kind, script)) {
            return Ok(Coverage::Script(rule));
        }
        let Ok(text) = str::from_utf8(script) else {
            return Err(uncovered(vec![Gap::NotText]));
        };
        match kind {
            Kind::Triggers => self.check_triggers(text).map_err(uncovered),
            Kind::Preinst | Kind::Postinst | Kind::Prerm | Kind::Postrm | Kind::Config => {
                self.check_sections(text).map_err(uncovered)
            }
        }
    }

    fn check_triggers(&self, text: &str) -> Result<Coverage<'_>, Vec<Gap>> {
        let mut covered = Vec::new();
        let mut gaps = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let number = index + 1;
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                [
                    "interest" | "interest-await" | "interest-noawait" | "activate" | "activate-await"
                    | "activate-noawait",
                    name,
                ] => match self.triggers.iter().find(|rule| rule.name == name) {
                    Some(rule) => covered.push(rule),
                    None => gaps.push(Gap::Trigger { number, name: name.to_owned() }),
                },
                _ => gaps.push(Gap::Line { number, text: line.to_owned() }),
            }
        }
        if gaps.is_empty() { Ok(Coverage::Triggers(covered)) } else { Err(gaps) }
    }

    fn check_sections(&self, text: &str) -> Result<Coverage<'_>, Vec<Gap>> {
        let mut covered = Vec::new();
        let mut gaps = Vec::new();
        let mut open: Option<Section<'_>> = None;
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            if let Some(tool) = line.strip_prefix(SECTION_START) {
                let tool = tool.split('/').next().unwrap_or(tool);
                if let Some(unended) = open.replace(Section { number, tool, lines: Vec::new() }) {
                    gaps.push(Gap::BrokenSection { number: unended.number });
                }
            } else if line == SECTION_END {
                match open.take() {
                    Some(section) => self.check_section(&section, &mut covered, &mut gaps),
                    None => gaps.push(Gap::BrokenSection { number }),
                }
            } else if let Some(section) = &mut open {
                section.lines.push(line);
            } else if !(if index == 0 { is_shell(line) } else { means_nothing(line) }) {
                gaps.push(Gap::Line { number, text: line.to_owned() });
            }
        }
        if let Some(unended) = open {
            gaps.push(Gap::BrokenSection { number: unended.number });
        }
        if gaps.is_empty() { Ok(Coverage::Snippets(covered)) } else { Err(gaps) }
    }

    fn check_section<'a>(&'a self, section: &Section<'_>, covered: &mut Vec<CoveredSnippet<'a>>, gaps: &mut Vec<Gap>) {
        let (text, names) = normalize(&section.lines);
        let sha256 = Sha256Digest::of(text.as_bytes());
        match self.snippets.iter().find(|rule| rule.tool == section.tool && rule.sha256 == sha256) {
            Some(rule) => covered.push(CoveredSnippet { rule, names }),
            None => gaps.push(Gap::Section {
                number: section.number,
                tool: section.tool.to_owned(),
                sha256: sha256.to_string(),
            }),
        }
    }

    /// The pattern and digest that a rule for this script would have, where a rule's pattern fits the package.
    fn alias(&self, package: &str, kind: &str, script: &[u8]) -> Option<(String, String)> {
        let kind = Kind::parse(kind)?;
        let mut fitting = self.scripts.iter().filter(|rule| rule.kind == kind && rule.package.is_glob());
        fitting.find_map(|rule| {
            let wildcard = rule.package.capture(package)?;
            Some((rule.package.to_string(), Sha256Digest::of(&generalize(script, wildcard)).to_string()))
        })
    }
}

impl ScriptRule {
    fn covers(&self, package: &str, kind: Kind, script: &[u8]) -> bool {
        if self.kind != kind {
            return false;
        }
        match self.package.capture(package) {
            Some("") => self.sha256 == Sha256Digest::of(script),
            Some(wildcard) => self.sha256 == Sha256Digest::of(&generalize(script, wildcard)),
            None => false,
        }
    }
}

impl Kind {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "preinst" => Some(Self::Preinst),
            "postinst" => Some(Self::Postinst),
            "prerm" => Some(Self::Prerm),
            "postrm" => Some(Self::Postrm),
            "config" => Some(Self::Config),
            "triggers" => Some(Self::Triggers),
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Preinst => "preinst",
            Self::Postinst => "postinst",
            Self::Prerm => "prerm",
            Self::Postrm => "postrm",
            Self::Config => "config",
            Self::Triggers => "triggers",
        })
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { number, text } => write!(f, "line {number}: {text}"),
            Self::Section { number, tool, sha256 } => {
                write!(f, "line {number}: section of {tool}, normalised sha256 {sha256}")
            }
            Self::BrokenSection { number } => {
                write!(f, "line {number}: debhelper section that does not begin and end once")
            }
            Self::Trigger { number, name } => write!(f, "line {number}: trigger {name}"),
            Self::NotText => f.write_str("it is not UTF-8 text"),
            Self::UnknownKind => f.write_str("dpkg knows no such kind of script"),
        }
    }
}

fn alias_text(alias: &Option<Box<(String, String)>>) -> String {
    alias.as_deref().map(|(pattern, sha256)| format!(", as {pattern} sha256 {sha256}")).unwrap_or_default()
}

fn gaps_text(gaps: &[Gap]) -> String {
    let mut text: String = gaps.iter().take(QUOTED_LINES).map(|gap| format!("\n  {gap}")).collect();
    if gaps.len() > QUOTED_LINES {
        text.push_str(&format!("\n  and {} more", gaps.len() - QUOTED_LINES));
    }
    text
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawRules {
    #[serde(default)]
    ignored_script: Vec<Spanned<RawIgnored>>,
    #[serde(default)]
    snippet: Vec<Spanned<RawSnippet>>,
    #[serde(default)]
    script: Vec<Spanned<RawScript>>,
    #[serde(default)]
    trigger: Vec<Spanned<RawTrigger>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIgnored {
    kind: Kind,
    reason: Prose,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawSnippet {
    tool: Prose,
    sha256: Sha256Digest,
    covered_by: Prose,
    reason: Prose,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawScript {
    package: PackagePattern,
    kind: Kind,
    sha256: Sha256Digest,
    covered_by: Prose,
    reason: Prose,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTrigger {
    name: Prose,
    reason: Prose,
}

/// Text that says something.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
struct Prose(String);

impl TryFrom<String> for Prose {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.trim().is_empty() { Err("must not be empty") } else { Ok(Self(text)) }
    }
}

/// A SHA-256 digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct Sha256Digest([u8; 32]);

impl Sha256Digest {
    fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl TryFrom<String> for Sha256Digest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const FORM: &str = "a SHA-256 digest is 64 lower-case hexadecimal digits";
        let nibble = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(FORM),
        };
        let mut digest = [0; 32];
        if text.len() != 2 * digest.len() {
            return Err(FORM);
        }
        for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self(digest))
    }
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A package's name, in which one `*` may stand for a version.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct PackagePattern {
    before: String,
    /// What follows the `*`, where there is one.
    after: Option<String>,
}

impl PackagePattern {
    fn is_glob(&self) -> bool {
        self.after.is_some()
    }

    /// What the `*` stands for in this name, or "" where there is none; nothing when the name does not fit. A `*` stands
    /// for one character at least, and the first must be a digit.
    fn capture<'a>(&self, name: &'a str) -> Option<&'a str> {
        match &self.after {
            None => (name == self.before).then_some(""),
            Some(after) => {
                let wildcard = name.strip_prefix(self.before.as_str())?.strip_suffix(after.as_str())?;
                wildcard.starts_with(|first: char| first.is_ascii_digit()).then_some(wildcard)
            }
        }
    }
}

impl TryFrom<String> for PackagePattern {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let is_name = |part: &str| part.bytes().all(|byte| is_name_byte(byte) && !byte.is_ascii_uppercase());
        let (before, after) = match text.split_once('*') {
            Some((before, after)) => (before, Some(after)),
            None => (text.as_str(), None),
        };
        if before.is_empty() || !is_name(before) || !after.is_none_or(is_name) {
            return Err(
                "a package is lower-case letters, digits and punctuation of names, with at most one *, not first",
            );
        }
        Ok(Self { before: before.to_owned(), after: after.map(str::to_owned) })
    }
}

impl fmt::Display for PackagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.after {
            None => f.write_str(&self.before),
            Some(after) => write!(f, "{}*{after}", self.before),
        }
    }
}

/// A debhelper section of a script.
struct Section<'a> {
    /// The line where it begins, from 1.
    number: usize,
    tool: &'a str,
    lines: Vec<&'a str>,
}

/// Whether a statement outside debhelper sections does nothing that matters.
fn means_nothing(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#') || matches!(line, "set -e" | "exit 0")
}

fn is_shell(line: &str) -> bool {
    let packed: String = line.split_whitespace().collect();
    SHELLS.contains(&packed.as_str())
}

/// The script with every occurrence of `wildcard` replaced by `*`.
fn generalize(script: &[u8], wildcard: &str) -> Vec<u8> {
    let wildcard = wildcard.as_bytes();
    let mut general = Vec::with_capacity(script.len());
    let mut rest = script;
    while let Some((&first, tail)) = rest.split_first() {
        match rest.strip_prefix(wildcard) {
            Some(after) => {
                general.push(b'*');
                rest = after;
            }
            None => {
                general.push(first);
                rest = tail;
            }
        }
    }
    general
}

/// Line and column, from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..offset];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA: &str = "0000000000000000000000000000000000000000000000000000000000000000";

    /// A section in the manner of dh_installsystemd, with two statements that name units.
    fn section(tool: &str, first: &str, second: &str) -> String {
        format!(
            "{SECTION_START}{tool}\nif [ \"$1\" = \"configure\" ] ; then\n\tunit-tool unmask {first} >/dev/null || true\n\
             \tif unit-tool was-enabled {second}; then\n\t\tunit-tool enable {second} >/dev/null\n\tfi\nfi\n{SECTION_END}\n"
        )
    }

    fn script(body: &str) -> String {
        format!("#!/bin/sh\n# Comment.\nset -e\n\n{body}\nexit 0\n")
    }

    fn sha256(bytes: &[u8]) -> String {
        Sha256Digest::of(bytes).to_string()
    }

    /// The digest of a script's only section.
    fn section_digest(script: &str) -> String {
        let error = Rules::default().check("any", "postinst", script.as_bytes()).expect_err("no rules");
        match error.gaps.as_slice() {
            [Gap::Section { sha256, .. }] => sha256.clone(),
            gaps => panic!("one section expected: {gaps:?}"),
        }
    }

    fn snippet_rule(tool: &str, sha256: &str) -> String {
        format!("[[snippet]]\ntool = \"{tool}\"\nsha256 = \"{sha256}\"\ncovered-by = \"x\"\nreason = \"y\"\n")
    }

    fn script_rule(package: &str, kind: &str, sha256: &str) -> String {
        format!(
            "[[script]]\npackage = \"{package}\"\nkind = \"{kind}\"\nsha256 = \"{sha256}\"\ncovered-by = \"x\"\nreason = \"y\"\n"
        )
    }

    fn rules(text: &str) -> Rules {
        Rules::parse(text).expect("the test's rules are valid")
    }

    #[test]
    fn the_repository_rules_are_valid() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../images/scripts.toml");
        let text = std::fs::read_to_string(path).expect("images/scripts.toml is beside the builder");
        let rules = Rules::parse(&text).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(rules.snippets.len() > 10 && rules.scripts.len() > 50, "rules are read, not skipped");
    }

    #[test]
    fn one_section_rule_covers_all_names_and_versions() {
        let first = script(&section("dh_example/13.1", "'a.service'", "'b.socket'"));
        let rules = rules(&snippet_rule("dh_example", &section_digest(&first)));
        let others = [
            ("the same", first),
            ("another version", script(&section("dh_example/14", "'a.service'", "'b.socket'"))),
            ("no version", script(&section("dh_example", "'a.service'", "'b.socket'"))),
            ("other names", script(&section("dh_example/13.1", "'c-2@.service'", "'e.timer'"))),
            ("several names", script(&section("dh_example/13.1", "'a.service' 'b.socket' 'c.path'", "'e.timer'"))),
            ("sections twice", script(&section("dh_example/13.1", "'a.service'", "'b.socket'").repeat(2))),
        ];
        for (case, script) in others {
            match rules.check("any", "postinst", script.as_bytes()) {
                Ok(Coverage::Snippets(covered)) => assert!(!covered.is_empty(), "{case}"),
                other => panic!("{case}: {other:?}"),
            }
        }
    }

    #[test]
    fn replaced_names_are_reported() {
        let script = script(&section("dh_example", "'a.service' 'z.socket'", "'b.timer'"));
        let rules = rules(&snippet_rule("dh_example", &section_digest(&script)));
        let Ok(Coverage::Snippets(covered)) = rules.check("any", "postinst", script.as_bytes()) else {
            panic!("covered by its own digest");
        };
        let names: Vec<&str> = covered.iter().flat_map(|snippet| &snippet.names).map(String::as_str).collect();
        assert_eq!(names, ["a.service", "b.timer", "z.socket"]);
    }

    #[test]
    fn every_changed_character_outside_names_uncovers_a_section() {
        let text = script(&section("dh_example/13.1", "'a.service'", "'b.socket'"));
        let rules = rules(&snippet_rule("dh_example", &section_digest(&text)));
        let start = text.find("if [").expect("in the section");
        let end = text.find(SECTION_END).expect("in the script") + SECTION_END.len();
        let mut changed = 0;
        for (offset, original) in text.bytes().enumerate().take(end).skip(start) {
            // A letter within a unit's name is the one thing that may differ.
            let quoted = text[..offset].matches('\'').count() % 2 == 1;
            if quoted && original != b'\'' {
                continue;
            }
            let mut bytes = text.clone().into_bytes();
            bytes[offset] = if original == b'x' { b'y' } else { b'x' };
            let verdict = rules.check("any", "postinst", &bytes);
            assert!(verdict.is_err(), "byte {offset} changed: {:?}", String::from_utf8_lossy(&bytes));
            changed += 1;
        }
        assert!(changed > 100, "{changed} characters were changed");
    }

    #[test]
    fn statements_outside_sections_are_named() {
        let body = section("dh_example", "'a.service'", "'b.socket'");
        let rules = rules(&snippet_rule("dh_example", &section_digest(&script(&body))));
        let cases = [
            ("a statement", format!("#!/bin/sh\nset -e\n{body}rm -rf /x\n"), 11),
            ("another exit", format!("#!/bin/sh\nexit 1\n{body}"), 2),
            ("another interpreter", format!("#!/usr/bin/perl\n{body}"), 1),
            ("no interpreter", format!("true\n{body}"), 1),
            ("interpreter with more", format!("#!/bin/sh -c true\n{body}"), 1),
        ];
        for (case, text, line) in cases {
            let error = rules.check("any", "postinst", text.as_bytes()).expect_err(case);
            assert!(matches!(error.gaps[..], [Gap::Line { number, .. }] if number == line), "{case}: {error}");
        }
    }

    #[test]
    fn broken_sections_are_refused() {
        let body = section("dh_example", "'a.service'", "'b.socket'");
        let rules = rules(&snippet_rule("dh_example", &section_digest(&script(&body))));
        let cases = [
            ("no end", script(&body.replace(SECTION_END, ""))),
            ("no beginning", script(&format!("{SECTION_END}\n"))),
            ("one within another", script(&format!("{SECTION_START}dh_example\n{body}"))),
        ];
        for (case, text) in cases {
            let error = rules.check("any", "postinst", text.as_bytes()).expect_err(case);
            assert!(error.gaps.iter().any(|gap| matches!(gap, Gap::BrokenSection { .. })), "{case}: {error}");
        }
    }

    #[test]
    fn a_listed_script_is_covered_to_the_byte() {
        let text = b"#!/bin/sh\nuseradd somebody\n";
        let program = b"\x7fELF\x02\x01\x01\xff\xfe";
        for (case, bytes) in [("text", text.as_slice()), ("a program", program.as_slice())] {
            let rules = rules(&script_rule("one", "postinst", &sha256(bytes)));
            assert!(matches!(rules.check("one", "postinst", bytes), Ok(Coverage::Script(_))), "{case}");
            assert!(rules.check("other", "postinst", bytes).is_err(), "{case}: another package");
            assert!(rules.check("one", "preinst", bytes).is_err(), "{case}: another kind");
            for offset in 0..bytes.len() {
                let mut changed = bytes.to_vec();
                changed[offset] ^= 1;
                assert!(rules.check("one", "postinst", &changed).is_err(), "{case}: byte {offset} changed");
            }
        }
    }

    #[test]
    fn a_pattern_covers_every_version_of_a_script() {
        let text = |version: &str| format!("#!/bin/sh\ndepmod {version}-amd64\nhooks {version}-amd64 \"$@\"\n");
        let digest = sha256(text("*").as_bytes());
        let rules = rules(&script_rule("linux-image-*-amd64", "postinst", &digest));
        let cases = [
            ("linux-image-6.12.1+deb13-amd64", text("6.12.1+deb13"), true),
            ("linux-image-6.12.9+deb13-cloud-amd64", text("6.12.9+deb13-cloud"), true),
            ("linux-image-6.12.1-amd64", text("6.12.2"), false),
            ("linux-image-6.12.1-arm64", text("6.12.1"), false),
            ("linux-image-rt-amd64", text("rt"), false),
            ("linux-image-6.12.1-amd64", text("6.12.1").replace("hooks", "hocks"), false),
        ];
        for (package, text, covered) in cases {
            assert_eq!(rules.check(package, "postinst", text.as_bytes()).is_ok(), covered, "{package}: {text}");
        }
        let error = rules.check("linux-image-7.1-amd64", "postinst", b"#!/bin/sh\nnew 7.1\n").expect_err("changed");
        let pattern = "linux-image-*-amd64".to_owned();
        assert_eq!(error.alias, Some(Box::new((pattern, sha256(b"#!/bin/sh\nnew *\n")))));
    }

    #[test]
    fn ignored_kinds_never_run_and_others_do() {
        let rules = rules("[[ignored-script]]\nkind = \"prerm\"\nreason = \"y\"\n");
        assert!(matches!(rules.check("any", "prerm", b"\xff"), Ok(Coverage::NeverRuns(_))));
        assert!(rules.check("any", "postrm", b"#!/bin/sh\nrm x\n").is_err());
        let error = rules.check("any", "postmortem", b"").expect_err("no such kind");
        assert_eq!(error.gaps, [Gap::UnknownKind]);
    }

    #[test]
    fn every_trigger_needs_a_rule() {
        let rules = rules("[[trigger]]\nname = \"ldconfig\"\nreason = \"y\"\n");
        let cases = [
            ("# Comment.\nactivate-noawait ldconfig\n", true),
            ("interest ldconfig # why\n\n", true),
            ("activate-noawait ldconfig2\n", false),
            ("interest-noawait /usr/lib/x\n", false),
            ("activate-sometimes ldconfig\n", false),
            ("interest ldconfig more\n", false),
        ];
        for (text, covered) in cases {
            assert_eq!(rules.check("any", "triggers", text.as_bytes()).is_ok(), covered, "{text}");
        }
    }

    #[test]
    fn an_uncovered_script_is_named_with_its_digest_and_lines() {
        let text = "#!/bin/sh\nset -e\nuseradd somebody\n";
        let error = Rules::default().check("some-package", "postinst", text.as_bytes()).expect_err("no rules");
        let expected = format!(
            "package some-package: no rule in images/scripts.toml covers its postinst (sha256 {})\n  line 3: useradd somebody",
            sha256(text.as_bytes())
        );
        assert_eq!(error.to_string(), expected);
        let long = format!("#!/bin/sh\n{}", "a\n".repeat(QUOTED_LINES + 3));
        let error = Rules::default().check("p", "postinst", long.as_bytes()).expect_err("no rules").to_string();
        assert!(error.ends_with("\n  and 3 more"), "{error}");
    }

    #[test]
    fn mistakes_in_rules_have_a_place() {
        let snippet = snippet_rule("dh_x", SHA);
        let script = script_rule("p", "postinst", SHA);
        let cases = [
            (
                "unknown field",
                "[[trigger]]\nname = \"a\"\nreason = \"y\"\ncolour = \"z\"\n".to_owned(),
                "line 4, column 1",
            ),
            ("unknown table", "[[snippets]]\n".to_owned(), "line 1, column 3"),
            ("no reason", "[[trigger]]\nname = \"a\"\n".to_owned(), "line 1, column 1"),
            ("empty reason", "[[trigger]]\nname = \"a\"\nreason = \" \"\n".to_owned(), "line 3, column 10"),
            ("short digest", snippet.replace(SHA, "00"), "line 3, column 10"),
            ("upper-case digest", snippet.replace(SHA, &SHA.replace('0', "A")), "line 3, column 10"),
            ("unknown kind", script.replace("postinst", "postmortem"), "line 3, column 8"),
            ("two wildcards", script.replace("\"p\"", "\"p*q*\""), "line 2, column 11"),
            ("only a wildcard", script.replace("\"p\"", "\"*\""), "line 2, column 11"),
            ("repeated", script.repeat(2), "line 7, column 1"),
            (
                "ignoring what runs",
                "\n[[ignored-script]]\nkind = \"postinst\"\nreason = \"y\"\n".to_owned(),
                "line 2, column 1",
            ),
            ("not TOML", "[[trigger\n".to_owned(), "line 1"),
        ];
        for (case, text, place) in cases {
            let error = Rules::parse(&text).expect_err(case).to_string();
            assert!(error.contains(place), "{case}: {error}");
        }
    }
}
