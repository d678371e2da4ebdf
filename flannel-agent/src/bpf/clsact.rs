//! Programs at their hooks by filters of a clsact discipline: for kernels without tcx links (before Linux 6.6).
//!
//! A filter is the interface's, so it outlives the agent as a pinned link does. Ours are known by all of priority,
//! handle and name; what else is in a discipline is others'. That a discipline was made here is written down among
//! the pins, so that it can be removed with all the rest, unless somebody else has come to use it.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, BorrowedFd},
    panic::resume_unwind,
    thread,
};

use aya::programs::{Program, ProgramError};
use flannel_common::path::Hook;
use nix::{
    errno::Errno,
    net::if_::{Interface, if_nameindex, if_nametoindex},
    sched::{CloneFlags, unshare},
};

use super::{PinError, Pins, error::chain};
use crate::netlink::{NetlinkError, TcFilter, TcPlace, TcQdisc, TcSide, TrafficControl, tc::PRIORITY};

/// Handle of the filter that finds out whether there are filters.
const TRIAL: u32 = 0xffff;

/// Filters that cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The kernel's answer.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Which disciplines were made here cannot be written down.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The program is not loaded.
    #[error("{}", chain(.0))]
    Program(#[from] ProgramError),
    /// The interfaces cannot be listed.
    #[error("cannot list interfaces: {}", .0.desc())]
    Interfaces(Errno),
    /// There is none of that name.
    #[error("no such interface: {}", .0.desc())]
    NoInterface(Errno),
    /// There is no network namespace to try in.
    #[error("cannot make a network namespace: {}", .0.desc())]
    Namespace(Errno),
    /// Somebody else's discipline or filter is in the way.
    #[error("{0}")]
    Taken(String),
}

/// A filter of ours, of this process or an earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    /// The interface, by the name it has now.
    pub(super) interface: String,
    /// Its index.
    pub(super) ifindex: u32,
    /// Where on it.
    pub(super) hook: Hook,
    /// The kernel's id of the program.
    pub(super) program: u32,
}

/// Where programs of `hook` are put; `None` for XDP.
const fn side(hook: Hook) -> Option<TcSide> {
    match hook {
        Hook::FromPod | Hook::FromUnderlay | Hook::FromOverlay => Some(TcSide::Ingress),
        Hook::ToOverlay | Hook::ToPod | Hook::ToUnderlay => Some(TcSide::Egress),
        Hook::XdpUnderlay | Hook::XdpGeneric => None,
    }
}

fn place(ifindex: u32, hook: Hook) -> Option<TcPlace> {
    let number = Hook::ALL.into_iter().position(|other| other == hook)?;
    let handle = u32::try_from(number).ok()? + 1;
    Some(TcPlace { ifindex, side: side(hook)?, priority: PRIORITY, handle })
}

/// Name of the filter of `hook`, as `tc filter show` and `bpftool net` print it.
fn name(hook: Hook) -> String {
    format!("flannel_{}", hook.program())
}

/// The hook whose filter it is, at this side; `None` if it is not ours.
fn owner(filter: &TcFilter, at: TcSide) -> Option<Hook> {
    let program = filter.program.as_ref()?;
    Hook::ALL.into_iter().find(|&hook| {
        place(0, hook).is_some_and(|place| {
            (place.side, place.priority, place.handle) == (at, filter.priority, filter.handle)
        }) && program.name == name(hook)
    })
}

/// Where a filter meets packets, from our filters' point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterPlace {
    /// On what an interface receives, before ours.
    Ahead,
    /// On what it receives, behind ours.
    Ingress,
    /// On what it sends.
    Egress,
}

/// Where somebody else's filter meets packets, from our filters' point of view; `None` if it is one of ours.
pub(crate) fn foreign(filter: &TcFilter, at: TcSide) -> Option<FilterPlace> {
    // A listing begins with what all filters of a priority have in common.
    let is_heading = (filter.priority, filter.handle) == (PRIORITY, 0);
    if is_heading || owner(filter, at).is_some() {
        return None;
    }
    Some(match at {
        TcSide::Egress => FilterPlace::Egress,
        TcSide::Ingress if (1..PRIORITY).contains(&filter.priority) => FilterPlace::Ahead,
        TcSide::Ingress => FilterPlace::Ingress,
    })
}

/// The sides at which there are filters.
pub(crate) const fn sides(qdisc: &TcQdisc) -> &'static [TcSide] {
    match qdisc {
        TcQdisc::Clsact => &[TcSide::Ingress, TcSide::Egress],
        TcQdisc::Ingress => &[TcSide::Ingress],
    }
}

/// Every filter of ours in this network namespace.
///
/// # Errors
/// When the kernel does not tell.
pub(super) fn placed() -> Result<Vec<Placed>, FilterError> {
    let mut tc = TrafficControl::open()?;
    let names: BTreeMap<u32, String> = if_nameindex()
        .map_err(FilterError::Interfaces)?
        .iter()
        .filter_map(|interface| Some((interface.index(), interface.name().to_str().ok()?.to_owned())))
        .collect();
    let mut found = Vec::new();
    for (ifindex, qdisc) in tc.qdiscs()? {
        let Some(interface) = names.get(&ifindex) else { continue };
        for &side in sides(&qdisc) {
            let filters = tc.filters(ifindex, side)?;
            found.extend(filters.iter().filter_map(|filter| {
                let hook = owner(filter, side)?;
                let program = filter.program.as_ref()?.id;
                Some(Placed { interface: interface.clone(), ifindex, hook, program })
            }));
        }
    }
    Ok(found)
}

/// Lets `interface` run `program` at `hook`. A filter of ours that is there gets the program in one step.
///
/// # Errors
/// When the kernel refuses, or something of somebody else's is in the way.
pub(super) fn attach(pins: &Pins, interface: &str, hook: Hook, program: &Program) -> Result<(), FilterError> {
    let ifindex = if_nametoindex(interface).map_err(FilterError::NoInterface)?;
    let Some(place) = place(ifindex, hook) else {
        return Err(ProgramError::UnexpectedProgramType.into());
    };
    let mut tc = TrafficControl::open()?;
    see_to_qdisc(&mut tc, pins, place, interface)?;
    if let Some(filter) = tc.filter(place)?
        && owner(&filter, place.side) != Some(hook)
    {
        let name = filter.program.map_or_else(|| "no program".to_owned(), |program| program.name);
        return Err(FilterError::Taken(format!(
            "another's filter ({name}) has priority {PRIORITY} and handle {:#x}: give it another priority",
            place.handle
        )));
    }
    Ok(tc.put_program(place, &name(hook), descriptor(program)?.as_fd())?)
}

fn descriptor(program: &Program) -> Result<BorrowedFd<'_>, ProgramError> {
    match program {
        Program::SchedClassifier(program) => Ok(program.fd()?.as_fd()),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Sees to it that there is a discipline for a filter at `place`, and notes one that was not there before.
fn see_to_qdisc(
    tc: &mut TrafficControl,
    pins: &Pins,
    place: TcPlace,
    interface: &str,
) -> Result<(), FilterError> {
    match tc.qdisc(place.ifindex)? {
        Some(qdisc) if sides(&qdisc).contains(&place.side) => Ok(()),
        // It would take the filter, and run it on what comes in.
        Some(_) => Err(FilterError::Taken(format!(
            "an ingress qdisc is in the place of clsact: put its filters into one (tc qdisc replace dev {interface} \
             clsact), or run with --fast-path=off"
        ))),
        None => match tc.add_clsact(place.ifindex) {
            Ok(()) => Ok(pins.note_clsact(place.ifindex)?),
            // Somebody was faster.
            Err(error) if error.errno() == Some(Errno::EEXIST) => Ok(()),
            Err(error) => Err(error.into()),
        },
    }
}

/// Takes the filter of `hook` off the interface. The discipline stays.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn detach(ifindex: u32, hook: Hook) -> Result<(), FilterError> {
    let Some(place) = place(ifindex, hook) else { return Ok(()) };
    let mut tc = TrafficControl::open()?;
    // A discipline for ingress alone would show its filters there at egress, too.
    let has_side = tc.qdisc(ifindex)?.is_some_and(|qdisc| sides(&qdisc).contains(&place.side));
    if has_side && tc.filter(place)?.is_some_and(|filter| owner(&filter, place.side) == Some(hook)) {
        tc.delete_filter(place)?;
    }
    Ok(())
}

/// Takes every filter of ours off, in this network namespace.
///
/// # Errors
/// When the kernel refuses; what went before it is gone.
pub(super) fn detach_all() -> Result<(), FilterError> {
    for Placed { ifindex, hook, .. } in placed()? {
        detach(ifindex, hook)?;
    }
    Ok(())
}

/// Removes the disciplines that were made here and hold no filters. Meanwhile (as when one is made) the kernel drops
/// what the interface sends, for some ten milliseconds: not to be done while an agent runs.
///
/// # Errors
/// When the kernel refuses; what went before it is gone.
pub(super) fn remove_disciplines(pins: &Pins) -> Result<(), FilterError> {
    let mut tc = TrafficControl::open()?;
    for ifindex in pins.noted_clsacts()? {
        if tc.qdisc(ifindex)? == Some(TcQdisc::Clsact) {
            let [ingress, egress] = [TcSide::Ingress, TcSide::Egress].map(|side| tc.filters(ifindex, side));
            if ingress?.is_empty() && egress?.is_empty() {
                tc.delete_clsact(ifindex)?;
            }
        }
        pins.forget_clsact(ifindex)?;
    }
    Ok(())
}

/// Forgets the disciplines of interfaces that are gone.
///
/// # Errors
/// When the pins cannot be listed or removed.
pub(super) fn forget_gone(pins: &Pins) -> Result<(), FilterError> {
    let noted = pins.noted_clsacts()?;
    if noted.is_empty() {
        return Ok(());
    }
    let listing = if_nameindex().map_err(FilterError::Interfaces)?;
    let there: Vec<u32> = listing.iter().map(Interface::index).collect();
    for ifindex in noted.into_iter().filter(|ifindex| !there.contains(ifindex)) {
        pins.forget_clsact(ifindex)?;
    }
    Ok(())
}

/// Gives an interface nobody uses a filter that runs `program`: in a network namespace of its own, for the kernel drops
/// what an interface sends while it gets a discipline. Where the privilege to make one is missing, nothing is tried:
/// whatever the kernel lacks is then said by the first attachment.
pub(super) fn try_it(program: &Program) -> Result<(), FilterError> {
    let program = descriptor(program)?;
    // A thread's namespace is its own, and goes with it.
    let trial = thread::scope(|scope| scope.spawn(|| try_in_private(program)).join());
    trial.unwrap_or_else(|panic| resume_unwind(panic))
}

fn try_in_private(program: BorrowedFd<'_>) -> Result<(), FilterError> {
    match unshare(CloneFlags::CLONE_NEWNET) {
        Err(Errno::EPERM) => return Ok(()),
        made => made.map_err(FilterError::Namespace)?,
    }
    let ifindex = if_nametoindex("lo").map_err(FilterError::NoInterface)?;
    let place = TcPlace { ifindex, side: TcSide::Egress, priority: PRIORITY, handle: TRIAL };
    let mut tc = TrafficControl::open()?;
    tc.add_clsact(ifindex)?;
    Ok(tc.put_program(place, "flannel_trial", program)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::TcProgram;

    fn filter(hook: Hook) -> TcFilter {
        let place = place(7, hook).unwrap();
        let program = Some(TcProgram { name: name(hook), id: 1 });
        TcFilter { priority: place.priority, handle: place.handle, program }
    }

    #[test]
    fn our_filters_are_known_again_and_others_are_left_alone() {
        for hook in Hook::ALL.into_iter().filter(|hook| !hook.is_xdp()) {
            let (ours, at) = (filter(hook), side(hook).unwrap());
            assert_eq!(owner(&ours, at), Some(hook));
            let other_side = if at == TcSide::Ingress { TcSide::Egress } else { TcSide::Ingress };
            assert_eq!(owner(&ours, other_side), None);
            assert_eq!(owner(&TcFilter { priority: 1, ..ours.clone() }, at), None);
            assert_eq!(owner(&TcFilter { handle: 99, ..ours.clone() }, at), None);
            assert_eq!(owner(&TcFilter { program: None, ..ours.clone() }, at), None);
            let renamed = Some(TcProgram { name: "cil_from_container".to_owned(), id: 1 });
            assert_eq!(owner(&TcFilter { program: renamed, ..ours }, at), None);
        }
    }

    #[test]
    fn a_filter_of_somebody_else_is_ahead_of_ours_or_behind() {
        let ours = filter(Hook::FromPod);
        assert_eq!(foreign(&ours, TcSide::Ingress), None);
        assert_eq!(foreign(&TcFilter { handle: 0, program: None, ..ours.clone() }, TcSide::Ingress), None);
        // One that cannot be read has priority 0.
        for (priority, place) in [
            (1, FilterPlace::Ahead),
            (8471, FilterPlace::Ahead),
            (8473, FilterPlace::Ingress),
            (49152, FilterPlace::Ingress),
            (0, FilterPlace::Ingress),
        ] {
            let other = TcFilter { priority, ..ours.clone() };
            assert_eq!(foreign(&other, TcSide::Ingress), Some(place), "{priority}");
            assert_eq!(foreign(&other, TcSide::Egress), Some(FilterPlace::Egress), "{priority}");
        }
        assert_eq!(foreign(&TcFilter { handle: 99, ..ours }, TcSide::Ingress), Some(FilterPlace::Ingress));
    }

    #[test]
    fn each_hook_has_a_place_of_its_own() {
        let places: Vec<_> = Hook::ALL.into_iter().filter_map(|hook| place(7, hook)).collect();
        for (number, one) in places.iter().enumerate() {
            assert!(places[number + 1..].iter().all(|other| other != one), "{one:?}");
        }
        assert_eq!(places.len(), 6);
    }
}
