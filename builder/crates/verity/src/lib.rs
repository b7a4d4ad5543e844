//! dm-verity.
