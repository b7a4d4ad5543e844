//! Decompressing and verifying what was fetched, as it streams by.
//!
//! Specification: "If `compression` is specified, the hash describes the decompressed" contents
//! ([configuration v3.5](https://coreos.github.io/ignition/configuration-v3_5/)).

use std::io::{self, Read, Write};

use anyhow::Context;
use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256, Sha512};

use crate::ignition::config::types::Resource;

/// Copies a resource's contents: decompresses them, refuses more than `limit` bytes, and verifies them.
///
/// # Errors
/// When they cannot be read, decompressed or written, are too large, or do not verify.
pub(super) fn copy(
    content: &mut dyn Read,
    resource: &Resource,
    limit: Option<u64>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let mut expected = Expected::of(resource)?;
    match resource.compression.as_deref() {
        None | Some("") => copy_bounded(content, limit, expected.as_mut(), out)?,
        Some("gzip") => {
            let mut content = MultiGzDecoder::new(content);
            copy_bounded(&mut content, limit, expected.as_mut(), out).context("decompressing it with gzip")?;
        }
        Some(other) => anyhow::bail!("compression {other:?} is not known, only \"gzip\" is"),
    }
    expected.map_or(Ok(()), Expected::verify)
}

fn copy_bounded(
    content: &mut dyn Read,
    limit: Option<u64>,
    mut expected: Option<&mut Expected>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        let count = match content.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("reading it"),
        };
        total += count as u64;
        if let Some(limit) = limit {
            anyhow::ensure!(total <= limit, "it is larger than {limit} bytes");
        }
        if let Some(expected) = expected.as_mut() {
            expected.hasher.update(&buffer[..count]);
        }
        out.write_all(&buffer[..count]).context("writing it")?;
    }
}

/// The hash that contents must have.
struct Expected {
    hasher: Hasher,
    sum: String,
}

enum Hasher {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Hasher {
    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }
}

impl Expected {
    fn of(resource: &Resource) -> anyhow::Result<Option<Self>> {
        let hash = resource.verification.as_ref().and_then(|verification| verification.hash.as_deref());
        let Some(hash) = hash else { return Ok(None) };
        let (hasher, sum, digits) = match hash.split_once('-') {
            Some(("sha256", sum)) => (Hasher::Sha256(Sha256::new()), sum, 64),
            Some(("sha512", sum)) => (Hasher::Sha512(Box::default()), sum, 128),
            Some(_) | None => anyhow::bail!("verification hash {hash:?} does not begin with sha256- or sha512-"),
        };
        anyhow::ensure!(
            sum.len() == digits && sum.bytes().all(|digit| digit.is_ascii_hexdigit()),
            "verification hash {hash:?} does not have {digits} hexadecimal digits"
        );
        Ok(Some(Self { hasher, sum: sum.to_ascii_lowercase() }))
    }

    fn verify(self) -> anyhow::Result<()> {
        let sum = match self.hasher {
            Hasher::Sha256(hasher) => hex(&hasher.finalize()),
            Hasher::Sha512(hasher) => hex(&hasher.finalize()),
        };
        anyhow::ensure!(sum == self.sum, "its hash is {sum}, expected {}", self.sum);
        Ok(())
    }
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::ignition::config::types::Verification;

    const HELLO_256: &str = "sha256-2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(content).expect("memory");
        encoder.finish().expect("memory")
    }

    fn run(
        content: &[u8],
        compression: Option<&str>,
        hash: Option<&str>,
        limit: Option<u64>,
    ) -> Result<Vec<u8>, String> {
        let resource = Resource {
            compression: compression.map(str::to_owned),
            verification: hash.map(|hash| Verification { hash: Some(hash.to_owned()) }),
            ..Resource::default()
        };
        let mut out = Vec::new();
        copy(&mut &content[..], &resource, limit, &mut out).map(|()| out).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn contents_are_decompressed_and_verified() {
        let sha512 = format!("sha512-{}", hex(&Sha512::digest("hello")));
        let two = [gzip(b"hel"), gzip(b"lo")].concat();
        for (case, content, compression, hash) in [
            ("plain", b"hello".to_vec(), None, None),
            ("plain with an empty word", b"hello".to_vec(), Some(""), None),
            ("sha256", b"hello".to_vec(), None, Some(HELLO_256)),
            ("sha512", b"hello".to_vec(), None, Some(sha512.as_str())),
            ("in capitals", b"hello".to_vec(), None, Some(&*HELLO_256.to_uppercase().replace("SHA", "sha"))),
            ("gzip", gzip(b"hello"), Some("gzip"), None),
            ("the hash is of what was decompressed", gzip(b"hello"), Some("gzip"), Some(HELLO_256)),
            ("several members", two, Some("gzip"), Some(HELLO_256)),
        ] {
            assert_eq!(run(&content, compression, hash, Some(5)).as_deref(), Ok(&b"hello"[..]), "{case}");
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let compressed = gzip(b"hello");
        let mut flipped = compressed.clone();
        let last = flipped.len() - 6;
        flipped[last] ^= 1;
        let trailing = [&compressed[..], b"x"].concat();
        let of_compressed = format!("sha256-{}", hex(&Sha256::digest(&compressed)));
        for (case, content, compression, hash, expected) in [
            ("another hash", &b"hullo"[..], None, Some(HELLO_256), "its hash is "),
            ("the hash of the compressed", &compressed, Some("gzip"), Some(&*of_compressed), "its hash is "),
            ("too large", b"hellos", None, None, "it is larger than 5 bytes"),
            ("not gzip", b"hello", Some("gzip"), None, "decompressing it with gzip: "),
            ("no gzip at all", b"", Some("gzip"), None, "decompressing it with gzip: "),
            ("truncated", &compressed[..compressed.len() - 1], Some("gzip"), None, "decompressing it with gzip: "),
            ("a bit flipped", &flipped, Some("gzip"), None, "decompressing it with gzip: "),
            ("something after it", &trailing, Some("gzip"), None, "decompressing it with gzip: "),
            ("another compression", b"hello", Some("xz"), None, "compression \"xz\" is not known"),
            ("another function", b"hello", None, Some("md5-00"), "verification hash \"md5-00\" does not begin"),
            ("too short", b"hello", None, Some("sha256-00"), "verification hash \"sha256-00\" does not have 64"),
        ] {
            let error = run(content, compression, hash, Some(5)).expect_err(case);
            assert!(error.starts_with(expected), "{case}: {error}");
        }
    }

    #[test]
    fn a_bomb_ends_at_the_bound() {
        let bomb = gzip(&vec![0; 64 << 20]);
        let mut counted = Counter(0);
        let resource = Resource { compression: Some("gzip".into()), ..Resource::default() };
        let error = copy(&mut &bomb[..], &resource, Some(1 << 20), &mut counted).expect_err("too large");
        assert_eq!(format!("{error:#}"), "decompressing it with gzip: it is larger than 1048576 bytes");
        assert!(bomb.len() < 100 << 10 && counted.0 <= 1 << 20, "{} {}", bomb.len(), counted.0);
    }

    struct Counter(usize);

    impl Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
