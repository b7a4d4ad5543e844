//! Unified kernel images.
