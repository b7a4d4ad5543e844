//! SSH keys of users.
//!
//! They go into a home directory, where links may lie that the user made. So they are written as that user would:
//! by a thread with the user's identity, and the kernel decides what the user may do.

use std::path::Path;
use std::thread;

use anyhow::{Context, ensure};
use rustix::process::{Gid, Uid, geteuid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::tree::{Attributes, Owner};
use super::{Site, accounts};

/// Decides between the two files: `true`, `false`, `1` or `0`.
pub(super) const VARIABLE: &str = "IGNITION_WRITE_AUTHORIZED_KEYS_FRAGMENT";

/// Mode of the file.
const FILE_MODE: u32 = 0o600;

/// Mode of directories that are made for it.
const DIRECTORY_MODE: u32 = 0o700;

/// Which file the keys go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    /// A file of Ignition's own, beside those of others, for an SSH server that is told to read it.
    Fragment,
    /// The file that every SSH server reads. What it held is replaced.
    Whole,
}

impl Destination {
    /// Reads the variable's value; unset and empty mean a fragment.
    ///
    /// # Errors
    /// On any other word.
    pub(super) fn parse(value: Option<&str>) -> anyhow::Result<Self> {
        match value {
            None | Some("" | "true" | "1") => Ok(Self::Fragment),
            Some("false" | "0") => Ok(Self::Whole),
            Some(other) => anyhow::bail!("{VARIABLE} is {other:?}, expected true or false"),
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Fragment => ".ssh/authorized_keys.d/ignition",
            Self::Whole => ".ssh/authorized_keys",
        }
    }
}

/// Writes a user's keys, one a line, in place of those that the file held.
///
/// # Errors
/// When the user may not write there.
pub(super) fn write(site: &Site<'_>, account: &accounts::User, keys: &[String]) -> anyhow::Result<()> {
    ensure!(account.home.starts_with('/'), "the home directory is {:?}, expected an absolute path", account.home);
    let mut text = keys.join("\n");
    if !text.ends_with('\n') {
        text.push('\n');
    }
    let path = Path::new(&account.home).join(site.keys.path());
    let owner = Owner { uid: Some(account.uid), gid: Some(account.gid) };
    let file = Attributes { mode: FILE_MODE, owner, parent_mode: DIRECTORY_MODE };
    as_user(account, || site.tree.write(&site.tree.resolve(&path)?, text.as_bytes(), file))
}

/// Does something with the identity of a user, in a thread of its own, where it is not ours already.
fn as_user(account: &accounts::User, work: impl FnOnce() -> anyhow::Result<()> + Send) -> anyhow::Result<()> {
    if geteuid().as_raw() == account.uid {
        return work();
    }
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    let become_user = || -> rustix::io::Result<()> {
        // These change the calling thread alone; the group comes first, while it may still be changed.
        set_thread_groups(&[gid])?;
        set_thread_res_gid(None, gid, None)?;
        set_thread_res_uid(None, uid, None)
    };
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            become_user().with_context(|| format!("acting as user {}", account.uid))?;
            work()
        });
        thread.join().expect("the thread does not panic")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_says_which_file() {
        let cases = [
            (None, Some(Destination::Fragment)),
            (Some(""), Some(Destination::Fragment)),
            (Some("true"), Some(Destination::Fragment)),
            (Some("1"), Some(Destination::Fragment)),
            (Some("false"), Some(Destination::Whole)),
            (Some("0"), Some(Destination::Whole)),
            (Some("no"), None),
            (Some("TRUE"), None),
        ];
        for (value, expected) in cases {
            assert_eq!(Destination::parse(value).ok(), expected, "{value:?}");
        }
    }
}
