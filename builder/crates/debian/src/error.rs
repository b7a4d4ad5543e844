//! The one error of this crate.

use std::io;

use crate::resolve::Chain;
use crate::time::Utc;

/// What can be wrong with an archive, its indexes or a request for packages.
///
/// No message repeats its source: print the chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Text that is not in the stanza format.
    #[error("line {line}: {problem}")]
    Stanza {
        /// Line within the text, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A required field that a stanza lacks.
    #[error("the field {field} is missing")]
    MissingField {
        /// The field.
        field: &'static str,
    },
    /// A field whose value cannot be.
    #[error("the field {field} is {value:?}, expected {expected}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it should have been.
        expected: &'static str,
    },
    /// Not a version number.
    #[error("{text:?} is not a version: {problem}")]
    Version {
        /// The text.
        text: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Not a relationship between packages.
    #[error("{text:?} is not a package relationship: {problem}")]
    Relation {
        /// The text.
        text: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A version inside a relationship.
    #[error("the relationship {text:?}")]
    RelationVersion {
        /// The relationship.
        text: String,
        /// What is wrong with its version.
        source: Box<Error>,
    },
    /// Not a digest.
    #[error("{text:?} is not a SHA-256 digest: expected 64 hexadecimal digits")]
    Digest {
        /// The text.
        text: String,
    },
    /// Key material that cannot be read.
    #[error("keyring: {problem}")]
    Keyring {
        /// What is wrong with it.
        problem: String,
    },
    /// A clear-signed document whose frame is not as the format wants it.
    #[error("{name}: {problem}")]
    ClearSigned {
        /// The document.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A document without a signature that counts.
    #[error("{name}: no signature counts: {}", reasons.join("; "))]
    Signature {
        /// The document.
        name: String,
        /// For every signature its key and why it does not count.
        reasons: Vec<String>,
    },
    /// The signed text is not a release file.
    #[error("{name}")]
    Release {
        /// The document.
        name: String,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// A release file that is too old.
    #[error("{name}: valid until {}, the time is {}", Utc(*valid_until), Utc(*now))]
    Expired {
        /// The document.
        name: String,
        /// `Valid-Until`, in Unix seconds.
        valid_until: u64,
        /// The time it was checked for, in Unix seconds.
        now: u64,
    },
    /// An index file with something wrong in it.
    #[error("{origin}, package {package}")]
    Index {
        /// The suite.
        origin: String,
        /// The package, or `?` where the stanza does not name one.
        package: String,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// An index file that is not even text in stanzas.
    #[error("{origin}")]
    IndexText {
        /// The suite.
        origin: String,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// A compressed file that cannot be decompressed.
    #[error("decompressing {name}")]
    Decompress {
        /// The file.
        name: String,
        /// What the decompressor says.
        source: io::Error,
    },
    /// A package file that is not in the format.
    #[error("{deb}: {problem}")]
    Deb {
        /// The file.
        deb: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A package file that cannot be read to its end.
    #[error("{deb}: reading {part}")]
    DebRead {
        /// The file.
        deb: String,
        /// Which part of it was being read.
        part: String,
        /// What the reader says.
        source: io::Error,
    },
    /// The control file of a package.
    #[error("{deb}: control file")]
    DebControl {
        /// The file.
        deb: String,
        /// What is wrong with the control file.
        source: Box<Error>,
    },
    /// A request for a package that the policy omits.
    #[error("{name} is requested ({reason}) and omitted")]
    OmittedRequest {
        /// The package.
        name: String,
        /// The reason of the request.
        reason: String,
    },
    /// A relationship that no package of the universe can satisfy.
    #[error("no package satisfies {wanted}{} (needed by {needed_by})", offer(available, near))]
    Unsatisfiable {
        /// The relationship, with all its alternatives.
        wanted: String,
        /// The packages of the wanted names, with versions that do not fit.
        available: Vec<String>,
        /// Where there are none, names like the wanted one.
        near: Vec<String>,
        /// Who needs it.
        needed_by: Chain,
    },
    /// Two packages that cannot both be installed.
    #[error("{package} {relation} and {other} is selected: {package} for {because}, {other} for {other_because}")]
    Conflict {
        /// The package that declares the conflict.
        package: String,
        /// Why it was selected.
        because: Chain,
        /// The declaration: `conflicts with x` or `breaks x (<< 2)`.
        relation: String,
        /// The package that it declares it about.
        other: String,
        /// Why that was selected.
        other_because: Chain,
    },
    /// Too many combinations of alternatives were tried.
    #[error("no combination of alternatives fits after {tried} attempts, the first of which ended thus")]
    SearchBound {
        /// How many.
        tried: usize,
        /// Why the first one failed.
        source: Box<Error>,
    },
}

fn offer(available: &[String], near: &[String]) -> String {
    if !available.is_empty() {
        format!(", there is only {}", available.join(", "))
    } else if !near.is_empty() {
        format!(", similar names are {}", near.join(", "))
    } else {
        String::new()
    }
}
