//! Accounts that are being added, written down until they are whole and on the disk.
//!
//! `useradd` writes several files and a home directory. Cut off in between it leaves an account that is not whole, and
//! nothing in it says so: a home without its first files, a user without a group. So what is about to be added stands
//! in a file, and a run that finds this file takes back what it names before it begins.

use anyhow::{Context, ensure};

use super::tree::{Attributes, Place};
use super::{Site, accounts};
use crate::ignition::config::types::User;

/// The file: lines of `group NAME`, `home PATH`, `user NAME`.
const FILE: &str = "/etc/.ignition-accounts";

/// What the shadow suite takes for new users.
const DEFAULTS: &str = "/etc/default/useradd";

/// How large these files may be, in bytes.
const LIMIT: u64 = 1 << 20;

/// What is being added.
pub(super) struct Additions {
    place: Place,
    text: String,
    written: bool,
}

impl Additions {
    /// Takes back what a run that was cut off was adding.
    ///
    /// # Errors
    /// When that fails.
    pub(super) fn begin(site: &Site<'_>) -> anyhow::Result<Self> {
        let place = site.tree.resolve(FILE)?;
        let left = site.tree.read(FILE, LIMIT)?;
        let text = String::from_utf8_lossy(left.as_deref().unwrap_or_default());
        for line in text.lines().rev() {
            match line.split_once(' ') {
                Some(("user", name)) if accounts::user(&site.tree, name)?.is_some() => remove(site, "userdel", name)?,
                Some(("group", name)) if accounts::group(&site.tree, name)?.is_some() => {
                    remove(site, "groupdel", name)?;
                }
                Some(("home", path)) => site.tree.remove(&site.tree.resolve(path)?)?,
                _ => {}
            }
        }
        Ok(Self { place, text: String::new(), written: left.is_some() })
    }

    /// Notes a group that is not there yet.
    ///
    /// # Errors
    /// When that cannot be written.
    pub(super) fn group(&mut self, site: &Site<'_>, name: &str) -> anyhow::Result<()> {
        self.note(site, &[("group", name)])
    }

    /// Notes a user who is not there yet, with the group and the home that will be made too.
    ///
    /// # Errors
    /// When that cannot be written.
    pub(super) fn user(&mut self, site: &Site<'_>, user: &User) -> anyhow::Result<()> {
        let home = home(site, user)?;
        let mut lines = Vec::new();
        if accounts::group(&site.tree, &user.name)?.is_none() {
            lines.push(("group", user.name.as_str()));
        }
        if user.no_create_home != Some(true) && site.tree.stat(&site.tree.resolve(&home)?)?.is_none() {
            lines.push(("home", home.as_str()));
        }
        lines.push(("user", user.name.as_str()));
        self.note(site, &lines)
    }

    fn note(&mut self, site: &Site<'_>, lines: &[(&str, &str)]) -> anyhow::Result<()> {
        for (kind, what) in lines {
            ensure!(!what.contains('\n'), "{what:?} holds a line end");
            self.text += &format!("{kind} {what}\n");
        }
        self.written = true;
        site.tree.write(&self.place, self.text.as_bytes(), Attributes::mode(0o600))
    }

    /// All is whole: flushes it and forgets what was noted.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub(super) fn end(self, site: &Site<'_>) -> anyhow::Result<()> {
        if self.written {
            site.tree.flush();
            site.tree.remove(&self.place)?;
        }
        Ok(())
    }
}

/// Runs a program of the shadow suite that removes an account, and nothing of its home.
fn remove(site: &Site<'_>, program: &str, name: &str) -> anyhow::Result<()> {
    site.log.info(format_args!("taking back {name:?}, which a run that was cut off was adding"));
    let arguments = [site.tree.arguments()?.as_slice(), &[name]].concat();
    (site.run)(program, &arguments).with_context(|| format!("taking back {name:?}"))?;
    Ok(())
}

/// The home that a new user will have.
///
/// # Errors
/// When the shadow suite's defaults cannot be read.
pub(super) fn home(site: &Site<'_>, user: &User) -> anyhow::Result<String> {
    if let Some(home) = user.home_dir.as_ref().filter(|home| !home.is_empty()) {
        return Ok(home.clone());
    }
    let defaults = site.tree.read(DEFAULTS, LIMIT)?.unwrap_or_default();
    let defaults = String::from_utf8_lossy(&defaults);
    let base = defaults.lines().find_map(|line| line.strip_prefix("HOME=")).map_or("/home", str::trim);
    Ok(format!("{base}/{}", user.name))
}
