//! Components: the programs of others that an image has beside Debian's packages, such as K3s and Tailscale.
//!
//! `images/components/NAME.toml` says which files a component gives, to which roles, and its sources in order: the
//! official release, a build by the ordinary `go` client, a stand-in for tests. The lock pins what a source gives.
//! [`take`] takes each component from the first source that has it, or from where the user says.
//!
//! A file that a source gave stands in the cache under its SHA-256, and in a pack of its own; what an archive or a
//! build was made into is remembered, so an unchanged component is neither fetched, nor unpacked, nor built again.

mod go;
mod local;
mod model;
pub mod pin;
mod release;
mod store;
mod take;

pub use model::{Choice, Component, FileSpec, Source};
pub use take::{Demand, Laid, Place, Taken, parse_choice, take};
