//! Our own changes, as the kernel tells of them.

use std::collections::BTreeMap;

use crate::{
    netlink::Notice,
    plan::{Change, ObjectKey},
};

/// Changes whose notices are no news. The kernel gives them before it answers the request, so that they are there to be
/// read when the change has been made. A notice that differs in anything the plan holds is somebody else's.
#[derive(Debug)]
pub struct Echoes<'a>(BTreeMap<ObjectKey, &'a Change>);

impl<'a> Echoes<'a> {
    /// Those of `changes`.
    pub fn of(changes: &'a [Change]) -> Self {
        Self(changes.iter().map(|change| (change.key(), change)).collect())
    }

    /// Whether `notice` tells of one of them.
    pub fn hold(&self, notice: &Notice) -> bool {
        let change = change(notice);
        self.0.get(&change.key()) == Some(&&change)
    }
}

/// The change that `notice` would be the echo of.
fn change(notice: &Notice) -> Change {
    match *notice {
        Notice::Route { subnet, via, new: true } => Change::PutRoute { subnet, via },
        Notice::Route { subnet, via, new: false } => Change::DeleteRoute { subnet, via },
        Notice::DirectRoute { subnet, route, new: true } => Change::PutDirectRoute { subnet, route },
        Notice::DirectRoute { subnet, route, new: false } => Change::DeleteDirectRoute { subnet, route },
        Notice::Neighbour { address, mac } => Change::PutNeighbour { address, mac },
        Notice::NoNeighbour(address) => Change::DeleteNeighbour(address),
        Notice::Fdb { mac, public_ip, new: true } => Change::PutFdb { mac, public_ip },
        Notice::Fdb { mac, public_ip, new: false } => Change::DeleteFdb { mac, public_ip },
    }
}
