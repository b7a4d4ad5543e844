//! `Packages` index files.
//!
//! Their fields are described in the [repository format][format] and [Debian Policy 5][policy]. Only what a builder
//! of images needs is kept: recommendations, suggestions, tags and the long description are left out.
//!
//! [format]: https://wiki.debian.org/DebianRepository/Format#A.22Packages.22_Indices
//! [policy]: https://www.debian.org/doc/debian-policy/ch-controlfields.html

use std::io::{self, Read};

use crate::Error;
use crate::control::{StanzaRef, stanzas};
use crate::digest::Sha256;
use crate::relation::{Dependency, Relation, parse_dependencies, parse_provides, parse_relations};
use crate::version::Version;

/// Memory that an xz decompressor may take: the largest preset needs 65 MiB.
const XZ_MEMORY: u64 = 256 << 20;

/// A binary package as an index describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Name.
    pub name: String,
    /// Version.
    pub version: Version,
    /// Architecture, or `all`.
    pub architecture: String,
    /// Path of the file below the root of the archive; never absolute, never with `..`.
    pub filename: String,
    /// Size of the file in bytes.
    pub size: u64,
    /// Digest of the file.
    pub sha256: Sha256,
    /// What it needs installed.
    pub depends: Vec<Dependency>,
    /// What it needs configured before it is unpacked.
    pub pre_depends: Vec<Dependency>,
    /// Virtual packages it stands for, perhaps with a version.
    pub provides: Vec<Relation>,
    /// What must not be installed beside it.
    pub conflicts: Vec<Relation>,
    /// What it makes unusable.
    pub breaks: Vec<Relation>,
    /// Whose files it may overwrite.
    pub replaces: Vec<Relation>,
    /// Whether every Debian system has it.
    pub essential: bool,
    /// How it behaves among several architectures.
    pub multi_arch: MultiArch,
    /// Estimated size when installed, in KiB; 0 where the index does not say.
    pub installed_size: u64,
    /// Section, empty where the index does not say.
    pub section: String,
    /// First line of the description.
    pub description: String,
    /// Name and version of the source package it was built from.
    pub source: (String, Version),
    /// The suite it comes from, as the caller of [`parse_packages`] names it.
    pub origin: String,
}

/// The values of the field `Multi-Arch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MultiArch {
    /// `no`, or no field.
    No,
    /// `same`
    Same,
    /// `foreign`
    Foreign,
    /// `allowed`
    Allowed,
}

/// Parses a `Packages` file and keeps the packages of the given architectures, in the order of the file.
///
/// # Errors
///
/// [`Error::Index`] and [`Error::IndexText`], with `origin`, which names the suite.
pub fn parse_packages(text: &[u8], origin: &str, architectures: &[&str]) -> Result<Vec<Package>, Error> {
    let in_text = |source| Error::IndexText { origin: origin.to_owned(), source: Box::new(source) };
    let text = std::str::from_utf8(text).map_err(|err| {
        let line = text[..err.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        in_text(Error::Stanza { line, problem: "the text is not UTF-8".to_owned() })
    })?;
    let mut packages = Vec::new();
    for stanza in stanzas(text) {
        let stanza = stanza.map_err(in_text)?;
        let package = parse_package(&stanza, origin, architectures).map_err(|source| Error::Index {
            origin: origin.to_owned(),
            package: stanza.field("Package").unwrap_or("?").to_owned(),
            source: Box::new(source),
        })?;
        packages.extend(package);
    }
    Ok(packages)
}

/// Decompresses an index file by the end of its name: `.xz`, `.gz`, or none of these for a plain one.
///
/// # Errors
///
/// [`Error::Decompress`] if the data is damaged, cut short, or becomes more than `limit` bytes.
pub fn decompress(name: &str, bytes: &[u8], limit: u64) -> Result<Vec<u8>, Error> {
    let outcome = if name.ends_with(".xz") {
        xz_decoder(bytes).and_then(|decoder| read_bounded(decoder, limit))
    } else if name.ends_with(".gz") {
        read_bounded(flate2::bufread::MultiGzDecoder::new(bytes), limit)
    } else {
        read_bounded(bytes, limit)
    };
    outcome.map_err(|source| Error::Decompress { name: name.to_owned(), source })
}

/// A decoder for xz files, of several streams too, of bounded memory.
pub(crate) fn xz_decoder<R: io::BufRead>(reader: R) -> io::Result<liblzma::bufread::XzDecoder<R>> {
    let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)?;
    Ok(liblzma::bufread::XzDecoder::new_stream(reader, stream))
}

fn read_bounded(reader: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {limit} bytes")));
    }
    Ok(bytes)
}

fn parse_package(stanza: &StanzaRef<'_>, origin: &str, architectures: &[&str]) -> Result<Option<Package>, Error> {
    let architecture = required(stanza, "Architecture")?;
    if !architectures.contains(&architecture) {
        return Ok(None);
    }
    let name = required(stanza, "Package")?.to_owned();
    let version: Version = required(stanza, "Version")?.parse()?;
    let source = match stanza.field("Source") {
        Some(source) => parse_source(source, &version)?,
        None => (name.clone(), version.clone()),
    };
    let dependencies = |field| stanza.field(field).map_or(Ok(Vec::new()), parse_dependencies);
    let relations = |field| stanza.field(field).map_or(Ok(Vec::new()), parse_relations);
    Ok(Some(Package {
        name,
        version,
        architecture: architecture.to_owned(),
        filename: parse_filename(required(stanza, "Filename")?)?,
        size: parse_number("Size", required(stanza, "Size")?)?,
        sha256: required(stanza, "SHA256")?.parse()?,
        depends: dependencies("Depends")?,
        pre_depends: dependencies("Pre-Depends")?,
        provides: stanza.field("Provides").map_or(Ok(Vec::new()), parse_provides)?,
        conflicts: relations("Conflicts")?,
        breaks: relations("Breaks")?,
        replaces: relations("Replaces")?,
        essential: parse_essential(stanza.field("Essential"))?,
        multi_arch: parse_multi_arch(stanza.field("Multi-Arch"))?,
        installed_size: stanza.field("Installed-Size").map_or(Ok(0), |size| parse_number("Installed-Size", size))?,
        section: stanza.field("Section").unwrap_or_default().to_owned(),
        description: stanza.field("Description").and_then(|text| text.lines().next()).unwrap_or_default().to_owned(),
        source,
        origin: origin.to_owned(),
    }))
}

fn required<'a>(stanza: &StanzaRef<'a>, field: &'static str) -> Result<&'a str, Error> {
    stanza.field(field).filter(|value| !value.is_empty()).ok_or(Error::MissingField { field })
}

fn parse_number(field: &'static str, value: &str) -> Result<u64, Error> {
    // `str::parse` would also take a sign.
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    let number = if digits { value.parse().ok() } else { None };
    number.ok_or_else(|| Error::Field { field, value: value.to_owned(), expected: "a number" })
}

fn parse_filename(value: &str) -> Result<String, Error> {
    // It ends up in URLs and in paths of the cache.
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    if !value.split('/').all(plain) || value.contains(|c: char| c.is_control() || c == '\\' || c == ' ') {
        let expected = "a relative path without . and ..";
        return Err(Error::Field { field: "Filename", value: value.to_owned(), expected });
    }
    Ok(value.to_owned())
}

fn parse_essential(value: Option<&str>) -> Result<bool, Error> {
    match value {
        Some("yes") => Ok(true),
        Some("no") | None => Ok(false),
        Some(value) => Err(Error::Field { field: "Essential", value: value.to_owned(), expected: "yes or no" }),
    }
}

fn parse_multi_arch(value: Option<&str>) -> Result<MultiArch, Error> {
    match value {
        Some("no") | None => Ok(MultiArch::No),
        Some("same") => Ok(MultiArch::Same),
        Some("foreign") => Ok(MultiArch::Foreign),
        Some("allowed") => Ok(MultiArch::Allowed),
        Some(value) => {
            let expected = "no, same, foreign or allowed";
            Err(Error::Field { field: "Multi-Arch", value: value.to_owned(), expected })
        }
    }
}

/// Parses `name` or `name (version)`; without a version it is that of the binary package.
fn parse_source(value: &str, version: &Version) -> Result<(String, Version), Error> {
    let wrong = || Error::Field { field: "Source", value: value.to_owned(), expected: "a name, or name (version)" };
    match value.split_once('(') {
        Some((name, rest)) => {
            let version = rest.strip_suffix(')').ok_or_else(wrong)?;
            Ok((name.trim_ascii_end().to_owned(), version.trim_ascii().parse()?))
        }
        None => Ok((value.to_owned(), version.clone())),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const INDEX: &str = "\
Package: libx1
Source: x (1.0-1)
Version: 1.0-1+b2
Architecture: amd64
Essential: yes
Multi-Arch: same
Installed-Size: 42
Pre-Depends: dpkg (>= 1.17)
Depends: libc6 (>= 2.38), a | b
Provides: libx-abi (= 1), libx
Conflicts: libx0
Breaks: y (<< 2)
Replaces: libx0
Section: libs
Filename: pool/main/x/x/libx1_1.0-1+b2_amd64.deb
Size: 1234
SHA256: ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad
Description: short
 and long

Package: z
Version: 2
Architecture: all
Filename: pool/z.deb
Size: 1
SHA256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
";

    #[test]
    fn reads_packages() {
        let read = parse_packages(INDEX.as_bytes(), "trixie", &["amd64", "all"]).unwrap();
        assert_eq!(read.len(), 2);
        let package = &read[0];
        assert_eq!((package.name.as_str(), package.version.as_str()), ("libx1", "1.0-1+b2"));
        assert_eq!((package.source.0.as_str(), package.source.1.as_str()), ("x", "1.0-1"));
        assert_eq!((package.size, package.installed_size), (1234, 42));
        assert_eq!(package.sha256, Sha256::of(b"abc"));
        assert_eq!(package.depends[1].to_string(), "a | b");
        assert_eq!(package.pre_depends[0].to_string(), "dpkg (>= 1.17)");
        assert_eq!(package.provides[0].to_string(), "libx-abi (= 1)");
        assert_eq!(package.breaks[0].to_string(), "y (<< 2)");
        assert_eq!((package.essential, package.multi_arch), (true, MultiArch::Same));
        assert_eq!((package.section.as_str(), package.description.as_str()), ("libs", "short"));
        assert_eq!((read[1].source.0.as_str(), read[1].source.1.as_str()), ("z", "2"));
        assert_eq!(read[1].origin, "trixie");
        let only_all = parse_packages(INDEX.as_bytes(), "trixie", &["all"]).unwrap();
        assert_eq!(only_all, read[1..]);
    }

    #[test]
    fn refused_packages() {
        for (from, to, problem) in [
            ("Version: 1.0-1+b2\n", "", "the field Version is missing"),
            ("Size: 1234", "Size: +1234", "the field Size is \"+1234\", expected a number"),
            ("Multi-Arch: same", "Multi-Arch: some", "the field Multi-Arch is \"some\""),
            ("Essential: yes", "Essential: Yes", "the field Essential is \"Yes\""),
            ("pool/main", "../main", "the field Filename is"),
            ("pool/main", "/pool", "the field Filename is"),
            ("x (1.0-1)", "x (1.0-1", "the field Source is"),
            ("ba7816", "", "is not a SHA-256 digest"),
            ("a | b", "a | (b)", "not one of <<"),
        ] {
            let text = INDEX.replacen(from, to, 1);
            assert_ne!(text, INDEX, "{from}");
            let err = parse_packages(text.as_bytes(), "trixie", &["amd64"]).expect_err(to);
            let Error::Index { package, source, .. } = err else { panic!("{to}: {err}") };
            assert_eq!(package, "libx1", "{to}");
            assert!(source.to_string().contains(problem), "{to}: {source}");
        }
        assert!(matches!(parse_packages(b"Package: \xff\n", "trixie", &[]), Err(Error::IndexText { .. })));
    }

    #[test]
    fn decompresses_within_bounds() {
        let plain = b"some index text ".repeat(1000);
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 6);
        xz.write_all(&plain).unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gz.write_all(&plain).unwrap();
        let limit = plain.len() as u64;
        for (name, packed) in
            [("Packages", plain.clone()), ("Packages.xz", xz.finish().unwrap()), ("Packages.gz", gz.finish().unwrap())]
        {
            assert_eq!(decompress(name, &packed, limit).unwrap(), plain, "{name}");
            let err = decompress(name, &packed, limit - 1).expect_err(name);
            let Error::Decompress { source, .. } = err else { panic!("{name}: {err}") };
            assert_eq!(source.kind(), io::ErrorKind::FileTooLarge, "{name}");
            if name == "Packages" {
                continue;
            }
            for end in 0..packed.len() {
                assert!(decompress(name, &packed[..end], limit).is_err(), "{name} cut at {end}");
            }
        }
    }
}
