//! The step `root`: the whole root file system is read once in each boot, before the boot is marked good.

use std::path::PathBuf;

use super::journal::Journal;
use super::scrub;
use super::step::{Check, Step};
use crate::summary::{Failure, OrFail};

/// See the module.
#[derive(Debug)]
pub(crate) struct Root {
    /// The verified device.
    pub(crate) device: PathBuf,
    /// How many bytes were read and found intact, once they were.
    pub(crate) verified: Option<u64>,
}

impl Root {
    fn result(bytes: u64) -> String {
        format!("verified, {bytes} bytes")
    }
}

impl Step for Root {
    fn name(&self) -> &'static str {
        "root"
    }

    fn check(&mut self, _journal: &Journal) -> Result<Check, Failure> {
        Ok(match self.verified {
            Some(bytes) => Check::Done(Self::result(bytes)),
            None => Check::Needed(format!("{} is to be read as a whole", self.device.display())),
        })
    }

    fn apply(&mut self, _journal: &mut Journal, progress: &mut dyn FnMut(&str)) -> Result<(), Failure> {
        // Should the kernel stop now, this line and the kernel's own tell why.
        progress("verification begins; a corrupted block stops this machine");
        let remedy = "write the image to this disk again; `state` is kept when only the slot is written";
        self.verified = Some(scrub::read_all(&self.device).or_fail("the root file system is corrupted", remedy)?);
        Ok(())
    }

    fn verify(&mut self, _journal: &Journal) -> Result<String, Failure> {
        match self.verified {
            Some(bytes) => Ok(Self::result(bytes)),
            None => Err(Failure::new("the root file system is not verified", "it was not read", "restart")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_read_once() {
        let directory = tempfile::tempdir().expect("tempdir");
        let mut journal = Journal::open(directory.path(), "a").expect("opened");
        let device = directory.path().join("root");
        std::fs::write(&device, [1; 5000]).expect("written");
        let mut root = Root { device: device.clone(), verified: None };
        assert!(matches!(root.check(&journal), Ok(Check::Needed(_))));
        assert!(root.verify(&journal).is_err());
        root.apply(&mut journal, &mut |_| ()).expect("read");
        assert_eq!(root.verify(&journal).expect("read"), "verified, 5000 bytes");
        assert_eq!(root.check(&journal).expect("read"), Check::Done("verified, 5000 bytes".into()));
        let mut broken = Root { device: directory.path().to_owned(), verified: None };
        let failure = broken.apply(&mut journal, &mut |_| ()).expect_err("a directory cannot be read");
        assert!(!failure.is_retried(), "{failure}");
    }
}
