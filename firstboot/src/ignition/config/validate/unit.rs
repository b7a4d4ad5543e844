//! Unit files, as far as their form goes.
//!
//! From systemd.syntax(7), with the reading of `go-systemd`, by which the reference decides which units are well-formed:
//! an option has an equals sign on its line, a section's header ends with a bracket on it, and a line has at most 2048 bytes.

use std::collections::HashSet;

/// The longest line that systemd reads, in bytes.
const LINE_MAX: usize = 2048;
/// The length of the reference's buffer, by which it notices longer lines.
const BUFFER: usize = 4096;

/// The names of a unit file's sections that have options.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sections(HashSet<String>);

impl Sections {
    /// Parses a unit file; the error says what is wrong with it.
    pub(super) fn parse(contents: &str) -> Result<Self, String> {
        let mut reader = Reader { text: contents, at: 0, filled: 0 };
        let mut sections = Self::default();
        let mut state = State::Outside;
        while let Some(next) = reader.check_line().and_then(|()| reader.step(state, &mut sections))? {
            state = next;
        }
        Ok(sections)
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

/// The template of an instance of a service: of `a@b.service`, `a@.service`.
pub(super) fn template_of(name: &str) -> Option<String> {
    let stem = name.strip_suffix(".service").filter(|stem| !stem.contains('\n'))?;
    let (at, _) = stem.match_indices('@').find(|&(at, _)| at > 0 && at + 1 < stem.len())?;
    Some(format!("{}@.service", &stem[..at]))
}

/// What is read next.
#[derive(Clone, Debug)]
enum State<'t> {
    /// Before the first section, where anything may stand.
    Outside,
    /// After a section's opening bracket.
    Header,
    AfterHeader(&'t str),
    Inside(&'t str),
    Name(&'t str),
    Value(&'t str),
    /// A comment, and what follows it.
    Comment(Option<&'t str>),
}

/// A text with the reference's buffer over it, of which only the extent matters.
struct Reader<'t> {
    text: &'t str,
    at: usize,
    /// The end of what the buffer holds.
    filled: usize,
}

impl<'t> Reader<'t> {
    /// Refuses a line that is too long, where the buffer already shows that it is.
    fn check_line(&self) -> Result<(), String> {
        if self.filled - self.at < LINE_MAX {
            return Ok(());
        }
        let ahead = &self.text.as_bytes()[self.at..self.at + LINE_MAX];
        if ahead.contains(&b'\n') || ahead.contains(&b'\r') {
            return Ok(());
        }
        Err(format!("a line has more than {LINE_MAX} bytes"))
    }

    /// One step; `None` at the end.
    fn step(&mut self, state: State<'t>, sections: &mut Sections) -> Result<Option<State<'t>>, String> {
        let next = match state {
            State::Outside => match self.character() {
                None => return Ok(None),
                Some('[') => State::Header,
                Some('#' | ';') => State::Comment(None),
                Some(_) => State::Outside,
            },
            State::Header => match self.until(b']') {
                (name, true) => State::AfterHeader(name),
                (_, false) => return Err("a section's name has no closing bracket".to_owned()),
            },
            State::AfterHeader(section) => {
                let (start, rest) = (self.at, self.line());
                if !rest.trim().is_empty() {
                    return Err(format!("line {} goes on after the section's name", self.line_number(start)));
                }
                State::Inside(section)
            }
            State::Inside(section) => match self.character() {
                None => return Ok(None),
                Some('[') => State::Header,
                Some('#' | ';') => State::Comment(Some(section)),
                Some(space) if space.is_whitespace() => State::Inside(section),
                Some(other) => {
                    self.at -= other.len_utf8();
                    State::Name(section)
                }
            },
            State::Name(section) => {
                self.option_name()?;
                State::Value(section)
            }
            State::Value(section) => {
                let line = self.line();
                if line.ends_with('\\') {
                    State::Value(section)
                } else {
                    sections.0.insert(section.to_owned());
                    State::Inside(section)
                }
            }
            State::Comment(after) => {
                while self.comment_goes_on() {}
                after.map_or(State::Outside, State::Inside)
            }
        };
        Ok(Some(next))
    }

    /// Whether the next line of the comment is a part of it too, by a backslash at its end.
    fn comment_goes_on(&mut self) -> bool {
        let line = self.line();
        line.strip_suffix(' ').unwrap_or(line).ends_with('\\')
    }

    /// Reads an option's name with its equals sign.
    fn option_name(&mut self) -> Result<(), String> {
        let start = self.at;
        loop {
            match self.character() {
                Some('=') => return Ok(()),
                Some('\n' | '\r') | None => {
                    return Err(format!("line {} has no equals sign", self.line_number(start)));
                }
                Some(_) => {}
            }
        }
    }

    /// From 1. What stands on the line may be secret, and is not quoted.
    fn line_number(&self, at: usize) -> usize {
        self.text[..at].matches('\n').count() + 1
    }

    fn character(&mut self) -> Option<char> {
        let character = self.text[self.at..].chars().next()?;
        while self.at + character.len_utf8() > self.filled && self.filled < self.text.len() {
            self.fill();
        }
        self.at += character.len_utf8();
        Some(character)
    }

    /// The rest of the line, without its newline.
    fn line(&mut self) -> &'t str {
        match self.until(b'\n') {
            (line, true) => line,
            (line, false) => line.strip_suffix('\r').unwrap_or(line),
        }
    }

    /// What stands before the next such byte, or before the end; and whether there is one.
    fn until(&mut self, delimiter: u8) -> (&'t str, bool) {
        let (start, text) = (self.at, self.text);
        let end = text.as_bytes()[start..].iter().position(|&byte| byte == delimiter).map(|at| start + at);
        loop {
            match end {
                Some(end) if end < self.filled => {
                    self.at = end + 1;
                    return (&text[start..end], true);
                }
                _ if self.filled == text.len() => {
                    self.at = text.len();
                    return (&text[start..], false);
                }
                // A full buffer is passed on, and begins anew.
                _ if self.filled - self.at >= BUFFER => self.at = self.filled,
                _ => {}
            }
            self.fill();
        }
    }

    fn fill(&mut self) {
        self.filled += (BUFFER - (self.filled - self.at)).min(self.text.len() - self.filled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_form_of_units() {
        let long = format!("[S]\na={}", "x".repeat(LINE_MAX));
        let at_limit = format!("[S]\na={}\nb=c\n", "x".repeat(LINE_MAX - 3));
        let comment = format!("[S]\n#{}\na=b", "x".repeat(3000));
        let cases = [
            ("nothing", "", Ok(vec![])),
            ("text before the first section", "anything = goes\n", Ok(vec![])),
            ("a section without options", "[Install]\n", Ok(vec![])),
            ("a section with an option", "[Install]\nA=b", Ok(vec!["Install"])),
            ("two sections", "[Unit]\nA=b\n\n[Install]\nC=d\n", Ok(vec!["Install", "Unit"])),
            ("comments", "# a\n[S] \n; b\n#c \\\nmore\na=b", Ok(vec!["S"])),
            ("a value on two lines", "[S]\na=b \\\n c\nd=e", Ok(vec!["S"])),
            ("a value that ends in a backslash", "[S]\na=\\", Ok(vec!["S"])),
            ("carriage returns", "[S]\r\na=b\r\n", Ok(vec!["S"])),
            ("an empty value", "[S]\na=\n", Ok(vec!["S"])),
            ("an empty name", "[S]\n=b\n", Ok(vec!["S"])),
            ("a header without its end", "[S", Err(())),
            ("text after a header", "[S]x\n", Err(())),
            ("a line without an equals sign", "[S]\nfoo\n", Err(())),
            ("a last line without an equals sign", "[S]\nfoo", Err(())),
            ("a line too long", long.as_str(), Err(())),
            ("a line as long as it may be", at_limit.as_str(), Ok(vec!["S"])),
            ("a comment too long", comment.as_str(), Err(())),
        ];
        for (case, text, expected) in cases {
            let outcome = Sections::parse(text).map(|sections| {
                let mut names: Vec<_> = sections.0.into_iter().collect();
                names.sort();
                names
            });
            let expected = expected.map(|names| names.into_iter().map(str::to_owned).collect());
            assert_eq!(outcome.map_err(drop), expected, "{case}");
        }
    }

    #[test]
    fn finds_templates() {
        let cases = [
            ("a@b.service", Some("a@.service")),
            ("a@b@c.service", Some("a@.service")),
            ("a@@.service", Some("a@.service")),
            ("@a@b.service", Some("@a@.service")),
            ("a@.service", None),
            ("@a.service", None),
            ("a.service", None),
            ("a@b.timer", None),
        ];
        for (name, expected) in cases {
            assert_eq!(template_of(name).as_deref(), expected, "{name}");
        }
    }
}
