//! Programs of other projects: the user's own, else those of the tree that `nodezero tools` unpacks. How a program of
//! the tree is run is [`nodezero::tools`]' knowledge; here the tree is found, as a user finds it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The command that runs `name`: the user's own, else the tools tree's. The caller adds arguments after those that are
/// there already.
pub fn command(name: &str) -> Result<Command> {
    match nodezero::tools::own_command(name) {
        Some(command) => Ok(command),
        None => nodezero::tools::tree_command(tree()?, name),
    }
}

/// The tools tree: the one that `NODEZERO_TOOLS` names, else the one that `nodezero tools` unpacks into its cache.
pub fn tree() -> Result<&'static Path> {
    static TREE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = TREE.get_or_init(|| {
        let root = match env::var_os("NODEZERO_TOOLS") {
            Some(root) => Ok(PathBuf::from(root)),
            None => unpack(),
        };
        root.map_err(|e| format!("{e:#}"))
    });
    found.as_deref().map_err(|e| anyhow::Error::msg(e.clone()))
}

/// Runs `command` to its end and answers with its standard output. Failing names the arguments and the end of
/// standard error.
pub fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = stderr.lines().collect();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n");
        bail!("{command:?} ended with {}: {tail}", output.status)
    }
    Ok(output.stdout)
}

fn unpack() -> Result<PathBuf> {
    /// What `nodezero tools --json` prints; what else it may say is not needed here.
    #[derive(Deserialize)]
    struct Unpacked {
        root: PathBuf,
    }
    let stdout = run(Command::new(crate::images::nodezero()?).args(["tools", "--json"]))?;
    let unpacked: Unpacked = serde_json::from_slice(&stdout).context("reading the answer of nodezero tools")?;
    Ok(unpacked.root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_shows_its_arguments_and_its_last_words() {
        let error = run(Command::new("ls").arg("/no such directory")).unwrap_err().to_string();
        assert!(error.contains("/no such directory") && error.contains("No such file"), "{error}");
    }
}
