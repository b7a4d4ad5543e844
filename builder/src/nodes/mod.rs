//! `nodezero nodes` and `nodezero node`: the cluster's nodes as the control plane knows them, and what the operator does
//! there for one of them.
//!
//! A machine never needs the operator's SSH, nor gives it. What a new node presents is made here, on the control side:
//!
//! - [`add`] makes what one node needs, and a profile to begin with;
//! - [`readmit`] lets a machine join again under its name after its own identity was lost;
//! - [`remove`] takes a node's rights and its objects away.
//!
//! Each of them first looks, then acts, says what it did, and comes to the same end when it was cut and is run again.
//! [`registry`] and [`table`] are the reading side, [`objects`] is what an edge node is in the API, [`draft`] is the
//! profile.

pub mod add;
pub mod draft;
pub mod objects;
pub mod readmit;
pub mod registry;
pub mod remove;
pub mod table;
mod watch;

use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use nodezero_profile::node::NodeName;
use serde_json::{Value, json};

use self::registry::Listing;
use crate::kube::{ANSWER, Access, Cluster, NAMESPACE, block_on};

/// Which nodes to show, and how.
#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    access: Access,
    /// Go on, and show each change
    #[arg(long, short)]
    watch: bool,
}

/// What to do for one node.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make what a new node needs to join, and a profile to begin with
    Add(add::Arguments),
    /// Let a machine join again under its name, after it was installed anew without its state
    Readmit {
        /// The node's name
        name: NodeName,
        /// Which cluster.
        #[command(flatten)]
        access: Access,
    },
    /// Take a node out of the cluster: its rights and its objects; its profile stays
    Remove {
        /// The node's name
        name: NodeName,
        /// Which cluster.
        #[command(flatten)]
        access: Access,
        /// Although the node is Ready
        #[arg(long)]
        force: bool,
    },
}

/// What a command did: lines for people, and an object for programs.
#[derive(Debug)]
pub struct Deed {
    /// What was done, in order.
    pub lines: Vec<String>,
    /// The same for programs.
    pub json: Value,
}

/// Shows the registry. The exit code is a success whatever the nodes' health.
///
/// # Errors
/// When there is no kubeconfig, the API cannot be asked, or nobody keeps a registry there.
pub fn list(arguments: &List, json: bool) -> Result<ExitCode> {
    if arguments.watch {
        return block_on(watch::watch(&arguments.access, json));
    }
    let listing = block_on(async {
        let cluster = arguments.access.cluster(Some(ANSWER)).await?;
        match find(&cluster).await? {
            Some(listing) => Ok(listing),
            None => bail!(
                "there is no node registry at {} yet: a control node makes it, as the last step of its first start \
                 but one; look at that node's console, or wait with --watch",
                cluster.url()
            ),
        }
    })?;
    if json {
        print_lines(&[serde_json::to_string_pretty(&listing).context("printing the nodes")?])?;
    } else if listing == Listing::default() {
        print_lines(&["no node has registered yet".to_owned()])?;
    } else {
        print_lines(&table::lines(&listing, Timestamp::now()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a command for one node, and says what it did: as JSON, or unless it is to be `quiet`.
///
/// # Errors
/// Whatever makes it refuse or fail; what was done until then is told before.
pub fn run(command: &Command, json: bool, quiet: bool) -> Result<ExitCode> {
    let deed = match command {
        Command::Add(arguments) => add::run(arguments)?,
        Command::Readmit { name, access } => block_on(async {
            let cluster = access.cluster(Some(ANSWER)).await?;
            readmit::readmit(&cluster, name).await
        })?,
        Command::Remove { name, access, force } => block_on(async {
            let cluster = access.cluster(Some(ANSWER)).await?;
            remove::remove(&cluster, name, *force).await
        })?,
    };
    print_lines(&match (json, quiet) {
        (true, _) => vec![deed.json.to_string()],
        (false, false) => deed.lines,
        (false, true) => Vec::new(),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The registry, if the control plane keeps one.
pub(crate) async fn find(cluster: &Cluster) -> Result<Option<Listing>> {
    let found: Option<ConfigMap> = cluster.find(&cluster.of(NAMESPACE), registry::NAME).await?;
    Ok(found.map(|map| Listing::parse(&map.data.unwrap_or_default())))
}

/// Prints lines. Who closes the pipe has seen enough, which is no error.
fn print_lines(lines: &[String]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match lines.iter().try_for_each(|line| writeln!(out, "{line}")).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("writing to standard output"),
    }
}

/// Whether a Node's condition says that it is Ready.
fn is_ready(node: &k8s_openapi::api::core::v1::Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The lines of a deed, and its JSON: `{"node": NAME, "did": [LINES]}`.
fn deed(name: &NodeName, lines: Vec<String>) -> Deed {
    let json = json!({ "node": name, "did": lines });
    Deed { lines, json }
}

fn on_terminal() -> bool {
    std::io::stdout().is_terminal()
}
