//! YAML ([1.2](https://yaml.org/spec/1.2.2/), core schema) to a tree that knows where each part stands.
//!
//! Bounded, for what is read may come from anywhere: the length of the text, the depth of nesting, and the number of
//! nodes, those that aliases repeat included. Left out: several documents in a file, and keys that are not texts.

use std::collections::HashMap;

use saphyr::Scalar;
use saphyr_parser::{Event, Marker, Parser, ScanError, Span, StrInput};

/// The longest text in bytes.
const TEXT_LIMIT: usize = 1 << 20;
/// The deepest nesting.
const DEPTH_LIMIT: usize = 48;
/// The most nodes.
const NODE_LIMIT: usize = 100_000;

/// A place in a text, both counted from 1; columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    /// The line.
    pub(crate) line: usize,
    /// The column.
    pub(crate) column: usize,
}

impl Position {
    /// Where a text begins.
    pub(crate) const START: Self = Self { line: 1, column: 1 };
}

impl From<Marker> for Position {
    fn from(marker: Marker) -> Self {
        Self { line: marker.line().max(1), column: marker.col() + 1 }
    }
}

/// A part of a document.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Where it begins.
    pub(crate) at: Position,
    /// What it is.
    pub(crate) content: Content,
}

/// What a part of a document is.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// Nothing at all, `null` or `~`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// Another number; finite.
    Number(f64),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the text; each key once.
    Map(Vec<Entry>),
}

/// A key and its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The key.
    pub(crate) key: String,
    /// Where the key stands.
    pub(crate) at: Position,
    /// The value.
    pub(crate) value: Node,
}

/// What is wrong with a text, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Where.
    pub(crate) at: Position,
    /// What.
    pub(crate) message: String,
}

impl Fault {
    fn new(at: Position, message: impl Into<String>) -> Self {
        Self { at, message: message.into() }
    }
}

impl From<ScanError> for Fault {
    fn from(error: ScanError) -> Self {
        Self::new((*error.marker()).into(), error.info())
    }
}

/// Reads a text.
///
/// # Errors
/// The first thing that makes it no YAML; else every key that stands twice.
pub(crate) fn parse(text: &str) -> Result<Node, Vec<Fault>> {
    if text.len() > TEXT_LIMIT {
        let message = format!("the file has {} bytes, {TEXT_LIMIT} at most", text.len());
        return Err(vec![Fault::new(Position::START, message)]);
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader =
        Reader { parser: Parser::new_from_str(text), anchors: HashMap::new(), nodes: 0, repeated: Vec::new() };
    let root = reader.document().map_err(|fault| vec![fault])?;
    if reader.repeated.is_empty() { Ok(root) } else { Err(reader.repeated) }
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    repeated: Vec<Fault>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Position), Fault> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, position(span))),
            Some(Err(error)) => Err(error.into()),
            None => Ok((Event::StreamEnd, Position::START)),
        }
    }

    fn document(&mut self) -> Result<Node, Fault> {
        let mut root = None;
        loop {
            match self.next()? {
                (Event::Nothing | Event::StreamStart | Event::DocumentEnd, _) => {}
                (Event::StreamEnd, _) => break,
                (Event::DocumentStart(_), at) if root.is_some() => {
                    return Err(Fault::new(at, "a second document begins here: one file holds one"));
                }
                (Event::DocumentStart(_), _) => {
                    let (event, at) = self.next()?;
                    root = Some(self.node(event, at, 0)?);
                }
                (event, at) => return Err(Fault::new(at, format!("{event:?} outside a document"))),
            }
        }
        Ok(root.unwrap_or(Node { at: Position::START, content: Content::Null }))
    }

    /// The node that an event begins.
    fn node(&mut self, event: Event<'a>, at: Position, depth: usize) -> Result<Node, Fault> {
        self.count(1, at)?;
        if depth > DEPTH_LIMIT {
            return Err(Fault::new(at, format!("nested more than {DEPTH_LIMIT} levels deep")));
        }
        let (content, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let raw = text.to_string();
                let scalar = Scalar::parse_from_cow_and_metadata(text, style, tag.as_ref());
                let content = match scalar {
                    Some(Scalar::Null) => Content::Null,
                    Some(Scalar::Boolean(value)) => Content::Bool(value),
                    Some(Scalar::Integer(value)) => Content::Integer(value),
                    Some(Scalar::FloatingPoint(value)) if value.0.is_finite() => Content::Number(value.0),
                    Some(Scalar::FloatingPoint(_)) => Content::Text(raw),
                    Some(Scalar::String(value)) => Content::Text(value.into_owned()),
                    None => return Err(Fault::new(at, format!("{raw:?} is not of the type that its tag says"))),
                };
                (content, anchor)
            }
            Event::SequenceStart(anchor, _) => (self.list(depth)?, anchor),
            Event::MappingStart(anchor, _) => (self.map(depth)?, anchor),
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).cloned();
                let node = node.ok_or_else(|| Fault::new(at, "an alias within what it stands for"))?;
                self.count(size(&node), at)?;
                if depth + depth_of(&node) > DEPTH_LIMIT {
                    return Err(Fault::new(at, format!("nested more than {DEPTH_LIMIT} levels deep")));
                }
                return Ok(Node { at, ..node });
            }
            other => return Err(Fault::new(at, format!("{other:?} where a value is expected"))),
        };
        let node = Node { at, content };
        if anchor > 0 {
            self.count(size(&node), at)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn count(&mut self, nodes: usize, at: Position) -> Result<(), Fault> {
        self.nodes += nodes;
        if self.nodes > NODE_LIMIT {
            return Err(Fault::new(at, format!("more than {NODE_LIMIT} values, those that aliases repeat included")));
        }
        Ok(())
    }

    fn list(&mut self, depth: usize) -> Result<Content, Fault> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Content::List(items)),
                (event, at) => items.push(self.node(event, at, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Content, Fault> {
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let (key, at) = match self.next()? {
                (Event::MappingEnd, _) => return Ok(Content::Map(entries)),
                (Event::Scalar(key, ..), at) => (key.into_owned(), at),
                (_, at) => return Err(Fault::new(at, "a key is a text")),
            };
            let (event, value_at) = self.next()?;
            let value = self.node(event, value_at, depth + 1)?;
            match entries.iter().find(|entry| entry.key == key) {
                Some(first) => {
                    let message = format!("the key {key:?} stands here again; first on line {}", first.at.line);
                    self.repeated.push(Fault::new(at, message));
                }
                None => entries.push(Entry { key, at, value }),
            }
        }
    }
}

fn position(span: Span) -> Position {
    span.start.into()
}

/// How many nodes there are in a node, itself included.
fn size(node: &Node) -> usize {
    match &node.content {
        Content::List(items) => 1 + items.iter().map(size).sum::<usize>(),
        Content::Map(entries) => 1 + entries.iter().map(|entry| size(&entry.value)).sum::<usize>(),
        Content::Null | Content::Bool(_) | Content::Integer(_) | Content::Number(_) | Content::Text(_) => 1,
    }
}

/// How many levels there are below a node.
fn depth_of(node: &Node) -> usize {
    match &node.content {
        Content::List(items) => items.iter().map(|item| 1 + depth_of(item)).max().unwrap_or(0),
        Content::Map(entries) => entries.iter().map(|entry| 1 + depth_of(&entry.value)).max().unwrap_or(0),
        Content::Null | Content::Bool(_) | Content::Integer(_) | Content::Number(_) | Content::Text(_) => 0,
    }
}

impl Node {
    /// Where a path such as `dataDisks[0].select.size` leads, or the part of it that is there. Keys that are not plain
    /// words stand as `["key"]`. A collection is told by its key.
    pub(crate) fn locate(&self, path: &str) -> Position {
        let (mut node, mut at, mut rest) = (self, self.at, path);
        while let Some((step, next)) = split_step(rest) {
            let found = match (&node.content, step) {
                (Content::Map(entries), Step::Key(key)) => {
                    entries.iter().find(|entry| entry.key == key).map(|entry| (&entry.value, entry.at))
                }
                (Content::List(items), Step::Index(index)) => items.get(index).map(|item| (item, item.at)),
                _ => None,
            };
            let Some((child, child_at)) = found else { return at };
            (node, at, rest) = (child, child_at, next);
            let is_scalar = !matches!(node.content, Content::Null | Content::List(_) | Content::Map(_));
            if is_scalar {
                at = node.at;
            }
        }
        at
    }
}

enum Step {
    Key(String),
    Index(usize),
}

/// The first step of a path, and what follows it.
fn split_step(path: &str) -> Option<(Step, &str)> {
    let path = path.strip_prefix('.').unwrap_or(path);
    if let Some(quoted) = path.strip_prefix('[') {
        if let Some((index, rest)) = quoted.split_once(']')
            && let Ok(index) = index.parse()
        {
            return Some((Step::Index(index), rest));
        }
        let mut keys = serde_json::Deserializer::from_str(quoted).into_iter::<String>();
        let key = keys.next()?.ok()?;
        let rest = quoted.get(keys.byte_offset()..)?.strip_prefix(']')?;
        return Some((Step::Key(key), rest));
    }
    let end = path.find(['.', '[']).unwrap_or(path.len());
    (end > 0).then(|| (Step::Key(path[..end].to_owned()), &path[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(line: usize, column: usize) -> Position {
        Position { line, column }
    }

    #[test]
    fn parts_are_found_by_their_paths() {
        let text = "a: 1\nlist:\n  - x: [7, 8]\n    y: text\nlabels:\n  a.b/c: d\n  \"q\\\"]\": e\nnull:\n";
        let root = parse(text).expect("YAML");
        for (path, expected) in [
            ("", at(1, 1)),
            ("a", at(1, 4)),
            ("list", at(2, 1)),
            ("list[0]", at(3, 5)),
            ("list[0].x", at(3, 5)),
            ("list[0].x[1]", at(3, 12)),
            ("list[0].y", at(4, 8)),
            ("list[0].missing.deep", at(3, 5)),
            ("list[9]", at(2, 1)),
            ("labels[\"a.b/c\"]", at(6, 10)),
            ("labels[\"q\\\"]\"]", at(7, 11)),
            ("null", at(8, 1)),
            ("nothing", at(1, 1)),
            ("a..b[", at(1, 4)),
        ] {
            assert_eq!(root.locate(path), expected, "{path}");
        }
    }

    #[test]
    fn what_is_no_document_is_told_with_its_place() {
        let deep = "- ".repeat(60);
        let bomb = format!("a: &a [1,2]\n{}", (b'b'..b'z').map(bomb_line).collect::<String>());
        for (case, text, expected) in [
            ("unclosed", "a: [1,\nb: 2", None),
            ("tab", "a:\n\tb: 1", None),
            ("two documents", "a: 1\n---\nb: 2", Some((2, "a second document"))),
            ("twice", "a: 1\nb: 2\na: 3", Some((3, "the key \"a\" stands here again; first on line 1"))),
            ("list as key", "[a]: 1", Some((1, "a key is a text"))),
            ("tag", "a: !!int x", Some((1, "\"x\" is not of the type that its tag says"))),
            ("deep", &deep, Some((1, "nested more than 48 levels deep"))),
            ("aliases", &bomb, Some((14, "more than 100000 values"))),
            ("itself", "a: &a [*a]", Some((1, "an alias within what it stands for"))),
            ("unknown alias", "a: *b", None),
        ] {
            let faults = parse(text).expect_err(case);
            if let Some((line, message)) = expected {
                let fault = &faults[0];
                assert!(fault.at.line == line && fault.message.starts_with(message), "{case}: {fault:?}");
            }
        }
        fn bomb_line(letter: u8) -> String {
            let (own, before) = (char::from(letter), char::from(letter - 1));
            format!("{own}: &{own} [*{before}, *{before}]\n")
        }
        assert!(matches!(parse("").expect("empty").content, Content::Null));
        assert!(matches!(parse("# nothing\n").expect("comment").content, Content::Null));
        assert!(parse(&"x".repeat(TEXT_LIMIT + 1)).is_err(), "too long");
    }

    #[test]
    fn scalars_are_of_the_core_schema() {
        for (text, expected) in [
            ("yes", "Text(\"yes\")"),
            ("true", "Bool(true)"),
            ("\"true\"", "Text(\"true\")"),
            ("0x10", "Integer(16)"),
            ("18TB", "Text(\"18TB\")"),
            ("1.5", "Number(1.5)"),
            (".inf", "Text(\".inf\")"),
            ("~", "Null"),
            ("12:30", "Text(\"12:30\")"),
        ] {
            assert_eq!(format!("{:?}", parse(text).expect(text).content), expected, "{text}");
        }
    }
}
