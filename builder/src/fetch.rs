//! Verified, bounded downloads into the cache.
//!
//! Every file is known by SHA-256 and size before it is asked for (only a signed `InRelease` is not, which is bounded
//! and verified by its signature). A download goes to a temporary file while it is hashed, ends at the first byte
//! past its size, and gets its final name only when both agree. A cached file is hashed again before it is used.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use debian::digest::Sha256;
use sha2::Digest as _;

use crate::cache::Cache;
use crate::progress::Progress;

/// Downloads at a time: enough to hide latency, polite to a mirror.
const AT_ONCE: usize = 8;
/// Tries of one address on an error that may pass.
const TRIES: u32 = 3;
/// The longest silence on a connection.
const SILENCE: Duration = Duration::from_secs(30);

/// A file that is to be in the cache.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// For messages: `udev 257.13-1 (amd64)`.
    pub title: String,
    /// Addresses in the order in which they are tried.
    pub urls: Vec<String>,
    /// What its content must be.
    pub sha256: Sha256,
    /// Its size in bytes.
    pub size: u64,
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

/// Downloads into a cache.
#[derive(Clone, Debug)]
pub struct Fetcher {
    cache: Cache,
    offline: bool,
}

enum Failure {
    NotFound,
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
        Self { cache, offline }
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
            verify_file(&path, &wanted[*index].sha256, wanted[*index].size).map(|()| path)
        });
        for (index, result) in present.iter().zip(verified) {
            results[*index] = Some(result);
        }
        if !missing.is_empty() {
            let total = missing.iter().map(|index| wanted[*index].size).sum();
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
                .map(|index| {
                    Err(anyhow!("{} is not in the cache, and --offline forbids to fetch it", wanted[*index].title))
                })
                .collect());
        }
        let runtime = runtime()?;
        runtime.block_on(async {
            let client = client()?;
            let gate = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
            let mut tasks = Vec::new();
            for index in missing {
                let (gate, client, item) = (gate.clone(), client.clone(), wanted[*index].clone());
                let (cache, progress) = (self.cache.clone(), progress.clone());
                tasks.push(tokio::spawn(async move {
                    let _turn = gate.acquire().await.context("waiting for a turn to download")?;
                    download(&client, &cache, kind, &item, &progress).await
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
        runtime()?.block_on(async {
            let client = client()?;
            let mut reasons = Vec::new();
            for url in urls {
                let mut bytes = Vec::new();
                for attempt in 1..=TRIES {
                    bytes.clear();
                    let outcome = stream(&client, url, limit, |chunk| {
                        bytes.extend_from_slice(chunk);
                        Ok(())
                    })
                    .await;
                    match outcome {
                        Ok(()) => return Ok(bytes),
                        Err(Failure::Passing(_) | Failure::Unreachable(_)) if attempt < TRIES => backoff(attempt).await,
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

impl Failure {
    fn describe(self, url: &str) -> String {
        match self {
            Self::NotFound => format!("{url}: not found"),
            Self::Unreachable(error) | Self::Passing(error) | Self::Final(error) => format!("{url}: {error:#}"),
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the download threads")
}

fn client() -> Result<reqwest::Client> {
    reqwest::Client::builder()
        .user_agent(concat!("nodezero/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(SILENCE)
        .read_timeout(SILENCE)
        .build()
        .context("preparing downloads")
}

async fn backoff(attempt: u32) {
    tokio::time::sleep(Duration::from_millis(300 << attempt)).await;
}

async fn download(
    client: &reqwest::Client,
    cache: &Cache,
    kind: &str,
    item: &Wanted,
    progress: &Progress,
) -> Result<PathBuf> {
    if item.urls.is_empty() {
        bail!("no mirror is known for {}: give --mirror or set NODEZERO_DEBIAN_MIRROR", item.title);
    }
    let mut reasons = Vec::new();
    // A source that answers with an error or a wrong file may have it; one that cannot be reached is as good as none.
    let (mut missing, mut refused) = (false, false);
    for url in &item.urls {
        for attempt in 1..=TRIES {
            let mut file = cache.temporary()?;
            let mut hasher = sha2::Sha256::new();
            let mut size = 0u64;
            let path = file.path().to_owned();
            let outcome = stream(client, url, item.size, |chunk| {
                hasher.update(chunk);
                size += chunk.len() as u64;
                progress.add(chunk.len() as u64);
                file.write_all(chunk).with_context(|| format!("writing {}", path.display()))
            })
            .await
            .and_then(|()| {
                let found = Sha256::from_bytes(hasher.finalize().into());
                if found == item.sha256 {
                    return Ok(());
                }
                Err(Failure::Final(anyhow!(
                    "SHA-256 is {found} ({size} bytes), expected {} ({} bytes)",
                    item.sha256,
                    item.size
                )))
            });
            match outcome {
                Ok(()) => return cache.publish(file, kind, &item.sha256.to_string()),
                Err(Failure::Passing(_) | Failure::Unreachable(_)) if attempt < TRIES => {
                    backoff(attempt).await;
                }
                Err(failure) => {
                    missing |= matches!(failure, Failure::NotFound);
                    refused |= matches!(failure, Failure::Final(_) | Failure::Passing(_));
                    reasons.push(failure.describe(url));
                    break;
                }
            }
        }
    }
    if missing && !refused {
        return Err(Gone { title: item.title.clone(), urls: item.urls.clone() }.into());
    }
    Err(anyhow!("fetching {}: {}", item.title, reasons.join("; ")))
}

async fn stream(
    client: &reqwest::Client,
    url: &str,
    limit: u64,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<(), Failure> {
    let passing = |error: reqwest::Error| {
        let unreachable = error.is_connect();
        let error = anyhow::Error::new(error.without_url());
        if unreachable { Failure::Unreachable(error) } else { Failure::Passing(error) }
    };
    let mut response = client.get(url).send().await.map_err(passing)?;
    let status = response.status();
    if status == reqwest::StatusCode::NOT_FOUND || status == reqwest::StatusCode::GONE {
        return Err(Failure::NotFound);
    }
    if status.is_server_error() {
        return Err(Failure::Passing(anyhow!("the server answered {status}")));
    }
    if !status.is_success() {
        return Err(Failure::Final(anyhow!("the server answered {status}")));
    }
    let mut size = 0u64;
    while let Some(chunk) = response.chunk().await.map_err(passing)? {
        size += chunk.len() as u64;
        if size > limit {
            return Err(Failure::Final(anyhow!("the file is larger than the {limit} bytes expected")));
        }
        take(&chunk).map_err(Failure::Final)?;
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
pub fn verify_file(path: &Path, sha256: &Sha256, size: u64) -> Result<()> {
    let (found, found_size) = hash_file(path)?;
    if (found, found_size) != (*sha256, size) {
        bail!(
            "{} was changed after it was verified: SHA-256 is {found} ({found_size} bytes), expected {sha256} ({size} \
             bytes); remove it and build again",
            path.display()
        );
    }
    Ok(())
}
