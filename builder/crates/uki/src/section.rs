//! The sections of a UKI, and where their content comes from.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::str::FromStr;

/// A section that systemd's stub understands, in the order in which sections are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// `os-release` of what is booted; boot loaders take the menu entry's title from it.
    Osrel,
    /// The kernel command line.
    Cmdline,
    /// The kernel's release, as `uname -r` prints it.
    Uname,
    /// A BMP picture shown while the kernel loads.
    Splash,
    /// The kernel, an EFI image. Every UKI has it.
    Linux,
    /// The initrd, one or several (compressed) cpio archives.
    Initrd,
    /// A microcode initrd, uncompressed, which the stub passes before all others.
    Ucode,
    /// Secure Boot revocation metadata. It replaces the stub's own.
    Sbat,
}

/// One section to be added.
#[derive(Debug, Clone, Copy)]
pub struct Section<'a> {
    /// Which section.
    pub name: Name,
    /// Its content, which must not be empty.
    pub data: SectionData<'a>,
}

/// Content of a section. Files are copied through a small buffer.
#[derive(Debug, Clone, Copy)]
pub enum SectionData<'a> {
    /// Bytes in memory.
    Bytes(&'a [u8]),
    /// A range of a file.
    File {
        /// The file, read by position.
        file: &'a File,
        /// Where the content begins in bytes.
        start: u64,
        /// Its length in bytes.
        length: u64,
    },
}

const COPY_BUFFER: usize = 256 * 1024;

impl Name {
    /// All names, in layout order.
    pub const ALL: [Self; 8] =
        [Self::Osrel, Self::Cmdline, Self::Uname, Self::Splash, Self::Linux, Self::Initrd, Self::Ucode, Self::Sbat];

    /// The name in the PE section header.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Osrel => ".osrel",
            Self::Cmdline => ".cmdline",
            Self::Uname => ".uname",
            Self::Splash => ".splash",
            Self::Linux => ".linux",
            Self::Initrd => ".initrd",
            Self::Ucode => ".ucode",
            Self::Sbat => ".sbat",
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A section name that this crate does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no section of a unified kernel image is called {0:?}")]
pub struct UnknownSection(String);

impl FromStr for Name {
    type Err = UnknownSection;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|name| name.as_str() == text).ok_or_else(|| UnknownSection(text.to_owned()))
    }
}

impl<'a> SectionData<'a> {
    /// All of a regular file.
    pub fn whole_file(file: &'a File) -> io::Result<Self> {
        Ok(Self::File { file, start: 0, length: file.metadata()?.len() })
    }

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { length, .. } => *length,
        }
    }

    /// The first bytes, at most `limit`.
    pub(crate) fn prefix(&self, limit: usize) -> io::Result<Vec<u8>> {
        let length = usize::try_from(self.length()).map_or(limit, |length| length.min(limit));
        match self {
            Self::Bytes(bytes) => Ok(bytes[..length].to_vec()),
            Self::File { file, start, .. } => {
                let mut prefix = vec![0; length];
                file.read_exact_at(&mut prefix, *start)?;
                Ok(prefix)
            }
        }
    }

    /// Passes the whole content on to `out`. The outer error is one of reading, the inner one of writing.
    pub(crate) fn copy(&self, out: &mut impl Write) -> io::Result<io::Result<()>> {
        match self {
            Self::Bytes(bytes) => Ok(out.write_all(bytes)),
            Self::File { file, start, length } => {
                let mut buffer = vec![0; COPY_BUFFER];
                let mut done = 0;
                while done < *length {
                    let wanted = usize::try_from(length - done).map_or(COPY_BUFFER, |left| left.min(COPY_BUFFER));
                    let position = start.checked_add(done).ok_or(io::ErrorKind::UnexpectedEof)?;
                    file.read_exact_at(&mut buffer[..wanted], position)?;
                    if let Err(error) = out.write_all(&buffer[..wanted]) {
                        return Ok(Err(error));
                    }
                    done += wanted as u64;
                }
                Ok(Ok(()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_and_fit_a_header() {
        for name in Name::ALL {
            assert_eq!(name.as_str().parse(), Ok(name));
            assert!(name.as_str().len() <= 8, "{name}");
        }
        assert!(Name::ALL.is_sorted());
        assert_eq!("linux".parse::<Name>(), Err(UnknownSection("linux".to_owned())));
    }

    #[test]
    fn files_and_bytes_give_the_same_content() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..600_000u32).flat_map(u32::to_le_bytes).collect();
        file.write_all(&content).unwrap();
        let part = &content[7..2_000_007];
        let cases = [SectionData::Bytes(part), SectionData::File { file: &file, start: 7, length: part.len() as u64 }];
        for data in cases {
            let mut copy = Vec::new();
            data.copy(&mut copy).unwrap().unwrap();
            assert!(copy == part);
            assert_eq!(data.prefix(100).unwrap(), &part[..100]);
            assert_eq!(data.prefix(3_000_000).unwrap().len(), part.len());
        }
        let past = SectionData::File { file: &file, start: 7, length: content.len() as u64 };
        assert_eq!(past.copy(&mut io::sink()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
