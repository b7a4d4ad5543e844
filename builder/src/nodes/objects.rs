//! What an edge node is in the API: an account that may do two things, and the objects it does them with.
//!
//! An edge node is no Node of the cluster. Its account `edge-NAME` may read and write the node's own registration, and
//! read its own routes, each by name ([RBAC](https://kubernetes.io/docs/reference/access-authn-authz/rbac/#referring-to-resources));
//! it can list nothing, and create nothing. Its token is a Secret, and so ends with it, not with a date
//! ([manually](https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#manual-secret-management-for-serviceaccounts)).
//! Pure.

use nodezero_profile::node::NodeName;
use serde_json::{Value, json};

use crate::kube::NAMESPACE;

/// The label of ConfigMaps in which nodes outside the cluster register.
pub const REGISTRATION_LABEL: &str = "nodezero.dev/registration";

/// The label that says to which node an object belongs.
const NODE_LABEL: &str = "nodezero.dev/node";

/// The objects of one edge node, by their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    name: NodeName,
}

impl Edge {
    /// Those of the node of this name.
    #[must_use]
    pub fn new(name: &NodeName) -> Self {
        Self { name: name.clone() }
    }

    /// Name of ServiceAccount, Role and RoleBinding.
    #[must_use]
    pub fn account(&self) -> String {
        format!("edge-{}", self.name)
    }

    /// Name of the Secret with the account's token.
    #[must_use]
    pub fn token(&self) -> String {
        format!("edge-{}-token", self.name)
    }

    /// Name of the ConfigMap in which the node registers.
    #[must_use]
    pub fn registration(&self) -> String {
        format!("registration-{}", self.name)
    }

    /// Name of the ConfigMap with the node's routes.
    #[must_use]
    pub fn routes(&self) -> String {
        format!("routes-{}", self.name)
    }

    /// The ServiceAccount. Nothing runs in the cluster with it.
    #[must_use]
    pub fn service_account(&self) -> Value {
        let mut object = self.object("v1", "ServiceAccount", &self.account());
        object["automountServiceAccountToken"] = json!(false);
        object
    }

    /// The Role.
    #[must_use]
    pub fn role(&self) -> Value {
        let mut object = self.object("rbac.authorization.k8s.io/v1", "Role", &self.account());
        let rule = |name: String, verbs: &[&str]| json!({ "apiGroups": [""], "resources": ["configmaps"], "resourceNames": [name], "verbs": verbs });
        object["rules"] =
            json!([rule(self.registration(), &["get", "update", "patch"]), rule(self.routes(), &["get", "watch"])]);
        object
    }

    /// The RoleBinding.
    #[must_use]
    pub fn role_binding(&self) -> Value {
        let mut object = self.object("rbac.authorization.k8s.io/v1", "RoleBinding", &self.account());
        object["roleRef"] = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": self.account() });
        object["subjects"] = json!([{ "kind": "ServiceAccount", "name": self.account(), "namespace": NAMESPACE }]);
        object
    }

    /// The Secret, which the cluster fills with the account's token.
    #[must_use]
    pub fn token_secret(&self) -> Value {
        let mut object = self.object("v1", "Secret", &self.token());
        object["metadata"]["annotations"] = json!({ "kubernetes.io/service-account.name": self.account() });
        object["type"] = json!("kubernetes.io/service-account-token");
        object
    }

    /// The ConfigMap in which the node registers, without what the node writes.
    #[must_use]
    pub fn registration_map(&self) -> Value {
        let mut object = self.object("v1", "ConfigMap", &self.registration());
        object["metadata"]["labels"][REGISTRATION_LABEL] = json!("edge");
        object
    }

    /// The ConfigMap with the node's routes, without any.
    #[must_use]
    pub fn routes_map(&self) -> Value {
        self.object("v1", "ConfigMap", &self.routes())
    }

    fn object(&self, version: &str, kind: &str, name: &str) -> Value {
        json!({
            "apiVersion": version,
            "kind": kind,
            "metadata": { "name": name, "namespace": NAMESPACE, "labels": { NODE_LABEL: self.name } },
        })
    }
}

/// The namespace of NodeZero's objects.
#[must_use]
pub fn namespace() -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_may_do_two_things() {
        let edge = Edge::new(&"vps-1".parse().expect("a name"));
        let rule = |name: &str, verbs: &[&str]| json!({ "apiGroups": [""], "resources": ["configmaps"], "resourceNames": [name], "verbs": verbs });
        assert_eq!(
            edge.role()["rules"],
            json!([rule("registration-vps-1", &["get", "update", "patch"]), rule("routes-vps-1", &["get", "watch"])])
        );
        assert_eq!(
            edge.role_binding(),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "metadata": {
                    "name": "edge-vps-1", "namespace": "nodezero-system", "labels": { "nodezero.dev/node": "vps-1" },
                },
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "edge-vps-1" },
                "subjects": [{ "kind": "ServiceAccount", "name": "edge-vps-1", "namespace": "nodezero-system" }],
            })
        );
    }

    #[test]
    fn the_objects_have_the_names_that_others_look_for() {
        let edge = Edge::new(&"vps-1".parse().expect("a name"));
        let map = edge.registration_map();
        assert_eq!(map["metadata"]["name"], "registration-vps-1");
        assert_eq!(map["metadata"]["labels"]["nodezero.dev/registration"], "edge");
        assert!(map.get("data").is_none(), "what the node wrote would be taken from it: {map}");
        let secret = edge.token_secret();
        assert_eq!(secret["metadata"]["annotations"]["kubernetes.io/service-account.name"], "edge-vps-1");
        assert_eq!(
            (&secret["type"], &secret["metadata"]["name"]),
            (&json!("kubernetes.io/service-account-token"), &json!("edge-vps-1-token"))
        );
        assert_eq!(edge.routes_map()["metadata"]["name"], "routes-vps-1");
        assert_eq!(edge.service_account()["automountServiceAccountToken"], false);
    }
}
