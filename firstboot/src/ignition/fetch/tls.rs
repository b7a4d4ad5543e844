//! Whom the other end of a TLS connection is trusted to be.
//!
//! The system's certificate authorities, and the config's in addition. One that the config names and that is itself
//! what the server shows, byte for byte, as with `openssl req -x509`, is trusted for the names that stand in it, like
//! a DANE-EE record ([RFC 7671, section 5.1](https://www.rfc-editor.org/rfc/rfc7671#section-5.1)): rustls takes no
//! authority for a server's certificate, though the reference implementation does.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::files::read_bounded;

/// The largest bundle of the system, in bytes.
const BUNDLE_LIMIT: u64 = 16 << 20;

/// Reads a config's bundle of certificate authorities: at least one certificate in PEM, and each can be used.
///
/// # Errors
/// With the certificate's number when it cannot.
pub(super) fn parse_bundle(pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| anyhow::anyhow!("{error}"))?;
    anyhow::ensure!(!certificates.is_empty(), "it holds no certificate in PEM form");
    let mut roots = RootCertStore::empty();
    for (index, certificate) in certificates.iter().enumerate() {
        roots.add(certificate.clone()).with_context(|| format!("reading its certificate {}", index + 1))?;
    }
    Ok(certificates)
}

/// The settings for connections: the system's bundle, where there is one, and the config's certificates.
///
/// # Errors
/// When the system's bundle is there and cannot be read.
pub(super) fn client_config(system: &Path, own: &[CertificateDer<'static>]) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    if system.exists() {
        let bundle = read_bounded(system, BUNDLE_LIMIT)?;
        // One of a hundred that this program cannot use is no reason to do without the others.
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&bundle).filter_map(Result::ok));
    }
    roots.add_parsable_certificates(own.iter().cloned());
    let provider = Arc::new(ring::default_provider());
    let chain = if roots.is_empty() {
        None
    } else {
        let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        Some(builder.build().context("using the certificate authorities")?)
    };
    let verifier = Verifier { chain, own: own.to_vec(), provider: Arc::clone(&provider) };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("setting up TLS")?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(config)
}

#[derive(Debug)]
struct Verifier {
    /// `None` when there is no authority at all.
    chain: Option<Arc<WebPkiServerVerifier>>,
    own: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.own.iter().any(|own| own == end_entity) {
            rustls::client::verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        match &self.chain {
            Some(chain) => chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
