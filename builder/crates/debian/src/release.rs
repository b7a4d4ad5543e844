//! `InRelease` files: the signature, and what it vouches for.
//!
//! An `InRelease` file is a [release file][format] in OpenPGP's [cleartext signature framework][csf]. It names every
//! index file of a suite by digest, so its signature is what trust in an archive rests on. These rules decide whether
//! a signature counts; one that does is enough, as an archive in transition signs with its old and its new keys:
//!
//! - It is a version 4 or 6 signature over canonical text with SHA-256 or better, and with a hash that the document's
//!   `Hash` header lists, where it has one. It has not expired and was not made more than a day after `now`.
//! - Its key is a primary key or a subkey of the keyring, of at least 2048 bits if RSA and not of DSA, whose newest
//!   self-signature lets it sign. A subkey has confirmed that it belongs to its primary key.
//! - Neither the key nor its primary key is expired, when the signature was made or at `now`. None is revoked, for
//!   whatever reason and at whatever time: a keyring with a revocation in it settles the matter.
//! - Signatures that say something critical which is not understood here do not count, and neither do self-signatures
//!   with hashes weaker than SHA-256.
//!
//! Only the signed text is parsed, in the form in which it was hashed. Any text before, after or between is refused.
//! Left out are detached signatures (`Release.gpg`) and revocation by other keys (designated revokers).
//!
//! [format]: https://wiki.debian.org/DebianRepository/Format#A.22Release.22_files
//! [csf]: https://www.rfc-editor.org/rfc/rfc9580#name-cleartext-signature-framewo

use std::collections::BTreeMap;
use std::io::Read as _;

use pgp::armor::{BlockType, Dearmor};
use pgp::composed::{Deserializable as _, SignedPublicKey, SignedPublicSubKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{
    KeyFlags, Packet, PacketParser, PublicKey, PublicSubkey, Signature, SignatureType, SignatureVersion, SubpacketData,
};
use pgp::ser::Serialize as _;
use pgp::types::{KeyDetails as _, PublicKeyTrait, PublicParams, Tag};

use crate::Error;
use crate::control::{self, Stanza};
use crate::digest::FileDigest;
use crate::time::{self, Utc};

/// How far a signer's clock may be ahead, in seconds.
const CLOCK_SKEW: u64 = 24 * 60 * 60;

/// The smallest RSA modulus that counts, in bits.
const RSA_BITS: u16 = 2048;

const BEGIN_MESSAGE: &str = "-----BEGIN PGP SIGNED MESSAGE-----";
const BEGIN_SIGNATURE: &str = "-----BEGIN PGP SIGNATURE-----";
const END_SIGNATURE: &str = "-----END PGP SIGNATURE-----";
const BEGIN_KEY: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";
const END_KEY: &str = "-----END PGP PUBLIC KEY BLOCK-----";

/// The certificates that may sign for an archive.
#[derive(Debug, Clone)]
pub struct Keyring {
    /// By the fingerprint of the primary key.
    certificates: BTreeMap<String, SignedPublicKey>,
}

/// What a release file says about its suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Who publishes it, such as `Debian`; empty where it does not say.
    pub origin: String,
    /// The suite, such as `stable`; empty where it does not say.
    pub suite: String,
    /// The code name, such as `trixie`; empty where it does not say.
    pub codename: String,
    /// When it was made, in Unix seconds.
    pub date: u64,
    /// When it ceases to count, in Unix seconds.
    pub valid_until: Option<u64>,
    /// Every index file, by its path relative to the release file.
    pub files: BTreeMap<String, FileDigest>,
    /// Whether index files can also be had at `by-hash/SHA256/<digest>` beside their path.
    pub acquire_by_hash: bool,
}

/// Verifies an `InRelease` file and parses what is signed.
///
/// `name` names the file in errors. `now` is the time in Unix seconds at which keys, signatures and the file itself
/// have to be valid.
///
/// # Errors
///
/// [`Error::ClearSigned`] if the document is not framed as it has to be, [`Error::Signature`] if no signature counts,
/// with the reason and the key of each, [`Error::Release`] if the signed text is not a release file, and
/// [`Error::Expired`] if its `Valid-Until` has passed.
pub fn verify_inrelease(bytes: &[u8], name: &str, keyring: &Keyring, now: u64) -> Result<Release, Error> {
    let text = verify_clear_signed(bytes, name, keyring, now)?;
    let in_release = |source| Error::Release { name: name.to_owned(), source: Box::new(source) };
    let release = parse_release(&text).map_err(in_release)?;
    match release.valid_until {
        Some(valid_until) if valid_until < now => Err(Error::Expired { name: name.to_owned(), valid_until, now }),
        _ => Ok(release),
    }
}

impl Keyring {
    /// Reads certificates: binary, or armored in any number of blocks with any text around them.
    ///
    /// # Errors
    ///
    /// [`Error::Keyring`] if there is no certificate, or any that cannot be read.
    pub fn from_armored_or_binary(bytes: &[u8]) -> Result<Self, Error> {
        let mut keyring = Self { certificates: BTreeMap::new() };
        // The first octet of a packet has its top bit set, which that of text has not.
        if bytes.first().is_some_and(|byte| byte & 0x80 != 0) {
            keyring.add_packets(bytes)?;
        } else {
            let text = std::str::from_utf8(bytes).map_err(|_| wrong_keyring("neither packets nor text"))?;
            for block in armored_blocks(text)? {
                keyring.add_packets(&dearmor(block, BlockType::PublicKey).map_err(wrong_keyring)?)?;
            }
        }
        if keyring.certificates.is_empty() {
            return Err(wrong_keyring("there is no certificate in it"));
        }
        Ok(keyring)
    }

    /// Adds the certificates of another keyring. What both say about one certificate is united, so that a revocation
    /// in either counts.
    pub fn merge(&mut self, other: Self) {
        for certificate in other.certificates.into_values() {
            self.add(certificate);
        }
    }

    /// The fingerprints of the primary keys, in upper-case hexadecimal digits, sorted.
    pub fn fingerprints(&self) -> impl Iterator<Item = &str> {
        self.certificates.keys().map(String::as_str)
    }

    fn add_packets(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut packets = Vec::new();
        for packet in PacketParser::new(bytes) {
            match packet {
                // What comes after a certificate in its place, such as GnuPG's trust packets, says nothing about it.
                Ok(Packet::Trust(_) | Packet::Marker(_) | Packet::Padding(_)) => {}
                Ok(packet) => packets.push(Ok(packet)),
                Err(err) => return Err(wrong_keyring(err)),
            }
        }
        let first = packets.first().and_then(|packet| packet.as_ref().ok());
        if first.is_some_and(|packet: &Packet| !matches!(packet, Packet::PublicKey(_))) {
            return Err(wrong_keyring("it does not begin with a public key"));
        }
        for certificate in SignedPublicKey::from_packets(packets.into_iter().peekable()) {
            self.add(certificate.map_err(wrong_keyring)?);
        }
        Ok(())
    }

    fn add(&mut self, certificate: SignedPublicKey) {
        match self.certificates.get_mut(&fingerprint(&certificate.primary_key)) {
            Some(known) => unite(known, certificate),
            None => {
                self.certificates.insert(fingerprint(&certificate.primary_key), certificate);
            }
        }
    }

    fn signing_keys(&self) -> Vec<SigningKey<'_>> {
        self.certificates.values().flat_map(signing_keys).collect()
    }
}

/// A key of the keyring, with all that decides whether its signatures count.
struct SigningKey<'a> {
    key: KeyPacket<'a>,
    /// Unix seconds.
    created: u64,
    /// Unix seconds: the earliest at which the key, its primary key or their binding expires.
    expires: Option<u64>,
    /// Why it never counts.
    refused: Option<&'static str>,
}

enum KeyPacket<'a> {
    Primary(&'a PublicKey),
    Subkey(&'a PublicSubkey),
}

/// A document in the cleartext signature framework, taken apart.
struct ClearSigned<'a> {
    /// The algorithms of its `Hash` headers.
    hashes: Vec<&'a str>,
    /// The lines as they are hashed: unescaped, without space at their ends.
    lines: Vec<&'a str>,
    /// The armored signatures.
    armor: &'a str,
}

impl SigningKey<'_> {
    fn made(&self, signature: &Signature) -> bool {
        let (fingerprint, key_id) = match self.key {
            KeyPacket::Primary(key) => (key.fingerprint(), key.key_id()),
            KeyPacket::Subkey(key) => (key.fingerprint(), key.key_id()),
        };
        signature.issuer_fingerprint().contains(&&fingerprint) || signature.issuer().contains(&&key_id)
    }

    fn verify(&self, signature: &Signature, text: &[u8]) -> bool {
        match self.key {
            KeyPacket::Primary(key) => signature.verify(key, text).is_ok(),
            KeyPacket::Subkey(key) => signature.verify(key, text).is_ok(),
        }
    }
}

/// Verifies a clear-signed document and returns the signed text, as it was hashed but for its line ends.
fn verify_clear_signed(bytes: &[u8], name: &str, keyring: &Keyring, now: u64) -> Result<String, Error> {
    let malformed = |problem: String| Error::ClearSigned { name: name.to_owned(), problem };
    let document = std::str::from_utf8(bytes).map_err(|_| malformed("it is not UTF-8".to_owned()))?;
    let document = ClearSigned::parse(document).map_err(malformed)?;
    let packets = dearmor(document.armor, BlockType::Signature).map_err(malformed)?;
    let canonical = document.lines.join("\r\n");
    let keys = keyring.signing_keys();
    let mut reasons = Vec::new();
    for packet in PacketParser::new(&packets[..]) {
        let outcome = match packet {
            Ok(Packet::Signature(signature)) => {
                check_signature(&signature, &document.hashes, canonical.as_bytes(), &keys, now)
            }
            Ok(_) => return Err(malformed("among the signatures there is something else".to_owned())),
            // One that is not understood, of an algorithm yet to come, does no harm to the others.
            Err(err) => Err(format!("a signature that cannot be read: {err}")),
        };
        match outcome {
            Ok(()) => return Ok(document.lines.join("\n") + "\n"),
            Err(reason) => reasons.push(reason),
        }
    }
    if reasons.is_empty() {
        return Err(malformed("there is no signature in the signature block".to_owned()));
    }
    Err(Error::Signature { name: name.to_owned(), reasons })
}

/// Whether a signature over `text` counts, or why not.
fn check_signature(
    signature: &Signature,
    hashes: &[&str],
    text: &[u8],
    keys: &[SigningKey<'_>],
    now: u64,
) -> Result<(), String> {
    let issuer = issuer(signature);
    let created = check_terms(signature, hashes, now).map_err(|problem| format!("key {issuer}: {problem}"))?;
    let mut problem = "not in the keyring".to_owned();
    // Key IDs are not unique, so several keys may claim the signature.
    for key in keys.iter().filter(|key| key.made(signature)) {
        match check_key(key, created, now) {
            Ok(()) if key.verify(signature, text) => return Ok(()),
            Ok(()) => problem = "the signature does not match the text".to_owned(),
            Err(refused) => problem = refused,
        }
    }
    Err(format!("key {issuer}: {problem}"))
}

/// Checks all of a signature that does not need its key. Returns when it was made, in Unix seconds.
fn check_terms(signature: &Signature, hashes: &[&str], now: u64) -> Result<u64, String> {
    check_soundness(signature)?;
    if signature.typ() != Some(SignatureType::Text) {
        return Err("not a signature over text".to_owned());
    }
    let hash = signature.hash_alg().map(|hash| hash.to_string()).unwrap_or_default();
    if !hashes.is_empty() && !hashes.contains(&hash.as_str()) {
        return Err(format!("signed with {hash}, which the document does not announce"));
    }
    let created = created(signature).ok_or("a signature without a time")?;
    if created > now.saturating_add(CLOCK_SKEW) {
        return Err(format!("signed at {}, which is after {}", Utc(created), Utc(now)));
    }
    match validity(signature.signature_expiration_time().map(|time| time.num_seconds())) {
        Some(seconds) if created.saturating_add(seconds) <= now => {
            Err(format!("the signature expired at {}, the time is {}", Utc(created.saturating_add(seconds)), Utc(now)))
        }
        _ => Ok(created),
    }
}

/// Checks a key for a signature that was made at `created`.
fn check_key(key: &SigningKey<'_>, created: u64, now: u64) -> Result<(), String> {
    if let Some(refused) = key.refused {
        return Err(refused.to_owned());
    }
    if created < key.created {
        return Err(format!("signed at {}, before the key was made at {}", Utc(created), Utc(key.created)));
    }
    match key.expires {
        Some(expires) if expires <= created => {
            Err(format!("the key expired at {}, before it signed at {}", Utc(expires), Utc(created)))
        }
        Some(expires) if expires <= now => {
            Err(format!("the key expired at {}, the time is {}", Utc(expires), Utc(now)))
        }
        _ => Ok(()),
    }
}

/// What every signature, over a document or over a key, has to fulfil.
fn check_soundness(signature: &Signature) -> Result<(), String> {
    let Some(config) = signature.config() else {
        return Err("a signature of an unknown version".to_owned());
    };
    if !matches!(signature.version(), SignatureVersion::V4 | SignatureVersion::V6) {
        return Err(format!("a signature of version {}", u8::from(signature.version())));
    }
    if !matches!(
        config.hash_alg,
        HashAlgorithm::Sha256
            | HashAlgorithm::Sha384
            | HashAlgorithm::Sha512
            | HashAlgorithm::Sha3_256
            | HashAlgorithm::Sha3_512
    ) {
        return Err(format!("signed with {}, expected SHA-256 or better", config.hash_alg));
    }
    let understood = |data: &SubpacketData| {
        !matches!(
            data,
            SubpacketData::Notation(_)
                | SubpacketData::RegularExpression(_)
                | SubpacketData::IntendedRecipientFingerprint(_)
                | SubpacketData::Experimental(..)
                | SubpacketData::Other(..)
        )
    };
    if config.hashed_subpackets().any(|subpacket| subpacket.is_critical && !understood(&subpacket.data)) {
        return Err("the signature says something critical that is not understood".to_owned());
    }
    Ok(())
}

/// The primary key and the subkeys of a certificate, each with what its self-signatures say.
fn signing_keys(certificate: &SignedPublicKey) -> Vec<SigningKey<'_>> {
    let primary = &certificate.primary_key;
    let binding = newest(self_signatures(certificate));
    let created = seconds(primary.created_at().timestamp());
    let expires = binding.and_then(|binding| expiry(binding, created));
    let revocations = &certificate.details.revocation_signatures;
    // Whatever its hash: better to believe one revocation too many.
    let revoked = revocations.iter().any(|revocation| {
        revocation.typ() == Some(SignatureType::KeyRevocation) && revocation.verify_key(primary).is_ok()
    });
    let refused_primary = match binding {
        _ if revoked => Some("the key is revoked"),
        None => Some("the key has no valid self-signature"),
        Some(_) => None,
    };
    let refused = refused_primary.or_else(|| refused_use(binding, primary.public_params()));
    let mut keys = vec![SigningKey { key: KeyPacket::Primary(primary), created, expires, refused }];
    for subkey in &certificate.public_subkeys {
        keys.push(signing_subkey(primary, subkey, refused_primary, expires));
    }
    keys
}

fn signing_subkey<'a>(
    primary: &PublicKey,
    subkey: &'a SignedPublicSubKey,
    refused_primary: Option<&'static str>,
    primary_expires: Option<u64>,
) -> SigningKey<'a> {
    let signed = |signature: &&Signature, kind| {
        signature.typ() == Some(kind) && signature.verify_subkey_binding(primary, &subkey.key).is_ok()
    };
    let bindings = subkey.signatures.iter().filter(|signature| signed(signature, SignatureType::SubkeyBinding));
    let binding = newest(bindings.filter(|binding| check_soundness(binding).is_ok()));
    let revoked = subkey.signatures.iter().any(|signature| signed(&signature, SignatureType::SubkeyRevocation));
    let confirmed = binding.and_then(Signature::embedded_signature).is_some_and(|back| {
        back.typ() == Some(SignatureType::KeyBinding)
            && check_soundness(back).is_ok()
            && back.verify_primary_key_binding(&subkey.key, primary).is_ok()
    });
    let refused = match binding {
        _ if refused_primary.is_some() => refused_primary,
        _ if revoked => Some("the subkey is revoked"),
        None => Some("the subkey has no valid binding signature"),
        Some(_) if !confirmed => Some("the subkey has not confirmed its primary key"),
        Some(_) => refused_use(binding, subkey.key.public_params()),
    };
    let created = seconds(subkey.key.created_at().timestamp());
    let own_expires = binding.and_then(|binding| expiry(binding, created));
    let expires = own_expires.into_iter().chain(primary_expires).min();
    SigningKey { key: KeyPacket::Subkey(&subkey.key), created, expires, refused }
}

/// The valid self-signatures over a primary key, directly or through a user ID that is not revoked.
fn self_signatures(certificate: &SignedPublicKey) -> impl Iterator<Item = &Signature> {
    let primary = &certificate.primary_key;
    let direct = certificate
        .details
        .direct_signatures
        .iter()
        .filter(|signature| signature.typ() == Some(SignatureType::Key) && signature.verify_key(primary).is_ok());
    let over_users = certificate.details.users.iter().flat_map(|user| {
        let own = user.signatures.iter().filter(|signature| {
            // A signature that names no issuer could be anyone's, and is tried too.
            signature.verify_certification(primary, Tag::UserId, &user.id).is_ok()
        });
        let is_revocation = |signature: &&Signature| signature.typ() == Some(SignatureType::CertRevocation);
        let (revocations, own): (Vec<_>, Vec<_>) = own.partition(is_revocation);
        let revoked = revocations.into_iter().filter_map(created).max();
        own.into_iter().filter(move |signature| created(signature) > revoked)
    });
    direct.chain(over_users).filter(|signature| check_soundness(signature).is_ok())
}

/// The newest of several self-signatures that say what the key may be used for.
fn newest<'a>(signatures: impl Iterator<Item = &'a Signature>) -> Option<&'a Signature> {
    signatures.filter(|signature| key_flags(signature).is_some()).max_by_key(|signature| created(signature))
}

fn refused_use(binding: Option<&Signature>, params: &PublicParams) -> Option<&'static str> {
    if !binding.and_then(key_flags).is_some_and(KeyFlags::sign) {
        return Some("the key is not for signing");
    }
    match params {
        PublicParams::RSA(_) if rsa_bits(params) < RSA_BITS => Some("the key is RSA of less than 2048 bits"),
        PublicParams::RSA(_)
        | PublicParams::ECDSA(_)
        | PublicParams::EdDSALegacy(_)
        | PublicParams::Ed25519(_)
        | PublicParams::Ed448(_) => None,
        PublicParams::DSA(_)
        | PublicParams::ECDH(_)
        | PublicParams::Elgamal(_)
        | PublicParams::X25519(_)
        | PublicParams::X448(_)
        | PublicParams::Unknown { .. } => Some("the key is of an algorithm that does not count"),
    }
}

/// The size of the modulus, which is the first of the two numbers of an RSA key. Each begins with its length in bits.
fn rsa_bits(params: &PublicParams) -> u16 {
    let mut bytes = Vec::new();
    match (params.to_writer(&mut bytes), bytes.first_chunk()) {
        (Ok(()), Some(length)) => u16::from_be_bytes(*length),
        _ => 0,
    }
}

fn key_flags(signature: &Signature) -> Option<&KeyFlags> {
    signature.config()?.hashed_subpackets().find_map(|subpacket| match &subpacket.data {
        SubpacketData::KeyFlags(flags) => Some(flags),
        _ => None,
    })
}

/// When a key expires by its self-signature, or the self-signature itself does.
fn expiry(binding: &Signature, key_created: u64) -> Option<u64> {
    let key = validity(binding.key_expiration_time().map(|time| time.num_seconds()))
        .map(|seconds| key_created.saturating_add(seconds));
    let signature = validity(binding.signature_expiration_time().map(|time| time.num_seconds())).zip(created(binding));
    key.into_iter().chain(signature.map(|(seconds, created)| created.saturating_add(seconds))).min()
}

/// A duration in seconds, of which zero stands for no end.
fn validity(duration: Option<i64>) -> Option<u64> {
    duration.map(seconds).filter(|seconds| *seconds != 0)
}

fn created(signature: &Signature) -> Option<u64> {
    signature.created().map(|time| seconds(time.timestamp()))
}

/// OpenPGP's times and durations are unsigned 32-bit numbers, so none is negative.
fn seconds(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or(0)
}

fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint().to_string().to_uppercase()
}

/// The key that a signature claims to be of.
fn issuer(signature: &Signature) -> String {
    let fingerprint = signature.issuer_fingerprint().first().map(|fingerprint| fingerprint.to_string());
    let issuer = fingerprint.or_else(|| signature.issuer().first().map(|key_id| key_id.to_string()));
    issuer.map_or_else(|| "that is not named".to_owned(), |issuer| issuer.to_uppercase())
}

/// Adds what `other` says about a certificate to what is known.
fn unite(known: &mut SignedPublicKey, other: SignedPublicKey) {
    known.details.revocation_signatures.extend(other.details.revocation_signatures);
    known.details.direct_signatures.extend(other.details.direct_signatures);
    for user in other.details.users {
        match known.details.users.iter_mut().find(|known| known.id.id() == user.id.id()) {
            Some(known) => known.signatures.extend(user.signatures),
            None => known.details.users.push(user),
        }
    }
    for subkey in other.public_subkeys {
        match known.public_subkeys.iter_mut().find(|known| known.key.fingerprint() == subkey.key.fingerprint()) {
            Some(known) => known.signatures.extend(subkey.signatures),
            None => known.public_subkeys.push(subkey),
        }
    }
}

fn wrong_keyring(problem: impl ToString) -> Error {
    Error::Keyring { problem: problem.to_string() }
}

/// The blocks of armored keys within a text.
fn armored_blocks(text: &str) -> Result<Vec<&str>, Error> {
    let mut blocks = Vec::new();
    let mut rest = text;
    while let Some(begin) = rest.find(BEGIN_KEY) {
        let block = &rest[begin..];
        let end = block.find(END_KEY).ok_or_else(|| wrong_keyring("an armored block without an end"))?;
        let (block, after) = block.split_at(end + END_KEY.len());
        blocks.push(block);
        rest = after;
    }
    Ok(blocks)
}

/// Decodes one armored block.
fn dearmor(block: &str, expected: BlockType) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    // The decoder wants a line end after the last line.
    let block = format!("{block}\n");
    let mut dearmor = Dearmor::new(block.as_bytes());
    dearmor.read_to_end(&mut bytes).map_err(|err| format!("armor that cannot be decoded: {err}"))?;
    match dearmor.typ {
        Some(found) if found == expected => Ok(bytes),
        found => Err(format!("an armored block of type {found:?}, expected {expected:?}")),
    }
}

impl<'a> ClearSigned<'a> {
    fn parse(document: &'a str) -> Result<Self, String> {
        let mut rest = document;
        if take_line(&mut rest) != Some(BEGIN_MESSAGE) {
            return Err(format!("the first line is not {BEGIN_MESSAGE}"));
        }
        let mut hashes = Vec::new();
        loop {
            match take_line(&mut rest).ok_or("it ends within its headers")? {
                "" => break,
                line => match line.strip_prefix("Hash: ") {
                    Some(names) => hashes.extend(names.split(',').map(str::trim_ascii)),
                    None => return Err(format!("the header {line:?} is not a Hash header")),
                },
            }
        }
        let mut lines = Vec::new();
        let armor = loop {
            let here = rest;
            let line = take_line(&mut rest).ok_or("it ends within the signed text")?;
            if line == BEGIN_SIGNATURE {
                break here;
            }
            lines.push(unescape(line)?);
        };
        while take_line(&mut rest).ok_or("it ends within the signature")? != END_SIGNATURE {}
        if !rest.trim_ascii().is_empty() {
            return Err("there is text after the signature".to_owned());
        }
        Ok(Self { hashes, lines, armor: &armor[..armor.len() - rest.len()] })
    }
}

/// A line of the signed text, as it is hashed.
fn unescape(line: &str) -> Result<&str, String> {
    let text = match line.strip_prefix('-') {
        Some(escaped) => escaped.strip_prefix(' ').ok_or_else(|| format!("the line {line:?} is not escaped"))?,
        None => line,
    };
    if text.contains(['\r', '\0']) {
        return Err(format!("the line {line:?} holds a control character"));
    }
    Ok(text.trim_end_matches([' ', '\t']))
}

/// Takes the next line off a text, without its line end.
fn take_line<'a>(rest: &mut &'a str) -> Option<&'a str> {
    if rest.is_empty() {
        return None;
    }
    let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
    *rest = after;
    Some(line.strip_suffix('\r').unwrap_or(line))
}

fn parse_release(text: &str) -> Result<Release, Error> {
    let stanzas = control::parse(text)?;
    let [stanza] = &stanzas[..] else {
        return Err(Error::Stanza { line: 1, problem: format!("expected one stanza, found {}", stanzas.len()) });
    };
    let text = |field| stanza.field(field).unwrap_or_default().to_owned();
    let (suite, codename) = (text("Suite"), text("Codename"));
    if suite.is_empty() && codename.is_empty() {
        return Err(Error::MissingField { field: "Suite" });
    }
    Ok(Release {
        origin: text("Origin"),
        suite,
        codename,
        date: parse_date(stanza, "Date")?.ok_or(Error::MissingField { field: "Date" })?,
        valid_until: parse_date(stanza, "Valid-Until")?,
        files: parse_files(stanza.field("SHA256").ok_or(Error::MissingField { field: "SHA256" })?)?,
        acquire_by_hash: stanza.field("Acquire-By-Hash") == Some("yes"),
    })
}

fn parse_date(stanza: &Stanza, field: &'static str) -> Result<Option<u64>, Error> {
    let parse = |value: &str| {
        let expected = "a date such as Sat, 12 Sep 2026 07:55:41 UTC";
        time::parse(value).ok_or_else(|| Error::Field { field, value: value.to_owned(), expected })
    };
    stanza.field(field).map(parse).transpose()
}

/// Parses lines of digest, size and path.
fn parse_files(value: &str) -> Result<BTreeMap<String, FileDigest>, Error> {
    let mut files = BTreeMap::new();
    for line in value.lines() {
        let wrong = |expected| Error::Field { field: "SHA256", value: line.to_owned(), expected };
        let parts: Vec<&str> = line.split_ascii_whitespace().collect();
        let [digest, size, path] = parts[..] else { return Err(wrong("digest, size and path")) };
        let size = size.parse().map_err(|_| wrong("a size in bytes"))?;
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(wrong("a relative path without . and .."));
        }
        let digest = FileDigest { sha256: digest.parse()?, size };
        if files.insert(path.to_owned(), digest).is_some_and(|other| other != digest) {
            return Err(wrong("one digest and size for each path"));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Sha256;

    /// A day after the files of the fixtures were signed: 2026-03-02 00:00:00.
    const NOW: u64 = 1_772_409_600;
    const DAY: u64 = 24 * 60 * 60;

    macro_rules! fixture {
        ($name:literal) => {
            include_bytes!(concat!("../tests/fixtures/", $name)).as_slice()
        };
    }

    fn keyring(blobs: &[&[u8]]) -> Keyring {
        Keyring::from_armored_or_binary(&blobs.concat()).unwrap()
    }

    fn verify(document: &[u8], keyring: &Keyring, now: u64) -> Result<Release, Error> {
        verify_inrelease(document, "dists/example", keyring, now)
    }

    #[test]
    fn reads_what_is_signed() {
        let release = verify(fixture!("InRelease"), &keyring(&[fixture!("archive.asc")]), NOW).unwrap();
        assert_eq!((release.origin.as_str(), release.suite.as_str()), ("Example", "stable"));
        assert_eq!((release.codename.as_str(), release.acquire_by_hash), ("example", true));
        assert_eq!((release.date, release.valid_until), (1_772_326_740, Some(1_772_931_540)));
        assert_eq!(release.files.len(), 2);
        let expected = FileDigest { sha256: Sha256::of(b"abc"), size: 3 };
        assert_eq!(release.files["main/binary-all/Packages.xz"], expected);
    }

    #[test]
    fn any_key_of_the_keyring_will_do() {
        for (blobs, certificates) in [
            (vec![fixture!("archive.asc")], 1),
            (vec![fixture!("release.asc")], 1),
            (vec![fixture!("release.gpg")], 1),
            (vec![fixture!("release.gpg"), fixture!("release.gpg")], 1),
            (vec![fixture!("stranger.asc"), b"a line between\n", fixture!("expired.asc"), fixture!("archive.asc")], 3),
        ] {
            let keyring = keyring(&blobs);
            assert_eq!(keyring.fingerprints().count(), certificates);
            verify(fixture!("InRelease"), &keyring, NOW).unwrap();
        }
    }

    #[test]
    fn bad_keyrings() {
        let binary = fixture!("release.gpg");
        let armored = fixture!("release.asc");
        for (case, bytes) in [
            ("empty", &b""[..]),
            ("text", b"no keys here"),
            ("cut packets", &binary[..binary.len() - 1]),
            ("cut armor", &armored[..armored.len() - 30]),
            ("user ID first", &binary[53..]),
            ("a signed message", fixture!("InRelease")),
        ] {
            assert!(Keyring::from_armored_or_binary(bytes).is_err(), "{case}");
        }
    }

    #[test]
    fn signatures_that_do_not_count() {
        let all = keyring(&[
            fixture!("archive.asc"),
            fixture!("release.asc"),
            fixture!("expired.asc"),
            fixture!("revoked.asc"),
            fixture!("torn.asc"),
        ]);
        for (case, document, now, reason) in [
            ("unknown key", fixture!("InRelease.stranger"), NOW, "not in the keyring"),
            ("expired since", fixture!("InRelease.expired"), NOW, "the key expired at 2025-06-01"),
            ("revoked since", fixture!("InRelease.revoked"), NOW, "the key is revoked"),
            ("subkey revoked since", fixture!("InRelease.torn"), NOW, "the subkey is revoked"),
            ("weak hash", fixture!("InRelease.sha1"), NOW, "signed with SHA1"),
            ("critical notation", fixture!("InRelease.notation"), NOW, "something critical"),
            ("expired signature", fixture!("InRelease.short"), NOW + 7 * DAY, "the signature expired at 2026-03-08"),
            (
                "from the future",
                fixture!("InRelease"),
                NOW - 2 * DAY,
                "signed at 2026-03-01 01:00:00 UTC, which is after",
            ),
            ("all keys expired", fixture!("InRelease"), NOW + 3650 * DAY, "the key expired at 2035-01-01"),
        ] {
            let err = verify(document, &all, now).expect_err(case);
            let Error::Signature { name, reasons } = err else { panic!("{case}: {err}") };
            assert_eq!(name, "dists/example");
            for told in &reasons {
                assert!(told.contains(reason) && told.starts_with("key "), "{case}: {told}");
                // The key's fingerprint is part of it.
                assert!(told.split([' ', ':']).any(|word| word.len() == 40), "{case}: {told}");
            }
        }
    }

    #[test]
    fn the_same_signatures_count_otherwise() {
        for (case, document, key, now) in [
            ("expired", fixture!("InRelease.expired"), fixture!("expired.asc"), 1_740_790_800),
            ("revoked", fixture!("InRelease.revoked"), fixture!("before-revocation.asc"), NOW),
            ("subkey revoked", fixture!("InRelease.torn"), fixture!("before-tear.asc"), NOW),
            ("stranger", fixture!("InRelease.stranger"), fixture!("stranger.asc"), NOW),
            ("short", fixture!("InRelease.short"), fixture!("release.asc"), NOW),
            ("a little early", fixture!("InRelease"), fixture!("release.asc"), NOW - DAY),
        ] {
            verify(document, &keyring(&[key]), now).expect(case);
        }
    }

    #[test]
    fn merging_keeps_revocations() {
        for (case, document, before, after) in [
            ("key", fixture!("InRelease.revoked"), fixture!("before-revocation.asc"), fixture!("revoked.asc")),
            ("subkey", fixture!("InRelease.torn"), fixture!("before-tear.asc"), fixture!("torn.asc")),
        ] {
            for [first, second] in [[before, after], [after, before]] {
                let mut merged = keyring(&[first]);
                merged.merge(keyring(&[second]));
                assert_eq!(merged.fingerprints().count(), 1, "{case}");
                assert!(verify(document, &merged, NOW).is_err(), "{case}");
                assert!(verify(document, &keyring(&[first, second]), NOW).is_err(), "{case}");
            }
        }
    }

    #[test]
    fn valid_until() {
        let keyring = keyring(&[fixture!("archive.asc")]);
        let valid_until = 1_772_931_540;
        verify(fixture!("InRelease"), &keyring, valid_until).unwrap();
        let err = verify(fixture!("InRelease"), &keyring, valid_until + 1).unwrap_err();
        assert_eq!(
            err.to_string(),
            "dists/example: valid until 2026-03-08 00:59:00 UTC, the time is 2026-03-08 00:59:01 UTC"
        );
    }

    #[test]
    fn flipped_bits() {
        let keyring = keyring(&[fixture!("archive.asc"), fixture!("release.asc")]);
        // One signature, so that any change to it counts.
        let document = fixture!("InRelease.short");
        verify(document, &keyring, NOW).unwrap();
        for at in 0..document.len() {
            for bit in [0, 3, 5] {
                let mut changed = document.to_vec();
                changed[at] ^= 1 << bit;
                let text = String::from_utf8_lossy(&changed);
                // Space at the ends of lines is not signed, nor does it reach the parser.
                let same = |line: &str| line.trim_end_matches([' ', '\t', '\r']).to_owned();
                if text.lines().map(same).eq(String::from_utf8_lossy(document).lines().map(same)) {
                    continue;
                }
                assert!(verify(&changed, &keyring, NOW).is_err(), "bit {bit} of byte {at}: {:?}", changed[at] as char);
            }
        }
    }

    #[test]
    fn frames() {
        let keyring = keyring(&[fixture!("archive.asc"), fixture!("release.asc")]);
        let document = std::str::from_utf8(fixture!("InRelease.short")).unwrap();
        let other = std::str::from_utf8(fixture!("InRelease.stranger")).unwrap();
        for (case, changed) in [
            ("text before", format!("Origin: x\n{document}")),
            ("empty line before", format!("\n{document}")),
            ("text after", format!("{document}Origin: x\n")),
            ("another message after", format!("{document}{other}")),
            ("text as a header", document.replacen("Hash: SHA256\n", "Hash: SHA256\nOrigin: x\n", 1)),
            ("another hash announced", document.replacen("SHA256", "SHA512", 1)),
            ("text put first", document.replacen("\nOrigin", "\nLabel: x\nOrigin", 1)),
            ("text put last", document.replacen("-----BEGIN PGP SIG", "Label: x\n-----BEGIN PGP SIG", 1)),
            ("an unescaped dash", document.replacen("Label", "-Label", 1)),
            ("a lone carriage return", document.replacen("Label", "La\rbel", 1)),
            ("no signature", document.split_once("-----BEGIN PGP SIG").unwrap().0.to_owned()),
            ("no end", document.split_once("-----END PGP SIG").unwrap().0.to_owned()),
            ("only the text", std::str::from_utf8(fixture!("Release")).unwrap().to_owned()),
            ("nothing", String::new()),
        ] {
            assert_ne!(changed, document, "{case}");
            assert!(verify(changed.as_bytes(), &keyring, NOW).is_err(), "{case}");
        }
        for (case, changed) in [
            ("carriage returns", document.replace('\n', "\r\n")),
            ("no header", document.replacen("Hash: SHA256\n", "", 1)),
            ("more hashes", document.replacen("SHA256", "SHA512, SHA256", 1)),
            ("empty lines after", format!("{document}\n\n")),
        ] {
            verify(changed.as_bytes(), &keyring, NOW).expect(case);
        }
    }

    #[test]
    fn every_cut_is_noticed() {
        let keyring = keyring(&[fixture!("release.asc")]);
        let document = fixture!("InRelease").trim_ascii_end();
        verify(document, &keyring, NOW).unwrap();
        for end in 0..document.len() {
            assert!(verify(&document[..end], &keyring, NOW).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn escapes_and_trailing_space() {
        let text = verify_clear_signed(fixture!("dashes.asc"), "dashes", &keyring(&[fixture!("release.asc")]), NOW);
        assert_eq!(text.unwrap(), "- dash\n-----BEGIN PGP SIGNATURE-----\nspace\n\nend\n");
    }

    #[test]
    fn release_fields() {
        let text = std::str::from_utf8(fixture!("Release")).unwrap();
        assert!(parse_release(text).is_ok());
        for (from, to) in [
            ("Date: Sun, 01", "Date: Mon, 01"),
            ("Date: ", "Data: "),
            ("Valid-Until: Sun", "Valid-Until: Son"),
            ("SHA256:", "SHA512:"),
            ("        3 main", "        3 ../main"),
            ("        3 main", "        3 /main"),
            ("        3 main", "        3"),
            ("        3 main", "       -3 main"),
            ("ba7816bf", "ba7816b"),
            ("binary-all/Packages.xz", "binary-amd64/Packages"),
            ("Label: Example\n", "Label: Example\n\n"),
            ("Label: Example", "Origin: Example"),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text, "{to}");
            assert!(parse_release(&changed).is_err(), "{to}");
        }
        assert!(parse_release(&text.replace("Suite: stable\n", "").replace("Codename: example\n", "")).is_err());
    }
}
