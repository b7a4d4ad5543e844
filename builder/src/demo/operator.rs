//! Whoever types commands: the demo does what an operator does, by the commands that an operator types, and says them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{API, AUTH_KEY, Arguments, CONTROL, Setting, WORKER};

/// The variable with the mesh's auth key.
const AUTH_KEY_VARIABLE: &str = "NODEZERO_DEMO_AUTH_KEY";

/// Whoever types commands.
pub(super) struct Operator<'a> {
    /// Their machine.
    pub(super) setting: &'a Setting,
    /// Their directory of profiles.
    pub(super) dir: PathBuf,
    /// Their age identity.
    pub(super) key: PathBuf,
}

impl Operator<'_> {
    /// Profiles of a cluster of two, and its secrets. `login` is the mesh's control server.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(super) fn profiles(&self, login: &str) -> Result<()> {
        let key = self.key.display().to_string();
        self.nodezero(&["cluster", "init", "--new-identity", &key], &self.dir)?;
        let write =
            |path: &Path, text: &str| fs::write(path, text).with_context(|| format!("writing {}", path.display()));
        let cluster = json!({
            "name": "demo",
            "mesh": { "loginServer": login, "authKey": { "env": AUTH_KEY_VARIABLE } },
            "k3s": { "server": CONTROL },
            "time": { "wait": 5 },
        });
        let disks = json!([{ "name": "bulk", "select": { "size": "18TB" }, "count": 2 }]);
        let profiles: [(String, Value); 3] = [
            ("cluster.yaml".to_owned(), cluster),
            // This machine is no member of the mesh, so the API's port is open to it.
            (format!("nodes/{CONTROL}.yaml"), json!({ "role": "control", "firewall": { "tcp": [API] } })),
            (format!("nodes/{WORKER}.yaml"), json!({ "role": "worker", "dataDisks": disks })),
        ];
        fs::create_dir_all(self.dir.join("nodes")).context("making a directory for profiles")?;
        profiles.iter().try_for_each(|(name, profile)| write(&self.dir.join(name), &format!("{profile:#}\n")))
    }

    /// Runs `nodezero` with these arguments and a path at the end.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub(super) fn nodezero(&self, args: &[&str], last: &Path) -> Result<()> {
        let mut command = nodezero(self.setting, &[args, &[&*last.to_string_lossy()]].concat())?;
        if self.dir.is_dir() {
            command.current_dir(&self.dir);
        }
        command.env("NODEZERO_AGE_IDENTITY", &self.key).env(AUTH_KEY_VARIABLE, AUTH_KEY);
        let output = command.output().with_context(|| format!("running {command:?}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "nodezero {} ended with {}: {}", args.join(" "), output.status, said.trim());
        Ok(())
    }
}

/// Builds the image of a role. An unchanged one takes seconds.
///
/// # Errors
/// When it cannot be built; why was said.
pub(super) fn build(arguments: &Arguments, setting: &Setting, role: &str) -> Result<PathBuf> {
    let mut command = nodezero(setting, &["build", role, "--platform", "vps", "--json"])?;
    command.arg("--out").arg(&arguments.out).stderr(Stdio::inherit());
    for component in &arguments.components {
        command.args(["--component", component]);
    }
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    ensure!(output.status.success(), "building the image of {role} ended with {}", output.status);
    let answer: Value = serde_json::from_slice(&output.stdout).context("reading what nodezero build answered")?;
    let path = answer["outputs"][0]["path"].as_str().context("nodezero build named no image")?;
    std::path::absolute(path).with_context(|| format!("finding {path}"))
}

fn nodezero(setting: &Setting, args: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("finding the running program")?);
    setting.progress.say(&format!("nodezero {}", args.join(" ")));
    command.args(&setting.options).args(args).stdin(Stdio::null());
    Ok(command)
}
