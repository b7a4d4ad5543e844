//! Programs of other projects: from the user's `PATH` where it has them, else from the tree of Debian packages that
//! `images/tools.toml` names.
//!
//! The host may be any distribution, with an older C library or another one, so a program of the tree is started by
//! the tree's own dynamic loader, as `ld.so(8)` documents: `LOADER --library-path DIRS --argv0 NAME PROGRAM`. What a
//! program would look up by a path compiled into it (QEMU's firmware and modules, character sets) is given to it by
//! its own options and variables.
//!
//! Left out: programs of the tree that start other programs of the tree, and scripts.

use std::env;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// Where an ordinary user's `PATH` often does not lead, and file system tools live.
const ADMIN_DIRS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// A Debian architecture's loader and library directory, relative to the tree.
const LOADERS: [(&str, &str); 2] = [
    ("usr/lib64/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu"),
    ("usr/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1", "usr/lib/aarch64-linux-gnu"),
];

/// A tree of unpacked Debian packages, with usr-merged paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    root: PathBuf,
    loader: PathBuf,
    libraries: PathBuf,
}

impl Tree {
    /// The tree unpacked at `root`. An error if it holds no dynamic loader.
    pub fn at(root: &Path) -> Result<Tree> {
        for (loader, libraries) in LOADERS {
            let loader = root.join(loader);
            if loader.exists() {
                return Ok(Tree { root: root.to_path_buf(), loader, libraries: root.join(libraries) });
            }
        }
        bail!("no dynamic loader in the tools tree {}", root.display())
    }

    /// Where the tree is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The command that runs the tree's program `name`.
    pub fn command(&self, name: &str) -> Result<Command> {
        let Some(program) =
            ["usr/bin", "usr/sbin"].iter().map(|dir| self.root.join(dir).join(name)).find(|p| p.exists())
        else {
            bail!("no {name} in PATH, nor in the tools tree {}", self.root.display())
        };
        let mut command = Command::new(&self.loader);
        command.arg("--library-path").arg(&self.libraries).args(["--argv0", name]).arg(program);
        // Libraries of the host must not be mixed in.
        command.env_remove("LD_LIBRARY_PATH").env_remove("LD_PRELOAD");
        command.env("GCONV_PATH", self.libraries.join("gconv"));
        command.env("MKE2FS_CONFIG", self.root.join("etc/mke2fs.conf"));
        if name.starts_with("qemu-") {
            command.env("QEMU_MODULE_DIR", self.libraries.join("qemu"));
        }
        if name.starts_with("qemu-system-") {
            for dir in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(self.root.join(dir));
            }
        }
        Ok(command)
    }
}

/// The command that runs `name`: the user's own, else the tools tree's. The caller adds arguments after those that are
/// there already.
pub fn command(name: &str) -> Result<Command> {
    match in_path(name, &search_path()) {
        Some(program) => Ok(Command::new(program)),
        None => tree()?.command(name),
    }
}

/// The tools tree: the one that `NODEZERO_TOOLS` names, else the one that `nodezero tools` unpacks into its cache.
pub fn tree() -> Result<&'static Tree> {
    static TREE: OnceLock<Result<Tree, String>> = OnceLock::new();
    let found = TREE.get_or_init(|| {
        let root = match env::var_os("NODEZERO_TOOLS") {
            Some(root) => Ok(PathBuf::from(root)),
            None => unpack(),
        };
        root.and_then(|root| Tree::at(&root)).map_err(|e| format!("{e:#}"))
    });
    found.as_ref().map_err(|e| anyhow::Error::msg(e.clone()))
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

fn search_path() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).chain(ADMIN_DIRS.iter().map(PathBuf::from)).collect()
}

fn in_path(name: &str, dirs: &[PathBuf]) -> Option<PathBuf> {
    dirs.iter().filter(|dir| dir.is_absolute()).map(|dir| dir.join(name)).find(|program| {
        program.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn touch(path: &Path, mode: u32) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn path_is_searched_in_order_for_what_can_run() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
        touch(&one.join("text"), 0o644);
        touch(&two.join("text"), 0o755);
        touch(&one.join("tool"), 0o755);
        touch(&two.join("tool"), 0o755);
        fs::create_dir(one.join("folder")).unwrap();
        let dirs = [PathBuf::from("relative"), one.clone(), two.clone()];
        for (name, expected) in
            [("text", Some(two.join("text"))), ("tool", Some(one.join("tool"))), ("folder", None), ("none", None)]
        {
            assert_eq!(in_path(name, &dirs), expected, "{name}");
        }
    }

    #[test]
    fn programs_of_the_tree_run_by_its_loader() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Tree::at(dir.path()).is_err(), "a tree without a loader");
        let (loader, libraries) = LOADERS[0];
        touch(&dir.path().join(loader), 0o755);
        touch(&dir.path().join("usr/sbin/qemu-system-x86_64"), 0o755);
        let tree = Tree::at(dir.path()).unwrap();
        let error = tree.command("mcopy").unwrap_err().to_string();
        assert!(error.contains("no mcopy in PATH"), "{error}");

        let command = tree.command("qemu-system-x86_64").unwrap();
        assert_eq!(command.get_program(), dir.path().join(loader));
        let at = |path: &str| dir.path().join(path).into_os_string();
        let expected = [
            "--library-path".into(),
            at(libraries),
            "--argv0".into(),
            "qemu-system-x86_64".into(),
            at("usr/sbin/qemu-system-x86_64"),
            "-L".into(),
            at("usr/share/qemu"),
            "-L".into(),
            at("usr/share/seabios"),
        ];
        assert_eq!(command.get_args().collect::<Vec<_>>(), expected);
        let modules = command.get_envs().find(|(name, _)| *name == "QEMU_MODULE_DIR").and_then(|(_, value)| value);
        assert_eq!(modules, Some(at("usr/lib/x86_64-linux-gnu/qemu").as_os_str()));
    }

    #[test]
    fn a_failing_command_shows_its_arguments_and_its_last_words() {
        let error = run(Command::new("ls").arg("/no such directory")).unwrap_err().to_string();
        assert!(error.contains("/no such directory") && error.contains("No such file"), "{error}");
    }
}
