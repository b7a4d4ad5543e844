//! A build's plan: recipe, lock and inputs put together. Pure, and printable as JSON.

use anyhow::Result;
use debian::digest::Sha256;
use nodezero_profile::Role;
use serde::Serialize;

use crate::component::Taken;
use crate::lock::{Lock, Pins};
use crate::manifest::ComponentRecord;
use crate::recipe::{Loader, Platform, Recipe, Wanted};

/// Bytes of the inputs' digest in a version.
const VERSION_DIGITS: usize = 8;

/// Everything that decides an image's bytes, but the files' contents themselves, which their digests stand for.
#[derive(Clone, Debug, Serialize)]
pub struct BuildPlan {
    /// `nodezero-worker-metal`.
    pub name: String,
    /// The role.
    pub role: Role,
    /// The platform.
    pub platform: Platform,
    /// The lock's date and the digest of all inputs: `20261121.1a2b3c4d`.
    pub version: String,
    /// Seconds since 1970 for every time in the image.
    pub timestamp: u64,
    /// SHA-256 over all inputs.
    pub inputs: String,
    /// Firmware interfaces served.
    pub loaders: Vec<Loader>,
    /// What the image is made of.
    #[serde(flatten)]
    pub pins: Pins,
    /// Programs of others beside Debian's packages. Only a build knows which of their sources it takes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub components: Vec<ComponentRecord>,
    /// Components that the image is to go without.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

impl BuildPlan {
    /// Plans the image of `recipe` with the components in `taken`. `other_inputs` are the digests of everything else
    /// that reaches the image: files, the first-boot binary, the format's own version.
    ///
    /// # Errors
    /// When the lock does not fit the recipe.
    pub fn new(recipe: &Recipe, lock: &Lock, taken: &Taken, other_inputs: &[(String, Sha256)]) -> Result<Self> {
        let target = recipe.target();
        let pins = lock.pins(&target, &Wanted::of(&recipe.sets)?)?;
        Self::with_pins(recipe, lock, pins, taken, other_inputs)
    }

    /// As [`Self::new`], with packages that differ from the lock's.
    ///
    /// # Errors
    /// When the lock has no valid time.
    pub fn with_pins(
        recipe: &Recipe,
        lock: &Lock,
        pins: Pins,
        taken: &Taken,
        other_inputs: &[(String, Sha256)],
    ) -> Result<Self> {
        let mut text = format!("{}\n{}\n", recipe.target(), lock.timestamp);
        for pin in pins.packages.iter().chain(&pins.inputs) {
            text.push_str(&format!("{} {} {}\n", pin.name, pin.version, pin.sha256));
        }
        for (name, digest) in other_inputs {
            text.push_str(&format!("{name} {digest}\n"));
        }
        for record in &taken.records {
            text.push_str(&format!("component {record:?}\n"));
        }
        for laid in &taken.laid {
            text.push_str(&format!("laid {laid:?}\n"));
        }
        for name in &taken.missing {
            text.push_str(&format!("without {name}\n"));
        }
        let inputs = Sha256::of(text.as_bytes()).to_string();
        let date: String = lock.timestamp.chars().take(10).filter(char::is_ascii_digit).collect();
        Ok(Self {
            name: format!("nodezero-{}", recipe.name()),
            role: recipe.role,
            platform: recipe.platform,
            version: format!("{date}.{}", &inputs[..VERSION_DIGITS]),
            timestamp: lock.unix_time()?,
            inputs,
            loaders: recipe.boot.loaders.iter().copied().collect(),
            pins,
            components: taken.records.clone(),
            missing: taken.missing.clone(),
        })
    }

    /// Components that a stand-in stands for, by name.
    #[must_use]
    pub fn standins(&self) -> Vec<&str> {
        self.components.iter().filter(|record| record.standin).map(|record| record.name.as_str()).collect()
    }

    /// The name of the image's files, without suffix: it says what the image is not.
    #[must_use]
    pub fn stem(&self) -> String {
        let standin = if self.standins().is_empty() { "" } else { "-standin" };
        let missing = if self.missing.is_empty() { "" } else { "-incomplete" };
        format!("{}-{}{standin}{missing}", self.name, self.version)
    }
}
