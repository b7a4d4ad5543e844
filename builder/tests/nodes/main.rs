//! `nodezero nodes` and `nodezero node` as an operator runs them, against an API on the loopback that a thread serves.
//! Needs no root, no network and no VM.

mod add;
mod api;
mod list;
#[path = "../loopback/mod.rs"]
mod loopback;
mod readmit;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use nodezero::secrets::Store;
use tempfile::TempDir;

use crate::api::FakeApi;

/// An operator's machine: a home with a kubeconfig, profiles, and a cluster.
#[derive(Debug)]
pub(crate) struct Operator {
    dir: TempDir,
    pub(crate) api: FakeApi,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Operator {
    pub(crate) fn new() -> Self {
        let operator = Self { dir: tempfile::tempdir().expect("a temporary directory"), api: FakeApi::start() };
        fs::create_dir_all(operator.path("home/.kube")).expect("the directory is new");
        fs::write(operator.path("home/.kube/config"), operator.api.kubeconfig()).expect("it can be written");
        fs::create_dir(operator.path("profiles")).expect("the directory is new");
        operator
    }

    /// One who has begun a cluster.
    pub(crate) fn with_profiles() -> Self {
        let operator = Self::new();
        operator.run(&["cluster", "init", ".", "--new-identity", "../key"]).succeeds(&[]);
        operator
    }

    /// An entry of the secrets.
    pub(crate) fn secret(&self, name: &str) -> Option<String> {
        let store = Store::open(&self.path("profiles"), Some(&self.path("key"))).expect("the store can be opened");
        store.get(name).map(|secret| secret.expose().to_owned())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nodezero"));
        command.env_clear().env("HOME", self.path("home")).env("NODEZERO_AGE_IDENTITY", self.path("key"));
        command.current_dir(self.path("profiles")).args(args);
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Outcome {
        run(&mut self.command(args))
    }
}

pub(crate) fn run(command: &mut Command) -> Outcome {
    let Output { status, stdout, stderr } = command.output().expect("the command can be started");
    let text = |bytes| String::from_utf8(bytes).expect("messages are UTF-8");
    Outcome { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

impl Outcome {
    #[track_caller]
    pub(crate) fn succeeds(self, parts: &[&str]) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        for part in parts {
            assert!(self.stdout.contains(part), "{part:?} is not in {self:#?}");
        }
        self
    }

    /// Asserts that it failed with one error that says all of `parts`, and did not say more.
    #[track_caller]
    pub(crate) fn fails_with(self, parts: &[&str]) -> Self {
        assert_eq!((self.code, self.stdout.as_str()), (Some(1), ""), "{self:#?}");
        assert_eq!(self.stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{self:#?}");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in {self:#?}");
        }
        self
    }
}
