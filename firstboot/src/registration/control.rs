//! What a control node does besides: NodeZero's namespace, the registry's rights and token, and its service.
//!
//! The registry may read Nodes and the registrations in NodeZero's namespace, and write its one ConfigMap. So that it
//! needs no right to create objects, that ConfigMap is made here. Passwords of nodes are none of its business: they are
//! Secrets, and the operator's `nodezero node readmit` removes one with the operator's own rights.
//!
//! Its token is good for a year, is made anew at each start, and lies in memory.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::Api;
use kube::api::{Patch, PostParams};
use serde_json::{Value, json};

use super::MANAGER;
use crate::boot::RUN_DIRECTORY;
use crate::command::run;
use crate::files::write_atomically;
use crate::kubernetes::{ApiError, Connection, NAMESPACE, REGISTRY, as_manager, kubeconfig};

/// The registry's credentials, in [`RUN_DIRECTORY`].
pub(crate) const KUBECONFIG: &str = "registry.kubeconfig";
/// The registry's service.
const UNIT: &str = "nodezero-registry.service";
/// The API of the control node itself, as K3s' documentation has it.
const LOCAL: &str = "https://127.0.0.1:6443";
/// A year in seconds.
const TOKEN_SECONDS: i64 = 365 * 86_400;

/// A token, which no message shows.
pub(super) struct Token(String);

/// What runs the registry.
pub(crate) trait Services {
    /// Gives it its credentials.
    fn hand_over(&self, kubeconfig: &[u8]) -> anyhow::Result<()>;

    /// Starts it, with them.
    fn start(&self, unit: &str) -> anyhow::Result<()>;
}

/// systemd.
pub(crate) struct Systemd;

impl Services for Systemd {
    fn hand_over(&self, kubeconfig: &[u8]) -> anyhow::Result<()> {
        write_atomically(&Path::new(RUN_DIRECTORY).join(KUBECONFIG), kubeconfig, 0o600)
    }

    fn start(&self, unit: &str) -> anyhow::Result<()> {
        run("systemctl", &["reset-failed", unit], b"", |_| true)?;
        run("systemctl", &["--no-block", "restart", unit], b"", |code| code == 0)?;
        Ok(())
    }
}

/// Makes what the registry needs in the cluster. Gives its token.
pub(super) fn establish(connection: &Connection) -> Result<Token, ApiError> {
    let manager = as_manager(MANAGER);
    connection.call(async |client| {
        let namespaces = Api::<Namespace>::all(client.clone());
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
        namespaces.patch(NAMESPACE, &manager, &Patch::Apply(namespace)).await?;
        let roles = Api::<ClusterRole>::all(client.clone());
        roles.patch(REGISTRY, &manager, &Patch::Apply(cluster_role())).await?;
        let bindings = Api::<ClusterRoleBinding>::all(client);
        bindings.patch(REGISTRY, &manager, &Patch::Apply(binding("ClusterRole"))).await?;
        Ok(())
    })?;
    let account = object("v1", "ServiceAccount", json!({}));
    apply::<ServiceAccount>(connection, &account)?;
    apply::<Role>(connection, &role())?;
    apply::<RoleBinding>(connection, &binding("Role"))?;
    apply::<ConfigMap>(connection, &object("v1", "ConfigMap", json!({})))?;
    let made = connection.call(async |client| {
        let request = TokenRequest {
            spec: TokenRequestSpec { expiration_seconds: Some(TOKEN_SECONDS), ..TokenRequestSpec::default() },
            ..TokenRequest::default()
        };
        let accounts = Api::<ServiceAccount>::namespaced(client, NAMESPACE);
        accounts.create_token_request(REGISTRY, &PostParams::default(), &request).await
    })?;
    let token = made.status.map(|status| Token(status.token));
    token.ok_or_else(|| ApiError::Credentials("the API made no token for the registry".to_owned()))
}

/// Starts the registry with its token.
pub(super) fn start(services: &dyn Services, authority: &str, token: &Token) -> anyhow::Result<()> {
    services.hand_over(kubeconfig(LOCAL, None, authority, &token.0).to_string().as_bytes())?;
    services.start(UNIT)
}

fn apply<K>(connection: &Connection, object: &Value) -> Result<(), ApiError>
where
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    connection.apply::<K>(MANAGER, REGISTRY, object).map(drop)
}

/// An object of the registry's name, in NodeZero's namespace, with these fields.
fn object(version: &str, kind: &str, fields: Value) -> Value {
    let mut object = fields;
    object["apiVersion"] = json!(version);
    object["kind"] = json!(kind);
    object["metadata"] = json!({ "name": REGISTRY, "namespace": NAMESPACE });
    object
}

fn cluster_role() -> Value {
    let rules = json!([{ "apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"] }]);
    let metadata = BTreeMap::from([("name", REGISTRY)]);
    json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": metadata, "rules": rules })
}

fn role() -> Value {
    let rules = json!([
        { "apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "watch"] },
        { "apiGroups": [""], "resources": ["configmaps"], "resourceNames": [REGISTRY], "verbs": ["update", "patch"] },
    ]);
    object("rbac.authorization.k8s.io/v1", "Role", json!({ "rules": rules }))
}

fn binding(kind: &str) -> Value {
    let mut binding = object(
        "rbac.authorization.k8s.io/v1",
        &format!("{kind}Binding"),
        json!({
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": REGISTRY },
            "subjects": [{ "kind": "ServiceAccount", "name": REGISTRY, "namespace": NAMESPACE }],
        }),
    );
    if kind == "ClusterRole" {
        binding["metadata"] = json!({ "name": REGISTRY });
    }
    binding
}
