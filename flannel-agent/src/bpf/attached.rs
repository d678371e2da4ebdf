//! Which programs of ours are at which hooks, told without loading anything: by the pinned links and by filters.

use aya::programs::links::{FdLink, PinnedLink};
use flannel_common::path::Hook;
use nix::net::if_::if_nametoindex;

use super::{HookError, Pins, clsact};

/// A program at its hook, of whichever agent's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AttachedProgram {
    /// The interface.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// Where on it.
    pub hook: Hook,
    /// The kernel's id of the program.
    pub id: u32,
}

/// Every program that a link pinned at `pins` holds, or a filter of ours in this network namespace, and whose interface
/// is there.
///
/// # Errors
/// When the pins or filters cannot be listed.
pub fn attached(pins: &Pins) -> Result<Vec<AttachedProgram>, HookError> {
    let mut found = Vec::new();
    for (interface, hook) in pins.pinned_links()? {
        // A link that goes meanwhile is none, and neither is one of an interface of another namespace.
        let Ok(link) = PinnedLink::from_pin(pins.link(&interface, hook)) else { continue };
        let Ok(info) = FdLink::from(link).info() else { continue };
        let Ok(ifindex) = if_nametoindex(interface.as_str()) else { continue };
        found.push(AttachedProgram { interface, ifindex, hook, id: info.program_id() });
    }
    let placed = clsact::placed()?.into_iter();
    found.extend(placed.map(|placed| {
        let clsact::Placed { interface, ifindex, hook, program } = placed;
        AttachedProgram { interface, ifindex, hook, id: program }
    }));
    found.sort();
    Ok(found)
}
