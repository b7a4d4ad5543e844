//! The crate's error type.

use std::io;

use crate::Digest;

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with trees, packs and images.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading or writing failed.
    #[error("{doing}")]
    Io {
        /// What was being done, to what.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
    /// Text that should be a SHA-256 digest is not.
    #[error("{text:?} is not a SHA-256 digest in hexadecimal")]
    InvalidDigest {
        /// The text, cut to 80 characters.
        text: String,
    },
    /// A path or a name that no tree can hold.
    #[error("{path}: {reason}")]
    InvalidPath {
        /// The path.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Nothing is at the path.
    #[error("{path}: no such entry")]
    Missing {
        /// The path.
        path: String,
    },
    /// A path leads through something that is not a directory.
    #[error("{path}: is a {found}, not a directory")]
    NotADirectory {
        /// The path of what is in the way.
        path: String,
        /// What it is.
        found: &'static str,
    },
    /// Something else is at the path already.
    #[error("{path}: a {existing} is in the way of a {new}")]
    Conflict {
        /// The path.
        path: String,
        /// What is there.
        existing: &'static str,
        /// What was to be put there.
        new: &'static str,
    },
    /// A directory with entries would be lost.
    #[error("{path}: directory is not empty")]
    NotEmpty {
        /// The path.
        path: String,
    },
    /// Symbolic links lead in circles.
    #[error("{path}: too many levels of symbolic links")]
    SymlinkLoop {
        /// The path being resolved.
        path: String,
    },
    /// An option has a value that cannot work.
    #[error("{reason}")]
    InvalidOption {
        /// Which option and why.
        reason: String,
    },
    /// A content was longer or shorter than announced.
    #[error("content has {actual} bytes, expected {expected}")]
    ContentSize {
        /// The announced size in bytes.
        expected: u64,
        /// The number of bytes read; one more than `expected` where the content goes on.
        actual: u64,
    },
    /// A file is no pack, or its index is damaged.
    #[error("pack {pack}: {reason}")]
    PackFormat {
        /// The pack's path.
        pack: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Bytes of a pack are not those that were written.
    #[error("pack {pack}: {what} has SHA-256 {actual}, expected {expected}")]
    PackDigest {
        /// The pack's path.
        pack: String,
        /// Which bytes: the index, a file's blocks, a fragment block or a file's content.
        what: String,
        /// The digest when it was written.
        expected: Digest,
        /// The digest now.
        actual: Digest,
    },
    /// A file of the tree points to a content that the packs do not have.
    #[error("{path}: {reason}")]
    UnknownContent {
        /// The file's path.
        path: String,
        /// What was looked for and found.
        reason: String,
    },
    /// Something does not fit the format that is written.
    #[error("{path}: {reason}")]
    Unrepresentable {
        /// The path of the entry.
        path: String,
        /// What does not fit.
        reason: String,
    },
    /// An image cannot be read: it is damaged, hostile, or uses what is not supported.
    #[error("squashfs image: {reason}")]
    ImageFormat {
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { doing: doing.into(), source }
    }
}

/// A path of a tree as it stands in messages: absolute, and readable where it is not UTF-8.
pub(crate) fn show(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    if text.starts_with('/') { text.into_owned() } else { format!("/{text}") }
}
