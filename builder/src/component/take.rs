//! Takes each component of a role from where it can be had.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use nodezero_profile::Role;
use rootfs::Pack;

use super::model::{Choice, Component, FileSpec, Source};
use super::release::Refusal;
use super::store::{Files, Packed};
use super::{go, local, pin, release, store};
use crate::cache::Cache;
use crate::fetch::{Fetcher, Patience, Unavailable};
use crate::lock::Lock;
use crate::manifest::{ComponentFile, ComponentRecord};
use crate::parallel;
use crate::progress::Progress;

/// What a build asks for.
#[derive(Clone, Copy, Debug)]
pub struct Demand<'a> {
    /// The directory of `components/`.
    pub images: &'a Path,
    /// The role.
    pub role: Role,
    /// The pins.
    pub lock: &'a Lock,
    /// What the user says, by component.
    pub choices: &'a BTreeMap<String, Choice>,
    /// Whether a stand-in is an error.
    pub official_only: bool,
    /// Whether only the cache may be used.
    pub offline: bool,
    /// Where downloads and packs are.
    pub cache: &'a Cache,
    /// Who hears of it.
    pub progress: &'a Progress,
}

/// What is laid in for a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Laid {
    /// Path in the image, relative to the root.
    pub path: String,
    /// What is there.
    pub place: Place,
}

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The one file of a pack.
    Packed {
        /// Which pack of [`Taken::packs`].
        pack: usize,
        /// Permission bits.
        mode: u16,
    },
    /// A link to a path of the same image, relative to the link.
    Link {
        /// Where to.
        target: String,
    },
}

/// The components of an image.
#[derive(Debug, Default)]
pub struct Taken {
    /// What manifests say of them, by name.
    pub records: Vec<ComponentRecord>,
    /// Names of those that the image goes without.
    pub missing: Vec<String>,
    /// Sets of packages that stand-ins need.
    pub sets: Vec<String>,
    /// What is laid in.
    pub laid: Vec<Laid>,
    /// The contents, a pack for each file.
    pub packs: Vec<Pack>,
}

/// One component's files, and where they came from.
struct Origin {
    files: Files,
    version: String,
    source: &'static str,
    from: String,
    go: Option<String>,
    standin: bool,
}

/// Takes all components of a role.
///
/// # Errors
/// When one cannot be had, is not what the lock says, or the user names one that there is not.
pub fn take(demand: &Demand<'_>) -> Result<Taken> {
    let components = Component::load_all(demand.images)?;
    check_choices(demand, &components)?;
    let mut taken = Taken::default();
    for component in components.iter().filter(|component| component.roles.contains(&demand.role)) {
        let choice = demand.choices.get(&component.name);
        if choice == Some(&Choice::Without) {
            taken.missing.push(component.name.clone());
            continue;
        }
        let origin = find(demand, component, choice).with_context(|| format!("component {}", component.name))?;
        if origin.standin {
            if demand.official_only {
                bail!("component {}: what is given is a stand-in, which --official-only forbids", component.name);
            }
            taken.sets.extend(component.standin().map(|standin| standin.set.clone()));
        }
        lay(demand.cache, component, origin, &mut taken).with_context(|| format!("component {}", component.name))?;
    }
    Ok(taken)
}

fn check_choices(demand: &Demand<'_>, components: &[Component]) -> Result<()> {
    for (name, choice) in demand.choices {
        let Some(component) = components.iter().find(|component| component.name == *name) else {
            let known: Vec<&str> = components.iter().map(|component| component.name.as_str()).collect();
            bail!("there is no component {name}; components there: {}", known.join(", "));
        };
        // Going without what an image has not is no mistake.
        if !component.roles.contains(&demand.role) && *choice != Choice::Without {
            bail!("{name} is no component of {}", demand.role);
        }
    }
    Ok(())
}

fn find(demand: &Demand<'_>, component: &Component, choice: Option<&Choice>) -> Result<Origin> {
    let word = match choice {
        Some(Choice::Path(path)) => return given(demand, component, path),
        Some(Choice::Release) => Some("release"),
        Some(Choice::Go) => Some("go"),
        Some(Choice::Standin) => Some("standin"),
        Some(Choice::Without) | None => None,
    };
    let sources: Vec<&Source> =
        component.sources.iter().filter(|source| word.is_none_or(|word| source.word() == word)).collect();
    if let (Some(word), []) = (word, &sources[..]) {
        let known: Vec<&str> = component.sources.iter().map(Source::word).collect();
        bail!("it has no source {word}: use {}, none, or a path", known.join(", "));
    }
    let mut reasons = Vec::new();
    for source in sources {
        if demand.official_only && matches!(source, Source::Standin(_)) {
            reasons.push("standin: --official-only forbids it".to_owned());
            continue;
        }
        match try_source(demand, component, source) {
            Ok(origin) => {
                say_instead(demand, component, &origin, &reasons);
                return Ok(origin);
            }
            Err(Refusal::Unavailable(error)) => {
                // The source is named here; what was asked of it need not be said again.
                let why =
                    error.downcast_ref::<Unavailable>().map_or_else(|| format!("{error:#}"), |no| no.reasons.clone());
                reasons.push(format!("{} {}: {why}", source.word(), source.version()));
            }
            Err(Refusal::Wrong(error)) => return Err(error),
        }
    }
    let name = &component.name;
    bail!("it cannot be had ({}); give --component {name}=PATH, or go without by {name}=none", reasons.join("; "))
}

/// Says what is taken in place of what could not be had.
fn say_instead(demand: &Demand<'_>, component: &Component, origin: &Origin, reasons: &[String]) {
    if reasons.is_empty() {
        return;
    }
    let (name, version, why) = (&component.name, &origin.version, reasons.join("; "));
    if origin.standin {
        demand.progress.warn(&format!(
            "{name} cannot be had ({why}); a stand-in is taken: this image is for tests only, and says so. Give \
             --component {name}=PATH for a real one, or --official-only to make this an error"
        ));
    } else {
        demand.progress.say(&format!("{name} {version} is built from its sources, since it cannot be had ({why})"));
    }
}

fn try_source(demand: &Demand<'_>, component: &Component, source: &Source) -> Result<Origin, Refusal> {
    let Demand { cache, progress, .. } = *demand;
    let pins = &demand.lock.components;
    let client = || go::Client::find().map(|client| client.offline(demand.offline)).map_err(Refusal::Unavailable);
    let origin = |files, from, go, standin| Origin {
        files,
        version: source.version().to_owned(),
        source: source.word(),
        from,
        go,
        standin,
    };
    match source {
        Source::Release(release) => {
            let fetcher = Fetcher::new(cache.clone(), demand.offline).with_patience(Patience::OPTIONAL);
            let files = release::files(&component.name, release, pins, &fetcher, progress)?;
            let urls: Vec<&str> = release.downloads.iter().map(|download| download.url.as_str()).collect();
            Ok(origin(files, urls.join(" "), None, false))
        }
        Source::Module(module) => {
            let sum = pin::of_module(pins, &component.name, module).map_err(Refusal::Wrong)?;
            let client = client()?;
            // Whatever stops a build, another source may serve.
            let files = go::module_files(&client, module, sum, cache, progress).map_err(Refusal::Unavailable)?;
            Ok(origin(files, format!("{}@{} {sum}", module.path, module.version), Some(client.version), false))
        }
        Source::Standin(standin) => {
            let client = client()?;
            let images = std::path::absolute(demand.images).context("finding the workspace")?;
            let workspace = images.parent().context("finding the workspace")?;
            let files =
                go::standin_files(&client, standin, workspace, cache, progress).map_err(Refusal::Unavailable)?;
            Ok(origin(files, standin.directory.display().to_string(), Some(client.version), true))
        }
    }
}

/// What the user gives. A program that the lock pins is the release, wherever it comes from; one of the workspace's
/// rig is a stand-in.
fn given(demand: &Demand<'_>, component: &Component, path: &Path) -> Result<Origin> {
    let files = local::files(component, path, demand.cache)?;
    let program = component.files.first().context("a component has files")?;
    let stored = files.get(&program.name).with_context(|| format!("{} holds no {}", path.display(), program.name))?;
    let release = pin::release_of(&demand.lock.components, &component.name, &stored.sha256);
    let standin = component.standin().is_some() && release.is_none() && local::is_standin(&stored.path)?;
    let (source, version) = match (release, standin) {
        (Some(version), _) => ("release", version),
        (None, true) => ("standin", "given"),
        (None, false) => ("local", "given"),
    };
    // No path of this machine reaches an image.
    Ok(Origin { version: version.to_owned(), source, from: "given".to_owned(), go: None, standin, files })
}

/// Packs a component's files, and decides what stands where.
fn lay(cache: &Cache, component: &Component, origin: Origin, taken: &mut Taken) -> Result<()> {
    let mut jobs = Vec::new();
    for spec in &component.files {
        match (origin.files.get(&spec.name), &spec.or_link) {
            (Some(stored), _) => jobs.push((spec, stored)),
            (None, Some(other)) => {
                let other = component.files.iter().find(|file| file.name == *other);
                let other = other.with_context(|| format!("{} links to no file of the component", spec.name))?;
                let target = relative(&spec.path, &other.path);
                taken.laid.push(Laid { path: spec.path.clone(), place: Place::Link { target } });
            }
            (None, None) if spec.optional => {}
            (None, None) => bail!("{} {} has no {}", origin.source, origin.version, spec.name),
        }
    }
    let packed = parallel::map(&jobs, |(spec, stored)| store::pack(cache, &spec.name, stored));
    let mut files = Vec::new();
    for ((spec, stored), packed) in jobs.iter().zip(packed) {
        let Packed { pack, size, packed } = packed?;
        let FileSpec { path, mode, .. } = spec;
        taken.laid.push(Laid { path: path.clone(), place: Place::Packed { pack: taken.packs.len(), mode: *mode } });
        taken.packs.push(pack);
        files.push(ComponentFile { path: path.clone(), sha256: stored.sha256.to_string(), size, packed });
    }
    taken.records.push(ComponentRecord {
        name: component.name.clone(),
        version: origin.version,
        source: origin.source.to_owned(),
        from: origin.from,
        go: origin.go,
        standin: origin.standin,
        files,
    });
    Ok(())
}

/// The way from the directory of `link` to `target`, both relative to the root.
fn relative(link: &str, target: &str) -> String {
    let link: Vec<&str> = link.split('/').collect();
    let parts: Vec<&str> = target.split('/').collect();
    let shared = link.iter().zip(&parts).take_while(|(a, b)| a == b).count().min(link.len() - 1).min(parts.len() - 1);
    let up = std::iter::repeat_n("..", link.len() - 1 - shared);
    up.chain(parts[shared..].iter().copied()).collect::<Vec<_>>().join("/")
}

/// Reads `NAME=WHAT`.
///
/// # Errors
/// When there is no name or nothing after it.
pub fn parse_choice(text: &str) -> Result<(String, Choice)> {
    match text.split_once('=') {
        Some((name, what)) if !name.is_empty() && !what.is_empty() => {
            let Ok(choice) = what.parse();
            Ok((name.to_owned(), choice))
        }
        _ => Err(anyhow!("{text:?} is not NAME=WHAT, such as k3s=./k3s")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_their_targets() {
        for (link, target, expected) in [
            ("usr/bin/tailscale", "usr/sbin/tailscaled", "../sbin/tailscaled"),
            ("usr/bin/kubectl", "usr/bin/k3s", "k3s"),
            ("a", "usr/bin/k3s", "usr/bin/k3s"),
            ("usr/lib/x/y", "opt/z", "../../../opt/z"),
        ] {
            assert_eq!(relative(link, target), expected, "{link} to {target}");
        }
    }

    #[test]
    fn choices_have_a_name_and_a_source() {
        let (name, choice) = parse_choice("k3s=a=b").expect("a path may have any letter");
        assert_eq!((name.as_str(), choice), ("k3s", Choice::Path("a=b".into())));
        for text in ["k3s", "=x", "k3s=", ""] {
            assert!(parse_choice(text).is_err(), "{text}");
        }
    }
}
