//! Collecting what is wrong with a config, each with its place.

use super::json::{Document, Kind, NodeId};
use super::{Entry, Report};

/// As many findings as are kept. A text of ten million faults is not worth ten million lines.
const LIMIT: usize = 500;

/// A place in a config: the way from the root to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    parent: Option<&'a Place<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

impl<'a> Place<'a> {
    pub(super) fn root() -> Self {
        Self { parent: None, step: Step::Root }
    }

    pub(super) fn key(&'a self, key: &'a str) -> Self {
        Self { parent: Some(self), step: Step::Key(key) }
    }

    pub(super) fn index(&'a self, index: usize) -> Self {
        Self { parent: Some(self), step: Step::Index(index) }
    }

    fn steps(&self) -> Vec<Step<'a>> {
        let mut steps: Vec<_> =
            std::iter::successors(Some(self), |place| place.parent).map(|place| place.step).collect();
        steps.reverse();
        steps
    }
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for step in self.steps() {
            match step {
                Step::Root => write!(formatter, "$")?,
                Step::Key(key) => write!(formatter, ".{key}")?,
                Step::Index(index) => write!(formatter, ".{index}")?,
            }
        }
        Ok(())
    }
}

/// The findings in one text.
#[derive(Debug)]
pub(super) struct Findings<'d> {
    document: &'d Document<'d>,
    /// With the offset, by which they are sorted in the end.
    entries: Vec<(usize, Entry)>,
    omitted: usize,
}

impl<'d> Findings<'d> {
    pub(super) fn new(document: &'d Document<'d>) -> Self {
        Self { document, entries: Vec::new(), omitted: 0 }
    }

    /// Something for which the config is refused, at the deepest part of a place that is in the text.
    pub(super) fn error(&mut self, place: &Place<'_>, message: impl Into<String>) {
        self.add(true, place, None, message.into());
    }

    /// Something doubtful.
    pub(super) fn warn(&mut self, place: &Place<'_>, message: impl Into<String>) {
        self.add(false, place, None, message.into());
    }

    /// As [`Self::error`], at a value.
    pub(super) fn error_at(&mut self, node: NodeId, place: &Place<'_>, message: impl Into<String>) {
        self.add(true, place, Some(node), message.into());
    }

    /// As [`Self::warn`], at a value or key.
    pub(super) fn warn_at(&mut self, node: NodeId, place: &Place<'_>, message: impl Into<String>) {
        self.add(false, place, Some(node), message.into());
    }

    pub(super) fn is_fatal(&self) -> bool {
        self.entries.iter().any(|(_, entry)| entry.fatal)
    }

    /// All of them, in the order of the text.
    pub(super) fn into_report(mut self) -> Report {
        self.entries.sort_by_key(|(offset, _)| *offset);
        let mut entries: Vec<_> = self.entries.into_iter().map(|(_, entry)| entry).collect();
        if self.omitted > 0 {
            let message = format!("{} further findings are left out", self.omitted);
            entries.push(Entry { fatal: false, path: "$".to_owned(), position: None, message });
        }
        Report { entries }
    }

    fn add(&mut self, fatal: bool, place: &Place<'_>, node: Option<NodeId>, message: String) {
        // The verdict does not depend on the limit.
        if self.entries.len() >= LIMIT && (!fatal || self.is_fatal()) {
            self.omitted += 1;
            return;
        }
        let offset = self.document.offset(node.unwrap_or_else(|| self.deepest(place)));
        let position = Some(self.document.position(offset));
        self.entries.push((offset, Entry { fatal, path: place.to_string(), position, message }));
    }

    /// The value at a place, or the innermost one around it that is written in the text.
    fn deepest(&self, place: &Place<'_>) -> NodeId {
        let mut node = self.document.root();
        for step in place.steps() {
            let child = match step {
                Step::Root => Some(node),
                Step::Key(key) => self.member(node, key),
                Step::Index(index) => self.document.items(node).nth(index),
            };
            match child {
                Some(child) => node = child,
                None => break,
            }
        }
        node
    }

    /// Of duplicate keys the last counts.
    fn member(&self, node: NodeId, key: &str) -> Option<NodeId> {
        if self.document.kind(node) != Kind::Object {
            return None;
        }
        self.document
            .members(node)
            .filter(|(name, _)| self.document.string(*name) == key)
            .last()
            .map(|(_, value)| value)
    }
}
