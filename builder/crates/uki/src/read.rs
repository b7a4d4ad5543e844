//! Reading a UKI.

use std::io::{Read, Seek, SeekFrom, Take};

use crate::pe::{Headers, MAX_HEADERS, SectionHeader};
use crate::section::Name;
use crate::{Cmdline, Error};

/// The most bytes of a section that is read as text.
const MAX_TEXT: u64 = 64 * 1024;

/// A unified kernel image, without the content of its large sections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uki {
    headers: Headers,
    cmdline: Option<Cmdline>,
    osrel: Option<String>,
    uname: Option<String>,
}

impl Uki {
    /// Reads an image: it must have a kernel, each known section at most once, and no section out of its place.
    pub fn read(image: &mut (impl Read + Seek)) -> Result<Self, Error> {
        let length = image.seek(SeekFrom::End(0)).map_err(Error::Read)?;
        let prefix = read_range(image, 0, length.min(MAX_HEADERS as u64))?;
        let headers = Headers::parse(&prefix)?;
        headers.check_layout(length)?;
        for name in Name::ALL {
            match headers.sections.iter().filter(|section| section.is_named(name.as_str())).count() {
                0 if name == Name::Linux => return Err(Error::Missing(name)),
                0 | 1 => {}
                _ => return Err(Error::Duplicate(name)),
            }
        }
        let mut text = |name| read_text(image, &headers, name);
        let cmdline = text(Name::Cmdline)?.map(|text| Cmdline::parse(&text)).transpose()?;
        let (osrel, uname) = (text(Name::Osrel)?, text(Name::Uname)?);
        Ok(Self { headers, cmdline, osrel, uname })
    }

    /// The PE headers, sections of the stub included.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// The kernel command line.
    pub fn cmdline(&self) -> Option<&Cmdline> {
        self.cmdline.as_ref()
    }

    /// The content of `os-release`.
    pub fn osrel(&self) -> Option<&str> {
        self.osrel.as_deref()
    }

    /// The kernel's release.
    pub fn uname(&self) -> Option<&str> {
        self.uname.as_deref()
    }

    /// The known sections that the image has, in the order of their headers.
    pub fn sections(&self) -> impl Iterator<Item = (Name, &SectionHeader)> {
        let known = |section: &SectionHeader| Name::ALL.into_iter().find(|name| section.is_named(name.as_str()));
        self.headers.sections.iter().filter_map(move |section| Some((known(section)?, section)))
    }

    /// A reader over the content of a section of `image`, the file that this was read from.
    pub fn open_section<R: Read + Seek>(&self, mut image: R, name: Name) -> Result<Take<R>, Error> {
        let section = self.headers.section(name.as_str()).ok_or(Error::Missing(name))?;
        image.seek(SeekFrom::Start(section.raw_offset.into())).map_err(Error::Read)?;
        Ok(image.take(section.content_length().into()))
    }

    /// Whether the image carries signatures (which are not checked here).
    pub fn is_signed(&self) -> bool {
        self.headers.certificate_table.1 > 0
    }
}

/// A text section without the NULs and line ends that pad it.
fn read_text(image: &mut (impl Read + Seek), headers: &Headers, name: Name) -> Result<Option<String>, Error> {
    let Some(section) = headers.section(name.as_str()) else {
        return Ok(None);
    };
    let found = u64::from(section.content_length());
    if found > MAX_TEXT {
        return Err(Error::TextTooLong { name, found, max: MAX_TEXT });
    }
    let bytes = read_range(image, section.raw_offset.into(), found)?;
    let text = String::from_utf8(bytes).map_err(|_| Error::Text(name))?;
    Ok(Some(text.trim_end_matches(['\0', '\n']).to_owned()))
}

/// Reads a range whose length was bounded before.
fn read_range(image: &mut (impl Read + Seek), start: u64, length: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; length as usize];
    image.seek(SeekFrom::Start(start)).and_then(|_| image.read_exact(&mut bytes)).map_err(Error::Read)?;
    Ok(bytes)
}
