//! What is noted about packets, written into the maps of their family.

use flannel_common::{
    family::{Family, V4, V6},
    layout::Flow,
    path::{Note, TunnelNote},
};

use crate::maps::{
    self, ASKED_V4, ASKED_V6, BROKEN_OFF_V4, BROKEN_OFF_V6, FLOWS_V4, FLOWS_V6, PODS_V4, PODS_V6,
    TRANSLATIONS_V4, TRANSLATIONS_V6, TUNNELS_V4, TUNNELS_V6,
};

/// `BPF_RB_NO_WAKEUP` (include/uapi/linux/bpf.h): the agent looks by itself.
const NO_WAKEUP: u64 = 1;

/// A family that has maps.
pub(crate) trait Noted: Family {
    /// Writes down what is noted. As a whole, never through a reference: the slot might have become
    /// another flow's meanwhile. A write that fails costs speed only: the flow stays on the kernel path.
    fn write_down(note: &Note<Self>);

    /// Forgets how a flow is translated, and that it was accepted.
    fn untranslate(flow: &Flow<Self>);

    /// Tells the agent, and wakes it, that a flow was broken off. Where there is no room, the connection is over for
    /// connection tracking ten seconds later.
    fn tell_broken_off(flow: &Flow<Self>);

    /// Forgets that a flow was accepted, as whichever of its ends is a pod of this node. True where the agent knows how it is
    /// translated.
    fn forget(flow: &Flow<Self>) -> bool;

    /// Writes down what is noted about the tunnel to a node, as a whole. A write that fails leaves the node to the kernel
    /// path.
    fn write_down_tunnel(note: &TunnelNote<Self>);
}

impl Noted for V4 {
    #[inline(always)]
    fn write_down(note: &Note<Self>) {
        let _ = match note {
            Note::Permit(flow, permit) | Note::Candidate(flow, permit) => FLOWS_V4.insert(flow, permit, 0),
            // An agent that is not there, or too busy, is asked again.
            Note::Ask(flow, permit) => {
                FLOWS_V4.insert(flow, permit, 0).and_then(|()| ASKED_V4.output(flow, NO_WAKEUP))
            }
            Note::Untranslate(flow) => {
                Self::untranslate(flow);
                Ok(())
            }
            Note::Forget(flow) | Note::Changed(flow) => FLOWS_V4.remove(flow),
            Note::BrokenOff(flow) => {
                let _ = FLOWS_V4.remove(flow);
                Self::tell_broken_off(flow);
                Ok(())
            }
            // A copy, which stands where it is aligned: within the note it would not.
            Note::Moved(address) => PODS_V4.remove(*address),
            Note::Forwards { ifindex, seen } => maps::write_down_forwarder(*ifindex, *seen),
        };
    }

    #[inline(always)]
    fn untranslate(flow: &Flow<Self>) {
        let _ = TRANSLATIONS_V4.remove(flow);
        let _ = FLOWS_V4.remove(flow);
    }

    #[inline(always)]
    fn tell_broken_off(flow: &Flow<Self>) {
        let _ = BROKEN_OFF_V4.output(flow, 0);
    }

    #[inline(always)]
    fn forget(flow: &Flow<Self>) -> bool {
        for known in [*flow, flow.reversed()] {
            // Looked up first: a removal takes a lock, and most are not there.
            if FLOWS_V4.get_ptr(known).is_some() {
                let _ = FLOWS_V4.remove(known);
            }
        }
        TRANSLATIONS_V4.get_ptr(flow).is_some()
    }

    #[inline(always)]
    fn write_down_tunnel(note: &TunnelNote<Self>) {
        let _ = TUNNELS_V4.insert(note.vtep, note.tunnel, 0);
    }
}

impl Noted for V6 {
    #[inline(always)]
    fn write_down(note: &Note<Self>) {
        let _ = match note {
            Note::Permit(flow, permit) | Note::Candidate(flow, permit) => FLOWS_V6.insert(flow, permit, 0),
            // An agent that is not there, or too busy, is asked again.
            Note::Ask(flow, permit) => {
                FLOWS_V6.insert(flow, permit, 0).and_then(|()| ASKED_V6.output(flow, NO_WAKEUP))
            }
            Note::Untranslate(flow) => {
                Self::untranslate(flow);
                Ok(())
            }
            Note::Forget(flow) | Note::Changed(flow) => FLOWS_V6.remove(flow),
            Note::BrokenOff(flow) => {
                let _ = FLOWS_V6.remove(flow);
                Self::tell_broken_off(flow);
                Ok(())
            }
            Note::Moved(address) => PODS_V6.remove(address),
            Note::Forwards { ifindex, seen } => maps::write_down_forwarder(*ifindex, *seen),
        };
    }

    #[inline(always)]
    fn untranslate(flow: &Flow<Self>) {
        let _ = TRANSLATIONS_V6.remove(flow);
        let _ = FLOWS_V6.remove(flow);
    }

    #[inline(always)]
    fn tell_broken_off(flow: &Flow<Self>) {
        let _ = BROKEN_OFF_V6.output(flow, 0);
    }

    #[inline(always)]
    fn forget(flow: &Flow<Self>) -> bool {
        for known in [*flow, flow.reversed()] {
            // Looked up first: a removal takes a lock, and most are not there.
            if FLOWS_V6.get_ptr(known).is_some() {
                let _ = FLOWS_V6.remove(known);
            }
        }
        TRANSLATIONS_V6.get_ptr(flow).is_some()
    }

    #[inline(always)]
    fn write_down_tunnel(note: &TunnelNote<Self>) {
        let _ = TUNNELS_V6.insert(note.vtep, note.tunnel, 0);
    }
}
