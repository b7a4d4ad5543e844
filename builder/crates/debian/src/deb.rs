//! A streaming reader of binary packages.
//!
//! A package file is an `ar` archive of three members, described in [deb(5)](https://manpages.debian.org/deb.5):
//! `debian-binary`, `control.tar` and `data.tar`, the latter two compressed with xz, gzip, zstd or not at all. The tar
//! archives may use the GNU and [PAX](https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html) extensions
//! for long names and extended attributes.
//!
//! [`Deb::open`] reads up to the end of the control member; [`Deb::for_each`] then streams the entries of the data
//! member, and no file is ever held in memory. Every byte of the package is read, so a package that was cut short
//! anywhere is an error. An extended attribute with a line feed in its value is an error too, because the `tar` crate
//! cannot read it. Left out are the old format 0.x, lzma and bzip2 members, sparse files, and the control
//! members that only dpkg's own database uses (`md5sums`, `shlibs`, `symbols`).
//!
//! The `ar` layout is read here and not by a crate: it is a header of sixty bytes, and the reader must own its input
//! and notice where that ends early.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};

use tar::EntryType;

use crate::Error;
use crate::control::{self, Stanza};
use crate::index::xz_decoder;

/// The largest control archive, unpacked, in bytes.
const MAX_CONTROL: u64 = 16 << 20;
/// The largest data archive, unpacked, in bytes.
const MAX_DATA: u64 = 16 << 30;
/// The largest window of a zstd decoder, as a power of two: 256 MiB.
const ZSTD_WINDOW_LOG: u32 = 28;
const BUFFER: usize = 128 << 10;

const AR_MAGIC: &[u8; 8] = b"!<arch>\n";
const AR_HEADER: usize = 60;
/// The members of a control archive that [`Control::scripts`] keeps.
const SCRIPTS: [&str; 8] = ["conffiles", "config", "postinst", "postrm", "preinst", "prerm", "templates", "triggers"];
const XATTR: &str = "SCHILY.xattr.";

/// A package file, read up to its data.
pub struct Deb<R> {
    name: String,
    control: Control,
    data: Member<R>,
    compression: Compression,
}

/// The control archive of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// The control file.
    pub stanza: Stanza,
    /// Maintainer scripts and what else tells dpkg what to do, by name: those of `preinst`, `postinst`, `prerm`,
    /// `postrm`, `config`, `triggers`, `conffiles` and `templates` that there are.
    pub scripts: BTreeMap<String, Vec<u8>>,
}

/// One entry of the data archive. What a file contains comes beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path relative to the root, without `.` and `..`; empty for the root itself.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// The permission bits, up to `0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Name of the owner, empty where the archive does not say.
    pub user: String,
    /// Name of the group, empty where the archive does not say.
    pub group: String,
    /// Time of modification, in Unix seconds.
    pub mtime: u64,
    /// Size of a file in bytes; 0 for anything else.
    pub size: u64,
    /// Extended attributes, by name with its namespace, such as `security.capability`.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// What an [`Entry`] is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A file, with content.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Where it leads, as written.
        target: String,
    },
    /// Another name of an earlier file.
    Hardlink {
        /// Path of that file, relative to the root as [`Entry::path`].
        target: String,
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

#[derive(Debug, Clone, Copy)]
enum Compression {
    None,
    Gzip,
    Xz,
    Zstd,
}

/// Reads exactly one member of an `ar` archive: an input that ends before it does is an error.
struct Member<R> {
    reader: R,
    remaining: u64,
    /// Whether a byte of padding follows.
    padded: bool,
}

/// Refuses to pass on more than a number of bytes.
struct Limit<R> {
    reader: R,
    remaining: u64,
}

impl<R: Read> Deb<R> {
    /// Reads a package up to and with its control archive. `name` names it in errors.
    ///
    /// The reader is read in large steps where possible; it needs no buffer of its own.
    ///
    /// # Errors
    ///
    /// [`Error::Deb`], [`Error::DebRead`] and [`Error::DebControl`], all with `name`: it is not a package, is damaged
    /// or cut short, or its control archive is more than 16 MiB.
    pub fn open(mut reader: R, name: &str) -> Result<Self, Error> {
        let mut magic = [0; AR_MAGIC.len()];
        reader.read_exact(&mut magic).map_err(read_error(name, "the beginning"))?;
        if magic != *AR_MAGIC {
            return Err(wrong(name, "it is not a package: no ar archive"));
        }
        let (reader, ()) = next_member(name, reader, |member, file| {
            if member != "debian-binary" {
                return Err(wrong(name, format!("the first member is {member:?}, expected debian-binary")));
            }
            let mut version = Vec::new();
            file.take(64).read_to_end(&mut version).map_err(read_error(name, member))?;
            if !version.starts_with(b"2.") {
                let version = String::from_utf8_lossy(&version);
                return Err(wrong(name, format!("the format is {:?}, expected 2.0", version.trim_ascii_end())));
            }
            Ok(())
        })?;
        let (reader, control) = next_member(name, reader, |member, file| {
            let compression = compression(name, member, "control.tar")?;
            read_control(name, member, compression, file)
        })?;
        let (member, data) = skip_to_data(name, reader)?;
        Ok(Self { name: name.to_owned(), control, data, compression: compression(name, &member, "data.tar")? })
    }

    /// The control archive.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Hands every entry to `on_entry`, in the order of the archive, with a reader of its content.
    ///
    /// The reader is empty for anything but a file. What `on_entry` leaves unread is skipped. An error that the reader
    /// gives is that of a damaged package; `on_entry` should return it.
    ///
    /// # Errors
    ///
    /// The errors of `on_entry`, and [`Error::Deb`] and [`Error::DebRead`] as in [`Deb::open`].
    pub fn for_each<E: From<Error>>(
        self,
        mut on_entry: impl FnMut(Entry, &mut dyn Read) -> Result<(), E>,
    ) -> Result<Control, E> {
        let Self { name, control, mut data, compression } = self;
        let name = name.as_str();
        let in_data = || read_error(name, "data.tar");
        let decoder = decoder(compression, &mut data).map_err(in_data())?;
        let mut archive = tar::Archive::new(Limit { reader: decoder, remaining: MAX_DATA });
        for entry in archive.entries().map_err(in_data())? {
            let mut tar_entry = entry.map_err(in_data())?;
            let entry = read_entry(name, &mut tar_entry)?;
            on_entry(entry, &mut tar_entry)?;
        }
        // The checksums of the compressed stream are at its end.
        io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(in_data())?;
        let mut reader = data.finish().map_err(in_data())?;
        // Dpkg ignores whatever follows the data, so only read it.
        io::copy(&mut reader, &mut io::sink()).map_err(read_error(name, "the end"))?;
        Ok(control)
    }
}

impl<R: Read> Member<R> {
    /// Reads to the end of the member and returns the reader, which is then at the next one.
    fn finish(mut self) -> io::Result<R> {
        io::copy(&mut self, &mut io::sink())?;
        if self.padded {
            self.reader.read_exact(&mut [0])?;
        }
        Ok(self.reader)
    }
}

impl<R: Read> Read for Member<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.remaining).map_or(buffer.len(), |remaining| remaining.min(buffer.len()));
        let count = self.reader.read(&mut buffer[..length])?;
        if count == 0 && length > 0 {
            let problem = format!("the package ends {} bytes before its member", self.remaining);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, problem));
        }
        self.remaining -= count as u64;
        Ok(count)
    }
}

impl<R: Read> Read for Limit<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.remaining = self.remaining.checked_sub(count as u64).ok_or_else(|| {
            io::Error::new(io::ErrorKind::FileTooLarge, "the archive is larger than any package should be")
        })?;
        Ok(count)
    }
}

/// Reads the header of a member, if there is one, and returns the name of the member with its content.
fn read_header<R: Read>(name: &str, mut reader: R) -> Result<Option<(String, Member<R>)>, Error> {
    let mut header = Vec::with_capacity(AR_HEADER);
    reader.by_ref().take(AR_HEADER as u64).read_to_end(&mut header).map_err(read_error(name, "a member header"))?;
    if header.is_empty() {
        return Ok(None);
    }
    let Some(header) = header.first_chunk::<AR_HEADER>() else {
        return Err(wrong(name, "it ends within a member header"));
    };
    // Name, time, owner, group and mode, size, and a constant, each padded with spaces.
    let field = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(|text| text.trim_end_matches(' ').to_owned());
    let (member, size) = (field(&header[..16]), field(&header[48..58]));
    let size = size.filter(|size| size.bytes().all(|byte| byte.is_ascii_digit())).and_then(|size| size.parse().ok());
    match (member, size, &header[58..]) {
        (Some(member), Some(size), b"`\n") => {
            // Some writers end the name with a slash.
            let member = member.strip_suffix('/').unwrap_or(&member).to_owned();
            Ok(Some((member, Member { reader, remaining: size, padded: size % 2 == 1 })))
        }
        _ => Err(wrong(name, "a member header is malformed")),
    }
}

/// Reads one member with `read`, and returns the reader behind it.
fn next_member<R: Read, T>(
    name: &str,
    reader: R,
    read: impl FnOnce(&str, &mut Member<R>) -> Result<T, Error>,
) -> Result<(R, T), Error> {
    let (member, mut file) = read_header(name, reader)?.ok_or_else(|| wrong(name, "it ends before its data"))?;
    let value = read(&member, &mut file)?;
    Ok((file.finish().map_err(read_error(name, &member))?, value))
}

/// Goes on to the data member, past members whose names begin with an underscore, which readers are to ignore.
fn skip_to_data<R: Read>(name: &str, mut reader: R) -> Result<(String, Member<R>), Error> {
    loop {
        match read_header(name, reader)? {
            None => return Err(wrong(name, "it ends before its data")),
            Some((member, file)) if member.starts_with('_') => {
                reader = file.finish().map_err(read_error(name, &member))?;
            }
            Some(found) => return Ok(found),
        }
    }
}

fn compression(name: &str, member: &str, expected: &str) -> Result<Compression, Error> {
    match member.strip_prefix(expected) {
        Some("") => Ok(Compression::None),
        Some(".gz") => Ok(Compression::Gzip),
        Some(".xz") => Ok(Compression::Xz),
        Some(".zst") => Ok(Compression::Zstd),
        Some(other) => Err(wrong(name, format!("the compression {other:?} of {expected} is not supported"))),
        None => Err(wrong(name, format!("the member {member:?} is in place of {expected}"))),
    }
}

fn decoder<'a>(compression: Compression, reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let reader = BufReader::with_capacity(BUFFER, reader);
    Ok(match compression {
        Compression::None => Box::new(reader),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        Compression::Xz => Box::new(BufReader::with_capacity(BUFFER, xz_decoder(reader)?)),
        Compression::Zstd => Box::new(zstd_decoder(reader)?),
    })
}

fn zstd_decoder<'a, R: BufRead + 'a>(reader: R) -> io::Result<zstd::Decoder<'a, R>> {
    let mut decoder = zstd::Decoder::with_buffer(reader)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG)?;
    Ok(decoder)
}

fn read_control(name: &str, member: &str, compression: Compression, file: &mut dyn Read) -> Result<Control, Error> {
    let in_control = || read_error(name, member);
    let decoder = decoder(compression, file).map_err(in_control())?;
    let mut archive = tar::Archive::new(Limit { reader: decoder, remaining: MAX_CONTROL });
    let mut stanza = None;
    let mut scripts = BTreeMap::new();
    for entry in archive.entries().map_err(in_control())? {
        let mut tar_entry = entry.map_err(in_control())?;
        let entry = read_entry(name, &mut tar_entry)?;
        let is_script = SCRIPTS.contains(&entry.path.as_str());
        if !is_script && entry.path != "control" {
            continue;
        }
        if entry.kind != Kind::File {
            return Err(wrong(name, format!("{} in {member} is not a file", entry.path)));
        }
        let mut content = Vec::new();
        tar_entry.read_to_end(&mut content).map_err(in_control())?;
        let again = if is_script {
            scripts.insert(entry.path.clone(), content).is_some()
        } else {
            stanza.replace(parse_control(name, &content)?).is_some()
        };
        if again {
            return Err(wrong(name, format!("{} is twice in {member}", entry.path)));
        }
    }
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(in_control())?;
    let stanza = stanza.ok_or_else(|| wrong(name, format!("there is no control file in {member}")))?;
    Ok(Control { stanza, scripts })
}

fn parse_control(name: &str, content: &[u8]) -> Result<Stanza, Error> {
    let in_control = |source| Error::DebControl { deb: name.to_owned(), source: Box::new(source) };
    let text = std::str::from_utf8(content).map_err(|_| wrong(name, "the control file is not UTF-8"))?;
    let mut stanzas = control::parse(text).map_err(in_control)?;
    let (Some(stanza), true) = (stanzas.pop(), stanzas.is_empty()) else {
        return Err(wrong(name, "the control file is not one stanza"));
    };
    for field in ["Package", "Version", "Architecture"] {
        if stanza.field(field).is_none_or(str::is_empty) {
            return Err(in_control(Error::MissingField { field }));
        }
    }
    Ok(stanza)
}

fn read_entry<R: Read>(name: &str, entry: &mut tar::Entry<'_, R>) -> Result<Entry, Error> {
    let raw_path = text(name, &entry.path_bytes())?;
    let path = relative_path(name, &raw_path)?;
    let xattrs = read_xattrs(name, &raw_path, entry)?;
    let header = entry.header();
    let malformed = |source| Error::DebRead { deb: name.to_owned(), part: format!("the header of {raw_path}"), source };
    let id = |id: io::Result<u64>| -> Result<u32, Error> {
        let id = id.map_err(malformed)?;
        u32::try_from(id).map_err(|_| wrong(name, format!("{raw_path} has an owner or group of {id}")))
    };
    let device = |number: io::Result<Option<u32>>| {
        let number = number.map_err(malformed)?;
        number.ok_or_else(|| wrong(name, format!("the device {raw_path} has no number")))
    };
    let target = || {
        let target = entry.link_name_bytes().unwrap_or_default();
        let target = text(name, &target)?;
        if target.is_empty() { Err(wrong(name, format!("the link {raw_path} has no target"))) } else { Ok(target) }
    };
    let entry_type = header.entry_type();
    let kind = match entry_type {
        EntryType::Regular | EntryType::Continuous if raw_path.ends_with('/') || path.is_empty() => {
            return Err(wrong(name, format!("the file {raw_path:?} has the name of a directory")));
        }
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink { target: target()? },
        EntryType::Link => Kind::Hardlink { target: relative_path(name, &target()?)? },
        EntryType::Char => {
            Kind::CharDevice { major: device(header.device_major())?, minor: device(header.device_minor())? }
        }
        EntryType::Block => {
            Kind::BlockDevice { major: device(header.device_major())?, minor: device(header.device_minor())? }
        }
        EntryType::Fifo => Kind::Fifo,
        other => return Err(wrong(name, format!("{raw_path} is of the unsupported type {other:?}"))),
    };
    let size = if kind == Kind::File { entry.size() } else { 0 };
    if size == 0 && entry.size() != 0 {
        return Err(wrong(name, format!("{raw_path} is no file and has a content of {} bytes", entry.size())));
    }
    let (user, group) = (header.username_bytes().unwrap_or_default(), header.groupname_bytes().unwrap_or_default());
    Ok(Entry {
        kind,
        mode: header.mode().map_err(malformed)? & 0o7777,
        uid: id(header.uid())?,
        gid: id(header.gid())?,
        user: text(name, user)?,
        group: text(name, group)?,
        mtime: header.mtime().map_err(malformed)?,
        size,
        xattrs,
        path,
    })
}

fn read_xattrs<R: Read>(
    name: &str,
    path: &str,
    entry: &mut tar::Entry<'_, R>,
) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    let in_header = || read_error(name, &format!("the extended header of {path}"));
    let mut xattrs = BTreeMap::new();
    for record in entry.pax_extensions().map_err(in_header())?.into_iter().flatten() {
        let record = record.map_err(in_header())?;
        let key = text(name, record.key_bytes())?;
        if let Some(xattr) = key.strip_prefix(XATTR) {
            xattrs.insert(xattr.to_owned(), record.value_bytes().to_vec());
        }
    }
    Ok(xattrs)
}

fn text(name: &str, bytes: &[u8]) -> Result<String, Error> {
    let text = String::from_utf8(bytes.to_vec());
    let text = text.map_err(|_| wrong(name, format!("{:?} is not UTF-8", String::from_utf8_lossy(bytes))))?;
    if text.contains('\0') {
        return Err(wrong(name, format!("{text:?} holds a zero byte")));
    }
    Ok(text)
}

/// Normalises a path of the archive: relative to the root, without `.`, never with `..`.
fn relative_path(name: &str, path: &str) -> Result<String, Error> {
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if path.is_empty() || parts.contains(&"..") {
        return Err(wrong(name, format!("the path {path:?} is empty or leads upwards")));
    }
    Ok(parts.join("/"))
}

fn wrong(name: &str, problem: impl Into<String>) -> Error {
    Error::Deb { deb: name.to_owned(), problem: problem.into() }
}

fn read_error(name: &str, part: &str) -> impl FnOnce(io::Error) -> Error + use<> {
    let (deb, part) = (name.to_owned(), part.to_owned());
    move |source| Error::DebRead { deb, part, source }
}
