//! JSON with positions, read as leniently as the reference implementation reads it.
//!
//! The grammar is [RFC 8259](https://www.rfc-editor.org/rfc/rfc8259). Within it the reference is lenient where the RFC
//! leaves a choice, and so is this: invalid UTF-8 and lone surrogates in strings become U+FFFD, and objects keep
//! duplicate keys for the caller to judge.
//!
//! A document is one flat list of nodes in the order of the text; a node knows where its subtree ends. So neither
//! parsing nor dropping recurses, and 10 MB of brackets cost neither stack nor more than 16 bytes a node.

use std::borrow::Cow;
use std::cell::OnceCell;

/// The deepest nesting that is read, as in the reference.
const MAX_DEPTH: usize = 10_000;
/// The largest text that is read, in bytes. Offsets are 32 bits wide.
pub(crate) const MAX_SIZE: usize = 256 << 20;

/// A parsed text.
#[derive(Debug)]
pub(super) struct Document<'t> {
    text: &'t [u8],
    nodes: Vec<Node>,
    /// Offsets of the first byte of each line, found when first asked for.
    lines: OnceCell<Vec<u32>>,
}

/// A value or an object's key, within its document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeId(u32);

#[derive(Clone, Copy, Debug)]
struct Node {
    start: u32,
    end: u32,
    /// The first node after this one and all within it.
    next: u32,
    kind: Kind,
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    Bool(bool),
    Number,
    String,
    Array,
    Object,
}

impl Kind {
    /// The name, with its article.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number => "a number",
            Self::String => "a string",
            Self::Array => "an array",
            Self::Object => "an object",
        }
    }
}

/// Why a text is not JSON, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    /// Of the offending byte; the length of the text where it ends too early.
    pub(super) offset: usize,
    pub(super) message: String,
}

impl<'t> Document<'t> {
    /// Parses a text of exactly one value.
    pub(super) fn parse(text: &'t [u8]) -> Result<Self, SyntaxError> {
        if text.len() > MAX_SIZE {
            let message = format!("config has {} bytes, at most {MAX_SIZE} are read", text.len());
            return Err(SyntaxError { offset: 0, message });
        }
        let mut parser = Parser { text, at: 0, nodes: Vec::new(), open: Vec::new() };
        parser.document()?;
        Ok(Self { text, nodes: parser.nodes, lines: OnceCell::new() })
    }

    /// The one value.
    pub(super) fn root(&self) -> NodeId {
        NodeId(0)
    }

    pub(super) fn kind(&self, id: NodeId) -> Kind {
        self.node(id).kind
    }

    /// Key and value of an object's members, in the order of the text. None of what is not an object.
    pub(super) fn members(&self, id: NodeId) -> impl Iterator<Item = (NodeId, NodeId)> {
        let mut children = self.children(id, Kind::Object);
        std::iter::from_fn(move || Some((children.next()?, children.next()?)))
    }

    /// The elements of an array. None of what is not an array.
    pub(super) fn items(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        self.children(id, Kind::Array)
    }

    /// A string or key, unescaped.
    pub(super) fn string(&self, id: NodeId) -> Cow<'t, str> {
        let raw = self.raw(id);
        unescape(&raw[1..raw.len() - 1])
    }

    /// A value as it is written. Of the numbers, this is all there is.
    pub(super) fn raw(&self, id: NodeId) -> &'t [u8] {
        let node = self.node(id);
        &self.text[node.start as usize..node.end as usize]
    }

    /// Whether each number in the text is one of 64-bit floating point.
    pub(super) fn numbers_are_finite(&self) -> bool {
        let numbers = self.nodes.iter().enumerate().filter(|(_, node)| node.kind == Kind::Number);
        let mut values =
            numbers.map(|(index, _)| String::from_utf8_lossy(self.raw(NodeId(index as u32))).parse::<f64>());
        values.all(|value| value.is_ok_and(f64::is_finite))
    }

    /// Where a value is: of an object or array, the byte after its bracket, as the reference counts.
    pub(super) fn offset(&self, id: NodeId) -> usize {
        let node = self.node(id);
        let inside = matches!(node.kind, Kind::Array | Kind::Object);
        node.start as usize + usize::from(inside)
    }

    /// Line and column of an offset, both from 1, columns in bytes.
    pub(super) fn position(&self, offset: usize) -> (u32, u32) {
        let lines = self.lines.get_or_init(|| line_starts(self.text));
        let offset = offset as u32;
        let line = lines.partition_point(|&start| start <= offset);
        (line as u32, offset - lines[line - 1] + 1)
    }

    fn node(&self, id: NodeId) -> Node {
        self.nodes[id.0 as usize]
    }

    fn children(&self, id: NodeId, kind: Kind) -> impl Iterator<Item = NodeId> {
        let node = self.node(id);
        let end = if node.kind == kind { node.next } else { 0 };
        let mut next = id.0 + 1;
        std::iter::from_fn(move || {
            let child = (next < end).then_some(NodeId(next))?;
            next = self.node(child).next;
            Some(child)
        })
    }
}

/// Line and column of an offset in a text that is no document.
pub(super) fn position(text: &[u8], offset: usize) -> (u32, u32) {
    let before = &text[..offset.min(text.len())];
    let line = before.iter().filter(|&&byte| byte == b'\n').count();
    let start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    (line as u32 + 1, (before.len() - start) as u32 + 1)
}

fn line_starts(text: &[u8]) -> Vec<u32> {
    let after = text.iter().enumerate().filter(|&(_, &byte)| byte == b'\n').map(|(at, _)| at as u32 + 1);
    std::iter::once(0).chain(after).collect()
}

/// What may come next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    CommaOrEnd,
}

struct Parser<'t> {
    text: &'t [u8],
    at: usize,
    nodes: Vec<Node>,
    /// The arrays and objects that have not ended yet, innermost last.
    open: Vec<u32>,
}

impl Parser<'_> {
    fn document(&mut self) -> Result<(), SyntaxError> {
        let mut expected = Expected::Value;
        loop {
            self.skip_space();
            expected = match (expected, self.peek()) {
                (Expected::ValueOrEnd, Some(b']')) | (Expected::KeyOrEnd, Some(b'}')) => self.close(),
                (Expected::Value | Expected::ValueOrEnd, _) => self.value()?,
                (Expected::Key | Expected::KeyOrEnd, Some(b'"')) => self.key()?,
                (Expected::Key | Expected::KeyOrEnd, _) => return Err(self.error("an object's key in double quotes")),
                (Expected::CommaOrEnd, byte) => match (self.container(), byte) {
                    (None, None) => return Ok(()),
                    (None, Some(_)) => return Err(self.error("nothing more after the value")),
                    (Some(Kind::Object), Some(b',')) => self.step(Expected::Key),
                    (Some(Kind::Object), Some(b'}')) => self.close(),
                    (Some(Kind::Object), _) => return Err(self.error("a comma or the object's end")),
                    (Some(_), Some(b',')) => self.step(Expected::Value),
                    (Some(_), Some(b']')) => self.close(),
                    (Some(_), _) => return Err(self.error("a comma or the array's end")),
                },
            };
        }
    }

    fn value(&mut self) -> Result<Expected, SyntaxError> {
        let kind = match self.peek() {
            Some(b'{') => return self.open(Kind::Object, Expected::KeyOrEnd),
            Some(b'[') => return self.open(Kind::Array, Expected::ValueOrEnd),
            Some(b'"') => Kind::String,
            Some(b'-' | b'0'..=b'9') => Kind::Number,
            Some(b't') => Kind::Bool(true),
            Some(b'f') => Kind::Bool(false),
            Some(b'n') => Kind::Null,
            _ => return Err(self.error("a value")),
        };
        let start = self.at;
        match kind {
            Kind::String => self.skip_string()?,
            Kind::Number => self.skip_number()?,
            Kind::Bool(true) => self.skip_word("true")?,
            Kind::Bool(false) => self.skip_word("false")?,
            _ => self.skip_word("null")?,
        }
        self.push(kind, start);
        Ok(Expected::CommaOrEnd)
    }

    fn key(&mut self) -> Result<Expected, SyntaxError> {
        let start = self.at;
        self.skip_string()?;
        self.push(Kind::String, start);
        self.skip_space();
        if self.peek() != Some(b':') {
            return Err(self.error("a colon after the key"));
        }
        Ok(self.step(Expected::Value))
    }

    fn step(&mut self, expected: Expected) -> Expected {
        self.at += 1;
        expected
    }

    fn push(&mut self, kind: Kind, start: usize) {
        let next = self.nodes.len() as u32 + 1;
        self.nodes.push(Node { start: start as u32, end: self.at as u32, next, kind });
    }

    fn open(&mut self, kind: Kind, expected: Expected) -> Result<Expected, SyntaxError> {
        if self.open.len() == MAX_DEPTH {
            let message = format!("arrays and objects are nested deeper than {MAX_DEPTH}");
            return Err(SyntaxError { offset: self.at, message });
        }
        self.open.push(self.nodes.len() as u32);
        self.push(kind, self.at);
        Ok(self.step(expected))
    }

    fn close(&mut self) -> Expected {
        self.at += 1;
        let next = self.nodes.len() as u32;
        if let Some(index) = self.open.pop() {
            let node = &mut self.nodes[index as usize];
            (node.end, node.next) = (self.at as u32, next);
        }
        Expected::CommaOrEnd
    }

    fn container(&self) -> Option<Kind> {
        self.open.last().map(|&index| self.nodes[index as usize].kind)
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn skip_word(&mut self, word: &str) -> Result<(), SyntaxError> {
        for &byte in word.as_bytes() {
            if self.peek() != Some(byte) {
                return Err(self.error(&format!("the literal {word}")));
            }
            self.at += 1;
        }
        Ok(())
    }

    fn skip_string(&mut self) -> Result<(), SyntaxError> {
        self.at += 1;
        loop {
            match self.peek() {
                Some(b'"') => break self.at += 1,
                Some(b'\\') => self.skip_escape()?,
                Some(0..=0x1f) | None => return Err(self.error("the string's end")),
                Some(_) => self.at += 1,
            }
        }
        Ok(())
    }

    fn skip_escape(&mut self) -> Result<(), SyntaxError> {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                self.at += 1;
                for _ in 0..4 {
                    if !self.peek().is_some_and(|byte| byte.is_ascii_hexdigit()) {
                        return Err(self.error("four hexadecimal digits"));
                    }
                    self.at += 1;
                }
            }
            _ => return Err(self.error("an escape sequence")),
        }
        Ok(())
    }

    fn skip_number(&mut self) -> Result<(), SyntaxError> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.skip_digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.skip_digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.skip_digits()?;
        }
        Ok(())
    }

    fn skip_digits(&mut self) -> Result<(), SyntaxError> {
        if !self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            return Err(self.error("a digit"));
        }
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        Ok(())
    }

    fn error(&self, expected: &str) -> SyntaxError {
        let found = match self.peek() {
            None => "the text ends".to_owned(),
            Some(byte) => format!("{:?} stands", char::from(byte)),
        };
        SyntaxError { offset: self.at, message: format!("not JSON: {found} where {expected} is expected") }
    }
}

/// The contents of a string's quotes, which the parser found well-formed.
fn unescape(raw: &[u8]) -> Cow<'_, str> {
    if !raw.contains(&b'\\') {
        return match std::str::from_utf8(raw) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => {
                let mut text = String::with_capacity(raw.len());
                push_lossy(&mut text, raw);
                Cow::Owned(text)
            }
        };
    }
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.iter().position(|&byte| byte == b'\\') {
        push_lossy(&mut text, &rest[..at]);
        let (character, length) = unescape_one(&rest[at..]);
        text.push(character);
        rest = &rest[at + length..];
    }
    push_lossy(&mut text, rest);
    Cow::Owned(text)
}

/// The character of the escape sequence that a text begins with, and the sequence's length.
fn unescape_one(raw: &[u8]) -> (char, usize) {
    let character = match raw[1] {
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => {
            let first = code_unit(raw).unwrap_or(0xfffd);
            // Half a pair alone stands for nothing; what follows it is read on its own.
            return match code_unit(&raw[6..]).and_then(|second| char::decode_utf16([first, second]).next()) {
                Some(Ok(pair)) if pair.len_utf16() == 2 => (pair, 12),
                _ => (char::from_u32(first.into()).unwrap_or(char::REPLACEMENT_CHARACTER), 6),
            };
        }
        byte => char::from(byte),
    };
    (character, 2)
}

/// The code unit of a `\uXXXX` that a text begins with.
fn code_unit(raw: &[u8]) -> Option<u16> {
    let digits = raw.get(..6)?.strip_prefix(b"\\u")?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Appends bytes, each invalid one as U+FFFD.
fn push_lossy(text: &mut String, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
}
