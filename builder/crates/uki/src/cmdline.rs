//! The kernel command line.
//!
//! Words are split and quoted as the kernel's `next_arg` does it
//! (<https://docs.kernel.org/admin-guide/kernel-parameters.html>): spaces separate, double quotes keep spaces, there
//! is no escape. Left out: what the parameters mean, and the `--` after which words belong to init.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// The longest command line in bytes: `COMMAND_LINE_SIZE` is 2048 on x86, of which one is for the NUL.
pub const MAX_LENGTH: usize = 2047;

/// A command line that reaches the kernel as it is: printable ASCII, within its length, every quote closed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cmdline(String);

/// One word of a command line, without the quotes around it or its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word<'a> {
    /// The parameter's name, up to the first `=`.
    pub key: &'a str,
    /// What follows the first `=`, where there is one.
    pub value: Option<&'a str>,
}

impl Cmdline {
    /// Validates `text`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.len() > MAX_LENGTH {
            return Err(Error::CmdlineLength(text.len()));
        }
        let printable = |character: char| character == ' ' || character.is_ascii_graphic();
        if let Some((offset, character)) = text.char_indices().find(|(_, character)| !printable(*character)) {
            return Err(Error::CmdlineCharacter { character, offset });
        }
        if text.matches('"').count() % 2 == 1 {
            return Err(Error::CmdlineQuote(text.rfind('"').expect("an odd count is not zero")));
        }
        Ok(Self(text.to_owned()))
    }

    /// The line as it is passed to the kernel.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The words in order.
    pub fn words(&self) -> impl Iterator<Item = Word<'_>> {
        let mut quoted = false;
        let words = self.0.split(move |character| {
            quoted ^= character == '"';
            character == ' ' && !quoted
        });
        words.filter(|word| !word.is_empty()).map(Word::split)
    }

    /// Value of the last word with this key, as the kernel lets later ones win; `-` and `_` are the same in a key.
    /// `Some(None)` is a word without `=`.
    pub fn value(&self, key: &str) -> Option<Option<&str>> {
        self.words().filter(|word| word.has_key(key)).last().map(|word| word.value)
    }
}

impl<'a> Word<'a> {
    /// The kernel takes off a quote at the beginning of the word or of its value, and then one at the end.
    fn split(word: &'a str) -> Self {
        let unquote = |text: &'a str| text.strip_suffix('"').unwrap_or(text);
        let (word, word_quoted) = match word.strip_prefix('"') {
            Some(rest) => (unquote(rest), true),
            None => (word, false),
        };
        match word.split_once('=') {
            None => Self { key: word, value: None },
            Some((key, value)) => {
                let value = match value.strip_prefix('"') {
                    Some(rest) if word_quoted => rest,
                    Some(rest) => unquote(rest),
                    None => value,
                };
                Self { key, value: Some(value) }
            }
        }
    }

    /// Whether this word sets the parameter `key`; `-` and `_` are the same.
    pub fn has_key(&self, key: &str) -> bool {
        let dashes = |byte: u8| if byte == b'_' { b'-' } else { byte };
        self.key.bytes().map(dashes).eq(key.bytes().map(dashes))
    }
}

impl fmt::Display for Cmdline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Cmdline {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Words = &'static [(&'static str, Option<&'static str>)];

    #[test]
    fn words_follow_the_kernel() {
        let cases: [(&str, Words); 9] = [
            ("", &[]),
            ("   ", &[]),
            ("quiet  ro ", &[("quiet", None), ("ro", None)]),
            ("root=PARTUUID=1-2 a=", &[("root", Some("PARTUUID=1-2")), ("a", Some(""))]),
            ("a=\"b c\" d", &[("a", Some("b c")), ("d", None)]),
            ("\"a=b c\" d", &[("a", Some("b c")), ("d", None)]),
            ("\"a b\"", &[("a b", None)]),
            ("a=b\" c\"d", &[("a", Some("b\" c\"d"))]),
            ("dyndbg=\"file a=b +p\" -- x", &[("dyndbg", Some("file a=b +p")), ("--", None), ("x", None)]),
        ];
        for (text, expected) in cases {
            let cmdline = Cmdline::parse(text).unwrap();
            let words: Vec<_> = cmdline.words().map(|word| (word.key, word.value)).collect();
            assert_eq!(words, expected, "{text:?}");
            assert_eq!(cmdline.to_string(), text);
        }
    }

    #[test]
    fn the_last_value_counts() {
        let cmdline: Cmdline = "console=tty0 quiet console=ttyS0 sys-rq=1".parse().unwrap();
        let cases =
            [("console", Some(Some("ttyS0"))), ("quiet", Some(None)), ("sys_rq", Some(Some("1"))), ("consol", None)];
        for (key, value) in cases {
            assert_eq!(cmdline.value(key), value, "{key}");
        }
    }

    #[test]
    fn what_cannot_reach_the_kernel_is_refused() {
        assert!(Cmdline::parse(&"a".repeat(2047)).is_ok());
        let cases = [
            ("a".repeat(2048), "command line is 2048 bytes, at most 2047 reach the kernel"),
            ("a\0".into(), "command line has '\\0' at byte 1, only printable ASCII is carried"),
            ("a\n".into(), "command line has '\\n' at byte 1, only printable ASCII is carried"),
            ("\ta".into(), "command line has '\\t' at byte 0, only printable ASCII is carried"),
            ("a\u{7f}".into(), "command line has '\\u{7f}' at byte 1, only printable ASCII is carried"),
            ("aé".into(), "command line has 'é' at byte 1, only printable ASCII is carried"),
            ("a=\"b\" c=\"d e".into(), "command line opens a quote at byte 8 that is not closed"),
        ];
        for (text, expected) in cases {
            assert_eq!(Cmdline::parse(&text).unwrap_err().to_string(), expected);
        }
    }
}
