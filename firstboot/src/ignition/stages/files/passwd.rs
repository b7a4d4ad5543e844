//! Users and groups, through the programs of the shadow suite.
//!
//! A password hash is no argument of theirs. They are given `*`, which no password matches, so that they write their
//! lines with all they belong to, dates too; then the hash takes the place of the `*`. The result is that of
//! `--password HASH`.
//!
//! Nothing is run for what is as the config wants it, so that a second time changes nothing.

use anyhow::{Context, ensure};

use super::accounts::{self, GROUP_HASHES, USER_HASHES};
use super::additions::{self, Additions};
use super::tree::Owner;
use super::{Site, keys};
use crate::ignition::config::types::{Group, Passwd, User};

/// A password field that nothing matches.
const NO_PASSWORD: &str = "*";

/// Mode of directories that were made for a file system in a home directory.
const HOME_MODE: u32 = 0o700;

/// Makes, changes and removes groups, then users, in the config's order.
///
/// # Errors
/// At the first that fails, with what its program printed.
pub(super) fn apply(site: &Site<'_>, passwd: &Passwd) -> anyhow::Result<()> {
    if passwd.groups.iter().flatten().next().is_none() && passwd.users.iter().flatten().next().is_none() {
        return Ok(());
    }
    accounts::clear_locks(&site.tree).context("removing locks that were left")?;
    let mut additions = Additions::begin(site)?;
    for group in passwd.groups.iter().flatten() {
        ensure_group(site, group, &mut additions).with_context(|| format!("group {:?}", group.name))?;
    }
    for user in passwd.users.iter().flatten() {
        ensure_user(site, user, &mut additions).with_context(|| format!("user {:?}", user.name))?;
    }
    additions.end(site)
}

/// Arguments of one program, built up.
struct Arguments<'a>(Vec<std::borrow::Cow<'a, str>>);

impl<'a> Arguments<'a> {
    fn new(site: &'a Site<'_>) -> anyhow::Result<Self> {
        Ok(Self(site.tree.arguments()?.into_iter().map(Into::into).collect()))
    }

    fn flag(&mut self, given: Option<bool>, flag: &'a str) {
        if given == Some(true) {
            self.0.push(flag.into());
        }
    }

    /// Empty words count as not said.
    fn text(&mut self, flag: &'a str, value: Option<&'a str>) {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            self.0.extend([flag.into(), value.into()]);
        }
    }

    fn number(&mut self, flag: &'a str, value: Option<i64>) {
        if let Some(value) = value {
            self.0.extend([flag.into(), value.to_string().into()]);
        }
    }

    fn run(&self, site: &Site<'_>, program: &str, name: &str) -> anyhow::Result<()> {
        let mut arguments: Vec<&str> = self.0.iter().map(AsRef::as_ref).collect();
        arguments.push(name);
        (site.run)(program, &arguments)?;
        Ok(())
    }
}

/// Refuses what a program would take for an option.
fn check_name(name: &str) -> anyhow::Result<()> {
    ensure!(!name.is_empty() && !name.starts_with('-') && !name.contains(['\n', ':']), "this is no name of an account");
    Ok(())
}

fn ensure_group(site: &Site<'_>, group: &Group, additions: &mut Additions) -> anyhow::Result<()> {
    check_name(&group.name)?;
    let there = accounts::group(&site.tree, &group.name)?;
    let mut arguments = Arguments::new(site)?;
    if group.should_exist == Some(false) {
        if there.is_some() {
            site.log.info(format_args!("removing group {:?}", group.name));
            arguments.run(site, "groupdel", &group.name)?;
        }
        return Ok(());
    }
    // An empty hash counts as none.
    let hash = group.password_hash.as_deref().filter(|hash| !hash.is_empty());
    let found = accounts::hash(&site.tree, GROUP_HASHES, &group.name)?;
    let before = arguments.0.len();
    if there.map(i64::from) != group.gid {
        arguments.number("--gid", group.gid);
    }
    if hash.is_some_and(|hash| found.as_deref() != Some(hash.as_bytes())) {
        arguments.text("--password", Some(NO_PASSWORD));
    }
    if there.is_none() {
        arguments.flag(group.system, "--system");
        site.log.info(format_args!("adding group {:?}", group.name));
        additions.group(site, &group.name)?;
        arguments.run(site, "groupadd", &group.name)?;
    } else if arguments.0.len() > before {
        site.log.info(format_args!("changing group {:?}", group.name));
        arguments.run(site, "groupmod", &group.name)?;
    }
    match hash {
        Some(hash) => accounts::set_hash(&site.tree, GROUP_HASHES, &group.name, hash).context("setting its password"),
        None => Ok(()),
    }
}

fn ensure_user(site: &Site<'_>, user: &User, additions: &mut Additions) -> anyhow::Result<()> {
    check_name(&user.name)?;
    let there = accounts::user(&site.tree, &user.name)?.is_some();
    if user.should_exist == Some(false) {
        if there {
            let mut arguments = Arguments(vec!["--remove".into()]);
            arguments.0.extend(Arguments::new(site)?.0);
            site.log.info(format_args!("removing user {:?}", user.name));
            arguments.run(site, "userdel", &user.name)?;
        }
        return Ok(());
    }
    // An empty hash means that no password fits.
    let hash = user.password_hash.as_deref().map(|hash| if hash.is_empty() { NO_PASSWORD } else { hash });
    if there {
        change_user(site, user, hash)?;
    } else {
        additions.user(site, user)?;
        add_user(site, user)?;
    }
    if let Some(hash) = hash {
        accounts::set_hash(&site.tree, USER_HASHES, &user.name, hash).context("setting its password")?;
    }
    let account = accounts::user(&site.tree, &user.name)?.context("it is not in /etc/passwd afterwards")?;
    if user.no_create_home != Some(true) {
        give_home(site, &account)?;
    }
    match user.ssh_authorized_keys.as_deref() {
        Some(list) if !list.is_empty() => {
            site.log.info(format_args!("writing SSH keys of user {:?}", user.name));
            keys::write(site, &account, list).context("writing its SSH keys")
        }
        _ => Ok(()),
    }
}

fn add_user(site: &Site<'_>, user: &User) -> anyhow::Result<()> {
    let mut arguments = Arguments::new(site)?;
    arguments.text("--home-dir", user.home_dir.as_deref());
    let home = if user.no_create_home == Some(true) { "--no-create-home" } else { "--create-home" };
    arguments.flag(Some(true), home);
    arguments.flag(user.no_user_group, "--no-user-group");
    arguments.flag(user.system, "--system");
    arguments.flag(user.no_log_init, "--no-log-init");
    arguments.text("--password", Some(NO_PASSWORD));
    let groups = user.groups.iter().flatten().map(String::as_str).collect::<Vec<_>>().join(",");
    describe(&mut arguments, user, &groups);
    if user.uid.is_none()
        && let Some(uid) = accounts::former_owner(&site.tree, &additions::home(site, user)?)?
    {
        // Else what is in the home would be nobody's, or another new user's.
        site.log.info(format_args!("the home of user {:?} is there, and belongs to {uid}", user.name));
        arguments.number("--uid", Some(uid.into()));
    }
    site.log.info(format_args!("adding user {:?}", user.name));
    arguments.run(site, "useradd", &user.name)
}

fn change_user(site: &Site<'_>, user: &User, hash: Option<&str>) -> anyhow::Result<()> {
    let mut arguments = Arguments::new(site)?;
    let before = arguments.0.len();
    if user.home_dir.as_deref().is_some_and(|home| !home.is_empty()) {
        arguments.text("--home", user.home_dir.as_deref());
        arguments.flag(Some(true), "--move-home");
    }
    // A hash that stands there already is not touched, so that its date stays.
    let found = accounts::hash(&site.tree, USER_HASHES, &user.name)?;
    if hash.is_some_and(|hash| found.as_deref() != Some(hash.as_bytes())) {
        arguments.text("--password", Some(NO_PASSWORD));
    }
    let groups = user.groups.iter().flatten().map(String::as_str).collect::<Vec<_>>().join(",");
    describe(&mut arguments, user, &groups);
    if arguments.0.len() == before {
        return Ok(());
    }
    site.log.info(format_args!("changing user {:?}", user.name));
    arguments.run(site, "usermod", &user.name)
}

/// What `useradd` and `usermod` take alike.
fn describe<'a>(arguments: &mut Arguments<'a>, user: &'a User, groups: &'a str) {
    arguments.number("--uid", user.uid);
    arguments.text("--comment", user.gecos.as_deref());
    arguments.text("--gid", user.primary_group.as_deref());
    arguments.text("--groups", Some(groups));
    arguments.text("--shell", user.shell.as_deref());
}

/// Gives a user the directories of its home that were made before the user was, for a file system mounted there.
fn give_home(site: &Site<'_>, account: &accounts::User) -> anyhow::Result<()> {
    let owner = Owner { uid: Some(account.uid), gid: Some(account.gid) };
    for directory in site.made_directories.iter().filter(|made| made.starts_with(&account.home)) {
        let place = site.tree.resolve(directory)?;
        if site.tree.stat(&place)?.is_some() {
            site.tree.set_permissions(&place, owner, Some(HOME_MODE))?;
        }
    }
    Ok(())
}
