//! The text of a file of `images/`, able to say where in it something stands.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Error, Origin};

/// One recipe file's text, able to say where in it a byte stands.
pub(crate) struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), text })
    }

    pub(crate) fn parse<T: for<'de> Deserialize<'de>>(&self) -> Result<T, Error> {
        toml::from_str(&self.text).map_err(|error| Error::Syntax {
            origin: self.origin(error.span().map_or(0, |span| span.start)),
            message: error.message().trim().replace('\n', "; "),
        })
    }

    pub(crate) fn origin(&self, offset: usize) -> Origin {
        let before = &self.text[..offset.min(self.text.len())];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Origin {
            file: self.path.clone(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    pub(crate) fn error(&self, span: &std::ops::Range<usize>, message: impl Into<String>) -> Error {
        Error::Syntax { origin: self.origin(span.start), message: message.into() }
    }

    pub(crate) fn filled(&self, value: &toml::Spanned<String>, what: &str) -> Result<String, Error> {
        let text = value.get_ref();
        if text.trim().is_empty() || text.trim() != text {
            return Err(self.error(&value.span(), format!("{text:?} is not {what}: empty, or blanks around it")));
        }
        Ok(text.clone())
    }

    pub(crate) fn reason(&self, span: &std::ops::Range<usize>, reason: &str) -> Result<(), Error> {
        if reason.trim().is_empty() {
            return Err(self.error(span, "the reason is empty: say why the image needs this"));
        }
        Ok(())
    }

    /// Permission bits, written in octal.
    pub(crate) fn mode(&self, value: &toml::Spanned<String>) -> Result<u16, Error> {
        let mode = u16::from_str_radix(value.get_ref(), 8).ok().filter(|mode| *mode <= 0o7777);
        mode.ok_or_else(|| self.error(&value.span(), format!("{:?} is not an octal mode", value.get_ref())))
    }

    /// A path in the image, relative to its root.
    pub(crate) fn path(&self, value: &toml::Spanned<String>) -> Result<String, Error> {
        let text = self.filled(value, "a path")?;
        let path = text.strip_prefix('/').unwrap_or(&text);
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(self.error(&value.span(), format!("{text:?} has an empty, \".\" or \"..\" component")));
        }
        Ok(path.to_owned())
    }
}
