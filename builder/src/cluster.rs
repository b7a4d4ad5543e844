//! `nodezero cluster init`, `nodezero secret` and `nodezero kubeconfig`: what a cluster needs before its first machine
//! starts. Authorities and join tokens are made here, so that every node's config and the operator's kubeconfig are
//! known beforehand.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use nodezero_profile::language::{AGENT_TOKEN, CLUSTER_FILE, JOIN_TOKEN, NODES, SECRETS_FILE, Secret, Secrets as _};
use nodezero_profile::node::NodeName;

use crate::authority;
use crate::profile::{self, Schema};
use crate::progress::Progress;
use crate::secrets::{self, IDENTITY_VARIABLE, Resolver, Store};

/// What to do with a cluster.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a directory of profiles: cluster.yaml to be edited, and secrets.age with the cluster's authorities
    Init(Init),
}

/// A new cluster.
#[derive(Debug, Args)]
pub struct Init {
    /// The directory; made where it is missing
    dir: PathBuf,
    /// Who can open secrets.age: an age recipient (age1…); may be repeated
    #[arg(long = "recipient", value_name = "AGE1…", required_unless_present = "new_identity")]
    recipients: Vec<String>,
    /// Make a new age identity in this file, and let it open secrets.age
    #[arg(long, value_name = "FILE")]
    new_identity: Option<PathBuf>,
    /// The cluster's name
    #[arg(long, default_value = "home")]
    name: NodeName,
    /// The first control node's name
    #[arg(long, default_value = "control-1")]
    server: NodeName,
}

/// What to do with secrets.
#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Add or change an entry of secrets.age; its value comes from standard input or a file, never from an argument
    Set {
        /// The entry's name, as profiles refer to it: {secret: NAME}
        name: String,
        /// The file that holds the value [default: standard input]
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Make the value at random, such as agent-token's; an entry that is there stays
        #[arg(long, conflicts_with = "file")]
        random: bool,
        /// Where it is.
        #[command(flatten)]
        at: At,
    },
    /// Print the names of all entries
    List {
        /// Where it is.
        #[command(flatten)]
        at: At,
    },
}

/// Where a cluster's profiles and secrets are.
#[derive(Debug, Args)]
pub struct At {
    /// The directory of profiles
    #[arg(long, value_name = "DIR", env = "NODEZERO_PROFILES", default_value = ".")]
    dir: PathBuf,
    /// The age identity file that opens secrets.age
    #[arg(long, value_name = "FILE", env = IDENTITY_VARIABLE)]
    identity: Option<PathBuf>,
}

/// An operator's kubeconfig.
#[derive(Debug, Args)]
pub struct Kubeconfig {
    #[command(flatten)]
    at: At,
    /// The API's address [default: the first control node by its name in the mesh, port 6443]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Where it goes; only its owner may read it
    #[arg(long, value_name = "FILE", default_value = "kubeconfig")]
    out: PathBuf,
    /// How long it is good, in days
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u16).range(1..=3650))]
    days: u16,
    /// The user's name, as audit logs show it
    #[arg(long, default_value = "nodezero-operator")]
    user: String,
}

/// Runs `nodezero cluster`.
///
/// # Errors
/// When there is such a directory of profiles already, or it cannot be written.
pub fn run(command: &Command, progress: &Progress) -> Result<()> {
    let Command::Init(arguments) = command;
    init(arguments, progress)
}

/// Runs `nodezero secret`.
///
/// # Errors
/// When the store cannot be opened or written.
pub fn run_secret(command: &SecretCommand) -> Result<()> {
    match command {
        SecretCommand::Set { name, file, random, at } => {
            let mut store = Store::open(&at.dir, at.identity.as_deref())?;
            ensure!(
                !random || store.get(name).is_none(),
                "{SECRETS_FILE} has an entry {name} already: nothing is done"
            );
            let secret = match file {
                _ if *random => random_token()?,
                Some(path) => secrets::text_of(path)?,
                None => {
                    let mut text = String::new();
                    std::io::stdin().take(1 << 20).read_to_string(&mut text).context("reading standard input")?;
                    Secret::new(&text)
                }
            };
            store.set(name, &secret)?;
            store.write()
        }
        SecretCommand::List { at } => {
            Store::open(&at.dir, at.identity.as_deref())?.names().for_each(|name| println!("{name}"));
            Ok(())
        }
    }
}

/// What is missing is made, each file whole or not at all, so that a run that was cut is run again.
fn init(arguments: &Init, progress: &Progress) -> Result<()> {
    let dir = &arguments.dir;
    let (cluster, secrets) = (dir.join(CLUSTER_FILE), dir.join(SECRETS_FILE));
    ensure!(
        !(cluster.exists() && secrets.exists()),
        "{} and {} are there already: nothing is done",
        cluster.display(),
        secrets.display()
    );
    for sub in [dir.join(NODES), dir.join(".schema")] {
        fs::create_dir_all(&sub).with_context(|| format!("making {}", sub.display()))?;
    }
    for (name, schema) in [("cluster", Schema::Cluster), ("node", Schema::Node)] {
        let path = dir.join(".schema").join(format!("{name}.json"));
        fs::write(&path, profile::schema_text(schema)?).with_context(|| format!("writing {}", path.display()))?;
    }
    if !secrets.exists() {
        let mut recipients = arguments.recipients.clone();
        // An identity that was made by a run that was cut is good still.
        if let Some(path) = &arguments.new_identity {
            recipients.push(secrets::new_identity(path)?);
        }
        let mut store = Store::create(dir, &recipients)?;
        fill(&mut store)?;
        store.write()?;
        progress.say(&format!("{}: authorities and join tokens of a new cluster", secrets.display()));
    }
    if !cluster.exists() {
        let text = cluster_text(&arguments.name, &arguments.server);
        fs::write(&cluster, text).with_context(|| format!("writing {}", cluster.display()))?;
        progress.say(&format!("{}: to be edited", cluster.display()));
    }
    progress.say(&format!(
        "next: the mesh's auth key, `nodezero secret set auth-key --dir {0}`, and {0}/nodes/{1}.yaml with `role: control`",
        dir.display(),
        arguments.server
    ));
    Ok(())
}

fn fill(store: &mut Store) -> Result<()> {
    for name in [JOIN_TOKEN, AGENT_TOKEN] {
        store.set(name, &random_token()?)?;
    }
    for (name, secret) in authority::create(Timestamp::now())? {
        store.set(&name, &secret)?;
    }
    Ok(())
}

fn random_token() -> Result<Secret> {
    let bytes = authority::random::<32>()?;
    Ok(Secret::verbatim(bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))))
}

fn cluster_text(name: &NodeName, server: &NodeName) -> String {
    format!(
        "# yaml-language-server: $schema=.schema/cluster.json
# What the nodes of this cluster have in common. Each node has a file of its own: nodes/NAME.yaml.
# `nodezero profile check` tells everything that is wrong, `nodezero render NAME` makes a node's Ignition config.

name: {name}

# The mesh that all nodes join. Without loginServer it is Tailscale's own.
mesh:
  # loginServer: https://mesh.example
  # No secret stands here: this is an entry of secrets.age. {{file: PATH}} and {{env: NAME}} work as well.
  # A key that all nodes share must be reusable. Better is a key for each node that is good once, said in its own file:
  # mesh: {{authKey: {{secret: auth-key-NAME}}}}.
  authKey: {{secret: auth-key}}
  # On Tailscale the keys of nodes without tags expire, after 180 days by default, and the nodes are out of the mesh then.
  # Tags must be known to the mesh's access rules, and the auth key must be allowed to have them.
  # tags: {{control: [tag:control], worker: [tag:worker], edge: [tag:edge]}}

k3s:
  # The control node that starts the cluster. All others join it over the mesh.
  server: {server}
  # These are the defaults. Neither may overlap a network that a node is in.
  # podNetwork: 10.42.0.0/16
  # serviceNetwork: 10.43.0.0/16
  # Further settings of K3s, by role, as its documentation calls them.
  # config: {{control: {{disable: [traefik, servicelb]}}}}

# storage: {{replicas: 2, wipe: never}}
# time: {{servers: [0.pool.ntp.org]}}
# Who may log in to every node with SSH. Without any key nobody ever does.
# authorizedKeys: [\"ssh-ed25519 AAAA… me\"]
"
    )
}

/// Runs `nodezero kubeconfig`.
///
/// # Errors
/// When profiles are not sound, secrets cannot be had, or the file cannot be written.
pub fn kubeconfig(arguments: &Kubeconfig, progress: &Progress) -> Result<()> {
    let at = &arguments.at;
    let profiles = profile::load(&at.dir)?;
    let server = arguments.server.clone().unwrap_or_else(|| format!("https://{}:6443", profiles.server()));
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"\"\\'".contains(&byte);
    if !server.starts_with("https://") || !server.bytes().all(plain) {
        bail!("{server:?} is not an address such as https://control-1:6443");
    }
    let user = &arguments.user;
    ensure!(user.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte)), "{user:?} is not a name");
    let resolver = Resolver::new(&at.dir, at.identity.as_deref());
    let authority = |file: &str| {
        resolver.authority(file).map_err(|error| anyhow::anyhow!(error)).with_context(|| format!("reading {file}"))
    };
    let client = authority::sign_client(
        &authority("client-ca.crt")?,
        &authority("client-ca.key")?,
        user,
        "system:masters",
        arguments.days.into(),
        Timestamp::now(),
    )?;
    let cluster = profiles.cluster();
    let text = format!(
        "apiVersion: v1
kind: Config
clusters:
- name: {cluster}
  cluster:
    server: \"{server}\"
    certificate-authority-data: {}
users:
- name: {user}@{cluster}
  user:
    client-certificate-data: {}
    client-key-data: {}
contexts:
- name: {cluster}
  context: {{cluster: {cluster}, user: {user}@{cluster}}}
current-context: {cluster}
",
        STANDARD.encode(authority("server-ca.crt")?.expose()),
        STANDARD.encode(&client.certificate),
        STANDARD.encode(client.key.expose()),
    );
    write_out(&arguments.out, &text)?;
    progress.say(&format!("{}: {user} of {server}, good for {} days", arguments.out.display(), arguments.days));
    Ok(())
}

fn write_out(out: &Path, text: &str) -> Result<()> {
    secrets::write_private(out, text.as_bytes(), true)
}
