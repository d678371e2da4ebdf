//! What goes wrong at the kernel.

use std::fmt::Display;

use super::super::error::{CniError, Code};

/// The kernel, or a file of its settings, has refused.
pub(super) fn failed(doing: &str, error: &dyn Display) -> CniError {
    CniError::new(Code::Internal, format!("netkit: cannot {doing}: {error}"))
}

/// An interface has been deleted meanwhile.
pub(super) fn gone(interface: &str) -> CniError {
    CniError::new(Code::Internal, format!("there is no {interface}: somebody has deleted it"))
}
