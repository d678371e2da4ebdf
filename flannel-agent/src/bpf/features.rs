//! What this kernel does for the programs, found out by trying each thing: distributions carry new things to old
//! kernels and leave out parts of new ones, so that a version tells nothing.

use std::collections::BTreeMap;

use aya::{
    Ebpf, TestRun as _, TestRunOptions,
    programs::{
        LinkOrder, Program, ProgramError, ProgramType, SchedClassifier, TcAttachType, Xdp,
        tc::TcAttachOptions,
    },
    sys::{BpfHelper, is_helper_supported},
};
use flannel_common::{
    layout::FastPath,
    map::{TO_POD, TRY_DECAP, TRY_DECAP_CLEAN, TRY_ENCAP, TRY_ROOM, XDP_GENERIC, XDP_UNDERLAY},
    path::Hook,
};

use super::{Attachment, Compiled, LoadError, TcAttach, clsact, error::chain};

/// A thing that programs need, or would make use of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// Programs are attached by tcx links, which are replaced in one step and outlive the agent.
    Tcx,
    /// Programs are attached by filters of a clsact qdisc, for which the same holds: what older kernels have.
    Clsact,
    /// Room for VXLAN in front of a packet, aggregates included.
    Push,
    /// VXLAN off a packet, aggregates included.
    Pop,
    /// The same, and an aggregate keeps nothing of its tunnel. Not used yet.
    PopClean,
    /// The kernel's neighbour table gives a redirected packet its MACs.
    RedirectNeigh,
    /// A packet goes straight into a pod's namespace.
    RedirectPeer,
    /// The MTU of another interface.
    CheckMtu,
    /// What the NIC has verified is passed on to the inner packet.
    CsumLevel,
    /// A clock that costs next to nothing.
    CoarseClock,
    /// Programs of XDP, for frames in several buffers, too.
    Xdp,
}

/// What each feature turned out to be: there, or why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features(BTreeMap<Feature, Result<(), String>>);

impl Feature {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Tcx,
        Self::Clsact,
        Self::Push,
        Self::Pop,
        Self::PopClean,
        Self::RedirectNeigh,
        Self::RedirectPeer,
        Self::CheckMtu,
        Self::CsumLevel,
        Self::CoarseClock,
        Self::Xdp,
    ];

    /// Name in tables and logs: `snake_case`, stable.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::Push => "adjust_room_push",
            Self::Pop => "adjust_room_pop",
            Self::PopClean => "adjust_room_decap_l4_udp",
            Self::RedirectNeigh => "redirect_neigh",
            Self::RedirectPeer => "redirect_peer",
            Self::CheckMtu => "check_mtu",
            Self::CsumLevel => "csum_level",
            Self::CoarseClock => "ktime_get_coarse_ns",
            Self::Xdp => "xdp",
        }
    }

    /// What is not to be had without it.
    pub const fn without_it(self) -> &'static str {
        match self {
            Self::Tcx => "programs are attached by clsact",
            Self::Clsact => {
                "nothing, with tcx; with neither no fast path: the kernel path carries all traffic"
            }
            Self::Push | Self::RedirectNeigh | Self::CoarseClock => {
                "no fast path: the kernel path carries all traffic"
            }
            Self::Pop | Self::RedirectPeer | Self::CheckMtu | Self::CsumLevel => {
                "pods' packets go through the host's stack, as with --fast-path=overlay"
            }
            Self::Xdp => "no --xdp",
            Self::PopClean => {
                "nothing: the kernel's VXLAN device decapsulates aggregates of UDP, and those for pods that forward"
            }
        }
    }

    /// The most that `--fast-path` can mean without it.
    const fn allows(self) -> FastPath {
        match self {
            Self::Push | Self::RedirectNeigh | Self::CoarseClock => FastPath::Off,
            Self::Pop | Self::RedirectPeer | Self::CheckMtu | Self::CsumLevel => FastPath::Overlay,
            // One of the two is enough.
            Self::Tcx | Self::Clsact | Self::PopClean | Self::Xdp => FastPath::All,
        }
    }

    fn try_it(self, ebpf: &mut Ebpf) -> Result<(), String> {
        match self {
            Self::Tcx => try_tcx(ebpf),
            Self::Clsact => try_clsact(ebpf),
            Self::Push => try_room(ebpf, TRY_ENCAP),
            Self::Pop => try_room(ebpf, TRY_DECAP),
            Self::PopClean => try_room(ebpf, TRY_DECAP_CLEAN),
            Self::RedirectNeigh => try_helper(BpfHelper::BPF_FUNC_redirect_neigh),
            Self::RedirectPeer => try_helper(BpfHelper::BPF_FUNC_redirect_peer),
            Self::CheckMtu => try_helper(BpfHelper::BPF_FUNC_check_mtu),
            Self::CsumLevel => try_helper(BpfHelper::BPF_FUNC_csum_level),
            Self::CoarseClock => try_helper(BpfHelper::BPF_FUNC_ktime_get_coarse_ns),
            Self::Xdp => try_xdp(ebpf),
        }
    }
}

impl Features {
    /// Tries all of them with a loaded object of its own, whose maps go with it.
    ///
    /// # Errors
    /// When the kernel refuses the object as a whole, as it does without the privilege.
    pub fn find() -> Result<Self, LoadError> {
        Ok(Self::of(&mut Ebpf::load(&Compiled::programs())?))
    }

    /// Tries all of them with the programs of `ebpf`. For a moment one that does nothing is attached to the loopback.
    pub(super) fn of(ebpf: &mut Ebpf) -> Self {
        Self(Feature::ALL.into_iter().map(|feature| (feature, feature.try_it(ebpf))).collect())
    }

    /// Each feature, and why it is not there.
    pub fn rows(&self) -> impl Iterator<Item = (Feature, Option<&str>)> {
        self.0.iter().map(|(feature, found)| (*feature, found.as_ref().err().map(String::as_str)))
    }

    /// Why `feature` is not there, as the kernel said; nothing if it is.
    pub fn why_not(&self, feature: Feature) -> Option<&str> {
        self.0.get(&feature)?.as_ref().err().map(String::as_str)
    }

    /// Those that are there, and those that are not, by their names.
    pub fn names(&self) -> (Vec<&'static str>, Vec<&'static str>) {
        let named = |there: bool| {
            let some = self.0.iter().filter(move |(_, found)| found.is_ok() == there);
            some.map(|(feature, _)| feature.label()).collect()
        };
        (named(true), named(false))
    }

    fn has(&self, feature: Feature) -> bool {
        self.0.get(&feature).is_some_and(Result::is_ok)
    }

    /// By what programs of tc are attached here.
    ///
    /// # Errors
    /// What the kernel lacks for it.
    pub fn attachment(&self, choice: TcAttach) -> Result<Attachment, Feature> {
        match choice {
            TcAttach::Auto | TcAttach::Tcx if self.has(Feature::Tcx) => Ok(Attachment::Tcx),
            TcAttach::Auto | TcAttach::Clsact if self.has(Feature::Clsact) => Ok(Attachment::Clsact),
            TcAttach::Tcx => Err(Feature::Tcx),
            TcAttach::Auto | TcAttach::Clsact => Err(Feature::Clsact),
        }
    }

    /// How much of what is `wanted` can be had, and for want of what not all of it.
    pub fn grant(&self, wanted: FastPath) -> (FastPath, Option<Feature>) {
        let missing = self.rows().filter(|(_, why)| why.is_some()).map(|(feature, _)| feature);
        let narrowest = missing.min_by_key(|feature| feature.allows());
        let granted = narrowest.map_or(wanted, |feature| feature.allows().min(wanted));
        match self.attachment(TcAttach::Auto) {
            // LastMessage last: where the programs are refused, that is why they cannot be attached.
            Err(neither) if granted != FastPath::Off => (FastPath::Off, Some(neither)),
            _ => (granted, narrowest.filter(|_| granted < wanted)),
        }
    }

    /// Whether the kernel can take the program of `hook`.
    pub(super) fn can_run(&self, hook: Hook) -> bool {
        match hook {
            // The others have no use for what only delivery to pods needs.
            Hook::FromUnderlay | Hook::FromOverlay => self.grant(FastPath::All).0 == FastPath::All,
            Hook::XdpUnderlay | Hook::XdpGeneric => {
                self.grant(FastPath::All).0 == FastPath::All && self.has(Feature::Xdp)
            }
            _ => self.grant(FastPath::All).0 != FastPath::Off,
        }
    }
}

/// Attaches a program that does nothing on the loopback to it, and takes it off at once.
fn try_tcx(ebpf: &mut Ebpf) -> Result<(), String> {
    let program = loaded(ebpf, TO_POD)?;
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let link = program.attach_with_options("lo", TcAttachType::Egress, options);
    let link = link.map_err(|error| chain(&error))?;
    program.detach(link).map_err(|error| chain(&error))
}

/// The same by a filter.
fn try_clsact(ebpf: &mut Ebpf) -> Result<(), String> {
    loaded(ebpf, TO_POD)?;
    let program: &Program = ebpf.program(TO_POD).ok_or_else(|| LoadError::Missing(TO_POD).to_string())?;
    clsact::try_it(program).map_err(|error| error.to_string())
}

/// Loads the programs.
fn try_xdp(ebpf: &mut Ebpf) -> Result<(), String> {
    for name in [XDP_UNDERLAY, XDP_GENERIC] {
        let program = ebpf.program_mut(name).ok_or_else(|| LoadError::Missing(name).to_string())?;
        let program: &mut Xdp = program.try_into().map_err(|error: ProgramError| chain(&error))?;
        program.load().map_err(|error| chain(&error))?;
    }
    Ok(())
}

/// Lets the kernel change the headers of a packet of no importance, as `what` says.
fn try_room(ebpf: &mut Ebpf, what: u32) -> Result<(), String> {
    /// Offset in `struct __sk_buff` (include/uapi/linux/bpf.h): words of the program's own.
    const WORDS: usize = 48;
    const LENGTH: usize = 256;
    let mut context = [0; 180];
    context[WORDS..WORDS + 4].copy_from_slice(&what.to_ne_bytes());
    // Ethernet, and IPv4 as far as the kernel looks.
    let mut packet = [0; LENGTH];
    packet[12..16].copy_from_slice(&[0x08, 0x00, 0x45, 0x00]);
    packet[16..18].copy_from_slice(&(LENGTH as u16 - 14).to_be_bytes());
    let mut out = [0; 512];
    let program = loaded(ebpf, TRY_ROOM)?;
    let run = program.test_run(TestRunOptions {
        data_in: Some(&packet),
        data_out: Some(&mut out),
        ctx_in: Some(&context),
        ..TestRunOptions::default()
    });
    match run.map_err(|error| error.to_string())?.return_value.cast_signed() {
        0 => Ok(()),
        error => Err(std::io::Error::from_raw_os_error(-error).to_string()),
    }
}

fn try_helper(helper: BpfHelper) -> Result<(), String> {
    match is_helper_supported(ProgramType::SchedClassifier, helper) {
        Ok(true) => Ok(()),
        Ok(false) => Err("the kernel has no such helper".to_owned()),
        Err(error) => Err(chain(&error)),
    }
}

/// The program `name`, loaded now or before.
fn loaded<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, String> {
    let program = ebpf.program_mut(name).ok_or_else(|| LoadError::Missing(name).to_string())?;
    let program: &mut SchedClassifier = program.try_into().map_err(|error: ProgramError| chain(&error))?;
    match program.load() {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(program),
        Err(error) => Err(chain(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without(missing: &[Feature]) -> Features {
        let found = |feature| if missing.contains(&feature) { Err("not today".to_owned()) } else { Ok(()) };
        Features(Feature::ALL.into_iter().map(|feature| (feature, found(feature))).collect())
    }

    #[test]
    fn what_is_missing_turns_off_only_what_needs_it() {
        use FastPath::{All, Flow, Off, Overlay};
        for wanted in [Off, Overlay, Flow, All] {
            assert_eq!(without(&[]).grant(wanted), (wanted, None));
            assert_eq!(without(&[Feature::PopClean]).grant(wanted), (wanted, None));
        }
        let peer = without(&[Feature::RedirectPeer, Feature::PopClean]);
        assert_eq!(peer.grant(Flow), (Overlay, Some(Feature::RedirectPeer)));
        assert_eq!(peer.grant(Overlay), (Overlay, None));
        assert!(!peer.can_run(Hook::FromUnderlay) && !peer.can_run(Hook::FromOverlay));
        let xdp = without(&[Feature::Xdp]);
        assert_eq!(xdp.grant(All), (All, None));
        assert!(Hook::ALL.into_iter().all(|hook| xdp.can_run(hook) != hook.is_xdp()));
        assert!(peer.can_run(Hook::FromPod) && peer.can_run(Hook::ToOverlay));
        let clock = without(&[Feature::CoarseClock, Feature::RedirectPeer]);
        assert_eq!(clock.grant(All), (Off, Some(Feature::CoarseClock)));
        assert_eq!(clock.grant(Off), (Off, None));
        assert!(Hook::ALL.into_iter().all(|hook| !clock.can_run(hook)), "the verifier refuses them");
    }

    #[test]
    fn one_way_to_attach_is_enough() {
        use FastPath::{All, Off};
        use TcAttach::{Auto, Clsact, Tcx};
        let attachments =
            |missing: &[Feature]| [Auto, Tcx, Clsact].map(|choice| without(missing).attachment(choice));
        let (tcx, clsact) = (Ok(Attachment::Tcx), Ok(Attachment::Clsact));
        assert_eq!(attachments(&[]), [tcx, tcx, clsact]);
        assert_eq!(attachments(&[Feature::Tcx]), [clsact, Err(Feature::Tcx), clsact]);
        assert_eq!(attachments(&[Feature::Clsact]), [tcx, tcx, Err(Feature::Clsact)]);
        for one in [Feature::Tcx, Feature::Clsact] {
            assert_eq!(without(&[one]).grant(All), (All, None));
        }
        let neither = without(&[Feature::Tcx, Feature::Clsact]);
        assert_eq!(neither.grant(All), (Off, Some(Feature::Clsact)));
        let refused = without(&[Feature::Tcx, Feature::Clsact, Feature::CoarseClock]);
        assert_eq!(refused.grant(All), (Off, Some(Feature::CoarseClock)));
        assert_eq!(neither.grant(Off), (Off, None));
    }

    #[test]
    fn every_feature_is_named() {
        let names: std::collections::BTreeSet<_> = Feature::ALL.map(Feature::label).into();
        assert_eq!(names.len(), Feature::ALL.len());
        assert_eq!(without(&[Feature::Push]).names().1, ["adjust_room_push"]);
    }
}
