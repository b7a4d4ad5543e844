//! Unified kernel images (UKI): kernel, initrd and command line in one PE file that UEFI firmware starts.
//!
//! An image is systemd's stub with the parts added as PE sections, as `ukify` lays them out: the stub finds them in
//! memory by name and starts the kernel with them.
//!
//! - <https://uapi-group.org/specifications/specs/unified_kernel_image/>
//! - systemd-stub(7): <https://www.freedesktop.org/software/systemd/man/latest/systemd-stub.html>
//! - PE/COFF: <https://learn.microsoft.com/windows/win32/debug/pe-format>
//!
//! The images made here are unsigned, with an empty certificate table and no checksum. To sign for Secure Boot,
//! `sbsign --key KEY --cert CERT --output SIGNED UKI` computes the Authenticode digest over the file, appends the
//! certificate table at its end (which is why nothing follows the last section) and enters it in the header.
//!
//! Left out: PE32 (32-bit) images, multi-profile images (`.profile`), device trees, PCR signatures (`.pcrsig`),
//! add-ons, signing.

mod assemble;
pub mod cmdline;
mod error;
pub mod pe;
mod read;
mod sbat;
pub mod section;

pub use assemble::{Placed, Summary, assemble};
pub use cmdline::Cmdline;
pub use error::Error;
pub use read::Uki;
pub use sbat::merge_sbat;
pub use section::{Name, Section, SectionData};
