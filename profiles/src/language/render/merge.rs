//! Further parts of an Ignition config, beside what NodeZero renders. What is rendered comes first; nothing of it is
//! replaced ([`reserved`] names what would).

use ignition_config::v3_5::{Config, Passwd, Storage, Systemd, Unit, User};

/// Whether NodeZero alone lays such a path in.
pub(in super::super) fn reserved(path: &str) -> bool {
    let exact = ["/etc/hostname", "/etc/rancher/k3s/config.yaml", "/etc/rancher/k3s/registries.yaml"];
    let below = ["/etc/nodezero/", "/var/lib/nodezero/", "/var/lib/rancher/k3s/server/tls/"];
    let network = ["/etc/systemd/network/70-nodezero-", "/etc/systemd/network/71-nodezero-"];
    let directory = format!("{}/", path.trim_end_matches('/'));
    exact.contains(&path)
        || below.iter().any(|prefix| directory.starts_with(prefix))
        || network.iter().any(|prefix| path.starts_with(prefix))
}

/// Adds further parts.
pub(super) fn merge(config: &mut Config, extra: Config) {
    config.ignition = extra.ignition;
    config.kernel_arguments = extra.kernel_arguments;
    if let Some(extra) = extra.storage {
        let own = config.storage.get_or_insert_with(Storage::default);
        append(&mut own.directories, extra.directories);
        append(&mut own.disks, extra.disks);
        append(&mut own.files, extra.files);
        append(&mut own.filesystems, extra.filesystems);
        append(&mut own.links, extra.links);
        append(&mut own.luks, extra.luks);
        append(&mut own.raid, extra.raid);
    }
    if let Some(extra) = extra.systemd {
        let own = config.systemd.get_or_insert_with(Systemd::default).units.get_or_insert_with(Vec::new);
        extra.units.into_iter().flatten().for_each(|unit| add_unit(own, unit));
    }
    if let Some(extra) = extra.passwd {
        let own = config.passwd.get_or_insert_with(Passwd::default);
        append(&mut own.groups, extra.groups);
        let users = own.users.get_or_insert_with(Vec::new);
        extra.users.into_iter().flatten().for_each(|user| add_user(users, user));
    }
}

fn append<T>(own: &mut Option<Vec<T>>, extra: Option<Vec<T>>) {
    if let Some(extra) = extra {
        own.get_or_insert_with(Vec::new).extend(extra);
    }
}

/// A unit of a name that is there already keeps its being enabled.
fn add_unit(own: &mut Vec<Unit>, extra: Unit) {
    match own.iter_mut().find(|unit| unit.name == extra.name) {
        Some(unit) => *unit = Unit { enabled: unit.enabled.or(extra.enabled), ..extra },
        None => own.push(extra),
    }
}

/// A user of a name that is there already keeps their keys.
fn add_user(own: &mut Vec<User>, extra: User) {
    match own.iter_mut().find(|user| user.name == extra.name) {
        Some(user) => {
            let mut keys = user.ssh_authorized_keys.take();
            append(&mut keys, extra.ssh_authorized_keys.clone());
            *user = User { ssh_authorized_keys: keys, ..extra };
        }
        None => own.push(extra),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nodezero_lays_in_is_reserved() {
        for (path, expected) in [
            ("/etc/nodezero", true),
            ("/etc/nodezero/node.json", true),
            ("/etc/nodezero.d/a", false),
            ("/etc/hostname", true),
            ("/etc/hosts", false),
            ("/etc/systemd/network/70-nodezero-a.network", true),
            ("/etc/systemd/network/10-own.network", false),
            ("/var/lib/rancher/k3s/server/tls/server-ca.key", true),
            ("/var/lib/rancher/k3s/server/manifests/a.yaml", false),
        ] {
            assert_eq!(reserved(path), expected, "{path}");
        }
    }

    #[test]
    fn users_and_units_of_the_same_name_are_one() {
        let user = |keys: &[&str]| {
            let keys = keys.iter().map(|&key| key.to_owned()).collect();
            Config {
                passwd: Some(Passwd {
                    groups: None,
                    users: Some(vec![User { ssh_authorized_keys: Some(keys), ..User::new("root".to_owned()) }]),
                }),
                systemd: Some(Systemd {
                    units: Some(vec![Unit { enabled: Some(true), ..Unit::new("ssh.service".to_owned()) }]),
                }),
                ..Config::default()
            }
        };
        let mut config = user(&["a"]);
        let mut extra = user(&["b"]);
        let units = extra.systemd.as_mut().and_then(|systemd| systemd.units.as_mut()).expect("units");
        units[0] = Unit { contents: Some("[Unit]".to_owned()), ..Unit::new("ssh.service".to_owned()) };
        merge(&mut config, extra);
        let users = config.passwd.and_then(|passwd| passwd.users).expect("users");
        assert_eq!(users.len(), 1);
        assert_eq!(users[0].ssh_authorized_keys.as_deref(), Some(["a".to_owned(), "b".to_owned()].as_slice()));
        let units = config.systemd.and_then(|systemd| systemd.units).expect("units");
        assert_eq!((units.len(), units[0].enabled, units[0].contents.as_deref()), (1, Some(true), Some("[Unit]")));
    }
}
