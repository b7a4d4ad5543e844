//! The `nodezero` command's arguments and what each of its commands does.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use nodezero_profile::Role;
use serde_json::json;

use crate::build;
use crate::cache::Cache;
use crate::component;
use crate::fetch::Fetcher;
use crate::lock::{self, Lock};
use crate::mirror::Mirrors;
use crate::output::Format;
use crate::progress::{Progress, Size};
use crate::recipe::{self, Platform};
use crate::{boot, cluster, demo, inspect, nodes, profile, render, tools};

/// NodeZero: builds the images of your cloud's machines, describes the machines, and looks after them.
#[derive(Debug, Parser)]
#[command(name = "nodezero", version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Options of all commands")]
struct Common {
    /// Directory of recipes and lock [default: the nearest images/ above here or above the program]
    #[arg(long, global = true, value_name = "DIR", env = "NODEZERO_IMAGES")]
    images: Option<PathBuf>,
    /// Cache of downloads and packed packages [default: $NODEZERO_CACHE, else ~/.cache/nodezero]
    #[arg(long, global = true, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Debian mirror, an address that ends in /debian [default: that of the host's apt, then the snapshot archive]
    #[arg(long, global = true, value_name = "URL", env = "NODEZERO_DEBIAN_MIRROR")]
    mirror: Option<String>,
    /// Print JSON on standard output instead of text, where a command has an answer for programs
    #[arg(long, global = true)]
    json: bool,
    /// Say nothing but warnings and errors
    #[arg(long, short, global = true)]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the image of a role
    Build(BuildArgs),
    /// Resolve all recipes anew against Debian's signed indexes, and show what changes
    Lock {
        /// Show what would change and write nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Print what a build of a role would be made of, as JSON
    Plan {
        /// control, worker or edge
        role: String,
        /// metal or vps [default: the role's own]
        #[arg(long)]
        platform: Option<Platform>,
    },
    /// Show what is in an image, and verify its hash tree
    Inspect {
        /// The image: raw, raw.zst or raw.gz
        image: PathBuf,
        /// List all files of the root file system too
        #[arg(long)]
        files: bool,
    },
    /// Boot an image in QEMU with its console in the terminal; the image itself is not changed
    Boot(boot::Arguments),
    /// Check profiles, and show what they would do
    #[command(subcommand)]
    Profile(profile::Command),
    /// Print the Ignition config of a node; it holds the node's secrets
    Render(render::Arguments),
    /// Begin a cluster
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Add secrets that profiles refer to, and list them
    #[command(subcommand)]
    Secret(cluster::SecretCommand),
    /// Make an operator's kubeconfig from the cluster's own authority
    Kubeconfig(cluster::Kubeconfig),
    /// Show the cluster's nodes as the control plane knows them
    Nodes(nodes::List),
    /// Add a node, let one join again, or take one out
    #[command(subcommand)]
    Node(nodes::Command),
    /// Try it: a control node and a worker in QEMU on this machine, until Ctrl-C
    Demo(demo::Arguments),
    /// Run a program that ends with the process that asked for it
    #[command(hide = true)]
    Guarded(demo::guard::Arguments),
    /// Unpack the programs that tests and `boot` use, such as QEMU, into the cache
    Tools,
}

#[derive(Debug, Args)]
struct BuildArgs {
    /// control, worker or edge
    role: String,
    /// metal or vps: it chooses kernel, firmware and loaders [default: the role's own]
    #[arg(long)]
    platform: Option<Platform>,
    /// Output format; may be repeated
    #[arg(long = "format", value_name = "FORMAT", default_value = "raw")]
    formats: Vec<Format>,
    /// Where the image goes
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Use nothing but the cache
    #[arg(long)]
    offline: bool,
    /// Fail when a pinned package is gone from all sources, instead of taking its successor
    #[arg(long)]
    locked: bool,
    /// Where a component comes from: release, go, standin, none, or a file or directory; may be repeated
    #[arg(long = "component", value_name = "NAME=WHAT", value_parser = component::parse_choice)]
    components: Vec<(String, component::Choice)>,
    /// Fail rather than take a stand-in for a component that cannot be had
    #[arg(long)]
    official_only: bool,
    /// The nodezero-firstboot binary [default: built from the workspace]
    #[arg(long, value_name = "PATH")]
    firstboot: Option<PathBuf>,
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// Whatever makes it fail, as a chain of contexts.
    pub fn run(self) -> Result<ExitCode> {
        let Self { common, command } = self;
        let progress = Progress::new(common.quiet);
        match command {
            Command::Build(args) => run_build(&common, args, &progress)?,
            Command::Lock { dry_run } => run_lock(&common, dry_run, &progress)?,
            Command::Plan { role, platform } => {
                let images = recipe::find_images(common.images.as_deref())?;
                let role = parse_role(&images, &role)?;
                let plan = build::plan_only(&images, role, platform)?;
                println!("{}", serde_json::to_string_pretty(&plan).context("printing the plan")?);
            }
            Command::Inspect { image, files } => {
                let report = inspect::inspect(&image)?;
                if common.json {
                    println!(
                        "{}",
                        serde_json::to_string_pretty(&report.to_json(files)).context("printing the report")?
                    );
                } else {
                    print!("{}", report.to_text(files));
                }
                if !report.is_sound() {
                    return Ok(ExitCode::FAILURE);
                }
            }
            Command::Boot(args) => return boot::run(&args, &tools_of(&common, &progress)?, &progress),
            Command::Profile(command) => return profile::run(&command, common.json, &progress),
            Command::Render(arguments) => render::run(&arguments, common.json, &progress)?,
            Command::Cluster(command) => cluster::run(&command, &progress)?,
            Command::Secret(command) => cluster::run_secret(&command)?,
            Command::Kubeconfig(arguments) => cluster::kubeconfig(&arguments, &progress)?,
            Command::Nodes(args) => return nodes::list(&args, common.json),
            Command::Node(command) => return nodes::run(&command, common.json, common.quiet),
            Command::Demo(args) => return demo::run(&args, &setting_of(&common, &progress)?),
            Command::Guarded(args) => demo::guard::run(&args)?,
            Command::Tools => {
                let root = tools_of(&common, &progress)?.root()?;
                if common.json {
                    println!("{}", json!({"root": root}));
                } else {
                    println!("{}", root.display());
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn parse_role(images: &std::path::Path, word: &str) -> Result<Role> {
    word.parse().map_err(|_| recipe::unknown_role(images, word).into())
}

fn tools_of(common: &Common, progress: &Progress) -> Result<tools::Tools> {
    Ok(tools::Tools::new(
        common.images.clone(),
        Cache::open(common.cache.as_deref())?,
        common.mirror.clone(),
        progress.clone(),
    ))
}

/// What the demo needs of the common arguments, for itself and for the commands that it runs.
fn setting_of(common: &Common, progress: &Progress) -> Result<demo::Setting> {
    let paths = [("--images", &common.images), ("--cache", &common.cache)];
    let given = paths.into_iter().filter_map(|(name, path)| Some((name, path.as_ref()?)));
    // Those commands run in another directory.
    let given = given.map(|(name, path)| (name, std::path::absolute(path).unwrap_or_else(|_| path.clone()).into()));
    let mirror = common.mirror.iter().map(|mirror| ("--mirror", OsString::from(mirror)));
    let options = given.chain(mirror).flat_map(|(name, value)| [OsString::from(name), value]).collect();
    Ok(demo::Setting {
        options,
        images: common.images.clone(),
        cache: Cache::open(common.cache.as_deref())?,
        tools: tools_of(common, progress)?,
        progress: progress.clone(),
    })
}

fn run_build(common: &Common, args: BuildArgs, progress: &Progress) -> Result<()> {
    let images = recipe::find_images(common.images.as_deref())?;
    let role = parse_role(&images, &args.role)?;
    let built = build::build(
        &build::Options {
            images,
            role,
            platform: args.platform,
            formats: args.formats,
            out: args.out,
            firstboot: args.firstboot,
            offline: args.offline,
            locked: args.locked,
            mirror: common.mirror.clone(),
            components: args.components.into_iter().collect(),
            official_only: args.official_only,
            cache: Cache::open(common.cache.as_deref())?,
        },
        progress,
    )?;
    if common.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&built.to_json(&progress.stages())).context("printing the result")?
        );
        return Ok(());
    }
    if common.quiet {
        return Ok(());
    }
    print_built(&built, progress);
    Ok(())
}

fn print_built(built: &build::Built, progress: &Progress) {
    for stage in progress.stages() {
        println!(
            "{:>8.2} s  {}",
            f64::from(u32::try_from(stage.milliseconds).unwrap_or(u32::MAX)) / 1000.0,
            stage.stage
        );
    }
    println!("{} {}", built.manifest.image.name, built.manifest.image.version);
    for component in &built.manifest.image.components {
        println!("component  {component}");
    }
    for name in &built.manifest.image.missing {
        println!("component  {name}: none, as --component says");
    }
    println!("root hash  {}", built.manifest.root_hash);
    let sizes = &built.manifest.sizes;
    println!("root       {}, initrd {}, UKI {}", Size(sizes.root), Size(sizes.initrd), Size(sizes.uki));
    for output in &built.outputs {
        println!(
            "{:<10} {} ({}, {} on disk)",
            output.format.name(),
            output.path.display(),
            Size(output.size),
            Size(output.on_disk)
        );
    }
}

fn run_lock(common: &Common, dry_run: bool, progress: &Progress) -> Result<()> {
    let images = recipe::find_images(common.images.as_deref())?;
    let fetcher = Fetcher::new(Cache::open(common.cache.as_deref())?, false);
    let mirrors = Mirrors::new(common.mirror.as_deref(), std::path::Path::new("/etc/apt"), None);
    let old = Lock::path(&images).exists().then(|| Lock::read(&images)).transpose();
    let old = old.unwrap_or_else(|error| {
        progress.warn(&format!("the present lock cannot be read and is replaced: {error:#}"));
        None
    });
    let indexes =
        progress.stage("indexes", || lock::fetch_indexes(&images, &fetcher, &mirrors, lock::unix_now()?, progress))?;
    let mut new = progress.stage("resolve", || indexes.lock(&images))?;
    let pinned = old.as_ref().map(|lock| lock.components.as_slice()).unwrap_or_default();
    new.components = progress.stage("components", || component::pin::pin_all(&images, pinned, &fetcher, progress))?;
    let changes = new.changes_since(old.as_ref());
    let is_new = old.as_ref() != Some(&new);
    if !dry_run && is_new {
        new.write(&images)?;
    }
    if common.json {
        println!(
            "{}",
            json!({"timestamp": new.timestamp, "packages": new.packages.len(), "changes": changes, "written": !dry_run && is_new})
        );
        return Ok(());
    }
    for line in &changes {
        println!("{line}");
    }
    let verb = if dry_run { "would be pinned" } else { "pinned" };
    println!("{} packages {verb} as of {}, {} changed", new.packages.len(), new.timestamp, changes.len());
    Ok(())
}
