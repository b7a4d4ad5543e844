//! Words and what is wrong with them: where each stands, and every problem at once.

use std::fmt;

use crate::cmdline;

/// The keys of our words.
const KEYS: [&str; 10] =
    ["ip", "rd.route", "nameserver", "vlan", "bond", "bridge", "ifname", "rd.peerdns", "team", "bootdev"];

/// Where a word stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On the kernel command line.
    Cmdline,
    /// In the ESP's `/nodezero/network`, counted from 1 and in characters.
    File {
        /// The line.
        line: usize,
        /// The column of the word's first character.
        column: usize,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cmdline => f.write_str("kernel command line"),
            Self::File { line, column } => write!(f, "/nodezero/network:{line}:{column}"),
        }
    }
}

/// One word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) place: Place,
    pub(super) text: String,
}

impl Word {
    /// The part before the first `=`, and the one after it.
    pub(super) fn key_value(&self) -> (&str, Option<&str>) {
        match self.text.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (&self.text, None),
        }
    }
}

/// The words of the command line that speak of the network.
pub(super) fn of_cmdline(text: &str) -> Vec<Word> {
    let words = cmdline::split(text).into_iter().map(|text| Word { place: Place::Cmdline, text });
    words.filter(|word| KEYS.contains(&word.key_value().0)).collect()
}

/// All words of the file. `#` at a word's beginning starts a comment that ends with the line.
pub(super) fn of_file(text: &str) -> Vec<Word> {
    let mut words = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut rest = line;
        while let Some(start) = rest.find(|c: char| !c.is_whitespace()) {
            rest = &rest[start..];
            if rest.starts_with('#') {
                break;
            }
            let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            let column = line[..line.len() - rest.len()].chars().count() + 1;
            words.push(Word { place: Place::File { line: index + 1, column }, text: rest[..end].to_owned() });
            rest = &rest[end..];
        }
    }
    words
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    place: Place,
    word: String,
    what: String,
}

impl Problem {
    pub(super) fn new(word: &Word, what: impl Into<String>) -> Self {
        Self { place: word.place, word: word.text.clone(), what: what.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.place, printable(&self.word), printable(&self.what))
    }
}

/// What may go to a console: the text, with control characters spelled out.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// All that is wrong, in the order of the words; one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problems(Vec<Problem>);

impl Problems {
    /// `None` where nothing is wrong.
    pub(super) fn from(problems: Vec<Problem>) -> Option<Self> {
        (!problems.is_empty()).then_some(Self(problems))
    }

    /// Each of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.iter().map(Problem::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_file_know_their_place() {
        let text = "# nothing\n\n ip=dhcp\tnameserver=1.1.1.1 # ip=off\n\u{e9} vlan=a#b\n";
        let found: Vec<_> = of_file(text).into_iter().map(|word| (word.place.to_string(), word.text)).collect();
        let expected = [
            ("/nodezero/network:3:2", "ip=dhcp"),
            ("/nodezero/network:3:10", "nameserver=1.1.1.1"),
            ("/nodezero/network:4:1", "\u{e9}"),
            ("/nodezero/network:4:3", "vlan=a#b"),
        ];
        assert_eq!(found, expected.map(|(place, text)| (place.to_owned(), text.to_owned())));
    }

    #[test]
    fn only_our_words_of_the_command_line_count() {
        let words = of_cmdline("quiet ip=dhcp ipv6.disable=1 root=x bond -- ip=off");
        assert_eq!(words.iter().map(|word| word.text.as_str()).collect::<Vec<_>>(), ["ip=dhcp", "bond"]);
    }
}
