//! The step `identity`: host name, machine-id, and the accounts that the image brings.
//!
//! The first stage makes the machine-id and keeps it on `state`; here it is checked that `/etc/machine-id` is that one
//! still, whatever a configuration wrote. The host name of node.json goes to the kernel and to `/etc/hostname`; without
//! one both stay. Authorized keys are files of the configuration, and none of this step's.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fd::OwnedFd;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::accounts::Missing;
use super::journal::Journal;
use super::step::{Check, Step};
use crate::files::write_atomically;
use crate::machine_id::MachineId;
use crate::summary::{Failure, OrFail};

/// The kernel's own host name, as this step uses it.
pub(crate) trait HostName {
    /// The name as it is.
    fn read(&self) -> String;

    /// Sets it.
    ///
    /// # Errors
    /// What the kernel answers.
    fn set(&self, name: &str) -> std::io::Result<()>;
}

/// The running kernel's.
#[derive(Debug)]
pub(crate) struct Kernel;

impl HostName for Kernel {
    fn read(&self) -> String {
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    }

    fn set(&self, name: &str) -> std::io::Result<()> {
        Ok(rustix::system::sethostname(name.as_bytes())?)
    }
}

/// See the module.
pub(crate) struct Identity {
    /// The name of node.json.
    pub(crate) name: Option<String>,
    /// The machine-id that the first stage kept.
    pub(crate) machine_id: MachineId,
    /// The node's `/etc`.
    pub(crate) etc: PathBuf,
    /// The image's.
    pub(crate) image: ImageEtc,
    /// The kernel's host name.
    pub(crate) kernel: Box<dyn HostName>,
    /// Accounts whose ids are not the image's.
    pub(crate) differing: Vec<String>,
}

/// Where the image's own `/etc` is.
#[derive(Debug)]
pub(crate) enum ImageEtc {
    /// Below the overlay of the running system.
    BelowOverlay,
    /// In this directory.
    #[cfg(test)]
    At(PathBuf),
}

impl ImageEtc {
    /// Calls `work` with the directory.
    fn with<T>(&self, work: impl FnOnce(&Path) -> anyhow::Result<T>) -> anyhow::Result<T> {
        match self {
            Self::BelowOverlay => {
                // A copy of the mount of / without those upon it, which no path leads to and which ends with this.
                let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
                let root: OwnedFd =
                    open_tree(rustix::fs::CWD, "/", flags).context("opening the image's root below /etc")?;
                let number = std::os::fd::AsRawFd::as_raw_fd(&root);
                work(&PathBuf::from(format!("/proc/self/fd/{number}/etc")))
            }
            #[cfg(test)]
            Self::At(path) => work(path),
        }
    }
}

/// What is not as it shall be.
#[derive(Debug, Default)]
struct Wrong {
    host_name: bool,
    machine_id: Option<String>,
    accounts: Missing,
}

impl Wrong {
    /// One line for each.
    fn lines(&self, name: Option<&str>) -> Vec<String> {
        let mut lines = Vec::new();
        if let (true, Some(name)) = (self.host_name, name) {
            lines.push(format!("host name becomes {name}"));
        }
        if let Some(found) = &self.machine_id {
            lines.push(format!("/etc/machine-id was {found:?} and becomes this node's again"));
        }
        if !self.accounts.is_empty() {
            lines.push(format!("accounts of the image are added: {}", self.accounts.names().join(", ")));
        }
        lines
    }
}

impl Identity {
    fn compare(&self) -> anyhow::Result<Wrong> {
        let machine_id = read(&self.etc.join("machine-id"))?;
        let host_name = match &self.name {
            Some(name) => self.kernel.read() != *name || read(&self.etc.join("hostname"))?.trim() != name,
            None => false,
        };
        Ok(Wrong {
            host_name,
            machine_id: (machine_id.trim_end() != self.machine_id.to_string())
                .then(|| machine_id.trim().chars().take(40).collect()),
            accounts: self.image.with(|image| Missing::find(image, &self.etc))?,
        })
    }

    fn make_right(&self) -> anyhow::Result<()> {
        let wrong = self.compare()?;
        if let (true, Some(name)) = (wrong.host_name, &self.name) {
            write_atomically(&self.etc.join("hostname"), format!("{name}\n").as_bytes(), 0o644)?;
            self.kernel.set(name).with_context(|| format!("setting the host name {name}"))?;
        }
        if wrong.machine_id.is_some() {
            self.machine_id.install(&self.etc.join("machine-id"))?;
        }
        if !wrong.accounts.is_empty() {
            self.image.with(|image| wrong.accounts.add(image, &self.etc))?;
        }
        Ok(())
    }

    fn result(&self) -> String {
        format!("host name {}, machine-id {}", self.kernel.read(), self.machine_id)
    }
}

impl Step for Identity {
    fn name(&self) -> &'static str {
        "identity"
    }

    fn check(&mut self, _journal: &Journal) -> Result<Check, Failure> {
        let wrong = self.compare().or_fail(
            "the node's identity cannot be compared with what it shall be",
            "read the reason; where an id is taken, give that account another one in the configuration",
        )?;
        self.differing.clone_from(&wrong.accounts.differing);
        let lines = wrong.lines(self.name.as_deref());
        Ok(if lines.is_empty() { Check::Done(self.result()) } else { Check::Needed(lines.join("; ")) })
    }

    fn apply(&mut self, _journal: &mut Journal, progress: &mut dyn FnMut(&str)) -> Result<(), Failure> {
        let what = "the node's identity cannot be written";
        let remedy = "look whether `state` is full or its disk fails";
        let wrong = self.compare().or_fail(what, remedy).map_err(Failure::retrying)?;
        if wrong.machine_id.is_some() {
            progress("another machine-id was in /etc/machine-id; programs that have read it keep it until a restart");
        }
        self.make_right().or_fail(what, remedy).map_err(Failure::retrying)
    }

    fn verify(&mut self, _journal: &Journal) -> Result<String, Failure> {
        let what = "the node's identity is not what it was just made";
        let wrong = self.compare().or_fail(what, "look for what else writes to /etc")?;
        let lines = wrong.lines(self.name.as_deref());
        if lines.is_empty() {
            Ok(self.result())
        } else {
            Err(Failure::new(what, lines.join("; "), "look for what else writes to /etc").retrying())
        }
    }

    fn warnings(&self) -> Vec<String> {
        self.differing.iter().map(|line| format!("{line}; files of one image have another owner here")).collect()
    }
}

/// A small file's text; empty where it is not there.
fn read(path: &Path) -> anyhow::Result<String> {
    match fs::read(path) {
        Ok(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    struct Fake(Rc<RefCell<String>>);

    impl HostName for Fake {
        fn read(&self) -> String {
            self.0.borrow().clone()
        }

        fn set(&self, name: &str) -> std::io::Result<()> {
            *self.0.borrow_mut() = name.to_owned();
            Ok(())
        }
    }

    const ID: &str = "0123456789abcdef0123456789abcdef";

    /// A node whose /etc has these files, with the kernel's name beside it.
    fn node(name: Option<&str>, files: &[(&str, &str)]) -> (tempfile::TempDir, Identity, Rc<RefCell<String>>) {
        let root = tempfile::tempdir().expect("tempdir");
        for directory in ["etc", "image", "journal"] {
            fs::create_dir(root.path().join(directory)).expect("made");
        }
        fs::write(root.path().join("image/group"), "root:x:0:\n").expect("written");
        for (path, content) in [("group", "root:x:0:\n"), ("machine-id", ID)].iter().chain(files) {
            fs::write(root.path().join("etc").join(path), content).expect("written");
        }
        let kernel = Rc::new(RefCell::new("localhost".to_owned()));
        let identity = Identity {
            name: name.map(str::to_owned),
            machine_id: MachineId::parse(ID).expect("valid"),
            etc: root.path().join("etc"),
            image: ImageEtc::At(root.path().join("image")),
            kernel: Box::new(Fake(Rc::clone(&kernel))),
            differing: Vec::new(),
        };
        (root, identity, kernel)
    }

    #[test]
    fn a_node_becomes_what_it_shall_be_once() {
        let done = |name: &str| Check::Done(format!("host name {name}, machine-id {ID}"));
        for (case, name, files, needed, host) in [
            ("nothing is asked", None, vec![("hostname", "old\n")], None, "localhost"),
            ("no name yet", Some("toronto-0002"), vec![], Some("host name becomes toronto-0002"), "toronto-0002"),
            ("another name", Some("n"), vec![("hostname", "old\n")], Some("host name becomes n"), "n"),
            ("another id", None, vec![("machine-id", "ffff\n")], Some("/etc/machine-id was \"ffff\""), "localhost"),
            ("no id", None, vec![("machine-id", "")], Some("/etc/machine-id was \"\""), "localhost"),
            (
                "older accounts",
                None,
                vec![("group", "mine:x:1000:\n")],
                Some("accounts of the image are added: root"),
                "localhost",
            ),
        ] {
            let (root, mut identity, kernel) = node(name, &files);
            let mut journal = Journal::open(&root.path().join("journal"), "a").expect("opened");
            match (identity.check(&journal).expect(case), needed) {
                (Check::Needed(found), Some(needed)) => assert!(found.starts_with(needed), "{case}: {found}"),
                (found, needed) => assert_eq!((found, needed), (done(host), None), "{case}"),
            }
            let verified = identity.verify(&journal);
            assert_eq!(verified.is_ok(), needed.is_none(), "{case}: not verified before it is applied");
            identity.apply(&mut journal, &mut |_| ()).expect(case);
            identity.verify(&journal).expect(case);
            assert_eq!(identity.check(&journal).expect(case), done(host), "{case}");
            assert_eq!(*kernel.borrow(), host, "{case}");
            let id = fs::read_to_string(root.path().join("etc/machine-id")).expect("there");
            assert_eq!(id.trim_end(), ID, "{case}");
        }
    }

    #[test]
    fn ids_of_accounts_are_compared() {
        let (root, mut identity, _) = node(None, &[("group", "root:x:0:\nnew:x:5:\n")]);
        fs::write(root.path().join("image/group"), "root:x:0:\nnew:x:6:\n").expect("written");
        let journal = Journal::open(&root.path().join("journal"), "a").expect("opened");
        identity.check(&journal).expect("no reason to stop");
        assert_eq!(identity.warnings().len(), 1);
        fs::write(root.path().join("image/group"), "other:x:5:\n").expect("written");
        let failure = identity.check(&journal).expect_err("an id is taken");
        assert!(failure.why().contains("the image's other has id 5, which new has on this node"), "{failure}");
        assert!(!failure.is_retried());
    }

    #[test]
    fn the_image_below_a_mount_is_reached() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: opening a mount below others needs root");
            return;
        }
        let found = ImageEtc::BelowOverlay.with(|etc| Ok(fs::read_dir(etc)?.count()));
        match found {
            Ok(count) => assert!(count > 0),
            // A container may forbid it; a node does not.
            Err(error) => eprintln!("skipped: {error:#}"),
        }
    }
}
