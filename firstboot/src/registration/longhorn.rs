//! What Longhorn is told about a node's disks: the label and annotation of its documentation,
//! [Configuring Defaults for Nodes and Disks](https://longhorn.io/docs/latest/nodes-and-volumes/nodes/default-disk-and-node-config/).
//!
//! Longhorn looks at them when it meets a node that has no disks yet: at its first start, and after the node was removed
//! and came back. So a node that was installed anew brings its disks along, and what an operator changes later in
//! Longhorn stays.

use std::path::Path;

use nodezero_profile::inventory::Transport;
use serde::Serialize;

use crate::data_disks::Prepared;

/// The label.
pub(super) const LABEL: &str = "node.longhorn.io/create-default-disk";
/// Its value that makes Longhorn read the annotation.
pub(super) const CONFIG: &str = "config";
/// The annotation.
pub(super) const ANNOTATION: &str = "node.longhorn.io/default-disks-config";

/// Of a hundred bytes of a disk, how many Longhorn leaves alone. The disk is Longhorn's alone, so that its default for a
/// root disk, 30, would waste 5 TB of 18; a file system that is filled to its last block is slow, and cannot be mended.
const RESERVED_PERCENT: u64 = 1;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Disk<'a> {
    name: &'a str,
    path: &'a Path,
    allow_scheduling: bool,
    storage_reserved: u64,
    tags: Vec<&'a str>,
}

/// The annotation's value: JSON, the same for the same disks in whatever order.
pub(super) fn disks_config(disks: &[Prepared]) -> String {
    let mut list: Vec<Disk<'_>> = disks.iter().map(of).collect();
    list.sort_by_key(|disk| disk.path);
    serde_json::to_string(&list).expect("texts and numbers")
}

fn of(disk: &Prepared) -> Disk<'_> {
    let kind = match (disk.transport, disk.rotational) {
        (Transport::Nvme, _) => "nvme",
        (_, true) => "hdd",
        (_, false) => "ssd",
    };
    // A volume may ask for disks of an entry of the profile, or of a kind.
    let mut tags = vec![disk.entry.as_str(), kind];
    tags.dedup();
    Disk {
        name: disk.mount.file_name().and_then(|name| name.to_str()).unwrap_or_default(),
        path: &disk.mount,
        allow_scheduling: true,
        storage_reserved: disk.size / 100 * RESERVED_PERCENT,
        tags,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::prepared;
    use super::*;

    #[test]
    fn the_annotation_is_as_longhorn_documents_it() {
        let mut second = prepared("z2");
        (second.transport, second.rotational, second.entry) = (Transport::Nvme, false, "nvme".to_owned());
        let expected = r#"[{"name":"z1","path":"/var/mnt/longhorn/z1","allowScheduling":true,"storageReserved":180000000000,"tags":["bulk","hdd"]},{"name":"z2","path":"/var/mnt/longhorn/z2","allowScheduling":true,"storageReserved":180000000000,"tags":["nvme"]}]"#;
        assert_eq!(disks_config(&[prepared("z1"), second.clone()]), expected);
        assert_eq!(disks_config(&[second, prepared("z1")]), expected, "in another order");
        assert_eq!(disks_config(&[]), "[]");
    }
}
