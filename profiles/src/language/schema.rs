//! The JSON Schema of profiles ([draft 2020-12](https://json-schema.org/draft/2020-12/schema)), for editors. Derived from
//! the model; committed under `profiles/schema`, and kept in step by a test.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::model::{ClusterFile, NodeFile};

/// The schema of `cluster.yaml`.
#[must_use]
pub fn cluster() -> Value {
    of::<ClusterFile>("NodeZero: cluster.yaml")
}

/// The schema of `nodes/NAME.yaml`.
#[must_use]
pub fn node() -> Value {
    of::<NodeFile>("NodeZero: nodes/NAME.yaml")
}

fn of<T: JsonSchema>(title: &str) -> Value {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>();
    schema.insert("title".to_owned(), title.into());
    sorted(schema.to_value())
}

/// The same with every object's keys in order, however the JSON library keeps them.
pub(crate) fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> = map.into_iter().collect();
            entries.sort_by(|one, other| one.0.cmp(&other.0));
            Value::Object(entries.into_iter().map(|(key, value)| (key, sorted(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}
