//! Builds NodeZero images.
