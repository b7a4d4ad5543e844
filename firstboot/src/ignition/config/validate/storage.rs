//! The rules of `storage` about paths: files, directories, links and file systems.

use std::collections::{HashMap, HashSet};

use super::super::findings::Place;
use super::super::types;
use super::{Rules, given, list, path};

impl Rules<'_, '_> {
    pub(super) fn storage(&mut self, storage: &types::Storage, place: &Place<'_>) {
        let links: HashSet<&str> = list(&storage.links).iter().map(|link| link.path.as_str()).collect();
        for (index, directory) in list(&storage.directories).iter().enumerate() {
            let place = place.key("directories");
            let place = place.index(index);
            self.node(&directory.path, &directory.user, &directory.group, &links, &place);
            self.mode(directory.mode, &place.key("mode"));
        }
        for (index, file) in list(&storage.files).iter().enumerate() {
            let place = place.key("files");
            let place = place.index(index);
            self.node(&file.path, &file.user, &file.group, &links, &place);
            self.file(file, &place);
        }
        for (index, link) in list(&storage.links).iter().enumerate() {
            let place = place.key("links");
            let place = place.index(index);
            self.node(&link.path, &link.user, &link.group, &links, &place);
            self.link(link, storage, &place);
        }
        self.filesystems(storage, &place.key("filesystems"));
        self.devices(storage, place);
    }

    fn node(
        &mut self,
        path: &str,
        user: &Option<types::NodeUser>,
        group: &Option<types::NodeGroup>,
        links: &HashSet<&str>,
        place: &Place<'_>,
    ) {
        self.check(&place.key("path"), path::validate(path));
        // What a link of the config would lead elsewhere.
        let above = path.match_indices('/').map(|(at, _)| &path[..at]);
        if let Some(link) = above.into_iter().find(|above| links.contains(above)) {
            self.findings.error(place, format!("{path:?} leads through the link {link:?} of this config"));
        }
        let user = user.as_ref().map(|user| (user.id, &user.name));
        let group = group.as_ref().map(|group| (group.id, &group.name));
        for (key, owner) in [("user", user), ("group", group)] {
            if let Some((Some(id), name)) = owner
                && let Some(name) = given(name)
            {
                self.findings.error(&place.key(key), format!("{key} has both an id, {id}, and a name, {name:?}"));
            }
        }
    }

    fn mode(&mut self, mode: Option<i64>, place: &Place<'_>) {
        match mode {
            None => {}
            Some(mode @ 0o1000..=0o7777) if self.minor < 6 => {
                let message = format!("mode {mode:#o} loses its set-user-id, set-group-id or sticky bit before 3.6.0");
                self.findings.warn(place, message);
            }
            Some(0..=0o7777) => {}
            Some(mode) => self.findings.error(place, format!("mode is {mode}, must be 0 to {}", 0o7777)),
        }
    }

    fn file(&mut self, file: &types::File, place: &Place<'_>) {
        self.mode(file.mode, &place.key("mode"));
        let source = file.contents.as_ref().and_then(|contents| contents.source.as_ref());
        if file.overwrite == Some(true) && source.is_none() {
            self.findings.error(&place.key("overwrite"), "there is no contents.source to overwrite the file with");
        }
        if let Some(contents) = &file.contents {
            self.resource(contents, &place.key("contents"));
        }
        for (index, part) in list(&file.append).iter().enumerate() {
            self.resource(part, &place.key("append").index(index));
        }
    }

    fn link(&mut self, link: &types::Link, storage: &types::Storage, place: &Place<'_>) {
        let target = link.target.as_deref().unwrap_or_default();
        if target.is_empty() && self.minor >= 3 {
            self.findings.error(&place.key("target"), "link has no target");
            return;
        }
        if link.hard != Some(true) {
            return;
        }
        let clean = path::clean(target);
        let target = if clean.starts_with('/') { clean } else { path::clean(&format!("{}/{target}", link.path)) };
        if list(&storage.directories).iter().any(|directory| directory.path == target) {
            self.findings.error(place, format!("hard link's target {target:?} is a directory of this config"));
        }
        let (user, group) = (link.user.clone().unwrap_or_default(), link.group.clone().unwrap_or_default());
        let owners = [
            ("user", "id", user.id.is_some()),
            ("user", "name", user.name.is_some()),
            ("group", "id", group.id.is_some()),
            ("group", "name", group.name.is_some()),
        ];
        for (owner, key, _) in owners.into_iter().filter(|(.., is_set)| *is_set) {
            self.findings.warn(&place.key(owner).key(key), format!("{owner} of a hard link is ignored"));
        }
    }

    fn filesystems(&mut self, storage: &types::Storage, place: &Place<'_>) {
        let disks: HashMap<_, _> = list(&storage.disks).iter().map(|disk| (disk.device.as_str(), disk)).collect();
        for (index, filesystem) in list(&storage.filesystems).iter().enumerate() {
            let place = place.index(index);
            self.filesystem(filesystem, &place);
            let Some(disk) = disks.get(filesystem.device.as_str()) else { continue };
            let device = &filesystem.device;
            if !list(&disk.partitions).is_empty() {
                let message = format!("file system on {device} overwrites the partitions that this config makes there");
                self.findings.warn(&place.key("device"), message);
            } else if disk.wipe_table == Some(true) && filesystem.wipe_filesystem != Some(true) {
                let message = format!("file system on {device} is lost with the partition table that is wiped there");
                self.findings.warn(&place.key("device"), message);
            }
        }
    }

    fn filesystem(&mut self, filesystem: &types::Filesystem, place: &Place<'_>) {
        if let Some(path) = given(&filesystem.path) {
            self.check(&place.key("path"), path::validate(path));
        }
        self.check(&place.key("device"), path::validate(&filesystem.device));
        self.check(&place.key("format"), self.format(filesystem));
        self.check(&place.key("label"), filesystem_label(filesystem));
    }

    fn format(&self, filesystem: &types::Filesystem) -> Result<(), String> {
        match given(&filesystem.format) {
            Some("ext4" | "btrfs" | "xfs" | "swap" | "vfat") => Ok(()),
            Some("none") if self.minor >= 3 => Ok(()),
            Some(format) => {
                Err(format!("format is {format:?}, known are ext4, btrfs, xfs, swap, vfat and none (since 3.3.0)"))
            }
            None => {
                let others = [
                    ("path", given(&filesystem.path).is_some()),
                    ("label", given(&filesystem.label).is_some()),
                    ("uuid", given(&filesystem.uuid).is_some()),
                    ("wipeFilesystem", filesystem.wipe_filesystem == Some(true)),
                    ("mountOptions", !list(&filesystem.mount_options).is_empty()),
                    ("options", !list(&filesystem.options).is_empty()),
                ];
                match others.into_iter().find(|(_, is_set)| *is_set) {
                    Some((key, _)) => Err(format!("{key} is set, but no format")),
                    None => Ok(()),
                }
            }
        }
    }
}

/// The limits of the tools that make the file systems, in bytes.
fn filesystem_label(filesystem: &types::Filesystem) -> Result<(), String> {
    let Some(label) = given(&filesystem.label) else { return Ok(()) };
    let Some(format) = given(&filesystem.format) else {
        return Err("a label is set, but no format".to_owned());
    };
    let limit = match format {
        "ext4" => 16,
        "btrfs" => 256,
        "xfs" => 12,
        "swap" => 15,
        "vfat" => 11,
        _ => return Ok(()),
    };
    if label.len() > limit {
        return Err(format!("label has {} bytes, {format} has room for {limit}", label.len()));
    }
    Ok(())
}
