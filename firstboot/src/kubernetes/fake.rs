//! A stand-in for the API in tests: HTTP/1.1 on loopback, with TLS where that is what is tested, each request noted.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use super::Access;

/// How long a test's connection may be idle.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was asked.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// `GET` and others.
    pub(crate) method: String,
    /// Without the query.
    pub(crate) path: String,
    /// Behind the question mark.
    pub(crate) query: String,
    /// The header.
    pub(crate) authorization: Option<String>,
    /// JSON, or null.
    pub(crate) body: Value,
}

/// What is answered.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    code: u16,
    body: Value,
}

impl Reply {
    /// An object.
    pub(crate) fn json(body: &Value) -> Self {
        Self { code: 200, body: body.clone() }
    }

    /// A refusal.
    pub(crate) fn status(code: u16, message: &str) -> Self {
        // The client tells an object that is not there by this word.
        let reason = if code == 404 { "NotFound" } else { "Test" };
        let body = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code });
        Self { code, body }
    }
}

/// The server. Its threads end with the test.
pub(crate) struct Fake {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    authority: Option<String>,
    requests: Arc<Mutex<Vec<Request>>>,
    directory: tempfile::TempDir,
}

impl Fake {
    /// Without TLS.
    pub(crate) fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::serve(None, None, answer)
    }

    /// With a certificate for 127.0.0.1 of an authority of its own.
    pub(crate) fn start_tls(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let mut parameters = rcgen::CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().expect("a key");
        let authority = parameters.self_signed(&key).expect("signed");
        let issuer = rcgen::Issuer::new(parameters, key);
        let leaf_key = rcgen::KeyPair::generate().expect("a key");
        let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
        let leaf = leaf.signed_by(&leaf_key, &issuer).expect("signed");
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], private)
            .expect("a certificate");
        Self::serve(Some(Arc::new(config)), Some(authority.pem()), answer)
    }

    fn serve(
        tls: Option<Arc<ServerConfig>>,
        authority: Option<String>,
        answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("bound");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (answer, noted) = (Arc::new(answer), Arc::clone(&requests));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (answer, noted, tls) = (Arc::clone(&answer), Arc::clone(&noted), tls.clone());
                std::thread::spawn(move || {
                    let bounded = stream.set_read_timeout(Some(PATIENCE));
                    bounded.expect("bounded");
                    match tls {
                        None => converse(stream, &*answer, &noted),
                        Some(config) => {
                            let session = ServerConnection::new(config).expect("a session");
                            converse(StreamOwned::new(session, stream), &*answer, &noted);
                        }
                    }
                });
            }
        });
        Self { address, authority, requests, directory: tempfile::tempdir().expect("tempdir") }
    }

    /// The authority's certificate as PEM.
    pub(crate) fn authority(&self) -> String {
        self.authority.clone().expect("started with TLS")
    }

    /// A kubeconfig for it.
    pub(crate) fn access(&self) -> Access {
        self.access_at(&format!("http://{}", self.address))
    }

    /// A kubeconfig for another server.
    pub(crate) fn access_at(&self, server: &str) -> Access {
        let path = self.directory.path().join(server.replace(['/', ':'], "-"));
        let config = super::kubeconfig(server, None, "", "a-token");
        let mut config = config;
        config["clusters"][0]["cluster"].as_object_mut().expect("an object").remove("certificate-authority-data");
        std::fs::write(&path, config.to_string()).expect("written");
        Access::file(path)
    }

    /// What was asked so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The bodies that were applied so far, with path and manager.
    pub(crate) fn applied(&self) -> Vec<(String, String, Value)> {
        let patches = self.requests().into_iter().filter(|request| request.method == "PATCH");
        let manager = |query: &str| {
            let found = query.split('&').find_map(|pair| pair.strip_prefix("fieldManager="));
            found.unwrap_or_default().to_owned()
        };
        patches.map(|request| (request.path, manager(&request.query), request.body)).collect()
    }
}

/// Answers requests until the other side has enough.
fn converse<S: Read + Write>(stream: S, answer: &dyn Fn(&Request) -> Reply, noted: &Mutex<Vec<Request>>) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream) {
        noted.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
        let reply = answer(&request);
        let body = reply.body.to_string();
        let head = format!(
            "HTTP/1.1 {} Test\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            reply.code,
            body.len()
        );
        let stream = stream.get_mut();
        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).is_err() {
            return;
        }
        let _ = stream.flush();
    }
}

fn read_request(stream: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|length| *length > 0)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let (mut length, mut authorization) = (0, None);
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().ok()?,
            "authorization" => authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    let body = serde_json::from_slice(&body).unwrap_or_default();
    Some(Request { method, path: path.to_owned(), query: query.to_owned(), authorization, body })
}
