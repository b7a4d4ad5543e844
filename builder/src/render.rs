//! `nodezero render`: the Ignition config of a node, from its profile and the cluster's secrets.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use nodezero_profile::language::{self, Rendered, USER_DATA_LIMIT};
use serde_json::json;

use crate::profile;
use crate::progress::Progress;
use crate::secrets::{self, IDENTITY_VARIABLE, Resolver};

/// What to render.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The node: the name of its file in nodes/
    node: String,
    /// The directory of profiles
    #[arg(long, value_name = "DIR", env = "NODEZERO_PROFILES", default_value = ".")]
    dir: PathBuf,
    /// Where the config goes; it holds secrets, and only its owner may read it [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The age identity file that opens secrets.age
    #[arg(long, value_name = "FILE", env = IDENTITY_VARIABLE)]
    identity: Option<PathBuf>,
    /// Print the network instead, in the words of the ESP's /nodezero/network
    #[arg(long)]
    network: bool,
}

/// Runs the command.
///
/// # Errors
/// When profiles are not sound, a secret cannot be had, or the output cannot be written.
pub fn run(arguments: &Arguments, as_json: bool, progress: &Progress) -> Result<()> {
    let profiles = profile::load(&arguments.dir)?;
    if arguments.network {
        let Some(words) = language::network_words(&profiles, &arguments.node)? else {
            bail!("the profile of {} says nothing of its network: it asks by DHCP without any words", arguments.node);
        };
        return write(arguments, words.as_bytes());
    }
    let resolver = Resolver::new(&arguments.dir, arguments.identity.as_deref());
    let rendered = language::render(&profiles, &arguments.node, &resolver)
        .with_context(|| format!("rendering {}", arguments.node))?;
    if let Some(warning) = too_large(&rendered) {
        progress.warn(&warning);
    }
    if arguments.out.is_none() && std::io::stdout().is_terminal() {
        bail!("the config holds secrets: say where it goes, --out FILE, or pipe it on");
    }
    write(arguments, rendered.config.expose().as_bytes())?;
    if as_json && let Some(out) = &arguments.out {
        let bytes = rendered.config.expose().len();
        println!("{}", json!({ "node": arguments.node, "path": out, "bytes": bytes, "profile": rendered.digest }));
    }
    Ok(())
}

fn write(arguments: &Arguments, bytes: &[u8]) -> Result<()> {
    match &arguments.out {
        Some(out) => secrets::write_private(out, bytes, true),
        None => std::io::stdout().write_all(bytes).context("writing to standard output"),
    }
}

/// What is said of a config that some providers would not take.
fn too_large(rendered: &Rendered) -> Option<String> {
    let bytes = rendered.config.expose().len();
    let largest: Vec<String> =
        rendered.parts.iter().take(3).map(|part| format!("{} {} bytes", part.path, part.bytes)).collect();
    (bytes > USER_DATA_LIMIT).then(|| {
        format!(
            "the config has {bytes} bytes: more than the {USER_DATA_LIMIT} that some providers take as user data. \
             Largest: {}",
            largest.join(", ")
        )
    })
}
