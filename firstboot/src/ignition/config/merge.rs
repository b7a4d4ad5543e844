//! Merging two configs, and the rule behind it: which elements of a list are the same.
//!
//! From the specification's "merge" section: a child's value takes the place of its parent's, objects merge key by
//! key, lists whose elements have an identity merge element by element with the child's new ones appended, and other
//! lists are appended whole. Files, directories and links are one list in this, and so are the kernel arguments to
//! add and to remove.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::findings::{Findings, Place};
use super::schema::{Field, Identity, Repeats, Schema, Shape};

type Object = Map<String, Value>;

/// The child over the parent, both of a schema.
pub(super) fn merge_objects(schema: &'static Schema, parent: Object, mut child: Object) -> Object {
    let taken = keys_across(schema, &child);
    let mut merged = Object::new();
    for (name, old) in parent {
        let new = child.remove(&name).unwrap_or(Value::Null);
        let field = schema.fields.iter().find(|field| field.name == name);
        let value = match field {
            Some(field) => merge_values(field, old, new, &taken),
            None => old,
        };
        merged.insert(name, value);
    }
    for (name, new) in child {
        merged.insert(name, new);
    }
    merged
}

/// Reports each element of a config's lists that repeats an earlier one where none may.
pub(super) fn find_duplicates(
    schema: &'static Schema,
    object: &Object,
    place: &Place<'_>,
    findings: &mut Findings<'_>,
) {
    let mut across = HashSet::new();
    for field in schema.fields {
        let place = place.key(field.name);
        match (field.shape, object.get(field.name)) {
            (Shape::Object(inner), Some(Value::Object(object))) => find_duplicates(inner, object, &place, findings),
            (Shape::Objects(..) | Shape::Texts(_), Some(Value::Array(list))) => {
                let repeats = repeats(field);
                let mut within = HashSet::new();
                for (index, item) in list.iter().enumerate() {
                    let place = place.index(index);
                    let seen = if repeats == Repeats::NeverAcross { &mut across } else { &mut within };
                    if repeats != Repeats::Allowed && !seen.insert(identity(field, item)) {
                        findings.error(&place, "this entry repeats an earlier one");
                    }
                    if let (Shape::Objects(inner, _), Value::Object(object)) = (field.shape, item) {
                        find_duplicates(inner, object, &place, findings);
                    }
                }
            }
            _ => {}
        }
    }
}

fn merge_values(field: &'static Field, old: Value, new: Value, taken: &HashSet<String>) -> Value {
    match (field.shape, old, new) {
        (_, old, Value::Null) if repeats(field) != Repeats::NeverAcross => old,
        (Shape::Object(schema), Value::Object(old), Value::Object(new)) => {
            Value::Object(merge_objects(schema, old, new))
        }
        (Shape::Objects(..) | Shape::Texts(_), Value::Array(old), new) => {
            let new = match new {
                Value::Array(new) => new,
                _ => Vec::new(),
            };
            Value::Array(merge_lists(field, old, new, taken))
        }
        (_, _, new) => new,
    }
}

fn merge_lists(field: &'static Field, old: Vec<Value>, new: Vec<Value>, taken: &HashSet<String>) -> Vec<Value> {
    if repeats(field) == Repeats::Allowed {
        return old.into_iter().chain(new).collect();
    }
    let places: HashMap<String, usize> =
        new.iter().enumerate().map(|(index, item)| (identity(field, item), index)).collect();
    let mut new: Vec<Option<Value>> = new.into_iter().map(Some).collect();
    let mut merged = Vec::with_capacity(old.len() + new.len());
    for item in old {
        let key = identity(field, &item);
        match places.get(&key).and_then(|&index| new[index].take()) {
            // A header without a value removes the parent's.
            Some(child) if field.name == "httpHeaders" && child.get("value").is_none_or(Value::is_null) => {}
            Some(child) => merged.push(merge_items(field, item, child)),
            // In a list beside this one the child has made something else of it.
            None if repeats(field) == Repeats::NeverAcross && taken.contains(&key) => {}
            None => merged.push(item),
        }
    }
    merged.extend(new.into_iter().flatten());
    merged
}

fn merge_items(field: &'static Field, old: Value, new: Value) -> Value {
    match (field.shape, old, new) {
        (Shape::Objects(schema, _), Value::Object(old), Value::Object(new)) => {
            Value::Object(merge_objects(schema, old, new))
        }
        (_, _, new) => new,
    }
}

/// What the lists of an object that may not repeat each other's elements hold.
fn keys_across(schema: &'static Schema, object: &Object) -> HashSet<String> {
    let lists = schema.fields.iter().filter(|field| repeats(field) == Repeats::NeverAcross);
    lists
        .filter_map(|field| Some((field, object.get(field.name)?.as_array()?)))
        .flat_map(|(field, list)| list.iter().map(|item| identity(field, item)))
        .collect()
}

fn repeats(field: &Field) -> Repeats {
    match field.shape {
        Shape::Texts(repeats) | Shape::Objects(_, repeats) => repeats,
        Shape::Flag | Shape::Number | Shape::NumberOrZero | Shape::Text | Shape::Object(_) => Repeats::Allowed,
    }
}

/// What tells an element of a list from the others.
fn identity(field: &Field, item: &Value) -> String {
    let text = |key: &str| item.get(key).and_then(Value::as_str);
    let schema_identity = match field.shape {
        Shape::Objects(schema, _) => schema.identity,
        _ => return item.as_str().unwrap_or_default().to_owned(),
    };
    match schema_identity {
        Identity::None => String::new(),
        Identity::Key(key) => text(key).unwrap_or_default().to_owned(),
        Identity::Partition => match (item.get("number").and_then(Value::as_i64), text("label")) {
            (Some(number), _) => format!("number:{number}"),
            (None, Some(label)) => format!("label:{label}"),
            (None, None) => String::new(),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{merge, parse};

    /// What merging a child into a parent makes of both, as JSON without what is null.
    fn merged(parent: serde_json::Value, child: serde_json::Value) -> serde_json::Value {
        let config = |mut value: serde_json::Value| {
            value["ignition"]["version"] = json!("3.6.0");
            parse(value.to_string().as_bytes()).unwrap_or_else(|report| panic!("{value}: {report}")).0
        };
        let config = merge(config(parent), config(child));
        let mut value = serde_json::to_value(config).expect("a config serialises");
        super::super::prune(&mut value);
        value["ignition"].as_object_mut().expect("an object").remove("version");
        value
    }

    #[test]
    fn merges_by_the_rules_of_the_specification() {
        let cases = [
            (
                "a child's scalar wins, and what it leaves out stays",
                json!({"ignition": {"timeouts": {"httpTotal": 1, "httpResponseHeaders": 2}}}),
                json!({"ignition": {"timeouts": {"httpTotal": 3}}}),
                json!({"ignition": {"timeouts": {"httpTotal": 3, "httpResponseHeaders": 2}}}),
            ),
            (
                "what only the parent has stays, what only the child has comes",
                json!({"ignition": {}, "passwd": {"users": [{"name": "a"}]}}),
                json!({"ignition": {}, "systemd": {"units": [{"name": "a.service"}]}}),
                json!({"ignition": {}, "passwd": {"users": [{"name": "a"}]}, "systemd": {"units": [{"name": "a.service"}]}}),
            ),
            (
                "a user of the same name merges, its keys are a set, new users follow",
                json!({"ignition": {}, "passwd": {"users": [
                    {"name": "a", "uid": 1, "sshAuthorizedKeys": ["k1", "k2"]}, {"name": "b"}]}}),
                json!({"ignition": {}, "passwd": {"users": [
                    {"name": "c"}, {"name": "a", "uid": 2, "shell": "/s", "sshAuthorizedKeys": ["k3", "k2"]}]}}),
                json!({"ignition": {}, "passwd": {"users": [
                    {"name": "a", "uid": 2, "shell": "/s", "sshAuthorizedKeys": ["k1", "k2", "k3"]},
                    {"name": "b"}, {"name": "c"}]}}),
            ),
            (
                "file contents merge, appended parts are appended",
                json!({"ignition": {}, "storage": {"files": [
                    {"path": "/f", "mode": 1, "contents": {"source": "data:,a", "compression": "gzip"}, "append": [{"source": "data:,x"}]}]}}),
                json!({"ignition": {}, "storage": {"files": [
                    {"path": "/f", "contents": {"source": "data:,b"}, "append": [{"source": "data:,x"}]}]}}),
                json!({"ignition": {}, "storage": {"files": [
                    {"path": "/f", "mode": 1, "contents": {"source": "data:,b", "compression": "gzip"},
                     "append": [{"source": "data:,x"}, {"source": "data:,x"}]}]}}),
            ),
            (
                "a path that becomes something else leaves its list",
                json!({"ignition": {}, "storage": {"files": [{"path": "/a"}, {"path": "/b"}], "links": [{"path": "/l", "target": "t"}]}}),
                json!({"ignition": {}, "storage": {"directories": [{"path": "/a"}], "files": [{"path": "/l"}]}}),
                json!({"ignition": {}, "storage": {"directories": [{"path": "/a"}], "files": [{"path": "/b"}, {"path": "/l"}]}}),
            ),
            (
                "partitions are the same by number, else by label",
                json!({"ignition": {}, "storage": {"disks": [{"device": "/d", "partitions": [
                    {"number": 1, "label": "x"}, {"label": "y", "sizeMiB": 1}]}]}}),
                json!({"ignition": {}, "storage": {"disks": [{"device": "/d", "wipeTable": true, "partitions": [
                    {"number": 1, "label": "z"}, {"label": "y", "startMiB": 2}, {"number": 3}]}]}}),
                json!({"ignition": {}, "storage": {"disks": [{"device": "/d", "wipeTable": true, "partitions": [
                    {"number": 1, "label": "z"}, {"label": "y", "sizeMiB": 1, "startMiB": 2}, {"number": 3}]}]}}),
            ),
            (
                "options are appended",
                json!({"ignition": {}, "storage": {"filesystems": [{"device": "/d", "format": "ext4", "options": ["-a"], "mountOptions": ["m"]}]}}),
                json!({"ignition": {}, "storage": {"filesystems": [{"device": "/d", "options": ["-a"], "mountOptions": ["n"], "format": "ext4"}]}}),
                json!({"ignition": {}, "storage": {"filesystems": [{"device": "/d", "format": "ext4", "options": ["-a", "-a"], "mountOptions": ["m", "n"]}]}}),
            ),
            (
                "the devices of an array are a set",
                json!({"ignition": {}, "storage": {"raid": [{"name": "r", "level": "1", "devices": ["/a", "/b"]}]}}),
                json!({"ignition": {}, "storage": {"raid": [{"name": "r", "level": "5", "devices": ["/b", "/c"]}]}}),
                json!({"ignition": {}, "storage": {"raid": [{"name": "r", "level": "5", "devices": ["/a", "/b", "/c"]}]}}),
            ),
            (
                "a kernel argument changes sides",
                json!({"ignition": {}, "kernelArguments": {"shouldExist": ["a", "b"], "shouldNotExist": ["c"]}}),
                json!({"ignition": {}, "kernelArguments": {"shouldExist": ["c"], "shouldNotExist": ["a"]}}),
                json!({"ignition": {}, "kernelArguments": {"shouldExist": ["b", "c"], "shouldNotExist": ["a"]}}),
            ),
            (
                "a header without a value removes its namesake",
                json!({"ignition": {"config": {"merge": [{"source": "http://a", "httpHeaders": [
                    {"name": "x", "value": "1"}, {"name": "y", "value": "2"}]}]}}}),
                json!({"ignition": {"config": {"merge": [{"source": "http://a", "httpHeaders": [
                    {"name": "x"}, {"name": "y", "value": "3"}]}]}}}),
                json!({"ignition": {"config": {"merge": [{"source": "http://a", "httpHeaders": [
                    {"name": "y", "value": "3"}]}]}}}),
            ),
            (
                "units and drop-ins of the same name merge",
                json!({"ignition": {}, "systemd": {"units": [{"name": "u.service", "enabled": true, "dropins": [{"name": "a.conf", "contents": "[A]"}]}]}}),
                json!({"ignition": {}, "systemd": {"units": [{"name": "u.service", "mask": true, "dropins": [{"name": "a.conf", "contents": "[B]"}, {"name": "b.conf"}]}]}}),
                json!({"ignition": {}, "systemd": {"units": [{"name": "u.service", "enabled": true, "mask": true, "dropins": [{"name": "a.conf", "contents": "[B]"}, {"name": "b.conf"}]}]}}),
            ),
            (
                "tang servers are the same by address",
                json!({"ignition": {}, "storage": {"luks": [{"name": "l", "device": "/d", "clevis": {"threshold": 1, "tang": [{"url": "http://t", "thumbprint": "1"}]}}]}}),
                json!({"ignition": {}, "storage": {"luks": [{"name": "l", "device": "/d", "discard": true, "clevis": {"tang": [{"url": "http://t", "thumbprint": "2"}, {"url": "http://u", "thumbprint": "3"}]}}]}}),
                json!({"ignition": {}, "storage": {"luks": [{"name": "l", "device": "/d", "discard": true, "clevis": {"threshold": 1, "tang": [{"url": "http://t", "thumbprint": "2"}, {"url": "http://u", "thumbprint": "3"}]}}]}}),
            ),
        ];
        for (case, parent, child, expected) in cases {
            assert_eq!(merged(parent, child), expected, "{case}");
        }
    }
}
