//! Whether a document has the shape that the JSON Schema of its type says: every unknown field, missing field and wrong
//! type at once, each with its place. The schema is the one that editors use, derived from the model.
//!
//! Of JSON Schema this knows what the model's types make use of: `$ref`, `type`, `properties`, `required`,
//! `additionalProperties`, `minProperties`, `maxProperties`, `items`, `enum`, `const`, `anyOf`, `oneOf`, `minimum` and
//! `maximum`. A hint that a type gives for what does not fit stands in `x-hint`; `x-parse` marks counts of disks.

use serde_json::{Map, Number, Value};

use super::yaml::{Content, Entry, Node, Position};
use crate::selector::Count;

/// Something that is wrong with a document's shape.
#[derive(Clone, Debug)]
pub(crate) struct Misfit {
    /// Where.
    pub(crate) at: Position,
    /// The path that leads there.
    pub(crate) path: String,
    /// What.
    pub(crate) message: String,
    /// What would be right.
    pub(crate) hint: Option<String>,
}

/// Compares a document with a schema. What fits is given back as JSON, without the fields that do not fit; nothing
/// where too little is left to go on with.
pub(crate) fn fit(schema: &Value, root: &Node) -> (Option<Value>, Vec<Misfit>) {
    let mut fitting = Fitting { root: schema, misfits: Vec::new() };
    let value = fitting.value(schema, root, "");
    (value, fitting.misfits)
}

struct Fitting<'a> {
    root: &'a Value,
    misfits: Vec<Misfit>,
}

impl<'a> Fitting<'a> {
    fn misfit(&mut self, at: Position, path: &str, message: String, hint: Option<String>) {
        self.misfits.push(Misfit { at, path: path.to_owned(), message, hint });
    }

    /// Follows `$ref`.
    fn resolve(&self, schema: &'a Value) -> &'a Value {
        let mut schema = schema;
        // A chain of references is no longer than there are types.
        for _ in 0..16 {
            match schema.get("$ref").and_then(Value::as_str).and_then(|text| text.strip_prefix('#')) {
                Some(pointer) => schema = self.root.pointer(pointer).unwrap_or(&Value::Null),
                None => break,
            }
        }
        schema
    }

    fn value(&mut self, schema: &'a Value, node: &Node, path: &str) -> Option<Value> {
        let schema = self.resolve(schema);
        if let Some(words) = words(schema) {
            return self.word(schema, &words, node, path);
        }
        if let Some(choices) = ["anyOf", "oneOf"].iter().find_map(|key| schema.get(key)).and_then(Value::as_array) {
            return self.choice(schema, choices, node, path);
        }
        let types = types(schema);
        if !types.is_empty() && !types.iter().any(|name| is_type(name, &node.content)) {
            self.wrong_type(schema, &types, node, path);
            return None;
        }
        match &node.content {
            Content::Map(entries) => self.map(schema, entries, node, path),
            Content::List(items) => self.list(schema, items, path),
            Content::Integer(number) => self.integer(schema, *number, node, path),
            Content::Null | Content::Bool(_) | Content::Number(_) | Content::Text(_) => Some(plain(node)),
        }
    }

    fn word(&mut self, schema: &Value, words: &[&str], node: &Node, path: &str) -> Option<Value> {
        match &node.content {
            Content::Text(text) if words.contains(&text.as_str()) => Some(Value::from(text.as_str())),
            Content::Text(text) => {
                let message = format!("{text:?} is not one of {}", words.join(", "));
                let hint = nearest(text, words).map(|word| format!("did you mean {word}?")).or_else(|| hint_of(schema));
                self.misfit(node.at, path, message, hint);
                None
            }
            _ => {
                let message = format!("expected one of {}, found {}", words.join(", "), found(&node.content));
                self.misfit(node.at, path, message, hint_of(schema));
                None
            }
        }
    }

    fn choice(&mut self, schema: &Value, choices: &'a [Value], node: &Node, path: &str) -> Option<Value> {
        let suits = |choice: &&&'a Value| {
            let types = types(self.resolve(choice));
            types.is_empty() || types.iter().any(|name| is_type(name, &node.content))
        };
        let choices: Vec<&'a Value> = choices.iter().collect();
        match choices.iter().find(suits) {
            Some(choice) => {
                let value = self.value(choice, node, path)?;
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                match schema.get("x-parse").map(|_| text.parse::<Count>()) {
                    Some(Err(error)) => {
                        self.misfit(node.at, path, error.to_string(), None);
                        None
                    }
                    Some(Ok(_)) | None => Some(value),
                }
            }
            None => {
                let mut types: Vec<&str> = choices.iter().flat_map(|choice| types(self.resolve(choice))).collect();
                types.retain(|name| *name != "null");
                // The hint of the one that is meant, where only one is left.
                let inner = choices.iter().find_map(|choice| hint_of(self.resolve(choice)));
                let hinted = inner.map_or_else(|| schema.clone(), |hint| serde_json::json!({ "x-hint": hint }));
                self.wrong_type(&hinted, &types, node, path);
                None
            }
        }
    }

    fn wrong_type(&mut self, schema: &Value, types: &[&str], node: &Node, path: &str) {
        let names: Vec<&str> = types.iter().filter(|name| **name != "null").map(|name| type_name(name)).collect();
        let message = format!("expected {}, found {}", names.join(" or "), found(&node.content));
        let hint = hint_of(schema).or_else(|| match (types.first(), &node.content) {
            (Some(&"string"), Content::Bool(_) | Content::Integer(_) | Content::Number(_)) => {
                Some(format!("put it in quotes: {:?}", plain(node).to_string()))
            }
            (Some(&"array"), Content::Text(_) | Content::Integer(_) | Content::Map(_)) => {
                Some("write it as a list: a line with \"- \" for each entry, or [a, b]".to_owned())
            }
            (Some(&("integer" | "boolean")), Content::Text(text)) => {
                let wanted = if types.contains(&"integer") { "a number" } else { "true or false" };
                Some(format!("{wanted}, without quotes, instead of {text:?}"))
            }
            (_, Content::Null) => Some("give it a value, or leave the key out".to_owned()),
            _ => None,
        });
        self.misfit(node.at, path, message, hint);
    }

    fn integer(&mut self, schema: &Value, number: i64, node: &Node, path: &str) -> Option<Value> {
        let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
        #[expect(
            clippy::cast_precision_loss,
            reason = "bounds are small; a number beyond 2^53 is out of them either way"
        )]
        let exact = number as f64;
        let (least, most) = (bound("minimum"), bound("maximum"));
        if least.is_some_and(|least| exact < least) || most.is_some_and(|most| exact > most) {
            let message = match (least, most) {
                (Some(least), Some(most)) => format!("{number} is not from {least} to {most}"),
                (Some(least), None) => format!("{number} is less than {least}"),
                (None, most) => format!("{number} is more than {}", most.unwrap_or(f64::MAX)),
            };
            self.misfit(node.at, path, message, hint_of(schema));
            return None;
        }
        Some(Value::from(number))
    }

    fn list(&mut self, schema: &'a Value, items: &[Node], path: &str) -> Option<Value> {
        let Some(of) = schema.get("items") else { return Some(Value::Array(items.iter().map(plain).collect())) };
        let fitting: Vec<Option<Value>> =
            items.iter().enumerate().map(|(index, item)| self.value(of, item, &format!("{path}[{index}]"))).collect();
        // One that is missing would move those behind it.
        fitting.into_iter().collect::<Option<Vec<Value>>>().map(Value::Array)
    }

    fn map(&mut self, schema: &'a Value, entries: &[Entry], node: &Node, path: &str) -> Option<Value> {
        let empty = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object);
        let rest = schema.get("additionalProperties");
        let (mut fitting, mut sound) = (Map::new(), true);
        for entry in entries {
            let path = join(path, &entry.key);
            let of = properties.and_then(|properties| properties.get(&entry.key));
            match (of, rest) {
                (Some(of), _) => {
                    if let Some(value) = self.value(of, &entry.value, &path) {
                        fitting.insert(entry.key.clone(), value);
                    } else if required(schema).contains(&entry.key.as_str()) {
                        sound = false;
                    }
                }
                (None, Some(Value::Bool(false))) => {
                    let known = properties.unwrap_or(&empty).keys().map(String::as_str).collect::<Vec<_>>();
                    self.unknown(entry, &path, &known, schema);
                }
                (None, Some(of @ Value::Object(_))) => match self.value(of, &entry.value, &path) {
                    Some(value) => drop(fitting.insert(entry.key.clone(), value)),
                    None => sound = false,
                },
                (None, _) => drop(fitting.insert(entry.key.clone(), plain(&entry.value))),
            }
        }
        for name in required(schema) {
            if !entries.iter().any(|entry| entry.key == name) {
                let about = properties.and_then(|properties| properties.get(name)).and_then(description);
                self.misfit(node.at, path, format!("{name} is missing"), about);
                sound = false;
            }
        }
        let limit = |key: &str| schema.get(key).and_then(Value::as_u64).and_then(|limit| usize::try_from(limit).ok());
        let least = limit("minProperties").unwrap_or(0);
        if !(least..=limit("maxProperties").unwrap_or(usize::MAX)).contains(&entries.len()) {
            self.misfit(node.at, path, format!("{} keys stand here, expected {least}", entries.len()), hint_of(schema));
            sound = false;
        }
        sound.then_some(Value::Object(fitting))
    }

    fn unknown(&mut self, entry: &Entry, path: &str, known: &[&str], schema: &Value) {
        let hint = match nearest(&entry.key, known) {
            Some(name) => format!("did you mean {name}?"),
            None if known.is_empty() => "nothing can stand here".to_owned(),
            None => hint_of(schema).unwrap_or_else(|| format!("known here: {}", known.join(", "))),
        };
        self.misfit(entry.at, path, format!("unknown field {:?}", entry.key), Some(hint));
    }
}

/// A key's path.
pub(crate) fn join(path: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    match (plain, path) {
        (true, "") => key.to_owned(),
        (true, _) => format!("{path}.{key}"),
        (false, _) => format!("{path}[{key:?}]"),
    }
}

/// A node as JSON, without regard to a schema.
fn plain(node: &Node) -> Value {
    match &node.content {
        Content::Null => Value::Null,
        Content::Bool(value) => Value::Bool(*value),
        Content::Integer(number) => Value::from(*number),
        Content::Number(number) => Number::from_f64(*number).map_or(Value::Null, Value::Number),
        Content::Text(text) => Value::from(text.as_str()),
        Content::List(items) => Value::Array(items.iter().map(plain).collect()),
        Content::Map(entries) => {
            Value::Object(entries.iter().map(|entry| (entry.key.clone(), plain(&entry.value))).collect())
        }
    }
}

/// The words of which one is to stand here; `None` where anything else may.
fn words(schema: &Value) -> Option<Vec<&str>> {
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        return values.iter().map(Value::as_str).collect();
    }
    if let Some(word) = schema.get("const") {
        return word.as_str().map(|word| vec![word]);
    }
    let choices = schema.get("oneOf").and_then(Value::as_array)?;
    let found: Option<Vec<Vec<&str>>> = choices.iter().map(words).collect();
    found.map(|words| words.concat()).filter(|words| !words.is_empty())
}

fn types(schema: &Value) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ if schema.get("enum").is_some() || schema.get("const").is_some() || schema.get("oneOf").is_some() => {
            vec!["string"]
        }
        _ => Vec::new(),
    }
}

fn is_type(name: &str, content: &Content) -> bool {
    match content {
        Content::Null => name == "null",
        Content::Bool(_) => name == "boolean",
        Content::Integer(_) => matches!(name, "integer" | "number"),
        Content::Number(_) => name == "number",
        Content::Text(_) => name == "string",
        Content::List(_) => name == "array",
        Content::Map(_) => name == "object",
    }
}

fn type_name(name: &str) -> &str {
    match name {
        "boolean" => "true or false",
        "integer" => "a whole number",
        "number" => "a number",
        "string" => "a text",
        "array" => "a list",
        "object" => "a mapping",
        other => other,
    }
}

/// What stands there, for a person. Never the text itself: it may be a secret in the wrong place.
fn found(content: &Content) -> String {
    match content {
        Content::Null => "nothing".to_owned(),
        Content::Bool(value) => value.to_string(),
        Content::Integer(number) => format!("the number {number}"),
        Content::Number(number) => format!("the number {number}"),
        Content::Text(_) => "a text".to_owned(),
        Content::List(_) => "a list".to_owned(),
        Content::Map(_) => "a mapping".to_owned(),
    }
}

fn required(schema: &Value) -> Vec<&str> {
    schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

fn hint_of(schema: &Value) -> Option<String> {
    schema.get("x-hint").and_then(Value::as_str).map(str::to_owned)
}

/// The first sentence of a description.
fn description(schema: &Value) -> Option<String> {
    let text = schema.get("description")?.as_str()?;
    let first = text.split(['\n', ';']).next().unwrap_or(text);
    Some(first.trim_end_matches('.').to_owned())
}

/// The word that a misspelt one was probably meant to be.
pub(crate) fn nearest<'w>(word: &str, words: &[&'w str]) -> Option<&'w str> {
    let bare = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase();
    let wanted = bare(word);
    let limit = (wanted.chars().count() / 3).clamp(1, 3);
    let distances = words.iter().map(|known| (distance(&wanted, &bare(known)), *known));
    distances.filter(|(distance, _)| *distance <= limit).min_by_key(|(distance, _)| *distance).map(|(_, known)| known)
}

/// How many characters must be put in, taken out, exchanged or swapped to make one text of the other (optimal string
/// alignment).
fn distance(one: &str, other: &str) -> usize {
    let one: Vec<char> = one.chars().take(64).collect();
    let other: Vec<char> = other.chars().take(64).collect();
    let mut table = vec![vec![0; other.len() + 1]; one.len() + 1];
    for (i, row) in table.iter_mut().enumerate() {
        row[0] = i;
    }
    table[0] = (0..=other.len()).collect();
    for i in 1..=one.len() {
        for j in 1..=other.len() {
            let exchange = table[i - 1][j - 1] + usize::from(one[i - 1] != other[j - 1]);
            let mut least = exchange.min(table[i - 1][j] + 1).min(table[i][j - 1] + 1);
            if i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1] {
                least = least.min(table[i - 2][j - 2] + 1);
            }
            table[i][j] = least;
        }
    }
    table[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::yaml::parse;
    use super::*;

    fn schema() -> Value {
        json!({
            "type": "object",
            "additionalProperties": false,
            "required": ["role"],
            "properties": {
                "role": { "$ref": "#/$defs/Role" },
                "labels": { "type": "object", "additionalProperties": { "type": "string" } },
                "ports": { "type": "array", "items": { "type": "integer", "minimum": 1, "maximum": 65535 } },
                "wait": { "type": ["integer", "null"], "minimum": 0 },
                "count": { "anyOf": [{ "type": "integer" }, { "type": "string" }] },
                "key": { "anyOf": [{ "$ref": "#/$defs/Secret" }, { "type": "null" }] },
            },
            "$defs": {
                "Role": { "oneOf": [{ "const": "control", "description": "c" }, { "const": "worker" }] },
                "Secret": { "type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": false,
                    "x-hint": "a secret never stands here",
                    "properties": { "secret": { "type": "string" }, "env": { "type": "string" } } },
            },
        })
    }

    #[test]
    fn what_does_not_fit_is_told_at_once() {
        for (text, expected) in [
            ("role: control\nwait:\ncount: 2\nkey: {env: A}\n", vec![]),
            ("role: Worker", vec!["1:7 role: \"Worker\" is not one of control, worker (did you mean worker?)"]),
            ("{}", vec!["1:1 : role is missing ()"]),
            (
                "role: control\nlables: {}\nzzz: 1\n",
                vec![
                    "2:1 lables: unknown field \"lables\" (did you mean labels?)",
                    "3:1 zzz: unknown field \"zzz\" (known here: count, key, labels, ports, role, wait)",
                ],
            ),
            (
                "role: control\nlabels: {a: 1, b.c: true}\n",
                vec![
                    "2:13 labels.a: expected a text, found the number 1 (put it in quotes: \"1\")",
                    "2:21 labels[\"b.c\"]: expected a text, found true (put it in quotes: \"true\")",
                ],
            ),
            (
                "role: control\nports: 80\nwait: soon\ncount: []\n",
                vec![
                    "2:8 ports: expected a list, found the number 80 (write it as a list: a line with \"- \" for each entry, or [a, b])",
                    "3:7 wait: expected a whole number, found a text (a number, without quotes, instead of \"soon\")",
                    "4:8 count: expected a whole number or a text, found a list ()",
                ],
            ),
            (
                "role: control\nports: [0, 70000]\nwait: -1",
                vec![
                    "2:9 ports[0]: 0 is not from 1 to 65535 ()",
                    "2:12 ports[1]: 70000 is not from 1 to 65535 ()",
                    "3:7 wait: -1 is less than 0 ()",
                ],
            ),
            (
                "role: control\nkey: tskey-123",
                vec!["2:6 key: expected a mapping, found a text (a secret never stands here)"],
            ),
            ("role: control\nkey: {}\n", vec!["2:6 key: 0 keys stand here, expected 1 (a secret never stands here)"]),
            ("[]", vec!["1:1 : expected a mapping, found a list ()"]),
        ] {
            let (_, misfits) = fit(&schema(), &parse(text).expect(text));
            let shown: Vec<String> = misfits
                .iter()
                .map(|Misfit { at, path, message, hint }| {
                    format!("{}:{} {path}: {message} ({})", at.line, at.column, hint.as_deref().unwrap_or_default())
                })
                .collect();
            assert_eq!(shown, expected, "{text}");
        }
    }

    #[test]
    fn what_fits_is_left() {
        let text = "role: worker\nlables: 1\nwait: x\nports: [1, a]\ncount: 3\n";
        let (value, misfits) = fit(&schema(), &parse(text).expect("YAML"));
        assert_eq!((value, misfits.len()), (Some(json!({ "role": "worker", "count": 3 })), 3));
        assert_eq!(fit(&schema(), &parse("role: x").expect("YAML")).0, None, "a required field is not left out");
    }

    #[test]
    fn misspelt_words_find_their_meaning() {
        let words = ["dataDisks", "labels", "loginServer", "tcp"];
        for (word, expected) in [
            ("datadisks", Some("dataDisks")),
            ("data_disks", Some("dataDisks")),
            ("data-disk", Some("dataDisks")),
            ("lables", Some("labels")),
            ("tpc", Some("tcp")),
            ("network", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, &words), expected, "{word}");
        }
    }
}
