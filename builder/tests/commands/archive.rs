//! A Debian archive in memory: packages, indexes, signed release files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, SystemTime};

use debian::digest::Sha256;
use pgp::composed::{ArmorOptions, CleartextSignedMessage, SecretKeyParamsBuilder, SignedKeyDetails, SignedPublicKey};
use pgp::composed::{KeyType, SignedSecretKey};
use pgp::packet::{KeyFlags, SignatureConfig, SignatureType, Subpacket, SubpacketData, UserId};
use pgp::types::{KeyDetails as _, Password, PublicKeyTrait as _, SignedUser, Tag};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::binaries;
use crate::server::Server;

/// When all keys were made: 2025-01-01 00:00:00 UTC.
const KEYS_MADE: u64 = 1_735_689_600;
/// When all signatures were made: 2025-03-01 00:00:00 UTC.
const SIGNED: u64 = 1_740_787_200;
/// The suites' own date, the same moment, as release files write it.
pub(crate) const DATE: &str = "Sat, 01 Mar 2025 00:00:00 UTC";
/// The same as a snapshot's name.
pub(crate) const SNAPSHOT: &str = "20250301T000000Z";
/// The kernel in the archive.
pub(crate) const KERNEL: &str = "9.9.9-test";

/// Suites with the archive that has them.
const SUITES: [(&str, &str); 3] =
    [("trixie", "debian"), ("trixie-updates", "debian"), ("trixie-security", "debian-security")];

/// A key that signs release files. The same seed gives the same key.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    secret: SignedSecretKey,
    public: SignedPublicKey,
}

impl Key {
    /// A key that counts until `expires`, in Unix seconds.
    pub(crate) fn new(seed: u64, expires: Option<u64>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut params = SecretKeyParamsBuilder::default();
        params
            .key_type(KeyType::Ed25519Legacy)
            .can_sign(true)
            .created_at(time(KEYS_MADE).into())
            .primary_user_id(format!("Test {seed} <test@example.org>"));
        let params = params.build().expect("the parameters fit each other");
        let secret = params.generate(&mut rng).expect("such keys can be made");
        let secret = secret.sign(&mut rng, &Password::empty()).expect("it can sign itself");
        let key = &secret.primary_key;
        // The certificate is made by hand: the crate cannot give it a time or an end.
        let [made, end] = [*key.public_key().created_at(), time(expires.unwrap_or(KEYS_MADE)).into()];
        let mut flags = KeyFlags::default();
        flags.set_sign(true);
        let mut facts = vec![SubpacketData::SignatureCreationTime(made), SubpacketData::KeyFlags(flags)];
        if expires.is_some() {
            facts.push(SubpacketData::KeyExpirationTime(end - made));
        }
        let id =
            UserId::from_str(pgp::types::PacketHeaderVersion::New, "Test <test@example.org>").expect("it is short");
        let certification = config(&secret, SignatureType::CertPositive, facts)
            .sign_certification(key, key.public_key(), &Password::empty(), Tag::UserId, &id)
            .expect("it can sign itself");
        let users = vec![SignedUser::new(id, vec![certification])];
        let details = SignedKeyDetails::new(Vec::new(), Vec::new(), users, Vec::new());
        let public = SignedPublicKey::new(key.public_key().clone(), details, Vec::new());
        Self { secret, public }
    }

    /// The key for the keyring.
    pub(crate) fn armored(&self) -> String {
        self.public.to_armored_string(ArmorOptions::default()).expect("it is written to memory")
    }

    /// Its name in messages.
    pub(crate) fn fingerprint(&self) -> String {
        self.public.fingerprint().to_string().to_uppercase()
    }

    fn sign(&self, text: &str) -> String {
        let facts = vec![SubpacketData::SignatureCreationTime(time(SIGNED).into())];
        let config = config(&self.secret, SignatureType::Text, facts);
        let signed = CleartextSignedMessage::new(text, config, &self.secret.primary_key, &Password::empty());
        let signed = signed.expect("the key can sign text");
        signed.to_armored_string(ArmorOptions::default()).expect("it is written to memory")
    }
}

fn time(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn config(key: &SignedSecretKey, kind: SignatureType, facts: Vec<SubpacketData>) -> SignatureConfig {
    let key = &key.primary_key;
    // Keys of version 4 need no randomness to sign.
    let mut config = SignatureConfig::from_key(StdRng::seed_from_u64(0), key, kind).expect("keys are of version 4");
    let issuer = SubpacketData::IssuerFingerprint(key.fingerprint());
    let packets = facts.into_iter().chain([issuer]).map(Subpacket::regular);
    config.hashed_subpackets = packets.collect::<Result<_, _>>().expect("subpackets are short");
    config
}

/// What a package has at a path.
#[derive(Clone, Debug)]
enum Entry {
    File(Vec<u8>, u32),
    Link(String),
}

/// A package, with the suite that has it.
#[derive(Clone, Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    suite: &'static str,
    fields: String,
    entries: BTreeMap<String, Entry>,
    scripts: BTreeMap<String, String>,
}

impl Package {
    pub(crate) fn new(name: &str, version: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            suite: "trixie",
            fields: String::new(),
            entries: BTreeMap::new(),
            scripts: BTreeMap::new(),
        }
    }

    pub(crate) fn suite(mut self, suite: &'static str) -> Self {
        self.suite = suite;
        self
    }

    /// A field of the control file, such as `Depends: x`.
    pub(crate) fn field(mut self, line: &str) -> Self {
        self.fields += line;
        self.fields.push('\n');
        self
    }

    pub(crate) fn file(mut self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.entries.insert(path.to_owned(), Entry::File(content.into(), 0o644));
        self
    }

    pub(crate) fn program(mut self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.entries.insert(path.to_owned(), Entry::File(content.into(), 0o755));
        self
    }

    pub(crate) fn link(mut self, path: &str, target: &str) -> Self {
        self.entries.insert(path.to_owned(), Entry::Link(target.to_owned()));
        self
    }

    pub(crate) fn script(mut self, kind: &str, text: &str) -> Self {
        self.scripts.insert(kind.to_owned(), text.to_owned());
        self
    }

    fn control(&self) -> String {
        let (name, version, fields) = (&self.name, &self.version, &self.fields);
        format!(
            "Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: Test <test@example.org>\n{fields}\
             Description: a package of the tests\n"
        )
    }

    /// Its file in the archive, deb(5).
    pub(crate) fn deb(&self) -> Vec<u8> {
        let mut control = tar::Builder::new(Vec::new());
        append(&mut control, "control", &Entry::File(self.control().into_bytes(), 0o644));
        for (kind, text) in &self.scripts {
            append(&mut control, kind, &Entry::File(text.clone().into_bytes(), 0o755));
        }
        let mut data = tar::Builder::new(Vec::new());
        let mut made = BTreeSet::new();
        for (path, entry) in &self.entries {
            for (at, _) in path.match_indices('/') {
                if made.insert(&path[..at]) {
                    let mut header = tar_header(tar::EntryType::Directory, 0o755, 0);
                    data.append_data(&mut header, format!("./{}/", &path[..at]), &[][..]).expect("memory takes it");
                }
            }
            append(&mut data, path, entry);
        }
        let mut deb = b"!<arch>\n".to_vec();
        let control = xz(&control.into_inner().expect("memory takes it"));
        let data = xz(&data.into_inner().expect("memory takes it"));
        for (name, bytes) in [("debian-binary", &b"2.0\n"[..]), ("control.tar.xz", &control), ("data.tar.xz", &data)] {
            writeln!(deb, "{name:16}{:<12}{:<6}{:<6}{:<8}{:<10}`", SIGNED, 0, 0, 100_644, bytes.len())
                .expect("memory takes it");
            deb.extend(bytes);
            deb.resize(deb.len().next_multiple_of(2), b'\n');
        }
        deb
    }

    fn filename(&self) -> String {
        format!("pool/main/t/{0}/{0}_{1}_all.deb", self.name, self.version)
    }
}

fn tar_header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_mtime(SIGNED);
    header.set_uid(0);
    header.set_gid(0);
    header.set_username("root").expect("it is short");
    header.set_groupname("root").expect("it is short");
    header
}

fn append(tar: &mut tar::Builder<Vec<u8>>, path: &str, entry: &Entry) {
    let path = format!("./{path}");
    match entry {
        Entry::File(content, mode) => {
            let mut header = tar_header(tar::EntryType::Regular, *mode, content.len());
            tar.append_data(&mut header, path, &content[..]).expect("memory takes it");
        }
        Entry::Link(target) => {
            let mut header = tar_header(tar::EntryType::Symlink, 0o777, 0);
            tar.append_link(&mut header, path, target).expect("memory takes it");
        }
    }
}

pub(crate) fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

/// An archive: change its fields, then publish it.
#[derive(Clone, Debug)]
pub(crate) struct Archive {
    pub(crate) packages: Vec<Package>,
    pub(crate) key: Key,
    pub(crate) date: &'static str,
    /// A further field of all release files, such as `Valid-Until`.
    pub(crate) release_field: String,
}

impl Archive {
    pub(crate) fn new() -> Self {
        Self { packages: packages(), key: Key::new(1, None), date: DATE, release_field: String::new() }
    }

    /// The package of a name, to be changed.
    pub(crate) fn package(&mut self, name: &str) -> &mut Package {
        self.packages.iter_mut().find(|package| package.name == name).expect("the archive has it")
    }

    /// Serves the archive, and nothing else any more.
    pub(crate) fn publish(&self, server: &Server) {
        server.clear();
        for (suite, archive) in SUITES {
            let mut index = String::new();
            for package in self.packages.iter().filter(|package| package.suite == suite) {
                let deb = package.deb();
                let (filename, control) = (package.filename(), package.control());
                let _ = writeln!(
                    index,
                    "{control}Filename: {filename}\nSize: {}\nSHA256: {}\n",
                    deb.len(),
                    Sha256::of(&deb)
                );
                server.put(&format!("/{archive}/{filename}"), deb);
            }
            let mut sums = String::new();
            for (component, text) in [("main", index.as_str()), ("non-free-firmware", "")] {
                let (dir, bytes) = (format!("{component}/binary-amd64"), xz(text.as_bytes()));
                let sha256 = Sha256::of(&bytes);
                let _ = writeln!(sums, " {sha256} {} {dir}/Packages.xz", bytes.len());
                server.put(&format!("/{archive}/dists/{suite}/{dir}/Packages.xz"), bytes.clone());
                server.put(&format!("/{archive}/dists/{suite}/{dir}/by-hash/SHA256/{sha256}"), bytes);
            }
            let (date, field) = (self.date, &self.release_field);
            let text = format!(
                "Origin: Debian\nSuite: stable\nCodename: {suite}\nDate: {date}\n{field}Acquire-By-Hash: yes\nSHA256:\n{sums}"
            );
            server.put(&format!("/{archive}/dists/{suite}/InRelease"), self.key.sign(&text));
        }
    }
}

/// Bytes that do not compress, the same each time.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let step = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..length).map(step).collect()
}

/// What a system of a handful of files needs.
fn packages() -> Vec<Package> {
    let modules = format!("usr/lib/modules/{KERNEL}");
    let kernel = Package::new(&format!("linux-image-{KERNEL}"), "9.9.9-1")
        .file(&format!("boot/vmlinuz-{KERNEL}"), binaries::pe(0x11))
        .file(&format!("{modules}/modules.order"), "kernel/lib/base.ko\nkernel/drivers/disk.ko\n")
        .file(&format!("{modules}/modules.builtin"), "kernel/fs/inside.ko\n")
        .file(&format!("{modules}/modules.builtin.modinfo"), &b"inside.license=GPL\0"[..])
        .file(&format!("{modules}/kernel/lib/base.ko"), binaries::module(&["license=GPL", "depends="]))
        .file(
            &format!("{modules}/kernel/drivers/disk.ko.xz"),
            xz(&binaries::module(&["license=GPL", "depends=base", "alias=pci:v00001AF4d*"])),
        );
    let mut packages = vec![
        Package::new("base-files", "13-1")
            .link("bin", "usr/bin")
            .link("lib", "usr/lib")
            .file("etc/debian_version", "13.0\n")
            .file("usr/share/doc/base-files/README", "left out\n"),
        Package::new("tiny-service", "1.0-1")
            .field("Depends: tiny-data (>= 1), base-files")
            .program("usr/sbin/tiny", binaries::static_program())
            .file(
                "usr/lib/systemd/system/tiny.service",
                "[Service]\nExecStart=tiny\n[Install]\nWantedBy=multi-user.target\n",
            )
            .file("usr/lib/systemd/system/static.service", "[Service]\nExecStart=tiny\n")
            .file("usr/lib/sysusers.d/tiny.conf", "u tiny 200 \"Tiny\" / -\n")
            .script("prerm", "#!/bin/sh\nrm -rf /\n"),
        Package::new("tiny-data", "1.0-1").file("usr/share/tiny/data", noise(700_000)),
        Package::new("systemd-boot-efi", "257-1")
            .file("usr/lib/systemd/boot/efi/linuxx64.efi.stub", binaries::pe(0x22))
            .file("usr/lib/systemd/boot/efi/systemd-bootx64.efi", binaries::pe(0x33)),
        Package::new("tool", "1-1").program("usr/bin/tool", binaries::static_program()),
        Package::new("left", "1-1").field("Conflicts: right").file("usr/share/left", "left"),
        Package::new("right", "1-1").file("usr/share/right", "right"),
        kernel,
    ];
    for meta in ["linux-image-amd64", "linux-image-cloud-amd64"] {
        packages.push(Package::new(meta, "9.9.9-1").field(&format!("Depends: linux-image-{KERNEL} (= 9.9.9-1)")));
    }
    packages
}
