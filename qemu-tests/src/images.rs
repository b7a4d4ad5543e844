//! Images as a user gets them: by running `nodezero build`, once in a process for each role, platform and
//! choice of components.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::{scenario, tools};

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// K3s server.
    Control,
    /// K3s agent.
    Worker,
    /// Outside the cluster, with a public address.
    Edge,
}

impl Role {
    /// All roles.
    pub const ALL: [Role; 3] = [Role::Control, Role::Worker, Role::Edge];

    /// As the command line and the report name it.
    pub fn name(self) -> &'static str {
        match self {
            Role::Control => "control",
            Role::Worker => "worker",
            Role::Edge => "edge",
        }
    }

    /// What machines of this role usually are.
    pub fn usual_platform(self) -> Platform {
        match self {
            Role::Control | Role::Worker => Platform::Metal,
            Role::Edge => Platform::Vps,
        }
    }
}

/// What an image runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Platform {
    /// A machine of one's own.
    Metal,
    /// A rented virtual machine.
    Vps,
}

impl Platform {
    /// As the command line names it.
    pub fn name(self) -> &'static str {
        match self {
            Platform::Metal => "metal",
            Platform::Vps => "vps",
        }
    }
}

/// A built image. It must not be written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The raw disk image.
    pub path: PathBuf,
    /// The root hash that the builder reports, in hexadecimal.
    pub root_hash: String,
}

/// Without the programs of others, which take minutes to build and which most scenarios do not run. Such an image says
/// that it is incomplete, in its name and in its manifest.
pub const BARE: &[&str] = &["k3s=none", "tailscale=none"];

/// The image of `role` for `platform`, without components: what boots, disks and configurations are shown with.
pub fn built(role: Role, platform: Platform) -> Result<Image> {
    built_with(role, platform, BARE)
}

/// The image of `role` for `platform` with all that `nodezero build` gives it, or with what `NODEZERO_COMPONENTS` says:
/// arguments of `--component`, with blanks between them.
pub fn whole(role: Role, platform: Platform) -> Result<Image> {
    let given = env::var("NODEZERO_COMPONENTS").unwrap_or_default();
    built_with(role, platform, &given.split_whitespace().collect::<Vec<_>>())
}

/// The image of `role` for `platform` with these arguments of `--component`.
pub fn built_with(role: Role, platform: Platform, components: &[&str]) -> Result<Image> {
    type Key = (Role, Platform, Vec<String>);
    static BUILT: Mutex<BTreeMap<Key, Image>> = Mutex::new(BTreeMap::new());
    let key: Key = (role, platform, components.iter().map(ToString::to_string).collect());
    // Held while building, so that the next test waits for the same build. A panic in between leaves the map whole.
    let mut images = BUILT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(image) = images.get(&key) {
        return Ok(image.clone());
    }
    let out = scenario::base()?.join("images");
    let mut command = Command::new(nodezero()?);
    command.args(["build", role.name(), "--platform", platform.name(), "--format", "raw", "--json", "--out"]).arg(&out);
    for component in components {
        command.args(["--component", component]);
    }
    let image = Image::parse(&tools::run(&mut command)?)
        .with_context(|| format!("reading what nodezero build {} answered", role.name()))?;
    images.insert(key, image.clone());
    Ok(image)
}

/// The `nodezero` command: the one that `NODEZERO` names, else the workspace's. It is the one that its own tests have
/// compiled: what takes time in it is optimised in the dev profile too, so that a release build is not worth its minutes.
pub fn nodezero() -> Result<&'static Path> {
    static COMMAND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = COMMAND.get_or_init(|| match env::var_os("NODEZERO") {
        Some(path) => Ok(path.into()),
        None => compile().map_err(|e| format!("{e:#}")),
    });
    found.as_deref().map_err(|e| anyhow::Error::msg(e.clone()))
}

fn compile() -> Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = scenario::target()?;
    let mut command = Command::new(cargo);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--quiet", "--package", "nodezero"]);
    tools::run(command.arg("--target-dir").arg(&target))?;
    let path = target.join("debug/nodezero");
    ensure!(path.exists(), "cargo built no {}", path.display());
    Ok(path)
}

impl Image {
    pub(crate) fn parse(json: &[u8]) -> Result<Image> {
        /// What `nodezero build --json` prints; other members than these do not matter here.
        #[derive(Deserialize)]
        struct Answer {
            outputs: Vec<Output>,
            root_hash: String,
        }
        #[derive(Deserialize)]
        struct Output {
            format: String,
            path: PathBuf,
        }
        let Answer { outputs, root_hash } = serde_json::from_slice(json)?;
        let raw =
            outputs.into_iter().find(|output| output.format == "raw").context("no raw image among the outputs")?;
        Ok(Image { path: raw.path, root_hash })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_the_builder() {
        let json = br#"{"role": "edge", "root_hash": "ab12", "outputs":
            [{"format": "qcow2", "path": "/o/a.qcow2"}, {"format": "raw", "path": "/o/a.raw", "size": 3}]}"#;
        let expected = Image { path: "/o/a.raw".into(), root_hash: "ab12".into() };
        assert_eq!(Image::parse(json).unwrap(), expected);
        for json in [r#"{"root_hash": "ab", "outputs": []}"#, r#"{"outputs": []}"#, ""] {
            assert!(Image::parse(json.as_bytes()).is_err(), "{json}");
        }
    }
}
