use std::io;

use crate::section::Name;

/// What can be wrong with an image or with what it is assembled from.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading the image failed.
    #[error("reading the image")]
    Read(#[source] io::Error),
    /// Writing the image failed.
    #[error("writing the image")]
    Write(#[source] io::Error),
    /// Reading a section's content failed.
    #[error("reading the content of section {name}")]
    Content {
        /// The section.
        name: Name,
        /// The operating system's error; `UnexpectedEof` where the content is shorter than was declared.
        source: io::Error,
    },
    /// The file ends, or its headers are longer than is sensible, before a header is complete.
    #[error("PE header needs bytes {offset} to {end}, has {available}")]
    Truncated {
        /// Where the field begins in bytes.
        offset: u64,
        /// Where it ends.
        end: u64,
        /// Bytes there are.
        available: u64,
    },
    /// A PE header field has a value that makes this no image that can be worked on.
    #[error("PE header field {field} is {found:#x}, expected {expected}")]
    Header {
        /// Name of the field in the specification.
        field: &'static str,
        /// Its value.
        found: u64,
        /// What would be accepted.
        expected: &'static str,
    },
    /// A section lies outside the file, or overlaps another or the headers.
    #[error("section {section:?} at {start:#x}..{end:#x} of the {space} is outside {low:#x}..{high:#x}")]
    Placement {
        /// The section's name.
        section: String,
        /// "file" or "memory image".
        space: &'static str,
        /// Where the section begins.
        start: u64,
        /// Where it ends.
        end: u64,
        /// End of what comes before it.
        low: u64,
        /// End of the file or image.
        high: u64,
    },
    /// The stub has bytes after its last section, which would be lost or misplaced.
    #[error("stub has {found} bytes, its sections end at {expected}")]
    TrailingData {
        /// Length of the stub in bytes.
        found: u64,
        /// End of its last section.
        expected: u64,
    },
    /// There is no room for further section headers.
    #[error("stub has room for {available} more section headers, {needed} are needed")]
    HeaderRoom {
        /// Headers that fit.
        available: usize,
        /// Headers needed.
        needed: usize,
    },
    /// The stub's own section is smaller than the content that is to replace it.
    #[error("section {name} of the stub has room for {available} bytes, {needed} are needed")]
    SectionRoom {
        /// The section.
        name: Name,
        /// Bytes that fit.
        available: u64,
        /// Length of the content in bytes.
        needed: u64,
    },
    /// The image would not fit the 32-bit offsets of the format.
    #[error("section {0} ends past the 4 GiB that a PE image can address")]
    TooLarge(Name),
    /// A section that every image needs is missing.
    #[error("section {0} is missing")]
    Missing(Name),
    /// A section is there twice, in the request, the stub or the image.
    #[error("section {0} is there twice")]
    Duplicate(Name),
    /// A section without content, which the stub would take for a missing one.
    #[error("section {0} is empty")]
    Empty(Name),
    /// Stub and kernel are for different machines.
    #[error("kernel is for machine {kernel:#06x}, the stub for {stub:#06x}")]
    Machine {
        /// PE machine type of the kernel.
        kernel: u16,
        /// PE machine type of the stub.
        stub: u16,
    },
    /// The kernel is no PE image that the stub could start.
    #[error("kernel is no EFI image")]
    Kernel(#[source] Box<Error>),
    /// A text section is longer than any that makes sense.
    #[error("section {name} is {found} bytes, at most {max} are read as text")]
    TextTooLong {
        /// The section.
        name: Name,
        /// Its length in bytes.
        found: u64,
        /// The bound in bytes.
        max: u64,
    },
    /// A text section that is not UTF-8.
    #[error("section {0} is not UTF-8")]
    Text(Name),
    /// A kernel command line longer than the kernel takes.
    #[error("command line is {0} bytes, at most {max} reach the kernel", max = crate::cmdline::MAX_LENGTH)]
    CmdlineLength(usize),
    /// A character that a kernel command line cannot carry.
    #[error("command line has {character:?} at byte {offset}, only printable ASCII is carried")]
    CmdlineCharacter {
        /// The character.
        character: char,
        /// Where it stands.
        offset: usize,
    },
    /// A quote that is not closed.
    #[error("command line opens a quote at byte {0} that is not closed")]
    CmdlineQuote(usize),
    /// SBAT metadata that does not begin with its own version line.
    #[error("SBAT metadata begins with {0:?}, expected \"sbat,\"")]
    Sbat(String),
}
