//! An edge node's place in the control plane: two ConfigMaps that `nodezero node add` makes, one to write and one to
//! read. Its token may do nothing else.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::Patch;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Facts, MANAGER};
use crate::kubernetes::{ApiError, Connection, NAMESPACE, as_manager};

/// The key of the data that has the registration.
pub(crate) const KEY: &str = "registration";
/// What the names of such objects begin with.
pub(crate) const PREFIX: &str = "registration-";

/// What is written, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Written {
    /// The facts.
    #[serde(flatten)]
    pub(crate) facts: Facts,
    /// When the node registered first (RFC 3339).
    pub(crate) registered: String,
}

/// What came of it.
pub(super) struct Applied {
    pub(super) changed: bool,
    pub(super) has_routes: bool,
}

/// The name of the object that a node writes.
pub(super) fn object_name(node: &str) -> String {
    format!("{PREFIX}{node}")
}

/// Writes the registration, if it differs, and looks whether there are routes.
pub(super) fn apply(connection: &Connection, facts: &Facts) -> Result<Applied, ApiError> {
    let name = object_name(&facts.name);
    connection.call(async |client| {
        let objects = Api::<ConfigMap>::namespaced(client, NAMESPACE);
        let data = objects.get(&name).await?.data.unwrap_or_default();
        let before = data.get(KEY).and_then(|json| serde_json::from_str::<Written>(json).ok());
        let changed = before.as_ref().is_none_or(|before| before.facts != *facts);
        if changed {
            let now = || jiff::Timestamp::now().strftime("%FT%TZ").to_string();
            let registered = before.map_or_else(now, |before| before.registered);
            let written = serde_json::to_string(&Written { facts: facts.clone(), registered }).expect("texts");
            let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name },
                "data": { KEY: written } });
            objects.patch(&name, &as_manager(MANAGER), &Patch::Apply(object)).await?;
        }
        let has_routes = objects.get_opt(&format!("routes-{}", facts.name)).await?.is_some();
        Ok(Applied { changed, has_routes })
    })
}
