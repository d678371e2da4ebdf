//! Programs of others at the tcx hooks of an interface, beside ours, and at the hook of a netkit that ours would pass by.

use std::collections::{BTreeMap, BTreeSet};

use aya::programs::{SchedClassifier, TcAttachType};
use flannel_common::path::Hook;
use nix::{errno::Errno, net::if_::if_indextoname};

use super::{
    Programs,
    query::{self, HookOfPrograms},
};
use crate::netlink::TcSide;

/// A program of somebody else's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignProgram {
    /// Where packets meet it.
    pub hook: HookOfPrograms,
    /// Its name; empty without CAP_SYS_ADMIN, and at a netkit's own hook, where only its number is asked for.
    pub name: String,
    /// The kernel's id of it.
    pub id: u32,
}

impl Programs {
    /// Those at `interfaces`, by interface. What they do at ingress, they do before ours: see [`Programs::attached`].
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn others(
        &mut self,
        interfaces: &BTreeSet<u32>,
    ) -> Result<BTreeMap<u32, Vec<ForeignProgram>>, Errno> {
        let ours = self.ids();
        let mut found = BTreeMap::<u32, Vec<ForeignProgram>>::new();
        for &ifindex in interfaces {
            for side in [TcSide::Ingress, TcSide::Egress] {
                let hook = HookOfPrograms::Tcx(side);
                let programs = query::programs(ifindex, hook)?;
                for (id, name) in programs_of_others(ifindex, side, &programs, &ours) {
                    found.entry(ifindex).or_default().push(ForeignProgram { hook, name, id });
                }
            }
            // What a pod sends meets those of its own end before ours; what is redirected to the pod meets none here. None
            // of ours is at this hook.
            let hook = HookOfPrograms::NetkitPrimary;
            for id in query::programs(ifindex, hook)? {
                let program = ForeignProgram { hook, name: String::new(), id };
                found.entry(ifindex).or_default().push(program);
            }
        }
        Ok(found)
    }

    /// Whether packets that an interface receives meet our program `id` before one of somebody else's, which they
    /// would never meet where ours redirects them.
    pub(super) fn is_overtaking(&mut self, ifindex: u32, id: u32) -> bool {
        // Who may not ask finds out when `others` does.
        let Ok(programs) = query::programs(ifindex, HookOfPrograms::Tcx(TcSide::Ingress)) else {
            return false;
        };
        let behind = programs.iter().skip_while(|other| **other != id).skip(1).copied().collect::<Vec<_>>();
        !behind.is_empty() && !programs_of_others(ifindex, TcSide::Ingress, &behind, &self.ids()).is_empty()
    }

    /// The kernel's ids of our programs of tc.
    fn ids(&mut self) -> BTreeSet<u32> {
        Hook::ALL.into_iter().filter(|hook| !hook.is_xdp()).filter_map(|hook| self.id(hook)).collect()
    }
}

/// The names of the tcx programs of others at one side of an interface, or their ids.
///
/// # Errors
/// The kernel does not tell, or knows no such hook.
pub(crate) fn tcx_of_others(ifindex: u32, side: TcSide) -> Result<Vec<String>, Errno> {
    let programs = query::programs(ifindex, HookOfPrograms::Tcx(side))?;
    let others = programs_of_others(ifindex, side, &programs, &BTreeSet::new()).into_iter();
    Ok(others.map(|(id, name)| if name.is_empty() { id.to_string() } else { name }).collect())
}

/// Those of `programs`, which are at one side of an interface, that are neither `ours` nor another daemon's of our kind,
/// for another network: id and name.
fn programs_of_others(
    ifindex: u32,
    side: TcSide,
    programs: &[u32],
    ours: &BTreeSet<u32>,
) -> Vec<(u32, String)> {
    let others: Vec<u32> = programs.iter().copied().filter(|id| !ours.contains(id)).collect();
    if others.is_empty() {
        return Vec::new();
    }
    let names = names(ifindex, side);
    let is_of_our_kind = |name: &String| Hook::ALL.into_iter().any(|hook| hook.program() == name);
    let others = others.into_iter().map(|id| (id, names.get(&id).cloned().unwrap_or_default()));
    others.filter(|(_, name)| !is_of_our_kind(name)).collect()
}

/// The names of the programs at one side of an interface, by id; none without CAP_SYS_ADMIN.
fn names(ifindex: u32, side: TcSide) -> BTreeMap<u32, String> {
    let side = match side {
        TcSide::Ingress => TcAttachType::Ingress,
        TcSide::Egress => TcAttachType::Egress,
    };
    let Ok(interface) = if_indextoname(ifindex) else { return BTreeMap::new() };
    let programs = SchedClassifier::query_tcx(&interface.to_string_lossy(), side);
    let programs = programs.map(|(_, programs)| programs).unwrap_or_default();
    programs
        .iter()
        .map(|program| (program.id(), program.name_as_str().unwrap_or_default().to_owned()))
        .collect()
}
