//! A Kubernetes API on the loopback, as much of it as `nodezero` asks for: objects by path, server-side apply without
//! owners of fields, deletion with a precondition, watches, and a controller that fills tokens. Without TLS.
//!
//! It keeps what it was asked, and fails on demand.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::loopback::{Head, Loopback, lock};

/// How long a watch is served, so that no thread outlives its test for long.
const WATCH: Duration = Duration::from_secs(30);

/// The token that the controller puts into every Secret for one.
pub(crate) const TOKEN: &str = "eyJ.the-token.of-an-account";

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) body: Value,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    objects: BTreeMap<String, Value>,
    /// Objects that were removed, as they were, with a version of the removal.
    removed: BTreeMap<String, Value>,
    versions: u64,
    requests: Vec<Request>,
    /// Refuse everything with this status.
    refuse: Option<u16>,
    /// After so many more writes, all that follow fail.
    writes_left: Option<usize>,
}

/// An API that runs until the test ends.
#[derive(Clone, Debug)]
pub(crate) struct FakeApi(Loopback<State>);

impl FakeApi {
    pub(crate) fn start() -> Self {
        Self(Loopback::start(answer))
    }

    pub(crate) fn url(&self) -> String {
        self.0.url()
    }

    /// A kubeconfig whose current context is this API.
    pub(crate) fn kubeconfig(&self) -> String {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{ "name": "here", "cluster": { "server": self.url() } }],
            "users": [{ "name": "me", "user": { "token": "operator" } }],
            "contexts": [
                { "name": "here", "context": { "cluster": "here", "user": "me" } },
                { "name": "nowhere", "context": { "cluster": "gone", "user": "me" } },
            ],
        });
        config.to_string()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state()
    }

    /// Puts an object there, as somebody else would.
    pub(crate) fn put(&self, path: &str, object: Value) {
        self.state().put(path, object);
    }

    pub(crate) fn remove(&self, path: &str) {
        self.state().remove(path);
    }

    pub(crate) fn object(&self, path: &str) -> Option<Value> {
        self.state().objects.get(path).cloned()
    }

    /// Every object without its version, by path.
    pub(crate) fn objects(&self) -> BTreeMap<String, Value> {
        let mut objects = self.state().objects.clone();
        for object in objects.values_mut() {
            object["metadata"].as_object_mut().expect("it has some").remove("resourceVersion");
        }
        objects
    }

    pub(crate) fn refuse(&self, status: Option<u16>) {
        self.state().refuse = status;
    }

    pub(crate) fn fail_after_writes(&self, count: Option<usize>) {
        self.state().writes_left = count;
    }

    /// What was asked until now; forgets it.
    pub(crate) fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().requests)
    }

    /// Method and path of what changed something.
    pub(crate) fn take_writes(&self) -> Vec<String> {
        let writes = self.take_requests().into_iter().filter(|request| request.method != "GET");
        writes.map(|request| format!("{} {}", request.method, request.path)).collect()
    }
}

impl State {
    fn put(&mut self, path: &str, mut object: Value) {
        self.versions += 1;
        object["metadata"]["resourceVersion"] = json!(self.versions.to_string());
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-of-{}", path.rsplit('/').next().unwrap_or_default()));
        }
        self.objects.insert(path.to_owned(), object);
    }

    fn remove(&mut self, path: &str) {
        self.versions += 1;
        if let Some(mut object) = self.objects.remove(path) {
            object["metadata"]["resourceVersion"] = json!(self.versions.to_string());
            self.removed.insert(path.to_owned(), object);
        }
    }

    fn write(&mut self, request: &Request) -> (u16, Value) {
        if let Some(left) = &mut self.writes_left {
            if *left == 0 {
                return status(500, "cut");
            }
            *left -= 1;
        }
        match request.method.as_str() {
            "PATCH" => {
                let mut object = self.objects.get(&request.path).cloned().unwrap_or_else(|| json!({ "metadata": {} }));
                merge(&mut object, &request.body);
                if object["type"] == "kubernetes.io/service-account-token" {
                    object["data"] = json!({ "token": base64(TOKEN.as_bytes()) });
                }
                self.put(&request.path, object);
                (200, self.objects[&request.path].clone())
            }
            "DELETE" => {
                let Some(object) = self.objects.get(&request.path) else { return status(404, "not found") };
                let wanted = &request.body["preconditions"]["uid"];
                if !wanted.is_null() && *wanted != object["metadata"]["uid"] {
                    return status(409, "the UID in the precondition does not match");
                }
                self.remove(&request.path);
                status(200, "deleted")
            }
            method => status(405, method),
        }
    }
}

fn answer(stream: &TcpStream, state: &Mutex<State>) -> io::Result<()> {
    let request = read(stream)?;
    let lock = || lock(state);
    let (code, body) = {
        let mut state = lock();
        state.requests.push(request.clone());
        match (state.refuse, request.method.as_str()) {
            (Some(code), _) => status(code, "no"),
            (None, "GET") => match state.objects.get(&request.path) {
                Some(object) => (200, object.clone()),
                None if request.query.contains("fieldSelector=") => {
                    let name = request.query.split("metadata.name%3D").nth(1).unwrap_or_default();
                    let name = name.split('&').next().unwrap_or_default();
                    let path = format!("{}/{name}", request.path);
                    if request.query.contains("watch=true") {
                        drop(state);
                        let since = request.query.split("resourceVersion=").nth(1).unwrap_or_default();
                        let since = since.split('&').next().and_then(|text| text.parse().ok()).unwrap_or(0);
                        return watch(stream, &path, since, &lock);
                    }
                    let items: Vec<&Value> = state.objects.get(&path).into_iter().collect();
                    let version = state.versions.to_string();
                    let list = json!({ "apiVersion": "v1", "kind": "ConfigMapList", "items": items,
                        "metadata": { "resourceVersion": version } });
                    (200, list)
                }
                None => status(404, "not found"),
            },
            (None, _) => state.write(&request),
        }
    };
    let body = body.to_string();
    let mut out = stream;
    write!(
        out,
        "HTTP/1.1 {code} Test\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Tells of each change of an object after the version `since` until the client goes.
fn watch<'a>(
    stream: &TcpStream,
    path: &str,
    mut since: u64,
    lock: &impl Fn() -> MutexGuard<'a, State>,
) -> io::Result<()> {
    let mut out = stream;
    write!(out, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")?;
    let begin = Instant::now();
    while begin.elapsed() < WATCH {
        thread::sleep(Duration::from_millis(10));
        let (there, gone) = {
            let state = lock();
            (state.objects.get(path).cloned(), state.removed.get(path).cloned())
        };
        let (kind, object) = match (there, gone) {
            (Some(object), _) => ("MODIFIED", object),
            (None, Some(object)) => ("DELETED", object),
            (None, None) => continue,
        };
        let version = object["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0);
        if version > since {
            since = version;
            writeln!(out, "{}", json!({ "type": kind, "object": object }))?;
            out.flush()?;
        }
    }
    Ok(())
}

fn read(stream: &TcpStream) -> io::Result<Request> {
    let mut reader = BufReader::new(stream);
    let Head { method, target, headers } = Head::read(&mut reader)?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let length = headers.get("content-length").map(|length| length.parse()).transpose().map_err(io::Error::other)?;
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body)?;
    let body = serde_json::from_slice(&body).unwrap_or_default();
    Ok(Request { method, path: path.to_owned(), query: query.to_owned(), body })
}

fn status(code: u16, message: &str) -> (u16, Value) {
    let word = if code < 300 { "Success" } else { "Failure" };
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        403 => "Forbidden",
        401 => "Unauthorized",
        _ => "",
    };
    let body = json!({ "apiVersion": "v1", "kind": "Status", "status": word, "message": message, "reason": reason, "code": code });
    (code, body)
}

fn merge(object: &mut Value, patch: &Value) {
    match (object, patch) {
        (Value::Object(object), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(object.entry(key).or_insert(Value::Null), value);
            }
        }
        (object, patch) => *object = patch.clone(),
    }
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().chain(&[0; 2]).take(3).fold(0_usize, |word, byte| word << 8 | usize::from(*byte));
        for place in 0..4 {
            let letter = char::from(LETTERS[word >> (18 - 6 * place) & 63]);
            text.push(if place <= chunk.len() { letter } else { '=' });
        }
    }
    text
}
