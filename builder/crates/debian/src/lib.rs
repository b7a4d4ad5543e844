//! Debian archives: from a signed `InRelease` file to the entries of a package.
//!
//! The modules follow the way that trust takes. [`release`] verifies the OpenPGP signature of an `InRelease` file,
//! which names its index files by [`digest`]; [`index`] reads those into packages; [`resolve`] chooses the packages
//! that a set of requests needs; [`deb`] streams the entries of one package. [`control`], [`version`] and [`relation`]
//! are the syntax underneath.
//!
//! Everything here is pure: bytes, readers and times come in, values go out. Fetching, caching and the clock belong to
//! the caller. Left out are source packages, `Contents` and `Translation` files, and whatever writes archives.

pub mod control;
pub mod deb;
pub mod digest;
mod error;
pub mod index;
pub mod relation;
pub mod release;
pub mod resolve;
mod time;
pub mod version;

pub use error::Error;
