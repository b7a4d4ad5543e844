//! TLS: who is trusted, and who is not.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;

use super::*;
use crate::ignition::config::types::{Security, SecurityTls};

/// A certificate authority of one's own.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("certificate").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Settings of a server of that name.
    fn server(&self, name: &str) -> Arc<ServerConfig> {
        let key = KeyPair::generate().expect("key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        let certificate = params.signed_by(&key, &self.issuer).expect("certificate");
        server_config(certificate.der().clone(), &key)
    }
}

fn server_config(certificate: CertificateDer<'static>, key: &KeyPair) -> Arc<ServerConfig> {
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().expect("versions");
    Arc::new(builder.with_no_client_auth().with_single_cert(vec![certificate], key).expect("certificate"))
}

/// What `openssl req -x509` makes: an authority that is its own server.
fn self_signed(name: &str) -> (String, Arc<ServerConfig>) {
    let key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).expect("certificate");
    (certificate.pem(), server_config(certificate.der().clone(), &key))
}

/// Some certificate authority.
pub(crate) fn authority_in_pem() -> String {
    Authority::new().pem
}

fn trusting(sources: &[String]) -> Ignition {
    let authorities = sources.iter().map(resource).collect();
    let tls = SecurityTls { certificate_authorities: Some(authorities) };
    Ignition { security: Some(Security { tls: Some(tls) }), ..timeouts(None, Some(1)) }
}

fn in_data_url(pem: &str) -> String {
    data::encode(pem.as_bytes())
}

#[test]
fn a_config_s_authority_is_trusted_and_no_other() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let server = Server::https(ours.server("127.0.0.1"), |_, _| Reply::ok("secret"));
    let other = Server::https(ours.server("other.test"), |_, _| Reply::ok("secret"));
    let both = format!("some words\n{}\n{}\n\n", theirs.pem, ours.pem);
    for (case, authorities, server, expected) in [
        ("its own authority", &[in_data_url(&ours.pem)][..], &server, Ok("secret")),
        ("a bundle of several", &[in_data_url(&both)], &server, Ok("secret")),
        ("two sources", &[in_data_url(&theirs.pem), in_data_url(&ours.pem)], &server, Ok("secret")),
        ("none", &[], &server, Err("UnknownIssuer")),
        ("another authority", &[in_data_url(&theirs.pem)], &server, Err("invalid peer certificate")),
        ("another name", &[in_data_url(&ours.pem)], &other, Err("not valid for name")),
    ] {
        let source = resource(format!("https://{}/", server.address));
        match (fetch(&trusting(authorities), &source), expected) {
            (Ok(content), Ok(expected)) => assert_eq!(content, expected, "{case}"),
            (Err(error), Err(expected)) => {
                assert!(error.contains(expected), "{case}: {error}");
                assert!(!error.contains("attempt"), "{case}: asked for again: {error}");
            }
            (outcome, expected) => panic!("{case}: {outcome:?}, expected {expected:?}"),
        }
    }
}

#[test]
fn the_system_s_bundle_is_trusted_besides() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let bundle = tempfile::NamedTempFile::new().expect("tempfile");
    std::fs::write(
        bundle.path(),
        format!("{}{}", ours.pem, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    )
    .expect("written");
    let network = Network { authorities: bundle.path().to_owned(), ..network() };
    let server = Server::https(ours.server("127.0.0.1"), |_, _| Reply::ok("secret"));
    let source = resource(format!("https://{}/", server.address));
    for settings in [Ignition::default(), trusting(&[in_data_url(&theirs.pem)])] {
        let fetcher = Fetcher::bare(&network, false, Log::Stdout).with(&settings, None).expect("settings");
        assert_eq!(fetcher.fetch(&source, 100).expect("trusted"), b"secret");
    }
}

#[test]
fn a_self_signed_server_is_trusted_when_it_is_named_itself() {
    let (pem, config) = self_signed("127.0.0.1");
    let server = Server::https(Arc::clone(&config), |_, _| Reply::ok("secret"));
    let source = resource(format!("https://{}/", server.address));
    assert_eq!(fetch(&trusting(&[in_data_url(&pem)]), &source).as_deref(), Ok("secret"));
    let (stranger, _) = self_signed("127.0.0.1");
    let error = fetch(&trusting(&[in_data_url(&stranger)]), &source).expect_err("a stranger");
    assert!(error.contains("invalid peer certificate"), "{error}");
    let (pem, config) = self_signed("other.test");
    let server = Server::https(config, |_, _| Reply::ok("secret"));
    let source = resource(format!("https://{}/", server.address));
    let error = fetch(&trusting(&[in_data_url(&pem)]), &source).expect_err("another name");
    assert!(error.contains("not valid for name"), "{error}");
}

#[test]
fn authorities_are_fetched_once_and_verified() {
    let ours = Authority::new();
    let pem = ours.pem.clone();
    let bundle = Server::http(move |_, _| Reply::ok(pem.clone()));
    let bare = Fetcher::bare(&network(), false, Log::Stdout);
    let settings = trusting(&[bundle.url("/ca.pem")]);
    bare.with(&settings, None).expect("fetched").with(&settings, None).expect("known");
    bare.with(&settings, None).expect("known here too");
    assert_eq!(bundle.requests().len(), 1);
    let mut wrong = trusting(&[bundle.url("/other.pem")]);
    let tls = wrong.security.as_mut().and_then(|security| security.tls.as_mut()).expect("set");
    let hash = Verification { hash: Some(format!("sha256-{}", "0".repeat(64))) };
    tls.certificate_authorities.as_mut().expect("set")[0].verification = Some(hash);
    let error = format!("{:#}", bare.with(&wrong, None).expect_err("another hash"));
    assert!(error.starts_with("using certificate authority http://") && error.contains("its hash is"), "{error}");
    for (case, text) in [
        ("empty", ""),
        ("words", "hello"),
        ("no end", "-----BEGIN CERTIFICATE-----\nAAAA\n"),
        ("no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    ] {
        let error = bare.with(&trusting(&[in_data_url(text)]), None).expect_err(case);
        assert!(format!("{error:#}").starts_with("using certificate authority a data URL: "), "{case}: {error:#}");
    }
    let offline = Fetcher::bare(&network(), true, Log::Stdout).with(&settings, None).expect_err("offline");
    assert!(NeedsNetwork::caused(&offline));
}

#[test]
fn a_proxy_is_asked_for_a_tunnel() {
    let ours = Authority::new();
    let inner = ours.server("origin.test");
    let proxy = Server::http(move |_, _| Reply::Tunnel(Arc::clone(&inner)));
    let settings = Ignition {
        proxy: Some(Proxy { http_proxy: Some(format!("http://{}", proxy.address)), https_proxy: None, no_proxy: None }),
        ..trusting(&[in_data_url(&ours.pem)])
    };
    assert_eq!(fetch(&settings, &resource("https://origin.test/x")).as_deref(), Ok("tunneled"));
    let lines: Vec<String> = proxy.requests().into_iter().map(|request| request.line).collect();
    assert_eq!(lines, ["CONNECT origin.test:443", "GET /x"]);
}
