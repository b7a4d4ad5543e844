//! The authorities of a cluster, made before its first machine starts, and certificates that they sign.
//!
//! They are what K3s would make itself: ECDSA on P-256, ten years, a file each below `server/tls`
//! ([custom CA certificates](https://docs.k3s.io/cli/certificate#using-custom-ca-certificates)). Private keys are
//! written as in SEC 1, section C.4 (`EC PRIVATE KEY`): Kubernetes takes the public half of a service account key from
//! that form, and not from PKCS #8.

use anyhow::{Context as _, Result, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{Timestamp, ToSpan as _, tz::TimeZone};
use nodezero_profile::language::Secret;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SerialNumber,
};

/// How long authorities are good, in years, as K3s' own.
const AUTHORITY_YEARS: i64 = 10;

/// What stands before the 32 bytes of a private key on P-256 in PKCS #8, with its public key behind it.
const PKCS8_HEAD: [u8; 36] = [
    0x30, 0x81, 0x87, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08,
    0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x6d, 0x30, 0x6b, 0x02, 0x01, 0x01, 0x04, 0x20,
];
/// What stands before the private key in SEC 1.
const SEC1_HEAD: [u8; 7] = [0x30, 0x77, 0x02, 0x01, 0x01, 0x04, 0x20];
/// What stands between the two keys in SEC 1: the curve's name.
const SEC1_CURVE: [u8; 12] = [0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// What stands before the 65 bytes of the public key in both.
const PUBLIC_HEAD: [u8; 5] = [0xa1, 0x44, 0x03, 0x42, 0x00];
/// The length of a private key in bytes.
const PRIVATE: usize = 32;
/// The length of a public key in bytes, uncompressed.
const PUBLIC: usize = 65;

/// Makes all authorities of a cluster: names of files below `server/tls`, and their contents.
///
/// # Errors
/// When there is no randomness or no clock.
pub fn create(now: Timestamp) -> Result<Vec<(String, Secret)>> {
    let mut files = Vec::new();
    for (file, name) in [
        ("server-ca", "k3s-server-ca"),
        ("client-ca", "k3s-client-ca"),
        ("request-header-ca", "k3s-request-header-ca"),
        ("etcd/peer-ca", "etcd-peer-ca"),
        ("etcd/server-ca", "etcd-server-ca"),
    ] {
        let key = KeyPair::generate().context("making a key")?;
        let mut params = params(&format!("{name}@{}", now.as_second()), now, AUTHORITY_YEARS * 365)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).with_context(|| format!("signing {file}"))?;
        files.push((format!("{file}.crt"), Secret::verbatim(pem("CERTIFICATE", certificate.der()))));
        files.push((format!("{file}.key"), key_pem(&key)?));
    }
    let key = KeyPair::generate().context("making a key")?;
    files.push(("service.key".to_owned(), key_pem(&key)?));
    Ok(files)
}

/// A certificate of a client of the API, with its key, both as PEM.
#[derive(Debug)]
pub struct Client {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: Secret,
}

/// Signs a certificate for a client of the API, good for so many days from an hour ago.
///
/// # Errors
/// When the authority's certificate or key cannot be read.
pub fn sign_client(
    authority: &Secret,
    authority_key: &Secret,
    user: &str,
    group: &str,
    days: i64,
    now: Timestamp,
) -> Result<Client> {
    let issuer_key = parse_key(authority_key).context("reading client-ca.key")?;
    let issuer = Issuer::from_ca_cert_pem(authority.expose(), issuer_key).context("reading client-ca.crt")?;
    let key = KeyPair::generate().context("making a key")?;
    let mut params = params(user, now, days)?;
    params.distinguished_name.push(DnType::OrganizationName, group);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &issuer).context("signing a certificate")?;
    Ok(Client { certificate: pem("CERTIFICATE", certificate.der()), key: key_pem(&key)? })
}

fn params(name: &str, now: Timestamp, days: i64) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    params.distinguished_name = distinguished;
    // Whole days, the one before included: clocks differ.
    let day = |timestamp: Timestamp| {
        let date = timestamp.to_zoned(TimeZone::UTC).date();
        let part = |number: i8| u8::try_from(number).expect("months and days are counted from 1");
        rcgen::date_time_ymd(date.year().into(), part(date.month()), part(date.day()))
    };
    params.not_before = day(now.checked_sub(24.hours()).context("counting days")?);
    params.not_after = day(now.checked_add((days * 24).hours()).context("counting days")?);
    // A positive number of 20 bytes at most.
    let mut serial = random::<19>()?.to_vec();
    serial[0] = serial[0] & 0x3f | 0x40;
    params.serial_number = Some(SerialNumber::from(serial));
    Ok(params)
}

/// Bytes that nobody can guess.
///
/// # Errors
/// When the system has none.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    use std::io::Read as _;
    let mut bytes = [0; N];
    let source = "/dev/urandom";
    std::fs::File::open(source).and_then(|mut file| file.read_exact(&mut bytes)).context(source)?;
    Ok(bytes)
}

fn pem(label: &str, der: &[u8]) -> String {
    let base64 = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in base64.as_bytes().chunks(64) {
        text += std::str::from_utf8(line).expect("base64 is ASCII");
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

/// A key as K3s writes its own.
fn key_pem(key: &KeyPair) -> Result<Secret> {
    let der = key.serialized_der();
    let rest = der.strip_prefix(&PKCS8_HEAD).and_then(|rest| rest.split_first_chunk::<PRIVATE>());
    let (private, rest) = rest.ok_or_else(|| anyhow!("the key is not on P-256"))?;
    let public = rest.strip_prefix(&PUBLIC_HEAD).filter(|public| public.len() == PUBLIC);
    let public = public.ok_or_else(|| anyhow!("the key has no public half"))?;
    let sec1 = [&SEC1_HEAD[..], private, &SEC1_CURVE, &PUBLIC_HEAD, public].concat();
    Ok(Secret::verbatim(pem("EC PRIVATE KEY", &sec1)))
}

/// The key of a PEM file: on P-256 in SEC 1, or any that PKCS #8 holds.
fn parse_key(text: &Secret) -> Result<KeyPair> {
    let text = text.expose();
    let Some(body) = text.split("-----BEGIN EC PRIVATE KEY-----").nth(1) else {
        return KeyPair::from_pem(text).map_err(|_| anyhow!("no private key in PEM"));
    };
    let body: String = body.split("-----END").next().unwrap_or_default().split_ascii_whitespace().collect();
    let sec1 = STANDARD.decode(body).map_err(|_| anyhow!("no base64"))?;
    let rest = sec1.strip_prefix(&SEC1_HEAD).and_then(|rest| rest.split_first_chunk::<PRIVATE>());
    let Some((private, rest)) = rest else { bail!("no key on P-256") };
    let Some(public) = rest.strip_prefix(&SEC1_CURVE).and_then(|rest| rest.strip_prefix(&PUBLIC_HEAD)) else {
        bail!("no key on P-256 with its public half")
    };
    let pkcs8 = [&PKCS8_HEAD[..], private, &PUBLIC_HEAD, public].concat();
    KeyPair::try_from(pkcs8).map_err(|_| anyhow!("no key on P-256"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_were_written() {
        let key = KeyPair::generate().expect("a key");
        let text = key_pem(&key).expect("P-256");
        assert!(text.expose().starts_with("-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEI"));
        let read = parse_key(&text).expect("a key");
        assert_eq!(read.serialized_der(), key.serialized_der());
        let pkcs8 = Secret::verbatim(key.serialize_pem());
        assert_eq!(parse_key(&pkcs8).expect("a key").serialized_der(), key.serialized_der());
        for (case, text) in [
            ("nothing", ""),
            ("no base64", "-----BEGIN EC PRIVATE KEY-----\n!\n-----END EC PRIVATE KEY-----\n"),
            ("cut", "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEI\n-----END EC PRIVATE KEY-----\n"),
        ] {
            let error = parse_key(&Secret::verbatim(text.to_owned())).expect_err(case).to_string();
            assert!(text.is_empty() || !error.contains("MHc"), "{case}: {error}");
        }
    }

    #[test]
    fn authorities_sign_clients() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().expect("a time");
        let files = create(now).expect("authorities");
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        let mut expected = nodezero_profile::language::AUTHORITY_FILES.to_vec();
        expected.sort_unstable();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, expected, "all that a control node is given");
        let file = |name: &str| &files.iter().find(|(own, _)| own == name).expect(name).1;
        let client = sign_client(file("client-ca.crt"), file("client-ca.key"), "me", "system:masters", 365, now);
        let client = client.expect("a certificate");
        assert!(client.certificate.starts_with("-----BEGIN CERTIFICATE-----"));
        assert!(sign_client(file("client-ca.key"), file("client-ca.key"), "me", "g", 1, now).is_err());
        assert!(sign_client(file("client-ca.crt"), file("client-ca.crt"), "me", "g", 1, now).is_err());
    }
}
