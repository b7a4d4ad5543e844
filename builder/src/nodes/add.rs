//! `nodezero node add`: what one new node needs, made on the control side, and a profile to begin with.
//!
//! A worker needs the token of agents, which all workers share; the cluster's own token, which is as good as its whole
//! administration, is none of theirs. An edge node gets an account of its own ([`super::objects`]), whose
//! token goes into the store of secrets. The profile is written last: while it is not there, the command can be run
//! again, and comes to the same end from wherever it was cut.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role as Rights, RoleBinding};
use nodezero_profile::Role;
use nodezero_profile::language::{AGENT_TOKEN, CLUSTER_FILE, NODES, SECRETS_FILE, Secret as Hidden, SecretRef};
use nodezero_profile::node::NodeName;

use super::draft::{self, AuthKey};
use super::objects::{self, Edge};
use super::{Deed, deed};
use crate::kube::{ANSWER, Access, Cluster, NAMESPACE, block_on};
use crate::profile;
use crate::secrets::{IDENTITY_VARIABLE, Store};

/// How long the cluster may take to fill a token's Secret.
const TOKEN: Duration = Duration::from_secs(30);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(250);
/// Where a K3s server keeps the token with which agents join ([documented](https://docs.k3s.io/cli/token)). It is that of
/// servers where there is no other.
const AGENT_TOKEN_FILE: &str = "/var/lib/rancher/k3s/server/agent-token";
/// The longest join token that is read, in bytes.
const TOKEN_LIMIT: usize = 4096;

/// What a new node is to be. A control node needs nothing that would be made for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A K3s agent with data disks.
    Worker,
    /// A machine outside the cluster, with a public address.
    Edge,
}

/// Which node to add.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The node's name: its host name, and its name in mesh and cluster
    name: NodeName,
    /// What it is to be: worker or edge
    #[arg(long)]
    role: Role,
    /// The directory of profiles: where cluster.yaml is
    #[arg(long, value_name = "DIR", env = "NODEZERO_PROFILES", default_value = ".")]
    dir: PathBuf,
    /// The file with the mesh's auth key; the profile refers to it
    #[arg(long, value_name = "FILE", conflicts_with = "auth_key_env")]
    auth_key_file: Option<PathBuf>,
    /// The environment variable with the mesh's auth key; the profile refers to it
    #[arg(long, value_name = "NAME")]
    auth_key_env: Option<String>,
    /// The age identity file that opens secrets.age
    #[arg(long, value_name = "FILE", env = IDENTITY_VARIABLE)]
    identity: Option<PathBuf>,
    /// The profile is there: keep it, and make what the node needs
    #[arg(long)]
    keep_profile: bool,
    /// Do not ask the cluster whether the name is taken; for a worker only
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    access: Access,
}

/// The entry of an edge node's token among the secrets: what its profile refers to where it names no other.
#[must_use]
pub fn registration_token(name: &NodeName) -> String {
    format!("registration-{name}")
}

/// Adds the node.
///
/// # Errors
/// When the name is taken, or something that the node needs cannot be made.
pub fn run(arguments: &Arguments) -> Result<Deed> {
    let Arguments { name, dir, .. } = arguments;
    ensure!(
        dir.join(CLUSTER_FILE).is_file(),
        "{} has no {CLUSTER_FILE}: name the directory of profiles with --dir, or begin one with `nodezero cluster init`",
        dir.display()
    );
    let file = dir.join(NODES).join(format!("{name}.yaml"));
    let kind = match arguments.role {
        Role::Worker => Kind::Worker,
        Role::Edge => Kind::Edge,
        Role::Control => bail!(
            "a control node is added by its profile alone, as all that it needs is in {SECRETS_FILE} since `nodezero \
             cluster init`: write {} with `role: control`. From the second control node on K3s keeps its data in etcd: \
             so render the control nodes that there are again, too",
            file.display()
        ),
    };
    let is_there = fs::symlink_metadata(&file).is_ok();
    if is_there && !arguments.keep_profile {
        bail!("{} is there already: choose another name, or say --keep-profile", file.display());
    }
    ensure!(
        is_there || !arguments.keep_profile,
        "{} is not there: leave out --keep-profile to have one written",
        file.display()
    );
    let mut store = Store::open(dir, arguments.identity.as_deref())?;
    let mut lines = match kind {
        Kind::Worker => worker(arguments, &mut store)?,
        Kind::Edge => {
            ensure!(!arguments.offline, "an edge node's account is made in the cluster: leave out --offline");
            block_on(edge(arguments, &mut store))?
        }
    };
    if !is_there {
        write_profile(&file, kind, arguments)?;
        lines.push(format!("wrote {}", file.display()));
    }
    lines.push(next(arguments));
    Ok(deed(name, lines))
}

/// What to do with what is there now.
fn next(arguments: &Arguments) -> String {
    let Arguments { name, dir, .. } = arguments;
    let at = if dir == Path::new(".") { String::new() } else { format!(" --dir {}", dir.display()) };
    format!(
        "next: complete nodes/{name}.yaml, look at it with `nodezero profile check {}`, then `nodezero render {name}{at}`",
        dir.display()
    )
}

fn worker(arguments: &Arguments, store: &mut Store) -> Result<Vec<String>> {
    if !arguments.offline {
        block_on(async {
            let cluster = arguments.access.cluster(Some(ANSWER)).await?;
            refuse_taken(&cluster, &arguments.name, None).await
        })?;
    }
    // Profiles may say another place; while they are not sound, `nodezero profile check` is the next to tell.
    let said = profile::load(&arguments.dir).ok().map(|profiles| profiles.agent_token().clone());
    let entry = match said {
        Some(SecretRef::Secret(entry)) => entry,
        Some(other) => return Ok(vec![format!("the token of workers is {other}, as {CLUSTER_FILE} says")]),
        None => AGENT_TOKEN.to_owned(),
    };
    if store.get(&entry).is_some() {
        return Ok(vec![format!("the token of workers is in {SECRETS_FILE}")]);
    }
    let token = read_agent_token(Path::new(AGENT_TOKEN_FILE))
        .with_context(|| format!("{SECRETS_FILE} has no entry {entry}, with which workers join"))?;
    store.set(&entry, &token)?;
    store.write()?;
    Ok(vec![format!("put the token of {AGENT_TOKEN_FILE} into {SECRETS_FILE} as {entry}")])
}

/// What a control node lets workers join with. Without a token of its own for them that is a server's, which no worker is
/// given.
fn read_agent_token(path: &Path) -> Result<Hidden> {
    const MAKE: &str =
        "make one with `nodezero secret set agent-token --random`, and render control nodes with it first";
    let text = fs::read_to_string(path).with_context(|| format!("reading {} ({MAKE})", path.display()))?;
    // What stands before the secret is made anew from the authorities in the store.
    let Some((_, token)) = text.trim().split_once("::node:") else {
        bail!("{} holds no token of workers alone: {MAKE}", path.display());
    };
    ensure!(!token.is_empty() && token.len() <= TOKEN_LIMIT, "{} holds no token", path.display());
    Ok(Hidden::new(token))
}

async fn edge(arguments: &Arguments, store: &mut Store) -> Result<Vec<String>> {
    let name = &arguments.name;
    let cluster = arguments.access.cluster(Some(ANSWER)).await?;
    let edge = Edge::new(name);
    refuse_taken(&cluster, name, (!arguments.keep_profile).then_some(&edge)).await?;
    make(&cluster, &edge).await?;
    let token = token(&cluster, &edge).await?;
    store.set(&registration_token(name), &token)?;
    store.write()?;
    Ok(vec![
        format!("made the account {} in {NAMESPACE} at {}", edge.account(), cluster.url()),
        format!("put its token into {SECRETS_FILE} as {}", registration_token(name)),
    ])
}

/// Refuses a name that a Node has, or an edge node that has registered. A registration that is empty is what an earlier
/// run was cut after.
async fn refuse_taken(cluster: &Cluster, name: &NodeName, edge: Option<&Edge>) -> Result<()> {
    if cluster.find(&cluster.all::<Node>(), name).await?.is_some() {
        bail!("the cluster at {} has a Node {name} already", cluster.url());
    }
    let Some(edge) = edge else { return Ok(()) };
    let found: Option<ConfigMap> = cluster.find(&cluster.of(NAMESPACE), &edge.registration()).await?;
    let registered = found.and_then(|map| map.data).is_some_and(|data| !data.is_empty());
    ensure!(
        !registered,
        "a machine has registered as {name} at {}: `nodezero node remove {name}` first",
        cluster.url()
    );
    Ok(())
}

/// The rights come before the account can be used, and the token after the account.
async fn make(cluster: &Cluster, edge: &Edge) -> Result<()> {
    cluster.apply(&cluster.all::<Namespace>(), NAMESPACE, &objects::namespace()).await?;
    let maps = cluster.of::<ConfigMap>(NAMESPACE);
    cluster.apply(&maps, &edge.registration(), &edge.registration_map()).await?;
    cluster.apply(&maps, &edge.routes(), &edge.routes_map()).await?;
    cluster.apply(&cluster.of::<Rights>(NAMESPACE), &edge.account(), &edge.role()).await?;
    cluster.apply(&cluster.of::<RoleBinding>(NAMESPACE), &edge.account(), &edge.role_binding()).await?;
    cluster.apply(&cluster.of::<ServiceAccount>(NAMESPACE), &edge.account(), &edge.service_account()).await?;
    cluster.apply(&cluster.of::<Secret>(NAMESPACE), &edge.token(), &edge.token_secret()).await?;
    Ok(())
}

/// The token, once the cluster has put it into its Secret.
async fn token(cluster: &Cluster, edge: &Edge) -> Result<Hidden> {
    let secrets = cluster.of::<Secret>(NAMESPACE);
    let begin = tokio::time::Instant::now();
    while begin.elapsed() < TOKEN {
        let secret = cluster.find(&secrets, &edge.token()).await?;
        if let Some(bytes) = secret.and_then(|secret| secret.data).and_then(|mut data| data.remove("token")) {
            let text = String::from_utf8(bytes.0).ok().filter(|text| !text.is_empty());
            return text
                .as_deref()
                .map(Hidden::new)
                .with_context(|| format!("the token in Secret {} is no text", edge.token()));
        }
        tokio::time::sleep(LOOK).await;
    }
    bail!(
        "the cluster put no token into Secret {NAMESPACE}/{} within {} s: is its controller manager up? Run this again",
        edge.token(),
        TOKEN.as_secs()
    )
}

/// Writes the profile whole or not at all, and never over another.
fn write_profile(path: &Path, kind: Kind, arguments: &Arguments) -> Result<()> {
    let key = match (&arguments.auth_key_file, &arguments.auth_key_env) {
        (Some(path), _) => Some(AuthKey::File(path.display().to_string())),
        (None, Some(name)) => Some(AuthKey::Env(name.clone())),
        (None, None) => None,
    };
    let text = draft::profile(&arguments.name, kind, key.as_ref());
    let directory = path.parent().context("a profile has a directory")?;
    let write = || -> io::Result<()> {
        fs::create_dir_all(directory)?;
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(directory)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist_noclobber(path).map_err(|error| error.error)?;
        fs::File::open(directory)?.sync_all()
    };
    write().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_workers_is_read_or_told_missing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("agent-token");
        let error = format!("{:#}", read_agent_token(&path).expect_err("missing"));
        assert!(error.contains("agent-token") && error.contains("nodezero secret set agent-token --random"), "{error}");
        for (content, expected) in [
            ("K10ab::node:s3cret\n", Some("s3cret")),
            ("K10ab::server:s3cret\n", None),
            ("s3cret\n", None),
            ("K10ab::node:\n", None),
            ("\n", None),
        ] {
            fs::write(&path, content).expect("written");
            let found = read_agent_token(&path);
            assert_eq!(found.as_ref().ok().map(Hidden::expose), expected, "{content:?}");
            assert!(found.err().is_none_or(|error| !format!("{error:#}").contains("s3cret")), "{content:?}");
        }
        let huge = format!("K10ab::node:{}", "x".repeat(TOKEN_LIMIT + 1));
        fs::write(&path, huge).expect("written");
        assert!(read_agent_token(&path).is_err(), "too long");
    }
}
