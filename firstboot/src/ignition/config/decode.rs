//! From a document to values of the right types, keys that a version does not know left out.
//!
//! The reference reads JSON with Go's `encoding/json`, and what that lets pass passes here: keys in another case,
//! duplicate keys (objects merge, of other values the last counts, lists are overwritten element by element), null.

use serde_json::{Map, Value};

use super::findings::{Findings, Place};
use super::json::{Document, Kind, NodeId};
use super::schema::{CONFIG, Field, Schema, Shape, same_folded};

/// The version that a config says it has, if any. What else is in it may be of any type.
pub(super) fn version(document: &Document<'_>, findings: &mut Findings<'_>) -> Option<String> {
    let root = Place::root();
    expect(document, document.root(), Kind::Object, &root, findings)?;
    let mut version = None;
    for ignition in members_named(document, document.root(), "ignition") {
        let place = root.key("ignition");
        if document.kind(ignition) == Kind::Null {
            continue;
        }
        expect(document, ignition, Kind::Object, &place, findings)?;
        for node in members_named(document, ignition, "version") {
            match document.kind(node) {
                Kind::Null => {}
                Kind::String => version = Some(document.string(node).into_owned()),
                _ => expect(document, node, Kind::String, &place.key("version"), findings)?,
            }
        }
    }
    Some(version.unwrap_or_default())
}

fn members_named(document: &Document<'_>, object: NodeId, name: &str) -> impl Iterator<Item = NodeId> {
    let named = move |(key, _): &(NodeId, NodeId)| same_folded(name, &document.string(*key));
    document.members(object).filter(named).map(|(_, value)| value)
}

fn expect(
    document: &Document<'_>,
    node: NodeId,
    kind: Kind,
    place: &Place<'_>,
    findings: &mut Findings<'_>,
) -> Option<()> {
    let found = document.kind(node);
    if found == kind {
        return Some(());
    }
    findings.error_at(node, place, format!("{} stands where {} is expected", found.name(), kind.name()));
    None
}

/// Reads a config by a minor version's keys. What is of the wrong type is a fatal finding, and left out.
pub(super) fn decode(document: &Document<'_>, minor: u8, findings: &mut Findings<'_>) -> Value {
    let mut decoder = Decoder { document, minor, findings };
    let mut config = Value::Null;
    decoder.object(&CONFIG, document.root(), &Place::root(), &mut config);
    config
}

struct Decoder<'a, 'd> {
    document: &'a Document<'a>,
    minor: u8,
    findings: &'a mut Findings<'d>,
}

impl Decoder<'_, '_> {
    /// Reads an object over what an earlier key of the same name left.
    fn object(&mut self, schema: &'static Schema, node: NodeId, place: &Place<'_>, slot: &mut Value) {
        if !slot.is_object() {
            *slot = Value::Object(Map::new());
        }
        if self.document.kind(node) == Kind::Null {
            self.findings.warn_at(node, place, "null stands where an object is expected, and says nothing");
        } else if self.expect(node, Kind::Object, place)
            && let Value::Object(map) = slot
        {
            self.members(schema, node, place, map);
        }
        if let Value::Object(map) = slot {
            for field in schema.fields.iter().filter(|field| field.required) {
                map.entry(field.name).or_insert_with(|| Value::String(String::new()));
            }
        }
    }

    fn members(&mut self, schema: &'static Schema, node: NodeId, place: &Place<'_>, map: &mut Map<String, Value>) {
        let document = self.document;
        for (key_node, value) in document.members(node) {
            let key = document.string(key_node);
            let Some(field) = schema.field(&key, self.minor) else {
                self.unused(schema, &key, key_node, place);
                continue;
            };
            if field.name != key {
                let message = format!("unused key {key}: it is read as {}", field.name);
                self.findings.warn_at(key_node, &place.key(&key), message);
            }
            let mut slot = map.remove(field.name).unwrap_or(Value::Null);
            self.value(field, value, &place.key(field.name), &mut slot);
            if !slot.is_null() {
                map.insert(field.name.to_owned(), slot);
            }
        }
    }

    fn unused(&mut self, schema: &'static Schema, key: &str, node: NodeId, place: &Place<'_>) {
        let message = match schema.field(key, u8::MAX) {
            Some(field) => format!("unused key {key}: it is known since version 3.{}.0", field.since),
            None => format!("unused key {key}"),
        };
        self.findings.warn_at(node, &place.key(key), message);
    }

    fn value(&mut self, field: &'static Field, node: NodeId, place: &Place<'_>, slot: &mut Value) {
        let is_null = self.document.kind(node) == Kind::Null;
        match field.shape {
            // The one version in which these may be absent otherwise than by being empty.
            Shape::Object(_) if self.minor == 2 && matches!(field.name, "clevis" | "custom") && is_null => {
                *slot = Value::Null;
            }
            Shape::Object(schema) => self.object(schema, node, place, slot),
            // These keep what an earlier key of the same name said.
            Shape::NumberOrZero if is_null => {}
            Shape::Text if is_null && self.minor < field.null_clears_since => {}
            _ if is_null => *slot = Value::Null,
            Shape::Flag => match self.document.kind(node) {
                Kind::Bool(flag) => *slot = Value::Bool(flag),
                _ => _ = self.expect(node, Kind::Bool(true), place),
            },
            Shape::Number | Shape::NumberOrZero => {
                let zero_is_absent = matches!(field.shape, Shape::NumberOrZero);
                match self.number(node, place) {
                    Some(0) if zero_is_absent => *slot = Value::Null,
                    Some(number) => *slot = Value::from(number),
                    None => {}
                }
            }
            Shape::Text => self.text(node, place, slot),
            Shape::Texts(_) => self.list(node, place, slot, |decoder, node, place, slot| {
                if slot.is_null() {
                    *slot = Value::String(String::new());
                }
                if decoder.document.kind(node) != Kind::Null {
                    decoder.text(node, place, slot);
                }
            }),
            Shape::Objects(schema, _) => self.list(node, place, slot, |decoder, node, place, slot| {
                decoder.object(schema, node, place, slot);
            }),
        }
    }

    fn list(
        &mut self,
        node: NodeId,
        place: &Place<'_>,
        slot: &mut Value,
        read: impl Fn(&mut Self, NodeId, &Place<'_>, &mut Value),
    ) {
        if !self.expect(node, Kind::Array, place) {
            return;
        }
        let mut list = match slot.take() {
            Value::Array(list) => list,
            _ => Vec::new(),
        };
        let document = self.document;
        let mut length = 0;
        for (index, item) in document.items(node).enumerate() {
            if index == list.len() {
                list.push(Value::Null);
            }
            read(self, item, &place.index(index), &mut list[index]);
            length = index + 1;
        }
        list.truncate(length);
        *slot = Value::Array(list);
    }

    fn text(&mut self, node: NodeId, place: &Place<'_>, slot: &mut Value) {
        if self.expect(node, Kind::String, place) {
            *slot = Value::String(self.document.string(node).into_owned());
        }
    }

    fn number(&mut self, node: NodeId, place: &Place<'_>) -> Option<i64> {
        if !self.expect(node, Kind::Number, place) {
            return None;
        }
        let text = String::from_utf8_lossy(self.document.raw(node));
        let number = text.parse().ok();
        if number.is_none() {
            let shown: String = text.chars().take(40).collect();
            self.findings.error_at(node, place, format!("{shown} is not an integer of 64 bits"));
        }
        number
    }

    fn expect(&mut self, node: NodeId, kind: Kind, place: &Place<'_>) -> bool {
        expect(self.document, node, kind, place, self.findings).is_some()
    }
}
