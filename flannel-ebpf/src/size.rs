//! How much a packet counts for.

/// How much a packet counts for.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    /// Packets on the wire: the segments of a GSO aggregate, 1 otherwise.
    pub(crate) packets: u32,
    /// Length of the frame.
    pub(crate) bytes: u32,
}
