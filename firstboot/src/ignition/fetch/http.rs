//! `http` and `https`, with the manners of the reference implementation.
//!
//! - A request says what it accepts and who asks; a config's own headers come over that, and are not sent on to where
//!   a redirect points.
//! - Connections that fail, answers that do not come in time and 5xx are tried again, 100 ms later and then twice as
//!   long each time up to 5 s, until the total timeout. Every other status but 200 and 204 is final.
//! - What breaks off within the contents is final too: part of them has been passed on already. So is a certificate
//!   that is refused, which the reference asks for again and again: nothing that the machine waits for would mend it.
//!
//! Specification: [operator notes](https://coreos.github.io/ignition/operator-notes/#http-backoff-and-retry). Stricter
//! than that: at most ten redirects, and contents that stand still for two minutes are given up.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use anyhow::Context;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use reqwest::{Client, Response, StatusCode};
use tokio::runtime::Runtime;
use url::Url;

use super::names::Names;
use super::proxy::Proxies;
use super::shown_url;
use crate::ignition::config::types::HttpHeadersItem;
use crate::ignition::log::Log;

const ACCEPTED: HeaderValue = HeaderValue::from_static("application/vnd.coreos.ignition+json;version=3.6.0, */*;q=0.1");
const AGENT: HeaderValue = HeaderValue::from_static(concat!("NodeZero-Ignition/", env!("CARGO_PKG_VERSION")));
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const STALL_TIMEOUT: Duration = Duration::from_secs(120);
const MOST_REDIRECTS: usize = 10;

/// How long things may take; `None` is without end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timeouts {
    /// From a request to the head of its answer, the connection included.
    pub(super) headers: Option<Duration>,
    /// All attempts together, the contents included.
    pub(super) total: Option<Duration>,
}

/// A client with the settings of one config.
#[derive(Debug)]
pub(super) struct Http {
    client: Client,
    runtime: Runtime,
}

/// The contents of an answer.
pub(super) struct Body<'a> {
    runtime: &'a Runtime,
    response: Response,
    chunk: Vec<u8>,
    read: usize,
    deadline: Option<Instant>,
}

/// What came of one attempt.
enum Attempt {
    Answer(Response),
    Again(String),
}

impl Http {
    /// # Errors
    /// When the system has no means for it.
    pub(super) fn new(proxies: Proxies, tls: rustls::ClientConfig) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting tokio")?;
        let client = Client::builder()
            .use_preconfigured_tls(tls)
            .no_proxy()
            .proxy(reqwest::Proxy::custom(move |url| proxies.for_url(url)))
            .dns_resolver(std::sync::Arc::new(Names))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            // A machine fetches a few things from here and there, once.
            .pool_max_idle_per_host(0)
            .build()
            .context("setting up the HTTP client")?;
        Ok(Self { client, runtime })
    }

    /// Asks for a URL until there is a final answer.
    ///
    /// # Errors
    /// When that is not the contents, or time is up.
    pub(super) fn open(&self, url: &Url, headers: HeaderMap, timeouts: Timeouts, log: Log) -> anyhow::Result<Body<'_>> {
        let deadline = timeouts.total.map(|total| Instant::now() + total);
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            log.info(format!("GET {}: attempt #{attempt}", shown_url(url)));
            let outcome = self.runtime.block_on(self.attempt(url, &headers, timeouts.headers, deadline, log))?;
            let reason = match outcome {
                Attempt::Answer(response) => {
                    return Ok(Body { runtime: &self.runtime, response, chunk: Vec::new(), read: 0, deadline });
                }
                Attempt::Again(reason) => reason,
            };
            log.error(format!("GET {}: {reason}", shown_url(url)));
            if let (Some(deadline), Some(total)) = (deadline, timeouts.total)
                && Instant::now() + pause >= deadline
            {
                let attempts = if attempt == 1 { "attempt" } else { "attempts" };
                anyhow::bail!("it could not be fetched within {total:?}: {attempt} {attempts}, the last one: {reason}");
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        unreachable!("attempts are counted without end")
    }

    /// One attempt, redirects included.
    async fn attempt(
        &self,
        url: &Url,
        headers: &HeaderMap,
        header_timeout: Option<Duration>,
        deadline: Option<Instant>,
        log: Log,
    ) -> anyhow::Result<Attempt> {
        let mut url = url.clone();
        let mut headers = Some(headers);
        for _ in 0..=MOST_REDIRECTS {
            let request = self.client.get(url.clone()).headers(request_headers(headers.take())).send();
            let response = match bounded(shorter(header_timeout, deadline), request).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) if is_about_certificate(&error) => anyhow::bail!("{}", chain(&error.without_url())),
                Ok(Err(error)) => return Ok(Attempt::Again(chain(&error.without_url()))),
                Err(timeout) => return Ok(Attempt::Again(format!("no answer within {timeout:?}"))),
            };
            let status = response.status();
            log.info(format!("GET result: {status}"));
            match status {
                StatusCode::OK | StatusCode::NO_CONTENT => return Ok(Attempt::Answer(response)),
                StatusCode::NOT_FOUND => anyhow::bail!("the server answered {status}: there is no such resource"),
                _ if status.is_server_error() => return Ok(Attempt::Again(format!("the server answered {status}"))),
                StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT => {
                    let next = target(&url, &response).with_context(|| format!("following a redirect ({status})"))?;
                    log.info(format!("redirected to {}", shown_url(&next)));
                    if url.scheme() == "https" && next.scheme() == "http" {
                        log.warning("the redirect leads from https to http, where nobody vouches for the contents");
                    }
                    url = next;
                }
                _ => anyhow::bail!("the server answered {status}"),
            }
        }
        anyhow::bail!("the server redirects more than {MOST_REDIRECTS} times")
    }
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.chunk.len() {
            let limit = shorter(Some(STALL_TIMEOUT), self.deadline);
            let next = self.runtime.block_on(bounded(limit, self.response.chunk()));
            let next = next.map_err(|timeout| {
                io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("the contents stood still for {timeout:?}, or time is up"),
                )
            })?;
            match next.map_err(|error| io::Error::other(chain(&error.without_url())))? {
                None => return Ok(0),
                Some(chunk) => (self.chunk, self.read) = (chunk.to_vec(), 0),
            }
        }
        let count = buffer.len().min(self.chunk.len() - self.read);
        buffer[..count].copy_from_slice(&self.chunk[self.read..self.read + count]);
        self.read += count;
        Ok(count)
    }
}

/// A config's headers.
///
/// # Errors
/// With the name alone: a value may be a secret.
pub(super) fn parse_headers(headers: &[HttpHeadersItem]) -> anyhow::Result<HeaderMap> {
    let mut map = HeaderMap::new();
    for header in headers {
        let name = HeaderName::try_from(&header.name).with_context(|| format!("HTTP header {:?}", header.name))?;
        let value = header.value.as_deref().filter(|value| !value.is_empty());
        let value = value.with_context(|| format!("HTTP header {name} has no value"))?;
        let value = HeaderValue::try_from(value).ok();
        let mut value = value.with_context(|| format!("the value of HTTP header {name} cannot be sent"))?;
        value.set_sensitive(true);
        map.insert(name, value);
    }
    Ok(map)
}

/// What every request says, and what the config says over that.
fn request_headers(own: Option<&HeaderMap>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(USER_AGENT, AGENT);
    headers.insert(ACCEPT, ACCEPTED);
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    for (name, value) in own.into_iter().flatten() {
        headers.insert(name, value.clone());
    }
    headers
}

/// Where a redirect points.
fn target(from: &Url, response: &Response) -> anyhow::Result<Url> {
    let location = response.headers().get(LOCATION).context("it names no location")?;
    let location = std::str::from_utf8(location.as_bytes()).context("reading its location")?;
    let url = from.join(location).context("reading its location")?;
    anyhow::ensure!(matches!(url.scheme(), "http" | "https"), "it points to a URL of scheme {}", url.scheme());
    Ok(url)
}

/// The shorter of a duration and what is left until a deadline.
fn shorter(duration: Option<Duration>, deadline: Option<Instant>) -> Option<Duration> {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    match (duration, left) {
        (Some(duration), Some(left)) => Some(duration.min(left)),
        (duration, left) => duration.or(left),
    }
}

/// Waits for a future, at most that long.
async fn bounded<T>(limit: Option<Duration>, future: impl Future<Output = T>) -> Result<T, Duration> {
    match limit {
        None => Ok(future.await),
        Some(limit) => tokio::time::timeout(limit, future).await.map_err(|_| limit),
    }
}

/// Whether the server's certificate was refused.
fn is_about_certificate(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
            return true;
        }
        // What an `io::Error` is made of is not among its sources.
        cause = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

/// An error with its causes, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.ends_with(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}
