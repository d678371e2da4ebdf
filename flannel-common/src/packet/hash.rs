//! The outer UDP source port: entropy of the inner flow, so that receivers and switches spread flows.

/// The port the kernel's VXLAN device would use for a packet of this flow hash, host order
/// (`udp_flow_src_port`, include/net/udp.h). The end of the range is exclusive.
#[inline(always)]
pub const fn source_port(flow_hash: u32, min: u32, max: u32) -> u16 {
    let hash = flow_hash ^ (flow_hash << 16);
    let span = max.saturating_sub(min);
    (((hash as u64 * span as u64) >> 32) as u32 + min) as u16
}
