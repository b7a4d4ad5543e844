//! The rules of `storage` about devices: disks, partitions, RAID and LUKS.

use std::collections::HashSet;

use super::super::findings::Place;
use super::super::json::Document;
use super::super::types;
use super::{Rules, given, list, path, url};

impl Rules<'_, '_> {
    pub(super) fn devices(&mut self, storage: &types::Storage, place: &Place<'_>) {
        for (index, disk) in list(&storage.disks).iter().enumerate() {
            self.disk(disk, &place.key("disks").index(index));
        }
        for (index, raid) in list(&storage.raid).iter().enumerate() {
            self.raid(raid, &place.key("raid").index(index));
        }
        for (index, luks) in list(&storage.luks).iter().enumerate() {
            self.luks(luks, &place.key("luks").index(index));
        }
    }

    fn disk(&mut self, disk: &types::Disk, place: &Place<'_>) {
        let partitions = list(&disk.partitions);
        for (index, partition) in partitions.iter().enumerate() {
            self.partition(partition, &place.key("partitions").index(index));
        }
        if disk.device.is_empty() {
            self.findings.error(&place.key("device"), "device is missing");
            return;
        }
        self.check(&place.key("device"), path::validate(&disk.device));
        let place = place.key("partitions");
        if let Some(index) = repeated(partitions.iter().map(|partition| partition.number.as_ref())) {
            self.findings.error(&place.index(index), "an earlier partition has the same number");
        }
        if let Some(index) = overlapping(partitions) {
            self.findings.error(&place.index(index), "this partition overlaps another");
        }
        if let Some(index) = repeated(partitions.iter().map(|partition| partition.label.as_ref())) {
            self.findings.error(&place.index(index), "an earlier partition has the same label");
        }
    }

    fn partition(&mut self, partition: &types::Partition, place: &Place<'_>) {
        let described = partition.label.is_some()
            || given(&partition.type_guid).is_some()
            || given(&partition.guid).is_some()
            || partition.start_mib.is_some()
            || partition.size_mib.is_some();
        if partition.should_exist == Some(false) && described {
            self.findings.error(place, "partition is described although it should not exist");
        }
        if partition.number.is_none() && partition.label.is_none() {
            self.findings.error(place, "partition has neither a number nor a label");
        }
        if let Some(label) = &partition.label {
            self.check(&place.key("label"), partition_label(label));
        }
        for (key, guid) in [("guid", &partition.guid), ("typeGuid", &partition.type_guid)] {
            if given(guid).is_some_and(|guid| !is_guid(guid)) {
                let message = "value is not of the form 01234567-89AB-CDEF-0123-456789ABCDEF";
                self.findings.error(&place.key(key), message);
            }
        }
    }

    fn raid(&mut self, raid: &types::Raid, place: &Place<'_>) {
        let outcome = match raid.level.as_deref().unwrap_or_default() {
            "" => Err("level is missing".to_owned()),
            "linear" | "raid0" | "0" | "stripe" if raid.spares.is_some_and(|spares| spares != 0) => {
                Err("an array of this level cannot have spares".to_owned())
            }
            "linear" | "raid0" | "0" | "stripe" | "raid1" | "1" | "mirror" | "raid4" | "4" | "raid5" | "5"
            | "raid6" | "6" | "raid10" | "10" => Ok(()),
            level => Err(format!("level {level:?} is unknown")),
        };
        self.check(&place.key("level"), outcome);
        if list(&raid.devices).is_empty() {
            self.findings.error(&place.key("devices"), "devices are missing");
        }
        for (index, device) in list(&raid.devices).iter().enumerate() {
            self.check(&place.key("devices").index(index), path::validate(device));
        }
    }

    fn luks(&mut self, luks: &types::Luks, place: &Place<'_>) {
        if luks.name.contains('/') {
            self.findings.error(&place.key("name"), format!("name {:?} contains a slash", luks.name));
        }
        if let Some(label) = &luks.label
            && label.len() > 47
        {
            let message = format!("label has {} bytes, LUKS has room for 47", label.len());
            self.findings.error(&place.key("label"), message);
        }
        match given(&luks.device) {
            None => self.findings.error(&place.key("device"), "device is missing"),
            Some(device) => self.check(&place.key("device"), path::validate(device)),
        }
        let key_file = luks.key_file.clone().unwrap_or_default();
        self.resource(&key_file, &place.key("keyFile"));
        if let Some(clevis) = &luks.clevis {
            self.clevis(clevis, &place.key("clevis"));
        }
        if luks.cex.as_ref().and_then(|cex| cex.enabled) == Some(true) {
            if luks.clevis.as_ref().is_some_and(is_present) {
                self.findings.error(&place.key("cex"), "cex cannot be used with clevis");
            }
            if given(&key_file.source).is_some() {
                self.findings.error(&place.key("cex"), "cex cannot be used with a key file");
            }
        }
    }

    fn clevis(&mut self, clevis: &types::Clevis, place: &Place<'_>) {
        if let Some(custom) = &clevis.custom {
            let is_set = self.minor == 2 || given(&custom.pin).is_some();
            if is_set && is_bound(clevis) {
                self.findings.error(place, "a custom config cannot be used with tang, tpm2 or threshold");
            }
            self.clevis_custom(custom, &place.key("custom"));
        }
        for (index, tang) in list(&clevis.tang).iter().enumerate() {
            self.tang(tang, &place.key("tang").index(index));
        }
    }

    fn clevis_custom(&mut self, custom: &types::ClevisCustom, place: &Place<'_>) {
        let (pin, config) = (given(&custom.pin), given(&custom.config));
        let needs_network = self.minor >= 3 && custom.needs_network == Some(true);
        if pin.is_none() && config.is_none() && !needs_network {
            return;
        }
        match pin {
            None => self.findings.error(&place.key("pin"), "pin is missing"),
            Some("tpm2" | "tang" | "sss") => {}
            Some(_) if self.minor >= 6 => {}
            Some(pin) => {
                let message = format!("pin is {pin:?}, known before 3.6.0 are tpm2, tang and sss");
                self.findings.error(&place.key("pin"), message);
            }
        }
        if config.is_none() {
            self.findings.error(&place.key("config"), "config is missing");
        }
    }

    fn tang(&mut self, tang: &types::Tang, place: &Place<'_>) {
        let outcome = match url::parse(tang.url.as_deref().unwrap_or_default()) {
            None => Err("value is not a URL".to_owned()),
            Some(url) if url.scheme == "http" || url.scheme == "https" => Ok(()),
            Some(_) => Err("URL is neither http nor https".to_owned()),
        };
        self.check(&place.key("url"), outcome);
        if given(&tang.thumbprint).is_none() {
            self.findings.error(&place.key("thumbprint"), "thumbprint is missing");
        }
        if given(&tang.advertisement).is_some_and(|advertisement| !is_json(advertisement)) {
            self.findings.error(&place.key("advertisement"), "advertisement is not JSON");
        }
    }
}

/// Whether anything beside the custom config binds the volume.
fn is_bound(clevis: &types::Clevis) -> bool {
    !list(&clevis.tang).is_empty()
        || clevis.tpm2 == Some(true)
        || clevis.threshold.is_some_and(|threshold| threshold != 0)
}

fn is_present(clevis: &types::Clevis) -> bool {
    is_bound(clevis) || clevis.custom.as_ref().is_some_and(|custom| given(&custom.pin).is_some())
}

/// Numbers must be finite as 64-bit floating point, as well as well-formed.
fn is_json(text: &str) -> bool {
    Document::parse(text.as_bytes()).is_ok_and(|document| document.numbers_are_finite())
}

/// The limit of GPT, counted in bytes as the reference does; and `sgdisk` takes a colon for its own.
fn partition_label(label: &str) -> Result<(), String> {
    if label.len() > 36 {
        return Err(format!("label has {} bytes, a partition has room for 36", label.len()));
    }
    if label.contains(':') {
        return Err(format!("label {label:?} contains a colon, and would end there"));
    }
    Ok(())
}

fn is_guid(text: &str) -> bool {
    let lengths = [8, 4, 4, 4, 12];
    let groups: Vec<_> = text.split('-').collect();
    groups.len() == lengths.len()
        && groups
            .iter()
            .zip(lengths)
            .all(|(group, length)| group.len() == length && group.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The index of the first that is the same as an earlier one; those that are absent are not.
fn repeated<'a, T: std::hash::Hash + Eq + 'a>(values: impl Iterator<Item = Option<&'a T>>) -> Option<usize> {
    let mut seen = HashSet::new();
    values.enumerate().find(|(_, value)| value.is_some_and(|value| !seen.insert(value))).map(|(index, _)| index)
}

/// The index of a partition that overlaps an earlier or later one.
///
/// What has no start takes the largest gap when the time comes, and what has no size takes what is left: neither
/// can be told from here.
fn overlapping(partitions: &[types::Partition]) -> Option<usize> {
    let mut extents: Vec<(i64, i64, usize)> = Vec::new();
    for (index, partition) in partitions.iter().enumerate() {
        if let (Some(start @ ..=-1 | start @ 1..), Some(size)) = (partition.start_mib, partition.size_mib) {
            let end = if size == 0 { start } else { start.wrapping_add(size).wrapping_sub(1) };
            extents.push((start, end, index));
        }
    }
    let overlap = |(start, end, index): &(i64, i64, usize), (from, to, other): &(i64, i64, usize)| {
        let within = |place: i64| (*from..=*to).contains(&place);
        index != other && (within(*start) || within(*end) || (start < from && end > to))
    };
    // Thousands of partitions that are in order are not compared each with each.
    let mut sorted = extents.clone();
    sorted.sort_unstable();
    if sorted.iter().all(|(start, end, _)| end >= start) && sorted.windows(2).all(|pair| pair[0].1 < pair[1].0) {
        return None;
    }
    extents.iter().find_map(|one| extents.iter().find(|other| overlap(one, other))).map(|(.., index)| *index)
}
