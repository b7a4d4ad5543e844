//! What Longhorn needs of a node besides disks
//! ([requirements](https://longhorn.io/docs/latest/deploy/install/#installation-requirements)): told, and no reason to
//! stop, for a node without it still runs everything else.

use std::path::Path;

use crate::command::run;

/// Where Debian and others have `mount.nfs`.
const MOUNT_NFS: [&str; 2] = ["/usr/sbin/mount.nfs", "/sbin/mount.nfs"];

/// One line for each thing that is needed: what it is, and `ok` or what is wrong.
pub(super) fn checks() -> Vec<String> {
    let state = |question: &str, unit: &str| {
        // The answer is on standard output, whatever the exit code.
        let answer = run("systemctl", &[question, unit], b"", |_| true);
        answer
            .map_or_else(|error| error.to_string(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let module = |name: &str| Path::new("/sys/module").join(name).exists();
    judge(&Facts {
        iscsid: state("is-active", "iscsid.service"),
        iscsid_socket: state("is-active", "iscsid.socket"),
        multipathd: state("is-active", "multipathd.service"),
        iscsi_tcp: module("iscsi_tcp"),
        dm_crypt: module("dm_crypt"),
        mount_nfs: MOUNT_NFS.iter().any(|path| Path::new(path).exists()),
    })
}

/// What was found.
struct Facts {
    iscsid: String,
    iscsid_socket: String,
    multipathd: String,
    iscsi_tcp: bool,
    dm_crypt: bool,
    mount_nfs: bool,
}

fn judge(facts: &Facts) -> Vec<String> {
    let present = |there: bool| if there { "ok" } else { "missing" }.to_owned();
    let active = |state: &str| if state == "active" { "ok".to_owned() } else { state.to_owned() };
    // The socket starts the service when iscsiadm wants it.
    let iscsid = if facts.iscsid_socket == "active" { "ok".to_owned() } else { active(&facts.iscsid) };
    let multipathd = if facts.multipathd == "active" {
        "active: it would claim Longhorn's disks; remove it, or blacklist them"
    } else {
        "ok"
    };
    [
        ("iscsid", iscsid),
        ("module iscsi_tcp", present(facts.iscsi_tcp)),
        ("module dm_crypt", present(facts.dm_crypt)),
        ("NFS client", present(facts.mount_nfs)),
        ("no multipathd", multipathd.to_owned()),
    ]
    .into_iter()
    .map(|(what, result)| format!("Longhorn: {what}: {result}"))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told() {
        let facts = |active: &str, there| Facts {
            iscsid: active.into(),
            iscsid_socket: active.into(),
            multipathd: if there { "inactive".into() } else { "active".into() },
            iscsi_tcp: there,
            dm_crypt: there,
            mount_nfs: there,
        };
        let good = judge(&facts("active", true));
        assert!(good.iter().all(|line| line.ends_with(": ok")), "{good:?}");
        let bad = judge(&facts("failed", false));
        assert!(bad.iter().all(|line| !line.ends_with(": ok")), "{bad:?}");
        assert_eq!(bad[0], "Longhorn: iscsid: failed");
        let by_socket = judge(&Facts { iscsid: "inactive".into(), ..facts("active", true) });
        assert_eq!(by_socket[0], "Longhorn: iscsid: ok");
    }
}
