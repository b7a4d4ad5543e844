//! `nodezero profile`: profiles checked, and what one would do to a machine. The decisions are those of the node itself:
//! the same functions of `nodezero-profile`, over what `nodezero-firstboot inventory --json` printed there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::{Subcommand, ValueEnum};
use nodezero_profile::data_disks::{Plan, plan};
use nodezero_profile::inventory::Inventory;
use nodezero_profile::language::{self, CLUSTER_FILE, Finding, NODES, Profiles, Source, Sources};
use nodezero_profile::node::Node;
use serde_json::{Value, json};

use crate::progress::Progress;
use crate::render;

/// The largest file that is read, in bytes.
const LIMIT: u64 = 32 << 20;

/// What to do with a profile.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tell everything that is wrong with a directory of profiles, with file, line, column and a hint; warnings are no
    /// failure
    Check {
        /// The directory: cluster.yaml and nodes/NAME.yaml
        #[arg(env = "NODEZERO_PROFILES", default_value = ".")]
        dir: PathBuf,
    },
    /// Print the Ignition config of a node: the same as `nodezero render`
    Render(render::Arguments),
    /// Print the JSON Schema of profiles, for editors
    Schema {
        /// cluster for cluster.yaml, node for nodes/NAME.yaml
        #[arg(default_value = "node")]
        of: Schema,
    },
    /// Show what a node would do with each disk of a machine, and why; nothing is changed
    Plan {
        /// The machine's inventory: what `nodezero-firstboot inventory --json` printed there
        #[arg(long, value_name = "FILE")]
        inventory: PathBuf,
        /// The node's profile: nodes/NAME.yaml beside its cluster.yaml, or a rendered node.json
        profile: PathBuf,
    },
}

/// A document of profiles.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Schema {
    /// `cluster.yaml`.
    Cluster,
    /// `nodes/NAME.yaml`.
    Node,
}

/// Runs the command. The exit code tells whether profiles are sound, or a plan can be carried out.
///
/// # Errors
/// When a file cannot be read or is not of its form.
pub fn run(command: &Command, json: bool, progress: &Progress) -> Result<ExitCode> {
    match command {
        Command::Check { dir } => return check(dir, json, progress),
        Command::Render(arguments) => render::run(arguments, json, progress)?,
        Command::Schema { of } => print!("{}", schema_text(*of)?),
        Command::Plan { inventory, profile } => return plan_disks(inventory, profile, json),
    }
    Ok(ExitCode::SUCCESS)
}

/// The text of a schema.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn schema_text(of: Schema) -> Result<String> {
    let schema = match of {
        Schema::Cluster => language::schema::cluster(),
        Schema::Node => language::schema::node(),
    };
    Ok(serde_json::to_string_pretty(&schema).context("printing the schema")? + "\n")
}

/// Reads and checks a directory of profiles.
///
/// # Errors
/// When a file cannot be read; else everything that is wrong, a line each.
pub fn load(dir: &Path) -> Result<Profiles> {
    parse(dir)?.map_err(|findings| {
        let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
        anyhow!("the profiles in {} are not sound:\n{}", dir.display(), lines.join("\n"))
    })
}

fn check(dir: &Path, json: bool, progress: &Progress) -> Result<ExitCode> {
    let result = parse(dir)?;
    let (findings, warnings, nodes) = match &result {
        Ok(profiles) => (&[][..], profiles.warnings(), profiles.nodes().count()),
        Err(findings) => (findings.as_slice(), &[][..], 0),
    };
    if json {
        let report = json!({ "sound": findings.is_empty(), "findings": findings, "warnings": warnings });
        println!("{}", serde_json::to_string_pretty(&report).context("printing the findings")?);
    } else if let Ok(profiles) = &result {
        warnings.iter().for_each(|warning| progress.warn(&warning.to_string()));
        println!("{}: the cluster {} with {nodes} nodes is sound", dir.display(), profiles.cluster());
    } else {
        findings.iter().for_each(|finding| println!("{finding}"));
        println!("{} problems", findings.len());
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn parse(dir: &Path) -> Result<Result<Profiles, Vec<Finding>>> {
    let cluster = dir.join(CLUSTER_FILE);
    ensure!(cluster.exists(), "{} is missing: nodezero cluster init {} makes it", cluster.display(), dir.display());
    let source = |path: &Path| {
        let text = String::from_utf8(read(path)?).with_context(|| format!("{} is not UTF-8", path.display()))?;
        anyhow::Ok(Source { path: path.strip_prefix("./").unwrap_or(path).display().to_string(), text })
    };
    let read_other = |path: &str| {
        let bytes = read(&dir.join(path)).map_err(|error| format!("{:#}", error.root_cause()))?;
        String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())
    };
    let nodes = node_files(dir)?.iter().map(|path| source(path)).collect::<Result<Vec<Source>>>()?;
    Ok(Profiles::parse(&Sources { cluster: source(&cluster)?, nodes, read: &read_other }))
}

/// The files of nodes, sorted. What begins with a dot or ends in `~` is an editor's.
fn node_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let nodes = dir.join(NODES);
    let context = || format!("reading {}", nodes.display());
    let entries = match fs::read_dir(&nodes) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(context),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.with_context(context)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with('.') && (name.ends_with(".yaml") || name.ends_with(".yml")) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The node of a file: a profile in YAML beside its cluster, or `node.json`.
fn node_of(profile: &Path) -> Result<Node> {
    let is_yaml = profile.extension().is_some_and(|suffix| suffix == "yaml" || suffix == "yml");
    if !is_yaml {
        return Node::parse(&read(profile)?).with_context(|| format!("reading {}", profile.display()));
    }
    let dir = profile.parent().and_then(Path::parent).filter(|dir| !dir.as_os_str().is_empty());
    let profiles = load(dir.unwrap_or_else(|| Path::new(".")))?;
    let name = profile.file_stem().unwrap_or_default().to_string_lossy();
    let node = profiles.nodes().find(|node| *node.name == *name).cloned();
    node.with_context(|| format!("{} is not in nodes/ beside {CLUSTER_FILE}", profile.display()))
}

fn plan_disks(inventory: &Path, profile: &Path, json: bool) -> Result<ExitCode> {
    let node = node_of(profile)?;
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
    let missing: Vec<String> = plan.missing.iter().map(ToString::to_string).collect();
    json!({ "sound": plan.is_sound(), "disks": disks, "missing": missing, "errors": plan.errors })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let size = fs::metadata(path).with_context(|| format!("reading {}", path.display()))?.len();
    anyhow::ensure!(size <= LIMIT, "{} has {size} bytes, the limit is {LIMIT}", path.display());
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}
