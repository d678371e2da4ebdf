//! The requests that make changes, and what their refusals mean.

use nix::errno::Errno;

use crate::{
    netlink::{FdbEntry, NetlinkError, Request, address, neighbour, protocol::Numbering, route},
    plan::{Change, DirectRoute},
};

/// Explains the error for a node that is not on our link; other errors stay as they are.
pub(super) fn unreachable_gateway(route: DirectRoute, error: NetlinkError) -> NetlinkError {
    match error.errno() {
        Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH) => NetlinkError::Conflict(format!(
            "node {} is not on the link of the external interface (kernel: {error}): the host-gw backend reaches \
             only nodes on one link; use the vxlan backend, or join the node to this link",
            route.via
        )),
        _ => error,
    }
}

/// The request that makes a change of what is on the device.
pub(super) fn request(index: u32, change: &Change, numbering: Numbering) -> Option<Request> {
    Some(match *change {
        Change::PutAddress(address) => address::put(index, address),
        Change::DeleteAddress(address) => address::delete(index, address),
        Change::PutFdb { mac, public_ip } => neighbour::put_fdb(index, FdbEntry { mac, public_ip }),
        Change::DeleteFdb { mac, public_ip } => neighbour::delete_fdb(index, FdbEntry { mac, public_ip }),
        Change::PutNeighbour { address, mac } => neighbour::put(index, address, mac),
        Change::DeleteNeighbour(address) => neighbour::delete(index, address),
        Change::PutRoute { subnet, via } => route::put_onlink(index, subnet, via, numbering),
        Change::DeleteRoute { subnet, via } => route::delete_onlink(index, subnet, via, numbering),
        _ => return None,
    })
}

/// Whether a removal failed because there was nothing to remove.
pub(super) fn is_gone(error: &NetlinkError) -> bool {
    matches!(error.errno(), Some(Errno::ENOENT | Errno::ESRCH | Errno::ENODEV | Errno::EADDRNOTAVAIL))
}
