//! Secrets of a cluster: `secrets.age` beside its profiles, a JSON object encrypted with
//! [age](https://age-encryption.org/v1) to X25519 recipients, so that it can be committed.
//!
//! ```json
//! { "version": 1, "recipients": ["age1…"], "secrets": { "agent-token": "…", "auth-key": "…", "server-ca.crt": "…" } }
//! ```
//!
//! The recipients stand in the file itself, so that whoever can read it can write it for all of them. Left out:
//! recipients and identities of SSH and of plugins, and identity files that are encrypted with a passphrase.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use age::armor::{ArmoredReader, ArmoredWriter, Format};
use age::secrecy::ExposeSecret as _;
use age::x25519;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nodezero_profile::language::{AGENT_TOKEN, SECRETS_FILE, Secret, SecretRef, Secrets};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

/// The format's version.
const VERSION: u32 = 1;
/// The largest file of secrets, and the largest file that holds one, in bytes.
const LIMIT: u64 = 1 << 20;
/// The environment variable that names the file of identities.
pub const IDENTITY_VARIABLE: &str = "NODEZERO_AGE_IDENTITY";

/// The secrets of a cluster, open.
pub struct Store {
    path: PathBuf,
    content: Content,
    /// Digest of the file as it was read; `None` for one that is not there yet.
    read: Option<[u8; 32]>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    recipients: Vec<String>,
    secrets: BTreeMap<String, String>,
}

impl Store {
    /// A new store in a directory of profiles, not yet written.
    ///
    /// # Errors
    /// When there is one already, or a recipient is none.
    pub fn create(dir: &Path, recipients: &[String]) -> Result<Self> {
        let path = dir.join(SECRETS_FILE);
        ensure!(!path.exists(), "{} is there already", path.display());
        let content = Content { version: VERSION, recipients: recipients.to_vec(), secrets: BTreeMap::new() };
        let store = Self { path, content, read: None };
        store.recipients()?;
        Ok(store)
    }

    /// Opens the store of a directory of profiles with an age identity file.
    ///
    /// # Errors
    /// When either cannot be read, or the identity is none of the recipients'.
    pub fn open(dir: &Path, identity: Option<&Path>) -> Result<Self> {
        let path = dir.join(SECRETS_FILE);
        let context = || format!("opening {}", path.display());
        ensure!(path.exists(), "{} is missing: nodezero cluster init makes it", path.display());
        let identity = identity.ok_or_else(|| {
            anyhow!("no age identity is given: say --identity FILE, or name the file in {IDENTITY_VARIABLE}")
        });
        let identity = identity.with_context(context)?;
        let bytes = read_bounded(&path)?;
        let text = decrypt(&bytes, identity).with_context(context)?;
        // The error of the JSON parser would show what it found.
        let content: Content = serde_json::from_slice(&text)
            .map_err(|error| anyhow!("it holds no JSON of this form, line {} column {}", error.line(), error.column()))
            .with_context(context)?;
        ensure!(content.version == VERSION, "{} has version {}, expected {VERSION}", path.display(), content.version);
        Ok(Self { path, content, read: Some(Sha256::digest(&bytes).into()) })
    }

    /// An entry.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Secret> {
        self.content.secrets.get(name).map(|text| Secret::verbatim(text.clone()))
    }

    /// Adds or changes an entry; [`Store::write`] keeps it.
    ///
    /// # Errors
    /// When the name is none that a profile can refer to, or the secret is empty.
    pub fn set(&mut self, name: &str, secret: &Secret) -> Result<()> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
        ensure!(!name.is_empty() && name.bytes().all(plain), "{name:?} is not a name of A-Z, a-z, 0-9, -, _ and .");
        ensure!(!secret.expose().is_empty(), "the secret {name} is empty");
        self.content.secrets.insert(name.to_owned(), secret.expose().to_owned());
        Ok(())
    }

    /// Takes an entry away; whether it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        self.content.secrets.remove(name).is_some()
    }

    /// The names of all entries.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.content.secrets.keys().map(String::as_str)
    }

    /// Writes the store, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written, or somebody else wrote it since it was opened.
    pub fn write(&mut self) -> Result<()> {
        let context = || format!("writing {}", self.path.display());
        let text = serde_json::to_vec_pretty(&self.content).with_context(context)?;
        let bytes = self.encrypt(&text).with_context(context)?;
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let mut file = NamedTempFile::new_in(dir).with_context(context)?;
        file.write_all(&bytes).with_context(context)?;
        file.as_file().sync_all().with_context(context)?;
        let found = self.path.exists().then(|| read_bounded(&self.path)).transpose()?;
        let found = found.map(|bytes| <[u8; 32]>::from(Sha256::digest(&bytes)));
        ensure!(found == self.read, "{} was changed since it was read: run the command again", self.path.display());
        file.persist(&self.path).with_context(context)?;
        fs::File::open(dir).and_then(|dir| dir.sync_all()).with_context(context)?;
        self.read = Some(Sha256::digest(&bytes).into());
        Ok(())
    }

    fn recipients(&self) -> Result<Vec<x25519::Recipient>> {
        ensure!(!self.content.recipients.is_empty(), "there is no recipient");
        let parse = |text: &String| {
            text.parse::<x25519::Recipient>().map_err(|error| anyhow!("{text:?} is not an age recipient: {error}"))
        };
        self.content.recipients.iter().map(parse).collect()
    }

    fn encrypt(&self, text: &[u8]) -> Result<Vec<u8>> {
        let recipients = self.recipients()?;
        let recipients = recipients.iter().map(|recipient| recipient as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(recipients)?;
        let armor = ArmoredWriter::wrap_output(Vec::new(), Format::AsciiArmor)?;
        let mut writer = encryptor.wrap_output(armor)?;
        writer.write_all(text)?;
        Ok(writer.finish()?.finish()?)
    }
}

fn decrypt(bytes: &[u8], identity: &Path) -> Result<Vec<u8>> {
    let text = identity.to_string_lossy();
    ensure!(!text.starts_with("AGE-SECRET-KEY-"), "an identity is given itself: give the file that holds it");
    let context = || format!("reading the age identity {}", identity.display());
    let identities = age::IdentityFile::from_buffer(read_bounded(identity)?.as_slice())
        .map_err(anyhow::Error::from)
        .and_then(|file| Ok(file.into_identities()?))
        .with_context(context)?;
    ensure!(!identities.is_empty(), "{} holds no identity", identity.display());
    let decryptor = age::Decryptor::new(ArmoredReader::new(bytes))?;
    let identities = identities.iter().map(|identity| identity.as_ref() as &dyn age::Identity);
    let mut text = Vec::new();
    decryptor.decrypt(identities)?.take(LIMIT).read_to_end(&mut text)?;
    Ok(text)
}

/// Makes a new age identity in a file that only its owner may read, and gives its recipient.
///
/// # Errors
/// When there is such a file already, or it cannot be written.
pub fn new_identity(path: &Path) -> Result<String> {
    let identity = x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    let text = format!("# public key: {recipient}\n{}\n", identity.to_string().expose_secret());
    write_private(path, text.as_bytes(), false)?;
    Ok(recipient)
}

/// Writes a file that only its owner may read, whole or not at all.
///
/// # Errors
/// When it cannot be written, or is there already and is not to be replaced.
pub fn write_private(path: &Path, bytes: &[u8], replace: bool) -> Result<()> {
    let context = || format!("writing {}", path.display());
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    // A temporary file has the mode 0600.
    let mut file = NamedTempFile::new_in(dir).with_context(context)?;
    file.write_all(bytes).with_context(context)?;
    file.as_file().sync_all().with_context(context)?;
    if replace {
        file.persist(path).with_context(context)?;
    } else {
        file.persist_noclobber(path).with_context(context)?;
    }
    Ok(())
}

fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let context = || format!("reading {}", path.display());
    let mut bytes = Vec::new();
    fs::File::open(path).with_context(context)?.take(LIMIT + 1).read_to_end(&mut bytes).with_context(context)?;
    ensure!(bytes.len() as u64 <= LIMIT, "{} has more than {LIMIT} bytes", path.display());
    Ok(bytes)
}

/// Where the secrets of profiles come from. The store is opened when a first secret of it is asked for.
pub struct Resolver<'a> {
    dir: &'a Path,
    identity: Option<&'a Path>,
    store: OnceCell<Result<Store, String>>,
}

impl<'a> Resolver<'a> {
    /// For a directory of profiles and a file of age identities.
    #[must_use]
    pub fn new(dir: &'a Path, identity: Option<&'a Path>) -> Self {
        Self { dir, identity, store: OnceCell::new() }
    }

    fn entry(&self, name: &str) -> Result<Secret, String> {
        let open = || Store::open(self.dir, self.identity).map_err(|error| format!("{error:#}"));
        let store = self.store.get_or_init(open).as_ref().map_err(Clone::clone)?;
        store.get(name).ok_or_else(|| missing(name))
    }
}

/// What is said of an entry that is not there. Clusters that began before workers had a token of their own lack that one.
fn missing(name: &str) -> String {
    let (random, then) = match name {
        AGENT_TOKEN => (" --random", "; control nodes must have it before a worker joins with it"),
        _ => ("", ""),
    };
    format!("{SECRETS_FILE} has no entry {name}: nodezero secret set {name}{random} adds it{then}")
}

impl Secrets for Resolver<'_> {
    fn read(&self, reference: &SecretRef) -> Result<Secret, String> {
        let secret = match reference {
            SecretRef::Secret(name) => self.entry(name)?,
            SecretRef::File(path) => text_of(&self.dir.join(path)).map_err(|error| format!("{error:#}"))?,
            SecretRef::Env(name) => {
                let text = std::env::var(name).map_err(|_| format!("the environment variable {name} is not set"))?;
                Secret::new(&text)
            }
        };
        // Of an entry of the store too: a line end at its end would be part of it.
        let secret = Secret::new(secret.expose());
        if secret.expose().is_empty() { Err("it is empty".to_owned()) } else { Ok(secret) }
    }

    fn authority(&self, file: &str) -> Result<Secret, String> {
        self.entry(file)
    }
}

/// The content of a file, as a secret.
///
/// # Errors
/// When it cannot be read, or is no text.
pub fn text_of(path: &Path) -> Result<Secret> {
    let bytes = read_bounded(path)?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Secret::new(&text)),
        Err(_) => bail!("{} holds bytes that are no UTF-8", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path, identity: &Path) -> Result<Store> {
        Store::open(dir, Some(identity))
    }

    #[test]
    fn what_is_written_is_read_by_its_recipients_alone() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (key, other) = (dir.path().join("key"), dir.path().join("other"));
        let recipient = new_identity(&key).expect("an identity");
        new_identity(&other).expect("an identity");
        assert!(new_identity(&key).is_err(), "an identity is never replaced");
        let mut store = Store::create(dir.path(), &[recipient]).expect("a store");
        store.set("auth-key", &Secret::new("s3cret")).expect("set");
        assert!(store.set("a b", &Secret::new("x")).is_err());
        assert!(store.set("a", &Secret::new(" ")).is_err());
        store.write().expect("written");
        store.set("server-ca.crt", &Secret::verbatim("two\nlines\n".to_owned())).expect("set");
        store.write().expect("written again");

        let text = fs::read_to_string(dir.path().join(SECRETS_FILE)).expect("text");
        assert!(text.starts_with("-----BEGIN AGE ENCRYPTED FILE-----") && !text.contains("s3cret"));
        let read = open(dir.path(), &key).expect("opened");
        assert_eq!(read.get("auth-key").expect("an entry").expose(), "s3cret");
        assert_eq!(read.get("server-ca.crt").expect("an entry").expose(), "two\nlines\n");
        assert_eq!(read.names().collect::<Vec<_>>(), ["auth-key", "server-ca.crt"]);
        assert!(read.get("nothing").is_none());
        assert!(open(dir.path(), &other).is_err(), "another identity");
        assert!(Store::open(dir.path(), None).is_err(), "no identity");
        assert!(Store::create(dir.path(), &[]).is_err(), "it is there");

        let path = dir.path().join(SECRETS_FILE);
        let mut bytes = fs::read(&path).expect("bytes");
        let at = bytes.len() / 2;
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        fs::write(&path, bytes).expect("written");
        assert!(open(dir.path(), &key).is_err(), "tampered with");
    }

    #[test]
    fn nobody_writes_over_anothers_change() {
        let dir = tempfile::tempdir().expect("tempdir");
        let key = dir.path().join("key");
        let recipient = new_identity(&key).expect("an identity");
        Store::create(dir.path(), &[recipient]).expect("a store").write().expect("written");
        let mut one = open(dir.path(), &key).expect("opened");
        let mut other = open(dir.path(), &key).expect("opened");
        one.set("a", &Secret::new("1")).expect("set");
        one.write().expect("written");
        other.set("b", &Secret::new("2")).expect("set");
        let error = other.write().expect_err("changed meanwhile").to_string();
        assert!(error.ends_with("was changed since it was read: run the command again"), "{error}");
    }

    #[test]
    fn references_are_followed() {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::write(dir.path().join("token"), "abc\n").expect("written");
        fs::write(dir.path().join("empty"), "\n").expect("written");
        let resolver = Resolver::new(dir.path(), None);
        let read = |reference: SecretRef| resolver.read(&reference).map(|secret| secret.expose().to_owned());
        assert_eq!(read(SecretRef::File("token".to_owned())).as_deref(), Ok("abc"));
        for (case, reference, expected) in [
            ("empty", SecretRef::File("empty".to_owned()), "it is empty"),
            ("missing", SecretRef::File("nothing".to_owned()), "No such file"),
            ("variable", SecretRef::Env("NODEZERO_NO_SUCH".to_owned()), "NODEZERO_NO_SUCH is not set"),
            ("no store", SecretRef::Secret("a".to_owned()), "secrets.age is missing: nodezero cluster init makes it"),
        ] {
            let error = read(reference).expect_err(case);
            assert!(error.contains(expected), "{case}: {error}");
        }
    }
}
