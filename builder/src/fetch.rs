//! Verified, bounded downloads into the cache.
//!
//! Every file is known by SHA-256 before it is asked for (only a signed `InRelease` is not, which is bounded and
//! verified by its signature), and by its size or a bound of it. A download goes to a temporary file while it is
//! hashed, ends at the first byte past its size, and gets its final name only when all agree. One that is cut goes on
//! where it ended if the server says that the file is still the same (RFC 9110, sections 13.1.5 and 14.2), else from
//! its beginning. A cached file is hashed again before it is used.

use std::fmt;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use debian::digest::Sha256;
use sha2::Digest as _;
use tempfile::NamedTempFile;

use crate::cache::Cache;
use crate::progress::Progress;

/// Downloads at a time: enough to hide latency, polite to a mirror.
const AT_ONCE: usize = 8;
/// What a cut download must have brought to have its tries anew: a large file on a bad line takes many.
const PROGRESS: u64 = 1 << 20;
/// Redirections that are followed.
const REDIRECTIONS: usize = 10;

/// How long a download waits, and how often it tries.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// The longest time until a connection stands, name and TLS included.
    pub connect: Duration,
    /// The longest silence on a connection.
    pub silence: Duration,
    /// Tries of one address where nobody answers.
    pub reach: u32,
    /// Tries of one address on another error that may pass.
    pub tries: u32,
}

impl Patience {
    /// For what a build cannot do without.
    pub const NEEDED: Self =
        Self { connect: Duration::from_secs(30), silence: Duration::from_secs(30), reach: 3, tries: 3 };
    /// For what there is something else for: asked for once and quickly, and taken with patience where it is.
    pub const OPTIONAL: Self = Self { connect: Duration::from_secs(5), reach: 1, ..Self::NEEDED };
}

/// What is known of a file's size, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// It is pinned.
    Exactly(u64),
    /// Only a bound is known.
    AtMost(u64),
}

impl Length {
    /// The most bytes that are taken.
    #[must_use]
    pub fn limit(self) -> u64 {
        match self {
            Self::Exactly(size) | Self::AtMost(size) => size,
        }
    }

    /// The size, where it is known.
    #[must_use]
    pub fn known(self) -> Option<u64> {
        match self {
            Self::Exactly(size) => Some(size),
            Self::AtMost(_) => None,
        }
    }

    fn admits(self, size: u64) -> bool {
        match self {
            Self::Exactly(expected) => size == expected,
            Self::AtMost(limit) => size <= limit,
        }
    }
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(size) => write!(f, "{size} bytes"),
            Self::AtMost(limit) => write!(f, "at most {limit} bytes"),
        }
    }
}

/// A file that is to be in the cache.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// For messages: `udev 257.13-1 (amd64)`.
    pub title: String,
    /// Addresses in the order in which they are tried.
    pub urls: Vec<String>,
    /// What its content must be.
    pub sha256: Sha256,
    /// Its size, or a bound of it.
    pub length: Length,
}

/// A file that at least one source does not have, and that the others do not have either or cannot be reached for.
#[derive(Debug, thiserror::Error)]
#[error("{title} is not at any of its sources any more: {}", .urls.join(", "))]
pub struct Gone {
    /// What was asked for.
    pub title: String,
    /// Where.
    pub urls: Vec<String>,
}

/// A file that no source gives, and none is broken: nobody answers, it is not there, or it is refused.
#[derive(Debug, thiserror::Error)]
#[error("fetching {title}: {reasons}")]
pub struct Unavailable {
    /// What was asked for.
    pub title: String,
    /// Each source's answer.
    pub reasons: String,
}

/// Downloads into a cache.
#[derive(Clone, Debug)]
pub struct Fetcher {
    cache: Cache,
    offline: bool,
    patience: Patience,
}

enum Failure {
    NotFound,
    /// The server will not give it.
    Denied(anyhow::Error),
    /// May pass: nobody answers.
    Unreachable(anyhow::Error),
    /// May pass: server errors and cut connections.
    Passing(anyhow::Error),
    Final(anyhow::Error),
}

impl Fetcher {
    /// A fetcher for `cache`; `offline` makes every download an error.
    #[must_use]
    pub fn new(cache: Cache, offline: bool) -> Self {
        Self { cache, offline, patience: Patience::NEEDED }
    }

    /// The same with another patience.
    #[must_use]
    pub fn with_patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// The cache that it fills.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The cached file of a digest, if it is there; not verified, for which see [`verify_file`].
    #[must_use]
    pub fn cached(&self, kind: &str, sha256: &Sha256) -> Option<PathBuf> {
        let path = self.cache.path(kind, &sha256.to_string());
        path.exists().then_some(path)
    }

    /// Brings all of `wanted` into the cache, and returns for each the result in the same order. A file that is there
    /// already is hashed before it is taken.
    ///
    /// # Errors
    /// For each file of its own: [`Gone`] when no source has it, else what went wrong at each source.
    pub fn fetch(&self, kind: &'static str, wanted: &[Wanted], progress: &Progress) -> Result<Vec<Result<PathBuf>>> {
        let mut results: Vec<Option<Result<PathBuf>>> = Vec::new();
        let mut missing = Vec::new();
        for (index, item) in wanted.iter().enumerate() {
            results.push(self.cached(kind, &item.sha256).map(Ok));
            if results[index].is_none() {
                missing.push(index);
            }
        }
        let present: Vec<usize> = (0..wanted.len()).filter(|index| results[*index].is_some()).collect();
        let verified = crate::parallel::map(&present, |index| {
            let path = self.cache.path(kind, &wanted[*index].sha256.to_string());
            verify_file(&path, &wanted[*index].sha256, wanted[*index].length).map(|()| path)
        });
        for (index, result) in present.iter().zip(verified) {
            results[*index] = Some(result);
        }
        if !missing.is_empty() {
            let total = missing.iter().filter_map(|index| wanted[*index].length.known()).sum();
            progress.start_count("fetching", total);
            let downloaded = self.download_all(kind, wanted, &missing, progress)?;
            for (index, result) in missing.into_iter().zip(downloaded) {
                results[index] = Some(result);
            }
        }
        Ok(results.into_iter().flatten().collect())
    }

    fn download_all(
        &self,
        kind: &'static str,
        wanted: &[Wanted],
        missing: &[usize],
        progress: &Progress,
    ) -> Result<Vec<Result<PathBuf>>> {
        if self.offline {
            return Ok(missing
                .iter()
                .map(|index| Err(NotCached { title: wanted[*index].title.clone() }.into()))
                .collect());
        }
        let patience = self.patience;
        block_on(async {
            let client = client(patience)?;
            let gate = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
            let mut tasks = Vec::new();
            for index in missing {
                let (gate, client, item) = (gate.clone(), client.clone(), wanted[*index].clone());
                let (cache, progress) = (self.cache.clone(), progress.clone());
                tasks.push(tokio::spawn(async move {
                    let _turn = gate.acquire().await.context("waiting for a turn to download")?;
                    download(&client, &cache, kind, &item, patience, &progress).await
                }));
            }
            let mut results = Vec::new();
            for task in tasks {
                results.push(task.await.context("downloading")?);
            }
            Ok(results)
        })
    }

    /// Reads a small file that is not known beforehand, from the first address that has it.
    ///
    /// # Errors
    /// When no address has it, or it is larger than `limit`.
    pub fn read_unpinned(&self, title: &str, urls: &[String], limit: u64) -> Result<Vec<u8>> {
        if self.offline {
            bail!("{title} has to be fetched, and --offline forbids it");
        }
        if urls.is_empty() {
            bail!("no mirror is known for {title}: give --mirror or set NODEZERO_DEBIAN_MIRROR");
        }
        let patience = self.patience;
        block_on(async {
            let client = client(patience)?;
            let mut reasons = Vec::new();
            for url in urls {
                let mut bytes = Vec::new();
                for attempt in 1.. {
                    bytes.clear();
                    let outcome = read(&client, url, limit, &mut bytes).await;
                    match outcome {
                        Ok(()) => return Ok(bytes),
                        Err(failure) if attempt < failure.tries(patience) => backoff(attempt).await,
                        Err(failure) => {
                            reasons.push(failure.describe(url));
                            break;
                        }
                    }
                }
            }
            Err(anyhow!("fetching {title}: {}", reasons.join("; ")))
        })
    }
}

/// A file that is not in the cache, and may not be fetched.
#[derive(Debug, thiserror::Error)]
#[error("{title} is not in the cache, and --offline forbids to fetch it")]
pub struct NotCached {
    /// What was asked for.
    pub title: String,
}

impl Failure {
    fn describe(self, url: &str) -> String {
        match self {
            Self::NotFound => format!("{url}: not found"),
            Self::Denied(error) | Self::Unreachable(error) | Self::Passing(error) | Self::Final(error) => {
                format!("{url}: {error:#}")
            }
        }
    }

    /// How often an address is tried that fails so.
    fn tries(&self, patience: Patience) -> u32 {
        match self {
            Self::NotFound | Self::Denied(_) | Self::Final(_) => 1,
            Self::Unreachable(_) => patience.reach,
            Self::Passing(_) => patience.tries,
        }
    }

    fn of(error: reqwest::Error) -> Self {
        let (unreachable, redirect) = (error.is_connect(), error.is_redirect());
        let error = anyhow::Error::new(error.without_url());
        match (unreachable, redirect) {
            (true, _) => Self::Unreachable(error),
            (_, true) => Self::Final(error),
            _ => Self::Passing(error),
        }
    }
}

/// Runs downloads. A name that is still being looked up when they end is not waited for.
fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the download threads")?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

fn client(patience: Patience) -> Result<reqwest::Client> {
    reqwest::Client::builder()
        .user_agent(concat!("nodezero/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(patience.connect)
        .read_timeout(patience.silence)
        .redirect(reqwest::redirect::Policy::limited(REDIRECTIONS))
        .build()
        .context("preparing downloads")
}

async fn backoff(attempt: u32) {
    tokio::time::sleep(Duration::from_millis(300 << attempt.min(6))).await;
}

async fn download(
    client: &reqwest::Client,
    cache: &Cache,
    kind: &str,
    item: &Wanted,
    patience: Patience,
    progress: &Progress,
) -> Result<PathBuf> {
    if item.urls.is_empty() {
        bail!("no mirror is known for {}: give --mirror or set NODEZERO_DEBIAN_MIRROR", item.title);
    }
    let mut reasons = Vec::new();
    // A source that answers with an error or a wrong file may have it; one that cannot be reached is as good as none.
    let (mut missing, mut denied, mut broken) = (false, false, false);
    for url in &item.urls {
        let mut part = Part::new(cache)?;
        let mut attempt = 1;
        let failure = loop {
            let before = part.size;
            let outcome = part.fetch(client, url, item.length, progress).await.and_then(|()| part.check(item));
            match outcome {
                Ok(()) => return cache.publish(part.file, kind, &item.sha256.to_string()),
                Err(failure) if attempt < failure.tries(patience) => {
                    backoff(attempt).await;
                    // Only what is smaller than the file can grow further, so this ends.
                    attempt = if part.size >= before + PROGRESS { 1 } else { attempt + 1 };
                }
                Err(failure) => break failure,
            }
        };
        missing |= matches!(failure, Failure::NotFound);
        denied |= matches!(failure, Failure::Denied(_));
        broken |= matches!(failure, Failure::Final(_) | Failure::Passing(_));
        reasons.push(failure.describe(url));
    }
    let (title, reasons) = (item.title.clone(), reasons.join("; "));
    match (broken, missing && !denied) {
        (true, _) => Err(anyhow!("fetching {title}: {reasons}")),
        (false, true) => Err(Gone { title, urls: item.urls.clone() }.into()),
        (false, false) => Err(Unavailable { title, reasons }.into()),
    }
}

/// What has come of a file so far.
struct Part {
    file: NamedTempFile,
    hasher: sha2::Sha256,
    size: u64,
    /// What the server calls this very state of the file: a strong entity tag, or a date.
    validator: Option<String>,
}

impl Part {
    fn new(cache: &Cache) -> Result<Self> {
        Ok(Self { file: cache.temporary()?, hasher: sha2::Sha256::new(), size: 0, validator: None })
    }

    fn restart(&mut self) -> Result<()> {
        self.hasher = sha2::Sha256::new();
        self.size = 0;
        let file = self.file.as_file_mut();
        file.set_len(0).and_then(|()| file.rewind()).with_context(|| format!("writing {}", self.file.path().display()))
    }

    /// Takes the file, or what is missing of it if the server has it unchanged.
    async fn fetch(
        &mut self,
        client: &reqwest::Client,
        url: &str,
        length: Length,
        progress: &Progress,
    ) -> Result<(), Failure> {
        use reqwest::header::{ETAG, IF_RANGE, LAST_MODIFIED, RANGE};
        let mut request = client.get(url);
        if let Some(validator) = self.validator.take().filter(|_| self.size > 0) {
            request = request.header(RANGE, format!("bytes={}-", self.size)).header(IF_RANGE, validator);
        }
        let mut response = answer(request).await?;
        let continues = response.status() == reqwest::StatusCode::PARTIAL_CONTENT && self.begins_at_end(&response);
        if !continues {
            if response.status() == reqwest::StatusCode::PARTIAL_CONTENT {
                return Err(Failure::Final(anyhow!("the server sent another part than was asked for")));
            }
            self.restart().map_err(Failure::Final)?;
        }
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(ToOwned::to_owned);
        self.validator = header(ETAG).filter(|tag| !tag.starts_with("W/")).or_else(|| header(LAST_MODIFIED));
        while let Some(chunk) = response.chunk().await.map_err(Failure::of)? {
            let size = self.size + chunk.len() as u64;
            if size > length.limit() {
                return Err(too_large(length.limit()));
            }
            let path = self.file.path().to_owned();
            let written = self.file.write_all(&chunk).with_context(|| format!("writing {}", path.display()));
            written.map_err(Failure::Final)?;
            self.hasher.update(&chunk);
            self.size = size;
            progress.add(chunk.len() as u64);
        }
        Ok(())
    }

    /// Whether a partial answer goes on exactly where this ends.
    fn begins_at_end(&self, response: &reqwest::Response) -> bool {
        let range = response.headers().get(reqwest::header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
        range.is_some_and(|range| range.starts_with(&format!("bytes {}-", self.size)))
    }

    fn check(&self, item: &Wanted) -> Result<(), Failure> {
        let found = Sha256::from_bytes(self.hasher.clone().finalize().into());
        if found == item.sha256 && item.length.admits(self.size) {
            return Ok(());
        }
        let (size, expected) = (self.size, item.length);
        Err(Failure::Final(anyhow!("SHA-256 is {found} ({size} bytes), expected {} ({expected})", item.sha256)))
    }
}

fn too_large(limit: u64) -> Failure {
    Failure::Final(anyhow!("the file is larger than the {limit} bytes expected"))
}

/// Asks, and sorts out what is no file.
async fn answer(request: reqwest::RequestBuilder) -> Result<reqwest::Response, Failure> {
    use reqwest::StatusCode;
    let response = request.send().await.map_err(Failure::of)?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let error = anyhow!("the server answered {status}");
    Err(match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => Failure::NotFound,
        status if status.is_server_error() => Failure::Passing(error),
        // The last comes of asking for what is missing of a file that is whole: the next try asks for all.
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS | StatusCode::RANGE_NOT_SATISFIABLE => {
            Failure::Passing(error)
        }
        status if status.is_client_error() => Failure::Denied(error),
        _ => Failure::Final(error),
    })
}

async fn read(client: &reqwest::Client, url: &str, limit: u64, bytes: &mut Vec<u8>) -> Result<(), Failure> {
    let mut response = answer(client.get(url)).await?;
    while let Some(chunk) = response.chunk().await.map_err(Failure::of)? {
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Err(too_large(limit));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(())
}

/// The SHA-256 and size of a file.
///
/// # Errors
/// When it cannot be read.
pub fn hash_file(path: &Path) -> Result<(Sha256, u64)> {
    let reading = || format!("reading {}", path.display());
    let mut file = File::open(path).with_context(reading)?;
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let count = file.read(&mut buffer).with_context(reading)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        size += count as u64;
    }
    Ok((Sha256::from_bytes(hasher.finalize().into()), size))
}

/// Refuses a file whose content is not what its digest says.
///
/// # Errors
/// Naming the file, what it is and what it should be.
pub fn verify_file(path: &Path, sha256: &Sha256, length: Length) -> Result<()> {
    let (found, found_size) = hash_file(path)?;
    if found != *sha256 || !length.admits(found_size) {
        bail!(
            "{} was changed after it was verified: SHA-256 is {found} ({found_size} bytes), expected {sha256} \
             ({length}); remove it and build again",
            path.display()
        );
    }
    Ok(())
}
