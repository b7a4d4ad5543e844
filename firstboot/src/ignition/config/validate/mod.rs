//! What the values of a config mean, checked by the rules of its version.
//!
//! Each rule is one of the specification's, or of the reference's validator where the specification is silent. What
//! only a machine can tell (whether a device exists, whether a user can be made) is left to the stages.

mod devices;
mod path;
mod storage;
mod unit;
mod url;

use std::collections::{HashMap, HashSet};

use self::unit::Sections;
use super::findings::{Findings, Place};
use super::types;

/// Checks a config of a minor version. Its lists stand as in the text, so that places are right.
pub(super) fn validate(config: &types::Config, minor: u8, findings: &mut Findings<'_>) {
    let mut rules = Rules { minor, findings };
    let root = Place::root();
    rules.ignition(&config.ignition, &root.key("ignition"));
    if let Some(storage) = &config.storage {
        rules.storage(storage, &root.key("storage"));
    }
    if let Some(systemd) = &config.systemd {
        rules.systemd(systemd, &root.key("systemd"));
        rules.unit_files(config, systemd, &root);
    }
}

/// The rules of one version.
struct Rules<'a, 'd> {
    minor: u8,
    findings: &'a mut Findings<'d>,
}

/// The elements of a list that may be absent.
fn list<T>(list: &Option<Vec<T>>) -> &[T] {
    list.as_deref().unwrap_or_default()
}

/// A text that is given and not empty.
fn given(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

impl Rules<'_, '_> {
    fn check(&mut self, place: &Place<'_>, outcome: Result<(), String>) {
        if let Err(message) = outcome {
            self.findings.error(place, message);
        }
    }

    fn ignition(&mut self, ignition: &types::Ignition, place: &Place<'_>) {
        if let Some(config) = &ignition.config {
            let place = place.key("config");
            for (index, reference) in list(&config.merge).iter().enumerate() {
                self.reference(reference, self.minor >= 1, &place.key("merge").index(index));
            }
            if let Some(replace) = &config.replace {
                self.reference(replace, false, &place.key("replace"));
            }
        }
        if let Some(proxy) = &ignition.proxy {
            let place = place.key("proxy");
            self.proxy(&proxy.http_proxy, false, &place.key("httpProxy"));
            self.proxy(&proxy.https_proxy, true, &place.key("httpsProxy"));
        }
        let tls = ignition.security.as_ref().and_then(|security| security.tls.as_ref());
        let place = place.key("security");
        let place = place.key("tls");
        for (index, authority) in tls.map_or(&[][..], |tls| list(&tls.certificate_authorities)).iter().enumerate() {
            self.reference(authority, true, &place.key("certificateAuthorities").index(index));
        }
    }

    fn proxy(&mut self, proxy: &Option<String>, secure: bool, place: &Place<'_>) {
        let Some(proxy) = proxy else { return };
        match url::parse(proxy) {
            None => self.findings.error(place, "proxy is not a URL"),
            Some(url) if url.scheme == "http" && secure => {
                self.findings.warn(place, "this proxy for HTTPS is reached by HTTP, unencrypted");
            }
            Some(url) if url.scheme == "http" || url.scheme == "https" => {}
            Some(_) => self.findings.error(place, "proxy's URL is neither http nor https"),
        }
    }

    /// A resource that is fetched itself, rather than written to a file.
    fn reference(&mut self, resource: &types::Resource, required: bool, place: &Place<'_>) {
        if required && given(&resource.source).is_none() {
            // Where 3.0 has it, there may be a source of null; later ones point at the resource.
            let source = place.key("source");
            self.findings.error(if self.minor == 0 { &source } else { place }, "source is missing");
        }
        // 3.0 has no compression here, and does not miss the source of what is verified.
        if self.minor == 0 {
            self.source(resource, place);
            self.hash(resource, place);
        } else {
            self.resource(resource, place);
        }
    }

    fn resource(&mut self, resource: &types::Resource, place: &Place<'_>) {
        if let Some(compression) = given(&resource.compression)
            && compression != "gzip"
        {
            let message = format!("compression is {compression:?}, known is gzip");
            self.findings.error(&place.key("compression"), message);
        }
        let hash = resource.verification.as_ref().and_then(|verification| verification.hash.as_ref());
        if hash.is_some() && resource.source.is_none() {
            let message = "there is no source whose contents this could verify";
            self.findings.error(&place.key("verification").key("hash"), message);
        }
        self.source(resource, place);
        self.hash(resource, place);
        self.headers(resource, place);
    }

    fn source(&mut self, resource: &types::Resource, place: &Place<'_>) {
        if let Some(source) = given(&resource.source) {
            self.check(&place.key("source"), url::validate(source, self.minor));
        }
    }

    fn hash(&mut self, resource: &types::Resource, place: &Place<'_>) {
        let Some(hash) = resource.verification.as_ref().and_then(|verification| verification.hash.as_ref()) else {
            return;
        };
        let outcome = match hash.split_once('-') {
            None => Err("hash is not of the form sha512-HEX".to_owned()),
            Some(("sha512", sum)) => digits(sum, 128),
            Some(("sha256", sum)) if self.minor >= 1 => digits(sum, 64),
            Some((function, _)) if self.minor == 0 => Err(format!("hash function is {function:?}, known is sha512")),
            Some((function, _)) => Err(format!("hash function is {function:?}, known are sha512 and sha256")),
        };
        self.check(&place.key("verification").key("hash"), outcome);
    }

    fn headers(&mut self, resource: &types::Resource, place: &Place<'_>) {
        let place = place.key("httpHeaders");
        for (index, header) in list(&resource.http_headers).iter().enumerate() {
            let place = place.index(index);
            if header.name.is_empty() {
                self.findings.error(&place.key("name"), "header has no name");
            }
            if header.value.as_deref() == Some("") {
                self.findings.error(&place.key("value"), "header has an empty value");
            }
        }
        if list(&resource.http_headers).is_empty() {
            return;
        }
        match given(&resource.source).and_then(url::parse) {
            None => self.findings.error(&place, "there is no valid source to send headers to"),
            Some(url) if url.scheme == "http" || url.scheme == "https" => {}
            Some(url) => self.findings.error(&place, format!("headers cannot be sent to a source of {}", url.scheme)),
        }
    }

    fn systemd(&mut self, systemd: &types::Systemd, place: &Place<'_>) {
        let units = list(&systemd.units);
        let by_name: HashMap<_, _> = units.iter().map(|unit| (unit.name.as_str(), unit)).collect();
        for (index, unit) in units.iter().enumerate() {
            let place = place.key("units");
            let place = place.index(index);
            self.unit(unit, &place);
            self.template(unit, &by_name, &place);
        }
    }

    fn unit(&mut self, unit: &types::Unit, place: &Place<'_>) {
        const KINDS: [&str; 12] = [
            ".service",
            ".socket",
            ".device",
            ".mount",
            ".automount",
            ".swap",
            ".target",
            ".path",
            ".timer",
            ".snapshot",
            ".slice",
            ".scope",
        ];
        if !KINDS.contains(&path::extension(&unit.name)) {
            let message = format!("{:?} does not end as the name of a systemd unit", unit.name);
            self.findings.error(&place.key("name"), message);
        }
        let contents = unit.contents.as_deref().unwrap_or_default();
        match Sections::parse(contents) {
            Err(message) => self.findings.error(&place.key("contents"), format!("unit does not parse: {message}")),
            Ok(sections) if !contents.is_empty() && unit.enabled == Some(true) && !sections.contains("Install") => {
                let message = format!("{:?} is enabled, but has no [Install] section that would do it", unit.name);
                self.findings.warn(&place.key("contents"), message);
            }
            Ok(_) => {}
        }
        for (index, dropin) in list(&unit.dropins).iter().enumerate() {
            let place = place.key("dropins");
            let place = place.index(index);
            if let Err(message) = Sections::parse(dropin.contents.as_deref().unwrap_or_default()) {
                self.findings.error(&place.key("contents"), format!("drop-in does not parse: {message}"));
            }
            if path::extension(&dropin.name) != ".conf" {
                let message = format!("{:?} does not end in .conf", dropin.name);
                self.findings.error(&place.key("name"), message);
            }
        }
    }

    /// An enabled instance whose template is in the config too.
    fn template(&mut self, unit: &types::Unit, by_name: &HashMap<&str, &types::Unit>, place: &Place<'_>) {
        if unit.enabled != Some(true) {
            return;
        }
        let Some(template) = unit::template_of(&unit.name) else { return };
        let Some(contents) = by_name.get(template.as_str()).and_then(|unit| given(&unit.contents)) else { return };
        if Sections::parse(contents).is_ok_and(|sections| !sections.contains("Install")) {
            let message = format!("{:?} is enabled, but its template has no [Install] section", unit.name);
            self.findings.warn(&place.key("contents"), message);
        }
    }

    /// No path may be both a unit's and a file's.
    fn unit_files(&mut self, config: &types::Config, systemd: &types::Systemd, root: &Place<'_>) {
        let mut paths = HashSet::new();
        for unit in list(&systemd.units) {
            let path = format!("/etc/systemd/system/{}", unit.name);
            let dropins = list(&unit.dropins).iter().filter(|dropin| given(&dropin.contents).is_some());
            paths.extend(dropins.map(|dropin| format!("{path}.d/{}", dropin.name)));
            if given(&unit.contents).is_some() {
                paths.insert(path);
            }
        }
        let Some(storage) = &config.storage else { return };
        let files = list(&storage.files).iter().map(|file| &file.path);
        let directories = list(&storage.directories).iter().map(|directory| &directory.path);
        let links = list(&storage.links).iter().map(|link| &link.path);
        let place = root.key("storage");
        let mut check = |key, taken: &mut dyn Iterator<Item = &String>| {
            for (index, path) in taken.enumerate().filter(|(_, path)| paths.contains(*path)) {
                let message = format!("{path} is also made by a unit or drop-in of systemd.units");
                self.findings.error(&place.key(key).index(index).key("path"), message);
            }
        };
        check("files", &mut { files });
        check("directories", &mut { directories });
        check("links", &mut { links });
    }
}

fn digits(sum: &str, expected: usize) -> Result<(), String> {
    if sum.len() == expected {
        return Ok(());
    }
    Err(format!("hash has {} digits, expected {expected}", sum.len()))
}
