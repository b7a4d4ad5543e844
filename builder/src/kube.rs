//! The cluster's API, as the operator reaches it: with the kubeconfig and the context that kubectl would take
//! ([rules](https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig/)).
//!
//! Everything that goes wrong on the way is told with the address that was asked and with what to do. Left out:
//! credentials of a pod. These commands are for people, and a wrong cluster is worse than none.

use std::fmt::Debug;
use std::path::PathBuf;
use std::time::Duration;

use ::kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use ::kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use ::kube::{Client, Config, Error, Resource};
use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use k8s_openapi::NamespaceResourceScope;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The namespace of NodeZero's own objects.
pub const NAMESPACE: &str = "nodezero-system";

/// By what name the API knows who wrote a field. Nodes write under another: what one of them applies to an object takes
/// away what the same name wrote there before, such as the labels of an edge node's registration.
const FIELD_MANAGER: &str = "nodezero-operator";
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an answer may take.
pub const ANSWER: Duration = Duration::from_secs(30);

/// Which cluster, and as whom.
#[derive(Clone, Debug, Default, Args)]
pub struct Access {
    /// The kubeconfig [default: $KUBECONFIG, else ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// A cluster's API. Nothing is asked of it before the first call.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    url: String,
}

impl Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("url", &self.url).finish_non_exhaustive()
    }
}

/// Runs what talks to a cluster.
///
/// # Errors
/// Those of `work`, and when there is no runtime for it.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting a runtime")?;
    runtime.block_on(work)
}

impl Access {
    /// The API that the kubeconfig names. `answer` bounds how long it may be silent; a watch is silent for long.
    ///
    /// # Errors
    /// When there is no kubeconfig, or it is not one.
    pub async fn cluster(&self, answer: Option<Duration>) -> Result<Cluster> {
        let kubeconfig = self.read()?;
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| match error {
            KubeconfigError::CurrentContextNotSet => {
                anyhow!("the kubeconfig has no current context: choose one with --context")
            }
            KubeconfigError::LoadContext(name) => anyhow!("the kubeconfig has no context {name:?}"),
            KubeconfigError::LoadClusterOfContext(name) => {
                anyhow!("the kubeconfig has no cluster {name:?}, which its context names")
            }
            error => anyhow!(error).context("reading the kubeconfig"),
        })?;
        (config.connect_timeout, config.read_timeout) = (Some(CONNECT), answer);
        // Otherwise the time that a connection was idle counts as silence.
        config.reset_reader_on_write = true;
        let url = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = Client::try_from(config).map_err(|error| explain(error, &url))?;
        Ok(Cluster { client, url })
    }

    fn read(&self) -> Result<Kubeconfig> {
        let advice = "make one with `nodezero kubeconfig`, or name one with --kubeconfig";
        let read = match &self.kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        read.map_err(|error| match error {
            KubeconfigError::ReadConfig(source, path) => {
                anyhow!(source).context(format!("reading the kubeconfig {} ({advice})", path.display()))
            }
            KubeconfigError::FindPath => anyhow!("there is no kubeconfig, and no home directory to look in: {advice}"),
            error => anyhow!(error).context("reading the kubeconfig"),
        })
    }
}

impl Cluster {
    /// The API's address.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The objects of a kind in a namespace.
    #[must_use]
    pub fn of<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The objects of a kind that is in no namespace.
    #[must_use]
    pub fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// One object, if it is there.
    ///
    /// # Errors
    /// When the API cannot be asked.
    pub async fn find<K>(&self, api: &Api<K>, name: &str) -> Result<Option<K>>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        api.get_opt(name).await.map_err(|error| self.explain(error))
    }

    /// Makes an object as `object` says, or makes it so: [server-side
    /// apply](https://kubernetes.io/docs/reference/using-api/server-side-apply/). What others wrote into it stays.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn apply<K>(&self, api: &Api<K>, name: &str, object: &impl Serialize) -> Result<K>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        let object = serde_json::to_value(object).context("writing an object as JSON")?;
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        api.patch(name, &parameters, &Patch::Apply(object)).await.map_err(|error| self.explain(error))
    }

    /// Deletes an object; with `uid`, only that very one. Answers whether it was there.
    ///
    /// # Errors
    /// When the API refuses, or another object has the name by now.
    pub async fn delete<K>(&self, api: &Api<K>, name: &str, uid: Option<String>) -> Result<bool>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        let preconditions = uid.map(|uid| Preconditions { uid: Some(uid), ..Preconditions::default() });
        let parameters = DeleteParams { preconditions, ..DeleteParams::default() };
        match api.delete(name, &parameters).await {
            Ok(_) => Ok(true),
            Err(Error::Api(status)) if status.is_not_found() => Ok(false),
            Err(error) => Err(self.explain(error)),
        }
    }

    /// What the API's refusal or silence means.
    #[must_use]
    pub fn explain(&self, error: Error) -> anyhow::Error {
        explain(error, &self.url)
    }
}

fn explain(error: Error, url: &str) -> anyhow::Error {
    match error {
        Error::Api(status) => match status.code {
            401 => anyhow!(
                "the API at {url} does not take the kubeconfig's credentials: make others with `nodezero kubeconfig`"
            ),
            403 => anyhow!("the API at {url} does not permit it: {}", status.message),
            code => anyhow!("the API at {url} answers {code}: {}", status.message),
        },
        Error::Service(source) => unreachable(url, &*source),
        Error::HyperError(source) => unreachable(url, &source),
        error => anyhow!(error).context(format!("asking the API at {url}")),
    }
}

/// Connecting goes through many layers, of which the last one knows the cause.
fn unreachable(url: &str, error: &(dyn std::error::Error + 'static)) -> anyhow::Error {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    anyhow!(
        "the API at {url} cannot be reached: {cause} (is this machine in the mesh, and the control node on? \
         --kubeconfig and --context choose another cluster)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_kubeconfig_is_told_with_its_place() {
        let access = Access { kubeconfig: Some("/no/such/config".into()), context: None };
        let error = format!("{:#}", access.read().expect_err("there is none"));
        assert!(error.contains("/no/such/config") && error.contains("nodezero kubeconfig"), "{error}");
    }

    #[test]
    fn refusals_say_what_to_do() {
        let status = |code: u16| {
            let json = format!(r#"{{"status":"Failure","message":"no","reason":"x","code":{code}}}"#);
            Error::Api(Box::new(serde_json::from_str(&json).expect("a status")))
        };
        for (code, expected) in [(401, "make others"), (403, "does not permit it: no"), (500, "answers 500: no")] {
            let said = explain(status(code), "https://a:6443").to_string();
            assert!(said.contains(expected) && said.contains("https://a:6443"), "{code}: {said}");
        }
    }
}
