//! XDP on the external interface.

use flannel_common::{layout::UnknownVtep, path::Hook};

/// XDP as it is used on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xdp {
    /// Where on the external interface; `None` for nowhere.
    pub hook: Option<Hook>,
    /// What is done with unknown VTEPs there.
    pub unknown_vtep: UnknownVtep,
}

impl Xdp {
    /// No XDP.
    pub const OFF: Self = Self { hook: None, unknown_vtep: UnknownVtep::Off };
}
