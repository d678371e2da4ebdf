//! The programs at their hooks, held by pinned links so that they go on without the agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

use aya::{
    programs::{
        LinkOrder, Program, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::{FdLink, LinkError, PinnedLink},
        tc::{SchedClassifierLink, TcAttachOptions},
        xdp::XdpLink,
    },
    sys::SyscallError,
};
use flannel_common::path::Hook;
use nix::{errno::Errno, net::if_::if_nametoindex};
use tracing::{debug, info, warn};

use super::{Attachment, HookError, Pins, Programs, clsact, error::chain, link, object::program};

/// A program that could not be attached or detached.
#[derive(Debug, thiserror::Error)]
#[error("cannot attach {} to {interface}: {reason}", .hook.program())]
pub struct AttachError {
    /// To what.
    pub interface: String,
    /// Where.
    pub hook: Hook,
    /// Why not.
    pub reason: String,
}

/// Takes every program off, in this network namespace as far as they are attached by filters, and removes their pins
/// and those of the maps, of whichever layout.
///
/// # Errors
/// When one cannot be removed; what went before it is gone.
pub fn detach_all(pins: &Pins) -> Result<(), HookError> {
    clsact::detach_all()?;
    pins.clear_other_layouts()?;
    Ok(pins.remove_all()?)
}

/// The same, and leaves no trace: the clsact qdiscs that were made for filters go, too, which costs packets.
///
/// # Errors
/// When something cannot be removed; what went before it is gone.
pub fn remove_all(pins: &Pins) -> Result<(), HookError> {
    clsact::detach_all()?;
    for other in pins.of_other_layouts()? {
        pins.take_over(&other)?;
    }
    clsact::remove_disciplines(pins)?;
    Ok(pins.remove_all()?)
}

/// How a program is attached.
enum Side {
    /// By a tcx link, or a filter.
    Tc(TcAttachType),
    /// By an XDP link.
    Xdp(XdpMode),
}

const fn side(hook: Hook) -> Side {
    match hook {
        Hook::FromPod | Hook::FromUnderlay | Hook::FromOverlay => Side::Tc(TcAttachType::Ingress),
        Hook::ToOverlay | Hook::ToPod | Hook::ToUnderlay => Side::Tc(TcAttachType::Egress),
        Hook::XdpUnderlay => Side::Xdp(XdpMode::Driver),
        Hook::XdpGeneric => Side::Xdp(XdpMode::Skb),
    }
}

/// Whether it is one of tc, on what an interface receives.
const fn is_ingress(hook: Hook) -> bool {
    matches!(side(hook), Side::Tc(TcAttachType::Ingress))
}

/// The hook that cannot be in use on an interface at the same time.
const fn rival(hook: Hook) -> Option<Hook> {
    match hook {
        Hook::XdpUnderlay => Some(Hook::XdpGeneric),
        Hook::XdpGeneric => Some(Hook::XdpUnderlay),
        _ => None,
    }
}

impl Programs {
    /// Attaches the program of `hook` to `interface`, by a link that it pins or by a filter. What an earlier agent
    /// left gets the new program in one step: no packet meets a hook without one.
    ///
    /// # Errors
    /// When the kernel refuses; what was attached before stays.
    pub fn attach(&mut self, interface: &str, hook: Hook) -> Result<(), AttachError> {
        if hook.is_xdp() || self.attachment == Attachment::Tcx {
            return self.attach_by_link(interface, hook);
        }
        let failed = |reason: String| AttachError { interface: interface.to_owned(), hook, reason };
        let program = program(&mut self.ebpf, hook).map_err(|error| failed(chain(&error)))?;
        clsact::attach(&self.pins, interface, hook, program).map_err(|error| failed(error.to_string()))?;
        // Only now, so that none is without: for a moment both decide, and alike.
        self.pins.remove_link(interface, hook).map_err(|error| failed(chain(&error)))
    }

    fn attach_by_link(&mut self, interface: &str, hook: Hook) -> Result<(), AttachError> {
        let failed = |reason: String| AttachError { interface: interface.to_owned(), hook, reason };
        let pin = self.pins.link(interface, hook);
        if let Some(link) = pinned(&pin).map_err(|error| failed(chain(&error)))?
            && program(&mut self.ebpf, hook).is_ok_and(|program| replace(program, link).is_ok())
            && self.attached_to(&[(interface.to_owned(), hook)]).len() == 1
        {
            return Ok(());
        }
        // No link, one of an interface that is gone or renamed, or one ahead of others: a new one is behind them.
        self.pins.remove_link(interface, hook).map_err(|error| failed(chain(&error)))?;
        if let Some(rival) = rival(hook) {
            // Where there is none, or it cannot be taken off, what follows says what is in the way.
            let _ = link::detach(&self.pins.link(interface, rival));
            self.pins.remove_link(interface, rival).map_err(|error| failed(chain(&error)))?;
        }
        let program = program(&mut self.ebpf, hook).map_err(|error| failed(chain(&error)))?;
        let link = match (program, side(hook)) {
            (Program::SchedClassifier(program), Side::Tc(side)) => {
                attach_tc(program, interface, side).map_err(|error| failed(describe_tc(&error)))?
            }
            (Program::Xdp(program), Side::Xdp(mode)) => {
                attach_xdp(program, interface, mode).map_err(|error| failed(describe_xdp(&error)))?
            }
            _ => return Err(failed(chain(&ProgramError::UnexpectedProgramType))),
        };
        if let Some(directory) = pin.parent() {
            Pins::make(directory).map_err(|error| failed(chain(&error)))?;
        }
        link.pin(&pin).map_err(|error| failed(chain(&error)))?;
        Ok(())
    }

    /// Gives every hook of an earlier agent this process's program, in place, whichever layout its maps had. One that was
    /// attached the other way is attached by this process's way alone.
    ///
    /// # Errors
    /// When pins or filters cannot be listed or removed.
    pub fn adopt(&mut self) -> Result<(), HookError> {
        for other in self.pins.of_other_layouts()? {
            info!(
                from = other.layout(),
                to = self.pins.layout(),
                "replacing the programs of an agent with another layout of maps"
            );
            self.pins.take_over(&other)?;
        }
        self.forget_gone()?;
        let filters = clsact::placed()?;
        let mut hooks: BTreeSet<_> = self.pins.pinned_links()?.into_iter().collect();
        hooks.extend(filters.iter().map(|filter| (filter.interface.clone(), filter.hook)));
        let mut kept = BTreeSet::new();
        // XDP first: what an old program hands to one of tc, only the old one may understand.
        let (xdp, tc): (Vec<_>, Vec<_>) = hooks.into_iter().partition(|(_, hook)| hook.is_xdp());
        for (interface, hook) in xdp.into_iter().chain(tc) {
            if let Err(error) = self.attach(&interface, hook) {
                // The old program goes on; the plan says whether it should.
                warn!(interface, hook = hook.program(), %error, "kept the program of an earlier agent");
                kept.insert((interface, hook));
            }
        }
        if self.attachment == Attachment::Tcx {
            for filter in filters {
                if !kept.contains(&(filter.interface, filter.hook)) {
                    clsact::detach(filter.ifindex, filter.hook)?;
                }
            }
        }
        Ok(())
    }

    /// Removes the pins of interfaces that are gone: the links in them hold nothing any more.
    ///
    /// # Errors
    /// When pins cannot be listed or removed.
    pub fn forget_gone(&self) -> Result<(), HookError> {
        for (interface, hook) in self.pins.pinned_links()? {
            if if_nametoindex(interface.as_str()).is_err() {
                debug!(interface, hook = hook.program(), "removed the link of an interface that is gone");
                self.pins.remove_link(&interface, hook)?;
            }
        }
        Ok(clsact::forget_gone(&self.pins)?)
    }

    /// Takes the program of `hook` off `interface`.
    ///
    /// # Errors
    /// When the pin or the filter cannot be removed.
    pub fn detach(&self, interface: &str, hook: Hook) -> Result<(), HookError> {
        self.pins.remove_link(interface, hook)?;
        match if_nametoindex(interface) {
            Ok(ifindex) if self.attachment == Attachment::Clsact => Ok(clsact::detach(ifindex, hook)?),
            // Its filters went with it.
            _ => Ok(()),
        }
    }

    /// The hooks of `interfaces` that run these very programs, as (interface, hook). A hook that runs
    /// an earlier agent's program is not among them.
    ///
    /// # Errors
    /// When the pins or filters cannot be listed.
    pub fn attached(&mut self) -> Result<BTreeSet<(String, Hook)>, HookError> {
        let mut pinned = self.pins.pinned_links()?;
        if self.attachment == Attachment::Tcx {
            return Ok(self.attached_to(&pinned));
        }
        // Links of tc are an earlier agent's, which `adopt` did not get to replace.
        pinned.retain(|(_, hook)| hook.is_xdp());
        let mut found = self.attached_to(&pinned);
        for filter in clsact::placed()? {
            if self.id(filter.hook) == Some(filter.program) {
                found.insert((filter.interface, filter.hook));
            }
        }
        Ok(found)
    }

    /// The kernel's id of the program of `hook`.
    pub(super) fn id(&mut self, hook: Hook) -> Option<u32> {
        Some(program(&mut self.ebpf, hook).ok()?.info().ok()?.id())
    }

    /// Those of `hooks` whose pinned links hold these very programs where they should be: at ingress behind those of
    /// others, which would not see what ours redirect.
    fn attached_to(&mut self, hooks: &[(String, Hook)]) -> BTreeSet<(String, Hook)> {
        // Kept open: the kernel tells where a link is only of open ones.
        let links: Vec<_> = hooks
            .iter()
            .filter_map(|(interface, hook)| {
                let link = PinnedLink::from_pin(self.pins.link(interface, *hook)).ok()?;
                Some((interface, *hook, FdLink::from(link)))
            })
            .collect();
        let places = places();
        let mut found = BTreeSet::new();
        for (interface, hook, link) in &links {
            let Ok(info) = link.info() else { continue };
            let Ok(index) = if_nametoindex(interface.as_str()) else { continue };
            if self.id(*hook) == Some(info.program_id())
                && places.get(&info.id()) == Some(&index)
                && !(is_ingress(*hook) && self.is_overtaking(index, info.program_id()))
            {
                found.insert(((*interface).clone(), *hook));
            }
        }
        found
    }
}

/// The index of the interface each tcx link is attached to, by the link's id, of the links this process has
/// open; 0 if the interface is gone.
///
/// The interface itself tells the ids of its programs, but not which links hold them.
fn places() -> BTreeMap<u32, u32> {
    let Ok(files) = fs::read_dir("/proc/self/fdinfo") else { return BTreeMap::new() };
    let texts = files.flatten().filter_map(|file| fs::read_to_string(file.path()).ok());
    texts.filter_map(|text| Some((field(&text, "link_id:")?, field(&text, "ifindex:")?))).collect()
}

/// The number after `name` in a text of lines `name number ...`.
fn field(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// The link pinned at `path`, if there is one.
fn pinned(path: &Path) -> Result<Option<FdLink>, LinkError> {
    match PinnedLink::from_pin(path) {
        Ok(link) => Ok(Some(link.into())),
        Err(LinkError::SyscallError(SyscallError { io_error, .. }))
            if io_error.kind() == io::ErrorKind::NotFound =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Gives `link` the program. The pin holds the link; our descriptor of it is not needed.
fn replace(program: &mut Program, link: FdLink) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => {
            let id = program.attach_to_link(SchedClassifierLink::try_from(link).map_err(unlinked)?)?;
            program.take_link(id).map(drop)
        }
        Program::Xdp(program) => {
            let id = program.attach_to_link(XdpLink::try_from(link).map_err(unlinked)?)?;
            program.take_link(id).map(drop)
        }
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn attach_tc(
    program: &mut SchedClassifier,
    interface: &str,
    side: TcAttachType,
) -> Result<FdLink, ProgramError> {
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program.attach_with_options(interface, side, options)?;
    program.take_link(id)?.try_into().map_err(unlinked)
}

fn attach_xdp(program: &mut Xdp, interface: &str, mode: XdpMode) -> Result<FdLink, ProgramError> {
    let id = program.attach(interface, mode)?;
    program.take_link(id)?.try_into().map_err(unlinked)
}

fn unlinked(error: LinkError) -> ProgramError {
    ProgramError::IOError(io::Error::other(chain(&error)))
}

fn describe_xdp(error: &ProgramError) -> String {
    const OTHER: &str = "another XDP program is attached: take it off, or run with --xdp=off";
    match error {
        ProgramError::SyscallError(SyscallError { call, io_error }) => {
            match io_error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EOPNOTSUPP) => format!(
                    "{call}: {io_error}: its driver has no native XDP, or not for its MTU; \
                     run with --xdp=generic or --xdp=off"
                ),
                Some(Errno::EBUSY | Errno::EEXIST) => format!("{call}: {io_error}: {OTHER}"),
                _ => format!("{call}: {io_error}"),
            }
        }
        other => chain(other),
    }
}

fn describe_tc(error: &ProgramError) -> String {
    match error {
        ProgramError::SyscallError(SyscallError { call, io_error }) => match io_error.raw_os_error() {
            Some(code) if code == Errno::EINVAL as i32 => format!(
                "{call}: {io_error}: this kernel has no tcx links (Linux 6.6 and later do); \
                 run with --tc-attach=clsact"
            ),
            _ => format!("{call}: {io_error}"),
        },
        other => chain(other),
    }
}
