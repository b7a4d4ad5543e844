//! SHA-256 digests, and a reader that computes one on the way.
//!
//! The digests are those of [FIPS 180-4](https://csrc.nist.gov/pubs/fips/180-4/upd1/final). Weaker ones that archives
//! still carry (MD5, SHA-1) are left out on purpose.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use sha2::Digest as _;

use crate::Error;

/// A SHA-256 digest, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256([u8; 32]);

/// The digest and size by which an archive names a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileDigest {
    /// Digest of the whole file.
    pub sha256: Sha256,
    /// Size in bytes.
    pub size: u64,
}

/// Passes on what it reads, counts and hashes it, and refuses to read more than a limit.
pub struct HashingReader<R> {
    inner: R,
    hasher: sha2::Sha256,
    count: u64,
    limit: u64,
}

impl Sha256 {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// A digest that was computed elsewhere.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw digest.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for Sha256 {
    type Err = Error;

    /// Parses 64 hexadecimal digits of either case.
    fn from_str(text: &str) -> Result<Self, Error> {
        parse_hex(text.as_bytes()).map(Self).ok_or_else(|| Error::Digest { text: text.to_owned() })
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = String::with_capacity(64);
        for byte in self.0 {
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        f.pad(&text)
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<R> HashingReader<R> {
    /// Reads `inner`, at most `limit` bytes of it: one byte more is an error of kind [`io::ErrorKind::FileTooLarge`].
    pub fn new(inner: R, limit: u64) -> Self {
        Self { inner, hasher: sha2::Sha256::new(), count: 0, limit }
    }

    /// Bytes read so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Digest and count of what was read. That is all of `inner` only if it was read to its end.
    pub fn finish(self) -> FileDigest {
        FileDigest { sha256: Sha256(self.hasher.finalize().into()), size: self.count }
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.count += count as u64;
        if self.count > self.limit {
            let problem = format!("more than {} bytes", self.limit);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
        }
        Ok(count)
    }
}

fn parse_hex(text: &[u8]) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(digits[0])? << 4 | digit(digits[1])?;
    }
    Some(bytes)
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The test vectors of FIPS 180.
    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn text_form() {
        assert_eq!(Sha256::of(b"").to_string(), EMPTY);
        assert_eq!(Sha256::of(b"abc").to_string(), ABC);
        assert_eq!(ABC.to_uppercase().parse::<Sha256>().unwrap(), Sha256::of(b"abc"));
        for text in ["", &ABC[1..], &format!("{ABC}0"), &ABC.replace('b', "g"), &ABC.replace("ba", "+a")] {
            assert!(text.parse::<Sha256>().is_err(), "{text}");
        }
    }

    #[test]
    fn reader_hashes_up_to_its_limit() {
        for (limit, fits) in [(4, true), (3, true), (2, false), (0, false)] {
            let mut reader = HashingReader::new(&b"abc"[..], limit);
            let outcome = io::copy(&mut reader, &mut io::sink());
            assert_eq!(outcome.is_ok(), fits, "limit {limit}");
            if fits {
                assert_eq!(reader.finish(), FileDigest { sha256: ABC.parse().unwrap(), size: 3 }, "limit {limit}");
            }
        }
    }
}
