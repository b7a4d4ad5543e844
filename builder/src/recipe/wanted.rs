//! What sets ask of the resolver.

use std::collections::{BTreeMap, BTreeSet};

use super::{Error, Origin, Set};

/// What a list of sets asks of the resolver: packages wanted, with where they are asked for, and names omitted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Package names with their first origin.
    pub packages: BTreeMap<String, Origin>,
    /// Packages that the builder itself uses, without their dependencies.
    pub inputs: BTreeMap<String, Origin>,
    /// Names treated as satisfied.
    pub omits: BTreeSet<String>,
}

impl Wanted {
    /// Collects what `sets` ask for.
    ///
    /// # Errors
    /// When one and the same package is asked for and omitted.
    pub fn of(sets: &[Set]) -> Result<Self, Error> {
        let mut wanted = Self::default();
        for set in sets {
            for package in &set.packages {
                wanted.packages.entry(package.name.clone()).or_insert_with(|| package.origin.clone());
            }
            for input in &set.inputs {
                wanted.inputs.entry(input.name.clone()).or_insert_with(|| input.origin.clone());
            }
            wanted.omits.extend(set.omits.iter().map(|omit| omit.name.clone()));
        }
        for omit in sets.iter().flat_map(|set| &set.omits) {
            if let Some(asked) = wanted.packages.get(&omit.name) {
                return Err(Error::Syntax {
                    origin: omit.origin.clone(),
                    message: format!("{} is omitted here and asked for at {asked}", omit.name),
                });
            }
        }
        Ok(wanted)
    }
}
