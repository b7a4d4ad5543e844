//! tailscaled's local API: HTTP over a Unix socket, as Tailscale's own command line speaks it (`client/local` of its
//! source, handlers in `ipn/localapi`).
//!
//! It is used rather than that command line because the auth key then passes through no argument, file or output of
//! another program; because one answer has state, name, addresses and the control server's own words, where `tailscale
//! up` waits and ends with a sentence; and because each question ends in a bounded time. Tailscale does not promise to
//! keep this interface. So it is four questions that have been there for years, fields that are not known are passed
//! over, and the image pins the version that this was tried with.

use std::fmt;
use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, ensure};
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_LENGTH, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value};
use tokio::net::UnixStream;

use super::status::Status;

/// Where tailscaled listens.
pub(super) const SOCKET: &str = "/run/tailscale/tailscaled.sock";
/// The only host name that it takes.
const LOCAL_HOST: &str = "local-tailscaled.sock";
/// The largest answer that is read, in bytes: a mesh of thousands of machines has a few megabytes.
const LIMIT: usize = 32 << 20;
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// How much of a refusal is shown, in characters.
const SHOWN: usize = 400;

/// A key that lets machines join.
pub(super) struct AuthKey(String);

impl AuthKey {
    /// Takes the one line of a file.
    ///
    /// # Errors
    /// When there is none, or more.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let key = text.trim();
        ensure!(!key.is_empty(), "it is empty");
        ensure!(!key.contains(|c: char| c.is_whitespace() || c.is_control()), "it has more than one word");
        Ok(Self(key.to_owned()))
    }
}

impl fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthKey(…)")
    }
}

/// tailscaled's preferences: JSON of the form `ipn.Prefs`. What this version does not know stays as it is.
pub(super) type Preferences = Map<String, Value>;

/// The local API at a socket.
#[derive(Debug)]
pub(super) struct LocalApi {
    socket: PathBuf,
}

impl LocalApi {
    /// At this socket. Nothing is asked yet.
    pub(super) fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// What tailscaled says of itself.
    ///
    /// # Errors
    /// When it is not there, or does not answer in time.
    pub(super) fn status(&self) -> anyhow::Result<Status> {
        let json = self.ask(Method::GET, "status", String::new())?;
        Status::parse(&json).context("parsing tailscaled's status")
    }

    /// Its preferences.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub(super) fn preferences(&self) -> anyhow::Result<Preferences> {
        let json = self.ask(Method::GET, "prefs", String::new())?;
        serde_json::from_slice(&json).context("parsing tailscaled's preferences")
    }

    /// Changes these preferences and no others.
    ///
    /// # Errors
    /// When it refuses them, too.
    pub(super) fn change(&self, changes: &Preferences) -> anyhow::Result<()> {
        let mut masked = changes.clone();
        for (name, value) in changes {
            // What is changed of a group is told one by one.
            let mask = match value {
                Value::Object(parts) => parts.keys().map(|part| (format!("{part}Set"), Value::Bool(true))).collect(),
                _ => Value::Bool(true),
            };
            masked.insert(format!("{name}Set"), mask);
        }
        self.ask(Method::PATCH, "prefs", Value::Object(masked).to_string()).map(drop)
    }

    /// Has it join with these preferences and this key.
    ///
    /// # Errors
    /// As [`Self::change`]. Whether it could join is told by its status later.
    pub(super) fn join(&self, mut preferences: Preferences, key: &AuthKey) -> anyhow::Result<()> {
        // What it has from the control server is its own.
        preferences.remove("Config");
        let options = serde_json::json!({ "AuthKey": key.0, "UpdatePrefs": preferences });
        self.ask(Method::POST, "start", options.to_string())?;
        self.ask(Method::POST, "login-interactive", String::new()).map(drop)
    }

    /// Asks, with a bound.
    fn ask(&self, method: Method, name: &str, body: String) -> anyhow::Result<Vec<u8>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting tokio")?;
        let asked = format!("asking tailscaled to {method} {name}");
        let answer =
            runtime.block_on(async { tokio::time::timeout(PATIENCE, self.exchange(method, name, body)).await });
        answer
            .map_err(|_| anyhow::anyhow!("no answer within {} s", PATIENCE.as_secs()))
            .and_then(|answer| answer)
            .with_context(|| format!("{asked} at {}", self.socket.display()))
    }

    async fn exchange(&self, method: Method, name: &str, body: String) -> anyhow::Result<Vec<u8>> {
        let stream = UnixStream::connect(&self.socket).await.context("connecting")?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // What goes wrong there is also told to the sender.
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(format!("/localapi/v0/{name}"))
            .header(HOST, LOCAL_HOST)
            .header(CONTENT_LENGTH, body.len())
            .body(body)
            .context("making the request")?;
        let response = sender.send_request(request).await.context("exchanging a message")?;
        let status = response.status();
        let content = read_body(response.into_body()).await;
        connection.abort();
        let content = content?;
        let told = || String::from_utf8_lossy(&content).trim().chars().take(SHOWN).collect::<String>();
        ensure!(status.is_success(), "it answers {status}: {}", told());
        Ok(content)
    }
}

async fn read_body(mut body: Incoming) -> anyhow::Result<Vec<u8>> {
    let mut content = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        if let Ok(data) = frame.context("reading the answer")?.into_data() {
            ensure!(content.len() + data.len() <= LIMIT, "the answer is larger than {LIMIT} bytes");
            content.extend_from_slice(&data);
        }
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_word_and_is_not_shown() {
        for (text, expected) in
            [("k-1\n", true), ("  k  ", true), ("", false), ("\n", false), ("a b", false), ("a\nb", false)]
        {
            assert_eq!(AuthKey::parse(text).is_ok(), expected, "{text:?}");
        }
        assert_eq!(format!("{:?}", AuthKey::parse("k-1").expect("valid")), "AuthKey(…)");
    }
}
