//! Fetching resources: `http`, `https`, `tftp` and `data` URLs, verified and decompressed as they stream by.
//!
//! Left out: `s3`, `arn` and `gs`, which need credentials of a provider; a source of these is an error that says so.
//! URLs are logged without user name, password and query, `data` URLs not at all, and headers never.

pub(crate) mod data;
mod http;
pub(crate) mod names;
mod proxy;
#[cfg(test)]
pub(crate) mod tests;
mod tftp;
mod tls;
mod verify;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustls::pki_types::CertificateDer;
use url::Url;

use self::http::{Http, Timeouts};
use self::proxy::Proxies;
pub(crate) use self::verify::hex;
use super::config::types::{Ignition, Resource};
use super::environment::{Environment, Network};
use super::log::Log;

/// What waiting for the head of an answer is bounded by, unless a config says otherwise.
const DEFAULT_HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest bundle of certificate authorities of a config, in bytes.
const AUTHORITIES_LIMIT: usize = 4 << 20;

/// That a resource needs the network, where that may not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the resource requires networking")]
pub(crate) struct NeedsNetwork;

impl NeedsNetwork {
    /// Whether that is what an error comes from.
    pub(crate) fn caused(error: &anyhow::Error) -> bool {
        error.chain().any(|cause| cause.is::<Self>())
    }
}

/// Fetches resources by the rules of one config.
#[derive(Debug)]
pub(crate) struct Fetcher {
    log: Log,
    offline: bool,
    timeouts: Timeouts,
    /// The total timeout of every fetch for which no config sets one.
    bound: Option<Duration>,
    proxies: Proxies,
    /// The config's certificate authorities.
    authorities: Vec<CertificateDer<'static>>,
    /// Where the system's lie.
    system_authorities: PathBuf,
    /// What was fetched of certificate authorities, by source.
    bundles: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    network: Network,
    http: OnceLock<Http>,
}

impl Fetcher {
    /// A fetcher with the timeouts, proxies and certificate authorities of a config. Certificate authorities are
    /// fetched here. `bound` is the total timeout where the config sets none.
    ///
    /// # Errors
    /// When a certificate authority cannot be fetched or used, or a proxy is none.
    pub(crate) fn new(settings: &Ignition, bound: Option<Duration>, log: Log) -> anyhow::Result<Self> {
        Self::bare(&Environment::read().network, false, log).with(settings, bound)
    }

    /// A fetcher with no settings. One that is `offline` answers [`NeedsNetwork`] to all but `data` URLs.
    pub(crate) fn bare(network: &Network, offline: bool, log: Log) -> Self {
        Self {
            log,
            offline,
            timeouts: Timeouts { headers: Some(DEFAULT_HEADER_TIMEOUT), total: None },
            bound: None,
            proxies: Proxies::default(),
            authorities: Vec::new(),
            system_authorities: network.authorities.clone(),
            bundles: Arc::default(),
            network: network.clone(),
            http: OnceLock::new(),
        }
    }

    /// The same with a total timeout for every fetch for which no config sets one. Without it such a fetch is tried
    /// again without end, as the specification says.
    pub(crate) fn bounded(self, bound: Option<Duration>) -> Self {
        Self { bound, timeouts: Timeouts { total: bound, ..self.timeouts }, ..self }
    }

    /// The same with other settings. Certificate authorities that were fetched once are not fetched again.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn with(&self, settings: &Ignition, bound: Option<Duration>) -> anyhow::Result<Self> {
        let seconds = |seconds: i64| u64::try_from(seconds).ok().filter(|s| *s > 0).map(Duration::from_secs);
        let timeouts = settings.timeouts.clone().unwrap_or_default();
        let bare = Self {
            timeouts: Timeouts {
                headers: timeouts.http_response_headers.map_or(Some(DEFAULT_HEADER_TIMEOUT), seconds),
                total: timeouts.http_total.map_or(bound.or(self.bound), seconds),
            },
            bound: self.bound,
            proxies: Proxies::of(settings.proxy.as_ref(), &self.network)?,
            // An authority is fetched with what was trusted before.
            authorities: self.authorities.clone(),
            bundles: Arc::clone(&self.bundles),
            ..Self::bare(&self.network, self.offline, self.log)
        };
        let mut authorities = Vec::new();
        for resource in settings_authorities(settings) {
            let shown = shown(resource.source.as_deref().unwrap_or_default());
            let context = || format!("using certificate authority {shown}");
            let bundle = bare.authority(resource).with_context(context)?;
            authorities.extend(tls::parse_bundle(&bundle).with_context(context)?);
        }
        Ok(Self { authorities, http: OnceLock::new(), ..bare })
    }

    /// Whether the network may not be used.
    pub(crate) fn is_offline(&self) -> bool {
        self.offline
    }

    /// Writes a resource's contents, decompressed, and verifies them. One with no source is empty.
    ///
    /// # Errors
    /// When it cannot be fetched or does not verify; then part of it may have been written.
    pub(crate) fn fetch_to(&self, resource: &Resource, out: &mut dyn Write) -> anyhow::Result<()> {
        self.copy(resource, None, out)
    }

    /// A resource's contents in memory, bounded.
    ///
    /// # Errors
    /// As [`Self::fetch_to`], and when it is larger than `limit` bytes.
    pub(crate) fn fetch(&self, resource: &Resource, limit: usize) -> anyhow::Result<Vec<u8>> {
        let mut content = Vec::new();
        self.copy(resource, Some(limit as u64), &mut content)?;
        Ok(content)
    }

    /// The text of a certificate authority, verified.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub(crate) fn authority(&self, resource: &Resource) -> anyhow::Result<Vec<u8>> {
        let source = resource.source.clone().filter(|source| !source.is_empty()).context("it has no source")?;
        let known = self.bundles.lock().unwrap_or_else(PoisonError::into_inner).get(&source).cloned();
        if let Some(bundle) = known {
            return Ok(bundle);
        }
        let bundle = self.fetch(resource, AUTHORITIES_LIMIT)?;
        self.bundles.lock().unwrap_or_else(PoisonError::into_inner).insert(source, bundle.clone());
        Ok(bundle)
    }

    fn copy(&self, resource: &Resource, limit: Option<u64>, out: &mut dyn Write) -> anyhow::Result<()> {
        let source = resource.source.as_deref().unwrap_or_default();
        self.copy_source(source, resource, limit, out).with_context(|| format!("fetching {}", shown(source)))
    }

    fn copy_source(
        &self,
        source: &str,
        resource: &Resource,
        limit: Option<u64>,
        out: &mut dyn Write,
    ) -> anyhow::Result<()> {
        if source.is_empty() {
            return verify::copy(&mut std::io::empty(), resource, limit, out);
        }
        // Not through the URL parser, which would rewrite what it holds.
        if source.starts_with("data:") {
            return verify::copy(&mut data::decode(source)?.as_slice(), resource, limit, out);
        }
        let url = Url::parse(source).context("reading the URL")?;
        let headers = http::parse_headers(resource.http_headers.as_deref().unwrap_or_default())?;
        if self.is_offline() {
            return Err(NeedsNetwork.into());
        }
        match url.scheme() {
            "http" | "https" => {
                let mut body = self.http()?.open(&url, headers, self.timeouts, self.log)?;
                verify::copy(&mut body, resource, limit, out)
            }
            "tftp" => {
                let deadline = self.timeouts.total.map(|total| Instant::now() + total);
                verify::copy(&mut tftp::open(&url, deadline)?, resource, limit, out)
            }
            scheme @ ("s3" | "arn" | "gs") => anyhow::bail!(
                "NodeZero does not fetch from {scheme} sources, which need credentials of a provider: give the object \
                 an https URL (a signed one where it is private)"
            ),
            scheme => anyhow::bail!("the source scheme {scheme} is not supported"),
        }
    }

    /// The HTTP client, made when it is needed first: most configs hold all they need.
    fn http(&self) -> anyhow::Result<&Http> {
        if let Some(http) = self.http.get() {
            return Ok(http);
        }
        let tls = tls::client_config(&self.system_authorities, &self.authorities)?;
        let http = Http::new(self.proxies.clone(), tls)?;
        Ok(self.http.get_or_init(|| http))
    }
}

/// The certificate authorities that a config names.
pub(crate) fn settings_authorities(settings: &Ignition) -> &[Resource] {
    let tls = settings.security.as_ref().and_then(|security| security.tls.as_ref());
    tls.and_then(|tls| tls.certificate_authorities.as_deref()).unwrap_or_default()
}

/// Whether fetching needs the network.
pub(crate) fn needs_network(resource: &Resource) -> bool {
    resource.source.as_deref().is_some_and(|source| !source.is_empty() && !source.starts_with("data:"))
}

/// A source as it may be shown: without user name, password and query, and nothing of a `data` URL.
pub(crate) fn shown(source: &str) -> String {
    if source.is_empty() {
        return "an empty source".to_owned();
    }
    match Url::parse(source) {
        Ok(url) if url.scheme() == "data" => "a data URL".to_owned(),
        Ok(url) => shown_url(&url),
        Err(_) => "a source that is no URL".to_owned(),
    }
}

fn shown_url(url: &Url) -> String {
    let mut plain = url.clone();
    // A URL without a host has neither.
    let _ = plain.set_username("");
    let _ = plain.set_password(None);
    plain.set_fragment(None);
    plain.set_query(None);
    if url.query().is_some() { format!("{plain}?…") } else { plain.to_string() }
}
