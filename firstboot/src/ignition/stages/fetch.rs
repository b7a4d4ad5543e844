//! The stages `fetch-offline` and `fetch`: the machine's config, with all that it refers to, into the cache.
//!
//! `ignition.config.replace` and `ignition.config.merge` are resolved here, and certificate authorities become `data`
//! URLs; the contents of files stay references. Where the reference implementation takes an empty config that is
//! referred to for none at all, and goes on with an empty machine, this is an error. A config that refers to itself is
//! an error too, and depth and number are bounded.
//!
//! Specification: [configuration v3.5](https://coreos.github.io/ignition/configuration-v3_5/), "Config Merging" in the
//! [operator notes](https://coreos.github.io/ignition/operator-notes/#config-merging).

use std::fs;
use std::path::Path;

use anyhow::Context;
use sha2::{Digest, Sha512};

use super::{Fetched, State, write_private};
use crate::ignition::config::{
    self,
    types::{Config, Ignition, Resource},
};
use crate::ignition::environment::Environment;
use crate::ignition::fetch::{self, Fetcher, hex, settings_authorities, shown};
use crate::ignition::flags::Flags;
use crate::ignition::log::Log;
use crate::ignition::platform::{self, Access, CONFIG_LIMIT};
use crate::ignition::system;

/// How deep configs may refer to others.
const MOST_DEPTH: usize = 16;
/// How many configs may be referred to in all.
const MOST_CONFIGS: usize = 256;

/// Finds, fetches and validates the machine's config, and puts it into the cache.
///
/// # Errors
/// [`fetch::NeedsNetwork`] when `offline` and something must be fetched; else when something cannot be had or is not
/// valid.
pub(crate) fn acquire(
    flags: &Flags,
    environment: &Environment,
    offline: bool,
    log: Log,
    state: &mut State,
) -> anyhow::Result<Config> {
    let bare = Fetcher::bare(&environment.network, offline, log).bounded(flags.bound());
    let first = bare.with(&Ignition::default(), flags.fetch_timeout)?;
    let acquired = platform::acquire(&flags.platform, &Access { environment, fetcher: &first, log })?;
    let mut rendered = match acquired.filter(|acquired| !acquired.text.is_empty()) {
        None => {
            log.info("no config provided by the user, or an empty one: going on with an empty config");
            Config::default()
        }
        Some(acquired) => {
            let sha512 = hex(&Sha512::digest(&acquired.text));
            log.debug(format!("parsing config from {} with SHA512: {sha512}", acquired.source));
            let config = system::parse(&acquired.text, log)
                .with_context(|| format!("reading the config from {}", acquired.source))?;
            state.fetched.push(Fetched { kind: "user".into(), source: acquired.source, sha512 });
            Render { log, bare: &first, state, seen: Vec::new(), count: 0 }.render(config, &Ignition::default())?
        }
    };
    finish(&mut rendered, &first).context("finishing the config")?;
    let text = serde_json::to_vec(&rendered).context("writing the merged config")?;
    system::parse(&text, log).context("checking what the configs are when merged")?;
    write_private(&flags.config_cache, &text)?;
    Ok(rendered)
}

/// Reads the cache.
///
/// # Errors
/// When there is none, or it is not what [`acquire`] wrote.
pub(crate) fn cached(path: &Path) -> anyhow::Result<Config> {
    let context = || format!("reading {}", path.display());
    let text = fs::read(path).with_context(context)?;
    serde_json::from_slice(&text).with_context(context)
}

/// Makes the file that tells that the network is needed.
///
/// # Errors
/// What the file system answers.
pub(crate) fn signal_neednet(path: &Path) -> anyhow::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    fs::write(path, b"").with_context(|| format!("writing {}", path.display()))
}

/// Whether later stages will need the network for a config.
pub(crate) fn config_needs_network(config: &Config) -> bool {
    let storage = config.storage.as_ref();
    let files = storage.and_then(|storage| storage.files.as_deref()).unwrap_or_default();
    let volumes = storage.and_then(|storage| storage.luks.as_deref()).unwrap_or_default();
    let contents = files.iter().flat_map(|file| file.contents.iter().chain(file.append.iter().flatten()));
    let keys = volumes.iter().filter_map(|volume| volume.key_file.as_ref());
    let references = config.ignition.config.iter();
    let references = references.flat_map(|config| config.replace.iter().chain(config.merge.iter().flatten()));
    let authorities = settings_authorities(&config.ignition).iter();
    contents.chain(keys).chain(references).chain(authorities).any(fetch::needs_network)
        || volumes.iter().filter_map(|volume| volume.clevis.as_ref()).any(clevis_needs_network)
}

fn clevis_needs_network(clevis: &config::types::Clevis) -> bool {
    // A server that is not advertised in the config has to be asked for its keys.
    clevis.tang.iter().flatten().any(|tang| tang.advertisement.as_deref().is_none_or(str::is_empty))
        || clevis.custom.as_ref().is_some_and(|custom| custom.needs_network == Some(true))
}

/// What the rendered config need not keep: references, which are resolved, and where authorities came from.
fn finish(config: &mut Config, bare: &Fetcher) -> anyhow::Result<()> {
    config.ignition.config = None;
    // This fetches what has not been fetched yet, and sees that the settings can be used.
    let fetcher = bare.with(&config.ignition, None)?;
    let tls = config.ignition.security.as_mut().and_then(|security| security.tls.as_mut());
    for authority in tls.and_then(|tls| tls.certificate_authorities.as_mut()).into_iter().flatten() {
        let bundle = fetcher.authority(authority)?;
        authority.source = Some(fetch::data::encode(&bundle));
        authority.compression = None;
        authority.http_headers = None;
    }
    Ok(())
}

/// Resolves what configs refer to.
struct Render<'a> {
    log: Log,
    bare: &'a Fetcher,
    state: &'a mut State,
    /// What led to the config at hand.
    seen: Vec<Resource>,
    count: usize,
}

impl Render<'_> {
    /// The config with all that it refers to. `inherited` is what fetching goes by beside its own settings.
    fn render(&mut self, mut config: Config, inherited: &Ignition) -> anyhow::Result<Config> {
        let references = config.ignition.config.take().unwrap_or_default();
        if let Some(replace) = references.replace.filter(|replace| replace.source.is_some()) {
            let fetcher = self.bare.with(&over(inherited, &config.ignition), None)?;
            return self.within(&replace, |render| {
                let replacing = render.fetch(&fetcher, &replace)?;
                render.render(replacing, inherited)
            });
        }
        let mut merged = config;
        for reference in references.merge.unwrap_or_default() {
            // What was merged so far counts for fetching what is merged next.
            let settings = over(inherited, &merged.ignition);
            let fetcher = self.bare.with(&settings, None)?;
            let child = self.within(&reference, |render| {
                let child = render.fetch(&fetcher, &reference)?;
                render.render(child, &settings)
            })?;
            merged = config::merge(merged, child);
        }
        Ok(merged)
    }

    /// Does something for a config that is referred to, unless it refers to itself.
    fn within<T>(
        &mut self,
        reference: &Resource,
        then: impl FnOnce(&mut Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let name = shown(reference.source.as_deref().unwrap_or_default());
        self.count += 1;
        anyhow::ensure!(!self.seen.contains(reference), "the config at {name} refers to itself: {}", self.path(&name));
        anyhow::ensure!(self.seen.len() < MOST_DEPTH, "configs refer to others more than {MOST_DEPTH} deep, at {name}");
        anyhow::ensure!(self.count <= MOST_CONFIGS, "more than {MOST_CONFIGS} configs are referred to, at {name}");
        self.seen.push(reference.clone());
        let outcome = then(self);
        self.seen.pop();
        outcome
    }

    fn path(&self, last: &str) -> String {
        let names = self.seen.iter().map(|resource| shown(resource.source.as_deref().unwrap_or_default()));
        names.chain([last.to_owned()]).collect::<Vec<_>>().join(" → ")
    }

    fn fetch(&mut self, fetcher: &Fetcher, reference: &Resource) -> anyhow::Result<Config> {
        let name = shown(reference.source.as_deref().unwrap_or_default());
        let text = fetcher.fetch(reference, CONFIG_LIMIT).context("reading a config that is referred to")?;
        let sha512 = hex(&Sha512::digest(&text));
        self.log.debug(format!("fetched referenced config from {name} with SHA512: {sha512}"));
        let config = system::parse(&text, self.log).with_context(|| format!("reading the config from {name}"))?;
        self.state.fetched.push(Fetched { kind: "referenced".into(), source: name, sha512 });
        Ok(config)
    }
}

/// Settings over others.
fn over(inherited: &Ignition, own: &Ignition) -> Ignition {
    config::merge(Config::new(inherited.clone()), Config::new(own.clone())).ignition
}
