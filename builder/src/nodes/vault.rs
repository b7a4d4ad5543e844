//! Where the secrets of new nodes go: what `nodezero node` needs of a store, and the newtype that carries them.

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result};

/// A secret text. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// Takes a text over.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for who stores it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// A store of secrets by name.
pub trait Vault {
    /// The secret of this name.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn find(&self, name: &str) -> Result<Option<Token>>;

    /// Keeps a secret. When this comes back it is on the disk, and a cut leaves the old store or the new one.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn keep(&mut self, name: &str, secret: &Token) -> Result<()>;

    /// What people call it.
    fn path(&self) -> &Path;
}

/// The join token's name.
pub const JOIN_TOKEN: &str = "join-token";

/// The name of an edge node's token.
#[must_use]
pub fn registration_token(name: &nodezero_profile::node::NodeName) -> String {
    format!("registration-{name}")
}

/// Opens the store of the profiles in `dir`.
///
/// # Errors
/// When it cannot be read.
pub fn open(dir: &Path, _identity: Option<&Path>) -> Result<Box<dyn Vault>> {
    Ok(Box::new(Files { dir: dir.join("secrets") }))
}

/// Secrets as files of a directory that only its owner can read.
struct Files {
    dir: std::path::PathBuf,
}

impl Vault for Files {
    fn find(&self, name: &str) -> Result<Option<Token>> {
        let path = self.dir.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(Token(text))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    fn keep(&mut self, name: &str, secret: &Token) -> Result<()> {
        let path = self.dir.join(name);
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(&self.dir)?;
            let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
            std::io::Write::write_all(&mut file, secret.0.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(&path).map(drop).map_err(|error| error.error)
        };
        write().with_context(|| format!("writing {}", path.display()))
    }

    fn path(&self) -> &Path {
        &self.dir
    }
}
