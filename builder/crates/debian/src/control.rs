//! Stanzas of fields, the text format of control, index and release files.
//!
//! The format is that of [deb822(5)](https://manpages.debian.org/deb822), for binary packages: comments, which only the
//! control files of source packages may hold, are refused.

use crate::Error;

/// The fields of one stanza, in the order of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stanza {
    fields: Vec<(String, String)>,
}

/// The fields of one stanza, borrowed from the text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StanzaRef<'a> {
    fields: Vec<(&'a str, &'a str)>,
    line: usize,
}

/// Iterates over the stanzas of a text without copying any of it. After an error it ends.
#[derive(Debug, Clone)]
pub struct Stanzas<'a> {
    rest: &'a str,
    line: usize,
}

/// Parses all stanzas of a text.
///
/// # Errors
///
/// [`Error::Stanza`] with the line: a line that is neither a field nor a continuation, or a field that occurs twice.
pub fn parse(text: &str) -> Result<Vec<Stanza>, Error> {
    stanzas(text).map(|stanza| stanza.map(|stanza| stanza.to_owned())).collect()
}

/// Iterates over the stanzas of a text, for texts of tens of megabytes.
#[must_use]
pub fn stanzas(text: &str) -> Stanzas<'_> {
    Stanzas { rest: text, line: 1 }
}

impl Stanza {
    /// The value of a field, whose name is compared without regard to case.
    ///
    /// A value is without the space around it. A value of several lines keeps them as written, with the leading space
    /// of each.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields().find(|field| field.0.eq_ignore_ascii_case(name)).map(|field| field.1)
    }

    /// Names and values, in the order of the file.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl<'a> StanzaRef<'a> {
    /// The value of a field, as with [`Stanza::field`].
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&'a str> {
        self.fields().find(|field| field.0.eq_ignore_ascii_case(name)).map(|field| field.1)
    }

    /// Names and values, in the order of the file.
    pub fn fields(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.fields.iter().copied()
    }

    /// The line of the text where the stanza begins, from 1.
    #[must_use]
    pub fn line(&self) -> usize {
        self.line
    }

    /// A copy that does not borrow the text.
    #[must_use]
    pub fn to_owned(&self) -> Stanza {
        Stanza { fields: self.fields().map(|(name, value)| (name.to_owned(), value.to_owned())).collect() }
    }
}

impl<'a> Iterator for Stanzas<'a> {
    type Item = Result<StanzaRef<'a>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let stanza = self.read_stanza();
        if stanza.is_err() {
            self.rest = "";
        }
        stanza.transpose()
    }
}

impl<'a> Stanzas<'a> {
    fn read_stanza(&mut self) -> Result<Option<StanzaRef<'a>>, Error> {
        while !self.rest.is_empty() && is_blank(first_line(self.rest)) {
            self.skip_line();
        }
        if self.rest.is_empty() {
            return Ok(None);
        }
        let mut stanza = StanzaRef { fields: Vec::with_capacity(32), line: self.line };
        while !self.rest.is_empty() && !is_blank(first_line(self.rest)) {
            let line = self.line;
            let field = self.read_field()?;
            if stanza.field(field.0).is_some() {
                return Err(Error::Stanza { line, problem: format!("the field {} occurs twice", field.0) });
            }
            stanza.fields.push(field);
        }
        Ok(Some(stanza))
    }

    /// Reads one field with its continuation lines.
    fn read_field(&mut self) -> Result<(&'a str, &'a str), Error> {
        let start = self.rest;
        let line = first_line(start);
        let wrong = |problem: &str| Error::Stanza { line: self.line, problem: format!("{problem}: {line:?}") };
        if line.starts_with([' ', '\t']) {
            return Err(wrong("a continuation line without a field"));
        }
        let (name, _) = line.split_once(':').ok_or_else(|| wrong("a line without a colon"))?;
        if !is_field_name(name) {
            return Err(wrong("not a field name"));
        }
        self.skip_line();
        while self.rest.starts_with([' ', '\t']) && !is_blank(first_line(self.rest)) {
            self.skip_line();
        }
        let field = &start[..start.len() - self.rest.len()];
        Ok((name, field[name.len() + 1..].trim_ascii()))
    }

    fn skip_line(&mut self) {
        self.rest = self.rest.split_once('\n').map_or("", |(_, rest)| rest);
        self.line += 1;
    }
}

fn first_line(text: &str) -> &str {
    text.split_once('\n').map_or(text, |(line, _)| line)
}

/// As dpkg does, a line of nothing but space ends a stanza too.
fn is_blank(line: &str) -> bool {
    line.bytes().all(|byte| matches!(byte, b' ' | b'\t' | b'\r'))
}

fn is_field_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with(['#', '-']) && name.bytes().all(|byte| matches!(byte, b'!'..=b'~'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stanzas() {
        let text = "\n\nPackage: a\nDescription: short\n long\n .\n\tmore  \nEmpty:\n \t\npackage:b\n\n";
        let read = parse(text).unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!(read[0].field("PACKAGE"), Some("a"));
        assert_eq!(read[0].field("Description"), Some("short\n long\n .\n\tmore"));
        assert_eq!(read[0].field("Empty"), Some(""));
        assert_eq!(read[0].field("Missing"), None);
        assert_eq!(read[1].field("Package"), Some("b"));
        assert_eq!(read[0].fields().map(|field| field.0).collect::<Vec<_>>(), ["Package", "Description", "Empty"]);
        assert_eq!(stanzas(text).map(|stanza| stanza.unwrap().line()).collect::<Vec<_>>(), [3, 10]);
    }

    #[test]
    fn lists_begin_on_the_next_line() {
        let read = parse("SHA256:\n aa 1 x\n bb 2 y\r\n").unwrap();
        assert_eq!(read[0].field("sha256"), Some("aa 1 x\n bb 2 y"));
    }

    #[test]
    fn odd_ends() {
        for (text, stanzas) in
            [("", 0), ("\n", 0), (" \n\n", 0), ("A: b", 1), ("A: b\n\n\n\nC: d", 2), ("A: b\r\n\r\nC: d\r\n", 2)]
        {
            assert_eq!(parse(text).unwrap().len(), stanzas, "{text:?}");
        }
    }

    #[test]
    fn refused() {
        for (text, line) in [
            ("Package a\n", 1),
            (" x\nPackage: a\n", 1),
            ("A: b\n\n x\n", 3),
            ("A: b\nB: c\na: d\n", 3),
            ("A: b\n: c\n", 2),
            ("# comment\nA: b\n", 1),
            ("A: b\n# comment: x\n", 2),
            ("-----BEGIN: x\n", 1),
            ("A b: c\n", 1),
            ("\u{e4}: c\n", 1),
        ] {
            let Err(Error::Stanza { line: found, .. }) = parse(text) else { panic!("{text:?} was taken") };
            assert_eq!(found, line, "{text:?}");
            assert_eq!(stanzas(text).filter(Result::is_err).count(), 1, "{text:?} errs once");
        }
    }
}
