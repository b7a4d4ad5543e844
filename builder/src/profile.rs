//! `nodezero profile`: what a profile would do, on the operator's side. The decisions are those of the node itself: the
//! same functions of `nodezero-profile`, over what `nodezero-firstboot inventory --json` printed there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use nodezero_profile::data_disks::{Plan, plan};
use nodezero_profile::inventory::Inventory;
use nodezero_profile::node::Node;
use serde_json::{Value, json};

/// The largest file that is read, in bytes.
const LIMIT: u64 = 32 << 20;

/// What to do with a profile.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what a node would do with each disk of a machine, and why; nothing is changed
    Plan {
        /// The machine's inventory: what `nodezero-firstboot inventory --json` printed there
        #[arg(long, value_name = "FILE")]
        inventory: PathBuf,
        /// The node's profile: node.json
        profile: PathBuf,
    },
}

/// Runs the command. The exit code tells whether the plan can be carried out.
///
/// # Errors
/// When a file cannot be read or is not of its form.
pub fn run(command: &Command, json: bool) -> Result<ExitCode> {
    let Command::Plan { inventory, profile } = command;
    let node = Node::parse(&read(profile)?).with_context(|| format!("reading {}", profile.display()))?;
    let machine = Inventory::parse(&read(inventory)?).with_context(|| format!("reading {}", inventory.display()))?;
    let plan = plan(&node, &machine, &machine.consents);
    if json {
        println!("{}", serde_json::to_string_pretty(&to_json(&plan)).context("printing the plan")?);
    } else {
        println!("{plan}");
    }
    Ok(if plan.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn to_json(plan: &Plan) -> Value {
    let disks: Vec<Value> = plan
        .disks
        .iter()
        .map(|planned| {
            let (disk, verdict) = (&planned.disk, &planned.verdict);
            json!({
                "disk": disk.path, "serial": disk.serial, "wwn": disk.wwn,
                "verdict": verdict.word(), "reason": verdict.reason(),
            })
        })
        .collect();
    json!({ "sound": plan.is_sound(), "disks": disks, "errors": plan.errors })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let size = fs::metadata(path).with_context(|| format!("reading {}", path.display()))?.len();
    anyhow::ensure!(size <= LIMIT, "{} has {size} bytes, the limit is {LIMIT}", path.display());
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}
