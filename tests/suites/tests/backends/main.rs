//! What packets between nodes are carried by, in either family: VXLAN, routes without a tunnel, or each where it fits.

mod backends;
mod clouds;
mod direct_routing;
mod dual_stack;
mod extension;
mod host_gw;
mod multi;
mod udp;
